//! Two podwire nodes and one of Flannel's in a cluster whose state is the API server's.

use std::time::{Duration, Instant};

use crate::harness::{Pod, PodwireNode, Prefix, SECOND_DEVICE, VXLAN_DEVICE, pings, wait_until};
use crate::kubernetes::{ApiServer, FlannelCluster, flannel, flannel_v6};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until both podwire nodes have a route to a range, or none; prints how long that took.
#[track_caller]
fn await_route(cluster: &FlannelCluster, what: &str, range: &str, wanted: bool) {
    let begun = Instant::now();
    for node in [&cluster.a, &cluster.b] {
        let has_route = || !node.host.netns.run(&format!("ip route show {range}")).is_empty();
        assert!(wait_until(PATIENCE, || has_route() == wanted), "{what}: {}\n{}", node.host.name(), node.log_text());
    }
    println!("{what}: {:?}", begun.elapsed());
}

/// Each to each, by both families.
#[track_caller]
fn assert_all_talk(pods: &[Pod; 3]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name).flat_map(Pod::addresses) {
            assert!(pings(from, to, ""), "{} to {to}", from.name);
        }
    }
}

/// That a podwire node has published what Flannel's nodes read, and that its network is there.
fn assert_published(cluster: &FlannelCluster, node: &PodwireNode) {
    let published = cluster.server.node(&node.host.name());
    let annotations = published.metadata.annotations.clone().expect("annotations");
    let host = &node.host;
    let first = flannel(&host.underlay.to_string(), &host.netns.mac(VXLAN_DEVICE));
    let second = flannel_v6(&host.addresses()[1].to_string(), &host.netns.mac(SECOND_DEVICE));
    for (key, value) in [first, second].iter().filter_map(|wanted| wanted.as_object()).flatten() {
        assert_eq!(annotations.get(key).map(String::as_str), value.as_str(), "{key}");
    }
    assert_eq!(annotations.get("podwire.io/version").map(String::as_str), Some(env!("CARGO_PKG_VERSION")));
    let conditions = published.status.and_then(|status| status.conditions).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == "NetworkUnavailable");
    assert_eq!(found.map(|condition| &*condition.status), Some("False"));
}

#[test]
fn podwire_and_flannel_nodes_follow_the_api_server_and_outlast_it() {
    if !ApiServer::is_available() {
        return;
    }
    let mut cluster = FlannelCluster::start(Prefix::fresh());
    for node in [&cluster.a, &cluster.b] {
        assert_published(&cluster, node);
    }
    cluster.run_flannel();
    let pods = cluster.add_pods();
    assert_all_talk(&pods);

    let range = cluster.add_stranger("stranger", 77);
    await_route(&cluster, "a node comes", &range, true);
    cluster.server.delete_node("stranger");
    await_route(&cluster, "a node goes", &range, false);

    cluster.server.kill();
    assert_all_talk(&pods);
    cluster.server.launch();
    let range = cluster.add_stranger("later", 78);
    await_route(&cluster, "a node comes after the server was away", &range, true);

    cluster.server.delete_node(&cluster.c.host.name());
    await_route(&cluster, "Flannel's node goes", &cluster.c.peer().pod_cidrs()[0], false);
    assert!(pings(&pods[0], pods[1].v4.into(), ""), "the others stay");
}
