use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Ecn, EtherType, Ethernet, IpError, Ipv4, Ipv6, Mac, Protocol, Vni, VxlanHeader};

/// Why a received frame is not a packet of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterError {
    /// It ends inside its headers, or before the lengths in them say.
    Truncated,
    /// It is not a whole UDP datagram in plain IP, or is one that RFC 8200 forbids (IPv6 without checksum).
    NotVxlan,
    /// The VXLAN flags or reserved bits are not those of RFC 7348.
    BadFlags,
}

/// The headers of a VXLAN frame from the wire, read but not judged: whether the addresses, the
/// port, the VNI and the MACs are ours is the caller's to decide.
///
/// The IPv4 header checksum is verified; the outer UDP checksum is not (RFC 7348 section 4.1 leaves
/// that open, and what it covers beyond the inner packet's own checksums is compared with our state).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encapsulated {
    pub outer_src: IpAddr,
    pub outer_dst: IpAddr,
    pub outer_ecn: Ecn,
    pub dst_port: u16,
    pub vni: Vni,
    pub inner_dst: Mac,
    pub inner_src: Mac,
    pub inner_ethertype: EtherType,
    /// Where the inner IP packet starts in the frame.
    pub inner_l3_offset: usize,
    /// Where the UDP datagram ends in the frame: what follows is padding.
    pub inner_end: usize,
}

/// The outer IP header.
struct Outer {
    src: IpAddr,
    dst: IpAddr,
    ecn: Ecn,
    l4_offset: usize,
    end: usize,
    checksum_required: bool,
}

const UDP_LEN: usize = 8;

impl Encapsulated {
    /// Reads a frame from the wire. Inlined, so that what a caller does not look at is not read.
    #[expect(clippy::inline_always, reason = "see `pipeline::decap::Arrival::parse`")]
    #[inline(always)]
    pub fn parse(frame: &[u8]) -> Result<Self, OuterError> {
        let outer = Outer::parse(frame)?;
        let datagram = frame.get(outer.l4_offset..outer.end).ok_or(OuterError::Truncated)?;
        let (&[_, _, p0, p1, l0, l1, c0, c1], rest) = datagram.split_first_chunk().ok_or(OuterError::Truncated)?;
        let udp_len = usize::from(u16::from_be_bytes([l0, l1]));
        let payload_len = udp_len.checked_sub(UDP_LEN).ok_or(OuterError::Truncated)?;
        let payload = rest.get(..payload_len).ok_or(OuterError::Truncated)?;
        if outer.checksum_required && [c0, c1] == [0, 0] {
            return Err(OuterError::NotVxlan);
        }
        let (vxlan, inner) = payload.split_first_chunk().ok_or(OuterError::Truncated)?;
        let VxlanHeader { vni } = VxlanHeader::from_bytes(vxlan).map_err(|_| OuterError::BadFlags)?;
        let ethernet = Ethernet::parse(inner).ok_or(OuterError::Truncated)?;
        Ok(Self {
            outer_src: outer.src,
            outer_dst: outer.dst,
            outer_ecn: outer.ecn,
            dst_port: u16::from_be_bytes([p0, p1]),
            vni,
            inner_dst: ethernet.dst,
            inner_src: ethernet.src,
            inner_ethertype: ethernet.ethertype,
            inner_l3_offset: outer.l4_offset + UDP_LEN + VxlanHeader::LEN + Ethernet::LEN,
            inner_end: outer.l4_offset + udp_len,
        })
    }

    /// Where the outer UDP header starts in the frame.
    pub fn udp_offset(&self) -> usize {
        self.inner_l3_offset - (UDP_LEN + VxlanHeader::LEN + Ethernet::LEN)
    }
}

impl Outer {
    #[expect(clippy::inline_always, reason = "see `Encapsulated::parse`")]
    #[inline(always)]
    fn parse(frame: &[u8]) -> Result<Self, OuterError> {
        let (ethernet, packet) = frame.split_first_chunk().ok_or(OuterError::Truncated)?;
        let (outer, protocol) = match Ethernet::from_bytes(ethernet).ethertype {
            EtherType::IPV4 => {
                let ip = Ipv4::parse(packet).map_err(outer_error)?;
                (Self::v4(ip), ip.protocol())
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(packet).map_err(outer_error)?;
                (Self::v6(ip), ip.protocol())
            }
            _ => return Err(OuterError::NotVxlan),
        };
        if protocol == Protocol::UDP { Ok(outer) } else { Err(OuterError::NotVxlan) }
    }

    #[inline]
    fn v4(ip: Ipv4<'_>) -> Self {
        Self {
            src: Ipv4Addr::from_bits(ip.src()).into(),
            dst: Ipv4Addr::from_bits(ip.dst()).into(),
            ecn: ip.ecn(),
            l4_offset: Ethernet::LEN + Ipv4::LEN,
            end: Ethernet::LEN + ip.total_len(),
            checksum_required: false,
        }
    }

    #[inline]
    fn v6(ip: Ipv6<'_>) -> Self {
        Self {
            src: Ipv6Addr::from_bits(ip.src()).into(),
            dst: Ipv6Addr::from_bits(ip.dst()).into(),
            ecn: ip.ecn(),
            l4_offset: Ethernet::LEN + Ipv6::LEN,
            end: Ethernet::LEN + ip.total_len(),
            checksum_required: true,
        }
    }
}

fn outer_error(error: IpError) -> OuterError {
    match error {
        IpError::Truncated | IpError::BadLength => OuterError::Truncated,
        IpError::BadVersion
        | IpError::BadChecksum
        | IpError::Options
        | IpError::Fragment
        | IpError::ExtensionHeader => OuterError::NotVxlan,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{L4, Sample, encapsulate, outer_params, reference_sum};

    fn frame(v6: bool) -> Vec<u8> {
        let sample = Sample {
            v6: false,
            l4: L4::Udp,
            src: 1,
            dst: 2,
            tos: 0,
            ttl: 64,
            id: 0,
            df: false,
            ports: (1, 2),
            payload: vec![7; 30],
        };
        encapsulate(&outer_params(v6, false), &sample).0
    }

    /// Changes bytes of an IPv4 frame and makes the outer header checksum fit again.
    fn v4(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = frame(false);
        for &(at, value) in changes {
            frame[at] = value;
        }
        frame[24..26].fill(0);
        let checksum = !reference_sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame
    }

    fn v6(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = frame(true);
        for &(at, value) in changes {
            frame[at] = value;
        }
        frame
    }

    #[test]
    fn refuses_what_is_not_plain_vxlan() {
        use OuterError::{BadFlags, NotVxlan, Truncated};
        let table: [(&str, Vec<u8>, OuterError); 17] = [
            ("ARP", v4(&[(13, 0x06)]), NotVxlan),
            ("a VLAN tag", v4(&[(12, 0x81), (13, 0)]), NotVxlan),
            ("IPv4 options", v4(&[(14, 0x46)]), NotVxlan),
            ("an IPv4 fragment", v4(&[(20, 0x20)]), NotVxlan),
            (
                "a bad IPv4 checksum",
                {
                    let mut f = frame(false);
                    f[24] ^= 1;
                    f
                },
                NotVxlan,
            ),
            ("TCP", v4(&[(23, 6)]), NotVxlan),
            ("an IPv6 fragment", v6(&[(20, 44)]), NotVxlan),
            ("TCP over IPv6", v6(&[(20, 6)]), NotVxlan),
            ("IPv6 without UDP checksum", v6(&[(60, 0), (61, 0)]), NotVxlan),
            ("an IPv4 packet longer than the frame", v4(&[(16, 1)]), Truncated),
            ("an IPv6 packet longer than the frame", v6(&[(18, 1)]), Truncated),
            ("a datagram longer than its packet", v4(&[(39, 89)]), Truncated),
            ("a datagram shorter than its header", v4(&[(39, 7)]), Truncated),
            ("a datagram that ends in the VXLAN header", v4(&[(39, 15)]), Truncated),
            ("a datagram that ends in the inner Ethernet header", v4(&[(39, 29)]), Truncated),
            ("no I flag", v4(&[(42, 0)]), BadFlags),
            ("a reserved bit", v6(&[(69, 1)]), BadFlags),
        ];
        for (name, frame, error) in table {
            assert_eq!(Encapsulated::parse(&frame), Err(error), "{name}");
        }
    }

    #[test]
    fn a_datagram_shorter_than_its_packet_ends_the_inner_frame() {
        assert_eq!(Encapsulated::parse(&v4(&[(39, 88)])).unwrap().inner_end, frame(false).len());
        assert_eq!(Encapsulated::parse(&v4(&[(39, 30)])).unwrap().inner_end, 64);
    }

    #[test]
    fn a_frame_cut_anywhere_is_truncated() {
        for frame in [frame(false), frame(true)] {
            for len in 0..frame.len() {
                assert_eq!(Encapsulated::parse(&frame[..len]), Err(OuterError::Truncated), "{len}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_read_or_refused(v6: bool, at: prop::sample::Index, value: u8) {
            let mut frame = frame(v6);
            let at = at.index(frame.len());
            frame[at] = value;
            if let Ok(read) = Encapsulated::parse(&frame) {
                prop_assert!(read.inner_l3_offset <= read.inner_end && read.inner_end <= frame.len());
            }
        }

        #[test]
        fn noise_is_refused(bytes: Vec<u8>) {
            prop_assert!(Encapsulated::parse(&bytes).is_err());
        }
    }
}
