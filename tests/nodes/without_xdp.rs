//! Without XDP on the uplink: the kernel receives, and carries TCP; the workers take the rest both ways.

use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use podwire::steer::{Program, Verdict};

use super::harness::{
    Cluster, Options, Pod, PodwireNode, Wire, assert_all_pairs_talk, has_vlan_devices, pings, tcp_transfer, udp_echo,
    wait_until,
};
use super::{assert_ledgers_balance, cluster};

/// But that each packet wakes its worker.
const AS_IT_COMES: Options = Options { wake_pps: 0, ..Options::DEFAULT };

const PATIENCE: Duration = Duration::from_secs(5);

/// What the workers of a node have taken from pods and from the wire.
fn taken(node: &PodwireNode) -> [u64; 2] {
    let tallies = node.stats().workers.into_iter().map(|worker| worker.tallies.counts);
    tallies.fold([0; 2], |[pods, wire], counts| [pods + counts["pod_rx_packets"], wire + counts["wire_rx_packets"]])
}

/// Echoes datagrams both ways by every family; returns how many went each way.
#[track_caller]
fn echo(from: &Pod, to: &Pod) -> u64 {
    let mut echoed = 0;
    for (from, to) in [(from, to), (to, from)] {
        for destination in to.addresses() {
            for _ in 0..20 {
                udp_echo(from, to, destination, &[10, 1000]).expect("UDP");
                echoed += 2;
            }
        }
    }
    echoed
}

/// Echoes, and waits until the workers of `node` say that they have taken all of it.
#[track_caller]
fn echo_by_workers(node: &PodwireNode, from: &Pod, to: &Pod) {
    let before = taken(node);
    let echoed = echo(from, to);
    // The workers' counters are published now and then.
    let have_taken = || taken(node).iter().zip(before).all(|(now, before)| now - before >= echoed);
    assert!(wait_until(PATIENCE, have_taken), "{:?} since {before:?}, echoed {echoed}", taken(node));
}

fn has_xdp(node: &PodwireNode) -> bool {
    node.host.netns.run("ip link show eth0").contains("xdp")
}

#[test]
fn workers_take_datagrams_both_ways_and_the_kernel_carries_the_rest() {
    let plain = Wire::default();
    for wire in
        [plain, Wire { ipv6: true, mtu: 3000, ..plain }, Wire { mtu: 9000, ..plain }, Wire { uncut: true, ..plain }]
    {
        let Some(cluster) = cluster(wire, Options::WITHOUT_XDP) else { return };
        let Cluster { a, b, c, .. } = &cluster;
        for node in [a, b] {
            assert!(!has_xdp(node), "no XDP program is on the uplink");
            assert!(node.cli("status").contains("the kernel receives, no XDP"), "{}", node.cli("status"));
        }
        echo_by_workers(a, &a.pods[0], &b.pods[0]);
        // Over a wire that does not cut, the plain kernel's node leaves checksums to its device, which leaves them to ours.
        echo_by_workers(a, &a.pods[0], &c.pods[0]);
        let (from, to) = (&a.pods[0], &b.pods[0]);
        let by_kernel = || {
            let by_programs =
                [(Program::Pod, Verdict::Bypass), (Program::Nic, Verdict::Bulk), (Program::Tunnel, Verdict::Bypass)];
            by_programs.map(|(program, verdict)| a.verdict(program, verdict))
        };
        let (before, of_workers) = (by_kernel(), taken(a));
        for destination in to.addresses() {
            tcp_transfer(from, to, destination, 1_000_000).expect("TCP");
        }
        for destination in from.addresses() {
            tcp_transfer(to, from, destination, 1_000_000).expect("TCP");
        }
        assert!(
            by_kernel().iter().zip(before).all(|(now, before)| *now > before),
            "TCP is seen, and left to the kernel"
        );
        thread::sleep(Duration::from_millis(100));
        assert_eq!(taken(a), of_workers, "none of it is the workers'");
        assert!(to.addresses().iter().all(|destination| pings(from, *destination, "")));
        assert!(wait_until(PATIENCE, || taken(a).iter().zip(of_workers).all(|(now, before)| *now >= before + 2)));
        assert_all_pairs_talk(&cluster.pods());
        assert_eq!(cluster.bad_checksums(), 0);
        assert_ledgers_balance(&cluster);
    }
}

#[test]
fn several_workers_share_the_pods_of_one_queue_and_of_two() {
    let wire = Wire { queues: 2, ..Wire::default() };
    let Some(cluster) = cluster(wire, Options { workers: 2, ..Options::WITHOUT_XDP }) else { return };
    let (a, b) = (&cluster.a, &cluster.b);
    for pod in &a.pods {
        echo_by_workers(a, pod, &b.pods[0]);
    }
    let workers = a.stats().workers;
    assert!(workers.len() == 2 && workers.iter().all(|worker| worker.tallies.counts["wire_rx_packets"] > 0));
    assert_eq!(cluster.bad_checksums(), 0);
}

/// Trains of the other node's worker come uncut, as a sender's large datagrams do.
#[test]
fn datagrams_that_come_merged_arrive_all_and_in_order() {
    let Some(cluster) = cluster(Wire { uncut: true, ..Wire::default() }, Options::WITHOUT_XDP) else { return };
    let (a, from, to) = (&cluster.a, &cluster.b.pods[0], &cluster.a.pods[0]);
    arrive_in_order(from, to, &[4], 30);
    arrive_in_order(to, from, &[4], 30);
    assert!(a.verdict(Program::Nic, Verdict::MultiBuffer) > 0, "nothing came merged");
    assert_eq!(cluster.bad_checksums(), 0);
}

#[test]
fn over_a_vlan_device_the_workers_take_datagrams_too() {
    if !has_vlan_devices() {
        return;
    }
    let Some(cluster) = cluster(Wire { vlan: Some(100), ..Wire::default() }, AS_IT_COMES) else { return };
    echo_by_workers(&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
}

#[test]
fn what_comes_without_a_tunnel_is_the_workers_too() {
    let options =
        Options { vxlan: "direct_routing = true", sections: "[probe]\ninterval_s = 0\n", ..Options::WITHOUT_XDP };
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (a, b) = (&cluster.a, &cluster.b);
    echo_by_workers(a, &a.pods[0], &b.pods[0]);
    assert_eq!(cluster.bad_checksums(), 0);
}

/// XDP would have a veth copy each frame.
#[test]
fn a_veth_is_an_uplink_without_xdp_until_it_is_asked_for() {
    let Some(mut cluster) = cluster(Wire::default(), AS_IT_COMES) else { return };
    assert!(!has_xdp(&cluster.a));
    let asked = [
        Options { xdp: "native", ..AS_IT_COMES },
        Options { bulk: "workers", ..AS_IT_COMES },
        Options { xdp: "generic", ..AS_IT_COMES },
    ];
    for options in asked {
        cluster.a.set_options(options);
        assert!(has_xdp(&cluster.a), "{options:?}");
        echo_by_workers(&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
        cluster.a.set_options(AS_IT_COMES);
        assert!(!has_xdp(&cluster.a), "what an earlier data plane attached is gone");
        echo_by_workers(&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
    }
}

#[test]
fn after_a_crash_the_kernel_has_all_until_the_next_start() {
    let Some(mut cluster) = cluster(Wire::default(), Options::WITHOUT_XDP) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    echo_by_workers(&cluster.a, &from, &to);
    cluster.a.kill();
    echo(&from, &to);
    cluster.a.launch();
    echo_by_workers(&cluster.a, &from, &to);
    let before = cluster.a.verdict(Program::Nic, Verdict::Claimed);
    cluster.a.stop();
    echo(&from, &to);
    cluster.a.launch();
    assert_eq!(cluster.a.verdict(Program::Nic, Verdict::Claimed), before, "nothing was claimed meanwhile");
}

/// Sends bursts of so many datagrams, of these sizes in turn. All must arrive, and in order once one has come that no worker takes.
#[track_caller]
fn arrive_in_order(sender: &Pod, receiver: &Pod, sizes: &[usize], count: u32) {
    let address = receiver.v4;
    let socket = receiver.netns.within(|| UdpSocket::bind((address, 7100))).expect("bind in the pod");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let out = sender.netns.within(|| UdpSocket::bind((sender.v4, 0))).expect("bind in the pod");
    let mut bytes = [0; 9000];
    for burst in 0..20 {
        for (n, size) in (0..count).zip(sizes.iter().cycle()) {
            let mut datagram = vec![0; *size];
            datagram[..4].copy_from_slice(&(burst * count + n).to_be_bytes());
            out.send_to(&datagram, (address, 7100)).expect("sends");
        }
        let mut seen = Vec::new();
        while seen.len() < count as usize {
            let len = socket.recv(&mut bytes).unwrap_or_else(|e| panic!("burst {burst}, {} arrived: {e}", seen.len()));
            assert!(sizes.contains(&len));
            seen.extend(bytes.first_chunk().map(|number| u32::from_be_bytes(*number)));
        }
        assert!(burst == 0 || seen.is_sorted(), "burst {burst}: {seen:?}");
    }
}

/// Not all of them fit a worker's frame.
#[test]
fn datagrams_of_all_sizes_keep_their_order_over_a_wire_of_jumbo_frames() {
    let Some(cluster) = cluster(Wire { mtu: 9000, ..Wire::default() }, Options::WITHOUT_XDP) else { return };
    let Cluster { a, b, c, .. } = &cluster;
    for other in [&b.pods[0], &c.pods[0]] {
        arrive_in_order(&a.pods[0], other, &[100, 5000], 20);
        arrive_in_order(other, &a.pods[0], &[100, 5000], 20);
    }
    for program in [Program::Pod, Program::Nic] {
        assert!(a.verdict(program, Verdict::TooBig) > 0 && a.verdict(program, Verdict::Behind) > 0, "{program:?}");
    }
    thread::sleep(Duration::from_millis(1100));
    echo_by_workers(a, &a.pods[0], &b.pods[0]);
    assert_eq!(cluster.bad_checksums(), 0);
}
