//! The request that travels with a frame between a pod's kernel and us (virtio 1.2 section
//! 5.1.6, `struct virtio_net_hdr` of include/uapi/linux/virtio_net.h).

use crate::wire::Ethernet;

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

    /// The checksum to complete in a frame of `frame_len` bytes, if one is asked for; its field lies in the frame
    /// and behind the Ethernet header.
    #[inline]
    pub fn checksum(&self, frame_len: usize) -> Result<Option<Checksum>, OffloadError> {
        if self.flags & Self::NEEDS_CSUM == 0 {
            return Ok(None);
        }
        let start = usize::from(self.csum_start);
        let field = start + usize::from(self.csum_offset);
        if start < Ethernet::LEN || field + 2 > frame_len {
            return Err(OffloadError::BadChecksumField);
        }
        Ok(Some(Checksum { start, field }))
    }
}
