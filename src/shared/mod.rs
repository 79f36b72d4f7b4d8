//! The BPF arrays that we and the steering programs both write: signs of life and credits by the workers, and what is
//! traced by control.
//!
//! A [`Heartbeat`] belongs to one worker; the programs write `called_ns` when they claim a frame for a sleeper, and of those
//! that they leave him asleep for how many there were and when (`bpf/worker.h`). [`Credits`] are shared by the workers: each writes `consumed` of its ring and of the pods whose frames
//! it takes, the programs write `produced`. Everything is an atomic on mapped memory: no system call, no lock.
//!
//! Invariants, cited by the SAFETY comments:
//! 1. The pointer of a [`Table`] points at `len` entries inside the mapping that the table keeps alive.
//! 2. [`Entry`] is `repr(C)`, 64 bytes, made of atomics alone, valid for every bit pattern; other writers (the
//!    programs, other mappings) write whole aligned words.
#![allow(unsafe_code, reason = "reads and writes memory that the kernel's programs write too")]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::{PodId, WorkerId};
use crate::xsk::Mapping;

/// One entry of an array: a cache line of words. `struct heartbeat` and `struct credit` of `bpf/maps.h`, and either half
/// of `struct trace` of `bpf/trace.h`.
type Entry = [AtomicU64; 8];

/// The words of a heartbeat.
const BEAT_NS: usize = 0;
const ASLEEP: usize = 1;
const CALLED_NS: usize = 2;
const LEFT_NS: usize = 5;

/// The words of a credit.
const PRODUCED: usize = 0;
const CONSUMED: usize = 1;
const REFUSED: usize = 2;
const QUOTA: usize = 3;
const GONE: usize = 4;

/// Where the credits of rings begin, after those of pods, and how many there are (`MAX_POD_IDS` and `MAX_WORKERS`).
const RINGS: usize = 4096;
const MAX_RINGS: usize = 256;
/// Where those of frames from the wire begin.
const FROM_WIRE: usize = RINGS + MAX_RINGS;

/// The entries of what is traced, and the words in them.
const ORDER: usize = 0;
const WANTED: usize = 0;
const UNTIL_NS: usize = 3;
const LOSSES: usize = 1;
const LOST: usize = 0;

/// An mmapable BPF array of entries.
#[derive(Debug)]
pub struct Table {
    entries: NonNull<Entry>,
    len: usize,
    _mapping: Mapping,
}

// SAFETY: invariants 1 and 2: the memory belongs to no thread and holds atomics alone.
unsafe impl Send for Table {}
// SAFETY: as for `Send`.
unsafe impl Sync for Table {}

impl Table {
    /// Maps the `len` entries of a BPF array made with `BPF_F_MMAPABLE`.
    pub fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let mapping = Mapping::new(fd, len * size_of::<Entry>(), 0)?;
        Self::over(mapping, len).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The `len` entries at the head of a mapping, if there are so many.
    fn over(mapping: Mapping, len: usize) -> Option<Self> {
        Some(Self { entries: mapping.at(0, len)?, len, _mapping: mapping })
    }

    fn get(&self, index: usize) -> Option<&Entry> {
        if index >= self.len {
            return None;
        }
        // SAFETY: the index was just checked (invariant 1).
        let entry = unsafe { self.entries.add(index) };
        // SAFETY: alive while `self` is (invariant 1); any bytes and any other writer are fine (invariant 2).
        Some(unsafe { entry.as_ref() })
    }
}

/// A worker's sign of life. While it is stale the programs leave all frames to the kernel path.
///
/// Fresh means: polling and beaten within the limit, or asleep and, if called, called within the limit. So an idle
/// worker costs nothing, and a hang is seen within the limit of the first frame. Times are nanoseconds of
/// `CLOCK_MONOTONIC`, which is what `bpf_ktime_get_ns` reads.
#[derive(Debug)]
pub struct Heartbeat {
    table: Arc<Table>,
    index: usize,
}

impl Heartbeat {
    /// The heartbeat of a worker, or `None` beyond the table's end.
    pub fn new(table: Arc<Table>, worker: WorkerId) -> Option<Self> {
        let index = usize::from(worker.0);
        table.get(index)?;
        Some(Self { table, index })
    }

    /// Says that the worker polls at `now_ns`. Due well within the limit: about every millisecond.
    pub fn beat(&self, now_ns: u64) {
        self.store(BEAT_NS, now_ns, Ordering::Relaxed);
    }

    /// Says that the worker is about to block, having just beaten. After this it must look at its rings once more:
    /// a frame claimed earlier may not wake it.
    ///
    /// A call that got lost with its frame (a full queue) is never answered and reads as a hang: block for a
    /// bounded time, a second or so, then [`Heartbeat::wake`].
    pub fn sleep(&self) {
        self.store(CALLED_NS, 0, Ordering::Relaxed);
        // Who sees the sleeper must not see an old call; and the rings are looked at after this.
        self.store(ASLEEP, 1, Ordering::SeqCst);
    }

    /// Says that the worker polls again, at `now_ns`.
    pub fn wake(&self, now_ns: u64) {
        self.beat(now_ns);
        // Who sees the worker awake must see the new beat.
        self.store(ASLEEP, 0, Ordering::Release);
    }

    /// Says that the worker takes no more frames: stale at once.
    pub fn stop(&self) {
        self.beat(0);
        self.store(ASLEEP, 0, Ordering::Release);
    }

    /// When the programs first called the worker since it last went to sleep, if they did.
    pub fn called_ns(&self) -> Option<u64> {
        Some(self.load(CALLED_NS)).filter(|&called_ns| called_ns != 0)
    }

    /// When the programs last left a packet to the kernel path rather than wake the worker; 0: never.
    pub fn left_ns(&self) -> u64 {
        self.load(LEFT_NS)
    }

    /// Whether the worker sleeps, and whether the programs take it for alive, as `bpf/worker.h` decides.
    pub fn state(&self, now_ns: u64, limit_ns: u64) -> (bool, bool) {
        let (asleep, beat, called) = (self.load(ASLEEP) != 0, self.load(BEAT_NS), self.load(CALLED_NS));
        let since = if asleep { called } else { beat };
        let in_time = now_ns.saturating_sub(since) < limit_ns;
        (asleep, beat != 0 && (in_time || (asleep && called == 0)))
    }

    /// How long ago the worker last said that it polls; none when it has stopped.
    pub fn age_ns(&self, now_ns: u64) -> Option<u64> {
        let beat_ns = self.load(BEAT_NS);
        (beat_ns != 0).then(|| now_ns.saturating_sub(beat_ns))
    }

    fn store(&self, word: usize, value: u64, order: Ordering) {
        if let Some(word) = self.table.get(self.index).and_then(|entry| entry.get(word)) {
            word.store(value, order);
        }
    }

    fn load(&self, word: usize) -> u64 {
        self.table.get(self.index).and_then(|entry| entry.get(word)).map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// The frames between the steering program and the workers, of each pod and in each worker's ring. The program refuses a
/// pod's frame when the pod has four times as many on their way as the ring has slots left, or as many as the ring's quota
/// says while a burst or more is on its way, so that no pod fills a ring that others share.
#[derive(Clone, Debug)]
pub struct Credits {
    table: Arc<Table>,
}

/// Whose frames an account is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    Pod(PodId),
    /// Those that come from the wire for this pod, by way of the hub.
    FromWire(PodId),
    /// All of these that go by the ring of this worker.
    RingFromWire(WorkerId),
    /// All of pods that go by the ring of this worker.
    Ring(WorkerId),
}

impl From<PodId> for Holder {
    fn from(pod: PodId) -> Self {
        Self::Pod(pod)
    }
}

impl From<WorkerId> for Holder {
    fn from(worker: WorkerId) -> Self {
        Self::Ring(worker)
    }
}

impl Holder {
    /// The place of its account, below [`Credits::ACCOUNTS`].
    pub fn index(self) -> usize {
        match self {
            Self::Pod(pod) => usize::from(pod.get()),
            Self::Ring(worker) => RINGS + usize::from(worker.0),
            Self::FromWire(pod) => FROM_WIRE + usize::from(pod.get()),
            Self::RingFromWire(worker) => FROM_WIRE + RINGS + usize::from(worker.0),
        }
    }
}

/// The frames of a holder, counted since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Claimed by the steering program.
    pub produced: u64,
    /// Taken by the worker, or given up for lost.
    pub consumed: u64,
}

impl Account {
    /// Frames that were claimed and not yet consumed, those lost on the way among them. Negative when a frame came
    /// after it was given up for lost.
    pub fn in_flight(self) -> i64 {
        self.produced.wrapping_sub(self.consumed).cast_signed()
    }
}

impl Credits {
    /// How many accounts there are: two for every pod id and every worker.
    pub const ACCOUNTS: usize = 2 * FROM_WIRE;

    /// `table` has an entry for every account, or there are no credits.
    pub fn new(table: Arc<Table>) -> Option<Self> {
        (table.len >= Self::ACCOUNTS).then_some(Self { table })
    }

    /// Gives back `n` credits of `holder`: that many of its frames have left the ring, or were lost. Negative where frames
    /// come that were given up. Only the holder's worker calls this, so it is a load and a store.
    pub fn consume(&self, holder: impl Into<Holder>, n: i64) {
        if let Some(consumed) = self.word(holder.into(), CONSUMED) {
            consumed.store(consumed.load(Ordering::Relaxed).wrapping_add_signed(n), Ordering::Relaxed);
        }
    }

    /// What of `holder` was claimed and what was consumed.
    pub fn account(&self, holder: impl Into<Holder>) -> Account {
        let holder = holder.into();
        let load = |word| self.word(holder, word).map_or(0, |word| word.load(Ordering::Relaxed));
        let consumed = load(CONSUMED);
        Account { produced: load(PRODUCED), consumed }
    }

    /// How many frames of `holder` were refused, since the programs were loaded.
    pub fn refused(&self, holder: impl Into<Holder>) -> u64 {
        self.word(holder.into(), REFUSED).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// How many packets came for `pod` when it had no device any more, since the programs were loaded.
    pub fn gone(&self, pod: PodId) -> u64 {
        self.word(pod.into(), GONE).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Has no pod have more than `quota` frames of `ring`'s while it has a burst or more; 0 sets no bound. Only the ring's
    /// worker calls this.
    pub fn set_quota(&self, ring: impl Into<Holder>, quota: u64) {
        if let Some(word) = self.word(ring.into(), QUOTA) {
            word.store(quota, Ordering::Relaxed);
        }
    }

    /// [`Account::in_flight`] of `holder` now.
    pub fn in_flight(&self, holder: impl Into<Holder>) -> i64 {
        self.account(holder).in_flight()
    }

    /// Forgets the frames in flight: they were lost. Only the holder's worker calls this, and only while nothing is
    /// claimed for it.
    pub fn resync(&self, holder: impl Into<Holder>) {
        let holder = holder.into();
        self.consume(holder, self.in_flight(holder));
    }

    fn word(&self, holder: Holder, word: usize) -> Option<&AtomicU64> {
        self.table.get(holder.index())?.get(word)
    }
}

/// What the programs are to tell whoever traces, until when, and how much of it they could not tell.
#[derive(Clone, Debug)]
pub struct TraceOrder {
    table: Arc<Table>,
}

impl TraceOrder {
    /// How long its table is.
    pub const ENTRIES: usize = 2;

    pub fn new(table: Arc<Table>) -> Self {
        Self { table }
    }

    /// Has each program tell of the verdicts whose bits are set, until `until_ns`.
    pub fn want(&self, wanted: [u64; UNTIL_NS - WANTED], until_ns: u64) {
        let Some(order) = self.table.get(ORDER) else { return };
        let words = order.get(UNTIL_NS).into_iter().zip([until_ns]);
        // Who sees what is wanted sees until when, and takes nothing back.
        for (word, value) in words.chain(order.iter().skip(WANTED).zip(wanted)) {
            word.store(value, Ordering::Release);
        }
    }

    /// How many frames the programs have found no room for since they were loaded.
    pub fn lost(&self) -> u64 {
        self.table.get(LOSSES).and_then(|losses| losses.get(LOST)).map_or(0, |lost| lost.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table over anonymous shared memory.
    fn table(len: usize) -> Arc<Table> {
        Arc::new(Table::over(Mapping::anonymous(len * size_of::<Entry>()).unwrap(), len).unwrap())
    }

    fn pod(id: u16) -> PodId {
        PodId::new(id).unwrap()
    }

    #[test]
    fn a_heartbeat_is_fresh_while_it_beats_and_while_a_sleeper_is_not_called_in_vain() {
        let heartbeat = Heartbeat::new(table(4), WorkerId(3)).unwrap();
        let call = |at| heartbeat.store(CALLED_NS, at, Ordering::Relaxed);
        assert_eq!(heartbeat.state(50, 20), (false, false), "never beaten");
        heartbeat.beat(100);
        assert_eq!((heartbeat.state(119, 20), heartbeat.state(120, 20)), ((false, true), (false, false)));
        assert_eq!((heartbeat.age_ns(119), heartbeat.age_ns(99)), (Some(19), Some(0)));
        call(7);
        heartbeat.sleep();
        assert_eq!(heartbeat.called_ns(), None);
        assert_eq!(heartbeat.state(9_000, 20), (true, true), "nobody has called since it fell asleep");
        call(9_000);
        assert_eq!((heartbeat.state(9_019, 20), heartbeat.state(9_020, 20)), ((true, true), (true, false)));
        assert_eq!(heartbeat.called_ns(), Some(9_000));
        heartbeat.wake(9_500);
        assert_eq!(heartbeat.state(9_501, 20), (false, true));
        heartbeat.stop();
        assert_eq!((heartbeat.state(9_501, 20), heartbeat.age_ns(9_501)), ((false, false), None));
    }

    #[test]
    fn workers_beat_in_their_own_entries_and_none_beyond_the_last() {
        let table = table(2);
        let [first, second] = [0, 1].map(|w| Heartbeat::new(Arc::clone(&table), WorkerId(w)).unwrap());
        first.beat(1);
        assert_eq!((first.state(1, 20).1, second.state(1, 20).1), (true, false));
        assert!(Heartbeat::new(table, WorkerId(2)).is_none());
    }

    #[test]
    fn credits_count_what_is_in_flight_and_forget_what_was_lost() {
        let credits = Credits::new(table(8704)).unwrap();
        let produce = |n| credits.word(pod(7).into(), PRODUCED).unwrap().fetch_add(n, Ordering::Relaxed);
        produce(10);
        credits.consume(pod(7), 4);
        assert_eq!((credits.in_flight(pod(7)), credits.in_flight(pod(PodId::MAX))), (6, 0));
        credits.resync(pod(7));
        assert_eq!(credits.in_flight(pod(7)), 0);
        produce(1);
        assert_eq!(credits.in_flight(pod(7)), 1);
        credits.resync(pod(7));
        credits.consume(pod(7), 1);
        assert_eq!(credits.in_flight(pod(7)), -1, "it was not lost after all");
        assert!(Credits::new(table(8703)).is_none(), "too small for all accounts");
    }

    #[test]
    fn pods_and_rings_have_accounts_of_their_own() {
        let credits = Credits::new(table(8704)).unwrap();
        let pods = [1, PodId::MAX].map(pod);
        let holders: Vec<Holder> = (pods.map(Holder::Pod).into_iter())
            .chain([0, 255].map(|n| WorkerId(n).into()))
            .chain(pods.map(Holder::FromWire))
            .chain([0, 255].map(|n| Holder::RingFromWire(WorkerId(n))))
            .collect();
        for (n, holder) in (1..).zip(&holders) {
            credits.consume(*holder, -n);
        }
        let in_flight: Vec<_> = holders.iter().map(|holder| credits.in_flight(*holder)).collect();
        assert_eq!(in_flight, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn credits_survive_the_wrap_of_their_counters() {
        let credits = Credits::new(table(8704)).unwrap();
        credits.word(pod(1).into(), CONSUMED).unwrap().store(u64::MAX - 1, Ordering::Relaxed);
        credits.word(pod(1).into(), PRODUCED).unwrap().store(2, Ordering::Relaxed);
        assert_eq!(credits.in_flight(pod(1)), 4);
        credits.consume(pod(1), 4);
        assert_eq!(credits.in_flight(pod(1)), 0);
    }
}
