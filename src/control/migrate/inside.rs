//! A pod's own end, from Flannel's form to podwire's and back, such that open connections go on: at each step there is
//! an address, and a way out. Everything here runs in the pod's network namespace.

use std::net::IpAddr;

use ipnet::IpNet;

use super::PROTOCOL_BOOT;
use super::subnet::Subnet;
use crate::control::inside::objects;
use crate::control::netlink::{Address, LinkKind, MAIN_TABLE, Netlink, NetlinkError, Route, RouteKind, unless_missing};
use crate::control::plan::{Object, PROTOCOL};
use crate::control::wiring::{GATEWAY_V4, GATEWAY_V6, Pod};
use crate::ids::IfIndex;
use crate::wire::Mac;

/// Set by administrators and by old plugins (`RTPROT_STATIC`).
const PROTOCOL_STATIC: u8 = 4;

/// A pod's end as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub index: IfIndex,
    pub mac: Mac,
    /// The other end, in the node's namespace.
    pub peer: IfIndex,
}

/// Looks at the pod's device, which must have all of `addresses`, and says why the pod depends on a bridge, if it does
/// by more than its gateway.
pub fn survey(ifname: &str, addresses: &[IpAddr], is_gateway: impl Fn(IpAddr) -> bool) -> Result<End, String> {
    let said = |error: NetlinkError| error.to_string();
    let mut netlink = Netlink::open().map_err(said)?;
    let link = netlink.link(ifname).map_err(said)?.ok_or_else(|| format!("it has no device {ifname}"))?;
    let (LinkKind::Veth, Some(mac), Some(peer)) = (&link.kind, link.mac, link.lower) else {
        return Err(format!("its {ifname} is not one end of a veth pair"));
    };
    let own = netlink.addresses(Some(link.index)).map_err(said)?;
    if let Some(missing) = addresses.iter().find(|address| !own.iter().any(|own| own.address.addr() == **address)) {
        return Err(format!("its {ifname} has not the address {missing}"));
    }
    if let Some(more) = own.iter().find(|own| !addresses.contains(&own.address.addr())) {
        return Err(format!("its {ifname} has the address {}, which Flannel has not given", more.address.addr()));
    }
    for route in routes(&mut netlink, &[PROTOCOL_BOOT, PROTOCOL_STATIC]).map_err(said)? {
        let RouteKind::Via { device, gateway } = route.kind else { continue };
        let destination = route.destination;
        if device != link.index && destination.prefix_len() == 0 {
            return Err("its default route leaves by another of its interfaces".to_owned());
        }
        let own_gateway = gateway.is_none_or(|gateway| is_gateway(gateway) || is_podwires(gateway));
        if device == link.index && !own_gateway {
            return Err(format!("it has a route of its own to {destination}, by a neighbour on the bridge"));
        }
    }
    Ok(End { index: link.index, mac, peer })
}

/// Gives the pod podwire's form.
pub fn to_podwire(pod: &Pod, is_gateway: impl Fn(IpAddr) -> bool) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(&pod.ifname)? else { return Ok(()) };
    let objects = objects(pod, link.index);
    for object in &objects {
        match object {
            Object::Neighbour(neighbour) => netlink.set_neighbour(neighbour)?,
            Object::Route(route) => netlink.replace_route(route, PROTOCOL)?,
            _ => {}
        }
    }
    for address in objects.iter().filter_map(address) {
        resize(&mut netlink, address)?;
    }
    let others = routes(&mut netlink, &[PROTOCOL_BOOT, PROTOCOL_STATIC])?;
    let is_old =
        |route: &Route| matches!(route.kind, RouteKind::Via { gateway: Some(gateway), .. } if is_gateway(gateway));
    delete_routes(&mut netlink, others.into_iter().filter(is_old))
}

/// Gives the pod Flannel's form, as the bridge plugin makes it.
pub fn to_flannel(pod: &Pod, subnet: &Subnet) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(&pod.ifname)? else { return Ok(()) };
    for address in &pod.addresses {
        let Some(gateway) = subnet.gateway_for(*address) else { continue };
        let sized = IpNet::new(*address, gateway.prefix_len()).unwrap_or_else(|_| IpNet::from(*address));
        resize(&mut netlink, Address { index: link.index, address: sized })?;
        // It may have been another bridge's.
        forget(&mut netlink, link.index, gateway.addr())?;
        let kind = RouteKind::Via { device: link.index, gateway: Some(gateway.addr()) };
        let any = IpNet::new_assert(if address.is_ipv6() { [0; 16].into() } else { [0; 4].into() }, 0);
        let alike = subnet.cluster.iter().filter(|range| range.addr().is_ipv6() == address.is_ipv6());
        for destination in [any].into_iter().chain(alike.copied()) {
            let route = Route { table: MAIN_TABLE, destination, kind, source: None };
            netlink.replace_route(&route, PROTOCOL_BOOT)?;
        }
    }
    forget(&mut netlink, link.index, IpAddr::V4(GATEWAY_V4))?;
    forget(&mut netlink, link.index, IpAddr::V6(GATEWAY_V6))
}

fn forget(netlink: &mut Netlink, index: IfIndex, neighbour: IpAddr) -> Result<(), NetlinkError> {
    unless_missing(netlink.delete_neighbour(index, neighbour))
}

/// Has the device have an address with this prefix length and no other. IPv4 has both for a moment; IPv6 knows an
/// address once, and what arrives between is lost.
fn resize(netlink: &mut Netlink, wanted: Address) -> Result<(), NetlinkError> {
    let own = netlink.addresses(Some(wanted.index))?;
    let other = own.iter().find(|own| own.address.addr() == wanted.address.addr() && own.address != wanted.address);
    let is_there = own.contains(&wanted);
    if !is_there && wanted.address.addr().is_ipv4() {
        netlink.add_address(&wanted)?;
    }
    if let Some(other) = other {
        netlink.delete_address(other)?;
    }
    if !is_there && wanted.address.addr().is_ipv6() {
        netlink.add_address(&wanted)?;
    }
    Ok(())
}

fn address(object: &Object) -> Option<Address> {
    match object {
        Object::Address(address) => Some(*address),
        _ => None,
    }
}

fn is_podwires(gateway: IpAddr) -> bool {
    gateway == IpAddr::V4(GATEWAY_V4) || gateway == IpAddr::V6(GATEWAY_V6)
}

/// The main table's routes with one of these marks.
fn routes(netlink: &mut Netlink, protocols: &[u8]) -> Result<Vec<Route>, NetlinkError> {
    let mut found = Vec::new();
    for protocol in protocols {
        found.extend(netlink.routes(MAIN_TABLE, *protocol)?);
    }
    Ok(found)
}

fn delete_routes(netlink: &mut Netlink, routes: impl Iterator<Item = Route>) -> Result<(), NetlinkError> {
    for route in routes {
        for protocol in [PROTOCOL_BOOT, PROTOCOL_STATIC] {
            unless_missing(netlink.delete_route(route.table, route.destination, protocol))?;
        }
    }
    Ok(())
}
