//! What travels between nodes.

use crate::lab::{Lab, Underlay};

const PLAIN_MAC: &str = "02:00:00:00:00:33";

/// Nodes `a` (1) and `b` (2) of ours, `c` (3) of plain commands; each with a pod at host part 9.
fn three(underlay: Underlay) -> Option<Lab> {
    let lab = Lab::new(underlay)?;
    let mut macs = Vec::new();
    for (node, index, other) in [("a", 1, 2), ("b", 2, 1)] {
        lab.node(node, index);
        let config = lab.config(index, &[(other, None), (3, Some(PLAIN_MAC))]);
        let vtep = lab.reconcile(node, &config, &[]).vtep;
        lab.pod(node, index, 9, &vtep, &format!("{node}-pod"));
        macs.push((index, vtep.mac.to_string()));
    }
    let peers: Vec<(u8, &str)> = macs.iter().map(|(index, mac)| (*index, mac.as_str())).collect();
    lab.plain_node("c", 3, PLAIN_MAC, &peers);
    Some(lab)
}

fn all_reach_all(underlay: Underlay) {
    let Some(lab) = three(underlay) else { return };
    for from in ["a-pod", "b-pod", "c-pod"] {
        for to in 1..=3 {
            lab.reaches(from, &format!("10.244.{to}.9"));
            lab.reaches(from, &format!("fd00:244:{to}::9"));
        }
    }
    for (node, to) in [("a", 1), ("a", 2), ("b", 3), ("c", 1)] {
        lab.reaches(node, &format!("10.244.{to}.9"));
        lab.reaches(node, &format!("fd00:244:{to}::9"));
    }
}

#[test]
fn all_pods_and_nodes_reach_all_pods_over_an_ipv4_underlay() {
    all_reach_all(Underlay::V4);
}

#[test]
fn all_pods_and_nodes_reach_all_pods_over_an_ipv6_underlay() {
    all_reach_all(Underlay::V6);
}

#[test]
fn no_frame_of_address_resolution_crosses_a_pods_veth_or_the_tunnel() {
    let Some(lab) = three(Underlay::V4) else { return };
    // Both count what an address resolution would send first.
    let sent = |name: &str, device: &str| lab.ip(name, &format!("-s -j link show {device}"));
    let packets = |text: String| -> u64 {
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
    };
    let (pod, tunnel) = (packets(sent("a-pod", "eth0")), packets(sent("a", "podwire.1")));
    lab.reaches("a-pod", "10.244.2.9");
    assert_eq!(packets(sent("a-pod", "eth0")) - pod, 1, "one echo request");
    assert_eq!(packets(sent("a", "podwire.1")) - tunnel, 1, "one echo request");
}

#[test]
fn a_packet_larger_than_the_path_is_answered_and_the_path_mtu_learnt() {
    let Some(lab) = three(Underlay::V4) else { return };
    let local = lab.ping("a-pod", "10.244.2.9", "-M do -s 1423");
    assert!(local.contains("message too long, mtu=1450"), "{local}");
    assert!(lab.ping("a-pod", "10.244.2.9", "-M do -s 1422").contains(" 0% packet loss"));

    lab.ip("a", "link set podwire.1 mtu 1400");
    let said = lab.ping("a-pod", "10.244.2.9", "-M do -s 1400");
    assert!(said.contains("From 10.244.1.0") && said.contains("(mtu = 1400)"), "{said}");
    assert!(lab.ip("a-pod", "route get 10.244.2.9").contains("mtu 1400"));
    assert!(lab.ping("a-pod", "10.244.2.9", "-M want -s 1400").contains(" 0% packet loss"), "in fragments");

    let said = lab.ping("a-pod", "fd00:244:2::9", "-M do -s 1390");
    assert!(said.contains("From fd00:244:1::") && said.contains("mtu=1400"), "{said}");
    assert!(lab.ip("a-pod", "route get fd00:244:2::9").contains("mtu 1400"));
    assert!(lab.ping("a-pod", "fd00:244:2::9", "-M want -s 1390").contains(" 0% packet loss"), "in fragments");
}

#[test]
fn each_node_answers_with_its_own_address_when_the_time_to_live_ends() {
    let Some(lab) = three(Underlay::V4) else { return };
    for (target, hops) in [
        ("10.244.2.9", ["10.244.1.0", "10.244.2.0"]),
        ("fd00:244:2::9", ["fd00:244:1::", "fd00:244:2::"]),
        ("10.244.3.9", ["10.244.1.0", "10.244.3.0"]),
    ] {
        for (ttl, hop) in (1..).zip(hops) {
            let said = lab.ping("a-pod", target, &format!("-t {ttl}"));
            assert!(said.contains(&format!("From {hop} ")) && said.contains("xceeded"), "{ttl} {said}");
        }
        assert!(lab.ping("a-pod", target, "-t 3").contains(" 0% packet loss"));
    }
}

#[test]
fn an_address_without_a_pod_is_unreachable_and_does_not_leave_the_node() {
    let Some(lab) = three(Underlay::V4) else { return };
    lab.ip("b", "route add default dev eth0");
    for target in ["10.244.2.77", "fd00:244:2::77"] {
        let said = lab.ping("a-pod", target, "");
        assert!(said.contains("From 10.244.2.0") || said.contains("From fd00:244:2::"), "{said}");
        assert!(said.contains("nreachable") || said.contains("No route"), "{said}");
    }
}
