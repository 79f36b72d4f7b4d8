//! Building a trie, from the leaves up.

use std::ops::Range;

use super::super::prefix::{FURTHER, Key, MAX_VALUE, NONE, Prefix, expand, sorted};
use super::{Block, HALF, Halves, Node, Poptrie, SLOTS, STRIDE, index};

/// Bits that index the direct table beyond those that would give each prefix an entry: most then have one to
/// themselves.
const SPARE: u32 = 5;

/// Bits that index the direct table at most.
const DIRECT: u32 = 22;

/// No table of this many prefixes outgrows 31-bit numbers: each adds at most 22 nodes, one for six bits.
const MAX_PREFIXES: usize = 1 << 26;

impl Poptrie {
    /// Builds a trie from `(address, prefix length, value)`, values from 1 to 2^31 - 1; a prefix with another is left
    /// out. Of equal prefixes the last one counts. Host bits are ignored, and a length beyond 128 means 128.
    ///
    /// # Panics
    /// On more than 67 million prefixes.
    pub fn build(prefixes: impl IntoIterator<Item = (u128, u8, u32)>) -> Self {
        let prefixes = sorted(prefixes);
        assert!(prefixes.len() <= MAX_PREFIXES, "more than {MAX_PREFIXES} prefixes");
        let (around, inside) = prefixes.split_at(how_many_hold_the_rest(&prefixes));
        let inherited = around.last().map_or(NONE, |prefix| prefix.value);
        let shared = shared(inside).unwrap_or(0);
        let depth = shared + direct_bits(inside, shared);
        let network = inside.first().map_or(0, |prefix| prefix.bits.network(shared));
        let mut trie = Self {
            block: Block {
                network: Halves::of(network),
                mask: Halves::of(u128::MAX.network(shared)),
                is_low: depth > HALF,
                shift: half_end(depth) - depth,
            },
            around: around.to_vec(),
            direct: vec![inherited; 1 << (depth - shared)].into_boxed_slice(),
            nodes: Vec::new(),
            leaves: Vec::new(),
        };
        let block = trie.block;
        let slot_of = |address| block.slot(Halves::of(address)).unwrap_or_default();
        for (slot, longer) in expand(inside, depth, slot_of, &mut trie.direct) {
            let inherited = trie.direct.get(slot).copied().unwrap_or(NONE);
            let entry = trie.entry(longer, depth, inherited);
            if let Some(place) = trie.direct.get_mut(slot) {
                *place = entry;
            }
        }
        trie.nodes.shrink_to_fit();
        trie.leaves.shrink_to_fit();
        trie
    }

    /// Stores what lies below a place that starts at bit `depth`, and returns the entry that leads there.
    fn entry(&mut self, prefixes: &[Prefix<u128>], depth: u8, inherited: u32) -> u32 {
        match self.subtree(prefixes, depth, inherited) {
            Subtree::Leaf(value) => value,
            Subtree::Node(node) => FURTHER | self.add_nodes(&[node]),
        }
    }

    /// What lies below a place that starts at bit `depth`: `prefixes` are longer than that
    /// and sorted, `inherited` is the value where none of them matches.
    fn subtree(&mut self, prefixes: &[Prefix<u128>], depth: u8, inherited: u32) -> Subtree {
        let (Some(first), Some(end)) = (prefixes.first(), shared(prefixes)) else { return Subtree::Leaf(inherited) };
        let end = end.min(half_end(depth + 1));
        if end <= depth + STRIDE && prefixes.len() > 1 {
            return self.fork(prefixes, depth, inherited);
        }
        // The shortest prefix comes first where it holds the others.
        let (prefixes, below) = match prefixes {
            [first, longer @ ..] if first.len == end => (longer, first.value),
            all => (all, inherited),
        };
        match self.entry(prefixes, end, below) {
            entry if entry == inherited => Subtree::Leaf(inherited),
            entry => Subtree::Node(path(first.bits, depth..end, entry, inherited)),
        }
    }

    /// As [`Poptrie::subtree`], without a path.
    fn fork(&mut self, prefixes: &[Prefix<u128>], depth: u8, inherited: u32) -> Subtree {
        // Six bits that all are in one half: some before may be among them, in which the prefixes agree.
        let end = (depth + STRIDE).min(half_end(depth + 1));
        let mut node = Node { is_low: end > HALF, shift: half_end(end) - end, ..Node::default() };
        let slot_of = |address| index((Halves::of(address).half(node.is_low) >> node.shift) & (SLOTS - 1));
        let mut slots = [inherited; 1 << STRIDE];
        let mut children = Vec::new();
        for (slot, longer) in expand(prefixes, end, slot_of, &mut slots) {
            let Some(value) = slots.get_mut(slot) else { continue };
            match self.subtree(longer, end, *value) {
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

/// How many of the first prefixes hold all that come after them.
fn how_many_hold_the_rest(prefixes: &[Prefix<u128>]) -> usize {
    let Some(last) = prefixes.last() else { return 0 };
    let others = prefixes.split_last().map_or(&[][..], |(_, others)| others);
    others.iter().take_while(|prefix| prefix.len <= same_bits(prefix.bits, last.bits)).count()
}

/// How many bits the prefixes agree in before the first of them ends.
fn shared(prefixes: &[Prefix<u128>]) -> Option<u8> {
    let (first, last) = (prefixes.first()?, prefixes.last()?);
    let shortest = prefixes.iter().map(|prefix| prefix.len).min()?;
    Some(same_bits(first.bits, last.bits).min(shortest))
}

/// In how many of their first bits two addresses agree.
fn same_bits(a: u128, b: u128) -> u8 {
    u8::try_from((a ^ b).leading_zeros()).unwrap_or(u8::MAX)
}

/// The node of a path over these bits of `bits`.
fn path(bits: u128, places: Range<u8>, end: u32, otherwise: u32) -> Node {
    let mask = Halves::of(u128::MAX.network(places.end) & !u128::MAX.network(places.start));
    let is_low = places.end > HALF;
    let mask = mask.half(is_low);
    Node {
        children: Halves::of(bits).half(is_low) & mask,
        leaf_starts: mask,
        first_child: end,
        first_leaf: otherwise,
        is_path: true,
        is_low,
        shift: 0,
    }
}

/// Where the half ends that the bit before `end` is in.
fn half_end(end: u8) -> u8 {
    if end <= HALF { HALF } else { 2 * HALF }
}

/// Bits that index the direct table, which follow the shared ones, in one half of the address: as many as the number of
/// prefixes asks for, but not more than half of the prefixes have. At least one, if there is one.
fn direct_bits(prefixes: &[Prefix<u128>], shared: u8) -> u8 {
    let mut lens: Vec<_> = prefixes.iter().map(|prefix| prefix.len).collect();
    let middle = lens.len() / 2;
    let median = if lens.is_empty() { 0 } else { *lens.select_nth_unstable(middle).1 };
    let wanted = (prefixes.len().max(1).ilog2() + SPARE).min(DIRECT).min(median.saturating_sub(shared).into());
    u8::try_from(wanted.max(1)).unwrap_or(1).min(half_end(shared.saturating_add(1)) - shared)
}

/// An index as it is stored. [`MAX_PREFIXES`] keeps every index small enough.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(MAX_VALUE)
}
