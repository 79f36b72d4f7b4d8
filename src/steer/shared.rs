//! The two BPF arrays that the workers and the programs both write: signs of life and credits.
//!
//! A [`Heartbeat`] belongs to one worker, which writes `beat_ns` and `asleep`; the programs write `called_ns`
//! when they claim a frame for a sleeper (`bpf/worker.h`). [`Credits`] are shared by all workers: each writes the
//! `consumed` of the pods whose frames it takes, the programs write `produced`.
//!
//! Everything here is an atomic on mapped memory: no system call, no lock, no allocation after the mapping.
//!
//! Invariants:
//! 1. A [`Mapping`] is made by one successful `mmap` of `bytes` bytes, page aligned, readable and writable, and
//!    unmapped only when it is dropped; `len * size_of::<T>() <= bytes`.
//! 2. `T` is [`Heart`] or [`Credit`]: `repr(C)`, 64 bytes, aligned to at most a page, made of atomics alone, valid
//!    for every bit pattern. Other writers (the programs, other mappings) write whole aligned words.
#![allow(unsafe_code, reason = "maps memory that the kernel's programs write too")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::{PodId, WorkerId};

/// `struct heartbeat` of `bpf/maps.h`.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Heart {
    beat_ns: AtomicU64,
    asleep: AtomicU64,
    called_ns: AtomicU64,
    pad: [AtomicU64; 5],
}

/// `struct credit` of `bpf/maps.h`.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Credit {
    produced: AtomicU64,
    consumed: AtomicU64,
    pad: [AtomicU64; 6],
}

mod sealed {
    /// A type that invariant 2 holds for.
    pub trait Shared {}
    impl Shared for super::Heart {}
    impl Shared for super::Credit {}
}

/// An array of `T` in shared memory.
#[derive(Debug)]
pub(super) struct Mapping<T: sealed::Shared> {
    base: NonNull<T>,
    len: usize,
    bytes: usize,
}

// SAFETY: invariants 1 and 2: the memory belongs to no thread, and `T` is made of atomics.
unsafe impl<T: sealed::Shared> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: sealed::Shared> Sync for Mapping<T> {}

impl<T: sealed::Shared> Mapping<T> {
    /// Maps the first `len` entries of an mmapable BPF array whose values are `T`.
    pub(super) fn of_map(fd: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        Self::map(len, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// Zeroed memory of this process alone.
    #[cfg(test)]
    fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    fn map(len: usize, flags: libc::c_int, fd: libc::c_int) -> io::Result<Self> {
        let bytes = len * size_of::<T>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory in use.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, len, bytes })
    }

    fn entries(&self) -> &[T] {
        // SAFETY: invariant 1 for the range and its lifetime, invariant 2 for the contents and for other writers.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T: sealed::Shared> Drop for Mapping<T> {
    fn drop(&mut self) {
        // SAFETY: invariant 1; every borrow of the memory is a borrow of `self`, and so has ended.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "munmap of a whole mapping");
    }
}

/// A worker's sign of life. While it is stale the programs leave all frames to the kernel path.
///
/// Fresh means: polling and beaten within the limit, or asleep and, if called, called within the limit.
/// Times are nanoseconds of `CLOCK_MONOTONIC`, which is what `bpf_ktime_get_ns` reads.
#[derive(Debug)]
pub struct Heartbeat {
    hearts: Arc<Mapping<Heart>>,
    index: usize,
}

impl Heartbeat {
    /// The heartbeat of `worker`, or `None` beyond the last slot. It begins stopped, unless it runs already.
    pub(super) fn new(hearts: Arc<Mapping<Heart>>, worker: WorkerId) -> Option<Self> {
        let index = usize::from(worker.0);
        (index < hearts.len).then_some(Self { hearts, index })
    }

    fn heart(&self) -> &Heart {
        &self.hearts.entries()[self.index]
    }

    /// Says that the worker polls at `now_ns`. Due well within the limit: about every millisecond.
    pub fn beat(&self, now_ns: u64) {
        self.heart().beat_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Says that the worker is about to block, having beaten at least once. After this it must look at its rings
    /// once more before it blocks: a frame claimed earlier may not wake it.
    ///
    /// A call can get lost together with its frame (a full ring), and a call that nobody answers reads as a hang:
    /// block for a bounded time, a second or so, then [`Heartbeat::wake`].
    pub fn sleep(&self) {
        self.heart().called_ns.store(0, Ordering::Relaxed);
        // Pairs with the programs' reads: who sees the sleeper must not see an old call. The order against the
        // look at the rings that follows needs the full fence.
        self.heart().asleep.store(1, Ordering::SeqCst);
    }

    /// Says that the worker polls again, at `now_ns`.
    pub fn wake(&self, now_ns: u64) {
        self.beat(now_ns);
        // Who sees the worker awake must see the new beat.
        self.heart().asleep.store(0, Ordering::Release);
    }

    /// Says that the worker takes no more frames: stale at once.
    pub fn stop(&self) {
        self.beat(0);
        self.heart().asleep.store(0, Ordering::Release);
    }
}

/// The frames of each pod between `pod_steer` and its worker. The steering program refuses a pod's frames at the
/// quota, so that no pod fills a ring that others share.
#[derive(Clone, Debug)]
pub struct Credits {
    credits: Arc<Mapping<Credit>>,
}

impl Credits {
    /// `credits` has a slot for every pod id.
    pub(super) fn new(credits: Arc<Mapping<Credit>>) -> Option<Self> {
        (credits.len > usize::from(PodId::MAX)).then_some(Self { credits })
    }

    fn credit(&self, pod: PodId) -> &Credit {
        &self.credits.entries()[usize::from(pod.get())]
    }

    /// Gives back `n` credits of `pod`: that many of its frames have left the ring. Only the pod's worker calls
    /// this, so it is a load and a store.
    pub fn consume(&self, pod: PodId, n: u64) {
        let consumed = &self.credit(pod).consumed;
        consumed.store(consumed.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Frames of `pod` that were claimed and not yet consumed, those lost on the way among them.
    pub fn in_flight(&self, pod: PodId) -> u64 {
        let credit = self.credit(pod);
        let consumed = credit.consumed.load(Ordering::Relaxed);
        credit.produced.load(Ordering::Relaxed).wrapping_sub(consumed)
    }

    /// Forgets the frames in flight: they were lost. Only the pod's worker calls this, and only when
    /// [`Credits::in_flight`] has stood still while the ring was empty for longer than a frame needs to get there.
    pub fn resync(&self, pod: PodId) {
        let credit = self.credit(pod);
        credit.consumed.store(credit.produced.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steer::btf;

    fn heartbeat(worker: u16) -> Option<Heartbeat> {
        Heartbeat::new(Arc::new(Mapping::anonymous(4).unwrap()), WorkerId(worker))
    }

    fn state(heartbeat: &Heartbeat) -> [u64; 3] {
        let heart = heartbeat.heart();
        [&heart.beat_ns, &heart.asleep, &heart.called_ns].map(|word| word.load(Ordering::Relaxed))
    }

    #[test]
    fn a_heartbeat_tells_polling_sleeping_and_stopped() {
        let heartbeat = heartbeat(3).unwrap();
        heartbeat.beat(5);
        assert_eq!(state(&heartbeat), [5, 0, 0]);
        heartbeat.heart().called_ns.store(4, Ordering::Relaxed);
        heartbeat.sleep();
        assert_eq!(state(&heartbeat), [5, 1, 0], "an old call must not make a new sleeper stale");
        heartbeat.wake(9);
        assert_eq!(state(&heartbeat), [9, 0, 0]);
        heartbeat.stop();
        assert_eq!(state(&heartbeat), [0, 0, 0]);
    }

    #[test]
    fn layouts_are_those_of_the_programs() {
        use std::mem::offset_of;
        let (size, offsets) = btf::layout("heartbeat");
        assert_eq!(size, size_of::<Heart>());
        assert_eq!(offsets["beat_ns"], offset_of!(Heart, beat_ns));
        assert_eq!(offsets["asleep"], offset_of!(Heart, asleep));
        assert_eq!(offsets["called_ns"], offset_of!(Heart, called_ns));
        let (size, offsets) = btf::layout("credit");
        assert_eq!(size, size_of::<Credit>());
        assert_eq!(offsets["produced"], offset_of!(Credit, produced));
        assert_eq!(offsets["consumed"], offset_of!(Credit, consumed));
    }

    #[test]
    fn a_worker_beyond_the_last_slot_has_no_heartbeat() {
        assert!(heartbeat(4).is_none());
    }

    #[test]
    fn workers_beat_in_their_own_slots() {
        let hearts = Arc::new(Mapping::anonymous(2).unwrap());
        let [first, second] = [0, 1].map(|w| Heartbeat::new(Arc::clone(&hearts), WorkerId(w)).unwrap());
        first.beat(1);
        assert_eq!((state(&first), state(&second)), ([1, 0, 0], [0, 0, 0]));
    }

    #[test]
    fn credits_count_what_is_in_flight_and_forget_what_was_lost() {
        let credits = Credits::new(Arc::new(Mapping::anonymous(4096).unwrap())).unwrap();
        let [pod, other] = [7, PodId::MAX].map(|id| PodId::new(id).unwrap());
        credits.credit(pod).produced.store(10, Ordering::Relaxed);
        credits.consume(pod, 4);
        assert_eq!((credits.in_flight(pod), credits.in_flight(other)), (6, 0));
        credits.resync(pod);
        assert_eq!(credits.in_flight(pod), 0);
        credits.credit(pod).produced.fetch_add(1, Ordering::Relaxed);
        assert_eq!(credits.in_flight(pod), 1);
    }

    #[test]
    fn credits_survive_the_wrap_of_their_counters() {
        let credits = Credits::new(Arc::new(Mapping::anonymous(4096).unwrap())).unwrap();
        let pod = PodId::new(1).unwrap();
        credits.credit(pod).consumed.store(u64::MAX - 1, Ordering::Relaxed);
        credits.credit(pod).produced.store(2, Ordering::Relaxed);
        assert_eq!(credits.in_flight(pod), 4);
        credits.consume(pod, 4);
        assert_eq!(credits.in_flight(pod), 0);
    }
}
