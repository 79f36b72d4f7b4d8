//! What travels between nodes.

use crate::lab::{Lab, config};

/// Nodes `a` and `b` of ours with pods at host part 9, `c` of plain commands with one at 2.
fn three(ipv6: bool) -> Option<Lab> {
    let lab = Lab::new(ipv6)?;
    let [a, b] = [('a', 1), ('b', 2)].map(|(letter, index)| lab.node(letter, index));
    let c = lab.plain_node('c', 3);
    for (host, other) in [(&a, &b), (&b, &a)] {
        let node = host.letter.to_string();
        let vtep = lab.reconcile(&node, &config(host, &[other.peer(None), c.peer()]), &[]).vtep;
        lab.pod(&node, &vtep, 9, &format!("{node}-pod"));
        c.connect(&host.peer(Some(vtep.mac.to_string())));
    }
    Some(lab)
}

/// The pods of [`three`] by node number.
const PODS: [(u8, &str); 3] = [(1, "9"), (2, "9"), (3, "2")];

fn all_reach_all(ipv6: bool) {
    let Some(lab) = three(ipv6) else { return };
    for from in ["a-pod", "b-pod", "c-pod", "a", "b", "c"] {
        for (node, pod) in PODS {
            lab.reaches(from, &format!("10.244.{node}.{pod}"));
            lab.reaches(from, &format!("fd00:244:{node}::{pod}"));
        }
    }
}

#[test]
fn all_pods_and_nodes_reach_all_pods_over_an_ipv4_underlay() {
    all_reach_all(false);
}

#[test]
fn all_pods_and_nodes_reach_all_pods_over_an_ipv6_underlay() {
    all_reach_all(true);
}

#[test]
fn no_frame_of_address_resolution_crosses_a_pods_veth_or_the_tunnel() {
    let Some(lab) = three(false) else { return };
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
    let Some(lab) = three(false) else { return };
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
    let Some(lab) = three(false) else { return };
    for (target, hops) in [
        ("10.244.2.9", ["10.244.1.0", "10.244.2.0"]),
        ("fd00:244:2::9", ["fd00:244:1::", "fd00:244:2::"]),
        ("10.244.3.2", ["10.244.1.0", "10.244.3.0"]),
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
    let Some(lab) = three(false) else { return };
    lab.ip("b", "route add default dev eth0");
    for target in ["10.244.2.77", "fd00:244:2::77"] {
        let said = lab.ping("a-pod", target, "");
        assert!(said.contains("From 10.244.2.0") || said.contains("From fd00:244:2::"), "{said}");
        assert!(said.contains("nreachable") || said.contains("No route"), "{said}");
    }
}
