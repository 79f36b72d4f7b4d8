//! Building a trie, from the leaves up.

use std::marker::PhantomData;

use super::{Key, NODE, NONE, Node, Poptrie, STRIDE};

/// Slots of a fork.
const SLOTS: usize = 1 << STRIDE;

/// Bits of a path: more than one fork would consume, and no more than a node has room for.
const PATH: std::ops::RangeInclusive<u8> = STRIDE + 1..=64;

/// No table of this many prefixes outgrows 31-bit numbers: each adds at most 19 nodes.
const MAX_PREFIXES: usize = 1 << 26;

impl<K: Key> Poptrie<K> {
    /// Builds a trie from `(address, prefix length, value)`; of equal prefixes the last one counts.
    /// Host bits are ignored, and a length beyond the key's width means the key's width. A value that
    /// is not below [`NONE`] means "no match". Costs less than a microsecond a prefix.
    ///
    /// # Panics
    /// On more than 67 million prefixes.
    pub fn build(prefixes: impl IntoIterator<Item = (K, u8, u32)>) -> Self {
        let prefixes = sorted(prefixes);
        assert!(prefixes.len() <= MAX_PREFIXES, "more than {MAX_PREFIXES} prefixes");

        let mut trie = Self { direct: Box::default(), nodes: Vec::new(), leaves: Vec::new(), key: PhantomData };
        let mut direct = vec![NONE; 1 << K::DIRECT_BITS];
        for (slot, longer) in expand(&prefixes, 0, K::DIRECT_BITS, &mut direct) {
            let Some(entry) = direct.get_mut(slot) else { continue };
            *entry = match trie.subtree(longer, K::DIRECT_BITS, *entry) {
                Subtree::Leaf(value) => value,
                Subtree::Node(node) => NODE | trie.add_nodes(&[node]),
            };
        }
        trie.direct = direct.into_boxed_slice();
        trie.nodes.shrink_to_fit();
        trie.leaves.shrink_to_fit();
        trie
    }

    /// Stores what lies below a slot that starts at bit `depth`: `prefixes` are longer than that
    /// and sorted, `inherited` is the value where none of them matches.
    fn subtree(&mut self, prefixes: &[Prefix<K>], depth: u8, inherited: u32) -> Subtree {
        let path = shared_path(prefixes, depth);
        if !K::PATHS || !PATH.contains(&path) {
            return self.fork(prefixes, depth, inherited);
        }
        let end = match self.subtree(prefixes, depth + path, inherited) {
            Subtree::Node(node) => node,
            Subtree::Leaf(value) if value == inherited => return Subtree::Leaf(value),
            Subtree::Leaf(value) => Node { leaf_starts: 1, first_leaf: self.add_leaves(&[value]), ..Node::default() },
        };
        let bits = prefixes.first().map_or(0, |prefix| prefix.bits.skip(depth).first_64());
        let (end, otherwise) = (self.add_nodes(&[end]), self.add_leaves(&[inherited]));
        Subtree::Node(Node::path(bits, path, end, otherwise))
    }

    /// As [`Poptrie::subtree`], without a path.
    fn fork(&mut self, prefixes: &[Prefix<K>], depth: u8, inherited: u32) -> Subtree {
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
        let mut leaves = Vec::new();
        for (slot, &value) in slots.iter().enumerate().filter(|(slot, _)| node.children & (1 << slot) == 0) {
            if leaves.last() != Some(&value) {
                // The first leaf counts from slot 0: before it are children only.
                node.leaf_starts |= if leaves.is_empty() { 1 } else { 1 << slot };
                leaves.push(value);
            }
        }
        if let ([], &[only]) = (&*children, &*leaves) {
            return Subtree::Leaf(only);
        }
        node.leaf_starts |= 1;
        node.first_child = self.add_nodes(&children);
        node.first_leaf = self.add_leaves(&leaves);
        Subtree::Node(node)
    }

    /// Stores nodes side by side and returns the first one's number.
    fn add_nodes(&mut self, nodes: &[Node]) -> u32 {
        let first = number(self.nodes.len());
        self.nodes.extend(nodes);
        first
    }

    /// Stores leaves side by side and returns the first one's number.
    fn add_leaves(&mut self, leaves: &[u32]) -> u32 {
        let first = number(self.leaves.len());
        self.leaves.extend(leaves);
        first
    }
}

/// What a slot leads to: one value throughout, or a node that its parent has yet to store.
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

/// The prefixes by address and then length, so that each comes before those inside it, and once.
fn sorted<K: Key>(prefixes: impl IntoIterator<Item = (K, u8, u32)>) -> Vec<Prefix<K>> {
    let clean = |(bits, len, value): (K, u8, u32)| {
        let len = len.min(K::WIDTH);
        Prefix { bits: bits.network(len), len, value: value.min(NONE) }
    };
    let mut prefixes: Vec<_> = prefixes.into_iter().map(clean).collect();
    prefixes.sort_by_key(|prefix| (prefix.bits, prefix.len));
    prefixes.dedup_by(|later, kept| {
        let same = (later.bits, later.len) == (kept.bits, kept.len);
        if same {
            kept.value = later.value;
        }
        same
    });
    prefixes
}

/// How many bits after `depth` all prefixes agree in before the first of them ends.
fn shared_path<K: Key>(prefixes: &[Prefix<K>], depth: u8) -> u8 {
    let (Some(first), Some(last)) = (prefixes.first(), prefixes.last()) else { return 0 };
    let shortest = prefixes.iter().map(|prefix| prefix.len).min().unwrap_or_default();
    let end = first.bits.shared(last.bits).min(shortest.saturating_sub(1));
    end.saturating_sub(depth).min(*PATH.end())
}

/// Writes the prefixes that end within the `stride` bits after `depth` over the slots they cover,
/// and returns the longer ones by the slot they lie in.
///
/// The prefixes are [`sorted`]: the longest one is written last, and those of one slot are
/// neighbours, the short ones first.
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
