use super::{Ecn, IpError, Protocol};

/// An IPv6 header directly followed by TCP, UDP or ICMPv6, checked (RFC 8200 section 3).
/// Addresses are numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    pub src: u128,
    pub dst: u128,
    pub traffic_class: u8,
    pub flow_label: u32,
    pub hop_limit: u8,
    pub protocol: Protocol,
    /// Header and payload in bytes: at least [`Ipv6::LEN`], at most the bytes parsed.
    pub total_len: usize,
}

impl Ipv6 {
    /// The header's length in bytes.
    pub const LEN: usize = 40;

    /// Reads the header at the head of `packet`, which may have padding behind it.
    #[inline]
    pub fn parse(packet: &[u8]) -> Result<Self, IpError> {
        let (&[v0, v1, v2, v3, l0, l1, next, hop_limit], rest) =
            packet.split_first_chunk().ok_or(IpError::Truncated)?;
        let (src, rest) = rest.split_first_chunk().ok_or(IpError::Truncated)?;
        let dst = rest.first_chunk().ok_or(IpError::Truncated)?;
        let word = u32::from_be_bytes([v0, v1, v2, v3]);
        if word >> 28 != 6 {
            return Err(IpError::BadVersion);
        }
        let total_len = Self::LEN + usize::from(u16::from_be_bytes([l0, l1]));
        if total_len > packet.len() {
            return Err(IpError::BadLength);
        }
        let protocol = Protocol(next);
        if !matches!(protocol, Protocol::TCP | Protocol::UDP | Protocol::ICMPV6) {
            return Err(IpError::ExtensionHeader);
        }
        Ok(Self {
            src: u128::from_be_bytes(*src),
            dst: u128::from_be_bytes(*dst),
            traffic_class: traffic_class(v0, v1),
            flow_label: word & 0x000f_ffff,
            hop_limit,
            protocol,
            total_len,
        })
    }

    /// The congestion codepoint.
    #[inline]
    pub fn ecn(&self) -> Ecn {
        Ecn::from_tos(self.traffic_class)
    }

    /// Takes one from the hop limit of the packet and returns what is left; `None`, and
    /// nothing changed, when that would be 0 or the packet is shorter than a header.
    #[inline]
    pub fn decrement_hop_limit(packet: &mut [u8]) -> Option<u8> {
        let header: &mut [u8; Self::LEN] = packet.first_chunk_mut()?;
        let left = header[7].checked_sub(1).filter(|&left| left > 0)?;
        header[7] = left;
        Some(left)
    }

    /// Sets the congestion codepoint of the packet; nothing happens to one shorter than a header.
    #[inline]
    pub fn set_ecn(packet: &mut [u8], ecn: Ecn) {
        let Some(header) = packet.first_chunk_mut::<{ Self::LEN }>() else { return };
        let class = ecn.in_tos(traffic_class(header[0], header[1]));
        header[1] = class << 4 | header[1] & 0x0f;
    }
}

/// The traffic class, which straddles the first two bytes of the header.
#[inline]
fn traffic_class(first: u8, second: u8) -> u8 {
    first << 4 | second >> 4
}
