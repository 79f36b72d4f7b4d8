//! Poptrie: longest-prefix match by population count (Asai and Ohara, SIGCOMM 2015).
//!
//! The first bits of a key index a table directly, every further six bits one node. A node keeps
//! two bit vectors over its 64 slots; how many bits are set up to a slot is the distance of the
//! slot's child, or leaf, from the node's first. Equal neighbouring leaves are stored once, and a
//! node whose slots all lead to one value is not stored at all.
//!
//! ```text
//! direct[first bits] ──▶ entry ──┬─▶ value
//!                          ▲     └─▶ nodes[n]: fork { children, leaf_starts, first_child, first_leaf }
//!                          │                   path { bits, length, first_child, first_leaf }
//!                          │                          │
//!                          └───── by the next bits ───┴─▶ leaves[n], a value
//! ```
//!
//! Paths are not in the paper: bits in which all prefixes below agree take one node, where a pod's
//! /128 inside its node's /64 would take eleven forks.
//!
//! A trie never changes once built.

mod build;
mod key;
#[cfg(test)]
mod tests;

pub use key::Key;

/// What a look-up gives when no prefix matches; every value of a trie is below it.
pub const NONE: u32 = NODE - 1;

/// Marks an entry that is the number of a node, not a value.
const NODE: u32 = 1 << 31;

/// Key bits that one fork consumes.
const STRIDE: u8 = 6;

/// Look-ups that [`Poptrie::lookup_burst`] walks side by side in a large trie.
const LANES: usize = 8;

/// A trie of more nodes is large: walks miss the second-level cache. Side by side they then take
/// 0.6 of the time (a million IPv6 prefixes), in a small trie up to 1.7 times as long.
const LARGE: usize = 1 << 15;

/// Prefixes of one address family, each with a value below [`NONE`].
#[derive(Debug)]
pub struct Poptrie<K> {
    direct: Box<[u32]>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
    key: std::marker::PhantomData<K>,
}

impl<K: Key> Poptrie<K> {
    /// The value of the longest prefix that holds `key`.
    #[inline]
    pub fn lookup(&self, key: K) -> Option<u32> {
        let value = self.walk(key);
        (value != NONE).then_some(value)
    }

    /// Looks up each key and writes its value, or [`NONE`], to the same place of `values`; the
    /// shorter slice decides how many. Cache misses of several look-ups overlap.
    pub fn lookup_burst(&self, keys: &[K], values: &mut [u32]) {
        if self.nodes.len() <= LARGE {
            values.iter_mut().zip(keys).for_each(|(value, &key)| *value = self.walk(key));
            return;
        }
        for (keys, values) in keys.chunks(LANES).zip(values.chunks_mut(LANES)) {
            self.walk_side_by_side(keys, values);
        }
    }

    #[inline]
    fn walk(&self, key: K) -> u32 {
        let mut lane = self.enter(key);
        while lane.at_node() {
            lane = self.step(lane);
        }
        lane.entry
    }

    /// Takes all keys one step, then all that are not done the next: up to [`LANES`] keys.
    fn walk_side_by_side(&self, keys: &[K], values: &mut [u32]) {
        let mut lanes = [Lane::default(); LANES];
        lanes.iter_mut().zip(keys).for_each(|(lane, &key)| *lane = self.enter(key));
        let mut walking = true;
        while walking {
            walking = false;
            for lane in lanes.iter_mut().filter(|lane| lane.at_node()) {
                *lane = self.step(*lane);
                walking |= lane.at_node();
            }
        }
        values.iter_mut().zip(lanes).for_each(|(value, lane)| *value = lane.entry);
    }

    /// Bytes that the trie occupies.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.direct) + size_of_val(&*self.nodes) + size_of_val(&*self.leaves)
    }

    /// Consumes the bits that index the direct table.
    #[inline]
    fn enter(&self, key: K) -> Lane<K> {
        let entry = self.direct.get(key.first(K::DIRECT_BITS)).copied().unwrap_or(NONE);
        Lane { entry, rest: key.skip(K::DIRECT_BITS) }
    }

    /// Goes on from a node; consumes the bits that it tests.
    #[inline]
    fn step(&self, Lane { entry, rest }: Lane<K>) -> Lane<K> {
        let Some(node) = self.nodes.get((entry & !NODE) as usize) else { return Lane { entry: NONE, rest } };
        if K::PATHS && node.is_path() {
            let length = node.path_length();
            let agrees = (rest.first_64() ^ node.children).leading_zeros() >= u32::from(length);
            let entry = if agrees { NODE | node.first_child } else { self.leaf(node.first_leaf) };
            return Lane { entry, rest: rest.skip(length) };
        }
        let bit = 1_u64 << rest.first(STRIDE);
        let up_to = bit | (bit - 1);
        let entry = if node.children & bit != 0 {
            NODE | (node.first_child + (node.children & up_to).count_ones() - 1)
        } else {
            self.leaf(node.first_leaf + (node.leaf_starts & up_to).count_ones() - 1)
        };
        Lane { entry, rest: rest.skip(STRIDE) }
    }

    #[inline]
    fn leaf(&self, number: u32) -> u32 {
        self.leaves.get(number as usize).copied().unwrap_or(NONE)
    }
}

/// A fork over the next six bits, or a path over up to 64.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Fork: the slots that lead to a child. Path: its bits, from the highest down.
    children: u64,
    /// Fork: slot 0, and the slots whose leaf is another than that of the leaf slot before them.
    /// Path: twice its length, so that bit 0 tells the two apart.
    leaf_starts: u64,
    /// Path: the node at its end.
    first_child: u32,
    /// Path: the leaf of a key that leaves it.
    first_leaf: u32,
}

impl Node {
    fn path(bits: u64, length: u8, end: u32, otherwise: u32) -> Self {
        Self { children: bits, leaf_starts: u64::from(length) << 1, first_child: end, first_leaf: otherwise }
    }

    #[inline]
    fn is_path(&self) -> bool {
        self.leaf_starts & 1 == 0
    }

    #[inline]
    fn path_length(&self) -> u8 {
        u8::try_from(self.leaf_starts >> 1).unwrap_or(u8::MAX)
    }
}

/// A look-up under way: where it stands, and the bits of the key that are still to be tested.
#[derive(Clone, Copy, Debug, Default)]
struct Lane<K> {
    entry: u32,
    rest: K,
}

impl<K> Lane<K> {
    #[inline]
    fn at_node(&self) -> bool {
        self.entry & NODE != 0
    }
}
