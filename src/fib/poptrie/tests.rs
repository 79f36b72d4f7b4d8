use proptest::prelude::*;

use super::*;
use crate::fib::scan::{prefixes, probes, scan};

fn v6(text: &str) -> (u128, u8) {
    let net: ipnet::Ipv6Net = text.parse().unwrap();
    (net.addr().to_bits(), net.prefix_len())
}

fn build(nets: &[&str]) -> Poptrie {
    Poptrie::build(nets.iter().zip(1..).map(|(net, value)| {
        let (bits, len) = v6(net);
        (bits, len, value)
    }))
}

fn assert_finds(trie: &Poptrie, cases: &[(&str, u32)]) {
    for (address, value) in cases {
        assert_eq!(trie.lookup(v6(&format!("{address}/128")).0).unwrap_or(NONE), *value, "{address}");
    }
}

#[test]
fn an_empty_trie_matches_nothing() {
    assert_eq!(Poptrie::build([]).lookup(u128::MAX), None);
}

#[test]
fn the_longest_of_nested_prefixes_wins() {
    let trie = build(&["::/0", "fd00:244::/48", "fd00:244:1::/64", "fd00:244:1::7/128", "fd00:244:1::/120"]);
    let cases = [
        ("9::", 1),
        ("fd00:244:0:ffff::", 2),
        ("fd00:244:1::1:0", 3),
        ("fd00:244:1::7", 4),
        ("fd00:244:1::8", 5),
        ("fd00:244:1:1::7", 1),
    ];
    assert_finds(&trie, &cases);
}

#[test]
fn addresses_outside_all_routes_get_the_longest_of_those_around() {
    let trie = build(&["::/0", "fd00::/16", "fd00:244::/48", "fd00:244:0:1::/64", "fd00:244:0:2::/64"]);
    assert_eq!(trie.around.len(), 3);
    assert_finds(
        &trie,
        &[("9::", 1), ("fd00:9::", 2), ("fd00:244:0:9::", 3), ("fd00:244:0:3::", 3), ("fd00:244:0:2::", 5)],
    );
    let none_around = build(&["fd00:244:0:1::/64", "fd00:244:0:2::/64"]);
    assert_finds(&none_around, &[("9::", NONE), ("fd00:244:0:3::", NONE), ("fd00:244:0:2::9", 2)]);
}

#[test]
fn the_direct_table_of_a_cluster_has_its_nodes() {
    let node = |number: u32| (0xfd00_0244_0000 << 80 | u128::from(number) << 64, 64, number + 1);
    let trie = Poptrie::build((0..5_000).map(node));
    assert_eq!((trie.nodes.len(), trie.direct.len()), (0, 8_192));
    assert!((0..5_000).all(|number| trie.lookup(node(number).0 | 7) == Some(number + 1)));
    assert_eq!(trie.lookup(node(5_000).0 | 7), None);
}

#[test]
fn of_equal_prefixes_the_last_counts_and_host_bits_do_not() {
    let (bits, len) = v6("fd00:244::/32");
    let trie = Poptrie::build([(bits | 1, len, 1), (bits | 0xff, len, 2)]);
    assert_eq!(trie.lookup(bits), Some(2));
}

#[test]
fn a_table_of_one_value_needs_no_nodes() {
    let (bits, _) = v6("fd00:244::/32");
    let trie = Poptrie::build([(0, 0, 7), (bits, 64, 7), (bits | 1, 128, 7)]);
    assert_eq!((trie.nodes.len(), trie.lookup(bits | 1)), (0, Some(7)));
}

#[test]
fn values_and_lengths_out_of_range_are_harmless() {
    let trie = Poptrie::build([(1, 255, 5), (2, 128, u32::MAX), (3, 128, NONE), (4, 128, MAX_VALUE)]);
    assert_eq!([1, 2, 3, 4].map(|key| trie.lookup(key)), [Some(5), None, None, Some(MAX_VALUE)]);
}

#[test]
fn a_burst_in_a_large_trie_gives_what_single_look_ups_give() {
    // Pairs that differ in their 48th bit alone, far behind the direct table's.
    let place = |n: u32| u128::from((n / 2).wrapping_mul(0x9e37_79b9)) << 96 | u128::from(n % 2) << 80;
    let trie = Poptrie::build((0..60_000).map(|n| (place(n), 48, n + 1)));
    let keys: Vec<_> = (0..100_001).map(|n| place(n) | 7).collect();
    let mut values = vec![9; keys.len()];
    trie.lookup_burst(&keys, &mut values);
    assert!((1..=60_000).eq(values.iter().copied().take(60_000)));
    assert!(keys.iter().zip(values).all(|(&key, value)| value == trie.lookup(key).unwrap_or(NONE)));
}

#[test]
fn lone_prefixes_take_paths_alone() {
    let [(pod, _), (other, _)] = ["fd00:244:1::7/128", "2001:db8::/128"].map(v6);
    let trie = Poptrie::build([(pod, 128, 1), (other, 20, 2)]);
    assert_eq!((trie.nodes.len(), trie.lookup(other | 1)), (3, Some(2)));
    assert!(trie.nodes.iter().all(|node| node.is_path));
    for bit in 0..124 {
        assert_eq!(trie.lookup(pod ^ (1 << bit)), None, "bit {bit}");
    }
    assert_eq!(trie.lookup(pod), Some(1));
}

/// Prefixes that share many bits, above all about as many as half or all of an address has, and some that hold all of them.
fn one_block() -> impl Strategy<Value = Vec<(u128, u8, u32)>> {
    let shared = prop_oneof![0_u8..=128, 56_u8..=66, 118_u8..=128];
    (any::<u128>(), shared).prop_flat_map(|(base, shared)| {
        let inside = (any::<u128>(), shared..=128, 1_u32..7)
            .prop_map(move |(noise, len, value)| (base.network(shared) | noise ^ noise.network(shared), len, value));
        let around = (0..=shared, 7_u32..9).prop_map(move |(len, value)| (base, len, value));
        let (inside, around) = (prop::collection::vec(inside, 0..40), prop::collection::vec(around, 0..4));
        (inside, around).prop_map(|(inside, around)| [inside, around].concat())
    })
}

proptest! {
    #[test]
    fn agrees_with_a_linear_scan(
        prefixes in prop_oneof![prefixes(any::<u128>()), one_block()],
        random in prop::collection::vec(any::<u128>(), 0..40),
    ) {
        let keys = probes(&prefixes, random);
        let trie = Poptrie::build(prefixes.iter().copied());
        let mut burst = vec![9; keys.len()];
        trie.lookup_burst(&keys, &mut burst);
        for (&key, found) in keys.iter().zip(burst) {
            let expected = scan(&prefixes, key);
            prop_assert_eq!(trie.lookup(key).unwrap_or(NONE), expected, "{:x}", key);
            prop_assert_eq!(found, expected, "burst, {:x}", key);
        }
    }
}
