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
    /// Reads a frame from the wire.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, OuterError> {
        let outer = Outer::parse(frame)?;
        let datagram = frame.get(outer.l4_offset..outer.end).ok_or(OuterError::Truncated)?;
        let (&[_, _, p0, p1, l0, l1, c0, c1], rest) = datagram.split_first_chunk().ok_or(OuterError::Truncated)?;
        let udp_len = usize::from(u16::from_be_bytes([l0, l1]));
        if !(UDP_LEN..=datagram.len()).contains(&udp_len) {
            return Err(OuterError::Truncated);
        }
        if outer.checksum_required && [c0, c1] == [0, 0] {
            return Err(OuterError::NotVxlan);
        }
        let payload = rest.get(..udp_len - UDP_LEN).ok_or(OuterError::Truncated)?;
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
}

impl Outer {
    #[inline]
    fn parse(frame: &[u8]) -> Result<Self, OuterError> {
        let (ethernet, packet) = frame.split_first_chunk().ok_or(OuterError::Truncated)?;
        let (outer, protocol) = match Ethernet::from_bytes(ethernet).ethertype {
            EtherType::IPV4 => {
                let ip = Ipv4::parse(packet).map_err(outer_error)?;
                (Self::v4(&ip), ip.protocol)
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(packet).map_err(outer_error)?;
                (Self::v6(&ip), ip.protocol)
            }
            _ => return Err(OuterError::NotVxlan),
        };
        if protocol == Protocol::UDP { Ok(outer) } else { Err(OuterError::NotVxlan) }
    }

    #[inline]
    fn v4(ip: &Ipv4) -> Self {
        Self {
            src: Ipv4Addr::from_bits(ip.src).into(),
            dst: Ipv4Addr::from_bits(ip.dst).into(),
            ecn: ip.ecn(),
            l4_offset: Ethernet::LEN + Ipv4::LEN,
            end: Ethernet::LEN + ip.total_len,
            checksum_required: false,
        }
    }

    #[inline]
    fn v6(ip: &Ipv6) -> Self {
        Self {
            src: Ipv6Addr::from_bits(ip.src).into(),
            dst: Ipv6Addr::from_bits(ip.dst).into(),
            ecn: ip.ecn(),
            l4_offset: Ethernet::LEN + Ipv6::LEN,
            end: Ethernet::LEN + ip.total_len,
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
