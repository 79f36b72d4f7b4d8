//! What only programs ask of the daemon: checks, collections, readiness, and the kind of a refusal.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::Duration;

use podwire::control::api::{Attach, Owner, RefusalKind, Reply, Request};
use podwire::control::client::{self, ClientError};

use crate::harness::is_root;
use crate::node::Node;

fn owned(node: &mut Node, name: &str, network: &str) -> Attach {
    Attach {
        name: name.to_owned(),
        netns: node.pod_netns(name).into(),
        ifname: "eth0".to_owned(),
        addresses: Vec::new(),
        mac: None,
        owner: Some(Owner {
            network: network.to_owned(),
            container: name.to_owned(),
            workload: Some(format!("default/{name}")),
        }),
    }
}

#[track_caller]
fn ask(node: &Node, request: Request) -> Reply {
    client::call(&node.runtime_dir(), request).unwrap_or_else(|error| panic!("{error}\n{}", node.log()))
}

#[track_caller]
fn refusal(node: &Node, request: Request) -> (RefusalKind, String) {
    match client::call(&node.runtime_dir(), request) {
        Err(ClientError::Refused(refusal)) => (refusal.kind, refusal.text),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_pod_has_the_mac_and_the_owner_that_were_asked_for() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    let mut request = owned(&mut node, "web", "net-a");
    request.mac = Some("02:00:00:00:00:77".parse().unwrap());
    let Reply::Attached(pod) = ask(&node, Request::PodsAttach(request.clone())) else { panic!("not attached") };
    assert_eq!(
        (pod.mac.as_str(), pod.host_mac.as_str(), pod.mtu),
        ("02:00:00:00:00:77", "0a:58:a9:fe:01:01", Some(1450))
    );
    assert_eq!(pod.owner, request.owner);
    assert!(node.inside("ip neigh show 10.244.1.1").contains("02:00:00:00:00:77"));
    assert!(node.can_ping("10.244.1.1"));
    node.stop("KILL");
    node.run();
    assert_eq!(node.json(&["pods", "list"])[0]["owner"]["workload"], "default/web");

    let other = owned(&mut node, "other", "net-a");
    for mac in ["01:00:00:00:00:01", "00:00:00:00:00:00", "0a:58:a9:fe:01:01"] {
        let request = Attach { mac: Some(mac.parse().unwrap()), ..other.clone() };
        let (kind, text) = refusal(&node, Request::PodsAttach(request));
        assert!(kind == RefusalKind::Invalid && text.contains(mac), "{text}");
    }
}

#[test]
fn a_check_finds_what_others_have_changed_on_either_side() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let check = Request::PodsCheck { name: "web".into() };
    assert!(matches!(ask(&node, check.clone()), Reply::Checked(pod) if pod.name == "web"));
    // Asked before the daemon can have heard of it, and after its look that follows an attach.
    sleep(Duration::from_millis(500));
    node.signal("STOP");
    node.inside("ip route del 10.244.1.1");
    let mut asking = UnixStream::connect(node.socket()).unwrap();
    asking.write_all(br#"{"version":2,"request":{"pods-check":{"name":"web"}}}"#).unwrap();
    asking.write_all(b"\n").unwrap();
    node.signal("CONT");
    let mut answer = String::new();
    asking.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("internal") && answer.contains("lacks route 10.244.1.1"), "{answer}");
    node.wait_for("the repair", |node| client::call(&node.runtime_dir(), check.clone()).is_ok());
    node.inside_pod("web", "ip link set eth0 name other");
    let (kind, text) = refusal(&node, check.clone());
    assert!(kind == RefusalKind::Internal && text.contains("there is no eth0"), "{text}");
    node.remove_pod_netns("web");
    refusal(&node, check);
    assert_eq!(refusal(&node, Request::PodsCheck { name: "nobody".into() }).0, RefusalKind::NotFound);
}

#[test]
fn no_pod_is_attached_while_a_note_to_detach_it_stays() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    let request = Request::PodsAttach(owned(&mut node, "web", "net-a"));
    let blocker = node.runtime_dir().join("detach/web");
    fs::create_dir(&blocker).unwrap();
    assert_eq!(refusal(&node, request.clone()).0, RefusalKind::NotReady);
    fs::remove_dir(&blocker).unwrap();
    assert!(matches!(ask(&node, request), Reply::Attached(_)));
}

#[test]
fn a_collection_takes_the_pods_of_its_network_that_are_not_to_be_kept() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    for (name, network) in [("a1", "net-a"), ("a2", "net-a"), ("b1", "net-b")] {
        let request = owned(&mut node, name, network);
        ask(&node, Request::PodsAttach(request));
    }
    node.attach("by-hand");
    let collect = |keep: &[&str]| Request::PodsCollect {
        network: "net-a".into(),
        keep: keep.iter().map(|&name| name.to_owned()).collect(),
    };
    assert_eq!(ask(&node, collect(&["a1", "b1", "unknown"])), Reply::Collected { removed: vec!["a2".into()] });
    assert_eq!(ask(&node, collect(&["a1"])), Reply::Collected { removed: vec![] });
    let Reply::Pods(pods) = ask(&node, Request::PodsList) else { panic!("no list") };
    assert_eq!(pods.iter().map(|pod| pod.name.as_str()).collect::<Vec<_>>(), ["a1", "b1", "by-hand"]);
}

#[test]
fn readiness_counts_what_is_left_and_names_what_is_missing() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let ready = |node: &Node| match ask(node, Request::Ready) {
        Reply::Ready(ready) => ready,
        other => panic!("{other:?}"),
    };
    node.wait_for("the node to be ready", |node| ready(node).problem.is_none());
    let now = ready(&node);
    assert_eq!((now.mtu, now.ranges.len()), (Some(1450), 2));
    assert_eq!((now.ranges[0].capacity, now.ranges[0].used, now.ranges[0].free), (254, 1, 253));
    assert_eq!(now.ranges[1].capacity, u64::MAX - 1);
    node.inside("ip link del eth0");
    node.wait_for("the uplink to be missed", |node| ready(node).problem.is_some_and(|why| why.contains("eth0")));
    let request = owned(&mut node, "late", "net-a");
    assert_eq!(refusal(&node, Request::PodsAttach(request)).0, RefusalKind::NotReady);
}

#[test]
fn a_refusal_says_of_what_kind_it_is() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    let good = owned(&mut node, "new", "net-a");
    let cases: [(Attach, RefusalKind); 7] = [
        (Attach { name: "web".into(), ..good.clone() }, RefusalKind::Taken),
        (Attach { name: "-".into(), ..good.clone() }, RefusalKind::Invalid),
        (Attach { addresses: vec!["10.244.1.1".parse().unwrap()], ..good.clone() }, RefusalKind::Taken),
        (Attach { addresses: vec!["10.9.9.9".parse().unwrap()], ..good.clone() }, RefusalKind::Invalid),
        (Attach { netns: "/run/netns/none-such".into(), ..good.clone() }, RefusalKind::Namespace),
        (Attach { ifname: "lo".into(), ..good.clone() }, RefusalKind::Taken),
        (
            Attach { owner: Some(Owner { network: "a b".into(), container: "c".into(), workload: None }), ..good },
            RefusalKind::Invalid,
        ),
    ];
    for (request, expected) in cases {
        let (kind, text) = refusal(&node, Request::PodsAttach(request.clone()));
        assert_eq!(kind, expected, "{request:?}: {text}");
    }
}
