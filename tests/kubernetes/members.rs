//! What the nodes of a cluster come to: who is a peer, who is left out and told of, and what this node says of itself.

use serde_json::json;

use crate::harness::{SECOND_DEVICE, VXLAN_DEVICE, wait_until};
use crate::scene::{
    NET_CONF, PATIENCE, Scene, annotation, flannel, flannel_v6, is_published, network_unavailable, published_mac,
    register,
};

#[test]
fn a_node_waits_for_its_object_and_its_ranges_and_says_so() {
    let Some(scene) = Scene::begin(NET_CONF, |_, _| {}) else { return };
    scene.expect_problem("there is no node node-a in the Kubernetes API");
    scene.api.change(|store| store.create("node-a", 1, &[]));
    let status = scene.expect_problem("waiting for node node-a to get an IPv4 range in spec.podCIDRs");
    assert!(status.peers.is_empty() && status.uplink.is_none());
    assert!(annotation(&scene.api.node("node-a"), "backend-data").is_null(), "published before there is a range");
    assert_eq!(network_unavailable(&scene.api.node("node-a")), "True");
    let early = scene.prefix.netns("early");
    let attach = format!("pods attach --netns {} --ifname eth0 --name early", early.path().display());
    let attach = scene.node.try_cli(&attach);
    let refusal = String::from_utf8_lossy(&attach.stderr).into_owned();
    assert!(!attach.status.success() && refusal.contains("spec.podCIDRs"), "{refusal}");

    let ranges = scene.node.host.peer(None).pod_cidrs();
    scene.api.change(|store| {
        store.edit("node-a", |node| node["spec"] = json!({"podCIDR": ranges[0], "podCIDRs": ranges}));
    });
    let node = scene.expect_node("published", is_published);
    assert_eq!(annotation(&node, "public-ip"), "192.168.1.2");
    assert_eq!(annotation(&node, "backend-type"), "vxlan");
    assert_eq!(annotation(&node, "kube-subnet-manager"), "true");
    assert_eq!(published_mac(&node, "backend-data"), scene.node.vtep_mac());
    assert!(node["metadata"]["annotations"]["podwire.io/version"].is_string());
    assert_eq!(node["metadata"]["annotations"]["podwire.io/mode"], "kernel");
    assert_eq!(node["metadata"]["annotations"]["node.alpha.kubernetes.io/ttl"], "0", "others' annotations stay");
    assert_eq!(scene.api.store().asked.patches, 1, "one patch says it all");
    scene.expect("no problem", |status| status.problems.is_empty());
}

#[test]
fn peers_come_change_and_go_and_the_kernel_follows() {
    let Some(scene) = Scene::start() else { return };
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    let status = scene.expect_peers(&["node-c"]);
    assert_eq!(status.peers[0].vtep_mac, "02:00:00:00:fe:04");
    assert!(wait_until(PATIENCE, || scene.route("10.244.3.0/24").contains("via 10.244.3.0")));

    scene.api.change(|store| store.annotate("node-c", &flannel("192.168.1.5", "02:00:00:00:fe:55")));
    scene.expect("a new address", |status| {
        status
            .peers
            .iter()
            .any(|peer| peer.vtep_mac == "02:00:00:00:fe:55" && peer.underlay.to_string() == "192.168.1.5")
    });
    let moved = json!({"podCIDR": "10.244.33.0/24", "podCIDRs": ["10.244.33.0/24"]});
    scene.api.change(|store| store.edit("node-c", |node| node["spec"] = moved));
    assert!(wait_until(PATIENCE, || scene.route("10.244.33.0/24").contains("via 10.244.33.0")));
    assert!(wait_until(PATIENCE, || scene.route("10.244.3.0/24").is_empty()));

    // What changes nothing that matters costs nothing.
    let generation = scene.node.status().config.generation;
    for beat in 0..20 {
        scene.api.change(|store| store.edit("node-c", |node| node["status"]["beat"] = json!(beat)));
    }
    scene
        .api
        .change(|store| store.annotate("node-c", &json!({"flannel.alpha.coreos.com/kube-subnet-manager": "false"})));
    scene.expect_peers(&[]);
    assert_eq!(scene.node.status().config.generation, generation + 1);
    scene.api.change(|store| store.delete("node-c"));
    assert!(wait_until(PATIENCE, || scene.route("10.244.33.0/24").is_empty()));
}

#[test]
fn hostile_nodes_are_named_and_alone_left_out() {
    let Some(scene) = Scene::start() else { return };
    scene.flannel_node("good", 1, 9, "10.244.9.0/24");
    let nodes = [
        ("all", "192.168.1.20", "02:00:00:00:00:20", "0.0.0.0/0", "every address"),
        ("services", "192.168.1.21", "02:00:00:00:00:21", "10.96.0.0/24", "not inside the cluster's"),
        ("multicast", "224.0.0.1", "02:00:00:00:00:22", "10.244.22.0/24", "multicast"),
        ("inside", "10.244.9.1", "02:00:00:00:00:23", "10.244.23.0/24", "inside the pod range"),
        ("us", "192.168.1.2", "02:00:00:00:00:24", "10.244.24.0/24", "an address of this node"),
        ("shell", "$(reboot)", "02:00:00:00:00:25", "10.244.25.0/24", "cannot be understood"),
        ("group", "192.168.1.26", "01:00:00:00:00:26", "10.244.26.0/24", "not a unicast address"),
        ("twin", "192.168.1.27", "02:00:00:00:fe:09", "10.244.27.0/24", "that of node good too"),
        ("nothing", "192.168.1.28", "02:00:00:00:00:28", "x", "not a range"),
    ];
    scene.api.change(|store| {
        for (name, address, mac, range, _) in nodes {
            store.create(name, 5, &[range.to_owned()]);
            store.annotate(name, &flannel(address, mac));
        }
    });
    let status = scene.expect_problem("node nothing is left out");
    for (name, _, _, _, reason) in nodes {
        let told = |problem: &&String| problem.starts_with(&format!("node {name} is left out: "));
        let problem = status.problems.iter().find(told).unwrap_or_else(|| panic!("{name}: {:#?}", status.problems));
        assert!(problem.contains(reason), "{problem}");
    }
    scene.expect_peers(&["good"]);
}

#[test]
fn of_two_nodes_with_one_range_the_older_gets_its_packets_and_both_are_named() {
    let Some(scene) = Scene::start() else { return };
    scene.flannel_node("young", 7, 7, "10.244.0.0/24");
    scene.expect_peers(&["young"]);
    scene.flannel_node("old", 3, 3, "10.244.0.0/24");
    scene.expect_peers(&["old"]);
    scene.expect_problem("node young is left out: its pod range 10.244.0.0/24 overlaps 10.244.0.0/24 of node old");
    let neighbour = || scene.node.host.netns.run("ip neigh show 10.244.0.0 dev podwire.1");
    assert!(wait_until(PATIENCE, || neighbour().contains("02:00:00:00:fe:03")), "{}", neighbour());
    // A node with our own range takes nothing from us.
    scene.flannel_node("thief", 1, 8, "10.244.1.0/24");
    scene.expect_problem("node thief is left out: its pod range 10.244.1.0/24 overlaps 10.244.1.0/24 of node node-a");
    assert!(scene.route("10.244.1.0/24").contains("unreachable"), "{}", scene.route("10.244.1.0/24"));
    scene.api.change(|store| store.delete("old"));
    scene.expect_peers(&["young"]);
}

#[test]
fn overwritten_annotations_are_put_back_and_a_fight_costs_little() {
    let Some(scene) = Scene::start() else { return };
    let node = scene.expect_node("published", is_published);
    let data = annotation(&node, "backend-data").clone();
    let before = scene.api.store().asked.patches;
    let spoil = json!({"flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:66\"}"});
    scene.api.change(|store| store.annotate("node-a", &spoil));
    scene.expect_node("put back", |node| *annotation(node, "backend-data") == data);
    let spoil = json!({"flannel.alpha.coreos.com/kube-subnet-manager": null});
    for _ in 0..20 {
        scene.api.change(|store| store.annotate("node-a", &spoil));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    scene.expect_node("put back", |node| annotation(node, "kube-subnet-manager") == "true");
    scene.expect_problem("changed by somebody else");
    let patches = scene.api.store().asked.patches - before;
    assert!((1..6).contains(&patches), "{patches} patches");
}

#[test]
fn the_vtep_mac_outlives_the_daemon_and_a_collision_moves_it() {
    let Some(mut scene) = Scene::start() else { return };
    let node = scene.expect_node("published", is_published);
    let mac = published_mac(&node, "backend-data");
    let patches = scene.api.store().asked.patches;
    scene.node.stop();
    scene.node.spawn();
    scene.expect("following again", |status| status.uplink.is_some());
    assert_eq!((scene.node.vtep_mac(), scene.api.store().asked.patches), (mac.clone(), patches), "nothing new to say");

    scene.api.change(|store| {
        store.create("twin", 1, &["10.244.7.0/24".to_owned()]);
        store.annotate("twin", &flannel("192.168.1.7", &mac));
    });
    let node = scene.expect_node("another MAC", |node| published_mac(node, "backend-data") != mac);
    scene.expect_peers(&["twin"]);
    assert_eq!(scene.node.vtep_mac(), published_mac(&node, "backend-data"));
    assert!(scene.node.log_text().contains(&format!("the VTEP MAC {mac} of this node is that of node twin too")));
}

#[test]
fn a_second_vtep_comes_and_goes_with_the_uplinks_ipv6_address() {
    let Some(scene) = Scene::start() else { return };
    let netns = &scene.node.host.netns;
    let own = scene.node.host.addresses()[1];
    let says = |node: &serde_json::Value| annotation(node, "public-ipv6") == &own.to_string();
    let node = scene.expect_node("published", says);
    assert_eq!(node["metadata"]["annotations"]["podwire.io/ipv6-vtep"], "true");
    assert_eq!(published_mac(&node, "backend-v6-data"), netns.mac(SECOND_DEVICE));
    scene.api.change(|store| {
        store.create("node-c", 3, &["10.244.3.0/24".to_owned(), "fd00:244:3::/64".to_owned()]);
        store.annotate("node-c", &flannel("192.168.1.4", "02:00:00:00:fe:04"));
        store.annotate("node-c", &flannel_v6("fd00:192:168:1::4", "02:00:00:06:fe:04"));
        // An earlier podwire publishes what it does not hear.
        store.create("node-d", 4, &["10.244.4.0/24".to_owned(), "fd00:244:4::/64".to_owned()]);
        store.annotate("node-d", &flannel("192.168.1.5", "02:00:00:00:fe:05"));
        store.annotate("node-d", &flannel_v6("fd00:192:168:1::5", "02:00:00:00:fe:05"));
        store.annotate("node-d", &json!({ "podwire.io/version": "0.1.0" }));
    });
    let device_of = |range: &str| netns.run(&format!("ip -6 route show {range}"));
    let leads =
        |range: &str, device: &str| wait_until(PATIENCE, || device_of(range).contains(&format!("dev {device}")));
    assert!(leads("fd00:244:3::/64", SECOND_DEVICE), "{}", device_of("fd00:244:3::/64"));
    let entries = netns.run(&format!("bridge fdb show dev {SECOND_DEVICE}"));
    assert!(entries.contains("02:00:00:06:fe:04 dst fd00:192:168:1::4"), "{entries}");
    assert!(leads("fd00:244:4::/64", VXLAN_DEVICE), "{}", device_of("fd00:244:4::/64"));
    let status = scene.expect("no problem", |status| status.problems.is_empty());
    assert_eq!(status.vxlan.second.map(|second| second.underlay), Some(own));

    netns.run(&format!("ip address del {own}/64 dev eth0"));
    scene.expect_node("taken back", |node| {
        let is_gone = |key| annotation(node, key).is_null();
        is_gone("public-ipv6") && is_gone("backend-v6-data") && annotation(node, "public-ip") == "192.168.1.2"
    });
    scene.expect_problem("IPv6 pods of 1 Flannel node(s) (node-c, …) are not reached: this node has no IPv6 VTEP");
    assert!(leads("fd00:244:3::/64", VXLAN_DEVICE), "{}", device_of("fd00:244:3::/64"));
    assert!(!netns.run("ip -brief link").contains(SECOND_DEVICE));
    netns.run(&format!("ip address add {own}/64 dev eth0 nodad"));
    scene.expect_node("published again", says);
    assert!(leads("fd00:244:3::/64", SECOND_DEVICE), "{}", device_of("fd00:244:3::/64"));
}

#[test]
fn an_operators_overrides_are_honoured() {
    let Some(scene) = Scene::begin(NET_CONF, |api, host| {
        register(api, host, 9);
        host.netns.run("ip address add 192.168.1.77/24 dev eth0");
        api.change(|store| {
            let node_public = json!({"flannel.alpha.coreos.com/node-public-ip": "192.168.1.77"});
            store.annotate("node-a", &node_public);
        });
    }) else {
        return;
    };
    scene.expect_node("published", |node| annotation(node, "public-ip") == "192.168.1.77");
    let used = scene.expect("used", |status| status.vxlan.vtep.is_some());
    assert_eq!(used.vxlan.vtep.map(|vtep| vtep.to_string()), Some("192.168.1.77".to_owned()));
    let overwrite = json!({"flannel.alpha.coreos.com/public-ip-overwrite": "203.0.113.7"});
    scene.api.change(|store| store.annotate("node-a", &overwrite));
    scene.expect_node("overwritten", |node| annotation(node, "public-ip") == "203.0.113.7");
    assert_eq!(scene.node.status().vxlan.vtep.map(|vtep| vtep.to_string()), Some("192.168.1.77".to_owned()));
}

#[test]
fn a_range_that_changes_under_pods_stays_until_they_are_gone() {
    let Some(mut scene) = Scene::start() else { return };
    scene.node.add_pod(&scene.prefix, "a1");
    let moved = json!({"podCIDR": "10.244.8.0/24", "podCIDRs": ["10.244.8.0/24", "fd00:244:8::/64"]});
    scene.api.change(|store| store.edit("node-a", |node| node["spec"] = moved));
    scene.expect_problem("spec.podCIDRs of this node is 10.244.8.0/24, fd00:244:8::/64 now, but pods such as a1");
    // Others are followed meanwhile.
    scene.flannel_node("node-c", 3, 4, "10.244.3.0/24");
    scene.expect_peers(&["node-c"]);
    assert!(!scene.route("10.244.1.0/24").is_empty());
    scene.node.remove_pod();
    assert!(wait_until(PATIENCE, || !scene.route("10.244.8.0/24").is_empty()), "{}", scene.node.log_text());
    assert!(wait_until(PATIENCE, || scene.route("10.244.1.0/24").is_empty()));

    // A node that is deleted keeps its pods' network.
    scene.api.change(|store| store.delete("node-a"));
    let status = scene.expect_problem("there is no node node-a");
    assert_eq!(status.peers.len(), 1);
    assert!(!scene.route("10.244.8.0/24").is_empty());
}

#[test]
fn the_tunnel_is_as_net_conf_says_and_other_backends_are_refused() {
    let udp = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "udp"}}"#;
    let Some(scene) = Scene::begin(udp, |api, host| register(api, host, 1)) else { return };
    scene.expect_problem("the backend is udp; podwire speaks vxlan only");
    scene.api.change(|store| {
        store.net_conf = r#"{"Network": "10.244.0.0/16",
            "Backend": {"Type": "vxlan", "VNI": 4096, "Port": 4789, "MTU": 1400, "DirectRouting": true, "GBP": true}}"#
            .to_owned();
    });
    let node = scene.expect_node("published", is_published);
    assert!(annotation(&node, "backend-data").as_str().is_some_and(|data| data.starts_with(r#"{"VNI":4096,"#)));
    assert!(annotation(&node, "backend-v6-data").is_null());
    let status = scene.node.status();
    let vxlan = &status.vxlan;
    assert_eq!((vxlan.device.as_str(), vxlan.vni, vxlan.port, vxlan.mtu), ("podwire.4096", 4096, 4789, Some(1350)));
    let data = &scene.node.host.netns.link("podwire.4096")["linkinfo"]["info_data"];
    assert_eq!((&data["id"], &data["port"]), (&json!(4096), &json!(4789)));
    assert_eq!(data["gbp"], json!(true));
}
