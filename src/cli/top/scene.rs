//! What a node does, from two readings of it: figures and their rates, as `--output json` prints them.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::CliError;
use crate::cli::args::Args;
use crate::cli::rates::{growth, per_second, quotient};
use crate::cli::status::ways;
use crate::cli::verbs::{ask, unexpected};
use crate::control::api::{
    self, DataplaneState, DeviceStats, Path, Pod, PodStats, Probe, Reply, Request, Stats, Status, Tallies,
};
use crate::control::view::{Counters, ProbationStatus, QueueStatus, TrafficStatus, VerdictRow, WorkerStatus};
use crate::counters::{Count, DropReason};
use crate::steer::{Outcome, Program, Verdict};

/// What the daemon answered at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub at: Instant,
    pub status: Status,
    pub stats: Stats,
    pub pods: Vec<Pod>,
}

impl Reading {
    pub fn take(args: &Args) -> Result<Self, CliError> {
        let at = Instant::now();
        let status = match ask(args, Request::Status)? {
            Reply::Status(status) => *status,
            other => return Err(unexpected(other)),
        };
        let figures = match ask(args, Request::Stats)? {
            Reply::Stats(figures) => *figures,
            other => return Err(unexpected(other)),
        };
        let pods = match ask(args, Request::PodsList)? {
            Reply::Pods(pods) => pods,
            other => return Err(unexpected(other)),
        };
        Ok(Self { at, status, stats: figures, pods })
    }

    fn workers(&self) -> &[WorkerStatus] {
        self.status.dataplane.figures.as_ref().map_or(&[], |figures| &figures.workers)
    }

    /// What all workers counted, those of earlier data planes of the daemon included.
    fn tallies(&self) -> Tallies {
        let mut sum = self.stats.retired.clone();
        for worker in &self.stats.workers {
            sum.add(&worker.tallies.counts, &worker.tallies.drops);
        }
        sum
    }

    /// The kernel's VXLAN device, through which the kernel path goes.
    fn tunnel(&self) -> Option<&DeviceStats> {
        self.stats.kernel.iter().find(|device| device.device == self.status.vxlan.device)
    }
}

/// The node between two readings. Rates are those a second; `rx` and `tx` are from the node's point of view.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Scene {
    pub node: String,
    pub version: String,
    pub uptime_secs: u64,
    pub mode: String,
    pub state: DataplaneState,
    /// Why it is in that state, where that needs a word.
    pub reason: Option<String>,
    /// The time between the readings.
    pub interval_secs: f64,
    /// Between the workers and the wire.
    pub fast: Rates,
    /// Through the kernel's VXLAN device.
    pub kernel: Rates,
    /// Packets that workers and programs dropped.
    pub dropped_pps: f64,
    pub workers: Vec<WorkerRow>,
    pub queues: Vec<QueueRow>,
    /// The uplink and the kernel's VXLAN device as the kernel counts them.
    pub devices: Vec<DeviceRow>,
    pub pods: Vec<PodRow>,
    pub peers: Vec<PeerRow>,
    /// What was dropped since counting began, and why; what is dropped most now first.
    pub drops: Vec<Cause>,
    /// What the programs left to the kernel path, and why, in the same order.
    pub left_to_kernel: Vec<Cause>,
    pub problems: Vec<String>,
}

/// What passes a point both ways, a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    pub rx_pps: f64,
    pub rx_bps: f64,
    pub tx_pps: f64,
    pub tx_bps: f64,
    /// Packets that could not be delivered.
    pub lost_pps: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct WorkerRow {
    pub worker: u16,
    pub core: usize,
    /// The share of its time in passes that found work, 0 to 1.
    pub load: f64,
    pub wire_rx_pps: f64,
    pub wire_tx_pps: f64,
    pub pod_rx_pps: f64,
    pub pod_tx_pps: f64,
    /// Packets in a pass that found work; none when no pass did.
    pub burst: Option<f64>,
    pub asleep: bool,
    /// Its heartbeat is fresh.
    pub fresh: bool,
    pub probation: Option<ProbationStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct QueueRow {
    pub queue: u32,
    pub worker: u16,
    pub zero_copy: bool,
    #[serde(flatten)]
    pub rates: Rates,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct DeviceRow {
    pub device: String,
    #[serde(flatten)]
    pub rates: Rates,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PodRow {
    pub name: String,
    /// `namespace/pod` of Kubernetes, where it is known.
    pub workload: Option<String>,
    pub addresses: Vec<String>,
    pub path: Path,
    /// Why not the fast path, or what is wrong with it.
    pub reason: Option<String>,
    /// Between the pod and its worker: `rx` is what the pod sends. None while no worker serves it.
    pub fast: Option<Rates>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PeerRow {
    pub name: String,
    pub underlay: String,
    /// With or without the tunnel.
    pub ways: String,
    pub path: Path,
    pub reason: Option<String>,
    pub probe: Option<Probe>,
}

/// Packets that went astray for one reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Cause {
    /// Who decided: `worker`, or a program.
    pub by: String,
    pub reason: String,
    pub help: String,
    pub pps: f64,
    pub total: u64,
}

impl Scene {
    /// What happened from `before` to `now`.
    pub fn between(before: &Reading, now: &Reading) -> Self {
        let elapsed = now.at.saturating_duration_since(before.at);
        let (status, tallies, earlier) = (&now.status, now.tallies(), before.tallies());
        let drops = drops(&earlier, &tallies, elapsed).into_iter();
        let verdicts = |outcome| verdicts(&before.stats, &now.stats, outcome, elapsed);
        let drops: Vec<_> = by_rate(drops.chain(verdicts(Outcome::Dropped)).collect());
        Self {
            node: status.node.clone(),
            version: status.version.clone(),
            uptime_secs: status.uptime_secs,
            mode: status.mode.clone(),
            state: status.dataplane.state,
            reason: status.dataplane.reason.clone(),
            interval_secs: elapsed.as_secs_f64(),
            fast: wire(&earlier.counts, &tallies.counts, elapsed),
            kernel: now.tunnel().map(|tunnel| device(before.tunnel(), tunnel, elapsed)).unwrap_or_default(),
            // Not `sum`, which makes -0 of nothing.
            dropped_pps: drops.iter().fold(0.0, |sum, reason| sum + reason.pps),
            workers: now.workers().iter().map(|row| worker(before.workers(), row, elapsed)).collect(),
            queues: now.stats.queues.iter().map(|row| queue(&before.stats.queues, row, elapsed)).collect(),
            devices: devices(&before.stats.kernel, &now.stats.kernel, elapsed),
            pods: now.pods.iter().map(|row| pod(row, &before.stats.pods, &now.stats.pods, elapsed)).collect(),
            peers: status.peers.iter().map(peer).collect(),
            drops,
            left_to_kernel: by_rate(verdicts(Outcome::Kernel)),
            problems: status.problems.clone(),
        }
    }
}

fn count(counts: &Counters, count: Count) -> u64 {
    counts.get(count.label()).copied().unwrap_or(0)
}

/// What workers exchange with the wire.
fn wire(before: &Counters, now: &Counters, elapsed: Duration) -> Rates {
    let rate = |of| per_second(count(before, of), count(now, of), elapsed);
    Rates {
        rx_pps: rate(Count::WireRxPackets),
        rx_bps: 8.0 * rate(Count::WireRxBytes),
        tx_pps: rate(Count::WireTxPackets),
        tx_bps: 8.0 * rate(Count::WireTxBytes),
        lost_pps: rate(Count::UplinkLost),
    }
}

fn worker(before: &[WorkerStatus], now: &WorkerStatus, elapsed: Duration) -> WorkerRow {
    let none = Counters::new();
    let earlier = before.iter().find(|row| row.worker == now.worker).map_or(&none, |row| &row.counts);
    let grown = |of| growth(count(earlier, of), count(&now.counts, of));
    let rate = |of| per_second(count(earlier, of), count(&now.counts, of), elapsed);
    WorkerRow {
        worker: now.worker,
        core: now.core,
        load: now.load,
        wire_rx_pps: rate(Count::WireRxPackets),
        wire_tx_pps: rate(Count::WireTxPackets),
        pod_rx_pps: rate(Count::PodRxPackets),
        pod_tx_pps: rate(Count::PodTxPackets),
        burst: quotient(grown(Count::WireRxPackets) + grown(Count::PodRxPackets), grown(Count::BusyPolls)),
        asleep: now.asleep,
        fresh: now.fresh,
        probation: now.probation,
    }
}

fn traffic(before: Option<&TrafficStatus>, now: &TrafficStatus, elapsed: Duration) -> Rates {
    let none = TrafficStatus::default();
    let before = before.unwrap_or(&none);
    let rate = |before, now| per_second(before, now, elapsed);
    Rates {
        rx_pps: rate(before.rx_packets, now.rx_packets),
        rx_bps: 8.0 * rate(before.rx_bytes, now.rx_bytes),
        tx_pps: rate(before.tx_packets, now.tx_packets),
        tx_bps: 8.0 * rate(before.tx_bytes, now.tx_bytes),
        lost_pps: rate(before.lost, now.lost),
    }
}

fn queue(before: &[QueueStatus], now: &QueueStatus, elapsed: Duration) -> QueueRow {
    let earlier = before.iter().find(|row| row.queue == now.queue).map(|row| &row.traffic);
    let rates = traffic(earlier, &now.traffic, elapsed);
    QueueRow { queue: now.queue, worker: now.worker, zero_copy: now.zero_copy, rates }
}

fn devices(before: &[DeviceStats], now: &[DeviceStats], elapsed: Duration) -> Vec<DeviceRow> {
    let earlier = |name: &str| before.iter().find(|row| row.device == name);
    let row =
        |now: &DeviceStats| DeviceRow { device: now.device.clone(), rates: device(earlier(&now.device), now, elapsed) };
    now.iter().map(row).collect()
}

fn device(before: Option<&DeviceStats>, now: &DeviceStats, elapsed: Duration) -> Rates {
    let carried = |row: &DeviceStats| TrafficStatus {
        rx_packets: row.rx_packets,
        rx_bytes: row.rx_bytes,
        tx_packets: row.tx_packets,
        tx_bytes: row.tx_bytes,
        lost: row.rx_dropped + row.tx_dropped,
    };
    traffic(before.map(carried).as_ref(), &carried(now), elapsed)
}

fn pod(pod: &Pod, before: &[PodStats], now: &[PodStats], elapsed: Duration) -> PodRow {
    let figures = |rows: &[PodStats]| rows.iter().find(|row| row.name == pod.name).map(|row| row.credit.traffic);
    PodRow {
        name: pod.name.clone(),
        workload: pod.owner.as_ref().and_then(|owner| owner.workload.clone()),
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        path: pod.path,
        reason: pod.problem.clone().or_else(|| pod.reason.clone()),
        fast: figures(now).map(|now| traffic(figures(before).as_ref(), &now, elapsed)),
    }
}

fn peer(peer: &api::Peer) -> PeerRow {
    PeerRow {
        name: peer.name.clone(),
        underlay: peer.underlay.to_string(),
        ways: ways(&peer.ways),
        path: peer.path,
        reason: peer.reason.clone(),
        probe: peer.probe.clone(),
    }
}

/// What workers dropped.
fn drops(before: &Tallies, now: &Tallies, elapsed: Duration) -> Vec<Cause> {
    let value = |tallies: &Tallies, reason: DropReason| tallies.drops.get(reason.label()).copied().unwrap_or(0);
    let row = |reason: &DropReason| Cause {
        by: "worker".to_owned(),
        reason: reason.label().to_owned(),
        help: reason.help().to_owned(),
        pps: per_second(value(before, *reason), value(now, *reason), elapsed),
        total: value(now, *reason),
    };
    DropReason::ALL.iter().map(row).filter(|row| row.total > 0).collect()
}

/// What the programs decided with one outcome, each packet once: what a tunnel's leaves to the kernel path another has left.
fn verdicts(before: &Stats, now: &Stats, outcome: Outcome, elapsed: Duration) -> Vec<Cause> {
    let has_it = |row: &&VerdictRow| {
        let verdict = Verdict::ALL.iter().find(|verdict| verdict.label() == row.verdict);
        let is_known = row.program == Program::Tunnel.label() && outcome == Outcome::Kernel;
        row.packets > 0 && !is_known && verdict.is_some_and(|verdict| verdict.outcome() == outcome)
    };
    let earlier = |now: &VerdictRow| {
        let same = before.verdicts.iter().find(|row| row.program == now.program && row.verdict == now.verdict);
        same.map_or(0, |row| row.packets)
    };
    let row = |now: &VerdictRow| Cause {
        by: now.program.clone(),
        reason: now.verdict.clone(),
        help: now.help.clone(),
        pps: per_second(earlier(now), now.packets, elapsed),
        total: now.packets,
    };
    now.verdicts.iter().filter(has_it).map(row).collect()
}

fn by_rate(mut reasons: Vec<Cause>) -> Vec<Cause> {
    reasons.sort_by(|a, b| b.pps.total_cmp(&a.pps).then(b.total.cmp(&a.total)));
    reasons
}
