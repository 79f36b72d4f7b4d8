//! IPv4: DIR-24-8 (Gupta, Lin and McKeown, INFOCOM 1998), in memory that is in proportion to the routes.
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
//! The table has 16 million entries. It is an array of which only the pages that were written to take memory
//! ([`Sparse`]): 40 KiB for 10,000 neighbouring ranges of 256 addresses. Routes that are so far apart that this would be
//! [`FAR_APART`] and more are stored as where entries change ([`Ranked`]): 4.1 MiB for 10,000 of the Internet's
//! networks, of whose pages the array would need 56. That takes two reads for one and is faster where the array has
//! outgrown a core's own caches, as long as this has not by far: beyond [`MANY_RUNS`] it is the array again.
//!
//! Prefixes that would be in many pages, a default route above all, are kept apart, in `short`.
//!
//! A table never changes once built.

use std::ops::Range;

use super::prefix::{FURTHER, MAX_VALUE, NONE, Prefix, expand, sorted};
use super::ranked::{self, Ranked, Run, SLOTS};
use super::sparse::{self, Sparse};

/// Prefixes of fewer bits are kept apart: one would take 512 KiB and more.
const SHORT: u8 = 8;

/// Groups at most: a value that leads to one stays below [`FURTHER`].
const MAX_GROUPS: usize = 1 << 22;

/// Bytes from which on the array gives way: look-ups among 4,000 networks of the Internet, whose pages have about as many,
/// take as long in either.
const FAR_APART: usize = 4 * ranked::BYTES;

/// Changes of entries beyond which the array is level again: they take as much memory then as what leads to them.
const MANY_RUNS: usize = ranked::BYTES / size_of::<u32>();

type Group = [u32; 256];

/// IPv4 prefixes, each with a value.
#[derive(Debug)]
pub struct Dir24 {
    direct: Direct,
    /// Groups; the first is that of entries that lead to none.
    groups: Vec<u32>,
    short: Group,
    has_short: bool,
}

/// The direct table.
#[derive(Debug)]
enum Direct {
    /// With the bytes of the pages that were written to, if it has the hugepages that it is to have.
    Sparse(Sparse, usize),
    Ranked(Ranked),
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
        Self::build_apart(FAR_APART, prefixes)
    }

    /// As [`Dir24::build`], with an array if its pages take less than `far_apart` bytes.
    fn build_apart(far_apart: usize, prefixes: impl IntoIterator<Item = (u32, u8, u32)>) -> Self {
        let (short_ones, prefixes): (Vec<_>, Vec<_>) =
            sorted(prefixes).into_iter().partition(|prefix| prefix.len < SHORT);
        let mut short = [NONE; 256];
        expand(&short_ones, SHORT, |address| index(address >> 24), &mut short);
        let Sweep { runs, groups, .. } = Sweep::over(&prefixes);
        let [bytes, huge_bytes] = [sparse::PAGE, sparse::HUGE_PAGE].map(|page| sparse_bytes(&runs, page));
        let are_far_apart = bytes >= far_apart;
        let direct = if !are_far_apart || runs.len() > MANY_RUNS {
            // Hugepages spare most of the TLB's misses.
            let mut direct = Sparse::new(are_far_apart);
            for (slots, entry) in written(&runs) {
                direct.get_mut(slots).unwrap_or_default().fill(entry);
            }
            Direct::Sparse(direct, if are_far_apart { huge_bytes } else { bytes })
        } else {
            Direct::Ranked(Ranked::build(&runs))
        };
        Self { direct, groups, short, has_short: !short_ones.is_empty() }
    }

    /// The value of the longest prefix that holds an address in host order.
    #[inline]
    pub fn lookup(&self, address: u32) -> Option<u32> {
        let mut value = match &self.direct {
            Direct::Sparse(direct, _) => entry(direct, address),
            Direct::Ranked(direct) => direct.lookup(address),
        };
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
        let all = match &self.direct {
            Direct::Sparse(direct, _) => values.iter_mut().zip(addresses).fold(0, |all, (value, &address)| {
                *value = entry(direct, address);
                all | *value
            }),
            Direct::Ranked(direct) => direct.lookup_burst(addresses, values),
        };
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
        let direct = match &self.direct {
            Direct::Sparse(_, bytes) => *bytes,
            Direct::Ranked(direct) => direct.memory_bytes(),
        };
        direct + size_of_val(&*self.groups) + size_of_val(self)
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

/// What goes over [`sorted`] prefixes and leaves the direct table's runs and the groups.
struct Sweep {
    runs: Vec<Run>,
    groups: Vec<u32>,
    /// Prefixes that hold where the sweep is, each inside the one before, with the slot that they end at.
    open: Vec<Run>,
}

impl Sweep {
    fn over(prefixes: &[Prefix<u32>]) -> Self {
        let mut sweep =
            Self { runs: Vec::with_capacity(2 * prefixes.len()), groups: vec![NONE; 256], open: Vec::new() };
        for prefixes in prefixes.chunk_by(|a, b| a.bits >> 8 == b.bits >> 8) {
            let slot = prefixes.first().map_or(0, |prefix| prefix.bits >> 8);
            sweep.close_up_to(slot);
            let (ending, longer) = prefixes.split_at(prefixes.partition_point(|prefix| prefix.len <= 24));
            for prefix in ending {
                sweep.open(slot, slot + (SLOTS >> prefix.len), prefix.value);
            }
            if !longer.is_empty() {
                let group = sweep.add_group(longer);
                sweep.open(slot, slot + 1, group);
            }
        }
        // What ends with the table leaves nothing to come back to.
        sweep.close_up_to(SLOTS - 1);
        sweep
    }

    fn open(&mut self, slot: u32, end: u32, entry: u32) {
        self.begin(slot, entry);
        self.open.push(Run { slot: end, entry });
    }

    /// Ends the prefixes that end before a slot: from there on the one around them counts.
    fn close_up_to(&mut self, slot: u32) {
        while let Some(closed) = self.open.pop_if(|prefix| prefix.slot <= slot) {
            self.begin(closed.slot, self.inherited());
        }
    }

    /// The value where the sweep is.
    fn inherited(&self) -> u32 {
        self.open.last().map_or(NONE, |prefix| prefix.entry)
    }

    /// Has an entry from a slot on, which may be the one where the last run began.
    fn begin(&mut self, slot: u32, entry: u32) {
        self.runs.pop_if(|run| run.slot == slot);
        if self.runs.last().map_or(NONE, |run| run.entry) != entry {
            self.runs.push(Run { slot, entry });
        }
    }

    /// Stores the values of prefixes that are longer than 24 bits, and returns the entry that leads there.
    fn add_group(&mut self, longer: &[Prefix<u32>]) -> u32 {
        assert!(self.groups.len() < 256 * MAX_GROUPS, "more than {MAX_GROUPS} groups of long prefixes");
        let mut group = [self.inherited(); 256];
        expand(longer, 32, |address| index(address & 0xff), &mut group);
        let first = u32::try_from(self.groups.len()).unwrap_or(MAX_VALUE);
        self.groups.extend(group);
        FURTHER | first
    }
}

/// The slots of all runs that have an entry, with it.
fn written(runs: &[Run]) -> impl Iterator<Item = (Range<usize>, u32)> {
    let ends = runs.iter().skip(1).map(|run| run.slot).chain([SLOTS]);
    let all = runs.iter().zip(ends).map(|(run, end)| (index(run.slot)..index(end), run.entry));
    all.filter(|(_, entry)| *entry != NONE)
}

/// Bytes of the pages, of so many entries each, that an array of these runs is written to.
fn sparse_bytes(runs: &[Run], page: usize) -> usize {
    let (mut pages, mut next) = (0, 0);
    for (slots, _) in written(runs) {
        let (first, end) = (slots.start / page, slots.end.div_ceil(page));
        pages += end.saturating_sub(next.max(first));
        next = next.max(end);
    }
    pages * page * size_of::<u32>()
}

#[inline]
fn entry(direct: &Sparse, address: u32) -> u32 {
    direct.get(index(address >> 8)).copied().unwrap_or(NONE)
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
        assert_eq!(kib(&["8.0.0.0/8", "9.0.0.0/8", "10.0.0.0/8", "11.0.0.0/9"]), 896);
        assert_eq!(kib(&["8.0.0.0/8", "9.0.0.0/8", "10.0.0.0/8", "11.0.0.0/8"]), 1024);
        assert_eq!(kib(&["10.0.0.1/32", "10.0.0.2/32"]), 5);
    }

    #[test]
    fn routes_far_apart_take_memory_by_their_number() {
        let kib = |routes: u32| {
            // Each in a page of its own.
            let table = Dir24::build((1..=routes).map(|number| (number << 18, 24, number)));
            assert!((1..=routes).all(|number| table.lookup(number << 18 | 7) == Some(number)));
            assert_eq!(table.lookup(routes << 18 | 0x107), None);
            (table.memory_bytes() - build(&[]).memory_bytes()) / 1024
        };
        assert_eq!(kib(4_095), 4 * 4_095);
        assert_eq!(kib(4_096), 4_096 + 32);
        assert_eq!(kib(16_000), 4_096 + 125);
    }

    #[test]
    fn a_table_full_of_changes_is_an_array_again() {
        let mib = |slots: u32| {
            let table = Dir24::build((1..=slots).map(|number| (number << 8, 24, number)));
            assert!((1..=slots).all(|number| table.lookup(number << 8 | 7) == Some(number)));
            (table.memory_bytes() - build(&[]).memory_bytes()) >> 20
        };
        assert_eq!(mib(1 << 20), 4);
        // In hugepages, of which the last slot takes one.
        assert_eq!(mib(5 << 20), 22);
    }

    proptest! {
        #[test]
        fn agrees_with_a_linear_scan(prefixes in prefixes(any::<u32>()), random in prop::collection::vec(any::<u32>(), 0..40)) {
            let keys = probes(&prefixes, random);
            for far_apart in [usize::MAX, 0] {
                let table = Dir24::build_apart(far_apart, prefixes.iter().copied());
                let mut burst = vec![9; keys.len() + 1];
                table.lookup_burst(&keys, &mut burst);
                prop_assert_eq!(burst.pop(), Some(9));
                for (&key, found) in keys.iter().zip(burst) {
                    let expected = scan(&prefixes, key);
                    prop_assert_eq!(table.lookup(key).unwrap_or(NONE), expected, "{:x}", key);
                    prop_assert_eq!(found, expected, "burst, {:x}", key);
                }
            }
        }
    }
}
