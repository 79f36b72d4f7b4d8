//! What pods of two podwire nodes notice of an event: a stream each way and a few TCP connections go on through it.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use podwire::control::api::{Reply, Request, Stats};
use podwire::control::client;
use podwire::control::view::Counters;
use podwire::counters::DropReason;
use podwire::steer::{Outcome, Verdict};

use super::cluster::Cluster;
use super::podwire_node::PodwireNode;
use super::site::Pod;
use super::stream::{Deliveries, Flow, RATE, stream_during};
use super::traffic::wait_until;
use super::trickle::{Connections, Fared};

/// How long everything runs before the event.
const LEAD: Duration = Duration::from_millis(500);

/// How long the path may take to be as before.
const PATIENCE: Duration = Duration::from_secs(20);

/// Over which the packets of a path are counted.
const WINDOW: Duration = Duration::from_millis(100);

/// What pods noticed.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Noticed {
    /// From node `a` to node `b`, and back.
    pub deliveries: Deliveries,
    pub connections: Fared,
    /// How long after the event's end the streams took the path of the mode again; none if they did not.
    pub recovered_after_ms: Option<u64>,
    /// What nodes `a` and `b` counted of it: drops, losses, verdicts, ailments.
    pub counted: [Counters; 2],
}

/// Lets `event` happen to a cluster whose pods talk, and waits until the path is as before, and for `tail` more.
pub fn notice(cluster: &mut Cluster, tail: Duration, event: impl FnOnce(&mut Cluster)) -> Noticed {
    let pods: Vec<Pod> = cluster.pods().into_iter().cloned().collect();
    let pods: Vec<&Pod> = pods.iter().collect();
    let (a, b) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    let (v4, v6) = ([Flow::v4(&a, &b), Flow::v4(&b, &a)], [Flow::v6(&a, &b), Flow::v6(&b, &a)]);
    let before = cluster.podwire_nodes().map(figures);
    let connections = Connections::open(&[v4, v6].concat());
    let mut recovered = None;
    let deliveries = stream_during(&v4, &pods, || {
        assert!(wait_until(PATIENCE, || is_as_before(cluster)), "the streams do not take their path");
        thread::sleep(LEAD);
        event(cluster);
        let end = Instant::now();
        recovered = wait_until(PATIENCE, || is_as_before(cluster)).then(|| end.elapsed());
        thread::sleep(tail);
    });
    let recovered_after_ms = recovered.map(|time| u64::try_from(time.as_millis()).expect("a short time"));
    let [a, b] = cluster.podwire_nodes().map(figures);
    let counted = [since(a, &before[0]), since(b, &before[1])];
    Noticed { deliveries, connections: connections.close(), recovered_after_ms, counted }
}

/// What a node counts, by label; nothing when it does not say.
pub fn figures(node: &PodwireNode) -> Counters {
    let Some(Stats { workers, retired, verdicts, .. }) = ask(node) else { return Counters::new() };
    let mut figures = Counters::new();
    for tallies in workers.into_iter().map(|worker| worker.tallies).chain([retired]) {
        for (label, count) in tallies.counts.into_iter().chain(tallies.drops) {
            *figures.entry(label).or_default() += count;
        }
    }
    for row in verdicts {
        figures.insert(format!("{} {}", row.program, row.verdict), row.packets);
    }
    figures
}

/// What grew.
pub fn since(after: Counters, before: &Counters) -> Counters {
    let grown = |(label, count): (String, u64)| {
        let grown = count.saturating_sub(before.get(&label).copied().unwrap_or(0));
        (grown > 0).then_some((label, grown))
    };
    after.into_iter().filter_map(grown).collect()
}

/// Those counters that tell of packets lost, each packet in one.
pub fn losses(mut counters: Counters) -> Counters {
    // Part of `claims_lost`, but counted at once.
    let hub = counters.remove("hub_lost").unwrap_or(0);
    let claims = counters.remove("claims_lost").unwrap_or(0);
    let reasons = DropReason::ALL.iter().map(|reason| reason.label().to_owned());
    let dropped = Verdict::ALL.iter().filter(|verdict| verdict.outcome() == Outcome::Dropped);
    let verdicts = dropped.flat_map(|v| ["nic_steer", "pod_steer"].map(|program| format!("{program} {}", v.label())));
    let losses: BTreeSet<_> = reasons.chain(verdicts).chain(["uplink_lost".to_owned()]).collect();
    counters.retain(|label, _| losses.contains(label));
    if hub.max(claims) > 0 {
        counters.insert("claims_lost".to_owned(), hub.max(claims));
    }
    counters
}

/// Whether both nodes carry nearly all of two streams by the path of their mode.
fn is_as_before(cluster: &Cluster) -> bool {
    let nodes = cluster.podwire_nodes();
    let before = nodes.map(carried);
    let start = Instant::now();
    thread::sleep(WINDOW);
    let after = nodes.map(carried);
    let expected = 2 * RATE * u64::try_from(start.elapsed().as_millis()).expect("a short time") / 1000;
    before.into_iter().zip(after).all(|pair| match pair {
        // A sender that has to wait for its CPU sends less.
        (Some(before), Some(after)) => after.saturating_sub(before) >= expected * 7 / 10,
        _ => false,
    })
}

/// Packets that a node has carried by the path of its mode; none when it does not say.
fn carried(node: &PodwireNode) -> Option<u64> {
    let Stats { workers, retired, kernel, .. } = ask(node)?;
    if node.options().is_kernel() {
        let vxlan = kernel.iter().find(|device| device.device == super::VXLAN_DEVICE)?;
        return Some(vxlan.rx_packets + vxlan.tx_packets);
    }
    let tallies = workers.iter().map(|worker| &worker.tallies).chain([&retired]);
    let count = |label: &str| tallies.clone().filter_map(|tallies| tallies.counts.get(label)).sum::<u64>();
    Some(count("pod_rx_packets") + count("pod_tx_packets"))
}

/// Its counters, without a process for the question: that would take time from the streams.
fn ask(node: &PodwireNode) -> Option<Stats> {
    match client::call(&node.runtime_dir(), Request::Stats) {
        Ok(Reply::Stats(stats)) => Some(*stats),
        _ => None,
    }
}
