//! The way to a peer over the underlay.
use crate::wire::Mac;
use std::net::IpAddr;

/// The next hop towards a peer, by the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The gateway, or the peer itself on one link.
    pub via: IpAddr,
    pub dst_mac: Mac,
}

/// Why a peer cannot be reached by the data plane now; the kernel path carries it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHop {
    #[error("there is no route to it")]
    NoRoute,
    #[error("its route leaves by {0}, not by the uplink")]
    OtherDevice(String),
    #[error("the link-layer address of {0} is not resolved")]
    Unresolved(IpAddr),
}
