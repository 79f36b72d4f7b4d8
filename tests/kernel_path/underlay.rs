//! The next hops of peers.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use podwire::config::Config;
use podwire::control::underlay::{Hop, NoHop};

use crate::harness::Host;
use crate::lab::{Lab, config};

type Hops = Vec<Result<Hop, NoHop>>;

/// The next hops of `peers` from node `a`.
fn hops(lab: &Lab, a: &Host, peers: &[&str]) -> Hops {
    let text = config(a, &[]).replace("[cluster]", &format!("underlay = \"{}\"\n[cluster]", a.underlay));
    let config = Config::parse(&text).unwrap();
    let peers: Vec<IpAddr> = peers.iter().map(|peer| peer.parse().unwrap()).collect();
    lab.kernel("a", |kernel| {
        let uplink = kernel.vtep(&config).unwrap().uplink;
        kernel.next_hops(&uplink, &peers).unwrap()
    })
}

/// Asks until `settled`, for a bounded time.
fn hops_when(lab: &Lab, a: &Host, peers: &[&str], settled: impl Fn(&Hops) -> bool) -> Hops {
    let start = Instant::now();
    loop {
        let hops = hops(lab, a, peers);
        if settled(&hops) || start.elapsed() > Duration::from_secs(10) {
            return hops;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn mac(lab: &Lab, node: &str) -> String {
    let shown = lab.ip(node, "-o link show eth0");
    shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
}

fn resolves_and_follows(ipv6: bool) {
    let Some(lab) = Lab::new(ipv6) else { return };
    let a = lab.node('a', 1);
    let peer = lab.node('b', 2).underlay.to_string();
    let peers = [peer.as_str()];
    assert_eq!(hops(&lab, &a, &peers), [Err(NoHop::Unresolved(peer.parse().unwrap()))], "nobody has asked yet");
    let found = hops_when(&lab, &a, &peers, |hops| hops[0].is_ok());
    assert_eq!(found[0].as_ref().unwrap().dst_mac.to_string(), mac(&lab, "b"));
    let entry = lab.ip("a", &format!("neigh show {peer}"));
    assert!(entry.contains("managed") && entry.contains("proto 240"), "the kernel keeps it resolved: {entry}");

    lab.ip("b", "link set eth0 address 02:00:00:00:0b:0b");
    lab.ip("a", &format!("neigh replace {peer} lladdr 02:00:00:00:0b:0b dev eth0 nud reachable"));
    let moved = hops(&lab, &a, &peers);
    assert_eq!(moved[0].as_ref().unwrap().dst_mac.to_string(), "02:00:00:00:0b:0b");
}

#[test]
fn a_peer_on_the_link_is_resolved_by_asking_and_followed_over_ipv4() {
    resolves_and_follows(false);
}

#[test]
fn a_peer_on_the_link_is_resolved_by_asking_and_followed_over_ipv6() {
    resolves_and_follows(true);
}

#[test]
fn a_peer_behind_a_gateway_is_reached_by_the_gateways_mac() {
    let Some(lab) = Lab::new(false) else { return };
    let a = lab.node('a', 1);
    lab.node('b', 2);
    lab.ip("a", "route add 172.16.0.0/16 via 192.168.1.3");
    let peers = ["172.16.0.7", "172.16.0.8"];
    for hop in hops_when(&lab, &a, &peers, |hops| hops.iter().all(Result::is_ok)) {
        let hop = hop.unwrap();
        assert_eq!((hop.via.to_string(), hop.dst_mac.to_string()), ("192.168.1.3".to_owned(), mac(&lab, "b")));
    }
}

#[test]
fn a_neighbour_is_kept_resolved_for_as_long_as_a_peer_is_behind_it() {
    let Some(lab) = Lab::new(false) else { return };
    let a = lab.node('a', 1);
    lab.node('b', 2);
    lab.ip("a", "route add 172.16.0.0/16 via 192.168.1.3");
    lab.ip("a", "neigh add 192.168.1.50 managed dev eth0");
    let managed = || lab.ip("a", "neigh show dev eth0").lines().filter(|line| line.contains("managed")).count();
    for (peers, expected) in [
        (&["172.16.0.7", "192.168.1.3", "192.168.1.4"][..], 3),
        (&["172.16.0.7", "192.168.1.4"], 3),
        (&["172.16.0.7"], 2),
        (&[], 1),
    ] {
        hops(&lab, &a, peers);
        assert_eq!(managed(), expected, "{peers:?}: {}", lab.ip("a", "neigh show"));
    }
    assert!(lab.ip("a", "neigh show 192.168.1.50").contains("managed"), "somebody else's");
}

#[test]
fn a_permanent_neighbour_is_used_and_left_permanent() {
    let Some(lab) = Lab::new(false) else { return };
    let a = lab.node('a', 1);
    lab.ip("a", "neigh add 192.168.1.3 lladdr 02:00:00:00:00:77 dev eth0 nud permanent");
    assert_eq!(hops(&lab, &a, &["192.168.1.3"])[0].as_ref().unwrap().dst_mac.to_string(), "02:00:00:00:00:77");
    assert!(lab.ip("a", "neigh show 192.168.1.3").contains("PERMANENT"));
}

#[test]
fn why_a_peer_is_not_reachable_is_named() {
    let Some(lab) = Lab::new(false) else { return };
    let a = lab.node('a', 1);
    lab.ip("a", "link add side type veth peer name side1");
    lab.ip("a", "link set side up");
    lab.ip("a", "route add 172.17.0.0/16 dev side");
    lab.ip("a", "route add unreachable 172.18.0.0/16");
    let found = hops(&lab, &a, &["172.16.0.1", "172.17.0.1", "172.18.0.1", "192.168.1.2"]);
    assert_eq!(
        found,
        [
            Err(NoHop::NoRoute),
            Err(NoHop::OtherDevice("side".to_owned())),
            Err(NoHop::NoRoute),
            Err(NoHop::NoRoute), // our own address
        ]
    );
}
