//! The file's configuration with what a cluster's registry knows of its nodes: the same kind of configuration as a file
//! alone gives, checked by the same rules. A file is taken whole or not at all; of a registry, which others write to,
//! each node that is unfit is left out and named.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Config, Node, Peer, check, to_bits};
use crate::wire::{Mac, TunnelEnd, Vni};

/// A cluster as its registry tells of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Members {
    /// The ranges of all pods.
    pub pod_cidrs: Vec<IpNet>,
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// Whether nodes of one link do without the tunnel.
    pub direct_routing: bool,
    /// Whether the kernel's devices take group policies.
    pub gbp: bool,
    /// The MTU of the underlay where it is less than the uplink's, in bytes.
    pub underlay_mtu: Option<u32>,
    /// The family of all VTEP addresses.
    pub underlay_is_ipv6: bool,
    /// The other nodes. Of those that claim the same thing, the first has it.
    pub peers: Vec<Arc<Peer>>,
}

/// What the registry says of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnNode {
    /// At most one of each family, at least one.
    pub pod_cidrs: Vec<IpNet>,
    /// Goes before `node.underlay` of the file.
    pub underlay: Option<IpAddr>,
    /// `node.vtep_mac` of the file goes before it.
    pub vtep_mac: Mac,
    /// Goes before `node.underlay6` of the file.
    pub underlay6: Option<IpAddr>,
    /// The MAC of the second VTEP, if there is to be one; `node.vtep_mac6` of the file goes before it.
    pub vtep_mac6: Option<Mac>,
}

/// A configuration, and what of the registry is not in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    pub config: Config,
    /// Nodes that were left out, each by name and with the reason.
    pub left_out: Vec<String>,
}

impl Config {
    /// This configuration with a cluster's ranges, tunnel and peers. Peers with one of `own_addresses`, those of this
    /// machine, are left out. Fails, with the reason, when what the registry says of this node cannot be.
    pub fn join(&self, own: &OwnNode, members: &Members, own_addresses: &BTreeSet<IpAddr>) -> Result<Joined, String> {
        let mut config = self.clone();
        config.vxlan.device = self.device_of(members.vni);
        (config.vxlan.vni, config.vxlan.port) = (members.vni, members.port);
        (config.vxlan.direct_routing, config.vxlan.gbp) = (members.direct_routing, members.gbp);
        config.vxlan.underlay_mtu = members.underlay_mtu;
        config.cluster.pod_cidrs.clone_from(&members.pod_cidrs);
        config.cluster.underlay_is_ipv6 = Some(members.underlay_is_ipv6);
        config.node.pod_cidrs.clone_from(&own.pod_cidrs);
        config.node.underlay = own.underlay.or(self.node.underlay);
        let mac = self.node.vtep_mac.unwrap_or(own.vtep_mac);
        config.node.vtep_mac = Some(mac);
        (config.node.underlay6, config.node.vtep_mac6) = match own.vtep_mac6 {
            Some(mac) => (own.underlay6.or(self.node.underlay6), self.node.vtep_mac6.or(Some(mac))),
            None => (None, None),
        };

        let mut claims = Claims::new(own, members, own_addresses);
        claims.take_own(&self.node.name, &config.node, own.underlay)?;
        let mut left_out = Vec::new();
        for peer in &members.peers {
            if let Err(reason) = claims.check(peer) {
                left_out.push(format!("node {} is left out: {reason}", peer.name));
                continue;
            }
            let (name, mut peer) = (&peer.name, Arc::clone(peer));
            if let Err(reason) = peer.second.map_or(Ok(()), |end| claims.check_second(end)) {
                left_out.push(format!("the second VTEP of node {} is left out: {reason}", peer.name));
                Arc::make_mut(&mut peer).second = None;
            }
            claims.take(name, &peer);
            config.peers.push(peer);
        }
        Ok(Joined { config, left_out })
    }

    /// What the VXLAN device is called once its VNI is known: as the file has it, or after the VNI.
    pub fn device_of(&self, vni: Vni) -> String {
        if self.vxlan.device == default_device(self.vxlan.vni) {
            default_device(vni)
        } else {
            self.vxlan.device.clone()
        }
    }
}

fn default_device(vni: Vni) -> String {
    format!("podwire.{}", vni.get())
}

/// What nodes have taken so far, and whose it is.
struct Claims<'m> {
    members: &'m Members,
    own_addresses: &'m BTreeSet<IpAddr>,
    underlays: HashMap<IpAddr, &'m str>,
    macs: HashMap<Mac, &'m str>,
    /// Of the second tunnel.
    second_macs: HashMap<Mac, &'m str>,
    /// Only if some of those that are asked for overlap.
    ranges: Option<Ranges<'m>>,
}

/// Ranges apart from each other, each with its node, by family and first address.
type Ranges<'m> = BTreeMap<(bool, u128), (IpNet, &'m str)>;

impl<'m> Claims<'m> {
    fn new(own: &OwnNode, members: &'m Members, own_addresses: &'m BTreeSet<IpAddr>) -> Self {
        let ranges = members.peers.iter().flat_map(|peer| &peer.pod_cidrs).chain(&own.pod_cidrs);
        let nodes = members.peers.len() + 1;
        Self {
            members,
            own_addresses,
            underlays: HashMap::with_capacity(nodes),
            macs: HashMap::with_capacity(nodes),
            second_macs: HashMap::new(),
            ranges: (!are_apart(ranges)).then(Ranges::new),
        }
    }

    /// Takes this node's part, or says what is wrong with it.
    fn take_own(&mut self, name: &'m str, own: &Node, underlay: Option<IpAddr>) -> Result<(), String> {
        self.check_ranges(&own.pod_cidrs).map_err(|reason| format!("node {name}, which is this one: {reason}"))?;
        self.underlays.extend(underlay.map(|underlay| (underlay, name)));
        self.macs.extend(own.vtep_mac.map(|mac| (mac, name)));
        self.second_macs.extend(own.vtep_mac6.map(|mac| (mac, name)));
        self.take_ranges(name, &own.pod_cidrs);
        Ok(())
    }

    fn take(&mut self, name: &'m str, peer: &Peer) {
        self.underlays.extend(peer.ends().map(|end| (end.underlay, name)));
        self.macs.insert(peer.vtep_mac, name);
        self.second_macs.extend(peer.second.map(|end| (end.mac, name)));
        self.take_ranges(name, &peer.pod_cidrs);
    }

    fn take_ranges(&mut self, name: &'m str, ranges: &[IpNet]) {
        if let Some(taken) = &mut self.ranges {
            taken.extend(ranges.iter().map(|range| (start(range), (*range, name))));
        }
    }

    /// Why a peer cannot be one, if so.
    fn check(&self, peer: &Peer) -> Result<(), String> {
        if !check::is_dns_name(&peer.name) {
            return Err("its name is not one".to_owned());
        }
        self.check_underlay(peer.underlay, self.members.underlay_is_ipv6)?;
        check_mac(&self.macs, peer.vtep_mac)?;
        self.check_ranges(&peer.pod_cidrs)
    }

    /// Why a peer that can be one cannot have this second VTEP, if so.
    fn check_second(&self, end: TunnelEnd) -> Result<(), String> {
        self.check_underlay(end.underlay, true)?;
        check_mac(&self.second_macs, end.mac)
    }

    fn check_underlay(&self, underlay: IpAddr, is_ipv6: bool) -> Result<(), String> {
        if underlay.is_ipv6() != is_ipv6 {
            return Err(format!("its VTEP address {underlay} is not of the family that the cluster's are of"));
        }
        if let Some(reason) = check::unreachable_address(underlay) {
            return Err(format!("its VTEP address {underlay} {reason}"));
        }
        if let Some(range) = self.members.pod_cidrs.iter().find(|range| range.contains(&underlay)) {
            return Err(format!("its VTEP address {underlay} lies inside the pod range {range}"));
        }
        if self.own_addresses.contains(&underlay) {
            return Err(format!("its VTEP address {underlay} is an address of this node"));
        }
        match self.underlays.get(&underlay) {
            Some(other) => Err(format!("its VTEP address {underlay} is that of node {other} too")),
            None => Ok(()),
        }
    }

    fn check_ranges(&self, ranges: &[IpNet]) -> Result<(), String> {
        if ranges.is_empty() {
            return Err("it has no pod range".to_owned());
        }
        for (index, range) in ranges.iter().enumerate() {
            if ranges[..index].iter().any(|other| other.addr().is_ipv6() == range.addr().is_ipv6()) {
                return Err(format!("its pod range {range} is a second one of its family"));
            }
            if range.addr() != range.network() {
                return Err(format!("its pod range {range} has host bits set"));
            }
            if let Some(reason) = check::podless(range).or_else(|| check::too_small(range)) {
                return Err(format!("its pod range {range} {reason}"));
            }
            if !self.members.pod_cidrs.iter().any(|cluster| cluster.contains(range)) {
                let all: Vec<_> = self.members.pod_cidrs.iter().map(ToString::to_string).collect();
                return Err(format!("its pod range {range} is not inside the cluster's ({})", all.join(", ")));
            }
            if let Some((other, name)) = self.overlapping(range) {
                return Err(format!("its pod range {range} overlaps {other} of node {name}"));
            }
        }
        Ok(())
    }

    /// The first range that reaches into `range`. Ranges nest or are apart: of those that begin before its end, the last
    /// one does if any does.
    fn overlapping(&self, range: &IpNet) -> Option<&(IpNet, &'m str)> {
        let (is_ipv6, first) = start(range);
        let end = (is_ipv6, to_bits(range.broadcast()));
        let ranges = self.ranges.as_ref()?;
        let (_, last) = ranges.range((is_ipv6, 0)..=end).next_back()?;
        if last.0.contains(range) {
            return Some(last);
        }
        ranges.range((is_ipv6, first)..=end).next().map(|(_, claim)| claim)
    }
}

/// Whether no two ranges overlap, as in nearly every cluster: then none has to be looked for among the others.
fn are_apart<'r>(ranges: impl Iterator<Item = &'r IpNet>) -> bool {
    let mut ranges: Vec<_> = ranges.map(|range| (start(range), to_bits(range.broadcast()))).collect();
    ranges.sort_unstable();
    ranges.windows(2).all(|pair| pair[0].0.0 != pair[1].0.0 || pair[0].1 < pair[1].0.1)
}

fn check_mac(taken: &HashMap<Mac, &str>, mac: Mac) -> Result<(), String> {
    if !mac.is_unicast() {
        return Err(format!("its VTEP MAC {mac} is not a unicast address"));
    }
    match taken.get(&mac) {
        Some(other) => Err(format!("its VTEP MAC {mac} is that of node {other} too, and one of them must change")),
        None => Ok(()),
    }
}

fn start(range: &IpNet) -> (bool, u128) {
    (range.addr().is_ipv6(), to_bits(range.network()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "[node]\nname='a'\nuplink='eth0'\n[dataplane]\nmode='kernel'\n[kubernetes]\n";

    fn peer(name: &str, last: u8, range: &str) -> Peer {
        Peer {
            name: name.to_owned(),
            underlay: IpAddr::from([192, 168, 1, last]),
            vtep_mac: Mac([2, 0, 0, 0, 0, last]),
            second: None,
            pod_cidrs: vec![range.parse().unwrap()],
            addresses: Vec::new(),
        }
    }

    fn members(peers: impl IntoIterator<Item = Peer>) -> Members {
        Members {
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            vni: Vni::new(7).unwrap(),
            port: 4789,
            direct_routing: true,
            gbp: true,
            underlay_mtu: Some(1400),
            underlay_is_ipv6: false,
            peers: peers.into_iter().map(Arc::new).collect(),
        }
    }

    fn own() -> OwnNode {
        OwnNode {
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            underlay: None,
            vtep_mac: Mac([2, 0, 0, 0, 0, 99]),
            underlay6: None,
            vtep_mac6: None,
        }
    }

    fn join(file: &str, own: &OwnNode, members: &Members) -> Result<Joined, String> {
        Config::parse(file).unwrap().join(own, members, &BTreeSet::from([IpAddr::from([192, 168, 1, 2])]))
    }

    #[test]
    fn what_the_registry_knows_takes_its_place_in_the_configuration() {
        let Joined { config, left_out } = join(FILE, &own(), &members(vec![peer("b", 3, "10.244.2.0/24")])).unwrap();
        assert_eq!(left_out, [""; 0]);
        assert!(!config.awaits_members() && Config::parse(FILE).unwrap().awaits_members());
        let vxlan = &config.vxlan;
        assert_eq!((vxlan.vni.get(), vxlan.port, vxlan.device.as_str()), (7, 4789, "podwire.7"));
        assert_eq!((vxlan.underlay_mtu, vxlan.direct_routing, vxlan.gbp), (Some(1400), true, true));
        assert_eq!((config.node.vtep_mac, config.node.underlay), (Some(Mac([2, 0, 0, 0, 0, 99])), None));
        assert_eq!(config.peers.len(), 1);
    }

    #[test]
    fn the_file_has_its_say_where_the_registry_leaves_it() {
        let file = FILE.replace("uplink", "underlay='192.168.1.2'\nvtep_mac='02:00:00:00:00:01'\nuplink")
            + "[vxlan]\ndevice='flannel.1'\n";
        let (mut own, members) = (own(), members(Vec::new()));
        let config = join(&file, &own, &members).unwrap().config;
        assert_eq!(config.vxlan.device, "flannel.1");
        assert_eq!(config.node.vtep_mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!(config.node.underlay, Some(IpAddr::from([192, 168, 1, 2])));
        own.underlay = Some(IpAddr::from([192, 168, 1, 9]));
        assert_eq!(join(&file, &own, &members).unwrap().config.node.underlay, own.underlay);
    }

    #[test]
    fn an_unfit_peer_is_left_out_by_name_and_the_others_stay() {
        let good = peer("b", 3, "10.244.2.0/24");
        let with = |change: fn(&mut Peer)| {
            let mut peer = peer("bad", 66, "10.244.66.0/24");
            change(&mut peer);
            peer
        };
        let cases: [(Peer, &str); 14] = [
            (with(|p| p.name = "../x".into()), "name"),
            (with(|p| p.underlay = "fd00::1".parse().unwrap()), "family"),
            (with(|p| p.underlay = "224.0.0.1".parse().unwrap()), "multicast"),
            (with(|p| p.underlay = "10.244.9.9".parse().unwrap()), "inside the pod range"),
            (with(|p| p.underlay = "192.168.1.2".parse().unwrap()), "address of this node"),
            (with(|p| p.underlay = "192.168.1.3".parse().unwrap()), "that of node b"),
            (with(|p| p.vtep_mac = Mac([1, 0, 0, 0, 0, 1])), "unicast"),
            (with(|p| p.vtep_mac = Mac([2, 0, 0, 0, 0, 3])), "that of node b"),
            (with(|p| p.vtep_mac = Mac([2, 0, 0, 0, 0, 99])), "that of node a"),
            (with(|p| p.pod_cidrs = Vec::new()), "no pod range"),
            (with(|p| p.pod_cidrs = vec!["10.96.0.0/16".parse().unwrap()]), "not inside the cluster's (10.244.0.0/16)"),
            (with(|p| p.pod_cidrs = vec!["10.244.2.128/25".parse().unwrap()]), "overlaps 10.244.2.0/24 of node b"),
            (with(|p| p.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()]), "overlaps 10.244.1.0/24 of node a"),
            (
                with(|p| p.pod_cidrs = vec!["10.244.3.0/24".parse().unwrap(), "10.244.4.0/24".parse().unwrap()]),
                "second",
            ),
        ];
        let last = peer("z", 77, "10.244.77.0/24");
        for (bad, reason) in cases {
            let joined = join(FILE, &own(), &members(vec![good.clone(), bad.clone(), last.clone()])).unwrap();
            assert_eq!(joined.config.peers, [good.clone(), last.clone()].map(Arc::new), "{reason}");
            let [said] = &joined.left_out[..] else { panic!("{reason}: {:?}", joined.left_out) };
            assert!(said.starts_with(&format!("node {} is left out: ", bad.name)) && said.contains(reason), "{said}");
        }
    }

    #[test]
    fn a_second_vtep_that_cannot_be_is_left_out_and_its_node_stays() {
        let end = |underlay: &str, last| {
            Some(TunnelEnd { underlay: underlay.parse().unwrap(), mac: Mac([2, 0, 0, 0, 6, last]) })
        };
        let peers: Vec<_> = [
            ("b", 3, end("fd00::3", 3), None),
            ("c", 4, end("fd00::3", 4), Some("its VTEP address fd00::3 is that of node b too")),
            ("d", 5, end("fd00::5", 3), Some("its VTEP MAC 02:00:00:00:06:03 is that of node b too")),
            ("e", 6, end("192.168.1.66", 6), Some("is not of the family")),
            ("f", 7, end("fd00::7", 99), Some("is that of node a too")),
        ]
        .into();
        let listed = peers.iter().map(|(name, last, second, _)| Peer {
            second: *second,
            ..peer(name, *last, &format!("10.244.{last}.0/24"))
        });
        let own =
            OwnNode { vtep_mac6: Some(Mac([2, 0, 0, 0, 6, 99])), underlay6: Some("fd00::2".parse().unwrap()), ..own() };
        let Joined { config, left_out } = join(FILE, &own, &members(listed)).unwrap();
        let kept: Vec<_> = config.peers.iter().map(|peer| (peer.name.as_str(), peer.second.is_some())).collect();
        assert_eq!(kept, [("b", true), ("c", false), ("d", false), ("e", false), ("f", false)]);
        for ((name, .., reason), said) in peers.iter().filter(|row| row.3.is_some()).zip(&left_out) {
            let begin = format!("the second VTEP of node {name} is left out: ");
            assert!(said.starts_with(&begin) && said.contains(reason.unwrap()), "{said}");
        }
        assert_eq!((config.node.underlay6, config.node.vtep_mac6), (own.underlay6, own.vtep_mac6));
        // In a cluster of one family the file's is of no use.
        let file = FILE.replace("uplink", "underlay6='fd00::9'\nuplink");
        let config = join(&file, &self::own(), &members(Vec::new())).unwrap().config;
        assert!(!config.wants_second());
    }

    #[test]
    fn of_two_nodes_with_one_range_the_first_keeps_it() {
        let twins = vec![peer("b", 3, "10.244.0.0/24"), peer("c", 4, "10.244.0.0/24")];
        let joined = join(FILE, &own(), &members(twins)).unwrap();
        assert_eq!(joined.config.peers[0].name, "b");
        assert_eq!(
            joined.left_out,
            ["node c is left out: its pod range 10.244.0.0/24 overlaps 10.244.0.0/24 of node b"]
        );
    }

    #[test]
    fn a_node_that_is_left_out_takes_no_range_from_others() {
        let unfit = Peer { vtep_mac: Mac([1, 0, 0, 0, 0, 1]), ..peer("b", 3, "10.244.0.0/24") };
        let joined = join(FILE, &own(), &members([unfit, peer("c", 4, "10.244.0.0/25")])).unwrap();
        let names: Vec<_> = joined.config.peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!((names, joined.left_out.len()), (vec!["c"], 1));
    }

    #[test]
    fn an_own_range_that_cannot_be_is_refused() {
        for (range, reason) in [("10.0.0.0/24", "not inside"), ("10.244.1.0/31", "too small")] {
            let own = OwnNode { pod_cidrs: vec![range.parse().unwrap()], ..own() };
            let error = join(FILE, &own, &members(Vec::new())).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
