//! The way to each peer over the underlay: next hop and its link-layer address, which the data
//! plane writes into outer frames.
//!
//! The kernel decides both; here they are only read, and what is not resolved yet is asked for.
//! The answer arrives as a notification of the neighbour table. From then on the kernel keeps the
//! neighbour resolved, marked as ours, until no peer is behind it any more.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use super::netlink::{KnownNeighbour, Lookup, Netlink, NetlinkError, unless_missing};
use super::plan::PROTOCOL;
use super::vtep::Uplink;
use crate::ids::IfIndex;
use crate::wire::Mac;

/// The next hop towards a peer, by the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The gateway, or the peer itself on one link.
    pub via: IpAddr,
    pub dst_mac: Mac,
}

/// Why the data plane cannot reach a peer now; the kernel path carries its packets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHop {
    #[error("there is no route to it")]
    NoRoute,
    #[error("its route leaves by {0}, not by the uplink")]
    OtherDevice(String),
    #[error("the MAC of {0} is not resolved")]
    Unresolved(IpAddr),
}

/// The next hop of each of `peers`, in order; neighbours of ours that lead to none are forgotten.
/// Costs two dumps and a request a peer, many of these at a time.
pub(super) fn resolve(
    netlink: &mut Netlink,
    uplink: &Uplink,
    peers: &[IpAddr],
) -> Result<Vec<Result<Hop, NoHop>>, NetlinkError> {
    let known = netlink.known_neighbours(uplink.index)?;
    let mut known: HashMap<IpAddr, KnownNeighbour> = known.into_iter().map(|entry| (entry.address, entry)).collect();
    let mut hops = Vec::with_capacity(peers.len());
    for (peer, way) in peers.iter().zip(netlink.lookup_all(peers)?) {
        hops.push(resolve_one(netlink, uplink, *peer, way, &mut known)?);
    }
    let needed: HashSet<IpAddr> = hops.iter().filter_map(via).collect();
    release(netlink, |index, address| index == uplink.index && needed.contains(&address))?;
    Ok(hops)
}

/// The same for a few of many peers, each by a request or two, whatever the neighbours are; none is forgotten.
pub(super) fn resolve_few(
    netlink: &mut Netlink,
    uplink: &Uplink,
    peers: &[IpAddr],
) -> Result<Vec<Result<Hop, NoHop>>, NetlinkError> {
    let mut known = HashMap::new();
    let mut hops = Vec::new();
    for (peer, way) in peers.iter().zip(netlink.lookup_all(peers)?) {
        if let Some(via) = way.as_ref().map(|way| way.gateway.unwrap_or(*peer))
            && let Entry::Vacant(entry) = known.entry(via)
            && let Some(neighbour) = netlink.known_neighbour(uplink.index, via)?
        {
            entry.insert(neighbour);
        }
        hops.push(resolve_one(netlink, uplink, *peer, way, &mut known)?);
    }
    Ok(hops)
}

/// Those of `peers` that the uplink reaches without a gateway, where Flannel's `DirectRouting` does without the tunnel
/// (flannel `pkg/ip/iface.go`, `DirectRouting`). Costs a request a peer, many at a time.
pub(super) fn on_link(
    netlink: &mut Netlink,
    uplink: &Uplink,
    peers: &[IpAddr],
) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let is_on_link = |way: Lookup| way.device == uplink.index && way.gateway.is_none();
    let ways = peers.iter().zip(netlink.lookup_all(peers)?);
    Ok(ways.filter(|(_, way)| way.is_some_and(is_on_link)).map(|(peer, _)| *peer).collect())
}

/// Forgets the neighbours that were kept for us, but for those that are needed, and returns them. The kernel resolves
/// one that others use anew.
pub(super) fn release(
    netlink: &mut Netlink,
    needed: impl Fn(IfIndex, IpAddr) -> bool,
) -> Result<Vec<(IfIndex, IpAddr)>, NetlinkError> {
    let mut released = netlink.managed_neighbours(PROTOCOL)?;
    released.retain(|(index, address)| !needed(*index, *address));
    for (index, address) in &released {
        unless_missing(netlink.delete_neighbour(*index, *address))?;
    }
    Ok(released)
}

/// Whose link-layer address the way to a peer needs.
fn via(hop: &Result<Hop, NoHop>) -> Option<IpAddr> {
    match hop {
        Ok(Hop { via, .. }) | Err(NoHop::Unresolved(via)) => Some(*via),
        Err(_) => None,
    }
}

/// The next hop to a peer that a packet to it leaves by `way`.
fn resolve_one(
    netlink: &mut Netlink,
    uplink: &Uplink,
    peer: IpAddr,
    way: Option<Lookup>,
    known: &mut HashMap<IpAddr, KnownNeighbour>,
) -> Result<Result<Hop, NoHop>, NetlinkError> {
    let Some(route) = way else { return Ok(Err(NoHop::NoRoute)) };
    if route.device != uplink.index {
        return Ok(Err(NoHop::OtherDevice(device_name(netlink, route.device)?)));
    }
    let via = route.gateway.unwrap_or(peer);
    let entry = known.entry(via).or_insert(KnownNeighbour { address: via, mac: None, kept: false });
    if !entry.kept {
        netlink.resolve_neighbour(uplink.index, via, PROTOCOL)?;
        entry.kept = true;
    }
    Ok(entry.mac.map(|dst_mac| Hop { via, dst_mac }).ok_or(NoHop::Unresolved(via)))
}

fn device_name(netlink: &mut Netlink, index: IfIndex) -> Result<String, NetlinkError> {
    let link = netlink.links()?.into_iter().find(|link| link.index == index);
    Ok(link.map_or_else(|| format!("device {index}"), |link| link.name))
}
