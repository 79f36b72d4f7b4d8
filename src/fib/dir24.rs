//! IPv4: DIR-24-8 (Gupta, Lin and McKeown, INFOCOM 1998), in memory of which only what holds routes exists.
//!
//! An address's first 24 bits index a table directly; prefixes that are longer share groups of 256 entries, indexed by
//! the last eight bits.
//!
//! ```text
//! direct[first 24 bits] ──▶ entry ──┬─▶ value
//!                                   ├─▶ groups[n + last 8 bits], a value
//!                                   └─▶ 0: short[first 8 bits], a value
//! ```
//!
//! The table has 16 million entries, but only the pages of it that were written to take memory ([`Sparse`]): 40 KiB
//! for 10,000 neighbouring ranges of 256 addresses, 64 MiB for the Internet's networks. Prefixes that would be written to
//! many pages, a default route above all, are kept apart, in `short`.
//!
//! A table never changes once built.

use super::prefix::{FURTHER, MAX_VALUE, NONE, Prefix, expand, sorted};
use super::sparse::{ENTRIES, HUGE_PAGE, PAGE, Sparse};

/// Prefixes of fewer bits are kept apart: one would take 512 KiB and more.
const SHORT: u8 = 8;

/// Groups at most: a value that leads to one stays below [`FURTHER`].
const MAX_GROUPS: usize = 1 << 22;

type Group = [u32; 256];

/// IPv4 prefixes, each with a value.
#[derive(Debug)]
pub struct Dir24 {
    direct: Sparse,
    /// Groups; the first is that of entries that lead to none.
    groups: Vec<u32>,
    short: Group,
    has_short: bool,
    /// Entries in the pages of `direct` that were written to, if it has the hugepages that it is to have.
    in_pages: usize,
}

impl Dir24 {
    /// Builds a table from `(address, prefix length, value)`, values from 1 to 2^31 - 1; a prefix with another is left
    /// out. Of equal prefixes the last one counts. Host bits are ignored, and a length beyond 32 means 32.
    ///
    /// Prefixes of more than 24 bits take 1 KiB for all those that agree in the first 24.
    ///
    /// # Panics
    /// When they differ there in more than 4 million ways.
    pub fn build(prefixes: impl IntoIterator<Item = (u32, u8, u32)>) -> Self {
        let (short, prefixes): (Vec<_>, Vec<_>) = sorted(prefixes).into_iter().partition(|prefix| prefix.len < SHORT);
        // Hugepages spare most of the TLB's misses. They may double the memory.
        let in_pages = [PAGE, HUGE_PAGE].map(|page| in_pages(&prefixes, page));
        let (dense, in_pages) = match in_pages {
            [few, many] if few > 0 && few >= many / 2 => (true, many),
            [few, _] => (false, few),
        };
        let mut table = Self {
            direct: Sparse::new(dense),
            groups: vec![NONE; 256],
            short: [NONE; 256],
            has_short: !short.is_empty(),
            in_pages,
        };
        expand(&short, SHORT, |address| index(address >> 24), &mut table.short);
        let longer = expand(&prefixes, 24, |address| index(address >> 8), &mut *table.direct);
        assert!(longer.len() < MAX_GROUPS, "more than {MAX_GROUPS} groups of long prefixes");
        table.groups.reserve_exact(256 * longer.len());
        for (slot, longer) in longer {
            let inherited = longer.first().and_then(|prefix| table.lookup(prefix.bits)).unwrap_or(NONE);
            let mut group = [inherited; 256];
            expand(longer, 32, |address| index(address & 0xff), &mut group);
            if let (Some(entry), Ok(number)) = (table.direct.get_mut(slot), u32::try_from(table.groups.len())) {
                *entry = FURTHER | number;
            }
            table.groups.extend(group);
        }
        table
    }

    /// The value of the longest prefix that holds an address in host order.
    #[inline]
    pub fn lookup(&self, address: u32) -> Option<u32> {
        let mut value = self.entry(address);
        if value & FURTHER != 0 {
            value = self.in_group(value, address);
        }
        if value == NONE {
            value = self.in_short(address);
        }
        (value != NONE).then_some(value)
    }

    /// Looks up each address and writes its value, or [`NONE`], to the same place of `values`; the shorter slice decides
    /// how many.
    pub fn lookup_burst(&self, addresses: &[u32], values: &mut [u32]) {
        let mut all = 0;
        for (value, &address) in values.iter_mut().zip(addresses) {
            *value = self.entry(address);
            all |= *value;
        }
        if all & FURTHER != 0 {
            for (value, &address) in values.iter_mut().zip(addresses) {
                *value = self.in_group(*value, address);
            }
        }
        if self.has_short {
            let missed = values.iter_mut().zip(addresses).filter(|(value, _)| **value == NONE);
            missed.for_each(|(value, &address)| *value = self.in_short(address));
        }
    }

    /// Bytes of memory that the table occupies.
    pub fn memory_bytes(&self) -> usize {
        self.in_pages * size_of::<u32>() + size_of_val(&*self.groups) + size_of_val(self)
    }

    #[inline]
    fn entry(&self, address: u32) -> u32 {
        self.direct.get(index(address >> 8)).copied().unwrap_or(NONE)
    }

    /// The value of an entry, in its group if it leads to one: without a branch, which could not be foreseen.
    #[inline]
    fn in_group(&self, entry: u32, address: u32) -> u32 {
        let leads = (entry.cast_signed() >> FURTHER.trailing_zeros()).cast_unsigned();
        let place = entry & leads & MAX_VALUE | address & 0xff;
        entry & !leads | self.groups.get(index(place)).copied().unwrap_or(NONE)
    }

    /// The value of the short prefix that holds an address.
    #[cold]
    fn in_short(&self, address: u32) -> u32 {
        self.short.get(index(address >> 24)).copied().unwrap_or(NONE)
    }
}

/// Entries in the pages, of so many each, that [`sorted`] prefixes are written to.
fn in_pages(prefixes: &[Prefix<u32>], page: usize) -> usize {
    let (mut pages, mut next) = (0, 0);
    for prefix in prefixes {
        let first = index(prefix.bits >> 8) / page;
        let end = first + (ENTRIES >> prefix.len.min(24)).div_ceil(page);
        pages += end.saturating_sub(next.max(first));
        next = next.max(end);
    }
    pages * page
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fib::scan::{prefixes, probes, scan};

    fn v4(text: &str) -> (u32, u8) {
        let net: ipnet::Ipv4Net = text.parse().unwrap();
        (net.addr().to_bits(), net.prefix_len())
    }

    fn build(nets: &[&str]) -> Dir24 {
        Dir24::build(nets.iter().zip(1..).map(|(net, value)| {
            let (bits, len) = v4(net);
            (bits, len, value)
        }))
    }

    fn assert_finds(table: &Dir24, cases: &[(&str, u32)]) {
        for (address, value) in cases {
            assert_eq!(table.lookup(v4(&format!("{address}/32")).0).unwrap_or(NONE), *value, "{address}");
        }
    }

    #[test]
    fn an_empty_table_matches_nothing() {
        assert_finds(&Dir24::build([]), &[("0.0.0.0", NONE), ("255.255.255.255", NONE)]);
    }

    #[test]
    fn the_longest_of_nested_prefixes_wins() {
        let nets = ["0.0.0.0/0", "10.244.0.0/16", "10.244.1.0/24", "10.244.1.7/32", "10.244.1.6/31", "10.244.1.0/27"];
        let cases = [
            ("9.9.9.9", 1),
            ("10.244.255.255", 2),
            ("10.244.1.200", 3),
            ("10.244.1.7", 4),
            ("10.244.1.6", 5),
            ("10.244.1.8", 6),
            ("10.244.2.0", 2),
            ("255.255.255.255", 1),
        ];
        assert_finds(&build(&nets), &cases);
    }

    #[test]
    fn a_pod_below_a_short_prefix_alone_does_not_hide_it() {
        let table = build(&["8.0.0.0/5", "10.244.1.7/32"]);
        assert_finds(&table, &[("10.244.1.7", 2), ("10.244.1.8", 1), ("15.0.0.1", 1), ("16.0.0.1", NONE)]);
    }

    #[test]
    fn of_equal_prefixes_the_last_counts_and_host_bits_do_not() {
        let table = Dir24::build([(0x0af4_0101, 24, 1), (0x0af4_01ff, 24, 2)]);
        assert_eq!(table.lookup(0x0af4_0100), Some(2));
    }

    #[test]
    fn values_and_lengths_out_of_range_are_harmless() {
        let table = Dir24::build([(1, 255, 5), (2, 32, u32::MAX), (3, 32, NONE), (4, 32, MAX_VALUE)]);
        assert_eq!([1, 2, 3, 4].map(|key| table.lookup(key)), [Some(5), None, None, Some(MAX_VALUE)]);
    }

    #[test]
    fn memory_is_that_of_the_pages_with_routes() {
        let kib = |nets: &[&str]| (build(nets).memory_bytes() - build(&[]).memory_bytes()) / 1024;
        assert_eq!(kib(&["0.0.0.0/0", "128.0.0.0/7"]), 0);
        assert_eq!(kib(&["10.0.0.0/14"]), 4);
        assert_eq!(kib(&["10.0.0.0/16", "10.2.0.0/24", "10.4.0.0/24"]), 8);
        assert_eq!(kib(&["10.0.0.0/13", "10.0.0.0/24", "10.4.0.0/24"]), 8);
        assert_eq!(kib(&["10.0.0.0/8"]), 256);
        // From half of it on a hugepage is worth its memory.
        assert_eq!(kib(&["8.0.0.0/8", "9.0.0.0/8", "10.0.0.0/8", "11.0.0.0/9"]), 896);
        assert_eq!(kib(&["8.0.0.0/8", "9.0.0.0/8", "10.0.0.0/8", "11.0.0.0/8"]), 2048);
        assert_eq!(kib(&["10.0.0.1/32", "10.0.0.2/32"]), 5);
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(prefixes in prefixes(any::<u32>()), random in prop::collection::vec(any::<u32>(), 0..40)) {
            let keys = probes(&prefixes, random);
            let table = Dir24::build(prefixes.iter().copied());
            let mut burst = vec![9; keys.len()];
            table.lookup_burst(&keys, &mut burst);
            for (&key, found) in keys.iter().zip(burst) {
                let expected = scan(&prefixes, key);
                prop_assert_eq!(table.lookup(key).unwrap_or(NONE), expected, "{:x}", key);
                prop_assert_eq!(found, expected, "burst, {:x}", key);
            }
        }
    }
}
