//! `dataplane.xdp = "off"`: the kernel receives, and the workers send what is not TCP.

use std::time::Duration;

use podwire::steer::{Program, Verdict};

use super::cluster;
use super::harness::{Options, PodwireNode, Wire, tcp_transfer, udp_echo, wait_until};

const OFF: Options = Options { xdp: "off", ..Options::DEFAULT };

/// What the workers of a node have taken from pods and from the wire.
fn taken(node: &PodwireNode) -> [u64; 2] {
    let counts = &node.stats().workers[0].tallies.counts;
    ["pod_rx_packets", "wire_rx_packets"].map(|label| counts[label])
}

#[test]
fn without_xdp_workers_send_datagrams_and_the_kernel_carries_the_rest() {
    let Some(cluster) = cluster(Wire::default(), OFF) else { return };
    let [a, b] = cluster.podwire_nodes();
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    for node in [a, b] {
        assert!(!node.host.netns.run("ip link show eth0").contains("xdp"), "no program is on the uplink");
        assert!(node.cli("status").contains("sends only, no XDP"), "{}", node.cli("status"));
    }
    let before = taken(a);
    for destination in to.addresses() {
        for _ in 0..20 {
            udp_echo(from, to, destination, &[10, 1000]).expect("UDP");
        }
    }
    // The workers' counters are published now and then.
    let sent = || taken(a)[0] - before[0] >= 80;
    assert!(wait_until(Duration::from_secs(3), sent), "{:?} since {before:?}", taken(a));
    let between = (taken(a), a.verdict(Program::Pod, Verdict::Bulk));
    for destination in to.addresses() {
        tcp_transfer(from, to, destination, 1_000_000).expect("TCP");
        tcp_transfer(to, from, from.addresses()[0], 1_000_000).expect("TCP");
    }
    assert!(a.verdict(Program::Pod, Verdict::Bulk) > between.1, "TCP is seen, and left to the kernel");
    assert_eq!(taken(a)[1], 0, "nothing is received by workers");
    assert_eq!(cluster.bad_checksums(), 0);
}

#[test]
fn xdp_goes_and_comes_back_with_its_setting() {
    let Some(mut cluster) = cluster(Wire::default(), Options::DEFAULT) else { return };
    let has_xdp = |node: &PodwireNode| node.host.netns.run("ip link show eth0").contains("xdp");
    assert!(has_xdp(&cluster.a));
    cluster.a.set_options(OFF);
    assert!(!has_xdp(&cluster.a), "what an earlier data plane attached is gone");
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    udp_echo(from, to, to.addresses()[0], &[100]).expect("UDP");
    cluster.a.set_options(Options::DEFAULT);
    assert!(has_xdp(&cluster.a));
}
