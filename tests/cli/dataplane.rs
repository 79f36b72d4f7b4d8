//! The data plane over time, as `status` and the log tell it.

use crate::node::Node;
use crate::{CONFIG, PEER_C, is_root, stderr};

/// The configuration with a data plane of one worker.
fn adaptive(more: &str) -> String {
    CONFIG.replace("mode = \"kernel\"", &format!("mode = \"adaptive\"\ncores = [0]\n{more}"))
}

/// A node with a pod, whose data plane runs.
fn running() -> Node {
    let mut node = Node::start();
    node.attach("web");
    node.configure(&adaptive(""));
    node.wait_for("the data plane", |node| state(node) == "running");
    node
}

fn state(node: &Node) -> String {
    node.json(&["status"])["dataplane"]["state"].as_str().unwrap().to_owned()
}

fn reason(node: &Node) -> String {
    node.json(&["status"])["dataplane"]["reason"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_data_plane_that_cannot_start_says_why_and_starts_when_it_can() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.configure(&adaptive("zero_copy = \"require\"\n"));
    node.wait_for("the failure", |node| state(node) == "failed");
    assert!(reason(&node).contains("zero"), "{}", reason(&node));
    assert!(node.json(&["status"])["dataplane"]["retry_secs"].is_u64());
    assert!(node.can_ping("10.244.1.1"), "the kernel path carries the pods");
    node.configure(&adaptive(""));
    node.wait_for("the data plane", |node| state(node) == "running");
    assert!(node.can_ping("10.244.1.1"));
}

#[test]
fn the_data_plane_follows_its_uplink_down_up_and_away() {
    if !is_root() {
        return;
    }
    let node = running();
    for (take, give, why) in [
        ("ip link set eth0 down", "ip link set eth0 up", "eth0 is down"),
        ("ip addr flush dev eth0", "ip addr add 192.168.1.2/24 dev eth0", "address"),
        ("ip link del eth0", Node::UPLINK, "no device eth0"),
    ] {
        node.inside(take);
        node.wait_for(why, |node| state(node) == "failed" && reason(node).contains(why));
        node.inside(give);
        node.wait_for(give, |node| state(node) == "running");
        assert!(node.can_ping("10.244.1.1"), "after {give}");
        node.wait_for("no problem", |node| node.json(&["status"])["problems"].as_array().unwrap().is_empty());
    }
}

#[test]
fn the_workers_go_on_when_the_kernel_path_has_no_tunnel() {
    if !is_root() {
        return;
    }
    let node = running();
    let started = node.log().matches("the data plane runs").count();
    // The kernel has one VXLAN device of a VNI and a port; by podwire's own name, and by another.
    for (name, said) in [("podwire.1", "not podwire's VXLAN device"), ("flannel.1", "cannot create the VXLAN device")] {
        // It must not make its own meanwhile.
        node.signal("STOP");
        node.inside(&format!("ip link del podwire.1; ip link add {name} type vxlan id 1 dstport 8472 dev eth0"));
        node.signal("CONT");
        let problems = |node: &Node| node.json(&["status"])["problems"].to_string();
        node.wait_for("the problem", |node| problems(node).contains(said));
        assert_eq!(state(&node), "running");
        node.inside(&format!("ip route flush dev pw1; ip neigh flush dev pw1 nud permanent; ip link del {name}"));
        node.wait_for("the tunnel", |node| problems(node) == "[]");
        assert!(node.can_ping("10.244.1.1"));
    }
    assert_eq!(node.log().matches("the data plane runs").count(), started, "{}", node.log());
}

#[test]
fn counters_outlive_the_data_plane_that_counted_and_end_in_the_log() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.configure(&adaptive(""));
    node.wait_for("the data plane", |node| state(node) == "running");
    node.attach("web");
    node.inside_pod("web", "ping -c2 -i0.1 -W1 192.168.1.2");
    let to_kernel = |node: &Node| {
        let stats = node.json(&["stats"]);
        let rows = stats["verdicts"].as_array().unwrap().iter();
        rows.filter(|row| row["program"] == "pod_steer").map(|row| row["packets"].as_u64().unwrap()).sum::<u64>()
    };
    let polls = |node: &Node| node.json(&["stats"])["retired"]["counts"]["polls"].as_u64().unwrap_or(0);
    assert_eq!(polls(&node), 0);
    let before = to_kernel(&node);
    assert!(before >= 2, "{before}");
    node.configure(CONFIG);
    node.wait_for("kernel mode", |node| state(node) == "kernel");
    assert!(polls(&node) > 0 && to_kernel(&node) >= before, "{before}: {}", node.json(&["stats"]));
    node.configure(&adaptive(""));
    node.wait_for("the data plane again", |node| state(node) == "running");
    assert!(to_kernel(&node) >= before);
    assert_eq!(node.stop("TERM").code(), Some(0));
    let log = node.log();
    assert_eq!(log.matches("final figures worker=0").count(), 2, "{log}");
    assert!(log.contains("8192 = pool ") && !log.contains('\u{1b}'), "{log}");
}

#[test]
fn a_new_name_or_peer_does_not_restart_the_data_plane_and_a_new_vni_does() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    let starts = |node: &Node| node.log().matches("the data plane runs").count();
    let reload = |node: &Node, generation: u64, text: &str| {
        node.configure(text);
        node.wait_for("the reload", |node| node.json(&["status"])["config"]["generation"] == generation);
        node.wait_for("the data plane", |node| state(node) == "running");
    };
    reload(&node, 2, &adaptive(""));
    let renamed = adaptive("").replace("node-a", "node-z");
    reload(&node, 3, &renamed);
    let peered = format!("{renamed}{PEER_C}");
    reload(&node, 4, &peered);
    let status = node.json(&["status"]);
    assert_eq!((&status["node"], status["peers"].as_array().unwrap().len()), (&"node-z".into(), 2));
    assert_eq!(node.json(&["stats"])["retired"]["counts"], serde_json::json!({}), "{}", node.log());
    assert_eq!(starts(&node), 1, "{}", node.log());
    reload(&node, 5, &format!("{peered}[vxlan]\nvni = 7\n"));
    assert_eq!(starts(&node), 2, "{}", node.log());
    node.stop("TERM");
}

#[test]
fn workers_are_given_faults_only_by_a_daemon_that_was_started_to_be_tested() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.configure(&adaptive(""));
    node.wait_for("the data plane", |node| state(node) == "running");
    let refused = node.ask(&["fault", "hang", "--ms", "1000"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("PODWIRE_FAULTS=1"), "{}", stderr(&refused));
    let help = node.ask(&["--help"]);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("  fault "), "tests need no help");
    let absences = node.json(&["status"])["dataplane"]["figures"]["workers"][0]["counts"]["absences"].clone();
    assert_eq!(absences, 0);
    node.stop("TERM");
}

#[test]
fn status_says_of_a_queue_why_its_worker_does_not_poll_it() {
    if !is_root() {
        return;
    }
    let node = Node::start();
    for (keys, refusal, text) in [
        ("xdp = \"native\"\n", "veth", "no: veth has no interrupts"),
        ("xdp = \"native\"\nbusy_poll = \"off\"\n", "off", "no: off"),
        ("xdp = \"off\"\n", "no_xdp", "no: the kernel receives"),
    ] {
        node.configure(&adaptive(keys));
        let told = |node: &Node| node.json(&["status"])["dataplane"]["figures"]["queues"][0]["busy_poll"].clone();
        node.wait_for(refusal, |node| told(node)["refusal"] == refusal);
        assert_eq!((&told(&node)["runs"], &told(&node)["napi_id"]), (&0.into(), &serde_json::Value::Null));
        let page = crate::stdout(&node.ask(&["status"]));
        assert!(page.contains("BUSY-POLL") && page.contains(text), "{page}");
    }
}
