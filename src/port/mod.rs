//! Where frames come in and go out. The pipeline knows only these two traits; what is behind them is the
//! kernel ([`Uplink`], [`Hub`]) or memory ([`memory`]).
//!
//! A worker owns its ports. `flush` is where a port may make a system call, once per burst.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod hub;
pub mod memory;
mod outlet;
mod pod_outlet;
mod uplink;

use crate::counters::{Count, Tally};
use crate::frame::{Frame, Pool};
use crate::offload::Delivery;
use crate::wire::Entropy;

use crate::packet::Sent;
pub use crate::packet::Slot;
pub use hub::{Hub, Share};
pub use outlet::Outlet;
pub use pod_outlet::PodOutlet;
pub use uplink::Uplink;

/// The underlay: whole Ethernet frames, in packet memory in both directions.
pub trait WirePort {
    /// How many outer flows it wants. Where they are few, it wants the frames of each in a burst one after the other.
    fn entropy(&self) -> Entropy;

    /// Appends received frames to `burst`, up to its capacity.
    fn receive(&mut self, burst: &mut Vec<Frame>);

    /// Queues a frame; it comes back when there is no room, and [`WirePort::flush`] makes some.
    fn send(&mut self, frame: Frame) -> Result<(), Frame>;

    /// Starts the sending of what is queued, takes sent frames back into the pool, and gives the receive
    /// side new ones.
    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally);
}

/// The pods of this node: frames from them are borrowed from a ring, frames to them are copied by the kernel.
pub trait PodPort {
    /// How many received frames wait, counted up to `limit`.
    fn ready(&self, limit: u32) -> u32;

    /// Makes waiting frames readable, up to `limit`, and returns how many are until they are released.
    fn fetch(&mut self, limit: u32) -> u32;

    /// The `index`th of the fetched frames; `None` if it makes no sense.
    fn slot(&self, index: u32) -> Option<Slot<'_>>;

    /// Gives the first `n` fetched frames back.
    fn release(&mut self, n: u32);

    /// Queues a packet, whose frames it takes; false, and none taken, when there is no room, and [`PodPort::flush`]
    /// makes some.
    #[must_use]
    fn send(&mut self, packet: &mut Delivery) -> bool;

    /// Hands over what is queued and takes the frames back into the pool.
    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally);
}

/// Counts what pods got.
fn count_sent(tally: &mut Tally, Sent { packets, frames, bytes }: Sent) {
    tally.add(Count::PodTxPackets, packets as u64);
    tally.add(Count::PodTxBytes, bytes);
    if packets > 1 {
        tally.add(Count::PodTxTrains, packets as u64);
    } else if frames > 1 {
        tally.add(Count::PodTxSuper, 1);
        tally.add(Count::PodTxMerged, frames as u64);
    }
}
