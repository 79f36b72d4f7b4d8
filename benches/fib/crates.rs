//! Crates of the same purpose. None has look-ups by bursts, nor ones that go on while routes change: what shares such
//! a table with a thread that changes it is a lock.

use ip_network_table_deps_treebitmap::IpLookupTable;
use prefix_trie::PrefixMap;

use crate::tables::Family;

/// A crate's table.
pub trait Crate<F: Family>: Send + Sync {
    const NAME: &'static str;
    /// An address as the table takes it.
    type Address: Copy + Send + Sync;

    fn build(routes: impl Iterator<Item = (F, u8, u32)>) -> Self;
    fn address(key: F) -> Self::Address;
    fn lookup(&self, address: Self::Address) -> Option<u32>;
    fn insert(&mut self, bits: F, len: u8, value: u32);
    fn withdraw(&mut self, bits: F, len: u8);
}

/// What the crate `ip_network_table` is made of.
pub struct TreeBitmap<F: Family>(IpLookupTable<F::Address, u32>);

impl<F: Family> Crate<F> for TreeBitmap<F> {
    const NAME: &'static str = "treebitmap";
    type Address = F::Address;

    fn build(routes: impl Iterator<Item = (F, u8, u32)>) -> Self {
        let mut table = Self(IpLookupTable::new());
        routes.for_each(|(bits, len, value)| table.insert(bits, len, value));
        table
    }

    fn address(key: F) -> F::Address {
        key.address()
    }

    #[inline]
    fn lookup(&self, address: F::Address) -> Option<u32> {
        self.0.longest_match(address).map(|(_, _, value)| *value)
    }

    fn insert(&mut self, bits: F, len: u8, value: u32) {
        self.0.insert(bits.address(), len.into(), value);
    }

    fn withdraw(&mut self, bits: F, len: u8) {
        self.0.remove(bits.address(), len.into());
    }
}

pub struct PrefixTrie<F: Family>(PrefixMap<F::Net, u32>);

impl<F: Family> Crate<F> for PrefixTrie<F> {
    const NAME: &'static str = "prefix-trie";
    type Address = F::Net;

    fn build(routes: impl Iterator<Item = (F, u8, u32)>) -> Self {
        Self(routes.map(|(bits, len, value)| (bits.net(len), value)).collect())
    }

    fn address(key: F) -> F::Net {
        key.net(F::WIDTH)
    }

    #[inline]
    fn lookup(&self, address: F::Net) -> Option<u32> {
        self.0.get_lpm(&address).map(|(_, value)| *value)
    }

    fn insert(&mut self, bits: F, len: u8, value: u32) {
        self.0.insert(bits.net(len), value);
    }

    fn withdraw(&mut self, bits: F, len: u8) {
        self.0.remove(&bits.net(len));
    }
}

pub struct Poptrie<F: Family>(poptrie::Poptrie<(F, u8), u32>);

impl<F: Family> Crate<F> for Poptrie<F> {
    const NAME: &'static str = "poptrie";
    type Address = F;

    fn build(routes: impl Iterator<Item = (F, u8, u32)>) -> Self {
        Self(routes.map(|(bits, len, value)| ((bits, len), value)).collect())
    }

    fn address(key: F) -> F {
        key
    }

    #[inline]
    fn lookup(&self, address: F) -> Option<u32> {
        self.0.lookup(address).copied()
    }

    fn insert(&mut self, bits: F, len: u8, value: u32) {
        self.0.insert((bits, len), value);
    }

    fn withdraw(&mut self, bits: F, len: u8) {
        self.0.remove((bits, len));
    }
}
