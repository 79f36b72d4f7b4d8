//! What becomes of a node whose own object goes, comes back, or comes back as another.

use podwire::control::api::Status;
use serde_json::json;

use crate::harness::{PodwireNode, wait_until};
use crate::scene::{PATIENCE, Scene, is_published, register};

/// Whether nothing is wrong but that Flannel's nodes have another tunnel for IPv6.
fn is_well(status: &Status) -> bool {
    status.problems.iter().all(|problem| problem.starts_with("IPv6 pods of"))
}

#[test]
fn the_own_object_goes_and_comes_back_and_pods_notice_nothing() {
    let Some(mut scene) = Scene::start() else { return };
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
    scene.node.add_pod(&scene.prefix, "a1");
    let pod_route = format!("{}/32", scene.node.pods[0].v4);
    let mac = scene.node.vtep_mac();
    scene.api.change(|store| store.delete("node-a"));
    scene.expect_problem("there is no node node-a in the Kubernetes API");
    scene.expect_peers(&["node-c"]);
    assert!(scene.route(&pod_route).contains("dev pw1") && scene.route("10.244.3.0/24").contains("via 10.244.3.0"));
    scene.node.add_pod(&scene.prefix, "a2");
    let patches = scene.api.store().asked.patches;

    register(&scene.api, &scene.node.host, 9);
    let node = scene.expect_node("published anew", is_published);
    assert_eq!(crate::scene::published_mac(&node, "backend-data"), mac);
    scene.expect("no problem", is_well);
    assert_eq!(scene.api.store().asked.patches, patches + 1);
}

#[test]
fn the_own_object_comes_back_with_another_range_which_waits_for_the_pods_to_go() {
    let Some(mut scene) = Scene::start() else { return };
    scene.node.add_pod(&scene.prefix, "a1");
    scene.api.change(|store| {
        store.delete("node-a");
        store.create("node-a", 9, &["10.244.9.0/24".to_owned(), "fd00:244:9::/64".to_owned()]);
    });
    scene.expect_problem("drain the node");
    assert!(scene.route("10.244.1.0/24").contains("unreachable") && scene.route("10.244.9.0/24").is_empty());
    scene.node.remove_pod();
    assert!(wait_until(PATIENCE, || scene.route("10.244.9.0/24").contains("unreachable")), "{}", scene.node.log_text());
    assert!(scene.route("10.244.1.0/24").is_empty());
    scene.expect("no problem", is_well);
    scene.node.add_pod(&scene.prefix, "a2");
    assert!(scene.node.pods[0].v4.octets()[2] == 9, "{}", scene.node.pods[0].v4);
}

#[test]
fn another_node_that_comes_back_with_another_range_is_followed_and_its_old_range_is_free() {
    let Some(scene) = Scene::start() else { return };
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
    assert!(wait_until(PATIENCE, || scene.route("10.244.3.0/24").contains("via 10.244.3.0")));
    scene.api.change(|store| store.delete("node-c"));
    scene.flannel_node("node-c", 5, 6, "10.244.5.0/24");
    assert!(wait_until(PATIENCE, || scene.route("10.244.5.0/24").contains("via 10.244.5.0")));
    assert!(wait_until(PATIENCE, || scene.route("10.244.3.0/24").is_empty()));
    scene.flannel_node("node-d", 6, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c", "node-d"]);
    scene.expect("no problem", is_well);
}

#[test]
fn a_second_daemon_on_the_node_is_refused_and_says_why() {
    let Some(scene) = Scene::start() else { return };
    let config = scene.node.config();
    let other = scene.prefix.dir().join("other-run");
    let output = scene
        .node
        .host
        .netns
        .command(crate::harness::binary())
        .arg("run")
        .arg("--config")
        .arg(config)
        .arg("--runtime-dir")
        .arg(other)
        .output()
        .expect("nsenter starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success() && said.contains("in use by another podwire"), "{said}");
    still_follows(&scene.node, &scene);
}

/// The first daemon goes on.
fn still_follows(node: &PodwireNode, scene: &Scene) {
    scene.api.change(|store| store.annotate(&node.host.name(), &json!({ "podwire.io/mode": "x" })));
    scene.expect_node("put back", |node| node["metadata"]["annotations"]["podwire.io/mode"] == "kernel");
}
