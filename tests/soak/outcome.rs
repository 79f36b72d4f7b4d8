//! What became of a run.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use podwire::control::view::Counters;
use serde::Serialize;

use crate::harness::{Deliveries, Fared};

/// What became of streams and connections over some time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Passage {
    pub sent: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Datagrams that a pod saw and that were not for it.
    pub misdelivered: u64,
    pub connections_lost: u64,
    /// What both nodes counted as lost, by reason.
    pub counted: Counters,
}

impl Passage {
    pub fn of(deliveries: &Deliveries, connections: &Fared) -> Self {
        let mut passage = Self {
            misdelivered: deliveries.misdelivered,
            connections_lost: connections.lost as u64,
            ..Self::default()
        };
        for stream in &deliveries.streams {
            passage.sent += stream.sent;
            passage.lost += stream.lost;
            passage.duplicated += stream.duplicated;
        }
        passage
    }

    pub fn count(&mut self, losses: &Counters) {
        for (label, count) in losses {
            *self.counted.entry(label.clone()).or_default() += count;
        }
    }

    /// Datagrams lost that no counter tells of.
    pub fn unexplained(&self) -> u64 {
        self.lost.saturating_sub(self.counted.values().sum())
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.misdelivered += other.misdelivered;
        self.connections_lost += other.connections_lost;
        self.count(&other.counted);
    }

    /// What must never be, whatever happens.
    fn faults(&self) -> Vec<String> {
        let faults = [
            (self.misdelivered, "datagrams at a wrong pod"),
            (self.connections_lost, "connections lost"),
            (self.duplicated, "datagrams came twice"),
        ];
        faults.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect()
    }
}

/// One event and the quiet time after it.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    pub name: &'static str,
    /// Since the run began.
    pub at: Duration,
    pub event: Passage,
    pub quiet: Passage,
    /// Of the daemon of node `b`.
    pub memory_kib: u64,
    pub failures: Vec<String>,
}

impl Turn {
    pub fn new(name: &'static str, at: Duration) -> Self {
        Self { name, at, ..Self::default() }
    }

    /// A turn that the laboratory gave up.
    pub fn failed(name: &'static str, at: Duration, why: String) -> Self {
        Self { failures: vec![why], ..Self::new(name, at) }
    }

    /// Adds what the passages show to the failures. In a harmless event nothing may get lost uncounted either.
    pub fn judge(&mut self, harmless: bool) {
        for (when, passage, strict) in [("event", &self.event, harmless), ("quiet time", &self.quiet, true)] {
            self.failures.extend(passage.faults().into_iter().map(|fault| format!("{when}: {fault}")));
            if strict && passage.unexplained() > 0 {
                self.failures.push(format!("{when}: {} datagrams lost unexplained", passage.unexplained()));
            }
        }
    }
}

impl Display for Turn {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let secs = self.at.as_secs();
        write!(
            f,
            "{:02}:{:02}:{:02} {:<30} lost {:>6} of {:>6}, then {} of {}; {} KiB",
            secs / 3600,
            secs / 60 % 60,
            secs % 60,
            self.name,
            self.event.lost,
            self.event.sent,
            self.quiet.lost,
            self.quiet.sent,
            self.memory_kib
        )?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  FAILED: {failure}"))
    }
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub seed: u64,
    pub seconds: u64,
    pub turns: u64,
    /// By event: how often, and what became of the streams.
    pub events: BTreeMap<&'static str, (u64, Passage)>,
    pub quiet: Passage,
    /// In quiet times.
    pub unexplained: u64,
    /// The own memory of node `b`'s daemon, before and after.
    pub memory_kib: (u64, u64),
    pub bad_checksums: u64,
    /// What was not given back.
    pub leaks: Vec<String>,
    pub failures: Vec<String>,
}

impl Outcome {
    pub fn new(seed: u64, memory_kib: u64) -> Self {
        Self { seed, memory_kib: (memory_kib, memory_kib), ..Self::default() }
    }

    pub fn add(&mut self, turn: Turn) {
        self.turns += 1;
        let (times, passage) = self.events.entry(turn.name).or_default();
        *times += 1;
        passage.add(&turn.event);
        self.quiet.add(&turn.quiet);
        self.unexplained += turn.quiet.unexplained();
        self.failures.extend(turn.failures.into_iter().map(|failure| format!("{}: {failure}", turn.name)));
    }

    /// Everything that is not as it should be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.failures.clone();
        faults.extend(self.leaks.iter().map(|leak| format!("not given back: {leak}")));
        if self.bad_checksums > 0 {
            faults.push(format!("{} packets with a bad checksum", self.bad_checksums));
        }
        faults
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<30} {:>6} {:>10} {:>8}", "EVENT", "TIMES", "SENT", "LOST")?;
        for (name, (times, passage)) in &self.events {
            writeln!(f, "{name:<30} {times:>6} {:>10} {:>8}", passage.sent, passage.lost)?;
        }
        writeln!(f, "{:<30} {:>6} {:>10} {:>8}", "quiet", self.turns, self.quiet.sent, self.quiet.lost)?;
        let (before, after) = self.memory_kib;
        writeln!(f, "\n{} s, {} turns, seed {}", self.seconds, self.turns, self.seed)?;
        writeln!(f, "lost in quiet times: {}, unexplained {}", self.quiet.lost, self.unexplained)?;
        writeln!(f, "counted in quiet times: {:?}", self.quiet.counted)?;
        writeln!(f, "memory of node-b's daemon: {before} KiB, then {after} KiB")?;
        let faults = self.faults();
        faults.iter().try_for_each(|fault| writeln!(f, "FAILED: {fault}"))?;
        writeln!(f, "{}", if faults.is_empty() { "nothing leaked, nothing went astray" } else { "not well" })
    }
}
