//! What packets look like on their way, for whoever traces them: a [`Filter`] says which, a worker's [`Tap`] copies
//! their first bytes into a [`Feed`], and somebody else reads it.
//!
//! ```text
//!   pod ── pod_rx ──▶ encapsulate ── wire_tx ──▶ wire         worker ── Tap ──▶ Feed ──▶ reader
//!   pod ◀── pod_tx ── decapsulate ◀── wire_rx ── wire                   full: counted, and lost
//! ```
//!
//! The pipeline tells a [`Trace`] of every packet at these four points, with what it decided. It is compiled once for
//! [`Off`], where telling takes no instruction, and once for [`Tap`]. A feed exists only while somebody traces; nobody
//! ever waits for its reader.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod filter;
mod flow;
mod sampler;
mod tap;

use std::net::IpAddr;

use crate::counters::DropReason;
use crate::fib::{LocalPod, Remote};
use crate::ids::PodId;

pub use filter::{Fates, Filter, Party, Prefix};
pub use flow::Flow;
pub use sampler::Sampler;
pub use tap::{Feed, Record, SNAP, Tap};

/// Who is told of packets by the pipeline. A packet that is lost when it is handed over is told of twice: as it was to
/// go, and as lost.
pub trait Trace {
    /// A frame from a pod goes to a remote node, or is lost.
    fn pod_rx(&mut self, frame: &[u8], fate: Result<&Remote, DropReason>);

    /// A frame from a pod goes to the wire, encapsulated, and if it was a super-packet in parts.
    fn wire_tx(&mut self, frame: &[u8], remote: &Remote);

    /// A frame from the wire goes to a pod, or is lost.
    fn wire_rx(&mut self, frame: &[u8], fate: Result<&LocalPod, DropReason>);

    /// A frame from the wire goes to its pod, decapsulated, or is lost there. Those that are merged go one by one, and
    /// are lost together: then it is the first of them.
    fn pod_tx(&mut self, frame: &[u8], fate: Result<&LocalPod, DropReason>);
}

/// Nobody traces.
#[derive(Debug)]
pub struct Off;

impl Trace for Off {
    #[inline]
    fn pod_rx(&mut self, _: &[u8], _: Result<&Remote, DropReason>) {}

    #[inline]
    fn wire_tx(&mut self, _: &[u8], _: &Remote) {}

    #[inline]
    fn wire_rx(&mut self, _: &[u8], _: Result<&LocalPod, DropReason>) {}

    #[inline]
    fn pod_tx(&mut self, _: &[u8], _: Result<&LocalPod, DropReason>) {}
}

/// Where a worker sees a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    PodRx,
    WireTx,
    WireRx,
    PodTx,
}

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    FromPod,
    ToPod,
    /// From a pod to another one of this node.
    Local,
}

impl Point {
    pub fn direction(self) -> Direction {
        match self {
            Self::PodRx | Self::WireTx => Direction::FromPod,
            Self::WireRx | Self::PodTx => Direction::ToPod,
        }
    }
}

/// What a worker did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on to this next hop.
    Forwarded(Hop),
    Dropped(DropReason),
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A remote node, by its underlay address.
    Vtep(IpAddr),
    Pod(PodId),
}
