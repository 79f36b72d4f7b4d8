//! What leaves the cluster, with masquerading and without.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use podwire::control::api::NatCheck;

use super::harness::{Options, PodwireNode, VXLAN_DEVICE, wait_until};
use super::peers::{PROTOCOLS, Protocol, Server, ask};
use super::rules;
use super::scene::{Counts, NOTICE, PORT, Scene, address, endpoint, scene, underlay};

const ON: Options = Options { masquerade: true, ..Options::ADAPTIVE };

/// A foreign table that must stay as it is.
const FOREIGN: &str = "table inet podwire-not { chain c { type filter hook forward priority 5; accept; }; }";

/// Our table with the handles of all that is in it.
fn ours(node: &PodwireNode) -> String {
    node.host.netns.run("nft -a list table inet podwire")
}

fn has_table(node: &PodwireNode) -> bool {
    node.host.netns.output("nft list table inet podwire").status.success()
}

fn has_chain(node: &PodwireNode) -> bool {
    node.host.netns.output("nft list chain inet podwire postrouting").status.success()
}

/// Makes the outside know the way back to the pods, so that answers come even to addresses that are not translated.
fn open_the_way_back(scene: &Scene) {
    for is_ipv6 in [false, true] {
        let range = ["10.244.1.0/24", "fd00:244:1::/64"][usize::from(is_ipv6)];
        let node = underlay(&scene.cluster.a.host, is_ipv6);
        scene.outside.netns.run(&format!("ip route add {range} via {node}"));
    }
}

/// Who a server outside sees when a pod of node a asks it.
fn seen_outside(scene: &Scene, is_ipv6: bool) -> Vec<IpAddr> {
    let to = SocketAddr::new(underlay(&scene.outside, is_ipv6), PORT);
    PROTOCOLS.map(|protocol| ask(&scene.cluster.a.pods[0].netns, protocol, to).client.ip()).to_vec()
}

#[test]
fn the_outside_sees_the_node_and_pods_and_nodes_see_the_pod() {
    let Some(scene) = scene(ON) else { return };
    let _servers = scene.servers();
    let _outside = Server::start(&scene.outside.netns, "outside", PORT);
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let _on_nodes = [a, b].map(|node| Server::start(&node.host.netns, &node.host.name(), PORT));
    open_the_way_back(&scene);
    let client = &a.pods[0];
    for is_ipv6 in [false, true] {
        assert_eq!(seen_outside(&scene, is_ipv6), [underlay(&a.host, is_ipv6); 2]);
        let own = address(client, is_ipv6);
        for protocol in PROTOCOLS {
            for pod in [&b.pods[0], &a.pods[1], &scene.cluster.c.pods[0]] {
                assert_eq!(ask(&client.netns, protocol, endpoint(pod, is_ipv6)).client.ip(), own, "{}", pod.name);
            }
        }
    }
    for node in [a, b] {
        let answer = ask(&client.netns, Protocol::Tcp, SocketAddr::new(node.host.underlay, PORT));
        assert_eq!((answer.server, answer.client.ip()), (node.host.name(), client.v4.into()));
    }
    assert_eq!(a.status().nat.check, NatCheck::None, "our own rules never concern what is steered");
    let before = Counts::of(a);
    ask(&client.netns, Protocol::Tcp, endpoint(&b.pods[0], false));
    assert!(before.since(a).pod_claimed > 0);
    assert!(a.status().masquerade.on && a.cli("status").contains("masquerade"));
}

#[test]
fn off_means_off_and_leaves_nothing() {
    let Some(mut scene) = scene(Options::ADAPTIVE) else { return };
    let _outside = Server::start(&scene.outside.netns, "outside", PORT);
    open_the_way_back(&scene);
    assert!(!has_chain(&scene.cluster.a) && !scene.cluster.a.status().masquerade.on);
    for is_ipv6 in [false, true] {
        assert_eq!(seen_outside(&scene, is_ipv6), [address(&scene.cluster.a.pods[0], is_ipv6); 2]);
    }
    let a = &mut scene.cluster.a;
    rules::load(&a.host.netns, FOREIGN);
    let foreign = |node: &PodwireNode| node.host.netns.run("nft -a list table inet podwire-not");
    let before = foreign(a);
    a.set_options(ON);
    assert!(wait_until(NOTICE, || has_chain(a)), "{:?}", a.status().masquerade);
    assert_eq!(seen_outside(&scene, false), [underlay(&scene.cluster.a.host, false); 2]);
    let a = &mut scene.cluster.a;
    a.set_options(Options::ADAPTIVE);
    assert!(wait_until(NOTICE, || !has_chain(a)));
    assert_eq!(foreign(a), before, "a foreign table is untouched");
}

#[test]
fn what_is_right_is_not_touched_and_what_is_changed_is_put_right() {
    let Some(mut scene) = scene(ON) else { return };
    let a = &mut scene.cluster.a;
    rules::load(&a.host.netns, FOREIGN);
    let (first, whole) = (ours(a), a.host.netns.run("nft -a list ruleset"));
    // Everything that makes the daemon look: its own notifications, another's, a reload, a restart.
    a.host.netns.run("nft add table ip elsewhere");
    a.host.netns.run("nft delete table ip elsewhere");
    a.stop();
    a.launch();
    assert_eq!(a.host.netns.run("nft -a list ruleset"), whole);
    let rule = |handle: &str| format!("nft delete rule inet podwire postrouting handle {handle}");
    let handles: Vec<_> = first.lines().filter(|line| line.contains("masquerade")).collect();
    let handle = handles[0].rsplit(' ').next().expect("a handle").to_owned();
    let plain = |node: &PodwireNode| node.host.netns.run("nft list table inet podwire");
    let right = plain(a);
    let tamper = [
        rule(&handle),
        "nft flush chain inet podwire postrouting".to_owned(),
        "nft add element inet podwire kept4 { 203.0.113.0/24 }".to_owned(),
        "nft add rule inet podwire postrouting accept".to_owned(),
        "nft delete table inet podwire".to_owned(),
    ];
    for line in tamper {
        a.host.netns.run(&line);
        let is_right = || a.host.netns.output("nft list table inet podwire").stdout == right.as_bytes();
        assert!(wait_until(Duration::from_secs(1), is_right), "after `{line}`: {}", plain(a));
    }
}

#[test]
fn the_rules_follow_the_configuration_and_go_with_podwire() {
    let Some(mut scene) = scene(ON) else { return };
    let Scene { cluster, .. } = &mut scene;
    let (a, peer) = (&mut cluster.a, cluster.c.peer());
    rules::load(&a.host.netns, FOREIGN);
    let gone = cluster.b.host.underlay.to_string();
    assert!(ours(a).contains(&gone) && ours(a).contains(VXLAN_DEVICE) && ours(a).contains("fully-random"));
    a.set_peers(vec![peer]);
    assert!(wait_until(NOTICE, || !ours(a).contains(&gone)), "{}", ours(a));
    a.cli("uninstall --yes");
    assert!(!has_table(a));
    assert!(a.host.netns.run("nft list tables").contains("podwire-not"));
}
