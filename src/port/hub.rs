use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::{PodPort, Slot};
use crate::counters::{Count, DropReason, Tally};
use crate::fib::LocalPod;
use crate::frame::{Frame, Pool};
use crate::ids::PodId;
use crate::packet::{Ring, Sender, VIRTIO_HEADER};
use crate::shared::Credits;

/// A frame as it stands: no checksum left to complete, nothing to segment.
const PLAIN: [u8; VIRTIO_HEADER] = [0; VIRTIO_HEADER];

/// One worker's share of the pods: its packet ring on the hub, and its way out to every pod's device.
#[derive(Debug)]
pub struct Hub {
    ring: Ring,
    sender: Sender,
    credits: Credits,
    /// The highest pod id in use; control raises it before a pod is steered.
    highest: Arc<AtomicU16>,
    /// By pod id, the frames in flight at the last [`Hub::settle`].
    stalled: Vec<i64>,
}

impl Hub {
    pub fn new(ring: Ring, sender: Sender, credits: Credits, highest: Arc<AtomicU16>) -> Self {
        Self { ring, sender, credits, highest, stalled: vec![0; usize::from(PodId::MAX) + 1] }
    }

    /// The ring's descriptor, for epoll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Adds what only the kernel counts. A system call: not for every pass.
    pub fn count_lost(&mut self, tally: &mut Tally) {
        tally.set(Count::HubLost, self.ring.lost());
    }

    /// Gives pods back the credit of frames that were lost between the steering program and the ring: those
    /// still in flight as many as at the last look, though the ring is empty. Call with an empty ring, and
    /// with milliseconds between the looks.
    pub fn settle(&mut self) {
        let highest = usize::from(self.highest.load(Ordering::Relaxed));
        for (id, stalled) in (0..=highest).zip(&mut self.stalled) {
            let Some(pod) = u16::try_from(id).ok().and_then(PodId::new) else { continue };
            let in_flight = self.credits.in_flight(pod);
            if in_flight != 0 && in_flight == *stalled {
                self.credits.resync(pod);
            }
            *stalled = in_flight;
        }
    }
}

impl PodPort for Hub {
    fn ready(&self, limit: u32) -> u32 {
        self.ring.ready(limit)
    }

    fn slot(&self, index: u32) -> Option<Slot<'_>> {
        self.ring.slot(index)
    }

    fn release(&mut self, n: u32) {
        for index in 0..n {
            if let Some(pod) = self.ring.slot(index).and_then(|slot| PodId::new(slot.vlan)) {
                self.credits.consume(pod, 1);
            }
        }
        self.ring.release(n);
    }

    fn send(&mut self, frame: Frame, to: &LocalPod) -> Result<(), Frame> {
        self.sender.push(frame, PLAIN, to.ifindex)
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        self.sender.flush(|frame, taken| {
            if taken {
                tally.add(Count::PodTxPackets, 1);
                tally.add(Count::PodTxBytes, frame.len() as u64);
            } else {
                tally.drop(DropReason::PodRefused);
            }
            pool.put(frame);
        });
    }
}
