//! Longest-prefix match: time per look-up, time to build and memory, beside two crates and, as root, the kernel's trie for
//! BPF programs, on the same tables and the same trace; and beside DPDK's, where `PODWIRE_DPDK` names the compiled
//! `dpdk.c` (`scripts/bench lpm` sees to it). Also while another thread has a thousand routes change a second, as
//! control does: what has changed by then is in the next table, built as a whole, as soon as the last one is published.
//!
//! Tables: 100, 10,000 and a million prefixes with the lengths of the Internet's routes, and
//! a cluster of 5,000 nodes with 250 pods on this one, which get half of the look-ups. The trace is
//! 16,384 addresses, each inside a prefix drawn at random. Everything comes from one fixed seed.

#![allow(clippy::unwrap_used, reason = "a bench may stop on what cannot happen")]

mod dpdk;
mod kernel;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::hint::black_box;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use dpdk::{Contest, Dpdk};
use ip_network_table_deps_treebitmap::IpLookupTable;
use ipnet::{Ipv4Net, Ipv6Net};
use kernel::Kernel;
use podwire::fib::{Dir24, Key, Poptrie, Publisher};
use prefix_trie::PrefixMap;

const TRACE: usize = 16_384;
const BURST: usize = 64;
const NODES: u32 = 5_000;
const PODS: u8 = 250;
/// Routes that change a second.
const UPDATES: u32 = 1_000;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.next()).unwrap() % all.len()]
    }
}

/// podwire's table of an address family.
trait Table<K>: Send + Sync {
    /// Prefixes with their values.
    fn build(prefixes: impl Iterator<Item = (K, u8, u32)>) -> Self;
    fn lookup(&self, key: K) -> Option<u32>;
    fn lookup_burst(&self, keys: &[K], values: &mut [u32]);
    fn bytes(&self) -> usize;
}

macro_rules! table {
    ($table:ty, of: $key:ty) => {
        impl Table<$key> for $table {
            fn build(prefixes: impl Iterator<Item = ($key, u8, u32)>) -> Self {
                <$table>::build(prefixes)
            }

            #[inline]
            fn lookup(&self, key: $key) -> Option<u32> {
                self.lookup(key)
            }

            #[inline]
            fn lookup_burst(&self, keys: &[$key], values: &mut [u32]) {
                self.lookup_burst(keys, values);
            }

            fn bytes(&self) -> usize {
                self.memory_bytes()
            }
        }
    };
}

table!(Dir24, of: u32);
table!(Poptrie, of: u128);

/// An address family in the types of each contestant.
trait Family: Key + Send + Sync + 'static {
    type Table: Table<Self>;
    type Address: ip_network_table_deps_treebitmap::address::Address;
    type Net: prefix_trie::Prefix;
    const NAME: &'static str;
    /// Lengths of the Internet's routes with their shares, roughly.
    const LENGTHS: &'static [(u8, u64)];
    /// The length of a node's pod range.
    const NODE_LEN: u8;

    /// An address in the space that the Internet routes.
    fn random(random: &mut Random) -> Self;
    /// An address that shares the first `len` bits with `self`.
    fn inside(self, len: u8, random: &mut Random) -> Self;
    /// The `number`th address of the `node`th node's pod range.
    fn pod(node: u32, number: u8) -> Self;
    fn address(self) -> Self::Address;
    fn net(self, len: u8) -> Self::Net;
    /// In network byte order, from the first byte on.
    fn octets(self) -> [u8; 16];
}

impl Family for u32 {
    type Table = Dir24;
    type Address = Ipv4Addr;
    type Net = Ipv4Net;
    const NAME: &'static str = "v4";
    const NODE_LEN: u8 = 24;
    const LENGTHS: &'static [(u8, u64)] = &[
        (24, 6100),
        (22, 1100),
        (23, 1000),
        (21, 500),
        (20, 450),
        (19, 300),
        (18, 160),
        (16, 140),
        (17, 80),
        (14, 12),
    ];

    fn random(random: &mut Random) -> Self {
        let space = 0x0100_0000..0xe000_0000;
        space.start + u32::try_from(random.next() % u64::from(space.end - space.start)).unwrap()
    }

    fn inside(self, len: u8, random: &mut Random) -> Self {
        let host = Self::random(random);
        self.network(len) | host ^ host.network(len)
    }

    fn pod(node: u32, number: u8) -> Self {
        0x0a00_0000 | node << 8 | u32::from(number)
    }

    fn address(self) -> Ipv4Addr {
        self.into()
    }

    fn net(self, len: u8) -> Ipv4Net {
        Ipv4Net::new(self.into(), len).unwrap()
    }

    fn octets(self) -> [u8; 16] {
        (u128::from(self) << 96).to_be_bytes()
    }
}

impl Family for u128 {
    type Table = Poptrie;
    type Address = Ipv6Addr;
    type Net = Ipv6Net;
    const NAME: &'static str = "v6";
    const NODE_LEN: u8 = 64;
    const LENGTHS: &'static [(u8, u64)] =
        &[(48, 470), (44, 130), (32, 110), (40, 80), (47, 60), (46, 50), (36, 40), (29, 30), (42, 20), (64, 10)];

    fn random(random: &mut Random) -> Self {
        let all = u128::from(random.next()) << 64 | u128::from(random.next());
        0x2 << 124 | all >> 3
    }

    fn inside(self, len: u8, random: &mut Random) -> Self {
        let host = Self::random(random);
        self.network(len) | host ^ host.network(len)
    }

    fn pod(node: u32, number: u8) -> Self {
        0xfd00_0244_0000 << 80 | u128::from(node) << 64 | u128::from(number)
    }

    fn address(self) -> Ipv6Addr {
        self.into()
    }

    fn net(self, len: u8) -> Ipv6Net {
        Ipv6Net::new(self.into(), len).unwrap()
    }

    fn octets(self) -> [u8; 16] {
        self.to_be_bytes()
    }
}

/// `size` different prefixes with the lengths of the Internet's routes.
fn internet<F: Family>(size: usize, random: &mut Random) -> Vec<(F, u8)> {
    let total: u64 = F::LENGTHS.iter().map(|(_, share)| share).sum();
    let mut prefixes = BTreeSet::new();
    while prefixes.len() < size {
        let mut ticket = random.next() % total;
        let drawn = F::LENGTHS.iter().find(|(_, share)| {
            let won = ticket < *share;
            ticket = ticket.saturating_sub(*share);
            won
        });
        let len = drawn.unwrap().0;
        prefixes.insert((F::random(random).network(len), len));
    }
    prefixes.into_iter().collect()
}

/// The routes of one node in a large cluster: those to the other nodes, and those to its pods.
fn cluster<F: Family>() -> [Vec<(F, u8)>; 2] {
    let nodes = (0..NODES).map(|node| (F::pod(node, 0), F::NODE_LEN));
    let pods = (1..=PODS).map(|number| (F::pod(NODES / 2, number), F::WIDTH));
    [nodes.collect(), pods.collect()]
}

/// Addresses inside prefixes drawn at random, as many from each of `classes`.
fn trace<F: Family>(classes: &[&[(F, u8)]], random: &mut Random) -> Vec<F> {
    let draw = |_| {
        let class = random.one_of(classes);
        let (bits, len) = random.one_of(class);
        bits.inside(*len, random)
    };
    (0..TRACE).map(draw).collect()
}

/// Time per look-up: `time` says how long so many passes over the trace take.
fn bench(group: &mut BenchmarkGroup<'_, WallTime>, who: &str, table: &str, mut time: impl FnMut(u64) -> Duration) {
    group.bench_function(BenchmarkId::new(who, table), |bencher| {
        bencher.iter_custom(|look_ups| {
            let passes = look_ups.div_ceil(TRACE as u64);
            let all = u32::try_from(passes * TRACE as u64).unwrap();
            time(passes) * u32::try_from(look_ups).unwrap() / all
        });
    });
}

/// How long passes over the trace take.
fn timed(mut pass: impl FnMut()) -> impl FnMut(u64) -> Duration {
    move |passes| {
        let start = Instant::now();
        (0..passes).for_each(|_| pass());
        start.elapsed()
    }
}

/// Builds a table and says how long it took; then, what it takes.
fn built<F: Family, T>(who: &str, table: &str, build: impl FnOnce() -> T, bytes: impl Fn(&T) -> usize) -> T {
    let start = Instant::now();
    let contestant = build();
    tell::<F>(who, table, start.elapsed(), bytes(&contestant));
    contestant
}

fn tell<F: Family>(who: &str, table: &str, build: Duration, bytes: usize) {
    println!("{}/{who}/{table}: built in {build:.1?}, takes {} KiB", F::NAME, bytes / 1024);
}

fn contest<F: Family>(group: &mut BenchmarkGroup<'_, WallTime>, table: &str, prefixes: &[(F, u8)], trace: &[F]) {
    let values = || (1_u32..).zip(prefixes);
    let podwire = || F::Table::build(values().map(|(value, &(bits, len))| (bits, len, value)));
    let podwire = built::<F, _>("podwire", table, podwire, F::Table::bytes);
    let treebitmap = || {
        let mut treebitmap = IpLookupTable::new();
        values().for_each(|(value, &(bits, len))| _ = treebitmap.insert(bits.address(), len.into(), value));
        treebitmap
    };
    let treebitmap = built::<F, _>("treebitmap", table, treebitmap, |table| {
        let (nodes, results) = table.mem_usage();
        nodes + results
    });
    let prefix_map = || values().map(|(value, &(bits, len))| (bits.net(len), value)).collect::<PrefixMap<_, _>>();
    let prefix_map = built::<F, _>("prefix-trie", table, prefix_map, PrefixMap::mem_size);
    let addresses: Vec<_> = trace.iter().map(|key| key.address()).collect();
    let hosts: Vec<_> = trace.iter().map(|key| key.net(F::WIDTH)).collect();
    for ((key, address), host) in trace.iter().zip(&addresses).zip(&hosts) {
        let value = podwire.lookup(*key);
        assert_eq!(value, treebitmap.longest_match(*address).map(|(_, _, value)| *value));
        assert_eq!(value, prefix_map.get_lpm(host).map(|(_, value)| *value));
    }

    bench(
        group,
        "podwire, burst",
        table,
        timed(|| {
            let mut values = [0; BURST];
            for keys in trace.chunks(BURST) {
                podwire.lookup_burst(black_box(keys), &mut values);
                black_box(&values);
            }
        }),
    );
    under_updates(group, table, prefixes, trace);
    bench(
        group,
        "podwire",
        table,
        timed(|| {
            for &key in trace {
                black_box(podwire.lookup(black_box(key)));
            }
        }),
    );
    bench(
        group,
        "treebitmap",
        table,
        timed(|| {
            for &address in &addresses {
                black_box(treebitmap.longest_match(black_box(address)));
            }
        }),
    );
    bench(
        group,
        "prefix-trie",
        table,
        timed(|| {
            for host in &hosts {
                black_box(prefix_map.get_lpm(black_box(host)));
            }
        }),
    );
    let sum = trace.iter().filter_map(|key| podwire.lookup(*key)).map(u64::from).sum();
    let contest = Contest {
        is_ipv6: F::WIDTH > 32,
        prefixes: prefixes.iter().map(|&(bits, len)| (bits.octets(), len)).collect(),
        trace: trace.iter().map(|key| key.octets()).collect(),
    };
    against_kernel::<F>(group, table, &contest, sum);
    if let Some(program) = env::var_os("PODWIRE_DPDK").map(PathBuf::from) {
        against_dpdk::<F>(group, &program, table, &contest, sum);
    }
}

/// Bursts of look-ups while routes change: each gets another value in turn.
fn under_updates<F: Family>(group: &mut BenchmarkGroup<'_, WallTime>, table: &str, prefixes: &[(F, u8)], trace: &[F]) {
    let build = |updates: u32| {
        let values = (1_u32..).zip(prefixes);
        F::Table::build(values.map(|(value, &(bits, len))| (bits, len, value.wrapping_add(updates))))
    };
    let mut publisher = Publisher::new(build(0));
    let mut reader = publisher.reader();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let control = scope.spawn(|| {
            let (start, mut tables, mut updates) = (Instant::now(), 0, 0);
            while !done.load(Ordering::Relaxed) {
                let due = (start.elapsed() * UPDATES).as_secs();
                if due == u64::from(updates) {
                    thread::sleep(Duration::from_micros(100));
                    continue;
                }
                updates = u32::try_from(due).unwrap();
                publisher.publish(build(updates));
                publisher.reclaim();
                tables += 1;
            }
            (updates, tables, start.elapsed())
        });
        bench(
            group,
            "podwire, burst, under updates",
            table,
            timed(|| {
                let mut values = [0; BURST];
                for keys in trace.chunks(BURST) {
                    reader.get().lookup_burst(black_box(keys), &mut values);
                    black_box(&values);
                }
            }),
        );
        done.store(true, Ordering::Relaxed);
        let (updates, tables, time) = control.join().unwrap();
        println!("{}/under updates/{table}: {updates} updates in {tables} tables, in {time:.1?}", F::NAME);
    });
}

fn against_kernel<F: Family>(group: &mut BenchmarkGroup<'_, WallTime>, table: &str, contest: &Contest, sum: u64) {
    match Kernel::build(contest) {
        Ok(mut kernel) => {
            assert_eq!(kernel.sum, sum, "the kernel finds something else");
            tell::<F>("kernel", table, kernel.build, kernel.bytes);
            bench(group, "kernel", table, |passes| kernel.passes(passes));
        }
        Err(error) => println!("{}/kernel/{table}: not measured: {error}", F::NAME),
    }
}

fn against_dpdk<F: Family>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    program: &Path,
    table: &str,
    contest: &Contest,
    sum: u64,
) {
    let input = tempfile::NamedTempFile::new().unwrap();
    fs::write(&input, contest.to_bytes()).unwrap();
    for kind in ["rte_lpm", "rte_fib"] {
        let who = format!("{kind}, burst");
        let Some(mut dpdk) = Dpdk::start(program, input.path(), kind) else {
            println!("{}/{who}/{table}: not measured", F::NAME);
            continue;
        };
        assert_eq!(dpdk.sum, sum, "{kind} finds something else");
        tell::<F>(kind, table, dpdk.build, dpdk.bytes);
        bench(group, &who, table, |passes| dpdk.passes(passes));
    }
}

fn family<F: Family>(c: &mut Criterion) {
    let mut group = c.benchmark_group(F::NAME);
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let random = &mut Random(1);
    for size in [100, 10_000, 1_000_000] {
        let prefixes = internet(size, random);
        let trace = trace(&[&prefixes], random);
        contest::<F>(&mut group, &size.to_string(), &prefixes, &trace);
    }
    let [nodes, pods] = cluster();
    let trace = trace(&[&nodes, &pods], random);
    contest::<F>(&mut group, "cluster", &[nodes, pods].concat(), &trace);
}

fn lookups(c: &mut Criterion) {
    family::<u32>(c);
    family::<u128>(c);
}

criterion_group!(benches, lookups);
criterion_main!(benches);
