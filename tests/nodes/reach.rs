//! Who reaches whom, over which wires, and by which path.

use std::net::IpAddr;
use std::time::Duration;

use podwire::control::api::DataplaneState;

use super::cluster;
use super::harness::{
    Carried, Cluster, KernelNode, Options, Pod, PodwireNode, Prefix, Switch, Wire, assert_all_pairs_talk,
    has_vlan_devices, is_root, tcp_transfer, udp_echo, wait_until,
};

const BULK_BYTES: usize = 8_000_000;

/// The pairs that differ: same node, podwire to podwire, podwire to kernel node, kernel node to podwire.
fn routes(cluster: &Cluster) -> [(&Pod, &Pod); 5] {
    let (a, b, c) = (&cluster.a.pods, &cluster.b.pods, &cluster.c.pods);
    [(&a[0], &a[1]), (&a[0], &b[0]), (&b[1], &a[1]), (&a[0], &c[0]), (&c[1], &b[0])]
}

/// Datagrams of several sizes and a TCP stream; the content and the source address must arrive unchanged.
#[track_caller]
fn exchange(from: &Pod, to: &Pod, sizes: &[usize]) {
    for destination in to.addresses() {
        let own: IpAddr = from.address_like(destination);
        let what = format!("{} -> {} ({destination})", from.name, to.name);
        let seen = udp_echo(from, to, destination, sizes).unwrap_or_else(|e| panic!("UDP {what}: {e}"));
        assert_eq!(seen, own, "UDP {what}: the source address was translated");
        let seen = tcp_transfer(from, to, destination, BULK_BYTES).unwrap_or_else(|e| panic!("TCP {what}: {e}"));
        assert_eq!(seen, own, "TCP {what}: the source address was translated");
    }
}

/// Pings all pairs, exchanges UDP and TCP, and checks checksums and the paths taken.
fn all_talk(wire: Wire, options: Options) {
    let Some(cluster) = cluster(wire, options) else { return };
    let before = cluster.podwire_nodes().map(PodwireNode::carried);
    assert_all_pairs_talk(&cluster.pods());
    let largest = wire.overlay_mtu() as usize - 48;
    for (from, to) in routes(&cluster) {
        exchange(from, to, &[0, 1, 17, 100, 1000, largest]);
    }
    for (node, before) in cluster.podwire_nodes().into_iter().zip(before) {
        let carried = node.carried().since(before);
        if options.is_kernel() {
            assert_eq!(carried.fast, 0, "{carried:?}");
        } else {
            assert!(carried.fast_share() >= 0.99, "{}: {carried:?}", node.host.name());
        }
    }
    assert_eq!(cluster.bad_checksums(), 0);
}

#[test]
fn all_pods_talk_where_each_node_has_a_vtep_of_each_family() {
    all_talk(Wire { dual: true, ..Wire::default() }, Options::ADAPTIVE);
}

#[test]
fn all_pods_talk_where_each_node_has_a_vtep_of_each_family_by_the_kernel_path() {
    all_talk(Wire { dual: true, ..Wire::default() }, Options::KERNEL);
}

#[test]
fn all_pods_talk_through_the_data_plane() {
    all_talk(Wire::default(), Options::ADAPTIVE);
}

#[test]
fn all_pods_talk_through_a_busy_data_plane() {
    all_talk(Wire::default(), Options::BUSY);
}

#[test]
fn all_pods_talk_by_the_kernel_path_alone() {
    all_talk(Wire::default(), Options::KERNEL);
}

#[test]
fn all_pods_talk_over_an_ipv6_underlay() {
    all_talk(Wire { ipv6: true, ..Wire::default() }, Options::ADAPTIVE);
}

#[test]
fn all_pods_talk_over_an_ipv6_underlay_by_the_kernel_path_alone() {
    all_talk(Wire { ipv6: true, ..Wire::default() }, Options::KERNEL);
}

#[test]
fn all_pods_talk_with_generic_xdp() {
    all_talk(Wire::default(), Options { xdp: "generic", ..Options::ADAPTIVE });
}

#[test]
fn all_pods_talk_through_two_workers_and_four_queues() {
    all_talk(Wire { queues: 4, ..Wire::default() }, Options { workers: 2, ..Options::ADAPTIVE });
}

#[test]
fn all_pods_talk_over_a_vlan_device() {
    if !has_vlan_devices() {
        return;
    }
    all_talk(Wire { vlan: Some(100), ..Wire::default() }, Options::ADAPTIVE);
}

fn datagrams_that_pods_fragment_arrive_whole(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    for (from, to) in routes(&cluster) {
        for destination in to.addresses() {
            udp_echo(from, to, destination, &[2000, 9000, 60000])
                .unwrap_or_else(|e| panic!("{} -> {destination}: {e}", from.name));
        }
    }
}

in_both_modes!(datagrams_that_pods_fragment_arrive_whole);

#[test]
fn where_xdp_is_asked_for_a_wire_of_jumbo_frames_is_left_to_the_kernel_path() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let state = || cluster.a.status().dataplane;
    cluster.a.host.netns.run("ip link set eth0 mtu 9000");
    assert!(
        wait_until(Duration::from_secs(10), || state().reason.is_some_and(|reason| reason.contains("MTU 9000"))),
        "{:?}",
        state()
    );
    for (from, to) in routes(&cluster) {
        exchange(from, to, &[100, 1400]);
    }
    cluster.a.host.netns.run("ip link set eth0 mtu 1500");
    assert!(wait_until(Duration::from_secs(10), || state().state == DataplaneState::Running), "{:?}", state());
    exchange(&cluster.a.pods[0], &cluster.b.pods[0], &[100, 1400]);
}

#[test]
fn plain_kernel_nodes_talk_so_the_laboratory_is_sound() {
    if !is_root() {
        return;
    }
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire::default());
    let mut nodes = [('a', 1), ('b', 2)].map(|(l, index)| KernelNode::start(switch.host(&prefix, l, index)));
    let peers = nodes.each_ref().map(KernelNode::peer);
    for (node, peer) in nodes.iter_mut().zip(peers.iter().rev()) {
        node.connect(peer);
        node.add_pod(&prefix, &format!("{}1", node.host.letter));
    }
    let (a, b) = (&nodes[0].pods[0], &nodes[1].pods[0]);
    assert_all_pairs_talk(&[a, b]);
    exchange(a, b, &[1, 1400, 9000]);
}

#[test]
fn the_share_of_the_fast_path_is_of_what_was_carried() {
    let carried = Carried { fast: 110, kernel: 15 }.since(Carried { fast: 11, kernel: 14 });
    assert!((carried.fast_share() - 0.99).abs() < 1e-9);
    assert!(Carried { fast: 0, kernel: 0 }.fast_share() < 1e-9);
}
