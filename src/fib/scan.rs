//! What tables must give, found by looking at every prefix.

use std::ops::{BitXor, Not};

use proptest::prelude::*;

use super::prefix::{Key, NONE};

/// The value of the longest prefix that holds a key, or [`NONE`].
pub fn scan<K: Key>(prefixes: &[(K, u8, u32)], key: K) -> u32 {
    let holding = prefixes.iter().filter(|(bits, len, _)| bits.network(*len) == key.network(*len));
    holding.max_by_key(|(_, len, _)| *len).map_or(NONE, |(_, _, value)| *value)
}

/// Prefixes that nest, touch and repeat: most addresses differ from one of a few in low bits only.
pub fn prefixes<K: Key + BitXor<Output = K>>(
    key: impl Strategy<Value = K> + Clone + 'static,
) -> impl Strategy<Value = Vec<(K, u8, u32)>> {
    let near = prop::collection::vec(key.clone(), 1..4);
    let one = (any::<prop::sample::Index>(), key, 0..=K::WIDTH, 0..=K::WIDTH, 1_u32..7);
    (near, prop::collection::vec(one, 0..60)).prop_map(|(near, many)| {
        let address = |at: prop::sample::Index, noise: K, keep: u8| *at.get(&near) ^ noise ^ noise.network(keep);
        many.into_iter().map(|(at, noise, keep, len, value)| (address(at, noise, keep), len, value)).collect()
    })
}

/// Keys at and around the edges of every prefix, and some anywhere.
pub fn probes<K: Key + BitXor<Output = K> + Not<Output = K>>(prefixes: &[(K, u8, u32)], random: Vec<K>) -> Vec<K> {
    let edges = prefixes.iter().flat_map(|&(bits, len, _)| {
        let (first, host_bits) = (bits.network(len), !(!K::default()).network(len));
        let flipped = |at: u8| bits ^ (!K::default()).network(at) ^ (!K::default()).network(at.saturating_sub(1));
        [bits, first, first ^ host_bits, flipped(len), flipped(len.saturating_add(1).min(K::WIDTH))]
    });
    edges.chain(random).collect()
}
