//! Where packets of pods for an address go, and why: the order in which `bpf/pod.h` and then the kernel decide.

use std::net::IpAddr;

use ipnet::IpNet;

use super::api::{Destination, Lookup, Path, Way};
use super::netlink::{NetlinkError, name_of};
use super::node::Node;
use super::wiring::Pod;
use crate::config::Peer;
use crate::steer::NatCheck;

impl Node {
    /// `podwire routes --lookup`.
    pub fn lookup(&mut self, address: IpAddr) -> Result<Lookup, NetlinkError> {
        if !is_unicast(address) {
            return Ok(undelivered(address, Destination::NotUnicast, "it goes no further than the pod's own link"));
        }
        if let Some(pod) = self.store.pods().iter().find(|pod| pod.addresses.contains(&address)) {
            return Ok(self.lookup_pod(address, pod));
        }
        if self.kernel.netlink.is_local(address)? {
            let why = "the kernel of this node takes it";
            return Ok(Lookup { path: Some(Path::Kernel), ..undelivered(address, Destination::Node, why) });
        }
        if let Some((peer, prefix)) = self.owner(address) {
            return Ok(self.lookup_peer(address, peer, prefix));
        }
        if let Some(range) = self.config.node.pod_cidrs.iter().copied().find(|range| range.contains(&address)) {
            let why = "no pod of this node has it: the sender is told that it is unreachable";
            return Ok(Lookup { prefix: Some(range), ..undelivered(address, Destination::Unassigned, why) });
        }
        self.lookup_outside(address)
    }

    fn lookup_pod(&self, address: IpAddr, pod: &Pod) -> Lookup {
        let told = self.describe(pod);
        let (path, why) = match (told.path, told.reason) {
            (Path::Fast, _) => self.unless_translated("from pod to pod inside the kernel, past the workers"),
            (Path::Kernel, why) => (Path::Kernel, why.unwrap_or_default()),
        };
        Lookup {
            address,
            to: Destination::Pod,
            prefix: Some(address.into()),
            name: Some(told.name),
            next_hop: Some(told.mac),
            device: Some(told.host_ifname),
            way: None,
            path: told.problem.is_none().then_some(path),
            why: told.problem.unwrap_or(why),
        }
    }

    fn lookup_peer(&self, address: IpAddr, peer: &Peer, prefix: IpNet) -> Lookup {
        let route = self.route(peer, prefix, self.served().as_ref());
        let (path, why) = match (route.path, route.reason) {
            (Path::Fast, _) => self.unless_translated(match route.way {
                Way::Vxlan => "a worker encapsulates it",
                Way::Direct => "a worker sends it without the tunnel: the peer is on the uplink's link",
            }),
            (Path::Kernel, why) => (Path::Kernel, why.unwrap_or_default()),
        };
        let device = match (path, route.way) {
            (Path::Fast, _) | (_, Way::Direct) => self.config.node.uplink.clone(),
            (Path::Kernel, Way::Vxlan) => self.device_to(route.underlay),
        };
        Lookup {
            address,
            to: Destination::Peer,
            prefix: Some(prefix),
            name: Some(route.peer),
            next_hop: route.next_hop.or_else(|| Some(route.underlay.to_string())),
            device: Some(device),
            way: Some(route.way),
            path: Some(path),
            why,
        }
    }

    /// The VXLAN device whose tunnel has an end at a peer's `underlay`.
    fn device_to(&self, underlay: IpAddr) -> String {
        let vtep = self.observed.vtep.as_ref();
        let is_second = vtep.is_some_and(|vtep| vtep.second.is_some() && underlay.is_ipv6());
        if is_second { self.config.vxlan.second_device() } else { self.config.vxlan.device.clone() }
    }

    fn lookup_outside(&mut self, address: IpAddr) -> Result<Lookup, NetlinkError> {
        let Some(way) = self.kernel.netlink.lookup(address)? else {
            return Ok(undelivered(address, Destination::Outside, "this node has no route to it"));
        };
        let links = self.kernel.netlink.links()?;
        let masquerade = self.config.cluster.masquerade && self.rules.problem().is_none();
        let source = if masquerade { "the node's" } else { "the pod's" };
        Ok(Lookup {
            next_hop: way.gateway.map(|gateway| gateway.to_string()),
            device: Some(name_of(&links, way.device)),
            path: Some(Path::Kernel),
            ..undelivered(
                address,
                Destination::Outside,
                &format!("outside of the overlay; by the routes of the node, with {source} address"),
            )
        })
    }

    /// The peer with the longest prefix for an address.
    fn owner(&self, address: IpAddr) -> Option<(&Peer, IpNet)> {
        let prefixes = self.config.peers.iter().flat_map(|peer| peer.prefixes().map(move |prefix| (&**peer, prefix)));
        prefixes.filter(|(_, prefix)| prefix.contains(&address)).max_by_key(|(_, prefix)| prefix.prefix_len())
    }

    /// The fast path, as far as the node translates no addresses.
    fn unless_translated(&self, why: &str) -> (Path, String) {
        match self.nat.check() {
            NatCheck::None => (Path::Fast, why.to_owned()),
            NatCheck::Lookup => {
                (Path::Fast, format!("{why}; but ICMP and flows that the node translates by the kernel path"))
            }
            NatCheck::Kernel => (Path::Kernel, self.nat.why()),
        }
    }
}

fn undelivered(address: IpAddr, to: Destination, why: &str) -> Lookup {
    let why = why.to_owned();
    Lookup { address, to, prefix: None, name: None, next_hop: None, device: None, way: None, path: None, why }
}

/// What `to_unicast` in `bpf/pod.h` says.
fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first < 224 && first != 0 && !address.is_loopback() && !address.is_link_local()
        }
        IpAddr::V6(address) => {
            let is_special = address.is_multicast() || address.is_unicast_link_local();
            !(is_special || address.is_unspecified() || address.is_loopback())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_on_a_link_is_no_unicast() {
        let is_unicast = |text: &str| is_unicast(text.parse().unwrap());
        let others =
            ["224.0.0.1", "255.255.255.255", "0.0.0.1", "127.0.0.1", "169.254.1.1", "ff02::1", "fe80::1", "::", "::1"];
        assert!(others.iter().all(|text| !is_unicast(text)));
        assert!(["10.244.1.7", "8.8.8.8", "fd00:244:1::7", "2001:db8::1"].iter().all(|text| is_unicast(text)));
    }
}
