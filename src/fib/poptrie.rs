//! Poptrie: longest-prefix match by population count (Asai and Ohara, SIGCOMM 2015).
//!
//! The first bits of a key index a table directly, every further six bits one node. A node keeps
//! two bit vectors over its 64 slots; how many bits are set up to a slot is the distance of the
//! slot's child, or leaf, from the node's first. Equal neighbouring leaves are stored once, and a
//! node whose slots all lead to one value is not stored at all.
//!
//! ```text
//! direct[key >> ..] ──▶ leaf value
//!        │
//!        └──▶ Node { children, leaf_starts, first_child, first_leaf }
//!                       │                        │            └──▶ leaves[first_leaf + n]
//!                       └─ bit set: a child      └──▶ nodes[first_child + n] ──▶ ...
//! ```
//!
//! A trie never changes once built.

use std::fmt::Debug;

/// What a look-up gives when no prefix matches; every value of a trie is below it.
pub const NONE: u32 = NODE - 1;

/// Marks an entry that is the number of a node, not a value.
const NODE: u32 = 1 << 31;

/// Key bits that one node consumes.
const STRIDE: u8 = 6;

/// Slots of a node.
const SLOTS: usize = 1 << STRIDE;

/// Look-ups that [`Poptrie::lookup_burst`] keeps in flight at once.
const LANES: usize = 16;

/// No table of this many prefixes outgrows 31-bit node numbers: each adds at most 19 nodes.
const MAX_PREFIXES: usize = 1 << 26;

/// An address as an integer in host order.
pub trait Key: Copy + Default + Ord + Debug {
    /// Width of the address.
    const WIDTH: u8;
    /// Bits that index the direct table.
    const DIRECT_BITS: u8;

    /// The first `bits` bits (1 to 32) as a number.
    fn first(self, bits: u8) -> usize;

    /// The key without its first `bits` bits, filled up with zeros.
    #[must_use]
    fn skip(self, bits: u8) -> Self;

    /// The key with everything but its first `bits` bits cleared.
    #[must_use]
    fn network(self, bits: u8) -> Self;
}

macro_rules! key {
    ($int:ty, width: $width:literal, direct: $direct:literal) => {
        impl Key for $int {
            const WIDTH: u8 = $width;
            const DIRECT_BITS: u8 = $direct;

            #[inline]
            fn first(self, bits: u8) -> usize {
                usize::try_from(self >> (Self::WIDTH - bits)).unwrap_or_default()
            }

            #[inline]
            fn skip(self, bits: u8) -> Self {
                self.checked_shl(u32::from(bits)).unwrap_or_default()
            }

            fn network(self, bits: u8) -> Self {
                self & !<$int>::MAX.checked_shr(u32::from(bits)).unwrap_or_default()
            }
        }
    };
}

// 18 + 6 reaches the /24 of a node, and most of the Internet's routes, with one node.
key!(u32, width: 32, direct: 18);
// 16 + 8 * 6 reaches the /64 of a node; a wider table would mostly hold the same entry.
key!(u128, width: 128, direct: 16);

/// Prefixes of one address family, each with a value below [`NONE`].
#[derive(Debug)]
pub struct Poptrie<K> {
    direct: Box<[u32]>,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
    key: std::marker::PhantomData<K>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Node {
    /// Slots that lead to a child.
    children: u64,
    /// Slots that lead to a leaf other than that of the leaf slot before them.
    leaf_starts: u64,
    first_child: u32,
    first_leaf: u32,
}

impl<K: Key> Poptrie<K> {
    /// Builds a trie from `(address, prefix length, value)`; of equal prefixes the last one counts.
    /// Host bits are ignored, and so is a length beyond the key's width. A value that is not
    /// below [`NONE`] means "no match". Costs about a microsecond a prefix.
    ///
    /// # Panics
    /// On more than 67 million prefixes.
    pub fn build(prefixes: impl IntoIterator<Item = (K, u8, u32)>) -> Self {
        let mut prefixes: Vec<_> = prefixes.into_iter().map(Prefix::new).collect();
        prefixes.sort_by_key(|p| (p.bits, p.len));
        prefixes.dedup_by(|later, kept| {
            let same = (later.bits, later.len) == (kept.bits, kept.len);
            if same {
                kept.value = later.value;
            }
            same
        });
        assert!(prefixes.len() <= MAX_PREFIXES, "more than {MAX_PREFIXES} prefixes");

        let mut direct = vec![NONE; 1 << K::DIRECT_BITS].into_boxed_slice();
        let mut trie =
            Self { direct: Box::default(), nodes: Vec::new(), leaves: Vec::new(), key: std::marker::PhantomData };
        for (slot, longer) in expand(&prefixes, 0, K::DIRECT_BITS, &mut direct) {
            if let Some(entry) = direct.get_mut(slot) {
                *entry = match trie.subtree(longer, K::DIRECT_BITS, *entry) {
                    Subtree::Leaf(value) => value,
                    Subtree::Node(node) => NODE | trie.append(&[node]),
                };
            }
        }
        trie.direct = direct;
        trie.nodes.shrink_to_fit();
        trie.leaves.shrink_to_fit();
        trie
    }

    /// The value of the longest prefix that holds `key`.
    #[inline]
    pub fn lookup(&self, key: K) -> Option<u32> {
        let (mut entry, mut rest) = self.enter(key);
        while entry & NODE != 0 {
            entry = self.step(entry, rest);
            rest = rest.skip(STRIDE);
        }
        (entry != NONE).then_some(entry)
    }

    /// Looks up each key and writes its value, or [`NONE`], to the same place of `values`; the
    /// shorter slice decides how many. Walks several keys level by level, so that their cache
    /// misses overlap.
    pub fn lookup_burst(&self, keys: &[K], values: &mut [u32]) {
        for (keys, values) in keys.chunks(LANES).zip(values.chunks_mut(LANES)) {
            let mut lanes = [(NONE, K::default()); LANES];
            for (lane, &key) in lanes.iter_mut().zip(keys) {
                *lane = self.enter(key);
            }
            let mut pending = NODE;
            while pending & NODE != 0 {
                pending = 0;
                for (entry, rest) in lanes.iter_mut().filter(|(entry, _)| entry & NODE != 0) {
                    *entry = self.step(*entry, *rest);
                    *rest = rest.skip(STRIDE);
                    pending |= *entry;
                }
            }
            for (value, (entry, _)) in values.iter_mut().zip(lanes) {
                *value = entry;
            }
        }
    }

    /// Bytes that the trie occupies.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.direct) + size_of_val(&*self.nodes) + size_of_val(&*self.leaves)
    }

    /// The direct table's entry for a key, and the bits after those that it stands for.
    #[inline]
    fn enter(&self, key: K) -> (u32, K) {
        let entry = self.direct.get(key.first(K::DIRECT_BITS)).copied().unwrap_or(NONE);
        (entry, key.skip(K::DIRECT_BITS))
    }

    /// Goes from a node's entry to that of the slot which the next bits of the key choose.
    #[inline]
    fn step(&self, entry: u32, rest: K) -> u32 {
        let Some(node) = self.nodes.get((entry & !NODE) as usize) else { return NONE };
        let bit = 1_u64 << rest.first(STRIDE);
        let up_to = bit | (bit - 1);
        if node.children & bit != 0 {
            NODE | (node.first_child + (node.children & up_to).count_ones() - 1)
        } else {
            let leaf = node.first_leaf + (node.leaf_starts & up_to).count_ones() - 1;
            self.leaves.get(leaf as usize).copied().unwrap_or(NONE)
        }
    }

    /// Stores what lies below a slot that starts at bit `depth`: `prefixes` are longer than that
    /// and sorted, `inherited` is the value where none of them matches.
    fn subtree(&mut self, prefixes: &[Prefix<K>], depth: u8, inherited: u32) -> Subtree {
        let mut slots = [inherited; SLOTS];
        let (mut node, mut children) = (Node::default(), Vec::new());
        for (slot, longer) in expand(prefixes, depth, STRIDE, &mut slots) {
            let Some(value) = slots.get_mut(slot) else { continue };
            match self.subtree(longer, depth + STRIDE, *value) {
                Subtree::Leaf(only) => *value = only,
                Subtree::Node(child) => {
                    node.children |= 1 << slot;
                    children.push(child);
                }
            }
        }
        let mut leaves: Vec<u32> = Vec::new();
        for (slot, &value) in slots.iter().enumerate().filter(|(slot, _)| node.children & (1 << slot) == 0) {
            if leaves.last() != Some(&value) {
                node.leaf_starts |= 1 << slot;
                leaves.push(value);
            }
        }
        if let ([], &[only]) = (&*children, &*leaves) {
            return Subtree::Leaf(only);
        }
        node.first_child = self.append(&children);
        node.first_leaf = number(self.leaves.len());
        self.leaves.extend(leaves);
        Subtree::Node(node)
    }

    /// Stores nodes side by side and returns the first one's number.
    fn append(&mut self, nodes: &[Node]) -> u32 {
        let first = number(self.nodes.len());
        self.nodes.extend(nodes);
        first
    }
}

/// What a slot leads to while the trie is built, from the leaves up.
enum Subtree {
    Leaf(u32),
    Node(Node),
}

#[derive(Clone, Copy, Debug)]
struct Prefix<K> {
    bits: K,
    len: u8,
    value: u32,
}

impl<K: Key> Prefix<K> {
    fn new((bits, len, value): (K, u8, u32)) -> Self {
        let len = len.min(K::WIDTH);
        Self { bits: bits.network(len), len, value: value.min(NONE) }
    }
}

/// Writes the prefixes that end within the `stride` bits after `depth` over the slots they cover,
/// and returns the longer ones by the slot they lie in.
///
/// The prefixes are sorted by address and then length, so a prefix comes before those inside it:
/// the longest one is written last, and those of one slot are neighbours, the short ones first.
fn expand<'a, K: Key>(
    prefixes: &'a [Prefix<K>],
    depth: u8,
    stride: u8,
    slots: &mut [u32],
) -> Vec<(usize, &'a [Prefix<K>])> {
    let end = depth + stride;
    let slot_of = |prefix: &Prefix<K>| prefix.bits.skip(depth).first(stride);
    let mut by_slot = Vec::new();
    for group in prefixes.chunk_by(|a, b| slot_of(a) == slot_of(b)) {
        let slot = group.first().map(slot_of).unwrap_or_default();
        let (ending, longer) = group.split_at(group.partition_point(|prefix| prefix.len <= end));
        for prefix in ending {
            let covered = 1 << (end - prefix.len);
            slots.iter_mut().skip(slot).take(covered).for_each(|value| *value = prefix.value);
        }
        if !longer.is_empty() {
            by_slot.push((slot, longer));
        }
    }
    by_slot
}

/// An index as it is stored. [`MAX_PREFIXES`] keeps every index small enough.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(NONE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(text: &str) -> (u32, u8) {
        let net: ipnet::Ipv4Net = text.parse().unwrap();
        (net.addr().to_bits(), net.prefix_len())
    }

    fn v6(text: &str) -> (u128, u8) {
        let net: ipnet::Ipv6Net = text.parse().unwrap();
        (net.addr().to_bits(), net.prefix_len())
    }

    #[test]
    fn an_empty_trie_matches_nothing() {
        assert_eq!(Poptrie::<u32>::build([]).lookup(0), None);
        assert_eq!(Poptrie::<u128>::build([]).lookup(u128::MAX), None);
    }

    #[test]
    fn the_longest_of_nested_v4_prefixes_wins() {
        let nets = ["0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.1.7/32", "10.244.1.6/31", "10.244.1.0/27"];
        let trie = Poptrie::build(nets.iter().zip(0..).map(|(net, value)| {
            let (bits, len) = v4(net);
            (bits, len, value)
        }));
        let cases = [
            ("9.9.9.9/32", 0),
            ("10.244.255.255/32", 1),
            ("10.244.1.200/32", 2),
            ("10.244.1.7/32", 3),
            ("10.244.1.6/32", 4),
            ("10.244.1.8/32", 5),
            ("10.244.2.0/32", 1),
            ("255.255.255.255/32", 0),
        ];
        for (address, value) in cases {
            assert_eq!(trie.lookup(v4(address).0), Some(value), "{address}");
        }
    }

    #[test]
    fn the_longest_of_nested_v6_prefixes_wins() {
        let nets = ["::/0", "fd00:244::/48", "fd00:244:1::/64", "fd00:244:1::7/128", "fd00:244:1::/120"];
        let trie = Poptrie::build(nets.iter().zip(0..).map(|(net, value)| {
            let (bits, len) = v6(net);
            (bits, len, value)
        }));
        let cases = [
            ("2001:db8::1/128", 0),
            ("fd00:244:0:ffff::/128", 1),
            ("fd00:244:1::1:0/128", 2),
            ("fd00:244:1::7/128", 3),
            ("fd00:244:1::8/128", 4),
            ("fd00:244:1:1::7/128", 0),
        ];
        for (address, value) in cases {
            assert_eq!(trie.lookup(v6(address).0), Some(value), "{address}");
        }
    }

    #[test]
    fn of_equal_prefixes_the_last_counts_and_host_bits_do_not() {
        let trie = Poptrie::build([(0x0af4_0101_u32, 24, 1), (0x0af4_01ff, 24, 2)]);
        assert_eq!(trie.lookup(0x0af4_0100), Some(2));
    }

    #[test]
    fn a_table_of_one_value_needs_no_nodes() {
        let halves = [(0_u32, 0, 7), (0x0af4_0100, 24, 7), (0x0af4_0101, 32, 7)];
        let trie = Poptrie::build(halves);
        assert_eq!((trie.nodes.len(), trie.lookup(0x0af4_0101)), (0, Some(7)));
    }

    #[test]
    fn values_and_lengths_out_of_range_are_harmless() {
        let trie = Poptrie::build([(1_u32, 255, 5), (2, 32, u32::MAX), (3, 32, NONE)]);
        assert_eq!([1, 2, 3].map(|key| trie.lookup(key)), [Some(5), None, None]);
    }

    /// What a trie must give, by looking at every prefix.
    fn scan<K: Key>(prefixes: &[(K, u8, u32)], key: K) -> Option<u32> {
        let holding = prefixes.iter().filter(|(bits, len, _)| bits.network(*len) == key.network(*len));
        holding.max_by_key(|(_, len, _)| *len).map(|(_, _, value)| *value)
    }

    /// Prefixes that nest, touch and repeat: most addresses differ from one of a few in low bits only.
    fn prefixes<K: Key + std::ops::BitXor<Output = K>>(
        key: impl Strategy<Value = K> + Clone + 'static,
    ) -> impl Strategy<Value = Vec<(K, u8, u32)>> {
        let near = prop::collection::vec(key.clone(), 1..4);
        let one = (any::<prop::sample::Index>(), key, 0..=K::WIDTH, 0..=K::WIDTH, 0_u32..6);
        (near, prop::collection::vec(one, 0..60)).prop_map(|(near, many)| {
            let address = |at: prop::sample::Index, noise: K, keep: u8| *at.get(&near) ^ noise ^ noise.network(keep);
            many.into_iter().map(|(at, noise, keep, len, value)| (address(at, noise, keep), len, value)).collect()
        })
    }

    /// Keys at and around the edges of every prefix, and some anywhere.
    fn probes<K: Key + std::ops::BitXor<Output = K> + std::ops::Not<Output = K>>(
        prefixes: &[(K, u8, u32)],
        random: Vec<K>,
    ) -> Vec<K> {
        let edges = prefixes.iter().flat_map(|&(bits, len, _)| {
            let (first, host_bits) = (bits.network(len), !(!K::default()).network(len));
            let flipped = |at: u8| bits ^ (!K::default()).network(at) ^ (!K::default()).network(at.saturating_sub(1));
            [bits, first, first ^ host_bits, flipped(len), flipped(len.saturating_add(1).min(K::WIDTH))]
        });
        edges.chain(random).collect()
    }

    fn agrees_with_a_scan<K: Key>(prefixes: &[(K, u8, u32)], keys: &[K]) -> Result<(), TestCaseError> {
        let trie = Poptrie::build(prefixes.iter().copied());
        let mut burst = vec![0; keys.len()];
        trie.lookup_burst(keys, &mut burst);
        for (&key, value) in keys.iter().zip(burst) {
            prop_assert_eq!(trie.lookup(key), scan(prefixes, key), "{:?}", key);
            prop_assert_eq!(value, trie.lookup(key).unwrap_or(NONE), "burst, {:?}", key);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn v4_agrees_with_a_linear_scan(prefixes in prefixes(any::<u32>()), random in prop::collection::vec(any::<u32>(), 0..40)) {
            agrees_with_a_scan(&prefixes, &probes(&prefixes, random))?;
        }

        #[test]
        fn v6_agrees_with_a_linear_scan(prefixes in prefixes(any::<u128>()), random in prop::collection::vec(any::<u128>(), 0..40)) {
            agrees_with_a_scan(&prefixes, &probes(&prefixes, random))?;
        }
    }
}
