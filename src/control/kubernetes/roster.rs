//! The nodes of the cluster as last heard of, and what they come to for this one. Pure: no clock, no network.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::announce::Announcement;
use super::flannel::{self, Keys};
use super::net_conf::NetConf;
use super::object::Object;
use crate::config::{Members, OwnNode, Peer, hashed_mac};
use crate::wire::Mac;

/// The nodes by name.
#[derive(Debug)]
pub struct Roster {
    own_name: String,
    net_conf: NetConf,
    nodes: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    node: Object,
    /// As a peer; `None` while it does not take part, an error when what it says cannot be understood.
    peer: Result<Option<Arc<Peer>>, String>,
}

/// What a roster comes to.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// This node, or why it cannot be one yet.
    pub own: Result<OwnNode, String>,
    pub members: Members,
    /// Nodes that cannot be peers, each by name and with the reason, and what else should be known.
    pub problems: Vec<String>,
    /// How many nodes there are.
    pub nodes: usize,
}

impl Roster {
    pub fn new(own_name: &str, net_conf: NetConf) -> Self {
        Self { own_name: own_name.to_owned(), net_conf, nodes: BTreeMap::new() }
    }

    /// Takes a node as it is now. Says whether anything that matters has changed.
    pub fn apply(&mut self, node: Object) -> bool {
        if self.nodes.get(&node.name).is_some_and(|entry| entry.node.is_like(&node)) {
            return false;
        }
        let peer = if node.name == self.own_name { Ok(None) } else { flannel::peer(&node, &self.net_conf) };
        let peer = peer.map(|peer| peer.map(Arc::new));
        self.nodes.insert(node.name.clone(), Entry { node, peer });
        true
    }

    /// Forgets a node. Says whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        self.nodes.remove(name).is_some()
    }

    /// All nodes.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.nodes.values().map(|entry| &entry.node)
    }

    /// This node's own object.
    pub fn own(&self) -> Option<&Object> {
        self.nodes.get(&self.own_name).map(|entry| &entry.node)
    }

    /// What it comes to, for a node that has announced `announced`, if anything. Takes time in proportion to the
    /// nodes.
    pub fn cluster(&self, announced: Option<&Announcement>) -> Cluster {
        let (mut problems, mut peers) = (Vec::new(), Vec::new());
        for (name, entry) in &self.nodes {
            match &entry.peer {
                Ok(Some(peer)) => peers.push((&entry.node, peer)),
                Ok(None) => {}
                Err(reason) => problems.push(format!("node {name} is left out: {reason}")),
            }
        }
        peers.sort_by_key(|(node, _)| rank(node));
        problems.extend(self.unreached(&peers));
        let own = self.own_node(announced, &peers, &mut problems);
        let members = Members {
            pod_cidrs: self.net_conf.pod_cidrs(),
            vni: self.net_conf.vni,
            port: self.net_conf.port,
            direct_routing: self.net_conf.direct_routing,
            gbp: self.net_conf.gbp,
            underlay_mtu: self.net_conf.mtu,
            underlay_is_ipv6: self.net_conf.underlay_is_ipv6(),
            peers: peers.into_iter().map(|(_, peer)| Arc::clone(peer)).collect(),
        };
        Cluster { own, members, problems, nodes: self.nodes.len() }
    }

    /// What is known of this node, or why it cannot be one yet.
    fn own_node(
        &self,
        announced: Option<&Announcement>,
        peers: &[(&Object, &Arc<Peer>)],
        problems: &mut Vec<String>,
    ) -> Result<OwnNode, String> {
        let name = &self.own_name;
        let own = self.own().ok_or_else(|| {
            format!(
                "there is no node {name} in the Kubernetes API; wait for the kubelet to register it, or set node.name"
            )
        })?;
        let pod_cidrs = flannel::pod_cidrs(own, &self.net_conf)
            .map_err(|reason| format!("node {name}, which is this one: {reason}"))?;
        let missing = [self.net_conf.v4, self.net_conf.v6].into_iter().flatten().find(|cluster| {
            let is_ipv6 = cluster.addr().is_ipv6();
            !pod_cidrs.iter().any(|range| range.addr().is_ipv6() == is_ipv6)
        });
        if let Some(cluster) = missing {
            let family = if cluster.addr().is_ipv6() { "IPv6" } else { "IPv4" };
            return Err(format!(
                "waiting for node {name} to get an {family} range in spec.podCIDRs: the controller manager gives it \
                 (--allocate-node-cidrs, --cluster-cidr {cluster})"
            ));
        }
        let mut wanted = |keys| {
            flannel::wanted_underlay(own, keys).unwrap_or_else(|problem| {
                problems.push(problem);
                None
            })
        };
        let underlay = wanted(flannel::keys(&self.net_conf));
        let underlay6 = flannel::second_keys(&self.net_conf).and_then(wanted);
        let (vtep_mac, vtep_mac6) = self.own_macs(own, announced, peers, problems);
        Ok(OwnNode { pod_cidrs, underlay, vtep_mac, underlay6, vtep_mac6 })
    }

    /// The MACs of the first VTEP and of the second, if there are to be two: what this daemon has announced, or an earlier
    /// one has, so that they stay; else one that follows from the node's name, for both. Another one if a node that goes
    /// before has it. If the first changes the second does: of a change of one family alone Flannel's nodes take no notice
    /// (`handleUpdateLeaseEvent` in `pkg/subnet/kube/kube.go`).
    fn own_macs(
        &self,
        own: &Object,
        announced: Option<&Announcement>,
        peers: &[(&Object, &Arc<Peer>)],
        problems: &mut Vec<String>,
    ) -> (Mac, Option<Mac>) {
        let of_name = || (0_u32..).map(|nth| hashed_mac(format!("{}/{nth}", self.own_name).as_bytes()));
        let present = |keys: Keys| {
            let announced = announced.and_then(|announcement| announcement.end(keys)).map(|end| end.mac);
            announced.or_else(|| flannel::vtep_mac(own, keys).filter(|mac| mac.is_unicast()))
        };
        let goes_before = |node: &Object| !flannel::is_podwire(node) || rank(node) < rank(own);
        let mut choose = |mac_of: fn(&Peer) -> Option<Mac>, present: Option<Mac>, first: Option<Mac>| {
            let has_it = |mac, (node, peer): &&(&Object, &Arc<Peer>)| mac_of(peer) == Some(mac) && goes_before(node);
            let taken = |mac| peers.iter().find(|other| has_it(mac, other)).map(|(node, _)| &node.name);
            if let Some((mac, other)) = present.and_then(|mac| Some((mac, taken(mac)?))) {
                problems.push(format!(
                    "the VTEP MAC {mac} of this node is that of node {other} too; this node takes another one"
                ));
            }
            let mut candidates = present.into_iter().chain(first).chain(of_name());
            candidates.find(|mac| taken(*mac).is_none()).unwrap_or_default()
        };
        let was = present(flannel::keys(&self.net_conf));
        let first = choose(|peer| Some(peer.vtep_mac), was, None);
        let second = flannel::second_keys(&self.net_conf).map(|keys| {
            let stays = was.is_none_or(|was| was == first);
            choose(|peer| peer.second.map(|end| end.mac), present(keys).filter(|_| stays), Some(first))
        });
        (first, second)
    }

    /// What pods of other nodes cannot be reached although their nodes take part: IPv6 to Flannel's nodes takes a second
    /// VTEP at both ends.
    fn unreached(&self, peers: &[(&Object, &Arc<Peer>)]) -> Option<String> {
        let keys = flannel::second_keys(&self.net_conf)?;
        let says = |key| self.own().is_some_and(|own| own.annotation(key).is_some());
        let is_without = says(flannel::V4.data) && !says(keys.data);
        let flannels = peers.iter().filter(|(node, _)| !flannel::is_podwire(node));
        let nodes: Vec<_> = flannels.filter(|(_, peer)| is_without || peer.second.is_none()).collect();
        let ((first, _), count) = (nodes.first()?, nodes.len());
        let why = if is_without {
            "this node has no IPv6 VTEP, to which they would answer: give its uplink an IPv6 address, or set node.underlay6"
        } else {
            "they have published no IPv6 VTEP that can be understood (annotations backend-v6-data, public-ipv6)"
        };
        Some(format!("IPv6 pods of {count} Flannel node(s) ({}, …) are not reached: {why}", first.name))
    }
}

/// Of two nodes that claim the same thing, the older one has it; of the same age, the one whose name is first.
fn rank(node: &Object) -> (&str, &str) {
    (&node.created, &node.name)
}

#[cfg(test)]
mod tests {
    use super::super::flannel::{
        BACKEND_DATA, BACKEND_TYPE, BACKEND_V6_DATA, IPV6_VTEP, MANAGED, NODE_PUBLIC_IP, PUBLIC_IP, PUBLIC_IPV6,
        VERSION,
    };
    use super::*;
    use crate::config::Mode;
    use crate::wire::TunnelEnd;

    const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;

    fn node(name: &str, created: u8, range: &str) -> Object {
        Object {
            name: name.to_owned(),
            created: format!("2026-01-01T00:00:{created:02}Z"),
            pod_cidrs: vec![range.to_owned()],
            ..Object::default()
        }
    }

    fn published(mut node: Object, address: &str, mac: &str, is_podwire: bool) -> Object {
        let data = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
        let all = [(MANAGED, "true"), (BACKEND_TYPE, "vxlan"), (BACKEND_DATA, &data), (PUBLIC_IP, address)];
        node.annotations.extend(all.map(|(key, value)| (key.to_owned(), value.to_owned())));
        if is_podwire {
            node.annotations.insert(VERSION.to_owned(), "1".to_owned());
        }
        node
    }

    fn roster(nodes: impl IntoIterator<Item = Object>) -> Roster {
        roster_by(NET_CONF, nodes)
    }

    fn roster_by(net_conf: &str, nodes: impl IntoIterator<Item = Object>) -> Roster {
        let mut roster = Roster::new("a", NetConf::parse(net_conf).unwrap());
        for node in nodes {
            roster.apply(node);
        }
        roster
    }

    fn announced(mac: Mac) -> Announcement {
        let end = TunnelEnd { underlay: "192.168.1.2".parse().unwrap(), mac };
        let vni = NetConf::parse(NET_CONF).unwrap().vni;
        Announcement { vni, v4: Some(end), v6: None, mode: Mode::Adaptive }
    }

    #[test]
    fn waits_for_the_node_and_then_for_its_ranges() {
        let waits = |roster: &Roster| roster.cluster(None).own.unwrap_err();
        assert!(waits(&roster([])).contains("no node a"));
        let mut own = node("a", 1, "");
        own.pod_cidrs.clear();
        assert!(waits(&roster([own])).contains("waiting for node a to get an IPv4 range in spec.podCIDRs"));
        assert!(waits(&roster([node("a", 1, "x")])).contains("not a range"));
        let cluster = roster([node("a", 1, "10.244.1.0/24")]).cluster(None);
        assert_eq!(cluster.own.unwrap().pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        assert!(cluster.members.peers.is_empty());
    }

    #[test]
    fn the_older_of_two_nodes_goes_first_whatever_they_are_called() {
        let old = published(node("z", 1, "10.244.0.0/24"), "192.168.1.4", "02:00:00:00:00:04", true);
        let young = published(node("b", 2, "10.244.0.0/24"), "192.168.1.3", "02:00:00:00:00:03", true);
        let cluster = roster([node("a", 3, "10.244.1.0/24"), young, old]).cluster(None);
        let names: Vec<_> = cluster.members.peers.iter().map(|peer| peer.name.clone()).collect();
        assert_eq!((names, cluster.nodes), (vec!["z".to_owned(), "b".to_owned()], 3));
    }

    #[test]
    fn a_hostile_node_is_named_and_alone_left_out() {
        let good = published(node("b", 1, "10.244.2.0/24"), "192.168.1.3", "02:00:00:00:00:03", false);
        let bad = published(node("c", 1, "10.244.3.0/24"), "$(reboot)", "02:00:00:00:00:04", false);
        let cluster = roster([node("a", 1, "10.244.1.0/24"), good, bad]).cluster(None);
        assert_eq!(cluster.members.peers.len(), 1);
        assert!(cluster.problems.len() == 1 && cluster.problems[0].starts_with("node c is left out: "), "{cluster:?}");
    }

    #[test]
    fn the_own_mac_is_the_published_one_else_follows_from_the_name() {
        let mac = |roster: &Roster| roster.cluster(None).own.unwrap().vtep_mac;
        let own = node("a", 5, "10.244.1.0/24");
        let fresh = mac(&roster([own.clone()]));
        assert!(fresh.is_unicast() && fresh == mac(&roster([own.clone()])));
        let was = published(own.clone(), "192.168.1.2", "02:00:00:00:00:aa", false);
        assert_eq!(mac(&roster([was])).to_string(), "02:00:00:00:00:aa");
        let broken = published(own.clone(), "192.168.1.2", "01:00:00:00:00:aa", false);
        assert_eq!(mac(&roster([broken])), fresh);
        let overwritten = published(own, "192.168.1.2", "02:00:00:00:00:bb", false);
        let announced = announced(fresh);
        assert_eq!(roster([overwritten]).cluster(Some(&announced)).own.unwrap().vtep_mac, fresh);
    }

    #[test]
    fn of_two_nodes_with_one_mac_the_younger_podwire_takes_another() {
        let was =
            |name, created| published(node(name, created, "10.244.1.0/24"), "192.168.1.2", "02:00:00:00:00:aa", true);
        for (created, is_podwire, moves) in [(1, true, true), (9, true, false), (9, false, true)] {
            let mut other = was("b", created);
            if !is_podwire {
                other.annotations.remove(VERSION);
            }
            let cluster = roster([was("a", 5), other]).cluster(None);
            let moved = cluster.own.unwrap().vtep_mac.to_string() != "02:00:00:00:00:aa";
            assert_eq!((moved, cluster.problems.len()), (moves, usize::from(moves)), "{created} {is_podwire}");
        }
    }

    const DUAL: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
        "Backend": {"Type": "vxlan"}}"#;

    /// A dual-stack node that has published both VTEPs, with these MACs.
    fn dual(name: &str, created: u8, macs: [&str; 2], is_podwire: bool) -> Object {
        let mut node = published(node(name, created, "10.244.1.0/24"), "192.168.1.2", macs[0], is_podwire);
        node.pod_cidrs.push("fd00:244:1::/64".to_owned());
        node.annotations.insert(BACKEND_V6_DATA.to_owned(), format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, macs[1]));
        node.annotations.insert(PUBLIC_IPV6.to_owned(), "fd00::2".to_owned());
        node.annotations.insert(IPV6_VTEP.to_owned(), "true".to_owned());
        node
    }

    fn dual_roster(nodes: impl IntoIterator<Item = Object>) -> Roster {
        roster_by(DUAL, nodes)
    }

    #[test]
    fn a_second_vtep_has_a_mac_that_stays_and_both_change_together() {
        let macs = |roster: &Roster| {
            let own = roster.cluster(None).own.unwrap();
            (own.vtep_mac.to_string(), own.vtep_mac6.unwrap().to_string())
        };
        let [one, two, three] = ["02:00:00:00:00:aa", "02:00:00:00:00:bb", "02:00:00:00:00:cc"];
        let kept = (one.to_owned(), two.to_owned());
        assert_eq!(macs(&dual_roster([dual("a", 5, [one, two], false)])), kept);
        let fresh = Object { annotations: BTreeMap::new(), ..dual("a", 5, [one, two], false) };
        let (first, second) = macs(&dual_roster([fresh]));
        assert_eq!(first, second);
        // MACs of different tunnels do not clash.
        assert_eq!(macs(&dual_roster([dual("a", 5, [one, two], true), dual("b", 1, [two, one], true)])), kept);
        let (first, second) = macs(&dual_roster([dual("a", 5, [one, two], true), dual("b", 1, [one, three], true)]));
        assert!(first != one && second == first, "{first} {second}");
        let moved = macs(&dual_roster([dual("a", 5, [one, two], true), dual("b", 1, [three, two], true)]));
        assert_eq!(moved, (one.to_owned(), one.to_owned()));
        assert_eq!(roster([node("a", 1, "10.244.1.0/24")]).cluster(None).own.unwrap().vtep_mac6, None);
    }

    #[test]
    fn what_flannel_nodes_are_not_reached_by_ipv6_is_told() {
        let own = dual("a", 1, ["02:00:00:00:00:01"; 2], true);
        let flannel = dual("c", 2, ["02:00:00:00:00:02", "02:00:00:00:00:03"], false);
        let problems = |nodes: [&Object; 2]| dual_roster(nodes.map(Clone::clone)).cluster(None).problems;
        assert_eq!(problems([&own, &flannel]), [""; 0]);
        let mut silent = flannel.clone();
        silent.annotations.remove(PUBLIC_IPV6);
        let [told] = &problems([&own, &silent])[..] else { panic!("one problem") };
        assert!(told.contains("1 Flannel node(s) (c, …)") && told.contains("published no IPv6 VTEP"), "{told}");
        let mut lone = own.clone();
        lone.annotations.remove(BACKEND_V6_DATA);
        let [told] = &problems([&lone, &flannel])[..] else { panic!("one problem") };
        assert!(told.contains("this node has no IPv6 VTEP"), "{told}");
        assert_eq!(problems([&lone, &dual("b", 2, ["02:00:00:00:00:02"; 2], true)]), [""; 0]);
    }

    #[test]
    fn an_operators_address_goes_to_the_configuration() {
        let mut own = node("a", 1, "10.244.1.0/24");
        own.annotations.insert(NODE_PUBLIC_IP.to_owned(), "192.168.9.9".to_owned());
        let cluster = roster([own.clone()]).cluster(None);
        assert_eq!(cluster.own.unwrap().underlay, Some("192.168.9.9".parse().unwrap()));
        own.annotations.insert(NODE_PUBLIC_IP.to_owned(), "nine".to_owned());
        let cluster = roster([own]).cluster(None);
        assert!(cluster.own.unwrap().underlay.is_none() && cluster.problems[0].contains("\"nine\""));
    }

    #[test]
    fn only_what_matters_is_a_change() {
        let mut roster = roster([]);
        let mut node = node("b", 1, "10.244.2.0/24");
        assert!(roster.apply(node.clone()));
        node.version = "2".to_owned();
        assert!(!roster.apply(node.clone()));
        node.pod_cidrs = vec!["10.244.3.0/24".to_owned()];
        assert!(roster.apply(node));
        assert!(roster.remove("b") && !roster.remove("b"));
    }
}
