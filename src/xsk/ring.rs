//! The four rings: free-running cursors over shared slots. Our own cursor is ahead of the published one
//! until [`Producer::publish`] or [`Consumer::release`] tells the kernel.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::mapping::Mapping;
use super::sys::XDP_RING_NEED_WAKEUP;

/// Where the parts of one ring lie in its mapping, in bytes: the kernel's `struct xdp_ring_offset`.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub producer: usize,
    pub consumer: usize,
    pub flags: usize,
    pub slots: usize,
}

/// The shared part of a ring. `T` is plain old data of the kernel's.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
}

// SAFETY: the pointers lie in a shared mapping that moves with the socket (invariant 1); slots are only
// touched through `&mut self` of the one producer or consumer on our side.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn new(mapping: &Mapping, layout: Layout, size: u32) -> Option<Self> {
        let usable = size.is_power_of_two();
        let shared = Self {
            producer: mapping.at(layout.producer, 1)?,
            consumer: mapping.at(layout.consumer, 1)?,
            flags: mapping.at(layout.flags, 1)?,
            slots: mapping.at(layout.slots, size as usize)?,
            size,
        };
        usable.then_some(shared)
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into the live mapping, aligned (invariant 1 and `Mapping::at`).
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: points into the live mapping, aligned (invariant 1 and `Mapping::at`).
        unsafe { self.consumer.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: points into the live mapping, aligned (invariant 1 and `Mapping::at`).
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & XDP_RING_NEED_WAKEUP != 0
    }

    fn slot(&self, cursor: u32) -> NonNull<T> {
        let index = cursor & (self.size - 1);
        // SAFETY: masked to the ring's size (invariant 2).
        unsafe { self.slots.add(index as usize) }
    }
}

/// Our end of a ring that the kernel empties: the fill and the send ring.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Shared<T>,
    /// One past the last slot written.
    own: u32,
    /// The kernel's cursor as last read.
    theirs: u32,
}

impl<T: Copy> Producer<T> {
    /// The ring laid out so in `mapping`; `None` when it does not fit or `size` is not a power of two.
    pub fn new(mapping: &Mapping, layout: Layout, size: u32) -> Option<Self> {
        let shared = Shared::new(mapping, layout, size)?;
        let own = shared.producer().load(Ordering::Relaxed);
        let theirs = shared.consumer().load(Ordering::Acquire);
        Some(Self { shared, own, theirs })
    }

    /// How many slots are free, at least when there are `wanted`: the kernel's cursor is read only if
    /// what is known of it does not suffice.
    pub fn room(&mut self, wanted: u32) -> u32 {
        if self.free() < wanted {
            // Pairs with the kernel's release of the slots that it has read.
            self.theirs = self.shared.consumer().load(Ordering::Acquire);
        }
        self.free()
    }

    /// Writes one slot, or gives the value back when the ring is full.
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(value);
        }
        // SAFETY: the slot is free (invariant 3), so only we may write it.
        unsafe { self.shared.slot(self.own).write(value) };
        self.own = self.own.wrapping_add(1);
        Ok(())
    }

    /// Shows the kernel what was written.
    pub fn publish(&mut self) {
        // Pairs with the kernel's acquire: the slots are written before the cursor.
        self.shared.producer().store(self.own, Ordering::Release);
    }

    /// Whether the kernel has not yet read all that was published.
    pub fn has_unread(&self) -> bool {
        self.shared.consumer().load(Ordering::Relaxed) != self.shared.producer().load(Ordering::Relaxed)
    }

    /// Whether the kernel asks for a system call before it goes on.
    pub fn needs_wakeup(&self) -> bool {
        self.shared.needs_wakeup()
    }

    fn free(&self) -> u32 {
        self.shared.size.saturating_sub(self.own.wrapping_sub(self.theirs))
    }
}

/// Our end of a ring that the kernel fills: the receive and the completion ring.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Shared<T>,
    /// One past the last slot read.
    own: u32,
    /// The kernel's cursor as last read.
    theirs: u32,
}

impl<T: Copy> Consumer<T> {
    /// The ring laid out so in `mapping`; `None` when it does not fit or `size` is not a power of two.
    pub fn new(mapping: &Mapping, layout: Layout, size: u32) -> Option<Self> {
        let shared = Shared::new(mapping, layout, size)?;
        let own = shared.consumer().load(Ordering::Relaxed);
        Some(Self { shared, own, theirs: own })
    }

    /// Reads one slot; the kernel's cursor is read only when what is known of it is used up.
    pub fn pop(&mut self) -> Option<T> {
        if self.own == self.theirs {
            // Pairs with the kernel's release: slots are written before the cursor.
            self.theirs = self.shared.producer().load(Ordering::Acquire);
            if self.own == self.theirs {
                return None;
            }
        }
        // SAFETY: the kernel has filled the slot and not been given it back (invariant 3).
        let value = unsafe { self.shared.slot(self.own).read() };
        self.own = self.own.wrapping_add(1);
        Some(value)
    }

    /// Gives the kernel back the slots that were read.
    pub fn release(&mut self) {
        // Pairs with the kernel's acquire: slots are read before the cursor moves.
        self.shared.consumer().store(self.own, Ordering::Release);
    }

    /// Whether a slot waits to be read.
    pub fn is_ready(&self) -> bool {
        self.own != self.shared.producer().load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const LAYOUT: Layout = Layout { producer: 0, consumer: 64, flags: 128, slots: 192 };

    /// Both ends of a ring over a shared mapping: the kernel's end is the same code seen from the other side.
    fn ring(size: u32, start: u32) -> (Mapping, Producer<u64>, Consumer<u64>) {
        let mapping = Mapping::anonymous(192 + size as usize * 8).unwrap();
        for offset in [LAYOUT.producer, LAYOUT.consumer] {
            let cursor: NonNull<AtomicU32> = mapping.at(offset, 1).unwrap();
            // SAFETY: inside the mapping, which is alive.
            unsafe { cursor.as_ref() }.store(start, Ordering::Relaxed);
        }
        let producer = Producer::new(&mapping, LAYOUT, size).unwrap();
        let consumer = Consumer::new(&mapping, LAYOUT, size).unwrap();
        (mapping, producer, consumer)
    }

    #[test]
    fn sizes_that_are_no_power_of_two_or_do_not_fit_are_refused() {
        let (mapping, ..) = ring(8, 0);
        assert!(Producer::<u64>::new(&mapping, LAYOUT, 6).is_none());
        assert!(Consumer::<u64>::new(&mapping, LAYOUT, 4096).is_none());
    }

    proptest! {
        /// Against a queue: what goes in comes out, in order, never more than fits, across the wrap at 2^32.
        #[test]
        fn behaves_like_a_bounded_queue(
            order in 0..6u32,
            before_wrap in 0..40u32,
            steps in prop::collection::vec((0..4u8, 1..20u32), 0..200),
        ) {
            let size = 1 << order;
            let (_mapping, mut producer, mut consumer) = ring(size, u32::MAX - before_wrap);
            let (mut unpublished, mut queue, mut read) = (VecDeque::new(), VecDeque::new(), 0);
            let mut next = 0u64;
            for (step, n) in steps {
                match step {
                    0 => for _ in 0..n {
                        let held = unpublished.len() + queue.len() + read;
                        let pushed = producer.push(next).is_ok();
                        prop_assert_eq!(pushed, held < size as usize);
                        if pushed { unpublished.push_back(next); next += 1; }
                    },
                    1 => { producer.publish(); queue.append(&mut unpublished); }
                    2 => for _ in 0..n {
                        let popped = consumer.pop();
                        prop_assert_eq!(popped, queue.pop_front());
                        read += usize::from(popped.is_some());
                    },
                    _ => { consumer.release(); read = 0; }
                }
                prop_assert_eq!(consumer.is_ready(), !queue.is_empty());
                prop_assert_eq!(producer.has_unread(), queue.len() + read > 0);
            }
        }
    }
}
