//! What all contestants get: prefixes, addresses to look up, changes of routes, everything from one fixed seed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use podwire::fib::{Dir24, Key, NONE, Poptrie};

/// Addresses to look up: so many that no branch predictor learns them by heart. 16,384 it learns when they are looked
/// up over and over, to the advantage of a table that branches on each.
const TRACE: usize = 16 * STRETCH;
/// How many are looked up at a time, before the next ones are.
pub const STRETCH: usize = 16_384;
const NODES: u32 = 5_000;
const PODS: u8 = 250;
/// Routes that are withdrawn at a time.
const WITHDRAWN: usize = 16;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next()).unwrap() % end
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// podwire's table of an address family.
pub trait Table<K>: Send + Sync {
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
pub trait Family: Key + poptrie::Address + Send + Sync + 'static {
    type Table: Table<Self>;
    type Address: ip_network_table_deps_treebitmap::address::Address + Copy + Send + Sync;
    type Net: prefix_trie::Prefix + Copy + Send + Sync;
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

/// A route's place among the prefixes, and the value that it has from now on; with [`NONE`] it is withdrawn.
#[derive(Clone, Copy)]
pub struct Change {
    pub place: usize,
    pub value: u32,
}

/// What is to be looked up, and where.
pub struct Contest<F> {
    pub name: String,
    pub prefixes: Vec<(F, u8)>,
    pub trace: Vec<F>,
    /// To be made in turn, over and over: as many withdrawals as returns of what was withdrawn and as changes of a value.
    pub changes: Vec<Change>,
}

impl<F: Family> Contest<F> {
    /// Prefixes with the lengths of the Internet's routes.
    pub fn internet(size: usize, random: &mut Random) -> Self {
        let prefixes = internet(size, random);
        let trace = trace(&[&prefixes], random);
        Self { name: size.to_string(), trace, changes: changes(prefixes.len()), prefixes }
    }

    /// What is looked up at a time, over and over.
    pub fn stretches(&self) -> impl Iterator<Item = &[F]> {
        self.trace.chunks(STRETCH).cycle()
    }

    /// The routes of one node in a large cluster: those to the other nodes, and those to its pods, which get half of
    /// the look-ups.
    pub fn cluster(random: &mut Random) -> Self {
        let nodes: Vec<_> = (0..NODES).map(|node| (F::pod(node, 0), F::NODE_LEN)).collect();
        let pods: Vec<_> = (1..=PODS).map(|number| (F::pod(NODES / 2, number), F::WIDTH)).collect();
        let trace = trace(&[&nodes, &pods], random);
        let prefixes = [nodes, pods].concat();
        Self { name: "cluster".to_owned(), trace, changes: changes(prefixes.len()), prefixes }
    }

    /// Prefixes with their values at first: their places, from 1.
    pub fn routes(&self) -> impl Iterator<Item = (F, u8, u32)> {
        self.prefixes.iter().zip(1..).map(|(&(bits, len), value)| (bits, len, value))
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

/// Addresses inside prefixes drawn at random, as many from each of `classes`.
fn trace<F: Family>(classes: &[&[(F, u8)]], random: &mut Random) -> Vec<F> {
    let draw = |_| {
        let class = random.one_of(classes);
        let (bits, len) = random.one_of(class);
        bits.inside(*len, random)
    };
    (0..TRACE).map(draw).collect()
}

/// Changes of so many routes.
fn changes(size: usize) -> Vec<Change> {
    // Of their own, so that the tables do not depend on how many changes there are.
    let random = &mut Random(2);
    let mut places: Vec<_> = (0..size).collect();
    (1..size).for_each(|last| places.swap(last, random.below(last + 1)));
    let first = |place: usize| u32::try_from(place + 1).unwrap();
    let (leaving, staying) = places.split_at(size / 2);
    let back = leaving.iter().cycle().skip(leaving.len() - WITHDRAWN);
    let turns = leaving.iter().zip(back).zip(staying).take(5_000);
    let change =
        |((&leaving, &back), &staying)| [(leaving, NONE), (back, first(back)), (staying, first(random.below(size)))];
    turns.flat_map(change).map(|(place, value)| Change { place, value }).collect()
}
