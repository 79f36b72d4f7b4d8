//! What fuzz targets share: packets mended so that they get past a checksum, and judged by etherparse, which shares no
//! code with podwire.

use etherparse::checksum::Sum16BitWords;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use podwire::offload::VirtioNetHdr;

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Where a packet's TCP or UDP header starts in its frame.
const L4_V4: u16 = 34;
const L4_V6: u16 = 54;

/// The sum of 16-bit words, as a checksum field holds it (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_be()
}

/// Makes the header checksum of an IPv4 packet without options right, and its total length that of the bytes where it
/// would be more. Other bytes stay as they are: a fuzzer does not guess a checksum.
pub fn mend(packet: &mut [u8]) {
    let len = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    let Some(header) = packet.first_chunk_mut::<20>().filter(|header| header[0] == 0x45) else { return };
    let total = u16::from_be_bytes([header[2], header[3]]).min(len);
    [header[2], header[3]] = total.to_be_bytes();
    [header[10], header[11]] = [0, 0];
    [header[10], header[11]] = checksum(header).to_be_bytes();
}

/// Makes the checksum request of a virtio header that of the frame's TCP or UDP checksum, and its segmentation type, if
/// it has one, that of the packet.
pub fn aim(hdr: &mut VirtioNetHdr, frame: &[u8]) {
    let (is_v6, l4) = match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => (false, L4_V4),
        Some([0x86, 0xdd]) => (true, L4_V6),
        _ => return,
    };
    let protocol = frame.get(if is_v6 { ETHERNET + 6 } else { ETHERNET + 9 });
    let (field, gso) = match protocol {
        Some(6) => (16, if is_v6 { VirtioNetHdr::GSO_TCPV6 } else { VirtioNetHdr::GSO_TCPV4 }),
        Some(17) => (6, VirtioNetHdr::GSO_UDP_L4),
        _ => return,
    };
    hdr.flags |= VirtioNetHdr::NEEDS_CSUM;
    (hdr.csum_start, hdr.csum_offset) = (l4, field);
    if hdr.is_gso() {
        let ecn = if gso == VirtioNetHdr::GSO_UDP_L4 { 0 } else { hdr.gso_type & VirtioNetHdr::GSO_ECN };
        hdr.gso_type = gso | ecn;
    }
}

/// How an IP packet's TCP, UDP or ICMP checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    Right,
    Wrong,
    /// A UDP datagram without one, a protocol without one, or a header that is none.
    None,
}

/// Looks at the checksum behind the IP header of a packet. Zero and all ones mean the same to it.
pub fn l4_checksum(packet: &[u8]) -> Sums {
    let Ok(SlicedPacket { net: Some(net), transport: Some(transport), .. }) = SlicedPacket::from_ip(packet) else {
        return Sums::None;
    };
    let wanted = match (net, &transport) {
        (_, TransportSlice::Udp(udp)) if udp.checksum() == 0 => return Sums::None,
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).ok()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).ok()
        }
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()).ok()
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()).ok()
        }
        (NetSlice::Ipv4(_), TransportSlice::Icmpv4(icmp)) => {
            return if checksum(icmp.slice()) == 0 { Sums::Right } else { Sums::Wrong };
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let is_right = icmp.is_checksum_valid(ip.header().source(), ip.header().destination());
            return if is_right { Sums::Right } else { Sums::Wrong };
        }
        _ => return Sums::None,
    };
    let found = match transport {
        TransportSlice::Udp(udp) => udp.checksum(),
        TransportSlice::Tcp(tcp) => tcp.checksum(),
        _ => return Sums::None,
    };
    match wanted {
        Some(wanted) if wanted % 0xffff == found % 0xffff => Sums::Right,
        _ => Sums::Wrong,
    }
}

/// Panics unless an IP packet fills its bytes and its IPv4 header checksum is right.
#[track_caller]
pub fn assert_whole(packet: &[u8]) {
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let header = etherparse::Ipv4HeaderSlice::from_slice(packet).expect("an IPv4 header");
            assert_eq!(usize::from(header.total_len()), packet.len(), "IPv4 total length");
            assert_eq!(checksum(header.slice()), 0, "IPv4 header checksum");
        }
        Some(6) => {
            let header = etherparse::Ipv6HeaderSlice::from_slice(packet).expect("an IPv6 header");
            assert_eq!(usize::from(header.payload_length()) + 40, packet.len(), "IPv6 payload length");
        }
        _ => panic!("no IP packet: {packet:02x?}"),
    }
}
