//! What changes below: the uplink, its address, the next hops.

use std::net::IpAddr;
use std::time::Duration;

use podwire::control::api::DataplaneState;

use super::harness::{Cluster, Options, Prefix, Wire, is_root, pings, wait_until};
use super::lab::{Lab, Place, goes_fast};

const SOON: Duration = Duration::from_secs(3);

/// Panics unless the workers soon carry packets between the first pod and those of other nodes.
#[track_caller]
fn assert_fast_again(lab: &Lab, after: &str) {
    let targets: [IpAddr; 2] = [lab.cluster.b.pods[0].v4.into(), lab.cluster.c.pods[0].v6.into()];
    for to in targets {
        let fast = wait_until(SOON, || goes_fast(lab.node(), lab.pod(), to));
        assert!(fast, "{to} by the workers after {after}: {:?}", lab.node().status());
    }
    lab.assert_talks(after);
}

#[test]
fn an_uplink_that_goes_down_and_up_again_carries_again() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    for _ in 0..2 {
        lab.shell(Place::Node, "ip link set eth0 down");
        let stopped = || lab.node().status().dataplane.state == DataplaneState::Failed;
        assert!(wait_until(SOON, stopped), "{:?}", lab.node().status().dataplane);
        for address in lab.cluster.a.pods[1].addresses() {
            assert!(pings(lab.pod(), address, ""), "pods of one node need no uplink");
        }
        lab.shell(Place::Node, "ip link set eth0 up");
        assert_fast_again(&lab, "the uplink came up");
    }
}

#[test]
fn an_address_of_the_uplink_that_is_gone_and_comes_back_carries_again() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    lab.shell(Place::Node, "ip address del 192.168.1.2/24 dev eth0");
    assert!(wait_until(SOON, || !lab.node().status().problems.is_empty()));
    for address in lab.cluster.a.pods[1].addresses() {
        assert!(pings(lab.pod(), address, ""), "pods of one node need no underlay");
    }
    lab.shell(Place::Node, "ip address add 192.168.1.2/24 dev eth0");
    assert_fast_again(&lab, "the address came back");
    assert!(wait_until(SOON, || lab.node().status().problems.is_empty()), "{:?}", lab.node().status().problems);
}

#[test]
fn another_address_of_a_node_is_taken_with_the_files_of_both() {
    let Some(mut lab) = Lab::new(Options::ADAPTIVE) else { return };
    let Cluster { a, b, c, .. } = &mut lab.cluster;
    b.host.netns.run_all(["ip address del 192.168.1.3/24 dev eth0", "ip address add 192.168.1.30/24 dev eth0"]);
    b.host.underlay = "192.168.1.30".parse().expect("an address");
    b.set_peers(vec![a.host.peer(None), c.peer()]);
    a.set_peers(vec![b.host.peer(None), c.peer()]);
    c.connect(&b.peer());
    assert_fast_again(&lab, "the peer moved");
}

#[test]
fn an_uplink_that_is_deleted_and_made_again_carries_again_and_pods_of_the_node_talk_meanwhile() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    lab.shell(Place::Node, "ip link del eth0");
    assert!(wait_until(SOON, || lab.node().status().problems.iter().any(|p| p.contains("no device eth0"))));
    let (node, other) = (lab.place(Place::Node), &lab.cluster.a.pods[1]);
    for address in other.addresses() {
        let answers = |from: &str| wait_until(SOON, || pings(lab.pod(), address, from));
        assert!(answers("-W 1"), "{address} without an uplink");
        let from_node = || node.output(&format!("ping -n -c 1 -W 1 {address}")).status.success();
        assert!(wait_until(SOON, from_node), "the node does not reach {address} without an uplink");
    }
    lab.cluster.switch.plug(&lab.node().host);
    assert!(wait_until(SOON, || lab.node().status().problems.is_empty()), "{:?}", lab.node().status().problems);
    assert_fast_again(&lab, "the uplink was made again");
}

#[test]
fn a_new_mtu_of_the_uplink_reaches_pods_and_packets_of_both_sizes_pass() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    for (mtu, inner) in [(1400, 1350), (1500, 1450)] {
        lab.shell(Place::Node, &format!("ip link set eth0 mtu {mtu}"));
        let of = |place, device: &str| lab.place(place).link(device)["mtu"] == inner;
        let everywhere = || of(Place::Node, "podwire.1") && of(Place::Node, "pw1") && of(Place::Pod, "eth0");
        assert!(wait_until(SOON, everywhere), "{mtu}: {}", lab.node().log_text());
        assert_fast_again(&lab, "the MTU changed");
        let size = format!("-M do -s {}", inner - 28);
        let to = lab.cluster.b.pods[0].v4.into();
        assert!(wait_until(SOON, || pings(lab.pod(), to, &size)), "{size}");
    }
}

#[test]
fn more_queues_of_the_uplink_are_taken_into_use() {
    if !is_root() {
        return;
    }
    let wire = Wire { queues: 2, ..Wire::default() };
    let mut cluster = Cluster::start(Prefix::fresh(), wire, Options::KERNEL);
    cluster.a.host.netns.run("ethtool -L eth0 rx 1 tx 1");
    cluster.switch.netns.run("ethtool -L port-a rx 1 tx 1");
    cluster.a.set_options(Options::ADAPTIVE);
    let queues = |cluster: &Cluster| cluster.a.stats().queues.len();
    assert_eq!(queues(&cluster), 1);
    cluster.switch.netns.run("ethtool -L port-a rx 2 tx 1");
    cluster.a.host.netns.run("ethtool -L eth0 rx 2 tx 2");
    assert!(wait_until(SOON, || queues(&cluster) == 2), "{:?}", cluster.a.status().dataplane);
    let (from, to) = (&cluster.a.pods[0], cluster.b.pods[0].v4.into());
    assert!(wait_until(SOON, || goes_fast(&cluster.a, from, to)), "{:?}", cluster.a.status().dataplane);
}

/// Nodes `a` and `b` reach each other by a router. Its MAC changes, and it tells so (gratuitous ARP) or not.
fn the_new_mac_of_a_gateway_is_followed(tells: bool, limit: Duration) {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    let router = lab.cluster.switch.host(&lab.cluster.prefix, 'r', 99);
    router.netns.run_all([
        "sysctl -qw net.ipv4.ip_forward=1",
        "sysctl -qw net.ipv4.conf.all.send_redirects=0",
        "sysctl -qw net.ipv4.conf.eth0.send_redirects=0",
    ]);
    router.netns.sysctl("ipv4/conf/all/arp_notify", if tells { "1" } else { "0" });
    // How long the kernel believes what it learns from now on: two seconds instead of half a minute.
    lab.node().host.netns.sysctl("ipv4/neigh/eth0/base_reachable_time_ms", "2000");
    lab.node().host.netns.sysctl("ipv4/neigh/eth0/delay_first_probe_time", "1");
    for (node, other) in [(&lab.cluster.a, &lab.cluster.b), (&lab.cluster.b, &lab.cluster.a)] {
        node.host.netns.run(&format!("ip route add {}/32 via {} dev eth0", other.host.underlay, router.underlay));
    }
    let to = lab.cluster.b.pods[0].v4.into();
    let by_gateway =
        |mac: &str| lab.node().cli("routes").lines().any(|line| line.contains("node-b") && line.contains(mac));
    assert!(wait_until(SOON, || by_gateway(&router.netns.mac("eth0")) && goes_fast(lab.node(), lab.pod(), to)));
    router.netns.run("ip link set eth0 address 02:00:00:00:0e:99");
    assert!(wait_until(limit, || goes_fast(lab.node(), lab.pod(), to)), "{}", lab.node().cli("routes"));
    assert!(by_gateway("02:00:00:00:0e:99"), "{}", lab.node().cli("routes"));
}

#[test]
fn a_gateway_that_tells_of_its_new_mac_is_followed_at_once() {
    the_new_mac_of_a_gateway_is_followed(true, SOON);
}

#[test]
fn a_gateway_that_does_not_tell_of_its_new_mac_is_followed_when_the_kernel_has_found_out() {
    the_new_mac_of_a_gateway_is_followed(false, Duration::from_secs(40));
}

#[test]
fn the_new_mac_of_a_peer_is_followed() {
    let Some(lab) = Lab::new(Options::ADAPTIVE) else { return };
    let other = &lab.cluster.b.host.netns;
    other.sysctl("ipv4/conf/all/arp_notify", "1");
    other.run("ip link set eth0 address 02:00:00:00:0e:02");
    assert_fast_again(&lab, "a peer's MAC changed");
}
