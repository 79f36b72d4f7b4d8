use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Netlink, NetlinkError, Request, family};
use crate::ids::IfIndex;
use crate::wire::Mac;

/// The link-layer address of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub index: IfIndex,
    pub address: IpAddr,
    pub mac: Mac,
}

/// A neighbour as the kernel learnt it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownNeighbour {
    pub address: IpAddr,
    /// `None` while it is not resolved.
    pub mac: Option<Mac>,
    /// Whether the kernel keeps it resolved by itself: permanent, or managed (`NTF_MANAGED`).
    pub kept: bool,
}

/// The VTEP behind which a VXLAN device finds a MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    pub index: IfIndex,
    pub mac: Mac,
    pub vtep: IpAddr,
    /// Frames to it are sent as all others are: to the device's own port, with its VNI, by its uplink.
    pub plain: bool,
}

impl Netlink {
    /// The permanent neighbours of all devices.
    pub fn permanent_neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        let objects = self.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
        Ok(objects.iter().filter_map(permanent).collect())
    }

    /// The neighbour with this address, if it is permanent (`neigh_get` in `net/core/neighbour.c`, since Linux 5.0).
    pub fn permanent_neighbour(&mut self, index: IfIndex, address: IpAddr) -> Result<Option<Neighbour>, NetlinkError> {
        Ok(self.neighbour(index, address)?.as_ref().and_then(permanent))
    }

    /// All that the kernel knows of the neighbours of a device.
    pub fn known_neighbours(&mut self, index: IfIndex) -> Result<Vec<KnownNeighbour>, NetlinkError> {
        let mut request = NeighbourMessage::default();
        request.attributes.push(NeighbourAttribute::IfIndex(index.0));
        let objects = self.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
        let of_device = |message: &&NeighbourMessage| message.header.ifindex == index.0;
        Ok(objects.iter().filter_map(inner).filter(of_device).filter_map(known).collect())
    }

    /// What the kernel knows of one neighbour (`neigh_get` in `net/core/neighbour.c`, since Linux 5.0).
    pub fn known_neighbour(&mut self, index: IfIndex, address: IpAddr) -> Result<Option<KnownNeighbour>, NetlinkError> {
        Ok(self.neighbour(index, address)?.as_ref().and_then(inner).and_then(known))
    }

    fn neighbour(&mut self, index: IfIndex, address: IpAddr) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        match self.query(RouteNetlinkMessage::GetNeighbour(message(index, address))) {
            Err(error) if error.is_missing() => Ok(None),
            answer => answer,
        }
    }

    /// Makes a neighbour permanent, in place of what was known of it.
    pub fn set_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        self.make(Request::set_neighbour(neighbour))
    }

    /// Forgets a neighbour.
    pub fn delete_neighbour(&mut self, index: IfIndex, address: IpAddr) -> Result<(), NetlinkError> {
        self.make(Request::delete_neighbour(index, address))
    }

    /// The neighbours of all devices that the kernel keeps resolved for whom `protocol` marks.
    pub fn managed_neighbours(&mut self, protocol: u8) -> Result<Vec<(IfIndex, IpAddr)>, NetlinkError> {
        let objects = self.dump(&RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()))?;
        let ours = |message: &&NeighbourMessage| is_managed(message) && marked_by(message, protocol);
        let neighbour = |message: &NeighbourMessage| Some((IfIndex(message.header.ifindex), address(message)?));
        Ok(objects.iter().filter_map(inner).filter(ours).filter_map(neighbour).collect())
    }

    /// Has the kernel resolve a neighbour now and keep it resolved (`NTF_MANAGED`, since Linux
    /// 5.16; older kernels resolve it this once), marked by `protocol` (`NDA_PROTOCOL`). Not for
    /// permanent neighbours: it would demote them.
    pub fn resolve_neighbour(&mut self, index: IfIndex, address: IpAddr, protocol: u8) -> Result<(), NetlinkError> {
        let mut message = message(index, address);
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::from(protocol)));
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The forwarding entries of a VXLAN device.
    pub fn fdb(&mut self, index: IfIndex) -> Result<Vec<FdbEntry>, NetlinkError> {
        let mut request = NeighbourMessage::default();
        request.header.family = AddressFamily::Bridge;
        request.attributes.push(NeighbourAttribute::IfIndex(index.0));
        let objects = self.dump(&RouteNetlinkMessage::GetNeighbour(request))?;
        let entry = |message: &NeighbourMessage| {
            let index = IfIndex(message.header.ifindex);
            Some(FdbEntry { index, mac: mac(message)?, vtep: address(message)?, plain: is_plain(message) })
        };
        Ok(objects.iter().filter_map(inner).filter_map(entry).filter(|entry| entry.index == index).collect())
    }
}

/// The beginning of any message about a neighbour.
pub(super) fn message(index: IfIndex, address: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.ifindex = index.0;
    message.header.kind = RouteType::Unspec;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

pub(super) fn fdb_message(entry: &FdbEntry) -> NeighbourMessage {
    let mut message = message(entry.index, entry.vtep);
    message.header.family = AddressFamily::Bridge;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()));
    message
}

/// The kernel names port, VNI and device only where they are not the VXLAN device's own (`vxlan_fdb_info`).
fn is_plain(message: &NeighbourMessage) -> bool {
    let own = |attribute: &NeighbourAttribute| {
        matches!(attribute, NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) | NeighbourAttribute::IfIndex(_))
    };
    !message.attributes.iter().any(own)
}

fn inner(object: &RouteNetlinkMessage) -> Option<&NeighbourMessage> {
    match object {
        RouteNetlinkMessage::NewNeighbour(message) => Some(message),
        _ => None,
    }
}

fn permanent(object: &RouteNetlinkMessage) -> Option<Neighbour> {
    let message = inner(object).filter(|message| message.header.state == NeighbourState::Permanent)?;
    Some(Neighbour { index: IfIndex(message.header.ifindex), address: address(message)?, mac: mac(message)? })
}

fn known(message: &NeighbourMessage) -> Option<KnownNeighbour> {
    let state = message.header.state;
    let resolved = matches!(
        state,
        NeighbourState::Permanent
            | NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
    );
    Some(KnownNeighbour {
        address: address(message)?,
        mac: mac(message).filter(|_| resolved),
        kept: is_managed(message) || state == NeighbourState::Permanent,
    })
}

fn is_managed(message: &NeighbourMessage) -> bool {
    message.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::ExtFlags(flags) if flags.contains(NeighbourExtFlags::Managed))
    })
}

fn marked_by(message: &NeighbourMessage, protocol: u8) -> bool {
    let marks = |attribute: &NeighbourAttribute| matches!(attribute, NeighbourAttribute::Protocol(mark) if u8::from(*mark) == protocol);
    message.attributes.iter().any(marks)
}

/// The link-layer address that a message names.
pub(super) fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac),
        _ => None,
    })
}

/// The address that a message names.
pub(super) fn address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => <[u8; 4]>::try_from(bytes.as_slice())
            .map(IpAddr::from)
            .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from))
            .ok(),
        _ => None,
    })
}
