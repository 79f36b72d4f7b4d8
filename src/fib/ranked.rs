//! The direct table of routes that are far apart, stored as where its entries change: a bit vector with ranks (Jacobson,
//! FOCS 1989).
//!
//! ```text
//! blocks[first 19 bits] ──▶ one bit for each of 32 slots, set where another entry begins
//!                           how many have begun before ─┐
//!                               entries[that + bits set up to the slot]
//! ```
//!
//! That takes 4 MiB and four bytes a change, whatever lies between the routes.

#![allow(unsafe_code, reason = "calls what is compiled for processors that count bits")]

use super::prefix::NONE;

/// Slots of the direct table: one for each 24 bits.
pub const SLOTS: u32 = 1 << 24;

/// Slots of a block.
const SLOTS_OF_BLOCK: u32 = u32::BITS;
const BLOCKS: usize = 1 << 19;

/// A bit for each slot, and how many are set in all blocks before.
type Block = [u32; 2];

/// Bytes of a table without routes.
pub const BYTES: usize = BLOCKS * size_of::<Block>();

/// From a slot on all have this entry, up to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub slot: u32,
    pub entry: u32,
}

/// Entries by the first 24 bits of an address.
#[derive(Debug)]
pub struct Ranked {
    blocks: Box<[Block; BLOCKS]>,
    /// [`NONE`], and what each run has.
    entries: Box<[u32]>,
}

impl Ranked {
    /// Builds a table of runs, which are in order; what comes before the first has [`NONE`].
    pub fn build(runs: &[Run]) -> Self {
        let entries = [NONE].into_iter().chain(runs.iter().map(|run| run.entry)).collect();
        let (mut blocks, mut before) = (Vec::with_capacity(BLOCKS), 0);
        let block_of = |run: &Run| (run.slot / SLOTS_OF_BLOCK) as usize;
        for runs in runs.chunk_by(|a, b| block_of(a) == block_of(b)) {
            blocks.resize(runs.first().map_or(0, block_of), [0, before]);
            let bits: u32 = runs.iter().map(|run| 1 << (run.slot % SLOTS_OF_BLOCK)).sum();
            blocks.push([bits, before]);
            before += bits.count_ones();
        }
        blocks.resize(BLOCKS, [0, before]);
        let Ok(blocks) = blocks.into_boxed_slice().try_into() else { unreachable!("it has just that length") };
        Self { blocks, entries }
    }

    /// The entry of an address in host order.
    #[inline]
    pub fn lookup(&self, address: u32) -> u32 {
        self.entry(self.rank(address))
    }

    /// Writes the entry of each address to the same place of `entries`; the shorter slice decides how many. Returns the
    /// bits that any of them has.
    pub fn lookup_burst(&self, addresses: &[u32], entries: &mut [u32]) -> u32 {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("popcnt") {
            // SAFETY: this processor has the instruction.
            return unsafe { self.lookup_burst_popcnt(addresses, entries) };
        }
        self.lookup_each(addresses, entries)
    }

    /// [`Ranked::lookup_each`] with an instruction that x86-64 had not from the start: without it, it takes twice as long.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "popcnt")]
    fn lookup_burst_popcnt(&self, addresses: &[u32], entries: &mut [u32]) -> u32 {
        self.lookup_each(addresses, entries)
    }

    /// All ranks are found before the first entry is read, so that more reads are under way at a time.
    #[inline]
    fn lookup_each(&self, addresses: &[u32], entries: &mut [u32]) -> u32 {
        let ranks = entries;
        ranks.iter_mut().zip(addresses).for_each(|(rank, &address)| *rank = self.rank(address));
        ranks.iter_mut().zip(addresses).fold(0, |all, (rank, _)| {
            *rank = self.entry(*rank);
            all | *rank
        })
    }

    /// How many runs have begun up to an address's slot.
    #[inline]
    fn rank(&self, address: u32) -> u32 {
        let slot = address >> 8;
        let [bits, before] = self.blocks.get((slot / SLOTS_OF_BLOCK) as usize).copied().unwrap_or_default();
        // Without those of later slots.
        before + (bits << (SLOTS_OF_BLOCK - 1 - slot % SLOTS_OF_BLOCK)).count_ones()
    }

    /// What the run of a rank has.
    #[inline]
    fn entry(&self, rank: u32) -> u32 {
        self.entries.get(rank as usize).copied().unwrap_or(NONE)
    }

    /// Bytes of memory that the table occupies.
    pub fn memory_bytes(&self) -> usize {
        BYTES + size_of_val(&*self.entries)
    }
}
