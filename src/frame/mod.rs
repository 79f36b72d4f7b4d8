//! Packet memory: a [`Region`] of equal chunks for each worker, and the [`Frame`] that is the only way to touch one.
//!
//! Owned by the workers; made by control when the data plane starts. There is exactly one `Frame` per
//! chunk, so holding it is the right to read and write the chunk. A frame is always in one of four places:
//!
//! ```text
//!   a worker's pool ──▶ a worker's hands ──▶ send side of a port (kernel)
//!         ▲  │               ▲   │                    │
//!         │  └─▶ fill side of a port (kernel) ──▶─────┤
//!         └───────────────────┴───────────────────────┘
//! ```
//!
//! Invariants, cited by the SAFETY comments:
//! 1. A region is mapped readable and writable while any frame of it exists or a chunk is lent:
//!    [`Region::unmap`] takes all of its frames.
//! 2. At most one `Frame` exists for a chunk. While a chunk is lent to the kernel there is none: [`Region::lend`]
//!    took the frame, and only [`Region::redeem`] makes it one again.
//! 3. `head + len <= CHUNK_SIZE` for every frame, and `base` points at the first byte of its chunk.
#![allow(unsafe_code, reason = "hands out exclusive access to mapped packet memory")]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod pool;
mod region;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

pub use pool::Pool;
pub use region::{Region, RegionError};

/// Bytes of a chunk. One page: what an aligned AF_XDP region without hugepages allows.
pub const CHUNK_SIZE: usize = 4096;

/// Bytes kept free before a received frame, in which headers can grow: the kernel's `XDP_PACKET_HEADROOM`.
pub const HEADROOM: usize = 256;

/// The largest frame, in bytes, that a chunk takes behind the kernel's headroom.
pub const MAX_FRAME: usize = CHUNK_SIZE - HEADROOM;

/// Exclusive access to one chunk of packet memory, and the part of it that holds the packet.
///
/// Dropping a frame loses its chunk, so it must be given back to a [`Pool`] or moved into a port.
#[must_use = "a frame that is dropped is a chunk lost"]
pub struct Frame {
    base: NonNull<u8>,
    chunk: u32,
    head: u16,
    len: u16,
}

// SAFETY: by invariant 2 a frame is the only access to its chunk, so it may move between threads.
unsafe impl Send for Frame {}

impl Frame {
    /// The number of the chunk in its region.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// The address of the packet's first byte, in bytes from the region's start, as AF_XDP counts.
    pub fn address(&self) -> u64 {
        u64::from(self.chunk) * CHUNK_SIZE as u64 + u64::from(self.head)
    }

    /// Makes the packet empty, starting `head` bytes into the chunk (at most [`CHUNK_SIZE`]).
    pub fn reset(&mut self, head: usize) {
        self.head = to_u16(head.min(CHUNK_SIZE));
        self.len = 0;
    }

    /// Cuts or extends the packet to `len` bytes; false, and nothing done, where the chunk ends earlier.
    #[must_use]
    pub fn set_len(&mut self, len: usize) -> bool {
        let fits = usize::from(self.head) + len <= CHUNK_SIZE;
        if fits {
            self.len = to_u16(len);
        }
        fits
    }

    /// Moves the packet's start `n` bytes towards the chunk's; false, and nothing done, without the room.
    #[must_use]
    pub fn prepend(&mut self, n: usize) -> bool {
        let fits = n <= usize::from(self.head);
        if fits {
            self.head -= to_u16(n);
            self.len += to_u16(n);
        }
        fits
    }

    /// Drops the packet's first `n` bytes; false, and nothing done, when it is shorter.
    #[must_use]
    pub fn trim_front(&mut self, n: usize) -> bool {
        let fits = n <= usize::from(self.len);
        if fits {
            self.head += to_u16(n);
            self.len -= to_u16(n);
        }
        fits
    }
}

/// `n` is at most [`CHUNK_SIZE`] wherever this is called.
#[expect(clippy::cast_possible_truncation, reason = "CHUNK_SIZE fits in 16 bits")]
fn to_u16(n: usize) -> u16 {
    debug_assert!(n <= CHUNK_SIZE);
    n as u16
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: by invariant 3 the offset stays inside the chunk, which invariant 1 keeps mapped.
        let start = unsafe { self.base.add(usize::from(self.head)) };
        // SAFETY: by invariants 1 and 3 the bytes are mapped and initialised (the kernel zeroes new
        // pages); by invariant 2 nobody writes them while `self` is borrowed.
        unsafe { slice::from_raw_parts(start.as_ptr(), usize::from(self.len)) }
    }
}

impl DerefMut for Frame {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: by invariant 3 the offset stays inside the chunk, which invariant 1 keeps mapped.
        let start = unsafe { self.base.add(usize::from(self.head)) };
        // SAFETY: as for `deref`; `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), usize::from(self.len)) }
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame {{ chunk {}, {} bytes at {} }}", self.chunk, self.len, self.head)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_sixteen_bytes() {
        assert_eq!(size_of::<Frame>(), 16);
        assert_eq!(size_of::<Option<Frame>>(), 16);
    }

    #[test]
    fn a_region_is_unmapped_only_with_all_of_its_own_frames() {
        let (region, mut pool) = Region::map(4).unwrap();
        let (other, other_pool) = Region::map(4).unwrap();
        let frame = pool.take().unwrap();
        let mut pool = region.unmap(pool).unwrap_err();
        pool.put(frame);
        let other_pool = region.unmap(other_pool).unwrap_err();
        assert!(region.unmap(pool).is_ok() && other.unmap(other_pool).is_ok());
    }

    proptest! {
        /// Any order of head and length changes leaves the packet inside its chunk.
        #[test]
        fn packets_never_leave_their_chunk(steps in prop::collection::vec((0..4u8, 0..5000usize), 0..50)) {
            let (_region, mut pool) = Region::map(1).unwrap();
            let mut frame = pool.take().unwrap();
            frame.reset(HEADROOM);
            for (step, n) in steps {
                let (head, len) = (usize::from(frame.head), frame.len());
                let done = match step {
                    0 => frame.prepend(n),
                    1 => frame.trim_front(n),
                    2 => frame.set_len(n),
                    _ => { frame.reset(n); true }
                };
                if !done {
                    prop_assert_eq!((usize::from(frame.head), frame.len()), (head, len));
                }
                prop_assert!(usize::from(frame.head) + frame.len() <= CHUNK_SIZE);
                frame.fill(7);
            }
            pool.put(frame);
        }
    }
}
