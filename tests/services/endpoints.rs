//! Several endpoints: who gets which, and what happens when one goes.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use podwire::control::api::NatCheck;

use super::harness::Options;
use super::peers::{Client, PROTOCOLS, Protocol, ask};
use super::rules::{self, Service};
use super::scene::{Scene, endpoint, scene, virtual_address, wait_for_check};

/// A local and a remote endpoint.
fn endpoints(scene: &Scene, is_ipv6: bool) -> [SocketAddr; 2] {
    [&scene.cluster.a.pods[1], &scene.cluster.b.pods[0]].map(|pod| endpoint(pod, is_ipv6))
}

#[test]
fn a_client_stays_with_its_endpoint_if_the_service_says_so() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let a = &scene.cluster.a;
    for is_ipv6 in [false, true] {
        let service = virtual_address(is_ipv6, 1);
        let spread = Service::cluster("s", service, &endpoints(&scene, is_ipv6));
        let chosen = |clients: &[usize]| -> Vec<BTreeSet<String>> {
            let asked = |n: usize| move |_| ask(&a.pods[n].netns, Protocol::Tcp, service).server;
            clients.iter().map(|&n| (0..16).map(asked(n)).collect()).collect()
        };
        rules::set(&a.host.netns, is_ipv6, std::slice::from_ref(&spread));
        wait_for_check(a, NatCheck::Lookup);
        assert_eq!(chosen(&[0])[0].len(), 2, "both endpoints serve");
        rules::set(&a.host.netns, is_ipv6, &[Service { has_affinity: true, ..spread }]);
        assert_eq!(chosen(&[0])[0].len(), 1, "one endpoint serves a client");
        let udp: BTreeSet<_> = (0..8).map(|_| ask(&a.pods[0].netns, Protocol::Udp, service).server).collect();
        assert_eq!(udp.len(), 1);
    }
}

#[test]
fn new_flows_go_to_the_endpoint_that_is_left_and_datagrams_once_conntrack_forgets() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let a = &scene.cluster.a;
    let client = &a.pods[0].netns;
    for is_ipv6 in [false, true] {
        let service = virtual_address(is_ipv6, 1);
        let [local, remote] = endpoints(&scene, is_ipv6);
        let with = |list: &[SocketAddr]| rules::set(&a.host.netns, is_ipv6, &[Service::cluster("s", service, list)]);
        with(&[remote]);
        wait_for_check(a, NatCheck::Lookup);
        let mut flows = PROTOCOLS.map(|protocol| Client::connect(client, protocol, service).expect("a flow"));
        for flow in &mut flows {
            assert_eq!(flow.ask().expect("an answer").server, "b1");
        }
        with(&[local]);
        for flow in &mut flows {
            assert_eq!(flow.ask().expect("an answer").server, "b1", "what has begun goes on");
        }
        for protocol in PROTOCOLS {
            assert_eq!(ask(client, protocol, service).server, "a2", "what begins goes to the one that is left");
        }
        // As kube-proxy does for UDP when an endpoint goes.
        let family = if is_ipv6 { "ipv6" } else { "ipv4" };
        a.host.netns.run(&format!("conntrack -D -f {family} -p udp --orig-dst {}", service.ip()));
        let [tcp, udp] = &mut flows;
        assert_eq!(udp.ask().expect("an answer").server, "a2");
        assert_eq!(tcp.ask().expect("the connection is not reset").server, "b1");
    }
}
