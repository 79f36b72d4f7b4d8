//! One writer replaces a value while readers go on using the one they hold, without a lock and
//! without freeing anything on a reader's thread (quiescent-state reclamation).
//!
//! Control owns the [`Publisher`], each worker one [`Reader`]. Every publication has a generation,
//! counted from 1. A reader says in its slot which generation it has seen, or 0 while it rests:
//!
//! ```text
//!            get: slot = generation, then read the pointer
//!  resting ───────────────────────────────────────────────▶ reading ──┐ get, generation moved:
//!  slot 0  ◀─────────────────────────────────────────────── slot g  ◀─┘ slot = generation
//!            rest, drop: slot = 0
//! ```
//!
//! Invariants:
//! 1. `Shared::current` points to a live boxed value, and only the publisher replaces it. A value
//!    that generation `g` replaced leaves `current` before the generation becomes `g`.
//! 2. A reader whose slot says `g` uses no value that generation `g` or an earlier one replaced: it
//!    wrote `g` after it had seen generation `g`, and reads `current` only after that.
//! 3. The publisher frees a value that generation `g` replaced only when it has found every slot
//!    at 0 or at `g` and above, after a fence that pairs with the reader's on its way from 0.
//! 4. What a vanished publisher had not freed lives as long as the last reader.

#![allow(unsafe_code, reason = "shares raw pointers between threads; see the invariants above")]

use std::sync::OnceLock;

use crossbeam::utils::CachePadded;

#[cfg(not(loom))]
use std::sync::{
    Arc,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

#[cfg(loom)]
use loom::sync::{
    Arc,
    atomic::{AtomicPtr, AtomicU64, Ordering, fence},
};

/// What a slot says while its reader rests.
const RESTING: u64 = 0;

type Slot = CachePadded<AtomicU64>;

/// The writer's side.
#[derive(Debug)]
pub struct Publisher<T> {
    shared: Arc<Shared<T>>,
    slots: Vec<Arc<Slot>>,
    retired: Vec<Retired<T>>,
}

/// A reader's side: one a thread.
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    slot: Arc<Slot>,
    /// What `slot` says.
    seen: u64,
}

#[derive(Debug)]
struct Shared<T> {
    current: AtomicPtr<T>,
    generation: AtomicU64,
    /// What the publisher had not freed when it was dropped.
    left: OnceLock<Vec<Retired<T>>>,
}

/// A value that was replaced; dropping this frees it.
#[derive(Debug)]
struct Retired<T> {
    /// The generation that replaced it.
    generation: u64,
    value: *mut T,
}

// SAFETY: a `Retired` is the one owner of its value, as a `Box<T>` is.
unsafe impl<T: Send> Send for Retired<T> {}

// SAFETY: a shared `Retired` gives no access to its value.
unsafe impl<T: Send> Sync for Retired<T> {}

impl<T: Send + Sync> Publisher<T> {
    /// Starts with `value` as generation 1.
    pub fn new(value: T) -> Self {
        let shared = Shared {
            current: AtomicPtr::new(Box::into_raw(Box::new(value))),
            generation: AtomicU64::new(1),
            left: OnceLock::new(),
        };
        Self { shared: Arc::new(shared), slots: Vec::new(), retired: Vec::new() }
    }

    /// A new reader, resting. It is forgotten by [`Publisher::reclaim`] once it was dropped.
    pub fn reader(&mut self) -> Reader<T> {
        let slot = Arc::new(Slot::new(AtomicU64::new(RESTING)));
        self.slots.push(Arc::clone(&slot));
        Reader { shared: Arc::clone(&self.shared), slot, seen: RESTING }
    }

    /// Makes `value` what readers get from now on. The old value is freed by a later
    /// [`Publisher::reclaim`].
    pub fn publish(&mut self, value: T) {
        // Only this thread writes the generation.
        let generation = self.shared.generation.load(Ordering::Relaxed) + 1;
        let value = self.shared.current.swap(Box::into_raw(Box::new(value)), Ordering::AcqRel);
        // Release: whoever sees the generation sees the new pointer (invariant 1).
        self.shared.generation.store(generation, Ordering::Release);
        self.retired.push(Retired { generation, value });
    }

    /// Frees, on this thread, every old value that no reader can hold any more. Returns how many
    /// remain; call it again later until that is 0.
    pub fn reclaim(&mut self) -> usize {
        // Pairs with the fence in `Reader::refresh`. Either this fence is first, and a reader on
        // its way from 0 reads a pointer at least as new as `publish` wrote, or the reader's is,
        // and the load below sees its slot: both missing each other is what SeqCst rules out.
        fence(Ordering::SeqCst);
        let mut oldest = u64::MAX;
        self.slots.retain(|slot| {
            // Acquire: the reader's last use of an old value is over before it is freed.
            let seen = slot.load(Ordering::Acquire);
            if seen != RESTING {
                oldest = oldest.min(seen);
            }
            seen != RESTING || Arc::strong_count(slot) > 1
        });
        self.retired.retain(|retired| retired.generation > oldest);
        self.retired.len()
    }
}

impl<T> Reader<T> {
    /// The newest value. Call it once a burst and let go of the reference at the burst's end: until
    /// the next call, or [`Reader::rest`], the value stays allocated. Costs two loads when nothing changed.
    #[inline]
    pub fn get(&mut self) -> &T {
        // Relaxed: a generation that is news is ordered by the fence in `refresh`.
        let generation = self.shared.generation.load(Ordering::Relaxed);
        if generation != self.seen {
            self.refresh(generation);
        }
        let value = self.shared.current.load(Ordering::Acquire);
        // SAFETY: live by invariant 1, and by invariants 2 and 3 not freed before this reader's
        // slot changes, for which `&mut self` must be free again.
        unsafe { &*value }
    }

    /// Holds nothing until the next [`Reader::get`]: to be called before the thread sleeps.
    pub fn rest(&mut self) {
        self.seen = RESTING;
        // Release: uses of the value come before.
        self.slot.store(RESTING, Ordering::Release);
    }

    /// Says in the slot that older generations are not used any more.
    #[cold]
    fn refresh(&mut self, generation: u64) {
        // Release: uses of the value that the last `get` returned come before.
        self.slot.store(generation, Ordering::Release);
        // Pairs with the fence in `Publisher::reclaim`: the slot is seen, or the new pointer is.
        // Acquires the generation too: the pointer read next is at least as new (invariant 2).
        fence(Ordering::SeqCst);
        self.seen = generation;
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        // Set here only, so it is empty; invariant 4.
        let _ = self.shared.left.set(std::mem::take(&mut self.retired));
    }
}

impl<T> Drop for Reader<T> {
    fn drop(&mut self) {
        self.slot.store(RESTING, Ordering::Release);
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let value = self.current.load(Ordering::Relaxed);
        // SAFETY: boxed and live by invariant 1; publisher and readers are gone, or this would
        // not be dropped.
        drop(unsafe { Box::from_raw(value) });
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        // SAFETY: boxed in `publish`, owned by this alone, unused by readers by invariants 3 and 4.
        drop(unsafe { Box::from_raw(self.value) });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// Counts itself while it lives, and is wrong when torn or freed.
    struct Counted<'a> {
        value: u64,
        inverse: u64,
        live: &'a AtomicUsize,
    }

    impl<'a> Counted<'a> {
        fn new(value: u64, live: &'a AtomicUsize) -> Self {
            live.fetch_add(1, Ordering::Relaxed);
            Self { value, inverse: !value, live }
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.inverse = self.value;
            self.live.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_old_value_waits_for_the_reader_that_holds_it() {
        let mut publisher = Publisher::new(1);
        let mut reader = publisher.reader();
        assert_eq!(*reader.get(), 1);
        publisher.publish(2);
        assert_eq!(publisher.reclaim(), 1);
        assert_eq!(*reader.get(), 2);
        assert_eq!(publisher.reclaim(), 0);
    }

    #[test]
    fn a_resting_or_dropped_reader_holds_nothing() {
        let mut publisher = Publisher::new(1);
        let (mut resting, mut dropped) = (publisher.reader(), publisher.reader());
        assert_eq!(*resting.get() + *dropped.get(), 2);
        publisher.publish(2);
        resting.rest();
        assert_eq!(publisher.reclaim(), 1);
        drop(dropped);
        assert_eq!(publisher.reclaim(), 0);
        assert_eq!(publisher.slots.len(), 1);
        assert_eq!(*resting.get(), 2);
    }

    #[test]
    fn a_reader_outlives_its_publisher() {
        let live = AtomicUsize::new(0);
        let mut publisher = Publisher::new(Counted::new(1, &live));
        let mut reader = publisher.reader();
        assert_eq!(reader.get().value, 1);
        publisher.publish(Counted::new(2, &live));
        drop(publisher);
        assert_eq!(live.load(Ordering::Relaxed), 2);
        assert_eq!(reader.get().value, 2);
        drop(reader);
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }

    /// Reads until the value is `u64::MAX`, resting after every `rest_every`th change.
    fn watch(mut reader: Reader<Counted>, changes: &AtomicUsize, rest_every: usize) {
        let mut last = 0;
        while last < u64::MAX {
            let counted = reader.get();
            assert_eq!(counted.inverse, !counted.value);
            assert!(counted.value >= last);
            if counted.value != last {
                last = counted.value;
                if changes.fetch_add(1, Ordering::Relaxed).is_multiple_of(rest_every) {
                    reader.rest();
                }
            }
        }
    }

    #[test]
    fn readers_under_churn_see_whole_values_that_never_go_back() {
        let (live, changes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut publisher = Publisher::new(Counted::new(0, &live));
        thread::scope(|scope| {
            for rest_every in [1, 3, usize::MAX] {
                let (reader, changes) = (publisher.reader(), &changes);
                scope.spawn(move || watch(reader, changes, rest_every));
            }
            let enough = if cfg!(miri) { 100 } else { 20_000 };
            for value in (1..).take_while(|_| changes.load(Ordering::Relaxed) < enough).chain([u64::MAX]) {
                publisher.publish(Counted::new(value, &live));
                publisher.reclaim();
            }
        });
        assert_eq!(publisher.reclaim(), 0);
        assert_eq!(live.load(Ordering::Relaxed), 1);
        drop(publisher);
        assert_eq!(live.load(Ordering::Relaxed), 0);
    }
}
