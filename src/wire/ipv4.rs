use super::{Ecn, IpError, Protocol, Sum};

/// An IPv4 header without options of a whole packet, checked (RFC 791 section 3.1).
/// Addresses are numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    pub src: u32,
    pub dst: u32,
    pub tos: u8,
    pub ttl: u8,
    pub protocol: Protocol,
    pub id: u16,
    /// Don't fragment.
    pub df: bool,
    /// Header and payload in bytes: at least [`Ipv4::LEN`], at most the bytes parsed.
    pub total_len: usize,
}

impl Ipv4 {
    /// The header's length in bytes.
    pub const LEN: usize = 20;
    const DF: u16 = 0x4000;
    const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

    /// Reads the header at the head of `packet`, which may have padding behind it.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, IpError> {
        let header: &[u8; Self::LEN] = packet.first_chunk().ok_or(IpError::Truncated)?;
        let [version_ihl, tos, l0, l1, i0, i1, f0, f1, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        if version_ihl != 0x45 {
            return Err(if version_ihl >> 4 != 4 {
                IpError::BadVersion
            } else if version_ihl & 0xf < 5 {
                IpError::BadLength
            } else {
                IpError::Options
            });
        }
        let total_len = usize::from(u16::from_be_bytes([l0, l1]));
        if !(Self::LEN..=packet.len()).contains(&total_len) {
            return Err(IpError::BadLength);
        }
        if !Sum::of_array(header).is_valid() {
            return Err(IpError::BadChecksum);
        }
        let fragment = u16::from_be_bytes([f0, f1]);
        if fragment & Self::MORE_FRAGMENTS_OR_OFFSET != 0 {
            return Err(IpError::Fragment);
        }
        Ok(Self {
            src: u32::from_be_bytes([s0, s1, s2, s3]),
            dst: u32::from_be_bytes([d0, d1, d2, d3]),
            tos,
            ttl,
            protocol: Protocol(protocol),
            id: u16::from_be_bytes([i0, i1]),
            df: fragment & Self::DF != 0,
            total_len,
        })
    }

    /// The congestion codepoint.
    #[inline]
    pub fn ecn(&self) -> Ecn {
        Ecn::from_tos(self.tos)
    }

    /// Takes one from the time to live of the packet and returns what is left; `None`, and
    /// nothing changed, when that would be 0 or the packet is shorter than a header.
    #[inline]
    pub fn decrement_ttl(packet: &mut [u8]) -> Option<u8> {
        let header: &mut [u8; Self::LEN] = packet.first_chunk_mut()?;
        let [.., ttl, protocol, _, _, _, _, _, _, _, _, _, _] = *header;
        let left = ttl.checked_sub(1).filter(|&left| left > 0)?;
        header[8] = left;
        update_checksum(header, [ttl, protocol], [left, protocol]);
        Some(left)
    }

    /// Sets the congestion codepoint of the packet; nothing happens to one shorter than a header.
    #[inline]
    pub fn set_ecn(packet: &mut [u8], ecn: Ecn) {
        let Some(header) = packet.first_chunk_mut::<{ Self::LEN }>() else { return };
        let [version_ihl, tos, ..] = *header;
        header[1] = ecn.in_tos(tos);
        update_checksum(header, [version_ihl, tos], [version_ihl, header[1]]);
    }
}

/// Follows the change of one 16-bit word: `HC' = ~(~HC + ~m + m')` (RFC 1624 section 3, equation 3).
#[inline]
fn update_checksum(header: &mut [u8; Ipv4::LEN], old: [u8; 2], new: [u8; 2]) {
    let checksum = u16::from_be_bytes([header[10], header[11]]);
    let sum = Sum::from(!checksum) + Sum::from(!u16::from_be_bytes(old)) + Sum::from(u16::from_be_bytes(new));
    [header[10], header[11]] = sum.checksum().to_be_bytes();
}
