use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use super::args::{Args, Format};
use super::table::Table;
use super::verbs::{ask, unexpected};
use super::{CliError, output, peers};
use crate::control::api::{
    DataplaneReport, DataplaneState, Kubernetes, KubernetesState, Masquerade, Nat, NatCheck, Path, Reply, Request,
    Second, SlowPod, Status, Uplink, Way,
};
use crate::control::view::{Ailment, BusyPollStatus, DataplaneStatus, ProbationStatus};

/// `podwire status`: once, or every `watch` seconds until interrupted.
pub(super) fn run(args: &Args, watch: Option<u64>) -> Result<(), CliError> {
    loop {
        let Some(secs) = watch else {
            return Ok(output::print(args.output, &read(args)?, |status| text(status))?);
        };
        let status = read(args)?;
        match args.output {
            Format::Json => output::write(serde_json::to_string(&status).map_err(std::io::Error::from)? + "\n")?,
            Format::Text => output::write(format_args!("{}{}\n", output::clear(), text(&status)))?,
        }
        sleep(Duration::from_secs(secs));
    }
}

fn read(args: &Args) -> Result<Box<Status>, CliError> {
    match ask(args, Request::Status)? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(other)),
    }
}

/// The status for people.
fn text(status: &Status) -> String {
    let mut text = summary(status).to_string();
    if let Some(figures) = &status.dataplane.figures {
        append(&mut text, &workers(figures));
        append(&mut text, &queues(figures));
    }
    append(&mut text, &peer_paths(status));
    if !status.problems.is_empty() {
        text.push('\n');
    }
    for problem in &status.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

/// The word for a path.
pub(super) fn path(path: Path) -> &'static str {
    match path {
        Path::Fast => "fast",
        Path::Kernel => "kernel",
    }
}

fn append(text: &mut String, table: &Table) {
    if !table.is_empty() {
        let _ = write!(text, "\n{table}");
    }
}

fn summary(status: &Status) -> Table {
    let mut table = Table::new(["", ""]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    let up = duration(status.uptime_secs);
    row("node", format!("{}, podwire {}, up {up}", status.node, status.version));
    row("mode", status.mode.clone());
    row("data plane", dataplane(&status.dataplane));
    row("config", format!("{}, generation {}", status.config.file.display(), status.config.generation));
    if let Some(error) = &status.config.last_error {
        row("refused", error.replace('\n', " "));
    }
    if let Some(source) = &status.kubernetes {
        row("kubernetes", kubernetes(source));
    }
    row("uplink", status.uplink.as_ref().map_or_else(|| "missing".to_owned(), uplink));
    let vxlan = &status.vxlan;
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    row("vxlan", format!("{}, vni {}, port {}", vxlan.device, vxlan.vni, vxlan.port));
    let (vtep, mac) = (or_dash(vxlan.vtep.map(|ip| ip.to_string())), or_dash(vxlan.vtep_mac.clone()));
    row("vtep", format!("{vtep}, mac {mac}, mtu {}", or_dash(vxlan.mtu.map(|mtu| mtu.to_string()))));
    if let Some(Second { device, underlay, vtep_mac }) = &vxlan.second {
        row("ipv6 vtep", format!("{underlay}, mac {vtep_mac}, device {device}"));
    }
    if let Some(hub) = &status.hub {
        row("hub", format!("device {}", hub.ifindex));
    }
    row("nat", nat(&status.nat));
    row("masquerade", masquerade(&status.masquerade));
    row("peers", peers::summary(&status.peers));
    row("pods", status.pods.to_string());
    for SlowPod { name, reason } in &status.slow_pods {
        row("slow pod", format!("{name} takes the kernel path: {reason}"));
    }
    table
}

fn dataplane(report: &DataplaneReport) -> String {
    let state = match report.state {
        DataplaneState::Running => "running",
        DataplaneState::Kernel => "off",
        DataplaneState::Failed => "failed, kernel path in use",
    };
    let mut text = state.to_owned();
    if let Some(figures) = &report.figures {
        let _ = match figures.xdp.as_str() {
            "off" => write!(text, ": the kernel receives, no XDP"),
            xdp => write!(text, ": {xdp} XDP"),
        };
        let _ = write!(text, ", {} frames in {}", figures.frames, figures.memory);
        text += match (figures.xdp.as_str(), figures.leaves_bulk) {
            ("off", _) => ", TCP by the kernel path",
            (_, true) => ", bulk TCP by the kernel path",
            _ => "",
        };
    }
    if let Some(reason) = &report.reason {
        let _ = write!(text, ": {reason}");
    }
    if let Some(secs) = report.retry_secs {
        let _ = write!(text, " (next try in {secs} s)");
    }
    text
}

fn nat(nat: &Nat) -> String {
    let does = match nat.check {
        NatCheck::None => return "none".to_owned(),
        NatCheck::Lookup => "flows are looked up in conntrack",
        NatCheck::Kernel => "everything takes the kernel path",
    };
    format!("{does}: {}", nat.why)
}

fn masquerade(masquerade: &Masquerade) -> String {
    match (&masquerade.problem, masquerade.on) {
        (Some(problem), _) => format!("failed: {problem}"),
        (None, true) => "on".to_owned(),
        (None, false) => "off".to_owned(),
    }
}

fn kubernetes(source: &Kubernetes) -> String {
    let state = match source.state {
        KubernetesState::Connecting => "connecting",
        KubernetesState::Following => "following",
        KubernetesState::Away => "away",
    };
    let mut text = state.to_owned();
    if let Some(server) = &source.server {
        let _ = write!(text, " {server}");
    }
    let _ = match source.age_ms {
        Some(age_ms) => write!(text, ", {} node(s), last sign {} ago", source.nodes, duration(age_ms / 1000)),
        None => write!(text, ", no sign of it yet"),
    };
    if let Some(as_of) = &source.as_of {
        let _ = write!(text, ", nodes as of {as_of}");
    }
    if let Some(why) = &source.why {
        let _ = write!(text, ": {}", why.replace('\n', " "));
    }
    text
}

fn uplink(uplink: &Uplink) -> String {
    let Uplink { name, ifindex, mac, mtu, rx_queues, .. } = uplink;
    let state = if uplink.up { "up" } else { "down" };
    format!("{name} ({ifindex}), mac {mac}, mtu {mtu}, {rx_queues} queue(s), {state}")
}

fn workers(figures: &DataplaneStatus) -> Table {
    let mut table = Table::new([
        "WORKER",
        "CORE",
        "LOAD",
        "FRAMES",
        "POOL",
        "FILL",
        "TX",
        "HANDS",
        "LEDGER",
        "HEARTBEAT",
        "HEALTH",
    ]);
    for worker in &figures.workers {
        let frames = worker.frames;
        let numbers = [frames.total, frames.pool, frames.fill, frames.tx, frames.hands].map(|n| n.to_string());
        let ledger = if frames.is_balanced() { "balanced" } else { "LEAK" };
        let heartbeat = match (worker.fresh, worker.asleep) {
            (false, _) => "STALE",
            (true, true) => "asleep",
            (true, false) => "fresh",
        };
        let health = worker.probation.as_ref().map_or_else(|| "well".to_owned(), probation);
        let core = if worker.pinned { worker.core.to_string() } else { format!("{} (not pinned)", worker.core) };
        let head = [worker.worker.to_string(), core, format!("{:.1}%", worker.load * 100.0)];
        let tail = [ledger, heartbeat].map(str::to_owned).into_iter().chain([health]);
        table.row(head.into_iter().chain(numbers).chain(tail));
    }
    table
}

/// What a probation is for, and how long it lasts.
pub(super) fn probation(probation: &ProbationStatus) -> String {
    let reason = match probation.reason {
        Ailment::Away => "was away",
        Ailment::Starved => "out of packet memory",
    };
    format!("{reason}, on probation for {} ms", probation.remaining_ms)
}

fn queues(figures: &DataplaneStatus) -> Table {
    let mut table = Table::new(["QUEUE", "WORKER", "MEMORY", "BUSY-POLL"]);
    for queue in &figures.queues {
        let memory = if queue.zero_copy { "zero-copy" } else { "copy" };
        table.row([queue.queue.to_string(), queue.worker.to_string(), memory.to_owned(), busy_poll(&queue.busy_poll)]);
    }
    table
}

/// Whether a worker runs its queue's NAPI.
fn busy_poll(status: &BusyPollStatus) -> String {
    match (status.refusal, status.napi_id) {
        (Some(refusal), _) => format!("no: {}", refusal.text()),
        (None, id) => format!("NAPI {}, {} frames by {} runs", id.unwrap_or_default(), status.frames, status.runs),
    }
}

fn peer_paths(status: &Status) -> Table {
    let mut table = Table::new(["PEER", "UNDERLAY", "VTEP MAC", "WAY", "PATH", "WHY"]);
    for peer in &status.peers {
        table.row([
            peer.name.clone(),
            list([peer.underlay].into_iter().chain(peer.underlay6)),
            list([&peer.vtep_mac].into_iter().chain(&peer.vtep_mac6)),
            ways(&peer.ways),
            path(peer.path).to_owned(),
            peer.reason.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// What a peer has of its first tunnel, and of the second if there is one.
fn list(ends: impl Iterator<Item = impl ToString>) -> String {
    ends.map(|end| end.to_string()).collect::<Vec<_>>().join(", ")
}

/// The word for a way.
pub(super) fn way(way: Way) -> &'static str {
    match way {
        Way::Vxlan => "vxlan",
        Way::Direct => "direct",
    }
}

/// The words for the ways to a peer.
pub(super) fn ways(ways: &[Way]) -> String {
    ways.iter().map(|it| way(*it)).collect::<Vec<_>>().join("+")
}

/// A time in its two largest units.
pub(super) fn duration(secs: u64) -> String {
    let (days, hours, minutes) = (secs / 86_400, secs / 3600 % 24, secs / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{secs}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", secs % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_shows_its_two_largest_units() {
        for (secs, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (3_660, "1h01m"), (90_000, "1d01h")] {
            assert_eq!(duration(secs), text);
        }
    }
}
