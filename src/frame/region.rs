use std::io;
use std::ptr::{self, NonNull};

use super::{CHUNK_SIZE, Frame, HEADROOM, Pool};

/// Bytes of a hugepage of the size that every x86-64 and most arm64 kernels have.
const HUGE_PAGE: usize = 2 << 20;

/// Why packet memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error("packet memory of {chunks} chunks is more than this machine can address; lower `dataplane.frames`")]
    TooLarge { chunks: u32 },
    #[error("cannot map {bytes} bytes of packet memory: {source}; lower `dataplane.frames` or free memory")]
    Map { bytes: usize, source: io::Error },
}

/// One mapping of equal chunks.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: NonNull<u8>,
    chunks: u32,
    huge: bool,
}

// SAFETY: a region only names memory; access to it is by frames, of which invariant 2 allows one a chunk.
unsafe impl Send for Region {}
// SAFETY: as for `Send`: no method of a shared region reads or writes the memory.
unsafe impl Sync for Region {}

impl Region {
    /// Maps memory for `chunks` chunks and returns it with a pool of all their frames.
    ///
    /// Hugepages are used when enough of them are free, ordinary pages otherwise, which the kernel may join to
    /// transparent ones: packets of one burst lie in as many pages as there are packets, more than a TLB holds.
    pub fn map(chunks: u32) -> Result<(Self, Pool), RegionError> {
        let too_large = RegionError::TooLarge { chunks };
        let Some(bytes) = (chunks as usize).checked_mul(CHUNK_SIZE).filter(|&bytes| bytes > 0) else {
            return Err(too_large);
        };
        let Some(huge_bytes) = bytes.checked_next_multiple_of(HUGE_PAGE) else {
            return Err(too_large);
        };
        let (base, huge) = match map_anonymous(huge_bytes, libc::MAP_HUGETLB) {
            Ok(base) => (base, true),
            Err(_) => (map_anonymous(bytes, 0).map_err(|source| RegionError::Map { bytes, source })?, false),
        };
        let region = Self { base, chunks, huge };
        debug_assert_eq!(region.mapped_bytes(), if huge { huge_bytes } else { bytes });
        let pool = Pool::new((0..chunks).rev().map(|chunk| region.frame(chunk)).collect());
        Ok((region, pool))
    }

    /// Unmaps the memory if `pool` holds every frame of it, or gives the pool back.
    pub fn unmap(self, pool: Pool) -> Result<(), Pool> {
        if pool.len() != self.chunks as usize || !pool.all(|frame| self.owns(frame)) {
            return Err(pool);
        }
        drop(pool);
        // SAFETY: this is the mapping made by `map`. All its frames were just dropped: by invariant 2 nothing
        // can reach it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped_bytes()) };
        Ok(())
    }

    /// The mapping's first byte and its length in bytes, for registration with the kernel.
    pub fn as_raw(&self) -> (NonNull<u8>, usize) {
        (self.base, self.chunks as usize * CHUNK_SIZE)
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Whether hugepages back it.
    pub fn huge(&self) -> bool {
        self.huge
    }

    /// Gives up a frame of this region, so that the kernel may have its chunk. Returns the chunk's number.
    #[expect(clippy::needless_pass_by_value, reason = "lending takes the frame away from its holder")]
    pub fn lend(&self, frame: Frame) -> u32 {
        // Another region's would come back as a second frame of this one's chunk (invariant 2).
        debug_assert!(self.owns(&frame));
        frame.chunk
    }

    /// Makes a lent chunk a frame again, empty behind the headroom.
    ///
    /// # Safety
    ///
    /// A frame of this region with that number was lent, was not redeemed since, and the kernel has given
    /// the chunk back.
    pub unsafe fn redeem(&self, chunk: u32) -> Frame {
        self.frame(chunk)
    }

    fn owns(&self, frame: &Frame) -> bool {
        frame.chunk < self.chunks && self.frame(frame.chunk).base == frame.base
    }

    fn mapped_bytes(&self) -> usize {
        let bytes = self.chunks as usize * CHUNK_SIZE;
        if self.huge { bytes.next_multiple_of(HUGE_PAGE) } else { bytes }
    }

    fn frame(&self, chunk: u32) -> Frame {
        debug_assert!(chunk < self.chunks);
        // SAFETY: the chunk lies inside the mapping of `chunks` chunks.
        let base = unsafe { self.base.add(chunk as usize * CHUNK_SIZE) };
        let mut frame = Frame { base, chunk, head: 0, len: 0 };
        frame.reset(HEADROOM);
        frame
    }
}

fn map_anonymous(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if cfg!(miri) { 0 } else { flags };
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Miri knows neither hugepages nor advice.
    if !cfg!(miri) {
        // SAFETY: the mapping just made. Advice that is not taken changes nothing.
        unsafe { libc::madvise(base, bytes, libc::MADV_HUGEPAGE) };
        // SAFETY: the mapping just made, which nobody uses yet.
        if unsafe { libc::madvise(base, bytes, libc::MADV_POPULATE_WRITE) } != 0 {
            let error = io::Error::last_os_error();
            // SAFETY: as above.
            unsafe { libc::munmap(base, bytes) };
            return Err(error);
        }
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
}
