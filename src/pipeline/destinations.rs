use super::BURST;
use crate::fib::{Fib, NONE};

/// A destination address, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    V4(u32),
    V6(u128),
}

/// The destinations of a burst, by family, so that each table is searched for all of them at once.
#[derive(Debug)]
pub struct Destinations {
    v4: Family<u32>,
    v6: Family<u128>,
    hops: [u32; BURST],
    len: usize,
}

const _: () = assert!(BURST <= 1 << u8::BITS, "a place is a byte");

#[derive(Debug)]
struct Family<A> {
    addresses: [A; BURST],
    /// The place in the burst of each address.
    places: [u8; BURST],
    hops: [u32; BURST],
    len: usize,
}

impl<A: Copy + Default> Family<A> {
    fn new() -> Self {
        Self { addresses: [A::default(); BURST], places: [0; BURST], hops: [NONE; BURST], len: 0 }
    }

    fn push(&mut self, address: A, place: usize) {
        let (Some(a), Some(p)) = (self.addresses.get_mut(self.len), self.places.get_mut(self.len)) else { return };
        *a = address;
        *p = u8::try_from(place).unwrap_or(0);
        self.len += 1;
    }

    fn resolve(&mut self, hops: &mut [u32; BURST], look_up: impl FnOnce(&[A], &mut [u32])) {
        let len = std::mem::take(&mut self.len);
        let (Some(addresses), Some(found)) = (self.addresses.get(..len), self.hops.get_mut(..len)) else { return };
        if len == 0 {
            return;
        }
        look_up(addresses, found);
        for (hop, place) in found.iter().zip(self.places) {
            if let Some(slot) = hops.get_mut(usize::from(place)) {
                *slot = *hop;
            }
        }
    }
}

impl Default for Destinations {
    fn default() -> Self {
        Self { v4: Family::new(), v6: Family::new(), hops: [NONE; BURST], len: 0 }
    }
}

impl Destinations {
    /// Adds the destination of the burst's next packet. At most [`BURST`] of them.
    pub fn push(&mut self, destination: Destination) {
        match destination {
            Destination::V4(address) => self.v4.push(address, self.len),
            Destination::V6(address) => self.v6.push(address, self.len),
        }
        self.len += 1;
    }

    /// The index of each destination's next hop, in the order of pushing, or [`NONE`]. Forgets the burst.
    pub fn resolve(&mut self, fib: &Fib) -> &[u32] {
        self.v4.resolve(&mut self.hops, |addresses, hops| fib.lookup_v4_burst(addresses, hops));
        self.v6.resolve(&mut self.hops, |addresses, hops| fib.lookup_v6_burst(addresses, hops));
        let len = std::mem::take(&mut self.len);
        self.hops.get(..len).unwrap_or_default()
    }
}
