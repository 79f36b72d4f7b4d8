//! The route table of the data plane: longest-prefix match to a [`NextHop`] that carries
//! everything encapsulation needs. Control builds a table and publishes it; workers only read.

use crate::ids::{IfIndex, PodId};
use crate::wire::{Mac, OuterTemplate};

/// Where a packet goes. Resolved by control, never per packet.
#[derive(Clone, Debug)]
pub enum NextHop {
    /// A pod range of another node: encapsulate and send on the uplink.
    Remote(Remote),
    /// A pod of this node: rewrite the MACs and hand it over.
    Local(LocalPod),
    /// Our own range without a pod, or a peer that cannot be reached: drop.
    Blackhole,
}

/// A remote node.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The outer headers and the inner Ethernet header, ready but for four fields.
    pub outer: OuterTemplate,
    /// The largest inner IP packet, in bytes, that fits the path.
    pub mtu: u16,
}

/// A pod on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalPod {
    pub id: PodId,
    /// The host end of the pod's veth pair.
    pub ifindex: IfIndex,
    /// The pod's own MAC: the inner destination.
    pub mac: Mac,
    /// The host end's MAC: the inner source, which the pod knows as its gateway.
    pub gateway_mac: Mac,
}
