use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::RouteScope;

use super::neighbour::{fdb_message, message as neighbour_message};
use super::route::{Route, message as route_message, to};
use super::{FdbEntry, Neighbour};
use crate::ids::IfIndex;

/// A change of the kind that comes in great numbers, to be made by [`Netlink::change_all`](super::Netlink::change_all).
#[derive(Debug)]
pub struct Request {
    pub(super) message: RouteNetlinkMessage,
    pub(super) flags: u16,
}

impl Request {
    /// Makes a neighbour permanent, in place of what was known of it.
    pub fn set_neighbour(neighbour: &Neighbour) -> Self {
        let mut message = neighbour_message(neighbour.index, neighbour.address);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()));
        Self { message: RouteNetlinkMessage::NewNeighbour(message), flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    /// Forgets a neighbour.
    pub fn delete_neighbour(index: IfIndex, address: IpAddr) -> Self {
        Self { message: RouteNetlinkMessage::DelNeighbour(neighbour_message(index, address)), flags: 0 }
    }

    /// Makes `entry` the only one for its MAC.
    pub fn set_fdb(entry: &FdbEntry) -> Self {
        Self { message: RouteNetlinkMessage::NewNeighbour(fdb_message(entry)), flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    /// Removes the forwarding entries of a MAC.
    pub fn delete_fdb(entry: &FdbEntry) -> Self {
        let mut message = fdb_message(entry);
        // With a destination the kernel finds only what goes to the device's own port
        // (`vxlan_fdb_find_rdst` in `drivers/net/vxlan/vxlan_core.c`).
        message.attributes.retain(|attribute| !matches!(attribute, NeighbourAttribute::Destination(_)));
        Self { message: RouteNetlinkMessage::DelNeighbour(message), flags: 0 }
    }

    /// Adds a route; an error (`EEXIST`) when the table has one for the destination.
    pub fn add_route(route: &Route, protocol: u8) -> Self {
        let message = RouteNetlinkMessage::NewRoute(route_message(route, protocol));
        Self { message, flags: NLM_F_CREATE | NLM_F_EXCL }
    }

    /// Puts a route in the place of the one for the same destination, whatever protocol that one carries.
    pub fn replace_route(route: &Route, protocol: u8) -> Self {
        let message = RouteNetlinkMessage::NewRoute(route_message(route, protocol));
        Self { message, flags: NLM_F_CREATE | NLM_F_REPLACE }
    }

    /// Removes the route for `destination` in `table` that carries `protocol`, wherever it leads.
    pub fn delete_route(table: u8, destination: IpNet, protocol: u8) -> Self {
        let mut message = to(table, destination, protocol);
        message.header.scope = RouteScope::NoWhere;
        Self { message: RouteNetlinkMessage::DelRoute(message), flags: 0 }
    }
}
