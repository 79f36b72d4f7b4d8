//! `podwire trace`: which packets, and what is told of each. After [`Reply::Tracing`](super::Reply) comes an [`Event`] a
//! line, until the client closes its side for writing or goes away, or a bound is reached.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Which packets: those that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// From or to this pod of the node.
    pub pod: Option<String>,
    /// From or to this peer or its pods.
    pub peer: Option<String>,
    /// From or to this address, outer or inner,
    pub host: Option<IpAddr>,
    /// and an address of this range,
    pub net: Option<IpNet>,
    /// and this TCP or UDP port.
    pub port: Option<u16>,
    pub protocol: Option<Protocol>,
    pub direction: Option<Direction>,
    /// With one of these labels; with any when empty.
    pub verdicts: Vec<String>,
    /// With one of these outcomes. When empty: with any if verdicts are named, else with any but [`Outcome::Kernel`].
    pub outcomes: Vec<Outcome>,
    /// Bytes of each frame that are wanted.
    pub snap: u16,
    /// Of so many packets one is taken.
    pub sample: u32,
    /// Ends after so many packets.
    pub count: Option<u64>,
    /// Ends after so long.
    pub seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Tcp,
    Udp,
    /// Of either IP version.
    Icmp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    FromPod,
    ToPod,
    /// From a pod to another one of this node.
    Local,
}

/// What a trace tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    Packet(Box<Packet>),
    /// The last one.
    End(End),
}

/// A packet at one of the places that it passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The node's device that it came from or goes to.
    pub interface: String,
    pub side: Side,
    pub direction: Direction,
    /// `worker`, or the steering program.
    pub seen_by: String,
    pub outcome: Outcome,
    /// The label of what was decided, as in `podwire stats`; `forwarded` by a worker.
    pub verdict: String,
    /// What the label means.
    pub meaning: String,
    /// The pod on this side of its way.
    pub pod: Option<String>,
    /// Where it goes next, when a worker carries it.
    pub next_hop: Option<String>,
    /// Of the inner packet, if there is one.
    pub flow: Option<Flow>,
    /// Bytes of the whole frame.
    pub length: u64,
    /// Packets that this trace has lost since the one before.
    pub lost: u64,
    /// The frame's first bytes, in hexadecimal.
    pub bytes: String,
}

/// A packet's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    pub source: IpAddr,
    pub destination: IpAddr,
    /// By IANA's number.
    pub protocol: u8,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// The two ends of the tunnel that it is in.
    pub tunnel: Option<(IpAddr, IpAddr)>,
}

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// As the pod sends or gets it.
    Pod,
    /// As the other nodes send or get it.
    Wire,
}

/// Who has a packet after it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The fast path.
    Fast,
    /// The kernel path.
    Kernel,
    /// Nobody.
    Dropped,
}

/// How a trace ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub reason: String,
    /// Packets that were told of.
    pub packets: u64,
    /// Packets that should have been, and were lost because they came too fast.
    pub lost: u64,
}
