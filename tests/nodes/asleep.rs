//! Packets for workers that sleep: few go past them, many wake them.

use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use libbpf_rs::MapHandle;
use podwire::steer::{Program, Verdict};
use podwire::worker::now_ns;

use super::bypass::{count_forwarded_of, forwarded};
use super::cluster;
use super::harness::{
    Cluster, Deliveries, Flow, Options, Pod, PodwireNode, Wire, figures, on_core, pings, stream_at, tcp_transfer,
    udp_echo, wait_until,
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

/// What is mapped of a map.
const PAGE: usize = 4096;

/// The words of the first worker's `struct heartbeat` (`bpf/maps.h`), which the programs and the worker share.
struct Beat(NonNull<AtomicU64>);

impl Beat {
    const BEAT_NS: usize = 0;
    const ASLEEP: usize = 1;
    const LEFT_NS: usize = 5;

    fn of(node: &PodwireNode) -> Self {
        let map = MapHandle::from_pinned_path(node.pins().join("maps/heartbeats")).expect("pinned heartbeats");
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.as_fd().as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(ptr::null_mut(), PAGE, prot, libc::MAP_SHARED, fd, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self(NonNull::new(base.cast()).expect("not the first page"))
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < PAGE / size_of::<AtomicU64>());
        // SAFETY: within the page that is mapped.
        let word = unsafe { self.0.add(at) };
        // SAFETY: it is aligned, and mapped as long as this exists.
        unsafe { word.as_ref() }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, of which no reference is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}

/// So long after it was left to the kernel path a packet may be on its way.
const ON_ITS_WAY_NS: u64 = 100_000;

/// How far ahead packets are said to be left, which is longer than it takes to send one and to wake up for it.
const AHEAD_NS: u64 = 3_000_000;

/// Within which a worker falls asleep that has nothing to do, or is well again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends a datagram. Returns when it had been sent, and when it was there, by the monotonic clock.
fn passage_ns([from, to]: &[UdpSocket; 2]) -> [u64; 2] {
    from.send_to(&[0], to.local_addr().expect("bound")).expect("sent");
    let sent_ns = now_ns();
    while to.recv(&mut [0]).is_err() {
        assert!(now_ns() - sent_ns < 1_000_000_000, "a datagram is lost");
    }
    [sent_ns, now_ns()]
}

/// By how much later a datagram that wakes the worker of a node arrives than others were left to the kernel path. None if
/// somebody else has woken it too, or the machine kept it or the sender from running for long.
fn arrives_after_ns(node: &PodwireNode, beat: &Beat, sockets: &[UdpSocket; 2]) -> Option<u64> {
    let sleeps_well = || [Beat::BEAT_NS, Beat::ASLEEP].iter().all(|&at| beat.word(at).load(Ordering::Acquire) != 0);
    assert!(wait_until(PATIENCE, sleeps_well), "nothing comes");
    let (before, was_claimed) = (figures(node), claimed(node));
    let left_ns = now_ns() + AHEAD_NS;
    beat.word(Beat::LEFT_NS).store(left_ns, Ordering::Release);
    let [sent_ns, arrived_ns] = on_core(node.spare_core(), || passage_ns(sockets));
    assert!(wait_until(PATIENCE, sleeps_well), "nothing comes");
    let after = figures(node);
    let is_as_before = |label: &&str| after.get(*label) == before.get(*label);
    if after["sleeps"] != before["sleeps"] + 1 || !ABSENCES.iter().all(is_as_before) || sent_ns >= left_ns {
        return None;
    }
    assert!(claimed(node) > was_claimed, "the worker has carried it");
    Some(arrived_ns.saturating_sub(left_ns))
}

/// What this machine does besides makes it only later.
#[test]
fn who_is_woken_lets_what_was_left_to_the_kernel_path_arrive_first() {
    for xdp in ["auto", "native"] {
        // Each packet wakes the worker.
        let Some(cluster) = cluster(Wire::default(), Options { wake_pps: 0, xdp, ..Options::DEFAULT }) else { return };
        let Cluster { a, c, .. } = &cluster;
        let beat = Beat::of(a);
        for (from, to) in [(&a.pods[0], &c.pods[0]), (&c.pods[0], &a.pods[0])] {
            assert!(pings(from, to.v4.into(), ""));
            let socket = |pod: &Pod| pod.netns.within(|| UdpSocket::bind((pod.v4, 0))).expect("bind in the pod");
            let sockets = [from, to].map(socket);
            sockets[1].set_nonblocking(true).expect("a socket");
            let attempts = (0..200).filter_map(|_| arrives_after_ns(a, &beat, &sockets));
            let after_ns: Vec<_> = attempts.take(20).collect();
            assert!(after_ns.len() == 20, "{xdp}: few have woken the worker: {after_ns:?}");
            assert!(after_ns.iter().all(|&after_ns| after_ns >= ON_ITS_WAY_NS), "{xdp}: {after_ns:?}");
        }
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
