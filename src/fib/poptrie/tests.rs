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

/// Both walks of a burst and the single look-up against [`scan`].
fn agrees_with_a_scan<K: Key>(prefixes: &[(K, u8, u32)], keys: &[K]) -> Result<(), TestCaseError> {
    let trie = Poptrie::build(prefixes.iter().copied());
    let (mut burst, mut lanes) = (vec![0; keys.len()], vec![0; keys.len()]);
    trie.lookup_burst(keys, &mut burst);
    for (keys, values) in keys.chunks(LANES).zip(lanes.chunks_mut(LANES)) {
        trie.walk_side_by_side(keys, values);
    }
    for (&key, value) in keys.iter().zip(burst.into_iter().zip(lanes)) {
        let expected = scan(prefixes, key);
        prop_assert_eq!(trie.lookup(key), expected, "{:?}", key);
        prop_assert_eq!(value, (expected.unwrap_or(NONE), expected.unwrap_or(NONE)), "bursts, {:?}", key);
    }
    Ok(())
}

#[test]
fn a_burst_in_a_large_trie_gives_what_single_look_ups_give() {
    let spread = |n: u32| n.wrapping_mul(0x9e37_79b9);
    let trie = Poptrie::build((0..60_000).map(|n| (spread(n), 24 + u8::from(n % 2 == 0), n)));
    assert!(trie.nodes.len() > LARGE);
    let keys: Vec<_> = (0..100_001).map(spread).collect();
    let mut values = vec![0; keys.len()];
    trie.lookup_burst(&keys, &mut values);
    assert!(keys.iter().zip(values).all(|(&key, value)| value == trie.lookup(key).unwrap_or(NONE)));
}

#[test]
fn a_lone_v6_pod_takes_two_paths_and_a_fork() {
    let (bits, len) = v6("fd00:244:1::7/128");
    let trie = Poptrie::build([(bits, len, 1)]);
    assert_eq!(trie.nodes.iter().filter(|node| node.is_path()).count(), 2);
    assert_eq!(trie.nodes.len(), 3);
    for bit in 0..128 {
        assert_eq!(trie.lookup(bits ^ (1 << bit)), None, "bit {bit}");
    }
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
