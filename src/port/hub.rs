use std::mem;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::{PodOutlet, PodPort, Slot};
use crate::counters::{Count, DropReason, Tally, Traffic};
use crate::frame::Pool;
use crate::ids::{PodId, WorkerId};
use crate::offload::Delivery;
use crate::packet::Ring;
use crate::shared::{Account, Credits, Holder};

/// Slots that pods share of which some send more than the worker can take. What waits in them delays everybody else's
/// frames. The rest of a ring is for a worker that is kept from its core for a moment.
const SHARED: u32 = 256;

/// Which pods a worker takes frames from: those whose id leaves `worker` when divided by `workers`. The steering
/// program and the fanout divide likewise (`bpf/pod.h`, `bpf/steer.bpf.c`).
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub worker: u16,
    pub workers: u16,
}

impl Share {
    /// The worker's pods, up to the id `highest`.
    fn pods(self, highest: u16) -> impl Iterator<Item = PodId> {
        (self.worker..=highest).step_by(usize::from(self.workers.max(1))).filter_map(PodId::new)
    }
}

/// Where frames in the ring come from, each way with accounts of its own.
#[derive(Clone, Copy, Debug)]
enum Way {
    FromPods,
    FromWire,
}

impl Way {
    const BOTH: [Self; 2] = [Self::FromPods, Self::FromWire];

    fn of(self, pod: PodId) -> Holder {
        match self {
            Self::FromPods => Holder::Pod(pod),
            Self::FromWire => Holder::FromWire(pod),
        }
    }

    fn ring(self, worker: WorkerId) -> Holder {
        match self {
            Self::FromPods => Holder::Ring(worker),
            Self::FromWire => Holder::RingFromWire(worker),
        }
    }
}

/// One worker's share of the pods: its packet ring on the hub, and its way to every pod.
#[derive(Debug)]
pub struct Hub {
    ring: Ring,
    outlet: PodOutlet,
    credits: Credits,
    share: Share,
    /// The highest pod id in use; control raises it before a pod is steered.
    highest: Arc<AtomicU16>,
    /// By pod id, what it has carried.
    traffic: Arc<[Traffic]>,
    /// By account, how many frames had been claimed and refused at the last [`Hub::settle`].
    claimed: Vec<u64>,
    refused: Vec<u64>,
    /// By pod id, how many packets had found it gone by then.
    gone: Vec<u64>,
    /// Slots released since then.
    released: u32,
}

impl Hub {
    /// `traffic` is indexed by pod id. What the worker's pods had on its way to an earlier ring is given up for lost, so that
    /// nothing may be claimed for the worker yet.
    pub fn new(
        ring: Ring,
        outlet: PodOutlet,
        credits: Credits,
        share: Share,
        highest: Arc<AtomicU16>,
        traffic: Arc<[Traffic]>,
    ) -> Self {
        let (claimed, mut refused) = (vec![0; Credits::ACCOUNTS], vec![0; Credits::ACCOUNTS]);
        for way in Way::BOTH {
            for holder in share.pods(PodId::MAX).map(|pod| way.of(pod)) {
                credits.resync(holder);
                if let Some(refused) = refused.get_mut(holder.index()) {
                    *refused = credits.refused(holder);
                }
            }
            let ring = way.ring(WorkerId(share.worker));
            credits.resync(ring);
            credits.set_quota(ring, 0);
        }
        let gone = (0..=PodId::MAX).map(|id| PodId::new(id).map_or(0, |pod| credits.gone(pod))).collect();
        Self { ring, outlet, credits, share, highest, traffic, claimed, refused, gone, released: 0 }
    }

    /// The ring's descriptor, for poll(2).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.fd()
    }

    /// Whether the hub is down or gone, so that what is claimed does not arrive. A system call: not for every pass.
    pub fn is_dead(&mut self) -> bool {
        self.ring.is_dead()
    }

    /// Adds what only the kernel counts. A system call: not for every pass.
    pub fn count_lost(&mut self, tally: &mut Tally) {
        tally.set(Count::HubLost, self.ring.lost());
    }

    /// Keeps the accounts of the worker's own pods. Call with milliseconds between the looks, more than a frame needs to
    /// get into the ring.
    pub fn settle(&mut self, tally: &mut Tally) {
        for way in Way::BOTH {
            self.share_out(way);
        }
        self.count_gone(tally);
        if self.ring.ready(1) == 0 || self.released >= self.ring.slots() {
            self.released = 0;
            for way in Way::BOTH {
                self.give_up_lost(way, tally);
            }
        }
    }

    /// Bounds each pod, one way, to an equal share of [`SHARED`] slots if some were refused since the last look: they share
    /// them, with one share for all others. The bound counts while a full burst is on its way (`bpf/worker.h`).
    fn share_out(&mut self, way: Way) {
        let mut greedy = 0;
        for holder in self.holders(way) {
            let Some(last) = self.refused.get_mut(holder.index()) else { continue };
            let refused = self.credits.refused(holder);
            greedy += u64::from(refused != mem::replace(last, refused));
        }
        let share = (u64::from(self.ring.slots().min(SHARED)) / (greedy + 1)).max(1);
        self.credits.set_quota(way.ring(self.worker()), if greedy > 0 { share } else { 0 });
    }

    /// Counts the packets whose pods were gone when their trains got there.
    fn count_gone(&mut self, tally: &mut Tally) {
        for pod in self.pods() {
            let Some(last) = self.gone.get_mut(usize::from(pod.get())) else { continue };
            let gone = self.credits.gone(pod);
            tally.drop_all(DropReason::PodRefused, usize::try_from(gone - mem::replace(last, gone)).unwrap_or(0));
        }
    }

    /// Gives the credit of frames back that were lost between the steering program and the ring: those that were claimed
    /// before the last look, though the ring is empty or has gone round since.
    fn give_up_lost(&mut self, way: Way, tally: &mut Tally) {
        for holder in self.holders(way) {
            let Some(claimed) = self.claimed.get_mut(holder.index()) else { continue };
            let account = self.credits.account(holder);
            let overdue = Account { produced: *claimed, ..account }.in_flight();
            *claimed = account.produced;
            // Fewer than none on their way: some came that had been given up.
            let lost = if overdue > 0 { overdue } else { account.in_flight().min(0) };
            tally.add(Count::ClaimsLost, u64::try_from(lost).unwrap_or(0));
            self.credits.consume(holder, lost);
            self.credits.consume(way.ring(self.worker()), lost);
        }
    }

    /// The accounts of the worker's own pods.
    fn holders(&self, way: Way) -> impl Iterator<Item = Holder> + use<> {
        self.pods().map(move |pod| way.of(pod))
    }

    /// The worker's own pods.
    fn pods(&self) -> impl Iterator<Item = PodId> + use<> {
        self.share.pods(self.highest.load(Ordering::Relaxed))
    }

    fn worker(&self) -> WorkerId {
        WorkerId(self.share.worker)
    }

    fn traffic(&self, pod: PodId) -> Option<&Traffic> {
        self.traffic.get(usize::from(pod.get()))
    }
}

impl PodPort for Hub {
    fn ready(&self, limit: u32) -> u32 {
        self.ring.ready(limit)
    }

    fn fetch(&mut self, limit: u32) -> u32 {
        self.ring.fetch(limit)
    }

    fn slot(&self, index: u32) -> Option<Slot<'_>> {
        self.ring.slot(index)
    }

    fn release(&mut self, n: u32) {
        for index in 0..n {
            let Some(slot) = self.ring.slot(index) else { continue };
            let Some(pod) = PodId::new(slot.vlan) else { continue };
            let way = if slot.from_wire { Way::FromWire } else { Way::FromPods };
            self.credits.consume(way.of(pod), 1);
            self.credits.consume(way.ring(self.worker()), 1);
            if let Some(traffic) = self.traffic(pod).filter(|_| !slot.from_wire) {
                traffic.count_rx(1, slot.frame.map_or(0, <[u8]>::len) as u64);
            }
        }
        self.ring.release(n);
        self.released = self.released.saturating_add(n);
    }

    fn send(&mut self, packet: &mut Delivery) -> bool {
        let bytes = packet.frames.iter().map(|frame| frame.len() as u64).sum();
        if !self.outlet.send(packet) {
            return false;
        }
        if let Some(traffic) = self.traffic(packet.to.id) {
            traffic.count_tx(1, bytes);
        }
        true
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        self.outlet.flush(pool, tally);
    }
}
