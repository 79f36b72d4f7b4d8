//! Mixed traffic for a while: 20 seconds, or as many as `PODWIRE_SOAK_SECS` says.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::harness::{Options, Pod, PodwireNode, Prefix, Wire, pings, tcp_transfer, udp_echo};
use super::{assert_ledgers_balance, cluster};

const UDP_SIZES: [usize; 7] = [0, 1, 64, 512, 1024, 1400, 5000];
const TCP_BYTES: usize = 20_000_000;

fn duration() -> Duration {
    let given =
        std::env::var("PODWIRE_SOAK_SECS").ok().map(|secs| secs.parse().expect("PODWIRE_SOAK_SECS is a number"));
    Duration::from_secs(given.unwrap_or(20))
}

/// Repeats `round` until told to stop; returns how often it went through and how often it failed.
fn repeat(running: &AtomicBool, mut round: impl FnMut() -> bool) -> (u64, u64) {
    let (mut good, mut bad) = (0, 0);
    while running.load(Ordering::Relaxed) {
        *(if round() { &mut good } else { &mut bad }) += 1;
    }
    (good, bad)
}

/// One UDP exchange, then one TCP stream, in each family and both directions.
fn mixed(one: &Pod, other: &Pod) -> bool {
    [(one, other), (other, one)].into_iter().all(|(from, to)| {
        to.addresses().into_iter().all(|destination| {
            pings(from, destination, "")
                && udp_echo(from, to, destination, &UDP_SIZES).is_ok()
                && tcp_transfer(from, to, destination, TCP_BYTES).is_ok()
        })
    })
}

/// Attaches a pod, lets it talk, detaches it. The others overload the wire, where some frames in ten thousand get lost:
/// one answer to a few requests will do.
fn churn(node: &mut PodwireNode, prefix: &Prefix, serial: &AtomicU64, to: &Pod) -> bool {
    let name = format!("{}-{}", node.host.letter, serial.fetch_add(1, Ordering::Relaxed));
    node.add_pod(prefix, &name);
    let pod = node.pods.last().expect("just added").clone();
    let talked = to.addresses().into_iter().all(|destination| (0..3).any(|_| pings(&pod, destination, "")));
    node.remove_pod();
    pod.netns.remove();
    talked
}

#[test]
fn mixed_traffic_and_churn_leak_no_frame() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let before = cluster.podwire_nodes().map(PodwireNode::carried);
    let [a1, a2, b1, b2, c1, c2] =
        <[Pod; 6]>::try_from(cluster.pods().into_iter().cloned().collect::<Vec<_>>()).expect("six pods");
    let (running, serial) = (AtomicBool::new(true), AtomicU64::new(0));
    let outcomes = thread::scope(|scope| {
        let pairs = [("a-b", &a1, &b1), ("a-c", &a2, &c1), ("c-b", &c2, &b2)];
        let mut threads: Vec<_> = pairs
            .map(|(name, one, other)| (name, scope.spawn(|| repeat(&running, || mixed(one, other)))))
            .into_iter()
            .collect();
        let (a, prefix, running, serial, b1) = (&mut cluster.a, &cluster.prefix, &running, &serial, &b1);
        threads.push(("churn on a", scope.spawn(move || repeat(running, || churn(a, prefix, serial, b1)))));
        let end = Instant::now() + duration();
        while Instant::now() < end && !threads.iter().any(|(_, thread)| thread.is_finished()) {
            thread::sleep(Duration::from_millis(100));
        }
        running.store(false, Ordering::Relaxed);
        threads.into_iter().map(|(name, thread)| (name, thread.join())).collect::<Vec<_>>()
    });
    for (name, outcome) in outcomes {
        let (good, bad) = outcome.unwrap_or_else(|_| panic!("{name} panicked"));
        println!("{name}: {good} rounds");
        assert!(good > 0 && bad == 0, "{name}: {good} rounds went through, {bad} failed");
    }
    assert_ledgers_balance(&cluster);
    assert_eq!(cluster.bad_checksums(), 0);
    for (node, before) in cluster.podwire_nodes().into_iter().zip(before) {
        let carried = node.carried().since(before);
        println!("{}: {carried:?}", node.host.name());
        // Four loads, two workers and all pods on a small machine's cores: now and then a worker waits for its core
        // longer than its heartbeat may age, and the kernel path takes over for a while. Where others work too that
        // happens all the time, and says nothing of podwire.
        let lapses = cluster.podwire_nodes().map(|node| node.worker().counts["probations"]).into_iter().sum::<u64>();
        let least = if lapses <= 10 { 0.95 } else { 0.01 };
        assert!(carried.fast_share() >= least, "{}: {carried:?}, {lapses} lapses", node.host.name());
    }
}
