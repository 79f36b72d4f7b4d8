use super::{Ecn, IpError, Protocol};

/// An IPv6 header directly followed by TCP, UDP or ICMPv6, checked (RFC 8200 section 3), and read where it lies.
/// Addresses are numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6<'a> {
    /// What comes before the addresses.
    head: &'a [u8; 8],
    src: &'a [u8; 16],
    dst: &'a [u8; 16],
}

impl<'a> Ipv6<'a> {
    /// The header's length in bytes.
    pub const LEN: usize = 40;

    /// Checks the header at the head of `packet`, which may have padding behind it.
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<Self, IpError> {
        let (head, rest) = packet.split_first_chunk().ok_or(IpError::Truncated)?;
        let (src, rest) = rest.split_first_chunk().ok_or(IpError::Truncated)?;
        let ip = Self { head, src, dst: rest.first_chunk().ok_or(IpError::Truncated)? };
        if ip.head[0] >> 4 != 6 {
            return Err(IpError::BadVersion);
        }
        if ip.total_len() > packet.len() {
            return Err(IpError::BadLength);
        }
        if !matches!(ip.protocol(), Protocol::TCP | Protocol::UDP | Protocol::ICMPV6) {
            return Err(IpError::ExtensionHeader);
        }
        Ok(ip)
    }

    #[inline]
    pub fn src(self) -> u128 {
        u128::from_be_bytes(*self.src)
    }

    #[inline]
    pub fn dst(self) -> u128 {
        u128::from_be_bytes(*self.dst)
    }

    #[inline]
    pub fn traffic_class(self) -> u8 {
        traffic_class(self.head[0], self.head[1])
    }

    /// The congestion codepoint.
    #[inline]
    pub fn ecn(self) -> Ecn {
        Ecn::from_tos(self.traffic_class())
    }

    #[inline]
    pub fn flow_label(self) -> u32 {
        u32::from_be_bytes([0, self.head[1] & 0x0f, self.head[2], self.head[3]])
    }

    #[inline]
    pub fn protocol(self) -> Protocol {
        Protocol(self.head[6])
    }

    #[inline]
    pub fn hop_limit(self) -> u8 {
        self.head[7]
    }

    /// Header and payload in bytes: at least [`Ipv6::LEN`], at most the bytes parsed.
    #[inline]
    pub fn total_len(self) -> usize {
        Self::LEN + usize::from(u16::from_be_bytes([self.head[4], self.head[5]]))
    }
}

impl Ipv6<'_> {
    /// Takes one from the hop limit of the packet and returns what is left; `None`, and
    /// nothing changed, when that would be 0 or the packet is shorter than a header.
    #[inline]
    pub fn decrement_hop_limit(packet: &mut [u8]) -> Option<u8> {
        let header: &mut [u8; Ipv6::LEN] = packet.first_chunk_mut()?;
        let left = header[7].checked_sub(1).filter(|&left| left > 0)?;
        header[7] = left;
        Some(left)
    }

    /// Sets the congestion codepoint of the packet; nothing happens to one shorter than a header.
    #[inline]
    pub fn set_ecn(packet: &mut [u8], ecn: Ecn) {
        let Some(header) = packet.first_chunk_mut::<{ Ipv6::LEN }>() else { return };
        let class = ecn.in_tos(traffic_class(header[0], header[1]));
        header[1] = class << 4 | header[1] & 0x0f;
    }

    /// Sets the length of the packet, header included, in bytes; `None`, and nothing changed, when that does not fit the
    /// field or the packet is shorter than a header.
    #[inline]
    pub fn set_total_len(packet: &mut [u8], total_len: usize) -> Option<()> {
        let header: &mut [u8; Ipv6::LEN] = packet.first_chunk_mut()?;
        [header[4], header[5]] = u16::try_from(total_len.checked_sub(Self::LEN)?).ok()?.to_be_bytes();
        Some(())
    }
}

/// The traffic class, which straddles the first two bytes of the header.
#[inline]
fn traffic_class(first: u8, second: u8) -> u8 {
    first << 4 | second >> 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{self, Sample};

    fn plain() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64).udp(1, 2);
        builder.write(&mut packet, b"payload").unwrap();
        packet
    }

    fn with(at: usize, value: u8) -> Vec<u8> {
        let mut packet = plain();
        packet[at] = value;
        packet
    }

    #[test]
    fn refuses_what_is_not_plain() {
        let table: [(&str, Vec<u8>, IpError); 6] = [
            ("39 bytes", plain()[..39].to_vec(), IpError::Truncated),
            ("version 4", with(0, 0x40), IpError::BadVersion),
            ("payload length beyond the bytes", with(5, 16), IpError::BadLength),
            ("hop-by-hop options", with(6, 0), IpError::ExtensionHeader),
            ("a fragment", with(6, 44), IpError::ExtensionHeader),
            ("no next header", with(6, 59), IpError::ExtensionHeader),
        ];
        for (name, packet, error) in table {
            assert_eq!(Ipv6::parse(&packet), Err(error), "{name}");
        }
    }

    #[test]
    fn a_packet_is_not_sent_on_with_hop_limit_zero() {
        for hop_limit in [0, 1] {
            let mut packet = with(7, hop_limit);
            assert_eq!(Ipv6::decrement_hop_limit(&mut packet), None);
            assert_eq!(packet, with(7, hop_limit));
        }
        assert_eq!(Ipv6::decrement_hop_limit(&mut [0x60; 39]), None);
    }

    proptest! {
        #[test]
        fn reads_what_was_built(sample in Sample::any(100)) {
            let packet = Sample { v6: true, ..sample.clone() }.build();
            let ip = Ipv6::parse(&packet).unwrap();
            prop_assert_eq!((ip.src(), ip.dst()), (sample.src, sample.dst));
            prop_assert_eq!((ip.traffic_class(), ip.flow_label()), (sample.tos, sample.flow_label()));
            prop_assert_eq!((ip.hop_limit(), ip.total_len()), (sample.ttl, packet.len()));
            for len in 0..packet.len() {
                prop_assert!(Ipv6::parse(&packet[..len]).is_err(), "{len} of {}", packet.len());
            }
        }

        #[test]
        fn only_the_hop_limit_and_the_codepoint_change(sample in Sample::any(20), tos: u8) {
            let mut packet = Sample { v6: true, ttl: sample.ttl.max(2), ..sample }.build();
            let old = packet.clone();
            let before = Ipv6::parse(&old).unwrap();
            Ipv6::set_ecn(&mut packet, Ecn::from_tos(tos));
            prop_assert_eq!(Ipv6::decrement_hop_limit(&mut packet), Some(before.hop_limit() - 1));
            sample::judge(&packet);
            let after = Ipv6::parse(&packet).unwrap();
            let expected = (before.traffic_class() & !3 | tos & 3, before.hop_limit() - 1);
            prop_assert_eq!((after.traffic_class(), after.hop_limit()), expected);
            prop_assert_eq!(after.flow_label(), before.flow_label());
            prop_assert_eq!(&packet[8..], &old[8..]);
        }

        #[test]
        fn noise_is_parsed_or_refused(mut bytes: Vec<u8>, tos: u8) {
            if let Ok(ip) = Ipv6::parse(&bytes) {
                prop_assert!((40..=bytes.len()).contains(&ip.total_len()));
            }
            let _ = Ipv6::decrement_hop_limit(&mut bytes);
            Ipv6::set_ecn(&mut bytes, Ecn::from_tos(tos));
        }
    }
}
