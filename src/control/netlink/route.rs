use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};

use super::{Netlink, NetlinkError, Request, family};
use crate::ids::IfIndex;

/// Every protocol, in a request to delete (`RTPROT_UNSPEC`).
const ANY_PROTOCOL: u8 = 0;

/// The table that packets are looked up in when no rule says otherwise.
pub const MAIN_TABLE: u8 = RouteHeader::RT_TABLE_MAIN;

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub table: u8,
    pub destination: IpNet,
    pub kind: RouteKind,
    /// The source address for packets of this node.
    pub source: Option<IpAddr>,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Sends by `device`, through `gateway` where there is one, which needs no route of its own
    /// (`onlink`).
    Via { device: IfIndex, gateway: Option<IpAddr> },
    /// Answers "unreachable".
    Unreachable,
}

/// How the kernel would send to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    pub device: IfIndex,
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// The routes of a table, of both families, that carry `protocol`.
    pub fn routes(&mut self, table: u8, protocol: u8) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for is_ipv6 in [false, true] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(is_ipv6);
            message.header.table = table;
            message.header.protocol = RouteProtocol::from(protocol);
            let objects = self.dump(&RouteNetlinkMessage::GetRoute(message));
            // ENOENT: no route was ever put into the table.
            let objects = match objects {
                Err(error) if error.errno() == Some(libc::ENOENT) => Vec::new(),
                objects => objects?,
            };
            routes.extend(objects.iter().filter_map(|object| read(object, table, protocol, is_ipv6)));
        }
        Ok(routes)
    }

    /// Adds a route; an error (`EEXIST`) when the table has one for the destination.
    pub fn add_route(&mut self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        self.make(Request::add_route(route, protocol))
    }

    /// Adds a route that counts only where there is none of the default metric for the destination.
    pub fn add_route_of_metric(&mut self, route: &Route, protocol: u8, metric: u32) -> Result<(), NetlinkError> {
        let mut message = message(route, protocol);
        message.attributes.push(RouteAttribute::Priority(metric));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Puts a route in the place of the one for the same destination, whatever protocol that one carries.
    pub fn replace_route(&mut self, route: &Route, protocol: u8) -> Result<(), NetlinkError> {
        match self.make(Request::replace_route(route, protocol)) {
            // IPv6 refuses a gateway that the old route reaches by another device
            // (`ip6_route_check_nh_onlink` in `net/ipv6/route.c`).
            Err(error) if error.errno() == Some(libc::EINVAL) => {
                let in_its_place = [protocol, ANY_PROTOCOL];
                if !in_its_place.iter().any(|old| self.delete_route(route.table, route.destination, *old).is_ok()) {
                    return Err(error);
                }
                self.add_route(route, protocol)
            }
            result => result,
        }
    }

    /// Removes the route for `destination` in `table` that carries `protocol`, wherever it leads.
    pub fn delete_route(&mut self, table: u8, destination: IpNet, protocol: u8) -> Result<(), NetlinkError> {
        self.make(Request::delete_route(table, destination, protocol))
    }

    /// How a packet to `destination` would leave; `None` when there is no way.
    pub fn lookup(&mut self, destination: IpAddr) -> Result<Option<Lookup>, NetlinkError> {
        Ok(self.route_to(destination)?.as_ref().and_then(way))
    }

    /// The same for each of many destinations, in order.
    pub fn lookup_all(&mut self, destinations: &[IpAddr]) -> Result<Vec<Option<Lookup>>, NetlinkError> {
        let answers = self.channel.ask_all(destinations.iter().map(|destination| (question(*destination), 0)))?;
        let ways = answers.into_iter().map(|answer| Ok(found(answer)?.as_ref().and_then(way)));
        ways.collect()
    }

    /// Whether the node takes a packet to `destination` for its own.
    pub fn is_local(&mut self, destination: IpAddr) -> Result<bool, NetlinkError> {
        Ok(self.route_to(destination)?.is_some_and(|route| route.header.kind == RouteType::Local))
    }

    fn route_to(&mut self, destination: IpAddr) -> Result<Option<RouteMessage>, NetlinkError> {
        found(self.query(question(destination)))
    }
}

/// Asks how a packet to `destination` would leave.
pub(super) fn question(destination: IpAddr) -> RouteNetlinkMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.is_ipv6());
    message.header.destination_prefix_length = IpNet::from(destination).prefix_len();
    message.attributes.push(RouteAttribute::Destination(destination.into()));
    RouteNetlinkMessage::GetRoute(message)
}

/// What the answer says: a refusal says that there is no way.
fn found(answer: Result<Option<RouteNetlinkMessage>, NetlinkError>) -> Result<Option<RouteMessage>, NetlinkError> {
    match answer {
        Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(Some(route)),
        Ok(_) | Err(NetlinkError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How a packet leaves by a route, if it is sent to one place.
fn way(route: &RouteMessage) -> Option<Lookup> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    Some(Lookup { device: device(route)?, gateway: gateway(route) })
}

/// The beginning of any message about the route for `destination` in `table`.
pub(super) fn to(table: u8, destination: IpNet, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.addr().is_ipv6());
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = table;
    message.header.protocol = RouteProtocol::from(protocol);
    if destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    }
    message
}

pub(super) fn message(route: &Route, protocol: u8) -> RouteMessage {
    let mut message = to(route.table, route.destination, protocol);
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    match route.kind {
        RouteKind::Unreachable => message.header.kind = RouteType::Unreachable,
        RouteKind::Via { device, gateway } => {
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Oif(device.0));
            if let Some(gateway) = gateway {
                message.header.flags = RouteFlags::Onlink;
                message.attributes.push(RouteAttribute::Gateway(gateway.into()));
            } else if route.destination.addr().is_ipv4() {
                message.header.scope = RouteScope::Link;
            }
        }
    }
    message
}

fn read(object: &RouteNetlinkMessage, table: u8, protocol: u8, is_ipv6: bool) -> Option<Route> {
    let RouteNetlinkMessage::NewRoute(message) = object else { return None };
    let header = &message.header;
    if header.table != table || u8::from(header.protocol) != protocol {
        return None;
    }
    let any: IpAddr = if is_ipv6 { [0; 16].into() } else { [0; 4].into() };
    let destination = find(message, |attribute| match attribute {
        RouteAttribute::Destination(destination) => address(destination),
        _ => None,
    });
    let kind = match header.kind {
        RouteType::Unicast => RouteKind::Via { device: device(message)?, gateway: gateway(message) },
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => return None,
    };
    let source = find(message, |attribute| match attribute {
        RouteAttribute::PrefSource(source) => address(source),
        _ => None,
    });
    let destination = IpNet::new(destination.unwrap_or(any), header.destination_prefix_length).ok()?;
    Some(Route { table, destination, kind, source })
}

fn device(message: &RouteMessage) -> Option<IfIndex> {
    find(message, |attribute| match attribute {
        RouteAttribute::Oif(index) => Some(IfIndex(*index)),
        _ => None,
    })
}

fn gateway(message: &RouteMessage) -> Option<IpAddr> {
    find(message, |attribute| match attribute {
        RouteAttribute::Gateway(gateway) => address(gateway),
        RouteAttribute::Via(RouteVia::Inet6(gateway)) => Some(IpAddr::V6(*gateway)),
        _ => None,
    })
}

fn find<T>(message: &RouteMessage, pick: impl FnMut(&RouteAttribute) -> Option<T>) -> Option<T> {
    message.attributes.iter().find_map(pick)
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
