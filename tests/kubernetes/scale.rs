//! What a change costs in a cluster of hundreds of nodes: as much as in a small one.

use podwire::control::netlink::{MAIN_TABLE, Netlink};
use podwire::control::plan::PROTOCOL;
use serde_json::json;

use crate::harness::wait_until;
use crate::scene::{NET_CONF, PATIENCE, Scene, flannel, is_published, register};

const NODES: u16 = 500;

fn name(index: u16) -> String {
    format!("far-{index:03}")
}

/// A cluster of nodes that lie behind a router which is not there.
fn begin() -> Option<Scene> {
    Scene::begin(NET_CONF, |api, host| {
        host.netns.run_all([
            "ip neigh replace 192.168.1.254 lladdr 02:00:00:00:00:fe dev eth0 nud permanent",
            "ip route add 172.16.0.0/16 via 192.168.1.254 dev eth0",
        ]);
        register(api, host, 9);
        api.change(|store| {
            for index in 0..NODES {
                let [high, low] = index.to_be_bytes();
                // Past the range of the host.
                store.create(&name(index), 2, &[format!("10.244.{}.{}/28", 128 + index / 16, index % 16 * 16)]);
                store.annotate(
                    &name(index),
                    &flannel(&format!("172.16.{high}.{low}"), &format!("02:77:00:00:{high:02x}:{low:02x}")),
                );
            }
        });
    })
}

fn routes(scene: &Scene) -> usize {
    scene
        .node
        .host
        .netns
        .within(|| Netlink::open().expect("a socket").routes(MAIN_TABLE, PROTOCOL).expect("routes").len())
}

/// How often the daemon has looked at the kernel as a whole.
fn looks(scene: &Scene) -> u64 {
    scene.node.status().kubernetes.expect("a source").looks
}

/// Whether the kernel path takes tunnel packets from the VTEP of a node, whose index is below 256.
fn is_let_in(scene: &Scene, index: u16) -> bool {
    let vtep = format!("nft get element inet podwire vteps4 {{ 172.16.0.{index} }}");
    scene.node.host.netns.output(&vtep).status.success()
}

/// Our table of nftables, by its handle.
fn table(scene: &Scene) -> String {
    scene.node.host.netns.run("nft -a list tables inet")
}

#[test]
fn one_list_and_one_watch_serve_hundreds_of_changes_and_none_takes_a_look_at_everything() {
    let Some(scene) = begin() else { return };
    // The own two ranges besides.
    let all = usize::from(NODES) + 2;
    assert!(
        wait_until(4 * PATIENCE, || routes(&scene) == all),
        "{} of {all}\n{}",
        routes(&scene),
        scene.node.log_text()
    );
    scene.expect("all peers", |status| status.peers.len() == usize::from(NODES));
    scene.expect_node("published", is_published);
    assert!(is_let_in(&scene, 0) && is_let_in(&scene, 149));
    let (asked, before, table) = (scene.api.store().asked, looks(&scene), table(&scene));
    for index in 0..100 {
        let moved = format!("10.244.{}.{}/28", 200 + index / 16, index % 16 * 16);
        let spec = json!({ "podCIDR": moved, "podCIDRs": [moved] });
        scene.api.change(|store| store.edit(&name(index), |node| node["spec"] = spec));
        assert!(wait_until(PATIENCE, || !scene.route(&moved).is_empty()), "{moved}\n{}", scene.node.log_text());
    }
    for index in 100..150 {
        scene.api.change(|store| store.delete(&name(index)));
    }
    assert!(wait_until(PATIENCE, || routes(&scene) == all - 50), "{}", routes(&scene));
    assert!(wait_until(PATIENCE, || !is_let_in(&scene, 149)) && is_let_in(&scene, 150));
    assert_eq!(self::table(&scene), table, "it was changed, not made anew");
    let now = scene.api.store().asked;
    assert_eq!((now.pages, now.patches, now.config_maps), (asked.pages, asked.patches, asked.config_maps));
    assert!(now.watches <= asked.watches + 1, "{now:?}");
    let taken = looks(&scene) - before;
    assert!(taken <= 10, "{taken} looks at everything for 150 changes");
    let changes = scene.node.status().kubernetes.expect("a source").changes;
    assert!((101..=151).contains(&changes.changes), "{changes:?}");
}
