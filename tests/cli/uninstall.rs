//! `podwire uninstall`: nothing of podwire is left, or nothing of its data plane.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::node::Node;
use crate::{CONFIG, is_root, stderr, stdout, texts};

const ADAPTIVE: &str = "mode = \"adaptive\"\ncores = [0]";

/// All that a daemon changes, one thing a line.
fn state(node: &Node) -> BTreeSet<String> {
    let shown = [
        "ip -o link | sed 's/^[0-9]*: //; s/ link-netnsid.*//; s/ state [A-Z]*//; s/@[^:]*//'",
        "ip -d -o link | grep -o 'prog/xdp.*'",
        "ip -o address | sed 's/^[0-9]*: //; s/valid_lft.*//'",
        "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all | sed 's/ expires.*//'",
        "ip neigh | sed 's/ .*//'",
        "nft list ruleset",
        "sysctl -ae -r '^net[.]' 2>/dev/null | grep -Ev 'nf_conntrack_(count|max|buckets|expect)|route.max_size'",
        "for link in $(ls /proc/sys/net/ipv4/conf); do tc filter show dev $link ingress 2>/dev/null; done",
        &format!("find /sys/fs/bpf/podwire/{}", node.cookie()),
    ];
    shown.iter().flat_map(|command| node.inside(command).lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// What of `left` is not in `right`.
fn beyond(left: &BTreeSet<String>, right: &BTreeSet<String>) -> Vec<String> {
    left.difference(right).cloned().collect()
}

#[track_caller]
fn assert_same(before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let (left, lost) = (beyond(after, before), beyond(before, after));
    assert!(left.is_empty() && lost.is_empty(), "left behind: {left:#?}\nlost: {lost:#?}");
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    assert_eq!((output.status.code(), stderr(output).as_str()), (Some(0), ""));
    stdout(output)
}

/// A node with a daemon in mode adaptive and a pod, and its state before.
fn busy_node() -> (Node, BTreeSet<String>) {
    let mut node = Node::prepare();
    node.inside("ip -6 route add default via fe80::1 dev eth0 onlink proto ra");
    // What the node itself learns when it is up must not count as podwire's.
    node.inside("ping -c1 -W1 192.168.1.3; ip neigh flush all");
    node.wait_for("the link to settle", |node| !node.inside("ip -6 address").contains("tentative"));
    let before = state(&node);
    let config = CONFIG.replace("mode = \"kernel\"", ADAPTIVE).replace("[dataplane]", "masquerade = true\n[dataplane]");
    node.configure(&config);
    node.run();
    node.attach("web");
    node.wait_for("the data plane", |node| node.json(&["status"])["dataplane"]["state"] == "running");
    assert!(beyond(&state(&node), &before).len() > 10);
    (node, before)
}

#[test]
fn nothing_is_left_where_a_daemon_ran_and_a_second_run_finds_nothing() {
    if !is_root() {
        return;
    }
    let (mut node, before) = busy_node();
    let said = succeeded(&node.uninstall(&["--yes"]));
    assert_eq!(node.wait_for_end().code(), Some(0), "{}", node.log());
    for line in [
        "stopped the daemon",
        "delete route 10.244.2.0/24 via 10.244.2.0 dev podwire.1",
        "delete the nftables rules",
        "delete rule from 10.244.1.0/24 lookup 240",
        "detach the programs and delete their pins",
        "delete device pwhub0",
        "delete device podwire.1",
        "delete device pw1",
        "delete neighbour 192.168.1.3 dev eth0",
        "set net/ipv4/ip_forward from 1 to 0",
        "set net/ipv6/conf/eth0/accept_ra from 2 to 1",
        "1 pod(s) have lost their network: web",
    ] {
        assert!(said.lines().any(|told| told == line), "{line}: {said}");
    }
    assert_same(&before, &state(&node));
    assert!(!node.runtime_dir().exists());
    for _ in 0..2 {
        assert_eq!(succeeded(&node.uninstall(&[])), "nothing to remove\n");
    }
    assert!(!node.runtime_dir().exists());
    assert_same(&before, &state(&node));
}

#[test]
fn nothing_is_left_of_a_daemon_that_was_killed() {
    if !is_root() {
        return;
    }
    let (mut node, before) = busy_node();
    node.stop("KILL");
    let output = node.uninstall(&["--yes", "--output", "json"]);
    let said: Value = serde_json::from_str(&succeeded(&output)).unwrap();
    assert_eq!((&said["stopped_daemon"], &said["pods_stay"]), (&false.into(), &false.into()));
    assert_eq!(texts(&said["pods"], None), ["web"]);
    for change in ["detach the programs and delete their pins", "delete device podwire.1", "delete device pwhub0"] {
        assert!(texts(&said["changes"], None).contains(&change), "{said}");
    }
    assert_same(&before, &state(&node));
    assert!(!node.runtime_dir().exists());
    let again: Value = serde_json::from_str(&succeeded(&node.uninstall(&["--output", "json"]))).unwrap();
    assert_eq!((&again["changes"], &again["pods"]), (&serde_json::json!([]), &serde_json::json!([])));
}

#[test]
fn the_wrong_directory_is_named_and_the_right_one_finishes_the_work() {
    if !is_root() {
        return;
    }
    let (mut node, before) = busy_node();
    node.stop("KILL");
    let wrong =
        node.inside(&format!("{} uninstall --yes --runtime-dir /nonexistent 2>&1 || echo failed", crate::BINARY));
    assert!(wrong.contains("/nonexistent is not where the daemon kept its state"), "{wrong}");
    assert!(wrong.ends_with("failed\n") && wrong.contains("delete device podwire.1\n"), "{wrong}");
    let said = succeeded(&node.uninstall(&[]));
    assert!(said.contains("set net/ipv4/ip_forward from 1 to 0\n"), "{said}");
    assert_same(&before, &state(&node));
    assert!(!node.runtime_dir().exists());
}

#[test]
fn a_node_with_devices_of_others_goes_on_forwarding() {
    if !is_root() {
        return;
    }
    let (node, _) = busy_node();
    node.inside("ip link add docker0 type bridge; ip link set docker0 up; ip address add 172.17.0.1/16 dev docker0");
    let said = succeeded(&node.uninstall(&["--yes"]));
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        assert!(said.contains(&format!("net/{key} stays 1, which others")), "{said}");
        assert_eq!(node.inside(&format!("cat /proc/sys/net/{key}")), "1\n");
    }
    // A router that must not lose the routes that it has learnt.
    assert_eq!(node.inside("cat /proc/sys/net/ipv6/conf/eth0/accept_ra"), "2\n");
    assert!(!node.runtime_dir().exists());
}

#[test]
fn attached_pods_are_named_and_nothing_is_touched_without_a_yes() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.attach("db");
    let before = state(&node);
    let refused = node.uninstall(&[]);
    assert_eq!((refused.status.code(), stdout(&refused).as_str()), (Some(1), ""));
    assert!(stderr(&refused).contains("2 pod(s) are attached and would lose their network: web, db"));
    assert_same(&before, &state(&node));
    assert!(node.ask(&["status"]).status.success());
    for name in ["web", "db"] {
        assert!(node.ask(&["pods", "detach", "--name", name]).status.success());
    }
    assert!(succeeded(&node.uninstall(&[])).starts_with("stopped the daemon\n"));
}

#[test]
fn the_kernel_path_and_the_pods_stay_and_a_daemon_takes_them_over_again() {
    if !is_root() {
        return;
    }
    let (mut node, _) = busy_node();
    let pods = fs::read(node.runtime_dir().join("pods.json")).unwrap();
    let with_hub = state(&node);
    let said = succeeded(&node.uninstall(&["--keep-kernel"]));
    assert_eq!(node.wait_for_end().code(), Some(0));
    assert!(said.contains("1 pod(s) go on by the kernel path: web"), "{said}");
    let lost = beyond(&with_hub, &state(&node));
    let of_data_plane =
        |line: &String| ["pwhub", "xdp", "_steer", "/sys/fs/bpf"].iter().any(|word| line.contains(word));
    assert!(lost.iter().all(of_data_plane), "{lost:#?}");
    assert!(!state(&node).iter().any(of_data_plane), "{:#?}", state(&node));
    assert!(node.can_ping("10.244.1.1") && node.can_ping("fd00:244:1::1"));
    assert_eq!(fs::read(node.runtime_dir().join("pods.json")).unwrap(), pods);
    let again = succeeded(&node.uninstall(&["--keep-kernel"]));
    assert_eq!(again, "nothing to remove\n1 pod(s) go on by the kernel path: web\n");

    node.run();
    node.wait_for("the data plane", |node| node.json(&["status"])["dataplane"]["state"] == "running");
    assert_eq!(texts(&node.json(&["pods", "list"]), Some("name")), ["web"]);
    assert!(node.can_ping("10.244.1.1"));
}

#[test]
fn settings_that_somebody_else_has_changed_since_and_foreign_objects_stay() {
    if !is_root() {
        return;
    }
    let mut node = Node::prepare();
    node.inside("echo 0 > /proc/sys/net/ipv4/ip_forward");
    let foreign = "ip link add pw77 type veth peer name pw78; ip link add vxlan9 type vxlan id 9 dstport 4789 dev eth0; \
        ip route add 10.99.0.0/16 dev eth0; ip rule add from 10.9.9.0/24 lookup 240; \
        ip neigh add 192.168.1.50 managed dev eth0; echo mine > \"$0\"/mine";
    node.run();
    let dir = node.runtime_dir().display().to_string();
    node.inside(&foreign.replace("$0", &dir));
    node.inside("echo 2 > /proc/sys/net/ipv4/ip_forward");
    let said = succeeded(&node.uninstall(&[]));
    assert!(!said.contains("net/ipv4/ip_forward") && said.contains("which holds others"), "{said}");
    node.wait_for_end();
    let left = node.inside("ip -br link; ip route; ip rule; ip neigh; cat /proc/sys/net/ipv4/ip_forward");
    for kept in ["pw77", "vxlan9", "10.99.0.0/16", "from 10.9.9.0/24", "192.168.1.50"] {
        assert!(left.contains(kept), "{kept} in {left}");
    }
    assert!(left.ends_with("2\n"), "{left}");
    let files: Vec<_> = fs::read_dir(node.runtime_dir()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["mine"]);
    assert_eq!(succeeded(&node.uninstall(&[])), "nothing to remove\n");
}

#[test]
fn a_daemon_of_another_namespace_or_directory_is_named_and_left_alone() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    let mut elsewhere = node.start_beside();
    let dir = node.runtime_dir().display().to_string();
    let there = |args: &str| elsewhere.inside(&format!("{} uninstall {args} --runtime-dir {dir} 2>&1", crate::BINARY));
    assert!(there("").contains("it runs in another network namespace; enter it first: nsenter --net=/proc/"));
    assert!(node.ask(&["status"]).status.success() && elsewhere.ask(&["status"]).status.success());

    let said = elsewhere.inside(&format!("{} uninstall --runtime-dir /nonexistent 2>&1", crate::BINARY));
    assert!(said.contains("this network namespace is in use by another podwire"), "{said}");
    assert!(elsewhere.ask(&["status"]).status.success());

    let mut node = node;
    node.stop("TERM");
    elsewhere.stop("TERM");
    let said = elsewhere.inside(&format!("{} uninstall --runtime-dir {dir} 2>&1", crate::BINARY));
    assert!(said.contains("belongs to a podwire of another network namespace"), "{said}");
    assert!(node.runtime_dir().join("sysctls.json").exists());
    assert!(node.inside("ip link").contains("podwire.1"));
}

#[test]
fn only_root_may_uninstall() {
    if !is_root() {
        return;
    }
    let refused = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--clear-groups", crate::BINARY, "uninstall", "--runtime-dir", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("only root can remove"), "{}", stderr(&refused));
}
