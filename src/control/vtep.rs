//! Our ends of the tunnels, as the configuration and the uplink settle them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::kernel::{Kernel, KernelError, request};
use super::underlay;
use crate::config::{Config, Peer, derive_vtep_mac};
use crate::ids::IfIndex;
use crate::wire::{Mac, TunnelEnd};
use crate::xsk::Queues;

/// The largest MTU of an Ethernet device (`include/uapi/linux/if_ether.h`).
pub(super) const ETH_MAX_MTU: u32 = 65_535;

/// Outer Ethernet is not counted: inner Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
pub const OVERHEAD_V4: u32 = 50;
pub const OVERHEAD_V6: u32 = 70;

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5), asked of IPv4 too: below it
/// something is wrong.
pub(super) const MTU_MIN: u32 = 1280;

/// The device that carries the outer frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub index: IfIndex,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Global addresses only.
    pub addresses: Vec<IpAddr>,
    pub up: bool,
    pub queues: Queues,
}

/// Our end of the tunnel, as the configuration and the uplink settle it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    pub uplink: Uplink,
    /// The outer source address.
    pub underlay: IpAddr,
    pub mac: Mac,
    /// Our end of the IPv6 tunnel beside the IPv4 one.
    pub second: Option<TunnelEnd>,
    /// Why there is none although one is wanted.
    pub no_second: Option<String>,
    /// The MTU of the VXLAN devices and of pods, in bytes of an inner IP packet.
    pub mtu: u16,
    /// The addresses of the VXLAN devices: the first of each of the node's pod ranges.
    pub addresses: Vec<IpAddr>,
    /// The ends of peers' tunnels, by underlay address, that are reached without the tunnel.
    pub direct: BTreeSet<IpAddr>,
}

impl Vtep {
    /// The VXLAN device's address of the family of `address`: where packets of the node itself to
    /// `address` come from.
    pub fn source_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|source| source.is_ipv6() == address.is_ipv6())
    }

    /// Our end of the first tunnel.
    pub fn first(&self) -> TunnelEnd {
        TunnelEnd { underlay: self.underlay, mac: self.mac }
    }

    /// The ends of our tunnels, the first one first.
    pub fn ends(&self) -> impl Iterator<Item = TunnelEnd> {
        std::iter::once(self.first()).chain(self.second)
    }

    /// The peer's end of the tunnel by which packets for its `prefix` go: the second one takes what is IPv6 if both nodes
    /// have one, the first one all else.
    pub fn end_for(&self, peer: &Peer, prefix: &IpNet) -> TunnelEnd {
        let second = self.second.and(peer.second).filter(|_| prefix.addr().is_ipv6());
        second.unwrap_or(peer.first())
    }

    /// The underlay addresses of the peers' ends of tunnels that we have an end of too.
    pub fn ends_used(&self, peers: &[Arc<Peer>]) -> Vec<IpAddr> {
        let tunnels = 1 + usize::from(self.second.is_some());
        peers.iter().flat_map(|peer| peer.ends().take(tunnels)).map(|end| end.underlay).collect()
    }

    /// Whether packets for a peer's `prefix` do without the tunnel: its underlay address is then their gateway, which
    /// must be of their family.
    pub fn is_direct(&self, peer: &Peer, prefix: &IpNet) -> bool {
        let TunnelEnd { underlay, .. } = self.end_for(peer, prefix);
        prefix.addr().is_ipv6() == underlay.is_ipv6() && self.direct.contains(&underlay)
    }

    /// The addresses of the first VXLAN device, or of the second.
    pub fn addresses_on(&self, is_second: bool) -> impl Iterator<Item = IpAddr> {
        let has_two = self.second.is_some();
        self.addresses.iter().copied().filter(move |address| (has_two && address.is_ipv6()) == is_second)
    }
}

impl Kernel {
    /// Our end of the tunnel as it should be now. Changes nothing.
    pub fn vtep(&mut self, config: &Config) -> Result<Vtep, KernelError> {
        let uplink = self.uplink(&config.node.uplink)?;
        let wanted = |address: &&IpAddr| config.underlay_is_ipv6().is_none_or(|ipv6| address.is_ipv6() == ipv6);
        let underlay = config.node.underlay.or_else(|| uplink.addresses.iter().find(wanted).copied());
        let underlay = underlay.ok_or_else(|| KernelError::NoAddress(uplink.name.clone()))?;
        let local = self.netlink.addresses(None).map_err(request("list addresses"))?;
        let local: BTreeSet<IpAddr> = local.iter().map(|local| local.address.addr()).collect();
        check_underlay(config, &local, "node.underlay", underlay)?;
        let mac = config.node.vtep_mac.unwrap_or_else(|| derive_vtep_mac(underlay));
        check_peers(TunnelEnd { underlay, mac }, config.peers.iter().map(|peer| (&**peer, peer.first())))?;
        let (second, no_second) = match second(config, &uplink, &local) {
            Ok(second) => (second, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let overhead = if underlay.is_ipv6() || second.is_some() { OVERHEAD_V6 } else { OVERHEAD_V4 };
        let most = config.vxlan.underlay_mtu.unwrap_or(ETH_MAX_MTU).min(ETH_MAX_MTU);
        let mtu = uplink.mtu.min(most).saturating_sub(overhead);
        let mtu = u16::try_from(mtu).ok().filter(|mtu| u32::from(*mtu) >= MTU_MIN);
        let mtu = mtu.ok_or_else(|| KernelError::SmallMtu { uplink: uplink.name.clone(), mtu: uplink.mtu })?;
        let addresses = config.node.pod_cidrs.iter().map(IpNet::network).collect();
        let direct = self.direct(config, &uplink)?;
        Ok(Vtep { uplink, underlay, mac, second, no_second, mtu, addresses, direct })
    }

    /// The peers' ends of tunnels that are to be reached without one, by underlay address.
    fn direct(&mut self, config: &Config, uplink: &Uplink) -> Result<BTreeSet<IpAddr>, KernelError> {
        let peers = config.peers.iter().filter(|_| config.vxlan.direct_routing);
        let underlays: Vec<IpAddr> = peers.flat_map(|peer| peer.ends()).map(|end| end.underlay).collect();
        underlay::on_link(&mut self.netlink, uplink, &underlays).map_err(request("look up the ways to the peers"))
    }

    fn uplink(&mut self, name: &str) -> Result<Uplink, KernelError> {
        let link = self.link(name)?;
        let link = link.ok_or_else(|| KernelError::NoUplink(name.to_owned()))?;
        let addresses = self.netlink.addresses(Some(link.index)).map_err(request("list addresses"))?;
        Ok(Uplink {
            index: link.index,
            mac: link.mac.filter(|mac| mac.is_unicast()).ok_or_else(|| KernelError::NotEthernet(name.to_owned()))?,
            name: link.name,
            mtu: link.mtu,
            addresses: addresses.into_iter().map(|address| address.address.addr()).collect(),
            up: link.up,
            queues: Queues::of(name).map_err(|source| KernelError::Queues(name.to_owned(), source))?,
        })
    }
}

/// Our end of the second tunnel, if one is wanted. In a cluster of Kubernetes' it is wanted wherever it can be.
fn second(config: &Config, uplink: &Uplink, local: &BTreeSet<IpAddr>) -> Result<Option<TunnelEnd>, KernelError> {
    if !config.wants_second() {
        return Ok(None);
    }
    let own = || uplink.addresses.iter().copied().find(IpAddr::is_ipv6);
    let Some(underlay) = config.node.underlay6.or_else(own) else {
        let missing = || KernelError::NoSecondAddress(uplink.name.clone());
        return if config.kubernetes.is_some() { Ok(None) } else { Err(missing()) };
    };
    check_underlay(config, local, "node.underlay6", underlay)?;
    let mac = config.node.vtep_mac6.unwrap_or_else(|| derive_vtep_mac(underlay));
    let end = TunnelEnd { underlay, mac };
    check_peers(end, config.peers.iter().filter_map(|peer| Some((&**peer, peer.second?))))?;
    Ok(Some(end))
}

/// What the file alone does not show of an outer source address, of a node that has the addresses `local`.
fn check_underlay(
    config: &Config,
    local: &BTreeSet<IpAddr>,
    key: &'static str,
    underlay: IpAddr,
) -> Result<(), KernelError> {
    if !local.contains(&underlay) {
        return Err(KernelError::ForeignUnderlay { key, underlay });
    }
    match config.pod_ranges().find(|range| range.contains(&underlay)) {
        Some(range) => Err(KernelError::UnderlayOfPods { underlay, range }),
        None => Ok(()),
    }
}

/// Fails if the end of one of our tunnels is also that of a peer's.
fn check_peers<'p>(own: TunnelEnd, peers: impl Iterator<Item = (&'p Peer, TunnelEnd)>) -> Result<(), KernelError> {
    for (peer, end) in peers {
        let same = |what: String| KernelError::SameAsPeer { what, peer: peer.name.clone() };
        if end.underlay == own.underlay {
            return Err(same(format!("address {}", own.underlay)));
        }
        if end.mac == own.mac {
            return Err(same(format!("MAC {}", own.mac)));
        }
    }
    Ok(())
}
