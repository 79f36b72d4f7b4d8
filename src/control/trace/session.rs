use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::super::api::trace::{Ask, End, Event, Packet};
use super::super::api::{self as line, Reply, ReplyLine};
use super::names::Names;
use super::telling::Telling;
use super::{Plan, Sources};
use crate::trace::{Filter, Sampler};
use crate::worker::now_ns;

/// How long the sources are left alone between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Records of one source that are told of at most between two pauses, so that a flood does not take a core. What is
/// more than the source holds is lost, and counted.
const BATCH: usize = 512;

/// How long a client that does not read is waited for, before it is looked whether the trace is over.
const PATIENCE: Duration = Duration::from_millis(100);

const BY_CLIENT: &str = "the client ended it";

/// A trace that runs: reads the sources and tells the client.
#[derive(Debug)]
pub struct Session {
    sources: Sources,
    filter: Filter,
    /// Of what the programs tell, and the filter lets through. The workers' taps do the same for themselves.
    sampler: Sampler,
    /// Bytes of each frame that are told.
    snap: usize,
    names: Arc<Names>,
    /// Packets still to be told of.
    left: u64,
    until: Option<Instant>,
    told: u64,
    /// Lost packets that were told of.
    lost: u64,
}

impl Session {
    pub fn new(ask: &Ask, plan: Plan, sources: Sources, names: Arc<Names>) -> Self {
        let seconds = ask.seconds.map(Duration::from_secs);
        Self {
            sources,
            filter: plan.filter,
            sampler: Sampler::new(plan.sample),
            snap: plan.snap,
            names,
            left: ask.count.unwrap_or(u64::MAX),
            until: seconds.and_then(|time| Instant::now().checked_add(time)),
            told: 0,
            lost: 0,
        }
    }

    /// Tells the client of packets until the trace is over. Blocks, on a thread of its own.
    pub fn run(mut self, mut stream: UnixStream) {
        if let Err(error) = self.try_run(&mut stream) {
            tracing::debug!(%error, "the client of a trace has gone");
        }
    }

    fn try_run(&mut self, stream: &mut UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PAUSE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        self.sources.programs.renew(now_ns());
        let mut text = Vec::new();
        push(&mut text, &ReplyLine { version: line::VERSION, reply: Reply::Tracing })?;
        self.write(stream, &mut text)?;
        let reason = loop {
            let over = if has_ended(stream)? { Some(BY_CLIENT) } else { self.is_over() };
            self.sources.programs.renew(now_ns());
            for packet in self.gather() {
                push(&mut text, &Event::Packet(Box::new(packet)))?;
            }
            self.write(stream, &mut text)?;
            if let Some(reason) = over {
                break reason;
            }
        };
        let end = End { reason: reason.to_owned(), packets: self.told, lost: self.sources.lost() };
        push(&mut text, &Event::End(end))?;
        self.write(stream, &mut text)
    }

    fn is_over(&self) -> Option<&'static str> {
        if self.left == 0 {
            return Some("as many packets as were asked for");
        }
        if self.until.is_some_and(|until| Instant::now() >= until) {
            return Some("the time is over");
        }
        self.sources.tie.is_cut()
    }

    /// Writes all of it, for as long as the trace lasts.
    fn write(&self, stream: &mut UnixStream, text: &mut Vec<u8>) -> io::Result<()> {
        let mut rest = text.as_slice();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.is_over().is_none() => {
                    self.sources.programs.renew(now_ns());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        text.clear();
        Ok(())
    }

    /// What has been seen since the last time, in order, as far as it is to be told.
    fn gather(&mut self) -> Vec<Packet> {
        let Self { sources, filter, sampler, snap, names, .. } = self;
        let lost = sources.lost();
        let mut packets: Vec<_> = names.read(|names| {
            let telling = Telling { names, vxlan_port: filter.vxlan_port, epoch_ns: epoch_ns() };
            let records = sources.feeds.iter().flat_map(|feed| std::iter::from_fn(|| feed.take()).take(BATCH));
            let by_workers = records.map(|record| telling.of_worker(&record));
            let sightings = sources.programs.take(BATCH).into_iter().filter(|sighting| {
                let (direction, flow) = telling.way(sighting);
                filter.matches(direction, sighting.device, flow.as_ref()) && sampler.takes()
            });
            by_workers.chain(sightings.map(|sighting| telling.of_program(&sighting, *snap))).collect()
        });
        packets.sort_by_key(|packet| packet.time_ns);
        packets.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        if let Some(first) = packets.first_mut() {
            first.lost = lost - self.lost;
            self.lost = lost;
        }
        self.told += packets.len() as u64;
        self.left -= packets.len() as u64;
        packets
    }
}

impl Sources {
    /// How many packets found no room since the trace began, those of programs whether the filter would have let them
    /// through or not.
    fn lost(&self) -> u64 {
        self.feeds.iter().map(|feed| feed.lost()).sum::<u64>() + self.programs.lost()
    }
}

/// Waits for the pause; true when the client wants no more.
fn has_ended(stream: &mut UnixStream) -> io::Result<bool> {
    match stream.read(&mut [0; 64]) {
        Ok(read) => Ok(read == 0),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error),
    }
}

fn push(text: &mut Vec<u8>, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *text, value)?;
    text.push(b'\n');
    Ok(())
}

/// Nanoseconds from 1970 to where `CLOCK_MONOTONIC` begins.
fn epoch_ns() -> u64 {
    let monotonic_ns = now_ns();
    let since_1970 = clock_gettime(ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(0).saturating_sub(monotonic_ns)
}
