//! The request that travels with a frame between a pod's kernel and us (virtio 1.2 section
//! 5.1.6, `struct virtio_net_hdr` of include/uapi/linux/virtio_net.h).

use crate::wire::{EtherType, Ethernet, Ipv4, Ipv6};

/// Why a request does not fit its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffloadError {
    /// The frame is not a plain IP packet in Ethernet.
    NotIp,
    /// The frame ends inside its TCP or UDP header.
    Truncated,
    /// The segmentation type is unknown, or not that of the packet.
    BadGsoType,
    /// Segments of no bytes.
    ZeroGsoSize,
    /// More segments than any sender means, see [`Segmenter::MAX_SEGMENTS`](super::Segmenter::MAX_SEGMENTS).
    TooManySegments,
    /// The checksum lies outside the packet, or is not the packet's TCP or UDP checksum.
    BadChecksumField,
    /// The packet does not fit the space given.
    NoSpace,
}

/// The header, in the layout without `num_buffers`: 10 bytes, little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    pub flags: u8,
    pub gso_type: u8,
    /// A hint about the length of all headers, never trusted.
    pub hdr_len: u16,
    /// The payload of a segment in bytes.
    pub gso_size: u16,
    /// Where the checksum begins to cover the frame.
    pub csum_start: u16,
    /// Where the checksum's field lies, from `csum_start`.
    pub csum_offset: u16,
}

/// A kind of super-packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoType {
    TcpV4,
    TcpV6,
    /// UDP datagrams of one size, each with its own header, over either IP version.
    UdpL4,
}

/// A checksum to complete: the field holds the sum of the pseudo header. Offsets in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    pub start: usize,
    pub field: usize,
}

impl VirtioNetHdr {
    /// The header's length in bytes.
    pub const LEN: usize = 10;

    /// In [`flags`](Self::flags): the checksum is to be completed.
    pub const NEEDS_CSUM: u8 = 1;
    /// In [`flags`](Self::flags): the checksum was found to be valid.
    pub const DATA_VALID: u8 = 2;

    /// In [`gso_type`](Self::gso_type): not a super-packet.
    pub const GSO_NONE: u8 = 0;
    pub const GSO_TCPV4: u8 = 1;
    pub const GSO_TCPV6: u8 = 4;
    pub const GSO_UDP_L4: u8 = 5;
    /// Added to a TCP type when CWR is set.
    pub const GSO_ECN: u8 = 0x80;

    /// Reads the header at the head of `bytes`; `None` when they are fewer.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes.first_chunk::<{ Self::LEN }>()?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    /// The header as it travels.
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Whether the frame is a super-packet, to be cut by a [`Segmenter`](super::Segmenter).
    #[inline]
    pub fn is_gso(&self) -> bool {
        self.gso_type != Self::GSO_NONE
    }

    /// The kind of super-packet, or `None` when there is no such type.
    #[inline]
    pub fn gso(&self) -> Option<GsoType> {
        match self.gso_type & !Self::GSO_ECN {
            Self::GSO_TCPV4 => Some(GsoType::TcpV4),
            Self::GSO_TCPV6 => Some(GsoType::TcpV6),
            Self::GSO_UDP_L4 if self.gso_type & Self::GSO_ECN == 0 => Some(GsoType::UdpL4),
            _ => None,
        }
    }

    /// The checksum to complete in an Ethernet `frame` of a plain IP packet, if one is asked for. It lies behind
    /// the IP header, so that completing it cannot change what the packet was let through for; it may lie
    /// behind the UDP header too, where a tunnel inside the pod carries a packet of its own.
    #[inline]
    pub fn checksum(&self, frame: &[u8]) -> Result<Option<Checksum>, OffloadError> {
        if self.flags & Self::NEEDS_CSUM == 0 {
            return Ok(None);
        }
        let l4_offset = match Ethernet::parse(frame).map(|ethernet| ethernet.ethertype) {
            Some(EtherType::IPV4) => Ethernet::LEN + Ipv4::LEN,
            Some(EtherType::IPV6) => Ethernet::LEN + Ipv6::LEN,
            _ => return Err(OffloadError::NotIp),
        };
        let start = usize::from(self.csum_start);
        let field = start + usize::from(self.csum_offset);
        if start < l4_offset || field + 2 > frame.len() {
            return Err(OffloadError::BadChecksumField);
        }
        Ok(Some(Checksum { start, field }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Mac;

    #[test]
    fn only_the_known_types_are_super_packets() {
        let known = [(1, GsoType::TcpV4), (0x81, GsoType::TcpV4), (4, GsoType::TcpV6), (0x84, GsoType::TcpV6)];
        for gso_type in 0..=u8::MAX {
            let hdr = VirtioNetHdr { gso_type, ..VirtioNetHdr::default() };
            let expected = known.iter().find(|(number, _)| *number == gso_type).map(|(_, gso)| *gso);
            let expected = if gso_type == 5 { Some(GsoType::UdpL4) } else { expected };
            assert_eq!((hdr.gso(), hdr.is_gso()), (expected, gso_type != 0), "{gso_type:#x}");
        }
    }

    #[test]
    fn a_checksum_lies_between_the_ip_header_and_the_end() {
        for (ethertype, l4_offset) in [(EtherType::IPV4, 34), (EtherType::IPV6, 54)] {
            let mut frame = [0; 100];
            assert!(Ethernet { dst: Mac([0; 6]), src: Mac([0; 6]), ethertype }.write(&mut frame));
            let ask = |csum_start, csum_offset| {
                let hdr = VirtioNetHdr { flags: 1, csum_start, csum_offset, ..VirtioNetHdr::default() };
                hdr.checksum(&frame)
            };
            assert_eq!(ask(l4_offset, 16).unwrap().unwrap().field, usize::from(l4_offset) + 16);
            assert_eq!(ask(98, 0), Ok(Some(Checksum { start: 98, field: 98 })));
            for (start, offset) in [(l4_offset - 1, 16), (14, 10), (0, 0), (98, 1), (99, 0), (0xffff, 0xffff)] {
                assert_eq!(ask(start, offset), Err(OffloadError::BadChecksumField), "{start} {offset}");
            }
        }
        assert_eq!(VirtioNetHdr::default().checksum(&[]), Ok(None));
        let hdr = VirtioNetHdr { flags: 1, csum_start: 34, csum_offset: 16, ..VirtioNetHdr::default() };
        assert_eq!(hdr.checksum(&[0; 100]), Err(OffloadError::NotIp));
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(bytes: [u8; 10]) {
            prop_assert_eq!(VirtioNetHdr::parse(&bytes).unwrap().to_bytes(), bytes);
            prop_assert_eq!(VirtioNetHdr::parse(&bytes[..9]), None);
        }
    }
}
