//! Ports over plain memory, for tests, benches and simulation.

use std::collections::VecDeque;

use super::{PodPort, Slot, WirePort, count_sent};
use crate::counters::{DropReason, Tally};
use crate::frame::{Frame, HEADROOM, Pool};
use crate::ids::PodId;
use crate::offload::{Delivery, VirtioNetHdr};
use crate::packet::{Sent, VIRTIO_HEADER};
use crate::wire::Entropy;

/// An underlay in memory.
#[derive(Debug, Default)]
pub struct MemoryWire {
    /// Frames to be received.
    pub incoming: VecDeque<Frame>,
    /// How many outer flows it wants.
    pub entropy: Entropy,
    /// How many frames one call receives; 0 for any number.
    pub most: usize,
    /// Frames sent since the last flush.
    queued: Vec<Frame>,
    /// How many frames fit before a flush; 0 for any number.
    pub room: usize,
    /// Whether the device takes nothing, so that there never is room.
    pub stuck: bool,
    /// Whether the device drops what it took.
    pub lossy: bool,
    /// What was sent, if it is to be kept.
    pub sent: Option<Vec<Vec<u8>>>,
}

impl MemoryWire {
    /// A wire that remembers what is sent on it.
    pub fn recording() -> Self {
        Self { sent: Some(Vec::new()), ..Self::default() }
    }

    /// Puts a frame of these bytes on the receive side; false when the pool is empty or the frame too long.
    pub fn offer(&mut self, bytes: &[u8], pool: &mut Pool) -> bool {
        let Some(mut frame) = pool.take() else { return false };
        frame.reset(HEADROOM);
        let fits = frame.set_len(bytes.len());
        if fits {
            frame.copy_from_slice(bytes);
            self.incoming.push_back(frame);
        } else {
            pool.put(frame);
        }
        fits
    }
}

impl WirePort for MemoryWire {
    fn entropy(&self) -> Entropy {
        self.entropy
    }

    fn receive(&mut self, burst: &mut Vec<Frame>) {
        let most = if self.most == 0 { burst.capacity() } else { self.most };
        while burst.len() < most.min(burst.capacity()) {
            let Some(frame) = self.incoming.pop_front() else { break };
            burst.push(frame);
        }
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.stuck || (self.room != 0 && self.queued.len() == self.room) {
            return Err(frame);
        }
        self.queued.push(frame);
        Ok(())
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        for frame in self.queued.drain(..) {
            if self.lossy {
                tally.drop(DropReason::UplinkRefused);
            } else if let Some(sent) = &mut self.sent {
                sent.push(frame.to_vec());
            }
            pool.put(frame);
        }
    }
}

/// A frame from a pod, as the hub's ring would hold it.
#[derive(Clone, Debug)]
pub struct FromPod {
    pub pod: PodId,
    /// Whether it is one from the wire instead, for the pod.
    pub from_wire: bool,
    pub virtio: [u8; VIRTIO_HEADER],
    /// `None` for a frame that the ring had to truncate.
    pub frame: Option<Vec<u8>>,
}

/// A packet as a pod got it.
#[derive(Clone, Debug)]
pub struct ToPod {
    pub pod: PodId,
    pub virtio: VirtioNetHdr,
    pub frame: Vec<u8>,
}

/// A packet for a pod, whose next so many frames wait with the others'.
#[derive(Debug)]
struct Queued {
    pod: PodId,
    virtio: VirtioNetHdr,
    frames: usize,
}

/// Pods in memory.
#[derive(Debug, Default)]
pub struct MemoryPods {
    /// Frames from pods. Released ones stay until [`MemoryPods::rewind`], so that a bench can offer them again.
    pub incoming: Vec<FromPod>,
    next: usize,
    queued: Vec<Queued>,
    frames: Vec<Frame>,
    /// Whether the pods' devices are gone, so that nothing can be sent.
    pub closed: bool,
    /// What was handed over, if it is to be kept.
    pub delivered: Option<Vec<ToPod>>,
}

impl MemoryPods {
    /// Pods that remember what they are handed.
    pub fn recording() -> Self {
        Self { delivered: Some(Vec::new()), ..Self::default() }
    }

    /// Offers all frames from pods once more.
    pub fn rewind(&mut self) {
        self.next = 0;
    }
}

impl PodPort for MemoryPods {
    fn ready(&self, limit: u32) -> u32 {
        limit.min(u32::try_from(self.incoming.len() - self.next).unwrap_or(u32::MAX))
    }

    fn fetch(&mut self, limit: u32) -> u32 {
        self.ready(limit)
    }

    fn slot(&self, index: u32) -> Option<Slot<'_>> {
        let from = self.incoming.get(self.next + index as usize)?;
        Some(Slot {
            virtio: &from.virtio,
            vlan: from.pod.get(),
            from_wire: from.from_wire,
            frame: from.frame.as_deref(),
        })
    }

    fn release(&mut self, n: u32) {
        self.next += n as usize;
    }

    fn send(&mut self, packet: &mut Delivery) -> bool {
        if self.closed {
            return false;
        }
        self.queued.push(Queued { pod: packet.to.id, virtio: packet.virtio, frames: packet.frames.len() });
        self.frames.append(&mut packet.frames);
        true
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        let mut frames = self.frames.drain(..);
        for Queued { pod, virtio, frames: count } in self.queued.drain(..) {
            let (mut bytes, mut packet) = (0, Vec::new());
            for frame in frames.by_ref().take(count) {
                bytes += frame.len() as u64;
                if self.delivered.is_some() {
                    packet.extend_from_slice(&frame);
                }
                pool.put(frame);
            }
            count_sent(tally, Sent { packets: 1, frames: count, bytes });
            if let Some(delivered) = &mut self.delivered {
                delivered.push(ToPod { pod, virtio, frame: packet });
            }
        }
    }
}
