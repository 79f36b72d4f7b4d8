//! Two podwire nodes and a Flannel-shaped one, which know each other by the API alone.

use podwire::control::api::Way;

use crate::api::Api;
use crate::harness::{
    KernelNode, Options, Peer, PodwireNode, Prefix, SECOND_DEVICE, Switch, Wire, is_root, pings, wait_until,
};
use crate::scene::{NET_CONF, PATIENCE, annotation, flannel, flannel_v6, is_published, published_mac, register};

#[track_caller]
fn await_published(api: &Api, nodes: &[&PodwireNode]) {
    for node in nodes {
        let is_published = || is_published(&api.node(&node.host.name()));
        assert!(wait_until(PATIENCE, is_published), "{:#}\n{}", api.node(&node.host.name()), node.log_text());
    }
}

#[test]
fn packets_pass_between_nodes_that_know_each_other_by_the_api() {
    if !is_root() {
        return;
    }
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire { dual: true, ..Wire::default() });
    let api = Api::start(NET_CONF);
    let [a, b, c] = [('a', 1), ('b', 2), ('c', 3)].map(|(letter, index)| switch.host(&prefix, letter, index));
    let mut c = KernelNode::start(c);
    register(&api, &c.host, 3);
    let published = c.peer();
    let [underlay6, mac6] = [published.underlay6.map(|underlay| underlay.to_string()), published.vtep_mac6]
        .map(|part| part.expect("a second VTEP"));
    api.change(|store| {
        store.annotate("node-c", &flannel(&c.host.underlay.to_string(), &c.vtep_mac()));
        store.annotate("node-c", &flannel_v6(&underlay6, &mac6));
    });
    let [mut a, mut b] = [a, b].map(|host| {
        register(&api, &host, host.index);
        api.listen_in(&host.netns);
        PodwireNode::begin(&prefix, host, Options::ADAPTIVE, &Api::kubeconfig(None))
    });

    await_published(&api, &[&a, &b]);
    for node in [&a, &b] {
        let object = api.node(&node.host.name());
        assert_eq!(annotation(&object, "public-ip"), &node.host.underlay.to_string());
        assert_eq!(annotation(&object, "public-ipv6"), &node.host.addresses()[1].to_string());
        let data = |mac: &str| format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        assert_eq!(annotation(&object, "backend-data"), &data(&node.vtep_mac()));
        assert_eq!(annotation(&object, "backend-v6-data"), &data(&node.host.netns.mac(SECOND_DEVICE)));
        // What flanneld does for each node that it hears of.
        let [vtep_mac, vtep_mac6] = ["backend-data", "backend-v6-data"].map(|key| Some(published_mac(&object, key)));
        c.connect(&Peer { vtep_mac, vtep_mac6, ..node.peer() });
    }
    let [peer_a, peer_b] = [a.peer(), b.peer()];
    a.await_peers(vec![peer_b, c.peer()]);
    b.await_peers(vec![peer_a, c.peer()]);

    a.add_pod(&prefix, "a1");
    b.add_pod(&prefix, "b1");
    c.add_pod(&prefix, "c1");
    let before = a.carried();
    let [a1, b1, c1] = [&a.pods[0], &b.pods[0], &c.pods[0]];
    for (from, to) in [(a1, b1), (b1, a1), (a1, c1), (c1, a1), (c1, b1)] {
        for to in to.addresses() {
            assert!(pings(from, to, ""), "{} does not reach {to}", from.name);
        }
    }
    assert!(a.carried().since(before).fast >= 8, "{:?}", a.carried().since(before));
    assert!(a.status().problems.is_empty(), "{:?}", a.status().problems);

    let env = std::fs::read_to_string(a.subnet_env()).expect("subnet.env");
    for line in
        ["FLANNEL_NETWORK=10.244.0.0/16", "FLANNEL_SUBNET=10.244.1.1/24", "FLANNEL_MTU=1430", "FLANNEL_IPMASQ=false"]
    {
        assert!(env.lines().any(|found| found == line), "{line}: {env}");
    }
    let routes = a.cli("routes");
    assert!(routes.contains("10.244.2.0/24") && routes.contains("node-c"), "{routes}");
    assert!(a.cli("status").contains("following http://127.0.0.1:8001/, 3 node(s), last sign"), "{}", a.cli("status"));

    // The node that goes takes its routes with it, and its pods are reached no more.
    api.change(|store| store.delete("node-c"));
    let [peer_a, peer_b] = [a.peer(), b.peer()];
    a.await_peers(vec![peer_b]);
    b.await_peers(vec![peer_a]);
    assert_eq!(a.host.netns.run("ip route show 10.244.3.0/24"), "");
    assert!(pings(&a.pods[0], b.pods[0].v4.into(), ""));
}

#[test]
fn nodes_of_one_link_do_without_the_tunnel_when_net_conf_says_so() {
    if !is_root() {
        return;
    }
    let direct = NET_CONF.replace(r#""vxlan""#, r#""vxlan", "DirectRouting": true"#);
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire::default());
    let api = Api::start(&direct);
    let [mut a, mut b] = [('a', 1), ('b', 2)].map(|(letter, index)| {
        let host = switch.host(&prefix, letter, index);
        register(&api, &host, index);
        api.listen_in(&host.netns);
        PodwireNode::begin(&prefix, host, Options::ADAPTIVE, &Api::kubeconfig(None))
    });
    await_published(&api, &[&a, &b]);
    let [peer_a, peer_b] = [a.peer(), b.peer()];
    a.await_peers(vec![peer_b]);
    b.await_peers(vec![peer_a]);
    for (node, other) in [(&a, &b), (&b, &a)] {
        let [peer] = &node.status().peers[..] else { panic!("one peer") };
        assert!(peer.ways.contains(&Way::Direct), "{peer:?}");
        let range = &other.host.peer(None).pod_cidrs()[0];
        let route = node.host.netns.run(&format!("ip route show {range}"));
        assert!(route.contains(&format!("via {} dev {}", other.host.underlay, node.host.uplink)), "{route}");
    }
    a.add_pod(&prefix, "a1");
    b.add_pod(&prefix, "b1");
    let before = a.carried();
    assert!(pings(&a.pods[0], b.pods[0].v4.into(), "") && pings(&b.pods[0], a.pods[0].v4.into(), ""));
    assert!(a.carried().since(before).fast >= 2, "{:?}", a.carried().since(before));
}
