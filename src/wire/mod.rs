//! What travels on the wire: views of headers that check once, and the outer headers that
//! encapsulation writes. Imports nothing of ours, allocates nothing, never panics on input.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod checksum;
mod ecn;
mod encapsulated;
mod ethernet;
mod flow;
mod ipv4;
mod ipv6;
mod mac;
mod outer;
mod protocol;
#[cfg(test)]
pub(crate) mod sample;
mod tunnel_end;
mod vxlan;

pub use checksum::{Sum, copy_and_sum, inner_sum, known_inner_sum, pseudo_v4, pseudo_v6};
pub use ecn::{Ecn, IllegalEcn};
pub use encapsulated::{Encapsulated, OuterError};
pub use ethernet::{EtherType, Ethernet};
pub use flow::{Entropy, flow_hash_v4, flow_hash_v6};
pub use ipv4::Ipv4;
pub use ipv6::Ipv6;
pub use mac::{Mac, ParseMacError};
pub use outer::{Inner, OuterParams, OuterTemplate};
pub use protocol::{IpError, Protocol};
pub use tunnel_end::TunnelEnd;
pub use vxlan::{BadFlags, Vni, VxlanHeader};
