//! What a server that is not well does to a node: nothing that its pods would notice, and `status` says why.

use std::fs;
use std::time::Duration;

use podwire::control::api::KubernetesState;
use serde_json::json;

use crate::api::Api;
use crate::harness::wait_until;
use crate::scene::{NET_CONF, PATIENCE, Scene, is_published, register};

fn is_following(status: &podwire::control::api::Status) -> bool {
    status.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.state == KubernetesState::Following)
}

#[test]
fn while_the_server_is_away_what_it_said_stays_and_its_age_is_told() {
    let Some(scene) = Scene::start() else { return };
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
    scene.api.set_down(true);
    let status = scene.expect("an age", |status| {
        let kubernetes = status.kubernetes.as_ref().expect("a source");
        kubernetes.state == KubernetesState::Away && kubernetes.age_ms.is_some_and(|age| age > 2000)
    });
    assert!(status.problems.iter().any(|problem| problem.contains("does not answer")), "{:?}", status.problems);
    assert_eq!(status.peers.len(), 1);
    assert!(scene.route("10.244.3.0/24").contains("via 10.244.3.0"));
    scene.api.change(|store| store.delete("node-c"));
    scene.flannel_node("node-d", 4, 5, "10.244.4.0/24");
    let pages = scene.api.store().asked.pages;
    scene.api.set_down(false);
    scene.expect_peers(&["node-d"]);
    let status = scene.expect("following", is_following);
    assert!(!status.problems.iter().any(|problem| problem.contains("does not answer")), "{:?}", status.problems);
    assert_eq!(scene.api.store().asked.pages, pages, "what was missed comes without a new list");
}

#[test]
fn a_cut_stream_goes_on_where_it_was() {
    let Some(scene) = Scene::start() else { return };
    scene.expect("following", is_following);
    let pages = scene.api.store().asked.pages;
    for index in 10..14 {
        scene.api.change(|store| store.cut_next_event = index % 2 == 0);
        scene.flannel_node(&format!("node-{index}"), index, index, &format!("10.244.{index}.0/24"));
        if index % 2 == 1 {
            scene.api.cut();
        }
    }
    scene.expect_peers(&["node-10", "node-11", "node-12", "node-13"]);
    assert_eq!(scene.api.store().asked.pages, pages);
}

#[test]
fn what_the_server_has_forgotten_is_listed_again() {
    let Some(scene) = Scene::start() else { return };
    for by_status in [false, true] {
        scene.flannel_node("gone", 3, 4, "10.244.3.0/24");
        scene.expect_peers(&["gone"]);
        let pages = scene.api.store().asked.pages;
        scene.api.store().gone_by_status = by_status;
        scene.api.set_down(true);
        scene.flannel_node("new", 4, 5, "10.244.4.0/24");
        scene.api.change(|store| {
            store.delete("gone");
            store.compact();
        });
        scene.api.set_down(false);
        scene.expect_peers(&["new"]);
        assert!(scene.api.store().asked.pages > pages);
        scene.api.change(|store| store.delete("new"));
        scene.expect_peers(&[]);
    }
}

#[test]
fn a_huge_and_slow_list_comes_in_pages() {
    let Some(scene) = Scene::begin(NET_CONF, |api, host| {
        register(api, host, 1);
        api.change(|store| {
            store.delay = Duration::from_millis(300);
            for index in 0..1200 {
                store.create(&format!("idle-{index:04}"), 2, &[]);
            }
        });
    }) else {
        return;
    };
    let status = scene.expect("all nodes", |status| status.kubernetes.as_ref().is_some_and(|k| k.nodes == 1201));
    assert!(status.peers.is_empty());
    assert_eq!(scene.api.store().asked.pages, 3);
    scene.expect_node("published", is_published);
}

#[test]
fn a_server_that_is_busy_is_asked_again_when_it_says() {
    let Some(scene) = Scene::begin(NET_CONF, |api, host| {
        register(api, host, 1);
        api.change(|store| {
            store.refusals = vec![(429, Some(1)), (503, Some(1)), (500, None)];
            store.patch_refusals = vec![409, 500];
        });
    }) else {
        return;
    };
    scene.expect_node("published", is_published);
    let asked = scene.api.store().asked;
    assert!(asked.pages <= 5 && asked.patches == 3, "{asked:?}");
    scene.expect("no problem", |status| status.problems.is_empty());
}

#[test]
fn a_new_token_is_used_as_soon_as_the_old_one_is_refused() {
    let Some(scene) = Scene::begin(NET_CONF, |api, host| register(api, host, 1)) else { return };
    let token = scene.prefix.dir().join("token");
    fs::write(&token, "first").expect("a token");
    scene.api.change(|store| store.token = Some("first".to_owned()));
    fs::write(scene.node.kubeconfig(), Api::kubeconfig(token.to_str())).expect("a kubeconfig");
    scene.api.cut();
    scene.expect_node("published", is_published);
    scene.expect("following", is_following);

    scene.api.change(|store| store.token = Some("second".to_owned()));
    scene.api.cut();
    scene.expect_problem("the API server refuses (401)");
    fs::write(&token, "second").expect("a token");
    scene.expect("following", is_following);
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
}

#[test]
fn a_daemon_that_starts_without_a_server_leaves_the_kernel_as_it_is() {
    let Some(mut scene) = Scene::start() else { return };
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
    scene.node.add_pod(&scene.prefix, "a1");
    let pod_route = format!("{}/32", scene.node.pods[0].v4);
    scene.node.stop();
    scene.api.set_down(true);
    scene.node.spawn();
    scene.expect_problem("does not answer");
    assert!(scene.route("10.244.3.0/24").contains("via 10.244.3.0"), "the routes to other nodes stay");
    assert!(scene.route(&pod_route).contains("dev pw1"), "the routes to pods stay");
    scene.api.set_down(false);
    scene.expect_peers(&["node-c"]);
    scene.api.change(|store| store.edit("node-c", |node| node["spec"] = json!({"podCIDRs": ["10.244.5.0/24"]})));
    assert!(wait_until(PATIENCE, || scene.route("10.244.3.0/24").is_empty()));
}
