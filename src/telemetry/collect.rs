//! From what the daemon tells of itself to series: each figure goes to the metric that the table names for it.

use super::metric::Metric;
use super::page::{Page, seconds};
use super::snapshot::Snapshot;
use crate::config;
use crate::control::api::{
    Cause, DataplaneState, DeviceStats, Kubernetes, KubernetesState, NatCheck, Path, Peer, Pod, PodStats, Probe,
    ProbeState, Range, Stats, Status, WorkerStats,
};
use crate::control::view::{
    Ailment, DataplaneStatus, PassesStatus, QueueStatus, TrafficStatus, VerdictRow, WorkerStatus,
};
use crate::counters::Count;
use crate::steer::{Outcome, Verdict};
use crate::worker::bounds_ns;

/// The values of the label `direction`.
const FROM_WIRE: &str = "from_wire";
const TO_WIRE: &str = "to_wire";
const FROM_PODS: &str = "from_pods";
const TO_PODS: &str = "to_pods";

/// All series of a snapshot; those of each pod and of each peer only if asked for.
pub fn collect(snapshot: &Snapshot, config: config::Metrics) -> Page {
    let Snapshot { status, stats, pods, ready, took } = snapshot;
    let mut page = Page::new();
    page.put(Metric::ControlResponse, &[], took.as_secs_f64());
    node(&mut page, status);
    dataplane(&mut page, status);
    traffic(&mut page, stats);
    page.flag(Metric::Ready, &[], ready.problem.is_none());
    for range in &ready.ranges {
        put_range(&mut page, range);
    }
    page.count(Metric::FaultyPods, &[], pods.iter().filter(|pod| pod.problem.is_some()).count() as u64);
    probes(&mut page, &status.peers, config.per_peer);
    if config.per_pod {
        for pod in pods {
            let own = stats.pods.iter().find(|figures| figures.credit.pod == pod.id);
            if let Some(figures) = own {
                put_pod(&mut page, pod, figures);
            }
        }
    }
    page
}

fn node(page: &mut Page, status: &Status) {
    page.flag(Metric::BuildInfo, &[&status.version], true);
    page.count(Metric::Uptime, &[], status.uptime_secs);
    page.count(Metric::Problems, &[], status.problems.len() as u64);
    page.count(Metric::ConfigGeneration, &[], status.config.generation);
    page.flag(Metric::ConfigAccepted, &[], status.config.last_error.is_none());
    let masquerade = match (status.masquerade.on, &status.masquerade.problem) {
        (_, Some(_)) => "failed",
        (true, None) => "on",
        (false, None) => "off",
    };
    page.state(Metric::MasqueradeState, &[], &["off", "on", "failed"], masquerade);
    let check = match status.nat.check {
        NatCheck::None => "none",
        NatCheck::Lookup => "lookup",
        NatCheck::Kernel => "kernel",
    };
    page.state(Metric::NatCheck, &[], &["none", "lookup", "kernel"], check);
    if let Some(uplink) = &status.uplink {
        page.flag(Metric::UplinkUp, &[&uplink.name], uplink.up);
    }
    if let Some(mtu) = status.vxlan.mtu {
        page.count(Metric::OverlayMtu, &[], mtu.into());
    }
    for (path, label) in [(Path::Fast, "fast"), (Path::Kernel, "kernel")] {
        let peers = status.peers.iter().filter(|peer| peer.path == path).count();
        page.count(Metric::Peers, &[label], peers as u64);
    }
    page.count(Metric::Pods, &[], status.pods as u64);
    if let Some(source) = &status.kubernetes {
        kubernetes(page, source);
    }
}

fn kubernetes(page: &mut Page, source: &Kubernetes) {
    let state = match source.state {
        KubernetesState::Connecting => "connecting",
        KubernetesState::Following => "following",
        KubernetesState::Away => "away",
    };
    page.state(Metric::KubernetesState, &[], &["connecting", "following", "away"], state);
    if let Some(age_ms) = source.age_ms {
        page.put(Metric::KubernetesAge, &[], seconds(age_ms.saturating_mul(1_000_000)));
    }
    page.count(Metric::KubernetesNodes, &[], source.nodes as u64);
}

fn probes(page: &mut Page, peers: &[Peer], per_peer: bool) {
    let probed: Vec<_> = peers.iter().filter_map(|peer| Some((&peer.name, peer.probe.as_ref()?))).collect();
    if probed.is_empty() {
        return;
    }
    let states = [(ProbeState::Answers, "answers"), (ProbeState::Silent, "silent"), (ProbeState::Unknown, "unknown")];
    for (state, label) in states {
        let count = probed.iter().filter(|(_, probe)| probe.state == state).count();
        page.count(Metric::PeersProbed, &[label], count as u64);
    }
    for cause in Cause::ALL {
        let is_it = |probe: &Probe| probe.diagnosis.as_ref().is_some_and(|diagnosis| diagnosis.cause == cause);
        let count = probed.iter().filter(|(_, probe)| is_it(probe)).count();
        page.count(Metric::PeersIll, &[cause.label()], count as u64);
    }
    for (name, probe) in probed.into_iter().filter(|_| per_peer) {
        if probe.state != ProbeState::Unknown {
            page.flag(Metric::PeerReachable, &[name], probe.state == ProbeState::Answers);
        }
        if let Some(rtt_ns) = probe.rtt_ns {
            page.put(Metric::PeerRtt, &[name], seconds(rtt_ns));
        }
        page.count(Metric::PeerSent, &[name], probe.sent);
        page.count(Metric::PeerLost, &[name], probe.lost);
    }
}

fn dataplane(page: &mut Page, status: &Status) {
    let state = match status.dataplane.state {
        DataplaneState::Running => "running",
        DataplaneState::Kernel => "kernel",
        DataplaneState::Failed => "failed",
    };
    page.state(Metric::DataplaneState, &[], &["running", "kernel", "failed"], state);
    let Some(DataplaneStatus { xdp, memory, workers, .. }) = &status.dataplane.figures else { return };
    page.flag(Metric::DataplaneInfo, &[&status.mode, xdp, memory], true);
    for worker in workers {
        put_worker(page, worker);
    }
}

fn put_worker(page: &mut Page, status: &WorkerStatus) {
    let worker = status.worker.to_string();
    let worker = worker.as_str();
    page.flag(Metric::WorkerInfo, &[worker, &status.core.to_string()], true);
    page.flag(Metric::WorkerPinned, &[worker], status.pinned);
    let health = status.probation.map_or("well", |probation| match probation.reason {
        Ailment::Away => "away",
        Ailment::Starved => "starved",
    });
    page.state(Metric::WorkerHealth, &[worker], &["well", "away", "starved"], health);
    page.flag(Metric::HeartbeatFresh, &[worker], status.fresh);
    if let Some(age_ns) = status.heartbeat_age_ns {
        page.put(Metric::HeartbeatAge, &[worker], seconds(age_ns));
    }
    let times = &status.times;
    for (state, ns) in [("busy", times.busy.sum_ns), ("idle", times.idle.sum_ns), ("asleep", times.asleep_ns)] {
        page.put(Metric::WorkerSeconds, &[worker, state], seconds(ns));
    }
    let bounds = bounds_ns().map(seconds);
    for (work, PassesStatus { by_duration, sum_ns }) in [("found", &times.busy), ("none", &times.idle)] {
        page.histogram(Metric::PassDuration, &[worker, work], &bounds, by_duration, seconds(*sum_ns));
    }
    let frames = &status.frames;
    for (place, count) in [("pool", frames.pool), ("fill", frames.fill), ("send", frames.tx), ("hands", frames.hands)] {
        page.count(Metric::WorkerFrames, &[worker, place], count);
    }
}

fn traffic(page: &mut Page, stats: &Stats) {
    for WorkerStats { worker, tallies } in &stats.workers {
        let worker = worker.to_string();
        for &count in Count::ALL {
            let (metric, label) = place(count);
            let labels: Vec<_> = [worker.as_str()].into_iter().chain(label).collect();
            page.count(metric, &labels, tallies.counts.get(count.label()).copied().unwrap_or(0));
        }
        for (reason, packets) in &tallies.drops {
            page.count(Metric::WorkerDropped, &[&worker, reason], *packets);
        }
    }
    for queue in &stats.queues {
        put_queue(page, queue);
    }
    for VerdictRow { program, verdict, packets, .. } in &stats.verdicts {
        page.count(Metric::SteeringPackets, &[program, verdict, path_after(verdict)], *packets);
    }
    for device in &stats.kernel {
        put_device(page, device);
    }
}

/// The metric of a worker's count, and its second label.
fn place(count: Count) -> (Metric, Option<&'static str>) {
    match count {
        Count::WireRxPackets => (Metric::WorkerPackets, Some(FROM_WIRE)),
        Count::WireRxBytes => (Metric::WorkerBytes, Some(FROM_WIRE)),
        Count::WireTxPackets => (Metric::WorkerPackets, Some(TO_WIRE)),
        Count::WireTxBytes => (Metric::WorkerBytes, Some(TO_WIRE)),
        Count::PodRxPackets => (Metric::WorkerPackets, Some(FROM_PODS)),
        Count::PodRxBytes => (Metric::WorkerBytes, Some(FROM_PODS)),
        Count::PodRxSuper => (Metric::WorkerSuperPackets, Some(FROM_PODS)),
        Count::PodTxPackets => (Metric::WorkerPackets, Some(TO_PODS)),
        Count::PodTxBytes => (Metric::WorkerBytes, Some(TO_PODS)),
        Count::PodTxSuper => (Metric::WorkerSuperPackets, Some(TO_PODS)),
        Count::PodTxMerged => (Metric::WorkerMerged, None),
        Count::PodTxTrains => (Metric::WorkerInTrains, None),
        Count::HubLost => (Metric::WorkerLost, Some("hub")),
        Count::ClaimsLost => (Metric::WorkerLostClaims, None),
        Count::UplinkLost => (Metric::WorkerLost, Some("uplink")),
        Count::KernelBogus => (Metric::WorkerBogus, None),
        Count::Polls => (Metric::WorkerPolls, None),
        Count::BusyPolls => (Metric::WorkerBusyPolls, None),
        Count::Sleeps => (Metric::WorkerSleeps, None),
        Count::Absences => (Metric::WorkerAbsences, None),
        Count::Starvations => (Metric::WorkerStarvations, None),
        Count::Probations => (Metric::WorkerProbations, None),
        Count::Wakeups => (Metric::WorkerWakeups, None),
    }
}

/// Who has a packet after the verdict of a steering program.
fn path_after(verdict: &str) -> &'static str {
    match Verdict::ALL.iter().find(|known| known.label() == verdict).map(|known| known.outcome()) {
        Some(Outcome::Fast) => "fast",
        Some(Outcome::Dropped) => "dropped",
        Some(Outcome::Kernel) | None => "kernel",
    }
}

fn put_queue(page: &mut Page, QueueStatus { queue, zero_copy, traffic, .. }: &QueueStatus) {
    let queue = queue.to_string();
    put_traffic(page, [Metric::QueuePackets, Metric::QueueBytes], &[&queue], [FROM_WIRE, TO_WIRE], traffic);
    page.count(Metric::QueueLost, &[&queue], traffic.lost);
    page.flag(Metric::QueueZeroCopy, &[&queue], *zero_copy);
}

fn put_pod(page: &mut Page, pod: &Pod, PodStats { credit, .. }: &PodStats) {
    let workload = pod.owner.as_ref().and_then(|owner| owner.workload.as_deref()?.split_once('/'));
    let (namespace, name) = workload.unwrap_or(("", &pod.name));
    let labels = [namespace, name, &pod.name];
    put_traffic(page, [Metric::PodPackets, Metric::PodBytes], &labels, ["from_pod", "to_pod"], &credit.traffic);
    page.count(Metric::PodLost, &labels, credit.traffic.lost);
    page.count(Metric::PodInFlight, &labels, credit.in_flight);
}

fn put_range(page: &mut Page, Range { cidr, capacity, used, quarantined, free }: &Range) {
    let range = cidr.to_string();
    page.count(Metric::IpamCapacity, &[&range], *capacity);
    for (state, addresses) in [("used", used), ("quarantined", quarantined), ("free", free)] {
        page.count(Metric::IpamAddresses, &[&range, state], *addresses);
    }
}

fn put_device(page: &mut Page, stats: &DeviceStats) {
    let DeviceStats { device, .. } = stats;
    for (direction, packets, bytes, dropped) in [
        ("receive", stats.rx_packets, stats.rx_bytes, stats.rx_dropped),
        ("transmit", stats.tx_packets, stats.tx_bytes, stats.tx_dropped),
    ] {
        page.count(Metric::DevicePackets, &[device, direction], packets);
        page.count(Metric::DeviceBytes, &[device, direction], bytes);
        page.count(Metric::DeviceDropped, &[device, direction], dropped);
    }
}

/// What a port has carried, seen from its worker: what it received comes first in `directions`, the last label.
fn put_traffic(page: &mut Page, metrics: [Metric; 2], port: &[&str], directions: [&str; 2], traffic: &TrafficStatus) {
    let ([packets, bytes], [received, sent]) = (metrics, directions);
    for (direction, packets_there, bytes_there) in
        [(received, traffic.rx_packets, traffic.rx_bytes), (sent, traffic.tx_packets, traffic.tx_bytes)]
    {
        let labels = [port, &[direction]].concat();
        page.count(packets, &labels, packets_there);
        page.count(bytes, &labels, bytes_there);
    }
}
