//! Prefixes of one address family, in the order in which tables are built from them.

use std::fmt::Debug;

/// What a look-up gives when no prefix matches.
pub const NONE: u32 = 0;

/// The highest value that a prefix can have; the lowest is 1. What a table keeps above it leads on.
pub(super) const MAX_VALUE: u32 = FURTHER - 1;

/// Marks an entry of a table that is not a value but leads to where the next bits decide.
pub(super) const FURTHER: u32 = 1 << 31;

/// An address as an integer in host order.
pub trait Key: Copy + Default + Ord + Debug {
    /// Bits of an address.
    const WIDTH: u8;

    /// The key with everything but its first `bits` bits cleared.
    #[must_use]
    fn network(self, bits: u8) -> Self;
}

impl Key for u32 {
    const WIDTH: u8 = 32;

    fn network(self, bits: u8) -> Self {
        self & !Self::MAX.checked_shr(bits.into()).unwrap_or_default()
    }
}

impl Key for u128 {
    const WIDTH: u8 = 128;

    fn network(self, bits: u8) -> Self {
        self & !Self::MAX.checked_shr(bits.into()).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix<K> {
    pub bits: K,
    pub len: u8,
    pub value: u32,
}

/// The prefixes of `(address, length, value)` by address and then length, so that each comes before those inside it,
/// and once: of equal ones the last. Host bits are ignored, a length beyond the key's width means the key's width, and
/// what has no value from 1 to [`MAX_VALUE`] is left out.
pub(super) fn sorted<K: Key>(prefixes: impl IntoIterator<Item = (K, u8, u32)>) -> Vec<Prefix<K>> {
    let clean = |(bits, len, value): (K, u8, u32)| {
        let len = len.min(K::WIDTH);
        Prefix { bits: bits.network(len), len, value }
    };
    let mut prefixes: Vec<_> = prefixes.into_iter().map(clean).collect();
    prefixes.retain(|prefix| (1..=MAX_VALUE).contains(&prefix.value));
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

/// Gives the value of each prefix that ends within `end` bits to the slots that it covers, and returns the longer ones
/// by the slot that they lie in. `slot_of` says which slot an address is in.
///
/// The prefixes are [`sorted`]: the longest one is written last, and those of one slot are neighbours, the short ones first.
pub(super) fn expand<'a, K: Key>(
    prefixes: &'a [Prefix<K>],
    end: u8,
    slot_of: impl Fn(K) -> usize,
    slots: &mut [u32],
) -> Vec<(usize, &'a [Prefix<K>])> {
    let mut by_slot = Vec::new();
    for group in prefixes.chunk_by(|a, b| slot_of(a.bits) == slot_of(b.bits)) {
        let slot = group.first().map(|prefix| slot_of(prefix.bits)).unwrap_or_default();
        let (ending, longer) = group.split_at(group.partition_point(|prefix| prefix.len <= end));
        for prefix in ending {
            let covered = 1_usize.checked_shl(u32::from(end - prefix.len)).unwrap_or(usize::MAX);
            slots.iter_mut().skip(slot).take(covered).for_each(|value| *value = prefix.value);
        }
        if !longer.is_empty() {
            by_slot.push((slot, longer));
        }
    }
    by_slot
}
