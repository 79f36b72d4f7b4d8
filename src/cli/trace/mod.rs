//! `podwire trace`: asks for packets and shows them as they come.

pub(super) mod args;
mod pcapng;
mod text;

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use super::args::{Args, Format};
use super::table::Table;
use super::verbs::{ask, unexpected};
use crate::control::api::trace::{Ask, Direction, End, Event, Outcome, Packet, Protocol};
use crate::control::api::{Reply, Request};
use crate::control::client::{self, ClientError};
use crate::counters::DropReason;
use crate::steer::{self, Verdict};
use args::{Trace, TraceDirection, TraceFilter, TracePath, TraceProtocol, TraceVerb};
use pcapng::Pcapng;

/// `podwire trace`, and `podwire trace drops`.
pub(super) fn run(args: &Args, verb: &Trace) -> Result<(), CliError> {
    let (filter, is_about_drops) = match &verb.verb {
        Some(TraceVerb::Drops(filter)) => (filter, true),
        None => (&verb.filter, false),
    };
    let verdicts = verb.verdict.iter().chain(verb.drops.iter().filter(|reason| !reason.is_empty())).cloned().collect();
    let outcomes = match verb.path {
        _ if is_about_drops || verb.drops.is_some() => vec![Outcome::Dropped],
        None => Vec::new(),
        Some(TracePath::Fast) => vec![Outcome::Fast],
        Some(TracePath::Kernel) => vec![Outcome::Kernel],
        Some(TracePath::All) => vec![Outcome::Fast, Outcome::Kernel, Outcome::Dropped],
    };
    let question = Ask { verdicts, outcomes, ..question(filter) };
    let mut out: Box<dyn Sink> = match (&verb.write, args.output) {
        (Some(file), _) => Box::new(Pcapng::new(open(file)?)?),
        (None, Format::Text) => Box::new(text::Lines::default()),
        (None, Format::Json) => Box::new(Json),
    };
    let before = if is_about_drops { Some(drops(args)?) } else { None };
    let end = follow(args, question, &mut *out)?;
    if let (Some(before), Format::Text) = (before, args.output) {
        let text = summary(&before, &drops(args)?);
        super::output::write(text)?;
    }
    let End { reason, packets, lost } = end;
    eprintln!("{packets} packet(s), {lost} more lost by the trace; ended: {reason}");
    Ok(())
}

/// Where packets are shown.
trait Sink {
    fn packet(&mut self, packet: &Packet) -> io::Result<()>;

    /// Shows what was kept back, because more may be long in coming.
    fn flush(&mut self) -> io::Result<()>;

    fn end(&mut self, end: &End) -> io::Result<()>;
}

/// An object a line: packets, and at last how it ended.
struct Json;

impl Json {
    fn line(event: &Event) -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, event)?;
        out.write_all(b"\n")
    }
}

impl Sink for Json {
    fn packet(&mut self, packet: &Packet) -> io::Result<()> {
        Self::line(&Event::Packet(Box::new(packet.clone())))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }

    fn end(&mut self, end: &End) -> io::Result<()> {
        Self::line(&Event::End(end.clone()))
    }
}

/// Shows all packets of a trace, and returns how it ended.
fn follow(args: &Args, question: Ask, out: &mut dyn Sink) -> Result<End, CliError> {
    let (mut events, stream) = client::trace(&args.runtime_dir, question)?;
    end_on_signal(stream)?;
    eprintln!("tracing; Ctrl-C ends it");
    loop {
        if events.buffer().is_empty() {
            out.flush()?;
        }
        match next(args, &mut events)? {
            Event::Packet(packet) => out.packet(&packet)?,
            Event::End(end) => {
                out.end(&end)?;
                out.flush()?;
                return Ok(end);
            }
        }
    }
}

fn next(args: &Args, events: &mut BufReader<UnixStream>) -> Result<Event, CliError> {
    let broken = |error| ClientError::Broken(crate::control::runtime::socket_path(&args.runtime_dir), error);
    let mut line = String::new();
    if events.read_line(&mut line).map_err(broken)? == 0 {
        return Err(CliError::Refused(
            "the trace broke off: the daemon has ended, or waited for this client too long".to_owned(),
        ));
    }
    serde_json::from_str(&line).map_err(|error| broken(error.into()).into())
}

/// Has SIGINT and SIGTERM end the trace in good order: the daemon says what is left to say, and this process ends then.
fn end_on_signal(stream: UnixStream) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        let _gone = stream.shutdown(Shutdown::Write);
    })?;
    Ok(())
}

fn open(file: &Path) -> Result<Box<dyn Write>, CliError> {
    if file == Path::new("-") {
        return Ok(Box::new(BufWriter::new(io::stdout())));
    }
    let failed = |error| CliError::Refused(format!("cannot write {}: {error}", file.display()));
    Ok(Box::new(BufWriter::new(File::create(file).map_err(failed)?)))
}

fn question(filter: &TraceFilter) -> Ask {
    Ask {
        pod: filter.pod.clone(),
        peer: filter.peer.clone(),
        host: filter.host,
        net: filter.net,
        port: filter.port,
        protocol: filter.protocol.map(|protocol| match protocol {
            TraceProtocol::Tcp => Protocol::Tcp,
            TraceProtocol::Udp => Protocol::Udp,
            TraceProtocol::Icmp => Protocol::Icmp,
        }),
        direction: filter.direction.map(|direction| match direction {
            TraceDirection::FromPod => Direction::FromPod,
            TraceDirection::ToPod => Direction::ToPod,
        }),
        verdicts: Vec::new(),
        outcomes: Vec::new(),
        snap: filter.snaplen,
        sample: filter.sample,
        count: filter.count,
        seconds: filter.seconds,
    }
}

/// How much was dropped so far, by who and why.
type Drops = Vec<(String, &'static str, u64)>;

fn drops(args: &Args) -> Result<Drops, CliError> {
    let stats = match ask(args, Request::Stats)? {
        Reply::Stats(stats) => stats,
        other => return Err(unexpected(other)),
    };
    let by_workers = DropReason::ALL.iter().map(|reason| {
        let tallies = stats.workers.iter().map(|worker| &worker.tallies).chain([&stats.retired]);
        let count = tallies.filter_map(|tallies| tallies.drops.get(reason.label())).sum();
        (format!("worker {}", reason.label()), reason.help(), count)
    });
    let is_drop = |verdict: &&Verdict| verdict.outcome() == steer::Outcome::Dropped;
    let by_programs = Verdict::ALL.iter().filter(is_drop).flat_map(|verdict| {
        let rows = stats.verdicts.iter().filter(|row| row.verdict == verdict.label());
        rows.map(|row| (format!("{} {}", row.program, row.verdict), verdict.help(), row.packets))
    });
    Ok(by_workers.chain(by_programs).collect())
}

/// What was dropped between two looks, whether the trace showed it or not.
fn summary(before: &Drops, after: &Drops) -> String {
    let mut table = Table::new(["DROPPED", "PACKETS", "WHAT IT MEANS"]);
    for ((label, help, count), (_, _, earlier)) in after.iter().zip(before) {
        if count > earlier {
            table.row([label.clone(), (count - earlier).to_string(), (*help).to_owned()]);
        }
    }
    if table.is_empty() { "nothing was dropped\n".to_owned() } else { table.to_string() }
}
