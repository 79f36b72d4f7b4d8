use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::args::{Args, BenchVerb, Latency, Reflect};
use super::table::Table;
use super::verbs::{ask, unexpected};
use super::{CliError, output};
use crate::control::api::{Pod, Reply, Request};
use crate::control::netns::Netns;
use crate::latency::{self, Load, Outcome};

/// Of the echo service (RFC 862).
pub(super) const ECHO_PORT: u16 = 7;

/// Requests to one target: what their bookkeeping takes stays below a gigabyte.
const MAX_REQUESTS: u64 = 10_000_000;

/// The percentiles that are printed.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

/// `LABEL=IP:PORT`, where label and port may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub label: String,
    pub address: SocketAddr,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (label, place) = text.split_once('=').unwrap_or((text, text));
        let address = place.parse().or_else(|_| place.parse().map(|ip: IpAddr| SocketAddr::new(ip, ECHO_PORT)));
        let address = address.map_err(|_| "it is not IP, IP:PORT, [IPv6]:PORT, or one of these after LABEL=")?;
        Ok(Self { label: label.to_owned(), address })
    }
}

/// `podwire bench`.
pub(super) fn run(args: &Args, verb: &BenchVerb) -> Result<(), CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    match verb {
        BenchVerb::Latency(verb) => measure(args, verb, &stop),
        BenchVerb::Reflect(verb) => reflect(args, verb, &stop),
    }
}

/// A pod of this node, from inside.
struct Inside {
    pod: Pod,
    netns: Netns,
}

impl Inside {
    fn enter(args: &Args, name: &str) -> Result<Self, CliError> {
        let pods = match ask(args, Request::PodsList)? {
            Reply::Pods(pods) => pods,
            other => return Err(unexpected(other)),
        };
        let is_it = |pod: &Pod| {
            pod.name == name || pod.owner.as_ref().and_then(|owner| owner.workload.as_deref()) == Some(name)
        };
        let pod = pods.into_iter().find(is_it);
        let pod = pod.ok_or_else(|| refused(format!("no pod is called `{name}`; see `podwire pods list`")))?;
        let netns = Netns::open(&pod.netns).map_err(|error| cannot_enter(&pod, &error))?;
        Ok(Self { pod, netns })
    }

    fn socket(&self, address: IpAddr, port: u16) -> Result<std::net::UdpSocket, CliError> {
        latency::socket_in(&self.netns, address, port).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => cannot_enter(&self.pod, &error),
            io::ErrorKind::AddrInUse => {
                refused(format!("{address} port {port} of pod {} is taken; choose another --port", self.pod.name))
            }
            _ => refused(format!("cannot open a socket with {address} in pod {}: {error}", self.pod.name)),
        })
    }
}

fn refused(text: String) -> CliError {
    CliError::Refused(text)
}

fn cannot_enter(pod: &Pod, error: &io::Error) -> CliError {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "; that takes root, or CAP_SYS_ADMIN, on the node",
        _ => "",
    };
    refused(format!("cannot enter the network namespace {} of pod {}: {error}{advice}", pod.netns.display(), pod.name))
}

fn reflect(args: &Args, verb: &Reflect, stop: &AtomicBool) -> Result<(), CliError> {
    let inside = Inside::enter(args, &verb.from)?;
    let sockets: Vec<_> =
        inside.pod.addresses.iter().map(|ip| inside.socket(*ip, verb.port)).collect::<Result<_, _>>()?;
    for socket in &sockets {
        eprintln!("answering at {} in pod {} for {} s, Ctrl-C ends it", socket.local_addr()?, verb.from, verb.seconds);
    }
    let end = Instant::now() + Duration::from_secs(verb.seconds);
    let answered = std::thread::scope(|scope| {
        let threads: Vec<_> =
            sockets.iter().map(|socket| scope.spawn(move || latency::reflect(socket, end, stop))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.sum::<io::Result<u64>>()
    })?;
    let text = |_: &_| format!("answered {answered} requests\n");
    Ok(output::print(args.output, &serde_json::json!({ "answered": answered }), text)?)
}

fn measure(args: &Args, verb: &Latency, stop: &AtomicBool) -> Result<(), CliError> {
    let load = Load { rate: verb.rate, requests: u64::from(verb.rate) * verb.seconds, bytes: verb.size };
    if load.requests > MAX_REQUESTS {
        return Err(refused(format!(
            "{} requests are too many, {MAX_REQUESTS} the most: lower --rate or --seconds",
            load.requests
        )));
    }
    if verb.hgrm.is_some() && verb.to.len() > 1 {
        return Err(refused("--hgrm is the histogram of one --to; give one, or --svg".to_owned()));
    }
    let inside = Inside::enter(args, &verb.from)?;
    let mut measured = Vec::new();
    for target in verb.to.iter().take_while(|_| !stop.load(Ordering::Relaxed)) {
        let is_same_family = |ip: &&IpAddr| ip.is_ipv6() == target.address.is_ipv6();
        let own = inside.pod.addresses.iter().find(is_same_family).copied();
        let own = own
            .ok_or_else(|| refused(format!("pod {} has no address of the family of {}", verb.from, target.address)))?;
        let outcome = latency::measure(&inside.socket(own, 0)?, target.address, load, stop);
        let outcome = outcome.map_err(|error| refused(format!("cannot send to {}: {error}", target.address)))?;
        measured.push((target, outcome));
    }
    if let (Some(file), Some((_, outcome))) = (&verb.hgrm, measured.first()) {
        write(file, &latency::hgrm(&outcome.round_trips))?;
    }
    if let Some(file) = &verb.svg {
        let lines: Vec<_> =
            measured.iter().map(|(target, outcome)| (target.label.clone(), &outcome.round_trips)).collect();
        let picture = latency::svg(&lines).map_err(|error| refused(format!("cannot draw: {error}")))?;
        write(file, &picture)?;
    }
    let report = Report {
        from: &verb.from,
        rate: verb.rate,
        seconds: verb.seconds,
        size: verb.size,
        interrupted: stop.load(Ordering::Relaxed),
        targets: measured.iter().map(|(target, outcome)| Row::new(target, outcome)).collect(),
    };
    output::print(args.output, &report, ToString::to_string)?;
    let silent = measured.iter().find(|(_, outcome)| outcome.received == 0 && outcome.sent > 0);
    silent.map_or(Ok(()), |(target, outcome)| Err(no_answer(target, outcome)))
}

fn write(file: &Path, text: &str) -> Result<(), CliError> {
    fs::write(file, text).map_err(|error| refused(format!("cannot write {}: {error}", file.display())))
}

fn no_answer(target: &Target, outcome: &Outcome) -> CliError {
    let seen = if outcome.refused > 0 { "nobody listens there" } else { "no answer came" };
    refused(format!(
        "{}: {seen}; on the node of that pod, `podwire bench reflect --from POD --port {}` answers",
        target.address,
        target.address.port()
    ))
}

/// What is printed.
#[derive(Serialize)]
struct Report<'a> {
    from: &'a str,
    rate: u32,
    seconds: u64,
    size: usize,
    /// By a signal: it is what was measured until then.
    interrupted: bool,
    targets: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    label: String,
    to: SocketAddr,
    sent: u64,
    unsent: u64,
    received: u64,
    lost: u64,
    reordered: u64,
    doubled: u64,
    refused: u64,
    /// From when a request was due to its answer.
    round_trip_us: Distribution,
    /// How late requests were sent, which is in the round trips.
    sent_late_us: Distribution,
}

/// In microseconds; none when there is no sample.
#[derive(Serialize)]
struct Distribution {
    mean: Option<f64>,
    min: Option<f64>,
    #[serde(flatten)]
    percentiles: BTreeMap<&'static str, Option<f64>>,
}

impl Distribution {
    #[expect(clippy::cast_precision_loss, reason = "three digits are exact")]
    fn of(histogram: &Histogram<u64>) -> Self {
        let us = |ns: f64| (!histogram.is_empty()).then_some(ns / 1000.0);
        let percentile = |(name, quantile)| (name, us(histogram.value_at_quantile(quantile) as f64));
        Self {
            mean: us(histogram.mean()),
            min: us(histogram.min() as f64),
            percentiles: QUANTILES.map(percentile).into(),
        }
    }

    fn percentile(&self, name: &str) -> Option<f64> {
        self.percentiles.get(name).copied().flatten()
    }
}

impl Row {
    fn new(target: &Target, outcome: &Outcome) -> Self {
        Self {
            label: target.label.clone(),
            to: target.address,
            sent: outcome.sent,
            unsent: outcome.unsent,
            received: outcome.received,
            lost: outcome.lost(),
            reordered: outcome.reordered,
            doubled: outcome.doubled,
            refused: outcome.refused,
            round_trip_us: Distribution::of(&outcome.round_trips),
            sent_late_us: Distribution::of(&outcome.lateness),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, rate, size, .. } = self;
        let ended = if self.interrupted { ", interrupted" } else { "" };
        writeln!(f, "round trips from {from} in µs, {rate} requests of {size} bytes a second{ended}\n")?;
        let mut table = Table::new(["TO", "SENT", "LOST", "REORDERED", "MIN"]);
        for (name, _) in QUANTILES {
            table.column(name.to_uppercase());
        }
        table.column("SENT LATE P99".to_owned());
        let us = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        for row in &self.targets {
            let counts = [row.sent, row.lost, row.reordered].map(|count| count.to_string());
            let trips = QUANTILES.iter().map(|(name, _)| us(row.round_trip_us.percentile(name)));
            let late = us(row.sent_late_us.percentile("p99"));
            let head = [row.label.clone()].into_iter().chain(counts).chain([us(row.round_trip_us.min)]);
            table.row(head.chain(trips).chain([late]));
        }
        write!(f, "{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_may_have_a_label_and_a_port() {
        let target = |text: &str| text.parse::<Target>().map(|target| (target.label, target.address.to_string()));
        let is = |label: &str, address: &str| Ok((label.to_owned(), address.to_owned()));
        assert_eq!(target("10.244.2.1"), is("10.244.2.1", "10.244.2.1:7"));
        assert_eq!(target("10.244.2.1:9000"), is("10.244.2.1:9000", "10.244.2.1:9000"));
        assert_eq!(target("fast=10.244.2.1"), is("fast", "10.244.2.1:7"));
        assert_eq!(target("six=[fd00:244:2::1]:9"), is("six", "[fd00:244:2::1]:9"));
        assert_eq!(target("fd00:244:2::1"), is("fd00:244:2::1", "[fd00:244:2::1]:7"));
        for bad in ["", "web", "10.244.2.1:", "10.244.2.1:99999", "a=b=10.0.0.1"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
