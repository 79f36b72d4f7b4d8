//! The same by iptables, through nftables and by its own tables.

use std::net::SocketAddr;

use podwire::control::api::NatCheck;

use super::harness::Options;
use super::peers::{PROTOCOLS, ask};
use super::scene::{Counts, endpoint, scene, virtual_address, wait_for_check};

fn a_service_by(iptables: &str) {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let (client, service) = (&a.pods[0], virtual_address(false, 1));
    let remote: SocketAddr = endpoint(&b.pods[0], false);
    assert_eq!(a.status().nat.check, NatCheck::None);
    for protocol in PROTOCOLS.map(super::peers::Protocol::name) {
        a.host.netns.run_all([
            format!("{iptables} -t nat -N KUBE-SVC-{protocol}"),
            format!(
                "{iptables} -t nat -A PREROUTING -p {protocol} -d {} --dport 80 -j KUBE-SVC-{protocol}",
                service.ip()
            ),
            format!("{iptables} -t nat -A KUBE-SVC-{protocol} -p {protocol} -j DNAT --to-destination {remote}"),
        ]);
    }
    wait_for_check(a, NatCheck::Lookup);
    for protocol in PROTOCOLS {
        let before = Counts::of(a);
        let answer = ask(&client.netns, protocol, service);
        assert_eq!((answer.server.as_str(), answer.client.ip()), ("b1", client.v4.into()));
        let counted = before.since(a);
        assert!(counted.nic_nated >= 5 && counted.nic_claimed == 0, "{counted:?}");
    }
}

#[test]
fn a_service_by_iptables_over_nftables() {
    a_service_by("iptables-nft");
}

#[test]
fn a_service_by_legacy_iptables() {
    a_service_by("iptables-legacy");
}
