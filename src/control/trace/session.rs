use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::super::api::trace::{self as api, Ask, End, Event, Packet};
use super::super::api::{self as line, Reply, ReplyLine};
use super::names::{NameTable, Names};
use super::plan::FORWARDED;
use super::{Plan, Sources};
use crate::trace::{Fate, Filter, Flow, Point, Record};
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
        let mut text = Vec::new();
        push(&mut text, &ReplyLine { version: line::VERSION, reply: Reply::Tracing })?;
        self.write(stream, &mut text)?;
        let reason = loop {
            let over = if has_ended(stream)? { Some(BY_CLIENT) } else { self.is_over() };
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
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.is_over().is_none() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        text.clear();
        Ok(())
    }

    /// What has been seen since the last time, in order, as far as it is to be told.
    fn gather(&mut self) -> Vec<Packet> {
        let epoch_ns = epoch_ns();
        let lost = self.sources.lost();
        let mut packets: Vec<_> = self.names.read(|names| {
            let records = self.sources.feeds.iter().flat_map(|feed| std::iter::from_fn(|| feed.take()).take(BATCH));
            records.map(|record| self.tell(names, epoch_ns, &record)).collect()
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

    fn tell(&self, names: &NameTable, epoch_ns: u64, record: &Record) -> Packet {
        let flow = Flow::read(record.bytes(), self.filter.vxlan_port);
        let pod = flow.as_ref().and_then(|flow| names.pod_of(flow));
        let side = match record.point {
            Point::PodRx | Point::PodTx => api::Side::Pod,
            Point::WireRx | Point::WireTx => api::Side::Wire,
        };
        let interface = match side {
            api::Side::Wire => names.uplink(),
            api::Side::Pod => pod.map_or(names.hub(), |pod| pod.device.as_str()),
        };
        let (outcome, verdict, meaning, next_hop) = match record.fate {
            Fate::Forwarded(hop) => (api::Outcome::Fast, FORWARDED, "sent on by a worker", Some(names.hop(hop))),
            Fate::Dropped(reason) => (api::Outcome::Dropped, reason.label(), reason.help(), None),
        };
        Packet {
            time_ns: epoch_ns.saturating_add(record.time_ns),
            interface: interface.to_owned(),
            side,
            direction: record.point.direction().into(),
            seen_by: "worker".to_owned(),
            outcome,
            verdict: verdict.to_owned(),
            meaning: meaning.to_owned(),
            pod: pod.map(|pod| pod.name.clone()),
            next_hop,
            flow: flow.map(Into::into),
            length: record.length as u64,
            lost: 0,
            bytes: hex(record.bytes()),
        }
    }
}

impl Sources {
    /// How many packets found no room since the trace began.
    fn lost(&self) -> u64 {
        self.feeds.iter().map(|feed| feed.lost()).sum()
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

fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

impl From<Flow> for api::Flow {
    fn from(flow: Flow) -> Self {
        Self {
            source: flow.source,
            destination: flow.destination,
            protocol: flow.protocol.0,
            source_port: flow.ports.map(|(source, _)| source),
            destination_port: flow.ports.map(|(_, destination)| destination),
            tunnel: flow.outer,
        }
    }
}
