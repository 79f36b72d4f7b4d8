use std::net::IpAddr;

use super::Mac;

/// Where a tunnel ends: the address of its outer packets, and the MAC of its inner frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    pub underlay: IpAddr,
    pub mac: Mac,
}
