//! A daemon that starts while the server is away, in the place of one that knew the cluster.

use std::fs;

use podwire::control::api::KubernetesState;
use serde_json::Value;

use crate::harness::wait_until;
use crate::scene::{PATIENCE, Scene};

/// The nodes that a node has kept, by name.
fn kept(scene: &Scene) -> Vec<String> {
    let text = fs::read(scene.node.cache()).unwrap_or_default();
    let contents = serde_json::from_slice::<Value>(&text).unwrap_or_default();
    let nodes = contents["nodes"].as_array().into_iter().flatten();
    nodes.filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

/// A node that knows another one, keeps both, and has no server any more.
fn left_alone() -> Option<Scene> {
    let mut scene = Scene::start()?;
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
    // A rest after the first write may be on.
    scene.node.stop();
    fs::remove_file(scene.node.cache()).ok();
    scene.node.spawn();
    assert!(wait_until(PATIENCE, || kept(&scene) == ["node-a", "node-c"]), "{:?}", kept(&scene));
    scene.node.stop();
    scene.api.set_down(true);
    // As a reboot leaves the kernel.
    scene.node.host.netns.run("ip link del podwire.1");
    assert!(scene.route("10.244.3.0/24").is_empty());
    Some(scene)
}

#[test]
fn a_daemon_that_starts_without_a_server_serves_the_nodes_that_an_earlier_one_has_kept() {
    let Some(mut scene) = left_alone() else { return };
    scene.node.spawn();
    let status = scene.expect_peers(&["node-c"]);
    let source = status.kubernetes.expect("a source");
    assert!(source.joined && source.nodes == 2 && source.age_ms.is_none(), "{source:?}");
    assert!(source.as_of.is_some_and(|as_of| as_of.ends_with('Z')));
    scene.expect_problem("the nodes are as an earlier podwire knew them");
    scene.expect_problem("does not answer");
    assert!(wait_until(PATIENCE, || scene.route("10.244.3.0/24").contains("via 10.244.3.0")));
    scene.node.add_pod(&scene.prefix, "a1");

    scene.api.change(|store| store.delete("node-c"));
    scene.api.set_down(false);
    scene.expect_peers(&[]);
    let status = scene.expect("following", |status| {
        status.kubernetes.as_ref().is_some_and(|source| source.state == KubernetesState::Following)
    });
    assert_eq!(status.kubernetes.expect("a source").as_of, None);
    assert!(wait_until(PATIENCE, || kept(&scene) == ["node-a"]), "{:?}", kept(&scene));
}

#[test]
fn what_was_kept_is_no_use_once_it_was_spoilt_or_for_another_node() {
    let Some(mut scene) = left_alone() else { return };
    let good = fs::read_to_string(scene.node.cache()).expect("a file");
    let spoilt = [
        (good[..good.len() / 2].to_owned(), "cannot be read"),
        (good.replace(r#""node":"node-a""#, r#""node":"node-b""#), "it is of node node-b"),
    ];
    for (text, reason) in spoilt {
        fs::write(scene.node.cache(), text).expect("a file");
        scene.node.spawn();
        let status = scene.expect_problem("does not answer");
        assert!(status.peers.is_empty() && !status.kubernetes.expect("a source").joined);
        assert!(scene.node.log_text().contains(reason), "{}", scene.node.log_text());
        scene.node.stop();
    }
    // A node in it that cannot be is left out by name, as if the server had told of it.
    fs::write(scene.node.cache(), good.replace("192.168.1.4", "224.0.0.1")).expect("a file");
    scene.node.spawn();
    scene.expect_problem("node node-c is left out: its VTEP address 224.0.0.1");
    scene.expect_peers(&[]);
}
