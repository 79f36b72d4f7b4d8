//! A table of 2^24 entries of which only the pages that were written to take memory.
//!
//! All others are read as zeros from one page of the kernel's, which a thread that is the first to read there has to fault in: a
//! matter for destinations without a route, of which the programs give workers none but by mistake.
//!
//! Invariants, cited by the SAFETY comments:
//! 1. `base` is the start of a private anonymous mapping of [`BYTES`] bytes, page-aligned, that the table alone owns and that
//!    is unmapped when it is dropped.
//! 2. The kernel fills it with zeros, and every bit pattern is a valid `u32`.
#![allow(unsafe_code, reason = "the allocator has no memory that stays untouched and in small pages")]

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

/// How many entries there are.
const ENTRIES: usize = 1 << 24;

const BYTES: usize = ENTRIES * size_of::<u32>();

/// Entries of a page of memory, and of a transparent hugepage.
pub const PAGE: usize = 4096 / size_of::<u32>();
pub const HUGE_PAGE: usize = (2 << 20) / size_of::<u32>();

/// The table, all zeros at first: 64 MiB of addresses, which take what was written to and page tables.
#[derive(Debug)]
pub struct Sparse {
    base: NonNull<[u32; ENTRIES]>,
}

// SAFETY: the table owns its memory (invariant 1) as a `Box<[u32; ENTRIES]>` does.
unsafe impl Send for Sparse {}
// SAFETY: as for `Send`.
unsafe impl Sync for Sparse {}

impl Sparse {
    /// Maps a table, which is to have hugepages if it is `dense` and the kernel has some. Where there is no more memory to
    /// promise (all of it is counted with `vm.overcommit_memory=2`) the process ends, as by any failed allocation.
    pub fn new(dense: bool) -> Self {
        // Miri knows neither this flag nor advice.
        let reserve = if cfg!(miri) { 0 } else { libc::MAP_NORESERVE };
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | reserve);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(ptr::null_mut(), BYTES, prot, flags, -1, 0) };
        let base = if base == libc::MAP_FAILED { None } else { NonNull::new(base.cast::<[u32; ENTRIES]>()) };
        let Some(base) = base else { handle_alloc_error(Layout::new::<[u32; ENTRIES]>()) };
        if !cfg!(miri) {
            // A hugepage for one entry would be 2 MiB to clear with each table that is built.
            let advice = if dense { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
            // SAFETY: the mapping just made. Advice that is not taken changes nothing.
            unsafe { libc::madvise(base.as_ptr().cast(), BYTES, advice) };
        }
        Self { base }
    }
}

impl Deref for Sparse {
    type Target = [u32; ENTRIES];

    #[inline]
    fn deref(&self) -> &Self::Target {
        // SAFETY: live, aligned and initialized by invariants 1 and 2; written through `&mut self` only.
        unsafe { self.base.as_ref() }
    }
}

impl DerefMut for Sparse {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as for `deref`, and by invariant 1 nobody else's.
        unsafe { self.base.as_mut() }
    }
}

impl Drop for Sparse {
    fn drop(&mut self) {
        // SAFETY: the mapping of invariant 1; no reference into it outlives the table.
        unsafe { libc::munmap(self.base.as_ptr().cast(), BYTES) };
    }
}
