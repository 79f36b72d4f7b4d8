//! NAPI busy-polling: the reader of a queue's ring runs the driver's receive path itself, on its own core, by a system
//! call for each look that finds the ring empty; the device's interrupts stay off meanwhile.
//!
//! What the kernel does (read in 6.18, and tried out):
//!
//! | | source |
//! |---|---|
//! | `recvfrom` on an AF_XDP socket runs the NAPI that the socket names, once, with `SO_BUSY_POLL_BUDGET` as its budget; without one it returns at once | net/xdp/xsk.c `__xsk_recvmsg`, include/net/busy_poll.h `sk_busy_loop` |
//! | the socket names that of the receive queue, if the driver has told which it is (`netif_queue_set_napi`), from `bind` on; before Linux 6.14, for copies 6.15, that of `xdp_rxq_info`, from the first frame on | `xsk_bind`; before, `sk_mark_napi_id_once_xdp` |
//! | veth tells none: `SO_INCOMING_NAPI_ID` stays 0 under native and generic XDP, and the call does nothing. Where older kernels have one, its NAPI runs when a sender of this machine has sent, on the sender's core; there is no interrupt to save | drivers/net/veth.c `__veth_xdp_flush` |
//! | with `SO_PREFER_BUSY_POLL` each run puts interrupts off for `gro_flush_timeout`, if that and `napi_defer_hard_irqs` are set; else the driver turns them on again after each run | net/core/dev.c `busy_poll_stop` |
//! | when no run has come for so long, a timer runs the NAPI in softirq, and after `napi_defer_hard_irqs` runs in vain interrupts are on: who sleeps in poll(2) is woken at most that much later | `napi_watchdog`, `napi_complete_done` |
//! | it takes `CAP_NET_ADMIN` to ask for it, none to do it | net/core/sock.c `sk_setsockopt` |
//!
//! So it pays where the device holds interrupts back ([`Deferral`]) and the driver names a NAPI; elsewhere each system
//! call would be in vain, and none is made.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::sys;
use crate::ids::IfIndex;

/// For so many microseconds a call that blocks would run the NAPI. Ours do not block: one run each, if it is not 0.
const BUSY_USECS: libc::c_int = 20;

/// Frames of a run at most: what drivers are made for (`NAPI_POLL_WEIGHT`). Without it, it is 8.
const BUDGET: libc::c_int = 64;

/// What a device does with interrupts after a run of a NAPI, as told by sysfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deferral {
    /// After how many runs in vain interrupts are turned on again.
    pub hard_irqs: u64,
    /// The time between these runs, in nanoseconds.
    pub timeout_ns: u64,
}

impl Deferral {
    /// Of a device; none where sysfs is not of its network namespace.
    pub fn of(device: &str, ifindex: IfIndex) -> Option<Self> {
        Self::read(&Path::new("/sys/class/net").join(device), ifindex)
    }

    fn read(directory: &Path, ifindex: IfIndex) -> Option<Self> {
        let number = |file: &str| fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u64>().ok();
        let is_it = number("ifindex")? == u64::from(ifindex.0);
        is_it.then_some(())?;
        Some(Self { hard_irqs: number("napi_defer_hard_irqs")?, timeout_ns: number("gro_flush_timeout")? })
    }

    /// Whether interrupts stay off from one run to the next.
    pub fn holds_back(self) -> bool {
        self.hard_irqs > 0 && self.timeout_ns > 0
    }
}

/// What others may know of the runs of a queue's NAPI.
#[derive(Debug, Default)]
pub struct NapiPage {
    /// The NAPI that the socket names; 0 for none.
    pub id: AtomicU32,
    /// Runs by the reader, a system call each.
    pub runs: AtomicU64,
    /// Frames that were in the ring after them.
    pub frames: AtomicU64,
}

/// A queue's NAPI, as its reader runs it.
#[derive(Debug, Default)]
pub(super) struct Napi {
    /// The kernel has been asked for it.
    is_wanted: bool,
    /// And has a NAPI to run.
    is_run: bool,
    runs: u64,
    frames: u64,
    page: Arc<NapiPage>,
}

impl Napi {
    pub fn page(&self) -> &Arc<NapiPage> {
        &self.page
    }

    /// Asks for busy-polling on a socket that is bound.
    pub fn ask(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let yes: libc::c_int = 1;
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET, &BUDGET)?;
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_PREFER_BUSY_POLL, &yes)?;
        // The one without which the others do nothing.
        sys::set_option(fd, libc::SOL_SOCKET, libc::SO_BUSY_POLL, &BUSY_USECS)?;
        self.is_wanted = true;
        self.look(fd);
        Ok(())
    }

    /// Finds out whether the socket names a NAPI by now, and tells what there was. A system call until it does.
    pub fn look(&mut self, fd: BorrowedFd<'_>) {
        if self.is_wanted && !self.is_run {
            // SAFETY: any bytes are a number.
            let id = unsafe { sys::get_option::<u32>(fd, libc::SOL_SOCKET, libc::SO_INCOMING_NAPI_ID) }.unwrap_or(0);
            self.name(id);
        }
        self.page.runs.store(self.runs, Ordering::Relaxed);
        self.page.frames.store(self.frames, Ordering::Relaxed);
    }

    fn name(&mut self, id: u32) {
        self.is_run = self.is_wanted && id != 0;
        self.page.id.store(id, Ordering::Relaxed);
    }

    /// Appends what `take` finds to `burst`, up to its capacity; after `run`, once, if it found nothing and that helps.
    pub fn receive<T>(&mut self, burst: &mut Vec<T>, mut take: impl FnMut(&mut Vec<T>), run: impl FnOnce()) {
        let before = burst.len();
        take(burst);
        if !self.is_run || burst.len() != before || before == burst.capacity() {
            return;
        }
        run();
        self.runs += 1;
        take(burst);
        self.frames += (burst.len() - before) as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use super::*;

    /// A ring of numbers, and a NAPI that puts more there when it is run.
    #[derive(Default)]
    struct Queue {
        ring: RefCell<VecDeque<u32>>,
        device: RefCell<VecDeque<u32>>,
        calls: Cell<u32>,
    }

    impl Queue {
        fn receive(&self, napi: &mut Napi, burst: &mut Vec<u32>) {
            let take = |burst: &mut Vec<u32>| {
                while burst.len() < burst.capacity() {
                    let Some(frame) = self.ring.borrow_mut().pop_front() else { break };
                    burst.push(frame);
                }
            };
            let run = || {
                self.calls.set(self.calls.get() + 1);
                self.ring.borrow_mut().append(&mut self.device.borrow_mut());
            };
            napi.receive(burst, take, run);
        }
    }

    fn named(is_wanted: bool, id: u32) -> Napi {
        let mut napi = Napi { is_wanted, ..Napi::default() };
        napi.name(id);
        napi
    }

    #[test]
    fn an_empty_ring_costs_no_call_where_there_is_no_napi_to_run() {
        for mut napi in [Napi::default(), named(false, 0), named(true, 0), named(false, 8193)] {
            let (queue, mut burst) = (Queue::default(), Vec::with_capacity(4));
            queue.device.borrow_mut().push_back(1);
            for _ in 0..1000 {
                queue.receive(&mut napi, &mut burst);
            }
            assert_eq!((queue.calls.get(), burst.len(), napi.runs), (0, 0, 0), "{napi:?}");
        }
    }

    #[test]
    fn a_napi_is_run_once_a_look_that_found_nothing_and_had_room() {
        let (mut napi, queue) = (named(true, 8193), Queue::default());
        let mut burst = Vec::with_capacity(4);
        queue.receive(&mut napi, &mut burst);
        assert_eq!((queue.calls.get(), burst.len()), (1, 0), "in vain");
        queue.device.borrow_mut().extend([1, 2, 3, 4, 5]);
        queue.receive(&mut napi, &mut burst);
        assert_eq!((queue.calls.get(), &burst[..]), (2, &[1, 2, 3, 4][..]), "up to the capacity");
        queue.receive(&mut napi, &mut burst);
        assert_eq!((queue.calls.get(), burst.len()), (2, 4), "no room");
        burst.clear();
        queue.device.borrow_mut().push_back(6);
        queue.receive(&mut napi, &mut burst);
        assert_eq!((queue.calls.get(), &burst[..]), (2, &[5][..]), "the ring had one");
        queue.receive(&mut napi, &mut burst);
        assert_eq!((queue.calls.get(), &burst[..]), (3, &[5, 6][..]), "behind those of another queue");
        assert_eq!((napi.runs, napi.frames), (3, 5));
    }

    #[test]
    fn interrupts_are_held_back_by_both_settings_of_the_device_that_is_meant() {
        let device = tempfile::tempdir().unwrap();
        let write = |file: &str, value: &str| fs::write(device.path().join(file), value).unwrap();
        let read = || Deferral::read(device.path(), IfIndex(7));
        assert_eq!(read(), None);
        for (hard_irqs, timeout, holds_back) in
            [("0", "0", false), ("2", "0", false), ("0", "200000", false), ("2", "200000", true)]
        {
            write("ifindex", "7\n");
            write("napi_defer_hard_irqs", &format!("{hard_irqs}\n"));
            write("gro_flush_timeout", &format!("{timeout}\n"));
            assert_eq!(read().unwrap().holds_back(), holds_back, "{hard_irqs} {timeout}");
        }
        write("ifindex", "8\n");
        assert_eq!(read(), None, "another namespace's");
    }
}
