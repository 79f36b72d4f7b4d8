//! Packets for workers that sleep: few go past them, many wake them.

use std::thread;
use std::time::Duration;

use podwire::steer::{Program, Verdict};

use super::bypass::{count_forwarded_of, forwarded};
use super::cluster;
use super::harness::{
    Cluster, Deliveries, Flow, Options, PodwireNode, Wire, figures, pings, stream_at, tcp_transfer, udp_echo,
};

const NATIVE: Options = Options { xdp: "native", ..Options::DEFAULT };

/// How often to try again when the machine kept a worker from running, or a core stood still, and what the node counts
/// when it was a worker.
const ATTEMPTS: usize = 12;
const ABSENCES: [&str; 5] = ["absences", "pod_steer late", "pod_steer stale", "nic_steer late", "nic_steer stale"];

/// Packets of a stream do not come or go for so long, at the lowest of the rates, though no core stands still.
const GAP_MS: f64 = 3.0;

/// So fast do packets never come.
const NEVER: u32 = 10_000_000;

/// What the workers of a node have been sent, of its pods and for them.
fn claimed(node: &PodwireNode) -> u64 {
    [Program::Pod, Program::Nic].map(|program| node.verdict(program, Verdict::Claimed)).iter().sum()
}

#[test]
fn few_packets_go_past_a_worker_that_sleeps_and_past_the_stack() {
    let plain = Wire::default();
    let wires = [plain, Wire { ipv6: true, ..plain }, Wire { dual: true, ..plain }];
    for (wire, options) in wires.map(|wire| (wire, Options::DEFAULT)).into_iter().chain([(plain, NATIVE)]) {
        let options = Options { wake_pps: NEVER, ..options };
        let Some(cluster) = cluster(wire, options) else { return };
        let Cluster { a, b, c, .. } = &cluster;
        count_forwarded_of("", a);
        let from = &a.pods[0];
        let before = claimed(a);
        for to in [&b.pods[0], &c.pods[0]] {
            for destination in to.addresses() {
                assert!(pings(from, destination, ""), "{destination}");
                let seen = udp_echo(from, to, destination, &[0, 1, 17, 100, 1000]).expect("UDP there and back");
                assert_eq!(seen, from.address_like(destination));
                tcp_transfer(from, to, destination, 1000).expect("TCP");
            }
        }
        // A worker looks up once a second, and takes what comes meanwhile.
        let (claimed, left) = (claimed(a) - before, a.verdict(Program::Nic, Verdict::Asleep));
        assert!(claimed <= left / 4, "{options:?}: {claimed} by the worker, {left} past it");
        assert_eq!(forwarded(a), 0, "the stack had none");
        assert!(a.verdict(Program::Nic, Verdict::Asleep) >= 10, "what came from the wire");
        assert!([Program::Pod, Program::Tunnel].iter().all(|it| a.verdict(*it, Verdict::Bypass) >= 10));
        assert_eq!(cluster.bad_checksums(), 0);
    }
}

/// Whether packets did not come or go for longer than they have to.
fn stood_still(deliveries: &Deliveries) -> bool {
    deliveries.streams.iter().any(|stream| stream.sender_gap_ms.max(stream.longest_gap_ms) > GAP_MS)
}

/// The percentage of streams both ways between two podwire nodes that went by the first one's worker. Nothing of them may
/// be lost, and no more overtaken than tolerated. They are sent again when the machine kept a worker from running, as
/// packets then go past it and overtake what waits, and when more were overtaken while a core stood still.
fn share_of_worker(cluster: &Cluster, rate: u64, flows: &[Flow<'_>], tolerated: u64) -> u64 {
    let attempt = |_| {
        let (before, was_claimed) = (cluster.podwire_nodes().map(figures), claimed(&cluster.a));
        let deliveries = stream_at(rate, flows, &[], || thread::sleep(Duration::from_secs(1)));
        let sent: u64 = deliveries.streams.iter().map(|stream| stream.sent).sum();
        let share = 100 * (claimed(&cluster.a) - was_claimed) / sent;
        let mut counted = cluster.podwire_nodes().map(figures).into_iter().zip(&before);
        if !counted.all(|(after, before)| ABSENCES.iter().all(|label| after.get(*label) == before.get(*label))) {
            return None;
        }
        for stream in &deliveries.streams {
            assert_eq!((stream.lost, stream.duplicated), (0, 0), "at {rate}: {stream:?}");
        }
        let overtaken = deliveries.streams.iter().any(|stream| stream.reordered > tolerated);
        assert!(!overtaken || stood_still(&deliveries), "at {rate}, {tolerated} tolerated: {deliveries:?}");
        (!overtaken).then_some(share)
    };
    (0..ATTEMPTS).find_map(attempt).expect("workers that have their cores, and cores that do not stand still")
}

/// At the second of these rates workers fall asleep and are woken over and over. A busy machine puts softirqs off, and with
/// XDP the end of the driver's poll, which hands over what was claimed: then a few are overtaken, and more while a
/// core stands still for milliseconds, which is not judged.
#[test]
fn many_wake_it_and_nothing_is_lost() {
    for (options, tolerated) in [(Options::DEFAULT, 10), (NATIVE, 100)] {
        let Some(cluster) = cluster(Wire::default(), options) else { return };
        let (a, b) = (&cluster.a.pods[0], &cluster.b.pods[0]);
        let flows = [Flow::v4(a, b), Flow::v6(b, a)];
        let shares = [4_000, 15_000, 40_000].map(|rate| share_of_worker(&cluster, rate, &flows, tolerated));
        assert!(shares[0] <= 50 && shares[2] >= 80, "{options:?}: {shares:?} % are the workers'");
    }
}

#[test]
fn where_packets_cannot_go_past_the_stack_each_wakes_its_worker() {
    let Some(cluster) = cluster(Wire::default(), Options { sections: "bypass = false\n", ..Options::DEFAULT }) else {
        return;
    };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let by = |program, verdict| cluster.a.verdict(program, verdict);
    let before = [Program::Pod, Program::Nic].map(|program| by(program, Verdict::Claimed));
    assert!(pings(from, to.v4.into(), ""));
    let after = [Program::Pod, Program::Nic].map(|program| by(program, Verdict::Claimed));
    assert!(after.iter().zip(before).all(|(after, before)| *after > before), "{before:?} {after:?}");
    assert_eq!((by(Program::Nic, Verdict::Asleep), by(Program::Pod, Verdict::Bypass)), (0, 0));
}
