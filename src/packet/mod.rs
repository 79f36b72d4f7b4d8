//! AF_PACKET, the pods' side: a [`Ring`] that receives from the hub device with the frames' offload requests
//! kept (`struct virtio_net_hdr`), and a [`Sender`] that hands frames to the pods' veth devices. Both are owned by the hub
//! port of one worker, and opened by control, which also looks at single packets through a [`Tap`].
//!
//! Invariants, cited by the SAFETY comments:
//! 1. The ring's mapping lives as long as the [`Ring`]; references into a slot borrow the ring.
//! 2. A slot whose status has `TP_STATUS_USER` is ours until [`Ring::release`] clears it; the kernel does not
//!    write it meanwhile. Slots become ours in order.
//! 3. Offsets and lengths in a slot's header are checked against the slot before they are used.
//! 4. The kernel reads the message arrays of a [`Sender`] only during `sendmmsg`, and the steps of a [`Filter`] only
//!    during `setsockopt`.
//!
//! Source: the kernel's Documentation/networking/packet_mmap.rst and net/packet/af_packet.c.
#![allow(unsafe_code, reason = "a ring shared with the kernel, and scatter-gather system calls")]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod filter;
mod ring;
mod sender;
mod tap;

use std::io;

pub use filter::{Filter, Step, Then};
pub use ring::{Fanout, Ring, Slot};
pub use sender::{Outgoing, Sender, Sent};
pub use tap::Tap;

use crate::ids::IfIndex;
use crate::offload::VirtioNetHdr;

/// Bytes of the `struct virtio_net_hdr` that stands before each frame in both directions.
pub const VIRTIO_HEADER: usize = VirtioNetHdr::LEN;

/// Why a packet socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a packet socket: {0}")]
    Open(io::Error),
    #[error("cannot set {option} on a packet socket: {source}")]
    Option { option: &'static str, source: io::Error },
    #[error("cannot map a packet ring of {slots} slots: {source}; lower `dataplane.hub_slots`")]
    Map { slots: u32, source: io::Error },
    #[error("cannot bind a packet ring to device {ifindex}: {source}")]
    Bind { ifindex: IfIndex, source: io::Error },
}
