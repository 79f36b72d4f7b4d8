//! Nodes and pods, both ways: who reaches whom, and whom the other end sees.

use std::net::IpAddr;

use super::cluster;
use super::harness::{
    Cluster, Host, Netns, Options, Pod, VXLAN_DEVICE, Wire, tcp_transfer, udp_echo, udp_echo_unbound,
};

in_both_modes! {
    nodes_and_pods_reach_each_other_untranslated_with_a_strict_reverse_path_filter,
    nodes_and_pods_reach_each_other_untranslated_with_a_loose_reverse_path_filter,
    nodes_and_pods_reach_each_other_untranslated_over_an_ipv6_underlay,
}

const SIZES: [usize; 3] = [1, 100, 1300];

/// A packet whose source's way back is another device is dropped: what `rp_filter` is for IPv4.
const STRICT_IPV6: &str = "add table ip6 strict; \
    add chain ip6 strict in { type filter hook prerouting priority raw; }; \
    add rule ip6 strict in fib saddr . iif oif missing drop";

/// A node as an end of traffic: its own addresses.
fn node(host: &Host) -> Pod {
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = host.addresses() else { panic!("IPv4, then IPv6") };
    Pod { name: host.name(), netns: host.netns.clone(), v4, v6 }
}

/// From each to each, by addresses of both families, the source as it is.
#[track_caller]
fn all_reach(from: &[&Pod], to: &[&Pod], before_each: impl Fn()) {
    for (from, to) in from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))) {
        for destination in to.addresses() {
            before_each();
            let what = format!("{} -> {} ({destination})", from.name, to.name);
            let seen = udp_echo(from, to, destination, &SIZES).unwrap_or_else(|e| panic!("UDP {what}: {e}"));
            assert_eq!(seen, from.address_like(destination), "{what}");
        }
    }
}

/// As programs of a node reach pods that choose no source: the kernel takes that of the device it sends by.
#[track_caller]
fn unbound_reach(from: &Pod, source: [IpAddr; 2], to: &[&Pod], before_each: impl Fn()) {
    for to in to {
        for (destination, source) in to.addresses().into_iter().zip(source) {
            before_each();
            let what = format!("{} -> {} ({destination})", from.name, to.name);
            let seen = udp_echo_unbound(from, to, destination, &SIZES).unwrap_or_else(|e| panic!("UDP {what}: {e}"));
            assert_eq!(seen, source, "{what}");
            let seen = tcp_transfer(from, to, destination, 300_000).unwrap_or_else(|e| panic!("TCP {what}: {e}"));
            assert_eq!(seen, source, "{what}");
        }
    }
}

/// All that works whatever the filter of the podwire nodes is.
fn reach_all(cluster: &Cluster, before_each: impl Fn()) {
    let [a, b, c] = [&cluster.a.host, &cluster.b.host, &cluster.c.host].map(node);
    let (pod_a, pod_b, pod_c) = (&cluster.a.pods[0], &cluster.b.pods[0], &cluster.c.pods[0]);
    all_reach(&[pod_a, pod_b], &[&a, &b, &c], &before_each);
    all_reach(&[&a, &b, &c], &[pod_a, pod_b], &before_each);
    all_reach(&[&a], &[&b, &c], &before_each);
    all_reach(&[pod_a, pod_b, pod_c], &[pod_a, pod_c], &before_each);
    let pods = [pod_a, pod_b, pod_c];
    for (node, host) in [(&a, &cluster.a.host), (&b, &cluster.b.host)] {
        unbound_reach(node, host.gateways(), &pods, &before_each);
    }
    unbound_reach(&c, cluster.c.host.gateways(), &pods[..2], &before_each);
    // Over TCP a pod's source is its own even unbound.
    for to in [&a, &b, &c] {
        unbound_reach(pod_a, pod_a.addresses(), &[to], &before_each);
    }
}

fn each_device(netns: &Netns, value: &str) {
    for device in ["all", "default", "eth0", "pw1", "pw2", VXLAN_DEVICE] {
        netns.sysctl(&format!("ipv4/conf/{device}/rp_filter"), value);
    }
}

fn nodes_and_pods_reach_each_other_untranslated_with_a_strict_reverse_path_filter(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let netns = || cluster.podwire_nodes().map(|node| &node.host.netns);
    for netns in netns() {
        assert!(netns.command("nft").arg(STRICT_IPV6).status().expect("nft starts").success());
    }
    // The daemon would loosen its own device again.
    reach_all(&cluster, || netns().iter().for_each(|netns| each_device(netns, "1")));
}

fn nodes_and_pods_reach_each_other_untranslated_with_a_loose_reverse_path_filter(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    for node in cluster.podwire_nodes() {
        each_device(&node.host.netns, "2");
    }
    reach_all(&cluster, || ());
    reach_by_the_bare_underlay(&cluster);
}

fn nodes_and_pods_reach_each_other_untranslated_over_an_ipv6_underlay(options: Options) {
    let Some(cluster) = cluster(Wire { ipv6: true, ..Wire::default() }, options) else { return };
    reach_all(&cluster, || ());
    reach_by_the_bare_underlay(&cluster);
}

/// What a node of Flannel's shape lets its pods send to nodes leaves it without VXLAN.
fn reach_by_the_bare_underlay(cluster: &Cluster) {
    let [a, b] = [&cluster.a.host, &cluster.b.host].map(node);
    let pod_c = &cluster.c.pods[0];
    all_reach(&[pod_c], &[&a, &b], || ());
    all_reach(&[&a, &b], &[pod_c], || ());
}

/// Packets of `ping` from a pod to another node's own address, and the answers, by each path.
#[test]
fn a_pods_packets_to_another_node_take_the_fast_path_and_the_kernels_without_workers() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let pod = cluster.a.pods[0].clone();
    let b = node(&cluster.b.host);
    let ping_both = || {
        let lines = b.addresses().map(|destination| format!("ping -n -q -c 10 -i 0.01 -W 2 {destination}"));
        pod.netns.run_all(lines);
    };
    let before = cluster.a.carried();
    ping_both();
    let carried = cluster.a.carried().since(before);
    assert!(carried.fast >= 40 && carried.kernel == 0, "{carried:?}");
    cluster.a.set_options(Options::KERNEL);
    let before = cluster.a.carried();
    ping_both();
    let carried = cluster.a.carried().since(before);
    assert!(carried.fast == 0 && carried.kernel >= 40, "{carried:?}");
}
