use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::{PodPort, Slot, count_sent};
use crate::counters::{Count, DropReason, Tally, Traffic};
use crate::frame::Pool;
use crate::ids::PodId;
use crate::offload::Delivery;
use crate::packet::{Ring, Sender};
use crate::shared::{Account, Credits};

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

/// One worker's share of the pods: its packet ring on the hub, and its way out to every pod's device.
#[derive(Debug)]
pub struct Hub {
    ring: Ring,
    sender: Sender,
    credits: Credits,
    share: Share,
    /// The highest pod id in use; control raises it before a pod is steered.
    highest: Arc<AtomicU16>,
    /// By pod id, what it has carried.
    traffic: Arc<[Traffic]>,
    /// By pod id, its account at the last [`Hub::settle`].
    accounts: Vec<Account>,
    /// Slots released since then.
    released: u32,
}

impl Hub {
    /// `traffic` is indexed by pod id. What the worker's pods had on its way to an earlier ring is given up for lost, so that
    /// nothing may be claimed for the worker yet.
    pub fn new(
        ring: Ring,
        sender: Sender,
        credits: Credits,
        share: Share,
        highest: Arc<AtomicU16>,
        traffic: Arc<[Traffic]>,
    ) -> Self {
        let accounts = vec![Account::default(); usize::from(PodId::MAX) + 1];
        share.pods(PodId::MAX).for_each(|pod| credits.resync(pod));
        Self { ring, sender, credits, share, highest, traffic, accounts, released: 0 }
    }

    /// The ring's descriptor, for epoll.
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

    /// Gives the worker's own pods back the credit of frames that were lost between the steering program and the ring:
    /// those of a pod whose account stands still, though the ring was empty or has gone round since the last look. Call
    /// with milliseconds between the looks.
    pub fn settle(&mut self, tally: &mut Tally) {
        if self.ring.ready(1) != 0 && self.released < self.ring.slots() {
            return;
        }
        self.released = 0;
        for pod in self.share.pods(self.highest.load(Ordering::Relaxed)) {
            let Some(last) = self.accounts.get_mut(usize::from(pod.get())) else { continue };
            let account = self.credits.account(pod);
            if account == *last && account.in_flight() != 0 {
                tally.add(Count::ClaimsLost, u64::try_from(account.in_flight()).unwrap_or(0));
                self.credits.resync(pod);
            }
            *last = account;
        }
    }

    fn traffic(&self, pod: PodId) -> Option<&Traffic> {
        self.traffic.get(usize::from(pod.get()))
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
            let Some(slot) = self.ring.slot(index) else { continue };
            let Some(pod) = PodId::new(slot.vlan) else { continue };
            self.credits.consume(pod, 1);
            if let Some(traffic) = self.traffic(pod) {
                traffic.count_rx(1, slot.frame.map_or(0, <[u8]>::len) as u64);
            }
        }
        self.ring.release(n);
        self.released = self.released.saturating_add(n);
    }

    fn send(&mut self, packet: &mut Delivery) -> bool {
        let Some(bytes) = self.sender.push(&mut packet.frames, packet.virtio, packet.to.ifindex) else { return false };
        if let Some(traffic) = self.traffic(packet.to.id) {
            traffic.count_tx(1, bytes);
        }
        true
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        self.sender.flush(pool, |frames, bytes, taken| {
            if taken.is_ok() {
                count_sent(tally, frames, bytes);
            } else {
                tally.drop_all(DropReason::PodRefused, frames);
            }
        });
    }
}
