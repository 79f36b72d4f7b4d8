//! Clients reach what is behind a service's address or a node's port, see no other address, and are seen as who they
//! are; their flows take the kernel path, and those of the same pods that are not translated the fast path.

use std::net::SocketAddr;

use podwire::control::api::NatCheck;

use super::harness::{Options, Pod};
use super::peers::{Answer, Client, PROTOCOLS, Protocol, ask};
use super::rules::{self, Service};
use super::scene::{Counts, address, endpoint, scene, underlay, virtual_address, wait_for_check};

const FAMILIES: [bool; 2] = [false, true];

fn is_from(answer: &Answer, server: &Pod) -> bool {
    answer.server == server.name
}

#[test]
fn a_cluster_address_leads_to_remote_and_local_pods_by_the_kernel_path() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let client = &a.pods[0];
    for is_ipv6 in FAMILIES {
        let (remote, local) = (virtual_address(is_ipv6, 1), virtual_address(is_ipv6, 2));
        let [at_b, at_a] = [&b.pods[0], &a.pods[1]].map(|pod| endpoint(pod, is_ipv6));
        rules::set(
            &a.host.netns,
            is_ipv6,
            &[Service::cluster("remote", remote, &[at_b]), Service::cluster("local", local, &[at_a])],
        );
        wait_for_check(a, NatCheck::Lookup);
        for protocol in PROTOCOLS {
            let before = Counts::of(a);
            let answer = ask(&client.netns, protocol, remote);
            assert!(is_from(&answer, &b.pods[0]), "{answer:?}");
            assert_eq!(answer.client.ip(), address(client, is_ipv6), "the server sees the client");
            let counted = before.since(a);
            assert!(counted.nic_nated >= 5 && counted.nic_claimed == 0 && counted.pod_claimed == 0, "{counted:?}");

            let before = Counts::of(a);
            let answer = ask(&client.netns, protocol, local);
            assert!(is_from(&answer, &a.pods[1]), "{answer:?}");
            assert_eq!(answer.client.ip(), address(client, is_ipv6));
            let counted = before.since(a);
            assert!(counted.pod_nated >= 5 && counted.pod_local == 0, "{counted:?}");
        }
    }
}

#[test]
fn flows_of_the_same_pods_that_are_not_translated_take_the_fast_path() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let client = &a.pods[0];
    for is_ipv6 in FAMILIES {
        let service = virtual_address(is_ipv6, 1);
        let [remote, local] = [&b.pods[0], &a.pods[1]].map(|pod| endpoint(pod, is_ipv6));
        rules::set(&a.host.netns, is_ipv6, &[Service::cluster("s", service, &[remote])]);
        wait_for_check(a, NatCheck::Lookup);
        for protocol in PROTOCOLS {
            // Both at once, of one pod, to one endpoint.
            let mut translated = Client::connect(&client.netns, protocol, service).expect("the service");
            let mut direct = Client::connect(&client.netns, protocol, remote).expect("the pod");
            for to_itself in [&mut direct, &mut translated] {
                to_itself.ask().expect("an answer");
            }
            let before = Counts::of(a);
            let answers: Vec<_> = (0..10).map(|_| direct.ask().expect("an answer")).collect();
            assert!(answers.iter().all(|answer| is_from(answer, &b.pods[0])), "{answers:?}");
            let counted = before.since(a);
            assert!(counted.nic_claimed >= 10 && counted.pod_claimed >= 10, "{protocol:?}: {counted:?}");
            assert_eq!((counted.nic_nated, counted.pod_nated), (0, 0), "{protocol:?}");
            let before = Counts::of(a);
            (0..10).for_each(|_| assert!(is_from(&translated.ask().expect("an answer"), &b.pods[0])));
            assert!(before.since(a).nic_nated >= 10, "{protocol:?}");
            let before = Counts::of(a);
            assert!(is_from(&ask(&client.netns, protocol, local), &a.pods[1]));
            assert!(before.since(a).pod_local >= 10, "{protocol:?}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_behind_its_own_service() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let a = &scene.cluster.a;
    let pod = &a.pods[0];
    for is_ipv6 in FAMILIES {
        let service = virtual_address(is_ipv6, 1);
        rules::set(&a.host.netns, is_ipv6, &[Service::cluster("self", service, &[endpoint(pod, is_ipv6)])]);
        wait_for_check(a, NatCheck::Lookup);
        for protocol in PROTOCOLS {
            let answer = ask(&pod.netns, protocol, service);
            assert!(is_from(&answer, pod), "{answer:?}");
            assert_ne!(answer.client.ip(), address(pod, is_ipv6), "masqueraded, or the answer would not come back");
        }
    }
}

#[test]
fn a_node_port_leads_to_local_pods_with_the_clients_address_and_to_remote_ones_with_the_nodes() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    for is_ipv6 in FAMILIES {
        let (local, remote) = (&a.pods[0], &b.pods[0]);
        rules::set(
            &a.host.netns,
            is_ipv6,
            &[
                Service::node_port("local", 30080, false, endpoint(local, is_ipv6)),
                Service::node_port("remote", 30081, true, endpoint(remote, is_ipv6)),
            ],
        );
        wait_for_check(a, NatCheck::Lookup);
        let node = underlay(&a.host, is_ipv6);
        let port = |port| SocketAddr::new(node, port);
        for protocol in PROTOCOLS {
            let outside = &scene.outside.netns;
            let answer = ask(outside, protocol, port(30080));
            assert!(is_from(&answer, local), "{answer:?}");
            assert_eq!(answer.client.ip(), underlay(&scene.outside, is_ipv6), "not masqueraded");
            let answer = ask(outside, protocol, port(30081));
            assert!(is_from(&answer, remote), "{answer:?}");
            assert_ne!(answer.client.ip(), underlay(&scene.outside, is_ipv6), "masqueraded");

            // A remote pod, whose answers could be steered.
            let client = &b.pods[1];
            let before = Counts::of(a);
            let answer = ask(&client.netns, protocol, port(30080));
            assert!(is_from(&answer, local), "{answer:?}");
            assert_eq!(answer.client.ip(), address(client, is_ipv6), "not masqueraded");
            let counted = before.since(a);
            assert!(counted.pod_nated >= 5 && counted.pod_claimed == 0, "{counted:?}");
            let answer = ask(&client.netns, protocol, port(30081));
            assert!(is_from(&answer, remote), "{answer:?}");
        }
    }
}

#[test]
fn a_host_port_leads_to_its_pod() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let pod = &a.pods[0];
    // As the portmap plugin writes it (plugins/meta/portmap).
    rules::load(
        &a.host.netns,
        &format!(
            "table ip cni_hostport {{
                chain hostports {{ tcp dport 9000 dnat to {0}; udp dport 9000 dnat to {0}; }}
                chain prerouting {{ type nat hook prerouting priority dstnat; fib daddr type local goto hostports; }}
            }}",
            endpoint(pod, false)
        ),
    );
    wait_for_check(a, NatCheck::Lookup);
    let to = SocketAddr::new(underlay(&a.host, false), 9000);
    for protocol in PROTOCOLS {
        for (client, seen) in
            [(&scene.outside.netns, underlay(&scene.outside, false)), (&b.pods[0].netns, b.pods[0].v4.into())]
        {
            let answer = ask(client, protocol, to);
            assert!(is_from(&answer, pod), "{answer:?}");
            assert_eq!(answer.client.ip(), seen);
        }
    }
}

#[test]
fn one_port_talks_to_a_pod_by_its_service_and_by_its_own_address() {
    let Some(scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    let client = &a.pods[0];
    for is_ipv6 in FAMILIES {
        let (service, direct) = (virtual_address(is_ipv6, 1), endpoint(&b.pods[0], is_ipv6));
        rules::set(&a.host.netns, is_ipv6, &[Service::cluster("s", service, &[direct])]);
        wait_for_check(a, NatCheck::Lookup);
        let port = 7946 + u16::from(is_ipv6);
        let socket = |to| Client::from_port(&client.netns, port, to).expect("a socket");
        // One socket after the other: a connected one takes answers of its own peer only.
        let mut by_service = socket(service);
        assert_eq!(by_service.ask().expect("an answer").client, SocketAddr::new(address(client, is_ipv6), port));
        drop(by_service);
        let before = Counts::of(a);
        let mut by_address = socket(direct);
        let answer = by_address.ask().expect("an answer from the address that was asked");
        assert_ne!(answer.client.port(), port, "the kernel gives the second flow a port of its own");
        assert!(before.since(a).pod_nated >= 1);
    }
}

#[test]
fn services_go_on_while_the_daemon_is_killed_and_comes_back() {
    let Some(mut scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    let service = virtual_address(false, 1);
    let client = scene.cluster.a.pods[0].clone();
    let remote = endpoint(&scene.cluster.b.pods[0], false);
    let node = scene.cluster.a.host.netns.clone();
    rules::set(&node, false, &[Service::cluster("s", service, &[remote])]);
    wait_for_check(&scene.cluster.a, NatCheck::Lookup);
    let mut flows: Vec<_> = [service, remote]
        .into_iter()
        .flat_map(|to| PROTOCOLS.map(|protocol| (protocol, to)))
        .map(|(protocol, to)| (protocol, to, Client::connect(&client.netns, protocol, to).expect("a connection")))
        .collect();
    let mut all_answer = |when: &str| {
        for (protocol, to, flow) in &mut flows {
            // A datagram may be lost on the way; a connection may not break.
            let tries = if *protocol == Protocol::Udp { 3 } else { 1 };
            let answered = (0..tries).any(|_| flow.ask().is_ok());
            assert!(answered, "{when}: {protocol:?} to {to}");
        }
    };
    all_answer("before");
    scene.cluster.a.kill();
    all_answer("after the kill");
    scene.cluster.a.launch();
    assert_eq!(scene.cluster.a.status().nat.check, NatCheck::Lookup, "known before anything is steered");
    all_answer("after the return");
}

#[test]
fn a_service_that_is_made_while_no_daemon_runs_works() {
    let Some(mut scene) = scene(Options::ADAPTIVE) else { return };
    let _servers = scene.servers();
    assert_eq!(scene.cluster.a.status().nat.check, NatCheck::None);
    scene.cluster.a.kill();
    let (a, b) = (&scene.cluster.a, &scene.cluster.b);
    for is_ipv6 in FAMILIES {
        let (local, remote) = (virtual_address(is_ipv6, 1), virtual_address(is_ipv6, 2));
        let [at_a, at_b] = [&a.pods[1], &b.pods[0]].map(|pod| endpoint(pod, is_ipv6));
        let services = [Service::cluster("local", local, &[at_a]), Service::cluster("remote", remote, &[at_b])];
        rules::set(&a.host.netns, is_ipv6, &services);
        for protocol in PROTOCOLS {
            assert!(is_from(&ask(&a.pods[0].netns, protocol, local), &a.pods[1]));
            assert!(is_from(&ask(&a.pods[0].netns, protocol, remote), &b.pods[0]));
        }
    }
}
