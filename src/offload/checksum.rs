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
    let checksum = hdr.checksum(frame.len())?;
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
