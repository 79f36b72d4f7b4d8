use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};

use super::{Netlink, NetlinkError, family};
use crate::ids::IfIndex;

/// An address of a device, with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub index: IfIndex,
    pub address: IpNet,
}

impl Netlink {
    /// The addresses of a device, or of all, that can be a source for others: of global scope, and
    /// settled (not tentative, deprecated, or temporary).
    pub fn addresses(&mut self, device: Option<IfIndex>) -> Result<Vec<Address>, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.index = device.map_or(0, |index| index.0);
        let objects = self.dump(&RouteNetlinkMessage::GetAddress(message))?;
        let wanted = |address: &Address| device.is_none_or(|index| address.index == index);
        Ok(objects
            .into_iter()
            .filter_map(read)
            .filter_map(|(address, settled)| settled.then_some(address))
            .filter(wanted)
            .collect())
    }

    /// All addresses of the namespace, of whatever scope and state: what is sent to them stays here.
    pub fn own_addresses(&mut self) -> Result<BTreeSet<IpAddr>, NetlinkError> {
        let objects = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        Ok(objects.into_iter().filter_map(read).map(|(address, _)| address.address.addr()).collect())
    }

    /// Gives a device an address, in use at once (no duplicate address detection).
    pub fn add_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::NewAddress(message(address)), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Takes an address away.
    pub fn delete_address(&mut self, address: &Address) -> Result<(), NetlinkError> {
        self.change(RouteNetlinkMessage::DelAddress(message(address)), 0)
    }
}

fn message(address: &Address) -> AddressMessage {
    let ip = address.address.addr();
    let mut message = AddressMessage::default();
    message.header.family = family(ip.is_ipv6());
    message.header.prefix_len = address.address.prefix_len();
    message.header.index = address.index.0;
    if ip.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// An address, and whether it can be a source for others.
fn read(object: RouteNetlinkMessage) -> Option<(Address, bool)> {
    let RouteNetlinkMessage::NewAddress(message) = object else { return None };
    let unsettled =
        AddressFlags::Tentative | AddressFlags::Deprecated | AddressFlags::Secondary | AddressFlags::Dadfailed;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let (mut local, mut address) = (None::<IpAddr>, None::<IpAddr>);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(more) => flags |= *more,
            _ => {}
        }
    }
    // An IPv4 secondary is an address like any other; an IPv6 one is temporary (RFC 8981).
    let unsettled = if address.is_some_and(|ip| ip.is_ipv6()) { unsettled } else { AddressFlags::empty() };
    let is_settled = message.header.scope == AddressScope::Universe && !flags.intersects(unsettled);
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((Address { index: IfIndex(message.header.index), address }, is_settled))
}
