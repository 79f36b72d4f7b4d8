//! The packets of a small cluster. Where a constant has two values, the first is IPv4 and the second IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{PacketBuilder, PacketBuilderStep, ip_number};
use podwire::wire::Mac;

pub const V4: usize = 0;
pub const V6: usize = 1;
pub const FAMILIES: [usize; 2] = [V4, V6];

pub const VTEP: [IpAddr; 2] = [v4(192, 168, 1, 2), v6(0xfd00, 0x192, 2)];
pub const PEER: [IpAddr; 2] = [v4(192, 168, 1, 3), v6(0xfd00, 0x192, 3)];
pub const POD_A: [IpAddr; 2] = [v4(10, 244, 1, 2), v6(0xfd00, 0x244, 2)];
pub const POD_B: [IpAddr; 2] = [v4(10, 244, 1, 3), v6(0xfd00, 0x244, 3)];
/// No pod has it.
pub const NO_POD: [IpAddr; 2] = [v4(10, 244, 1, 99), v6(0xfd00, 0x244, 99)];
pub const REMOTE_POD: [IpAddr; 2] = [v4(10, 244, 2, 2), v6(0xfd00, 0x245, 2)];
pub const REMOTE_RANGE: [&str; 2] = ["10.244.2.0/24", "fd00:245::/64"];

pub const VTEP_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x0a]);
pub const PEER_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x0b]);
pub const POD_A_MAC: Mac = Mac([2, 0, 0, 0, 1, 1]);
pub const POD_B_MAC: Mac = Mac([2, 0, 0, 0, 1, 2]);
pub const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 1, 0xff]);
pub const NIC_MAC: Mac = Mac([2, 0, 0, 0, 2, 1]);
const SWITCH_MAC: Mac = Mac([2, 0, 0, 0, 2, 2]);

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16, h: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, h))
}

pub const ETHERNET: usize = 14;
pub const TTL: u8 = 64;

/// Bytes of a plain IP header.
pub fn ip_header(family: usize) -> usize {
    [20, 40][family]
}

fn ip(macs: [Mac; 2], addresses: [IpAddr; 2]) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(macs[0].0, macs[1].0);
    match addresses {
        [IpAddr::V4(from), IpAddr::V4(to)] => ethernet.ipv4(from.octets(), to.octets(), TTL),
        [IpAddr::V6(from), IpAddr::V6(to)] => ethernet.ipv6(from.octets(), to.octets(), TTL),
        _ => panic!("two families in one packet"),
    }
}

/// Ethernet frames; `macs` and `addresses` are source, then destination.
pub fn udp(macs: [Mac; 2], addresses: [IpAddr; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(macs, addresses).udp(ports[0], ports[1]).write(&mut frame, payload).unwrap();
    frame
}

pub fn tcp(macs: [Mac; 2], addresses: [IpAddr; 2], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(macs, addresses).tcp(40_000, 80, 1, 1000).write(&mut frame, payload).unwrap();
    frame
}

pub fn echo(macs: [Mac; 2], addresses: [IpAddr; 2]) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = ip(macs, addresses);
    match addresses[0] {
        IpAddr::V4(_) => step.icmpv4_echo_request(1, 1).write(&mut frame, b"ping").unwrap(),
        IpAddr::V6(_) => step.icmpv6_echo_request(1, 1).write(&mut frame, b"ping").unwrap(),
    }
    frame
}

pub fn sctp(macs: [Mac; 2], addresses: [IpAddr; 2]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(macs, addresses).write(&mut frame, ip_number::SCTP, &[0; 12]).unwrap();
    frame
}

/// A frame that pod A sends through its gateway.
pub fn from_a(to: IpAddr, payload: usize) -> Vec<u8> {
    let from = if to.is_ipv4() { POD_A[V4] } else { POD_A[V6] };
    udp([POD_A_MAC, GATEWAY_MAC], [from, to], [40_000, 53], &vec![0x55; payload])
}

/// A frame from a remote pod to pod A as the remote node's VXLAN device sends it.
pub fn inner(family: usize, payload: usize) -> Vec<u8> {
    udp([PEER_MAC, VTEP_MAC], [REMOTE_POD[family], POD_A[family]], [53, 40_000], &vec![0x55; payload])
}

/// `inner` on the wire from the peer to us, VNI 1.
pub fn encapsulate(underlay: usize, inner: &[u8]) -> Vec<u8> {
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat();
    udp([SWITCH_MAC, NIC_MAC], [PEER[underlay], VTEP[underlay]], [50_000, 8472], &payload)
}

/// `frame` with `bytes` written at `at`.
pub fn patched(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// `frame` with eight bytes inserted between its IP header and what follows, its length field adjusted: IPv4
/// options, or a destination options header.
pub fn with_options(mut frame: Vec<u8>, family: usize) -> Vec<u8> {
    let end = ETHERNET + ip_header(family);
    let extra = if family == V4 { [1; 8] } else { [17, 0, 1, 4, 0, 0, 0, 0] };
    frame.splice(end..end, extra);
    let length = ETHERNET + [2, 4][family];
    let bytes = u16::from_be_bytes([frame[length], frame[length + 1]]) + 8;
    frame[length..length + 2].copy_from_slice(&bytes.to_be_bytes());
    if family == V4 {
        frame[ETHERNET] = 0x47;
    } else {
        frame[ETHERNET + 6] = 60;
    }
    frame
}

/// `frame` as the first fragment of a packet; IPv6 gets its fragment header.
pub fn fragment(frame: Vec<u8>, family: usize) -> Vec<u8> {
    if family == V4 {
        return patched(frame, ETHERNET + 6, &[0x20, 0]);
    }
    let end = ETHERNET + ip_header(V6);
    let frame = patched(with_options(frame, V6), ETHERNET + 6, &[44]);
    patched(frame, end, &[17, 0, 0, 1, 0, 0, 0, 9])
}

/// The EtherTypes of VLAN tags: 802.1Q and 802.1ad.
pub const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// `frame` with a VLAN tag outside of those that it has.
pub fn tagged(mut frame: Vec<u8>, tag: u16, vid: u16) -> Vec<u8> {
    frame.splice(12..12, [tag.to_be_bytes(), vid.to_be_bytes()].concat());
    frame
}

/// `frame` with another time to live or hop limit; the IPv4 checksum is left wrong.
pub fn with_ttl(frame: Vec<u8>, family: usize, ttl: u8) -> Vec<u8> {
    patched(frame, ETHERNET + [8, 7][family], &[ttl])
}
