//! DPDK's tables, asked in a process of their own: `dpdk.c`, which `scripts/bench lpm` compiles.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use crate::tables::{Contest, Family, STRETCH};

/// Writes a file as `dpdk.c` reads it.
pub fn write<F: Family>(contest: &Contest<F>, file: &Path) {
    let Contest { prefixes, trace, changes, .. } = contest;
    let family = if F::WIDTH > 32 { 6 } else { 4 };
    let mut bytes = words([family, prefixes.len(), trace.len(), STRETCH, changes.len()]);
    for (bits, len, value) in contest.routes() {
        bytes.extend(bits.octets());
        bytes.extend(words([usize::from(len), usize::try_from(value).unwrap()]));
    }
    bytes.extend(trace.iter().flat_map(|key| key.octets()));
    bytes.extend(changes.iter().flat_map(|change| words([change.place, usize::try_from(change.value).unwrap()])));
    fs::write(file, bytes).unwrap();
}

fn words<const N: usize>(numbers: [usize; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| u32::try_from(*number).unwrap().to_ne_bytes()).collect()
}

/// How addresses are looked up.
#[derive(Clone, Copy)]
pub enum Way {
    /// One by one.
    Single,
    Burst,
}

/// A table in that process.
pub struct Dpdk {
    pub build: Duration,
    pub bytes: usize,
    /// Of the values that the whole trace finds.
    pub sum: u64,
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Dpdk {
    /// Builds a table of the given kind from a file; none where it cannot be, which DPDK says on standard error.
    pub fn start(program: &Path, input: &Path, kind: &str) -> Option<Self> {
        let mut child = Command::new(program)
            .args([input.as_os_str(), kind.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let (questions, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut dpdk = Self { build: Duration::ZERO, bytes: 0, sum: 0, child, questions, answers };
        let [build_ns, bytes, sum]: [u64; 3] = dpdk.answer()?;
        (dpdk.build, dpdk.bytes, dpdk.sum) = (Duration::from_nanos(build_ns), usize::try_from(bytes).unwrap(), sum);
        Some(dpdk)
    }

    /// How long the next so many stretches of the trace take.
    pub fn look_up(&mut self, way: Way, stretches: u64) -> Duration {
        let way = match way {
            Way::Single => "single",
            Way::Burst => "burst",
        };
        self.ask(&format!("{way} {stretches}")).expect("it answers until it is killed")
    }

    /// How long so many changes take; none if there is no room for them.
    pub fn change(&mut self, count: usize) -> Option<Duration> {
        self.ask(&format!("change {count}"))
    }

    /// Has a thread change so many routes a second from now on; none if there was no room for such changes.
    pub fn keep_changing(&mut self, a_second: u32) -> Option<Duration> {
        self.ask(&format!("keep {a_second}"))
    }

    fn ask(&mut self, question: &str) -> Option<Duration> {
        writeln!(self.questions, "{question}").unwrap();
        let [ns] = self.answer()?;
        Some(Duration::from_nanos(ns))
    }

    fn answer<T: FromStr, const N: usize>(&mut self) -> Option<[T; N]> {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let numbers: Vec<T> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().ok()
    }
}

impl Drop for Dpdk {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
