//! Completing a checksum that a pod's kernel left to the device (`CHECKSUM_PARTIAL`).

use super::{OffloadError, VirtioNetHdr};
use crate::wire::{Ethernet, Sum, copy_and_sum};

/// Completes the checksum that covers `packet` from `start` on and whose field lies `offset` bytes
/// further and holds the sum of the pseudo header. False, and nothing changed, when the field lies
/// outside the packet.
///
/// A result of 0 is written as 0xffff: it means the same, and to UDP 0 would mean "none" (like
/// `skb_checksum_help` in net/core/dev.c).
#[inline]
#[must_use]
pub fn complete(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(covered) = packet.get_mut(start..) else { return false };
    let sum = Sum::of(covered);
    let Some(field) = covered.get_mut(offset..).and_then(<[u8]>::first_chunk_mut) else { return false };
    *field = sum.udp_checksum().to_be_bytes();
    true
}

/// Copies the IP packet of the Ethernet `frame`, which ends where its IP header says, to the head of `out`,
/// completes its checksum in the same pass if `hdr` asks for it, and returns its length. TTL and hop limit are copied as they are.
#[inline]
pub fn copy_plain(frame: &[u8], hdr: &VirtioNetHdr, out: &mut [u8]) -> Result<usize, OffloadError> {
    let packet = frame.get(Ethernet::LEN..).ok_or(OffloadError::NotIp)?;
    let checksum = hdr.checksum(frame)?;
    let out = out.get_mut(..packet.len()).ok_or(OffloadError::NoSpace)?;
    let Some(checksum) = checksum else {
        out.copy_from_slice(packet);
        return Ok(packet.len());
    };
    let (start, field) = (checksum.start - Ethernet::LEN, checksum.field - Ethernet::LEN);
    let (head, covered) = packet.split_at_checked(start).ok_or(OffloadError::BadChecksumField)?;
    let (out_head, out_covered) = out.split_at_mut_checked(start).ok_or(OffloadError::NoSpace)?;
    out_head.copy_from_slice(head);
    let sum = copy_and_sum(out_covered, covered).ok_or(OffloadError::NoSpace)?;
    let field = out.get_mut(field..).and_then(<[u8]>::first_chunk_mut).ok_or(OffloadError::BadChecksumField)?;
    *field = sum.udp_checksum().to_be_bytes();
    Ok(packet.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{self, L4, Sample};

    fn any_partial() -> impl Strategy<Value = Sample> {
        Sample::carrying(prop_oneof![Sample::any_tcp(), Just(L4::Udp)], 1500)
    }

    /// A UDP datagram from 0.0.0.0 to 0.0.0.0 whose sum is all ones: its checksum is 0.
    #[test]
    fn a_checksum_of_zero_is_written_as_all_ones() {
        let mut datagram = [0, 0, 0xff, 0xff - 17 - 10 - 10, 0, 10, 0, 27, 0, 0];
        let frame = [&[0; 12][..], &[8, 0], &[0; 20], &datagram].concat();
        let hdr = VirtioNetHdr { flags: 1, csum_start: 34, csum_offset: 6, ..VirtioNetHdr::default() };
        let mut out = [0; 30];
        assert_eq!(copy_plain(&frame, &hdr, &mut out), Ok(30));
        assert_eq!(out[26..28], [0xff, 0xff]);

        assert!(complete(&mut datagram, 0, 6));
        assert_eq!(datagram[6..8], [0xff, 0xff]);
    }

    #[test]
    fn a_field_outside_the_packet_is_refused() {
        for (start, offset) in [(0, 9), (9, 0), (10, 0), (11, 0), (usize::MAX, 1), (1, usize::MAX)] {
            let mut packet = [7; 10];
            assert!(!complete(&mut packet, start, offset), "{start} {offset}");
            assert_eq!(packet, [7; 10]);
        }
    }

    #[test]
    fn a_copy_says_what_is_wrong() {
        let hdr = VirtioNetHdr::default();
        assert_eq!(copy_plain(&[0; 13], &hdr, &mut [0; 20]), Err(OffloadError::NotIp));
        assert_eq!(copy_plain(&[0; 40], &hdr, &mut [0; 25]), Err(OffloadError::NoSpace));
        assert_eq!(copy_plain(&[0; 40], &hdr, &mut [0; 26]), Ok(26));
    }

    proptest! {
        #[test]
        fn a_partial_checksum_becomes_a_valid_one(sample in any_partial()) {
            let (frame, csum_start, csum_offset) = sample.build_partial();
            let hdr = VirtioNetHdr { flags: VirtioNetHdr::NEEDS_CSUM, csum_start, csum_offset, ..Default::default() };

            let mut copied = vec![0xaa; frame.len()];
            let len = copy_plain(&frame, &hdr, &mut copied).unwrap();
            sample::judge(&copied[..len]);
            prop_assert!(copied[len..].iter().all(|&byte| byte == 0xaa));

            let mut in_place = frame;
            prop_assert!(complete(&mut in_place, csum_start.into(), csum_offset.into()));
            prop_assert_eq!(&in_place[14..], &copied[..len]);
        }

        #[test]
        fn a_complete_packet_is_copied_as_it_is(sample in Sample::any(1500)) {
            let frame = [vec![0; 14], sample.build()].concat();
            let mut out = vec![0; frame.len()];
            let len = copy_plain(&frame, &VirtioNetHdr::default(), &mut out).unwrap();
            prop_assert_eq!(&out[..len], &frame[14..]);
        }

        #[test]
        fn any_request_is_met_or_refused(sample in any_partial(), hdr: [u8; 10], space in 0usize..2000) {
            let (frame, ..) = sample.build_partial();
            let hdr = VirtioNetHdr::parse(&hdr).unwrap();
            let mut out = vec![0; space];
            if let Ok(len) = copy_plain(&frame, &hdr, &mut out) {
                let l3_len = if sample.v6 { 40 } else { 20 };
                prop_assert_eq!(len, frame.len() - 14);
                prop_assert_eq!(&out[..l3_len], &frame[14..14 + l3_len]);
            }
        }
    }
}
