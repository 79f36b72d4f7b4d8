//! The Internet checksum (RFC 1071): a one's-complement sum of 16-bit words.
//!
//! Words are added in the machine's byte order, which RFC 1071 section 2 (B) shows to be
//! equivalent; [`Sum`] keeps that detail to itself.

use std::ops::{Add, AddAssign, Neg};

use super::Protocol;

/// A one's-complement sum of bytes that start at an even offset of what the checksum covers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// The sum of `bytes`; an odd last byte is padded with zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Self {
        let (blocks, rest) = bytes.as_chunks();
        let mut lanes = Lanes::default();
        for block in blocks {
            lanes.add(block);
        }
        lanes.total() + Self::of_short(rest)
    }

    /// The sum of a header whose length the compiler knows.
    #[inline]
    pub fn of_array<const N: usize>(bytes: &[u8; N]) -> Self {
        Self::of_short(bytes)
    }

    #[inline]
    fn of_short(bytes: &[u8]) -> Self {
        // Fewer than 2^32 words of 32 bits do not overflow a u64.
        let (words, rest) = bytes.as_chunks();
        let mut total: u64 = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
        let (halves, last) = rest.as_chunks();
        total += halves.iter().map(|half| u64::from(u16::from_ne_bytes(*half))).sum::<u64>();
        total += last.iter().map(|&byte| u64::from(u16::from_ne_bytes([byte, 0]))).sum::<u64>();
        Self(total)
    }

    /// The sum as the number that would be read from the wire: 0 and 0xffff both stand for zero.
    #[inline]
    pub fn fold(self) -> u16 {
        u16::from_be(self.fold_native())
    }

    /// What a checksum field must hold so that everything adds up to zero.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }

    /// [`Sum::checksum`] for UDP, where 0 would say "none" and 0xffff stands for it
    /// (RFC 768; RFC 8200 section 8.1).
    #[inline]
    pub fn udp_checksum(self) -> u16 {
        match self.checksum() {
            0 => u16::MAX,
            checksum => checksum,
        }
    }

    /// Whether bytes that include their checksum add up.
    #[inline]
    pub fn is_valid(self) -> bool {
        self.fold_native() == u16::MAX
    }

    /// The sum of the same bytes when they start at an odd offset (RFC 1071 section 2 (B)).
    #[inline]
    #[must_use]
    pub fn at_odd_offset(self) -> Self {
        Self(u64::from(self.fold_native().swap_bytes()))
    }

    #[inline]
    fn fold_native(self) -> u16 {
        // Adding a number to itself with its halves swapped leaves the end-around sum in the upper half.
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }
}

impl Add for Sum {
    type Output = Self;

    #[inline]
    fn add(self, other: Self) -> Self {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Self(sum + u64::from(carry))
    }
}

impl AddAssign for Sum {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// The one's complement: a sum and its negative add up to zero.
impl Neg for Sum {
    type Output = Self;

    #[inline]
    fn neg(self) -> Self {
        Self(u64::from(!self.fold_native()))
    }
}

/// A 16-bit number as it travels.
impl From<u16> for Sum {
    #[inline]
    fn from(number: u16) -> Self {
        Self(u64::from(number.to_be()))
    }
}

/// A 32-bit number as it travels.
impl From<u32> for Sum {
    #[inline]
    fn from(number: u32) -> Self {
        Self(u64::from(number.to_be()))
    }
}

/// A 128-bit number as it travels.
impl From<u128> for Sum {
    #[inline]
    fn from(number: u128) -> Self {
        Self::of_array(&number.to_be_bytes())
    }
}

/// Bytes that [`Lanes`] take at a time.
const BLOCK: usize = 32;

/// Independent accumulators, so that additions need not wait for each other. Their upper halves
/// count the carries.
#[derive(Default)]
struct Lanes([u128; BLOCK / 8]);

impl Lanes {
    #[inline]
    fn add(&mut self, block: &[u8; BLOCK]) {
        for (lane, word) in self.0.iter_mut().zip(block.as_chunks().0) {
            *lane += u128::from(u64::from_ne_bytes(*word));
        }
    }

    #[inline]
    fn total(self) -> Sum {
        let total: u128 = self.0.into_iter().sum();
        Sum((total >> 64) as u64) + Sum((total & 0xffff_ffff_ffff_ffff) as u64)
    }
}

/// Copies `src` to the head of `dst` and sums it in the same pass; `None`, and nothing written,
/// when `dst` is shorter.
#[inline]
pub fn copy_and_sum(dst: &mut [u8], src: &[u8]) -> Option<Sum> {
    let (to_blocks, to_rest) = dst.get_mut(..src.len())?.as_chunks_mut();
    let (blocks, rest) = src.as_chunks();
    let mut lanes = Lanes::default();
    for (to, from) in to_blocks.iter_mut().zip(blocks) {
        *to = *from;
        lanes.add(from);
    }
    to_rest.copy_from_slice(rest);
    Some(lanes.total() + Sum::of_short(rest))
}

/// The IPv4 pseudo header of TCP and UDP (RFC 9293 section 3.1); `l4_len` in bytes.
#[inline]
pub fn pseudo_v4(src: u32, dst: u32, protocol: Protocol, l4_len: u16) -> Sum {
    Sum::from(src) + Sum::from(dst) + Sum::from(u16::from(protocol.0)) + Sum::from(l4_len)
}

/// The IPv6 pseudo header of TCP, UDP and ICMPv6 (RFC 8200 section 8.1); `l4_len` in bytes.
#[inline]
pub fn pseudo_v6(src: u128, dst: u128, protocol: Protocol, l4_len: u32) -> Sum {
    Sum::from(src) + Sum::from(dst) + Sum::from(u32::from(protocol.0)) + Sum::from(l4_len)
}

/// The sum over a whole IP packet, which parses as [`Ipv4`](super::Ipv4) or [`Ipv6`](super::Ipv6): from its headers when
/// [`known_inner_sum`] can tell, else from its bytes.
#[inline]
pub fn inner_sum(packet: &[u8]) -> Sum {
    known_inner_sum(packet).unwrap_or_else(|| Sum::of(packet))
}

/// The sum over a whole IP packet, from its headers alone: a valid checksum makes what it covers
/// add up to zero, so an IPv4 header and an ICMP message weigh nothing and a TCP, UDP or ICMPv6
/// segment weighs the negative of its pseudo header. `None` for a UDP datagram without checksum
/// or with bytes behind it, and for other protocols.
///
/// `packet` ends where its IP header says. A packet whose checksum is wrong yields a wrong sum: an outer checksum
/// made from it condemns the packet at the receiver, which would refuse it anyway.
#[inline]
pub fn known_inner_sum(packet: &[u8]) -> Option<Sum> {
    let (&[first, ..], _) = packet.split_first_chunk::<1>()?;
    match first >> 4 {
        4 => known_sum_v4(packet),
        6 => known_sum_v6(packet),
        _ => None,
    }
}

#[inline]
fn known_sum_v4(packet: &[u8]) -> Option<Sum> {
    let (&[_, _, _, _, _, _, _, _, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3], l4) =
        packet.split_first_chunk()?;
    let protocol = Protocol(protocol);
    match protocol {
        Protocol::ICMP => return Some(Sum::ZERO),
        Protocol::UDP if !is_summed_whole(l4) => return None,
        Protocol::TCP | Protocol::UDP => {}
        _ => return None,
    }
    let (src, dst) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([d0, d1, d2, d3]));
    Some(-pseudo_v4(src, dst, protocol, u16::try_from(l4.len()).ok()?))
}

#[inline]
fn known_sum_v6(packet: &[u8]) -> Option<Sum> {
    let (fixed, rest) = packet.split_first_chunk::<8>()?;
    let (_addresses, l4) = rest.split_first_chunk::<32>()?;
    let [.., next, _] = *fixed;
    let protocol = Protocol(next);
    match protocol {
        Protocol::UDP if !is_summed_whole(l4) => return None,
        Protocol::TCP | Protocol::UDP | Protocol::ICMPV6 => {}
        _ => return None,
    }
    // The addresses are in the header and, negative, in the pseudo header.
    let pseudo = pseudo_v6(0, 0, protocol, u32::try_from(l4.len()).ok()?);
    Some(Sum::of_array(fixed) + -pseudo)
}

/// Whether all that follows the IP header is a UDP datagram with a checksum: it may end before its packet does, which
/// the checksum does not cover then (RFC 9868 section 6).
#[inline]
fn is_summed_whole(l4: &[u8]) -> bool {
    let &[_, _, _, _, l0, l1, c0, c1, ..] = l4 else { return false };
    [c0, c1] != [0, 0] && usize::from(u16::from_be_bytes([l0, l1])) == l4.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{self, L4, Sample};
    use crate::wire::{Ipv4, Ipv6};

    /// 0 and 0xffff are the same number to one's complement.
    fn same(sum: Sum, reference: u16) -> bool {
        sum.fold() % 0xffff == reference % 0xffff
    }

    #[test]
    fn carries_of_the_widest_words_come_around() {
        for len in 0..200 {
            let bytes = vec![0xff; len];
            assert!(same(Sum::of(&bytes), sample::reference_sum(&bytes)), "{len}");
        }
        let all_ones = Sum(u64::MAX);
        assert_eq!((all_ones + all_ones).fold(), 0xffff);
        assert_eq!((Sum(u64::MAX) + Sum(1)).fold_native(), 1);
    }

    #[test]
    fn a_udp_checksum_is_never_zero() {
        assert_eq!((Sum::from(0xffffu16).checksum(), Sum::from(0xffffu16).udp_checksum()), (0, 0xffff));
        assert_eq!(Sum::from(0x1234u16).udp_checksum(), !0x1234);
    }

    #[test]
    fn a_copy_into_too_little_space_writes_nothing() {
        let mut out = [7; 40];
        assert!(copy_and_sum(&mut out, &[1; 41]).is_none());
        assert_eq!(out, [7; 40]);
    }

    proptest! {
        #[test]
        fn sums_what_the_reference_sums(bytes: Vec<u8>, start in 0usize..9) {
            let bytes = bytes.get(start..).unwrap_or_default();
            prop_assert!(same(Sum::of(bytes), sample::reference_sum(bytes)));
        }

        #[test]
        fn sums_large_buffers(len in 0usize..70_000, seed: u64) {
            let bytes = sample::noise(len, seed);
            prop_assert!(same(Sum::of(&bytes), sample::reference_sum(&bytes)));
        }

        #[test]
        fn a_sum_is_the_sum_of_its_parts(bytes: Vec<u8>, at: prop::sample::Index) {
            let at = at.index(bytes.len() + 1);
            let (head, tail) = bytes.split_at(at);
            let tail = Sum::of(tail);
            let tail = if at % 2 == 0 { tail } else { tail.at_odd_offset() };
            prop_assert!(same(Sum::of(head) + tail, sample::reference_sum(&bytes)));
        }

        #[test]
        fn a_sum_and_its_negative_vanish(bytes: Vec<u8>, other: Vec<u8>) {
            let (sum, kept) = (Sum::of(&bytes), Sum::of(&other));
            prop_assert!(same(kept + sum + -sum, sample::reference_sum(&other)));
        }

        #[test]
        fn a_copy_is_exact_and_summed(len in 0usize..300, seed: u64, start in 0usize..9, spare in 0usize..50) {
            let bytes = sample::noise(start + len, seed);
            let src = &bytes[start..];
            let mut out = vec![0xaa; len + spare];
            let sum = copy_and_sum(&mut out, src).unwrap();
            prop_assert_eq!(&out[..len], src);
            prop_assert!(out[len..].iter().all(|&byte| byte == 0xaa));
            prop_assert!(same(sum, sample::reference_sum(src)));
        }

        #[test]
        fn headers_tell_the_sum_of_a_valid_packet(sample in Sample::any(2000)) {
            let packet = sample.build();
            let known = known_inner_sum(&packet).unwrap();
            prop_assert!(same(known, sample::reference_sum(&packet)));
            prop_assert!(same(inner_sum(&packet), sample::reference_sum(&packet)));
        }

        #[test]
        fn without_a_udp_checksum_the_bytes_are_summed(sample in Sample::carrying(Just(L4::Udp), 200)) {
            let mut packet = sample.build();
            let udp = if sample.v6 { 40 } else { 20 };
            packet[udp + 6..udp + 8].fill(0);
            prop_assert!(known_inner_sum(&packet).is_none());
            prop_assert!(same(inner_sum(&packet), sample::reference_sum(&packet)));
        }

        #[test]
        fn bytes_behind_a_udp_datagram_are_summed(
            sample in Sample::carrying(Just(L4::Udp), 200),
            surplus in prop::collection::vec(any::<u8>(), 1..60),
        ) {
            let mut packet = sample.build();
            packet.extend(surplus);
            let len = packet.len();
            let set = if sample.v6 { Ipv6::set_total_len(&mut packet, len) } else { Ipv4::set_total_len(&mut packet, len) };
            prop_assert!(set.is_some());
            prop_assert!(same(inner_sum(&packet), sample::reference_sum(&packet)));
        }

        #[test]
        fn noise_has_some_sum(bytes: Vec<u8>) {
            let _ = inner_sum(&bytes);
        }
    }
}
