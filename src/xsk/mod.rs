//! AF_XDP sockets: one [`Socket`] per queue of a device, over packet memory registered with it; and what the device
//! says of its queues.
//!
//! Owned by the uplink port of one worker; opened by control. What moves where:
//!
//! ```text
//!   fill()     pool ──▶ fill ring ──▶ kernel ──▶ receive ring ──▶ hands      receive()
//!   send()    hands ──▶ send ring ──▶ kernel ──▶ completion ring ──▶ pool    complete()
//! ```
//!
//! Invariants, cited by the SAFETY comments:
//! 1. The ring mappings live as long as the [`Socket`] that made them; ring pointers never outlive it.
//! 2. A ring has `size` slots, a power of two; an index is masked before it becomes a pointer.
//! 3. A producer writes only slots between its own cursor and the consumer's plus `size`; a consumer reads
//!    only slots between its own cursor and the producer's. Cursors are free-running `u32`s.
//! 4. A chunk is redeemed only if the [`Ledger`] says that it was lent on that side, and it is taken off the
//!    ledger in the same step: whatever address the kernel returns, no chunk gets two frames.
//!
//! Source: the kernel's Documentation/networking/af_xdp.rst, net/xdp/xsk.c, include/uapi/linux/if_xdp.h.
#![allow(unsafe_code, reason = "rings shared with the kernel")]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod ethtool;
mod ledger;
mod mapping;
mod napi;
mod queues;
mod ring;
mod socket;
pub(crate) mod sys;

pub use ethtool::{Driver, Rings, complete_checksums, hashes_udp_ports};
pub use ledger::Ledger;
pub use mapping::Mapping;
pub use napi::{Deferral, NapiPage};
pub use queues::Queues;
pub use socket::{Binding, Error, Options, Socket};
