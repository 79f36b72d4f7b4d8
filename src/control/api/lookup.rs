//! What becomes of packets that pods of this node send to an address.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Path, Way};

/// `podwire routes --lookup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    pub address: IpAddr,
    pub to: Destination,
    /// The prefix that decides; none where the node's own routes do.
    pub prefix: Option<IpNet>,
    /// The pod's or the peer's.
    pub name: Option<String>,
    /// A MAC or an address, when it is known.
    pub next_hop: Option<String>,
    pub device: Option<String>,
    /// To a peer.
    pub way: Option<Way>,
    /// None when packets are not delivered.
    pub path: Option<Path>,
    /// Why that path, or why not at all.
    pub why: String,
}

/// Who has an address, as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// A pod of this node.
    Pod,
    /// A pod range of another node, or that node itself.
    Peer,
    /// This node itself.
    Node,
    /// Nobody: the address lies in a range of this node, and no pod has it.
    Unassigned,
    /// What the node's other routes lead to.
    Outside,
    /// Multicast, broadcast, or an address that means something on one link or one machine only.
    NotUnicast,
}
