//! IPv6: Poptrie, longest-prefix match by population count (Asai and Ohara, SIGCOMM 2015).
//!
//! The first bits in which prefixes differ index a table directly, every further six bits one node. A node keeps
//! two bit vectors over its 64 slots; how many bits are set up to a slot is the distance of the
//! slot's child, or leaf, from the node's first. Equal neighbouring leaves are stored once, and a
//! node whose slots all lead to one value is not stored at all.
//!
//! ```text
//! block ──▶ direct[next bits] ──▶ entry ──┬─▶ value
//!                                   ▲     └─▶ nodes[n]: fork { children, leaf_starts, first_child, first_leaf }
//!                                   │                   path { bits, length, end, otherwise }
//!                                   │                          │
//!                                   └───── by the next bits ───┴─▶ leaves[n], a value
//! ```
//!
//! Two things are not in the paper. Bits that all prefixes share, a cluster's range, are compared once, and the
//! table is indexed by what follows: in most clusters it leads to nodes' values at once. Paths: bits in which all prefixes
//! below agree take one node, where a pod's /128 inside its node's /64 would take eleven forks; a
//! prefix that is alone ends with its path.
//!
//! A trie never changes once built.

mod build;
#[cfg(test)]
mod tests;

use super::prefix::{FURTHER, Key, MAX_VALUE, NONE, Prefix};

/// Key bits that one fork consumes.
const STRIDE: u8 = 6;

/// Slots of a fork.
const SLOTS: u64 = 1 << STRIDE;

/// Bits of half an address.
const HALF: u8 = 64;

/// IPv6 prefixes, each with a value.
#[derive(Debug)]
pub struct Poptrie {
    block: Block,
    /// Those that hold the block, the longest last.
    around: Vec<Prefix<u128>>,
    /// By the bits that follow the block's.
    direct: Box<[u32]>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
}

impl Poptrie {
    /// The value of the longest prefix that holds an address in host order.
    #[inline]
    pub fn lookup(&self, address: u128) -> Option<u32> {
        let address = Halves::of(address);
        let value = self.walk(self.enter(address), address);
        (value != NONE).then_some(value)
    }

    /// Looks up each address and writes its value, or [`NONE`], to the same place of `values`; the
    /// shorter slice decides how many. All are found in the direct table before the first is followed further: what is
    /// read there, mostly from beyond the first caches, waits for nothing else.
    pub fn lookup_burst(&self, addresses: &[u128], values: &mut [u32]) {
        let addresses = || addresses.iter().map(|&address| Halves::of(address));
        values.iter_mut().zip(addresses()).for_each(|(value, address)| *value = self.enter(address));
        values.iter_mut().zip(addresses()).for_each(|(value, address)| *value = self.walk(*value, address));
    }

    /// Follows an entry of the direct table to the value.
    #[inline]
    fn walk(&self, mut entry: u32, address: Halves) -> u32 {
        while entry & FURTHER != 0 {
            entry = self.step(entry, address);
        }
        entry
    }

    /// Bytes that the trie occupies.
    pub fn memory_bytes(&self) -> usize {
        let tables = size_of_val(&*self.direct) + size_of_val(&*self.nodes) + size_of_val(&*self.leaves);
        tables + size_of_val(&*self.around) + size_of_val(self)
    }

    /// The entry of an address in the direct table.
    #[inline]
    fn enter(&self, address: Halves) -> u32 {
        match self.block.slot(address) {
            Some(slot) => self.direct.get(slot).copied().unwrap_or(NONE),
            None => self.outside(address),
        }
    }

    /// The value of an address that is not in the block.
    #[cold]
    fn outside(&self, address: Halves) -> u32 {
        let address = u128::from(address.high) << 64 | u128::from(address.low);
        let holding = self.around.iter().rev().find(|prefix| prefix.bits == address.network(prefix.len));
        holding.map_or(NONE, |prefix| prefix.value)
    }

    /// Goes on from a node.
    #[inline]
    fn step(&self, entry: u32, address: Halves) -> u32 {
        let Some(node) = self.nodes.get((entry & MAX_VALUE) as usize) else { return NONE };
        let half = address.half(node.is_low);
        if node.is_path {
            return if (half ^ node.children) & node.leaf_starts == 0 { node.first_child } else { node.first_leaf };
        }
        let bit = 1_u64 << ((half >> node.shift) & (SLOTS - 1));
        let up_to = bit | (bit - 1);
        if node.children & bit != 0 {
            FURTHER | (node.first_child + (node.children & up_to).count_ones() - 1)
        } else {
            let number = node.first_leaf + (node.leaf_starts & up_to).count_ones() - 1;
            self.leaves.get(number as usize).copied().unwrap_or(NONE)
        }
    }
}

/// An address in host order, in words.
#[derive(Clone, Copy, Debug)]
struct Halves {
    high: u64,
    low: u64,
}

impl Halves {
    #[inline]
    fn of(address: u128) -> Self {
        let word = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default();
        Self { high: word(address >> 64), low: word(address) }
    }

    #[inline]
    fn half(self, is_low: bool) -> u64 {
        if is_low { self.low } else { self.high }
    }
}

/// The addresses that the direct table knows of: those with the bits that all prefixes share.
#[derive(Clone, Copy, Debug)]
struct Block {
    network: Halves,
    mask: Halves,
    /// The half of the address that has the table's index, and how many bits of it come after the index.
    is_low: bool,
    shift: u8,
}

impl Block {
    /// The place of an address in the direct table, if it is in the block.
    #[inline]
    fn slot(&self, address: Halves) -> Option<usize> {
        // In the block nothing is left of what comes before the index.
        let inside = Halves { high: address.high ^ self.network.high, low: address.low ^ self.network.low };
        let differs = inside.high & self.mask.high | inside.low & self.mask.low;
        (differs == 0).then(|| index(inside.half(self.is_low) >> self.shift))
    }
}

#[inline]
fn index(slot: u64) -> usize {
    usize::try_from(slot).unwrap_or(usize::MAX)
}

/// A fork over six bits, or a path over up to 64, both within one half of the address.
///
/// A node is in one line of the cache.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Node {
    /// Fork: the slots that lead to a child. Path: its bits, in their places.
    children: u64,
    /// Fork: slot 0, and the slots whose leaf is another than that of the leaf slot before them.
    /// Path: ones in the places of its bits.
    leaf_starts: u64,
    /// Fork: its first child. Path: the entry at its end.
    first_child: u32,
    /// Fork: its first leaf. Path: the value of an address that leaves it.
    first_leaf: u32,
    is_path: bool,
    is_low: bool,
    /// Fork: how many bits of the half come after the six.
    shift: u8,
}
