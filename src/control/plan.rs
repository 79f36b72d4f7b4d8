//! What to change in the kernel, decided without touching it: desired objects against observed
//! ones, each known by its key.
//!
//! Only what is ours is ever observed (routes and rules by [`PROTOCOL`], the rest by device), so a plan
//! cannot name a foreign object. Nothing is flushed: what is right stays untouched.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{
    Address, FdbEntry, Link, LinkKind, LinkSettings, MAIN_TABLE, Neighbour, Route, RouteKind, Rule, Vxlan,
};
use super::sysctl;
use super::vtep::Vtep;
use super::wiring::Pod;
use crate::config::{Config, Peer};
use crate::ids::IfIndex;
use crate::steer::Tunnel;
use crate::wire::{Mac, TunnelEnd};

/// Marks our routes and rules, and the underlay's neighbours that we keep resolved (`rtm_protocol`; 192 to 252 are free
/// of the kernel's and of iproute2's names).
pub const PROTOCOL: u8 = 240;

/// The routing table in which pods find the addresses of the other nodes.
pub const NODES_TABLE: u8 = 240;

/// Before the main table, which has the nodes' addresses on the uplink.
const NODES_PRIORITY: u32 = 240;

/// Marks our VXLAN device and the hub (`IFLA_IFALIAS`): what does not bear it is not ours to change.
pub const ALIAS: &str = "podwire";

/// A kernel object, in the order of making: a route needs its source address, and must not lead
/// to a neighbour that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Address(Address),
    Neighbour(Neighbour),
    Fdb(FdbEntry),
    Route(Route),
    Rule(Rule),
}

/// What there can be only one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Address(IfIndex, IpNet),
    Neighbour(IfIndex, IpAddr),
    Fdb(IfIndex, Mac),
    Route(u8, IpNet),
    Rule(Rule),
}

/// What to do with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Add,
    Replace,
    Delete,
}

/// One change of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectChange {
    pub action: Action,
    pub object: Object,
    /// The name of its device, for people.
    pub device: String,
}

/// One change of kernel state, printable for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Sysctl(sysctl::Changed),
    /// The VXLAN device was made.
    CreateDevice {
        name: String,
    },
    /// A VXLAN device of ours was removed.
    DeleteDevice {
        name: String,
    },
    RenameDevice {
        from: String,
        to: String,
    },
    SetDevice {
        name: String,
        settings: LinkSettings,
    },
    /// A device's checksums were taken from it: the kernel completes them.
    CompleteChecksums {
        name: String,
    },
    Object(ObjectChange),
    /// A change of a pod's own end.
    InPod {
        pod: String,
        change: Box<Change>,
    },
}

/// The VXLAN device as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanDevice {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    pub vxlan: Vxlan,
}

/// What the VXLAN device needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DevicePlan {
    Create,
    /// It has other parameters, which cannot change while it lives.
    Recreate,
    /// It stays, with these settings, if any.
    Keep(LinkSettings),
    /// The name belongs to a device that is not ours.
    Foreign,
}

/// What to do about the VXLAN device. Without our mark it is ours only when it is the one `known` to be, or just as we
/// make it: a daemon may have ended between making and marking it.
pub fn plan_device(desired: &VxlanDevice, observed: Option<&Link>, known: Option<IfIndex>) -> DevicePlan {
    let Some(link) = observed else { return DevicePlan::Create };
    let ours = link.alias == ALIAS || known == Some(link.index);
    let unmarked = link.alias.is_empty() && !link.up && link.mac == Some(desired.mac);
    match &link.kind {
        LinkKind::Vxlan(vxlan) if *vxlan == desired.vxlan && (ours || unmarked) => DevicePlan::Keep(LinkSettings {
            up: (!link.up).then_some(true),
            mtu: (link.mtu != desired.mtu).then_some(desired.mtu),
            mac: (link.mac != Some(desired.mac)).then_some(desired.mac),
            alias: (link.alias != ALIAS).then_some(ALIAS),
        }),
        LinkKind::Vxlan(_) | LinkKind::OtherVxlan if ours => DevicePlan::Recreate,
        _ => DevicePlan::Foreign,
    }
}

/// The changes that turn `observed` into `desired`: first what is added or replaced, in the order
/// of making, then what is deleted, in reverse. `name` gives a device's name.
pub fn plan(desired: Vec<Object>, observed: Vec<Object>, name: impl Fn(IfIndex) -> String) -> Vec<ObjectChange> {
    let change = |action, object: Object| {
        let device = object.device().map(&name).unwrap_or_default();
        ObjectChange { action, object, device }
    };
    let by_key = |objects: Vec<Object>| objects.into_iter().map(|object| (object.key(), object)).collect();
    let desired: BTreeMap<Key, Object> = by_key(desired);
    let mut observed: BTreeMap<Key, Object> = by_key(observed);
    let mut changes = Vec::new();
    for (key, object) in desired {
        match observed.remove(&key) {
            None => changes.push(change(Action::Add, object)),
            Some(other) if other != object => changes.push(change(Action::Replace, object)),
            Some(_) => {}
        }
    }
    changes.extend(observed.into_values().rev().map(|object| change(Action::Delete, object)));
    changes
}

/// The VXLAN devices: the second one carries what is IPv6 to peers that have a second VTEP too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnels {
    pub first: IfIndex,
    pub second: Option<IfIndex>,
}

impl Tunnels {
    pub fn devices(self) -> impl Iterator<Item = IfIndex> {
        std::iter::once(self.first).chain(self.second)
    }

    /// What one of them is called.
    pub fn name(self, config: &Config, device: IfIndex) -> Option<String> {
        let second = || (self.second == Some(device)).then(|| config.vxlan.second_device());
        if device == self.first { Some(config.vxlan.device.clone()) } else { second() }
    }

    /// The one that ends where the peer's `end` does.
    fn device_to(self, end: TunnelEnd, peer: &Peer) -> IfIndex {
        self.second.filter(|_| peer.second == Some(end)).unwrap_or(self.first)
    }

    /// The way to the peer's `end`.
    pub fn to(self, end: TunnelEnd, peer: &Peer, vtep: &Vtep) -> Tunnel {
        let device = self.device_to(end, peer);
        let own = vtep.second.filter(|_| self.second == Some(device)).unwrap_or(vtep.first());
        Tunnel { device, peer_mac: end.mac, own_mac: own.mac }
    }
}

/// All objects that `config` and `pods` ask for, on the VXLAN devices and on the pods'.
pub fn desired(config: &Config, vtep: &Vtep, tunnels: Tunnels, pods: &[Pod]) -> Vec<Object> {
    let on = |index, is_second| {
        let object = move |address| Object::Address(Address { index, address: IpNet::from(address) });
        vtep.addresses_on(is_second).map(object)
    };
    let addresses = on(tunnels.first, false).chain(tunnels.second.into_iter().flat_map(|index| on(index, true)));
    // Without it a packet for an address that no pod has would follow the default route.
    let own = config.node.pod_cidrs.iter().map(|cidr| Object::Route(route(*cidr, RouteKind::Unreachable)));
    let mut objects: Vec<Object> = addresses.chain(own).collect();
    objects.extend(of_peers(config, vtep, tunnels));
    objects.extend(pods.iter().flat_map(|pod| pod_objects(&vtep.addresses, pod)));
    objects
}

/// What `config` asks for because of its peers, on the VXLAN devices or past them.
pub fn of_peers(config: &Config, vtep: &Vtep, tunnels: Tunnels) -> Vec<Object> {
    let mut objects = Vec::new();
    for peer in &config.peers {
        for cidr in &peer.pod_cidrs {
            objects.push(Object::Route(route(*cidr, way(vtep, tunnels, peer, *cidr))));
            if !vtep.is_direct(peer, cidr) {
                let end = vtep.end_for(peer, cidr);
                let (index, mac, address) = (tunnels.device_to(end, peer), end.mac, cidr.network());
                objects.push(Object::Neighbour(Neighbour { index, address, mac }));
                // Two ranges by one tunnel ask for one entry.
                objects.push(Object::Fdb(FdbEntry { index, mac, vtep: end.underlay, plain: true }));
            }
        }
    }
    objects.extend(nodes(config, vtep, tunnels));
    objects
}

/// The way to a peer's pods, or to what is reached through them: by the peer itself, or by a VXLAN device.
fn way(vtep: &Vtep, tunnels: Tunnels, peer: &Peer, cidr: IpNet) -> RouteKind {
    let end = vtep.end_for(peer, &cidr);
    if vtep.is_direct(peer, &cidr) {
        RouteKind::Via { device: vtep.uplink.index, gateway: Some(end.underlay) }
    } else {
        RouteKind::Via { device: tunnels.device_to(end, peer), gateway: Some(cidr.network()) }
    }
}

/// What leads pods to the other nodes' own addresses as it leads them to their pods. By the main table their packets
/// would leave the uplink bare, and from a peer of the tunnel the answers come back by VXLAN: each side's reverse path
/// filter (RFC 3704) drops what the other sends. The filter asks the rules too, so that both directions pass it when it
/// is strict.
fn nodes(config: &Config, vtep: &Vtep, tunnels: Tunnels) -> Vec<Object> {
    let mut objects = Vec::new();
    for own in &config.node.pod_cidrs {
        let alike = |address: &IpAddr| address.is_ipv6() == own.addr().is_ipv6();
        let routes = config.peers.iter().flat_map(|peer| {
            peer.node_addresses().filter(alike).filter_map(move |address| {
                let kind = way(vtep, tunnels, peer, peer.range_for(address)?);
                Some(Route { table: NODES_TABLE, ..route(address.into(), kind) })
            })
        });
        let before = objects.len();
        objects.extend(routes.map(Object::Route));
        if objects.len() > before {
            objects.push(Object::Rule(Rule { priority: NODES_PRIORITY, source: *own, table: NODES_TABLE }));
        }
    }
    objects
}

fn route(destination: IpNet, kind: RouteKind) -> Route {
    Route { table: MAIN_TABLE, destination, kind, source: None }
}

/// What a pod needs on the host. Packets of the node itself to it come from that of `sources` which is of the same
/// family.
pub fn pod_objects(sources: &[IpAddr], pod: &Pod) -> Vec<Object> {
    let device = pod.host_ifindex;
    let objects = |address: &IpAddr| {
        let source = sources.iter().copied().find(|source| source.is_ipv6() == address.is_ipv6());
        let kind = RouteKind::Via { device, gateway: None };
        [
            Object::Neighbour(Neighbour { index: device, address: *address, mac: pod.mac }),
            Object::Route(Route { source, ..route(IpNet::from(*address), kind) }),
        ]
    };
    pod.addresses.iter().flat_map(objects).collect()
}

impl Object {
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Address(address) => Key::Address(address.index, address.address),
            Self::Neighbour(neighbour) => Key::Neighbour(neighbour.index, neighbour.address),
            Self::Fdb(entry) => Key::Fdb(entry.index, entry.mac),
            Self::Route(route) => Key::Route(route.table, route.destination),
            Self::Rule(rule) => Key::Rule(*rule),
        }
    }

    pub(super) fn device(&self) -> Option<IfIndex> {
        match self {
            Self::Address(Address { index, .. })
            | Self::Neighbour(Neighbour { index, .. })
            | Self::Fdb(FdbEntry { index, .. }) => Some(*index),
            Self::Route(Route { kind: RouteKind::Via { device, .. }, .. }) => Some(*device),
            Self::Route(Route { kind: RouteKind::Unreachable, .. }) | Self::Rule(_) => None,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(Address { address, .. }) => write!(f, "address {address}"),
            Self::Neighbour(Neighbour { address, mac, .. }) => write!(f, "neighbour {address} lladdr {mac}"),
            Self::Fdb(FdbEntry { mac, vtep, .. }) => write!(f, "fdb {mac} dst {vtep}"),
            Self::Route(Route { table, destination, kind, .. }) => {
                match kind {
                    RouteKind::Unreachable => write!(f, "route unreachable {destination}"),
                    RouteKind::Via { gateway: Some(gateway), .. } => write!(f, "route {destination} via {gateway}"),
                    RouteKind::Via { gateway: None, .. } => write!(f, "route {destination}"),
                }?;
                if *table == MAIN_TABLE { Ok(()) } else { write!(f, " table {table}") }
            }
            Self::Rule(Rule { source, table, .. }) => write!(f, "rule from {source} lookup {table}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(changed) => changed.fmt(f),
            Self::CreateDevice { name } => write!(f, "create device {name}"),
            Self::DeleteDevice { name } => write!(f, "delete device {name}"),
            Self::RenameDevice { from, to } => write!(f, "rename device {from} to {to}"),
            Self::CompleteChecksums { name } => write!(f, "set device {name} checksums off"),
            Self::SetDevice { name, settings } => {
                write!(f, "set device {name}")?;
                if let Some(mac) = settings.mac {
                    write!(f, " address {mac}")?;
                }
                if let Some(mtu) = settings.mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(alias) = settings.alias {
                    write!(f, " alias {alias}")?;
                }
                match settings.up {
                    Some(true) => f.write_str(" up"),
                    Some(false) => f.write_str(" down"),
                    None => Ok(()),
                }
            }
            Self::Object(change) => change.fmt(f),
            Self::InPod { pod, change } => write!(f, "pod {pod}: {change}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Replace => "replace",
            Self::Delete => "delete",
        })
    }
}

impl fmt::Display for ObjectChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.object)?;
        if self.device.is_empty() { Ok(()) } else { write!(f, " dev {}", self.device) }
    }
}

#[cfg(test)]
mod tests;
