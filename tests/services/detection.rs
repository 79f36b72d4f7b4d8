//! When the programs look flows up, and when they do not.

use podwire::control::api::NatCheck;

use super::harness::{Options, pings, wait_until};
use super::peers::{Protocol, ask};
use super::rules::{self, Service};
use super::scene::{Counts, NOTICE, endpoint, scene, virtual_address, wait_for_check};

#[test]
fn flows_are_looked_up_only_while_something_is_or_was_translated() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let (client, remote, node) = (&a.pods[0], &b.pods[0], &a.host.netns);
    let icmp_is_fast = || {
        let before = Counts::of(a);
        assert!(pings(client, remote.v4.into(), ""));
        before.since(a).pod_claimed > 0
    };
    assert_eq!(a.status().nat.check, NatCheck::None);
    rules::load(node, "table inet firewall { chain forward { type filter hook forward priority 0; }; }");
    assert!(wait_until(NOTICE, icmp_is_fast), "a filter translates nothing");
    assert_eq!(a.status().nat.check, NatCheck::None);

    let service = virtual_address(false, 1);
    rules::set(node, false, &[Service::cluster("s", service, &[endpoint(remote, false)])]);
    wait_for_check(a, NatCheck::Lookup);
    assert!(a.status().nat.why.contains("kube-proxy"), "{:?}", a.status().nat);
    assert!(a.cli("status").contains("looked up in conntrack"));
    assert!(!icmp_is_fast(), "an ICMP error may be about a translated flow");
    assert_eq!(ask(&client.netns, Protocol::Udp, service).server, "b1");

    rules::remove(node, false);
    assert!(wait_until(NOTICE, || a.status().nat.why.contains("conntrack still holds")), "{:?}", a.status().nat);
    assert_eq!(a.status().nat.check, NatCheck::Lookup);
    node.run("conntrack -F");
    wait_for_check(a, NatCheck::None);
    assert!(wait_until(NOTICE, icmp_is_fast));
}

#[test]
fn a_daemon_that_starts_after_the_rules_have_gone_still_knows_of_the_flows() {
    let Some(mut scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let node = scene.cluster.a.host.netns.clone();
    let client = scene.cluster.a.pods[0].clone();
    let service = virtual_address(false, 1);
    scene.cluster.a.stop();
    rules::set(&node, false, &[Service::cluster("s", service, &[endpoint(&scene.cluster.b.pods[0], false)])]);
    assert_eq!(ask(&client.netns, Protocol::Udp, service).server, "b1");
    rules::remove(&node, false);
    scene.cluster.a.launch();
    let nat = scene.cluster.a.status().nat;
    assert!(nat.check == NatCheck::Lookup && nat.why.contains("conntrack still holds"), "{nat:?}");
}
