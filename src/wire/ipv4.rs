use super::{Ecn, IpError, Protocol, Sum};

/// An IPv4 header without options of a whole packet, checked (RFC 791 section 3.1), and read where it lies: to copy its
/// fields took more instructions than to check them. Addresses are numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4<'a>(&'a [u8; Ipv4::LEN]);

impl<'a> Ipv4<'a> {
    /// The header's length in bytes.
    pub const LEN: usize = 20;
    const DF: u16 = 0x4000;
    const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;

    /// Checks the header at the head of `packet`, which may have padding behind it.
    #[inline]
    pub fn parse(packet: &'a [u8]) -> Result<Self, IpError> {
        let ip = Self(packet.first_chunk().ok_or(IpError::Truncated)?);
        let [version_ihl, ..] = *ip.0;
        if version_ihl != 0x45 {
            return Err(if version_ihl >> 4 != 4 {
                IpError::BadVersion
            } else if version_ihl & 0xf < 5 {
                IpError::BadLength
            } else {
                IpError::Options
            });
        }
        if !(Self::LEN..=packet.len()).contains(&ip.total_len()) {
            return Err(IpError::BadLength);
        }
        if !Sum::of_array(ip.0).is_valid() {
            return Err(IpError::BadChecksum);
        }
        if ip.fragment() & Self::MORE_FRAGMENTS_OR_OFFSET != 0 {
            return Err(IpError::Fragment);
        }
        Ok(ip)
    }

    #[inline]
    pub fn src(self) -> u32 {
        let [.., s0, s1, s2, s3, _, _, _, _] = *self.0;
        u32::from_be_bytes([s0, s1, s2, s3])
    }

    #[inline]
    pub fn dst(self) -> u32 {
        let [.., d0, d1, d2, d3] = *self.0;
        u32::from_be_bytes([d0, d1, d2, d3])
    }

    #[inline]
    pub fn tos(self) -> u8 {
        self.0[1]
    }

    /// The congestion codepoint.
    #[inline]
    pub fn ecn(self) -> Ecn {
        Ecn::from_tos(self.tos())
    }

    #[inline]
    pub fn ttl(self) -> u8 {
        self.0[8]
    }

    #[inline]
    pub fn protocol(self) -> Protocol {
        Protocol(self.0[9])
    }

    #[inline]
    pub fn id(self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }

    /// Don't fragment.
    #[inline]
    pub fn df(self) -> bool {
        self.fragment() & Self::DF != 0
    }

    /// Header and payload in bytes: at least [`Ipv4::LEN`], at most the bytes parsed.
    #[inline]
    pub fn total_len(self) -> usize {
        u16::from_be_bytes([self.0[2], self.0[3]]).into()
    }

    /// The flags and the fragment offset.
    #[inline]
    fn fragment(self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }
}

impl Ipv4<'_> {
    /// Takes one from the time to live of the packet and returns what is left; `None`, and
    /// nothing changed, when that would be 0 or the packet is shorter than a header.
    #[inline]
    pub fn decrement_ttl(packet: &mut [u8]) -> Option<u8> {
        let header: &mut [u8; Ipv4::LEN] = packet.first_chunk_mut()?;
        let [.., ttl, protocol, _, _, _, _, _, _, _, _, _, _] = *header;
        let left = ttl.checked_sub(1).filter(|&left| left > 0)?;
        header[8] = left;
        update_checksum(header, [ttl, protocol], [left, protocol]);
        Some(left)
    }

    /// Sets the congestion codepoint of the packet; nothing happens to one shorter than a header.
    #[inline]
    pub fn set_ecn(packet: &mut [u8], ecn: Ecn) {
        let Some(header) = packet.first_chunk_mut::<{ Ipv4::LEN }>() else { return };
        let [version_ihl, tos, ..] = *header;
        header[1] = ecn.in_tos(tos);
        update_checksum(header, [version_ihl, tos], [version_ihl, header[1]]);
    }

    /// Sets the total length of the packet, in bytes; `None`, and nothing changed, when that does not fit the field or
    /// the packet is shorter than a header.
    #[inline]
    pub fn set_total_len(packet: &mut [u8], total_len: usize) -> Option<()> {
        let header: &mut [u8; Ipv4::LEN] = packet.first_chunk_mut()?;
        let old = [header[2], header[3]];
        [header[2], header[3]] = u16::try_from(total_len).ok()?.to_be_bytes();
        update_checksum(header, old, [header[2], header[3]]);
        Some(())
    }
}

/// Follows the change of one 16-bit word: `HC' = ~(~HC + ~m + m')` (RFC 1624 section 3, equation 3).
#[inline]
fn update_checksum(header: &mut [u8; Ipv4::LEN], old: [u8; 2], new: [u8; 2]) {
    let checksum = u16::from_be_bytes([header[10], header[11]]);
    let sum = Sum::from(!checksum) + Sum::from(!u16::from_be_bytes(old)) + Sum::from(u16::from_be_bytes(new));
    [header[10], header[11]] = sum.checksum().to_be_bytes();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{self, Sample};

    fn plain() -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 244, 1, 2], [10, 244, 2, 3], 64).udp(1, 2);
        builder.write(&mut packet, b"payload").unwrap();
        packet
    }

    /// Changes a byte and makes the header checksum fit again.
    fn with(at: usize, value: u8) -> Vec<u8> {
        let mut packet = plain();
        packet[at] = value;
        packet[10..12].fill(0);
        let checksum = !sample::reference_sum(&packet[..20]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    #[test]
    fn refuses_what_is_not_plain() {
        let table: [(&str, Vec<u8>, IpError); 9] = [
            ("19 bytes", plain()[..19].to_vec(), IpError::Truncated),
            ("version 6", with(0, 0x65), IpError::BadVersion),
            ("a header of 16 bytes", with(0, 0x44), IpError::BadLength),
            ("options", with(0, 0x46), IpError::Options),
            ("total length below a header", with(3, 19), IpError::BadLength),
            ("total length beyond the bytes", with(3, 36), IpError::BadLength),
            ("more fragments", with(6, 0x20), IpError::Fragment),
            ("a fragment offset", with(7, 1), IpError::Fragment),
            (
                "a wrong checksum",
                {
                    let mut p = plain();
                    p[8] ^= 1;
                    p
                },
                IpError::BadChecksum,
            ),
        ];
        for (name, packet, error) in table {
            assert_eq!(Ipv4::parse(&packet), Err(error), "{name}");
        }
    }

    #[test]
    fn padding_is_not_part_of_the_packet() {
        let mut packet = plain();
        packet.extend([0; 11]);
        assert_eq!(Ipv4::parse(&packet).unwrap().total_len(), 35);
    }

    #[test]
    fn a_packet_is_not_sent_on_with_ttl_zero() {
        for ttl in [0, 1] {
            let mut packet = with(8, ttl);
            let before = packet.clone();
            assert_eq!(Ipv4::decrement_ttl(&mut packet), None);
            assert_eq!(packet, before);
        }
        assert_eq!(Ipv4::decrement_ttl(&mut [0x45; 19]), None);
    }

    proptest! {
        #[test]
        fn reads_what_was_built(sample in Sample::any(100)) {
            let packet = Sample { v6: false, ..sample.clone() }.build();
            let ip = Ipv4::parse(&packet).unwrap();
            let (src, dst) = sample.v4_addresses();
            prop_assert_eq!((ip.src(), ip.dst()), (src.to_bits(), dst.to_bits()));
            prop_assert_eq!((ip.tos(), ip.ttl(), ip.id(), ip.df()), (sample.tos, sample.ttl, sample.id, sample.df));
            prop_assert_eq!(ip.total_len(), packet.len());
            for len in 0..packet.len() {
                prop_assert!(Ipv4::parse(&packet[..len]).is_err(), "{len} of {}", packet.len());
            }
        }

        #[test]
        fn the_checksum_follows_ttl_and_ecn(sample in Sample::any(20), tos: u8) {
            let mut packet = Sample { v6: false, ttl: sample.ttl.max(2), ..sample }.build();
            let before = packet.clone();
            Ipv4::set_ecn(&mut packet, Ecn::from_tos(tos));
            sample::judge(&packet);
            prop_assert_eq!(packet[1], before[1] & !3 | tos & 3);
            prop_assert_eq!(Ipv4::decrement_ttl(&mut packet), Some(before[8] - 1));
            sample::judge(&packet);
            prop_assert_eq!(packet[8], before[8] - 1);
        }

        #[test]
        fn noise_is_parsed_or_refused(mut bytes: Vec<u8>, tos: u8) {
            if let Ok(ip) = Ipv4::parse(&bytes) {
                prop_assert!((20..=bytes.len()).contains(&ip.total_len()));
            }
            let _ = Ipv4::decrement_ttl(&mut bytes);
            Ipv4::set_ecn(&mut bytes, Ecn::from_tos(tos));
        }
    }

    /// Every value of the changed words against every checksum they can meet, 0 and 0xffff included.
    #[test]
    fn the_incremental_checksum_equals_a_new_one_for_every_id_and_ttl() {
        for id in 0..=u16::MAX {
            let mut header = [0x45, 0, 0, 20, 0, 0, 0, 0, 0, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            [header[4], header[5]] = id.to_be_bytes();
            header[8] = id.to_le_bytes()[0].max(2);
            let checksum = !sample::reference_sum(&header);
            [header[10], header[11]] = checksum.to_be_bytes();
            Ipv4::decrement_ttl(&mut header).unwrap();
            Ipv4::set_ecn(&mut header, Ecn::Ce);
            let kept = std::mem::replace(&mut header[10], 0);
            let kept = u16::from_be_bytes([kept, std::mem::replace(&mut header[11], 0)]);
            assert_eq!(kept, !sample::reference_sum(&header), "id {id}");
        }
    }
}
