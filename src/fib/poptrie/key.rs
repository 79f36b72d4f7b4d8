//! Addresses as integers in host order, cut into runs of bits.

use std::fmt::Debug;

/// An address as an integer in host order.
pub trait Key: Copy + Default + Ord + Debug {
    /// Width of the address.
    const WIDTH: u8;
    /// Bits that index the direct table.
    const DIRECT_BITS: u8;
    /// Whether tries of these keys have paths.
    const PATHS: bool;

    /// The first `bits` bits (1 to 32) as a number.
    fn first(self, bits: u8) -> usize;

    /// The first 64 bits, a shorter key filled up with zeros.
    fn first_64(self) -> u64;

    /// How many of their first bits two keys share.
    fn shared(self, other: Self) -> u8;

    /// The key without its first `bits` bits, filled up with zeros.
    #[must_use]
    fn skip(self, bits: u8) -> Self;

    /// The key with everything but its first `bits` bits cleared.
    #[must_use]
    fn network(self, bits: u8) -> Self;
}

macro_rules! key {
    ($int:ty, width: $width:literal, direct: $direct:literal, paths: $paths:literal, first_64: $first_64:expr) => {
        impl Key for $int {
            const WIDTH: u8 = $width;
            const DIRECT_BITS: u8 = $direct;
            const PATHS: bool = $paths;

            #[inline]
            fn first(self, bits: u8) -> usize {
                usize::try_from(self >> (Self::WIDTH - bits)).unwrap_or_default()
            }

            #[inline]
            fn first_64(self) -> u64 {
                $first_64(self)
            }

            fn shared(self, other: Self) -> u8 {
                u8::try_from((self ^ other).leading_zeros()).unwrap_or(Self::WIDTH)
            }

            #[inline]
            fn skip(self, bits: u8) -> Self {
                self.checked_shl(u32::from(bits)).unwrap_or_default()
            }

            fn network(self, bits: u8) -> Self {
                self & !<$int>::MAX.checked_shr(u32::from(bits)).unwrap_or_default()
            }
        }
    };
}

// 18 + 6 reaches the /24 of a node, and most of the Internet's routes, with one fork. There are
// never more than three: to test for paths costs a tenth and spares nothing.
key!(u32, width: 32, direct: 18, paths: false, first_64: |key| u64::from(key) << 32);
// A wider table would mostly hold the same entry.
key!(u128, width: 128, direct: 16, paths: true, first_64: |key| u64::try_from(key >> 64).unwrap_or_default());
