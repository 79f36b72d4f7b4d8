//! The overlay and the other nodes, as `podwire status` and `podwire routes` show them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Probe;

/// The overlay as this node speaks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    pub device: String,
    pub vni: u32,
    pub port: u16,
    /// The outer source address; none while the uplink has no usable one.
    pub vtep: Option<IpAddr>,
    pub vtep_mac: Option<String>,
    /// The IPv6 tunnel beside the IPv4 one.
    #[serde(default)]
    pub second: Option<Second>,
    /// The largest inner IP packet, in bytes.
    pub mtu: Option<u16>,
}

/// The second tunnel as this node speaks it: what is IPv6 goes by it to peers that have one too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Second {
    pub device: String,
    /// The outer source address.
    pub underlay: IpAddr,
    pub vtep_mac: String,
}

/// How packets for a peer leave this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// By the workers.
    Fast,
    /// By the kernel's VXLAN device or routes.
    Kernel,
}

/// Whether packets for a peer go through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Vxlan,
    /// Without the tunnel, to a peer on the uplink's link.
    Direct,
}

/// A remote node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub underlay: IpAddr,
    pub vtep_mac: String,
    /// Of its IPv6 VTEP beside an IPv4 one.
    #[serde(default)]
    pub underlay6: Option<IpAddr>,
    #[serde(default)]
    pub vtep_mac6: Option<String>,
    /// How its pods are reached: both ways where it depends on the family.
    #[serde(default)]
    pub ways: Vec<Way>,
    pub path: Path,
    /// Why not the fast path.
    pub reason: Option<String>,
    /// None while it is not probed.
    pub probe: Option<Probe>,
}

/// A remote prefix: `podwire routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub prefix: IpNet,
    pub peer: String,
    pub underlay: IpAddr,
    /// The MAC of the underlay's next hop, when it is resolved.
    pub next_hop: Option<String>,
    pub way: Way,
    pub path: Path,
    pub reason: Option<String>,
}
