//! The route table of the data plane: longest-prefix match to a [`NextHop`] that carries
//! everything encapsulation needs. Control builds a [`Fib`] and publishes it; workers only read.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod dir24;
mod poptrie;
mod prefix;
mod publish;
mod ranked;
#[cfg(test)]
mod scan;
mod sparse;

use ipnet::IpNet;

use crate::ids::{IfIndex, PodId};
use crate::wire::{Mac, OuterTemplate};

pub use dir24::Dir24;
pub use poptrie::Poptrie;
pub use prefix::{Key, NONE};
pub use publish::{Publisher, Reader};

/// Where a packet goes. Resolved by control, never per packet.
#[derive(Clone, Debug)]
pub enum NextHop {
    /// A pod range of another node: encapsulate and send on the uplink.
    Remote(Remote),
    /// A pod of this node: rewrite the MACs and hand it over.
    Local(LocalPod),
    /// Our own range without a pod, or a peer that cannot be reached: drop.
    Blackhole,
}

/// A remote node.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The outer headers and the inner Ethernet header, ready but for four fields.
    pub outer: OuterTemplate,
    /// The largest inner IP packet, in bytes, that fits the path.
    pub mtu: u16,
}

/// A pod on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub id: PodId,
    /// The host end of the pod's veth pair.
    pub ifindex: IfIndex,
    /// The pod's own MAC: the inner destination.
    pub mac: Mac,
    /// The host end's MAC: the inner source, which the pod knows as its gateway.
    pub gateway_mac: Mac,
}

/// All routes of a node, both families. Never changes once built.
#[derive(Debug)]
pub struct Fib {
    v4: Dir24,
    v6: Poptrie,
    /// Sorted by prefix; a route's place here, counted from 1, is the index that look-ups give.
    routes: Vec<(IpNet, NextHop)>,
}

impl Default for Fib {
    fn default() -> Self {
        Self::build([])
    }
}

impl Fib {
    /// Builds the table. Host bits of a prefix are ignored; of equal prefixes the last one counts.
    pub fn build(routes: impl IntoIterator<Item = (IpNet, NextHop)>) -> Self {
        let mut routes: Vec<_> = routes.into_iter().map(|(net, hop)| (net.trunc(), hop)).collect();
        // Next hops are large: they are moved once. Equal prefixes stay in their order.
        routes.sort_by_cached_key(|(net, _)| *net);
        routes.dedup_by(|later, earlier| {
            let is_same = later.0 == earlier.0;
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
        let nets = || routes.iter().map(|(net, _)| net).zip(1..);
        let v4 = Dir24::build(nets().filter_map(|(net, index)| match net {
            IpNet::V4(net) => Some((net.addr().to_bits(), net.prefix_len(), index)),
            IpNet::V6(_) => None,
        }));
        let v6 = Poptrie::build(nets().filter_map(|(net, index)| match net {
            IpNet::V6(net) => Some((net.addr().to_bits(), net.prefix_len(), index)),
            IpNet::V4(_) => None,
        }));
        Self { v4, v6, routes }
    }

    /// The next hop for an IPv4 destination in host order.
    #[inline]
    pub fn lookup_v4(&self, destination: u32) -> Option<&NextHop> {
        self.next_hop(self.v4.lookup(destination)?)
    }

    /// The next hop for an IPv6 destination in host order.
    #[inline]
    pub fn lookup_v6(&self, destination: u128) -> Option<&NextHop> {
        self.next_hop(self.v6.lookup(destination)?)
    }

    /// Writes the index of each destination's next hop, or [`NONE`], to the same place of
    /// `indexes`; the shorter slice decides how many.
    pub fn lookup_v4_burst(&self, destinations: &[u32], indexes: &mut [u32]) {
        self.v4.lookup_burst(destinations, indexes);
    }

    /// As [`Fib::lookup_v4_burst`], for IPv6.
    pub fn lookup_v6_burst(&self, destinations: &[u128], indexes: &mut [u32]) {
        self.v6.lookup_burst(destinations, indexes);
    }

    /// The next hop that an index from this table's burst look-ups stands for; `None` for [`NONE`].
    #[inline]
    pub fn next_hop(&self, index: u32) -> Option<&NextHop> {
        self.routes.get((index as usize).wrapping_sub(1)).map(|(_, hop)| hop)
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// All routes, sorted by prefix, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNet, &NextHop)> {
        self.routes.iter().map(|(net, hop)| (*net, hop))
    }

    /// Bytes that the look-up structures occupy, next hops not counted.
    pub fn memory_bytes(&self) -> usize {
        self.v4.memory_bytes() + self.v6.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: u16) -> NextHop {
        let mac = |last: u16| Mac([2, 0, 0, 0, 0, u8::try_from(last).unwrap()]);
        NextHop::Local(LocalPod {
            id: PodId::new(id).unwrap(),
            ifindex: IfIndex(u32::from(id) + 100),
            mac: mac(id),
            gateway_mac: mac(0),
        })
    }

    fn pod_id(hop: Option<&NextHop>) -> Option<u16> {
        match hop {
            Some(NextHop::Local(pod)) => Some(pod.id.get()),
            _ => None,
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> u32 {
        text.parse::<std::net::Ipv4Addr>().unwrap().to_bits()
    }

    fn table() -> Fib {
        Fib::build([
            (net("fd00:244:1::5/128"), pod(5)),
            (net("10.244.1.0/24"), NextHop::Blackhole),
            (net("10.244.1.5/32"), pod(4)),
            (net("10.244.1.6/32"), pod(6)),
            (net("10.244.1.5/32"), pod(5)),
        ])
    }

    #[test]
    fn a_pod_is_found_by_either_address() {
        let fib = table();
        assert_eq!(pod_id(fib.lookup_v4(address("10.244.1.5"))), Some(5));
        let v6 = "fd00:244:1::5".parse::<std::net::Ipv6Addr>().unwrap().to_bits();
        assert_eq!(pod_id(fib.lookup_v6(v6)), Some(5));
        assert!(fib.lookup_v6(v6 + 1).is_none());
    }

    #[test]
    fn an_unassigned_address_of_ours_is_a_blackhole_and_a_foreign_one_has_no_route() {
        let fib = table();
        assert!(matches!(fib.lookup_v4(address("10.244.1.7")), Some(NextHop::Blackhole)));
        assert!(fib.lookup_v4(address("10.244.2.7")).is_none());
    }

    #[test]
    fn a_burst_gives_indexes_of_next_hops() {
        let fib = table();
        let mut indexes = [0; 3];
        fib.lookup_v4_burst(&["10.244.1.6", "8.8.8.8", "10.244.1.5"].map(address), &mut indexes);
        assert_eq!(indexes.map(|index| pod_id(fib.next_hop(index))), [Some(6), None, Some(5)]);
        assert_eq!(indexes[1], NONE);
    }

    #[test]
    fn routes_are_listed_once_and_in_order() {
        let fib = table();
        let nets: Vec<_> = fib.iter().map(|(net, _)| net.to_string()).collect();
        assert_eq!(nets, ["10.244.1.0/24", "10.244.1.5/32", "10.244.1.6/32", "fd00:244:1::5/128"]);
        assert_eq!(fib.len(), 4);
        assert!(!fib.is_empty() && Fib::default().is_empty());
    }
}
