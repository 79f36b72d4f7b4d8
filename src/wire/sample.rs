//! IP packets for tests, built and judged by etherparse, which shares no code with this crate.

use std::net::Ipv4Addr;

use etherparse::{
    IpFragOffset, IpHeaders, Ipv4Header, Ipv6FlowLabel, Ipv6Header, NetSlice, PacketBuilder, PacketBuilderStep,
    SlicedPacket, TcpHeader, TransportSlice,
};
use proptest::prelude::*;

use super::{Ecn, Entropy, EtherType, Ethernet, Inner, Mac, OuterParams, OuterTemplate, Vni, inner_sum};

/// A valid IP packet to build.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub v6: bool,
    pub l4: L4,
    pub src: u128,
    pub dst: u128,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub df: bool,
    pub ports: (u16, u16),
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) enum L4 {
    /// The low byte of the flags and the options, padded to a multiple of four.
    Tcp {
        sequence: u32,
        flags: u8,
        options: Vec<u8>,
    },
    Udp,
    Icmp,
}

impl Sample {
    /// Any packet with a payload of up to `max_payload` bytes.
    pub fn any(max_payload: usize) -> impl Strategy<Value = Self> {
        let l4 = prop_oneof![Self::any_tcp(), Just(L4::Udp), Just(L4::Icmp)];
        Self::carrying(l4, max_payload)
    }

    pub fn any_tcp() -> impl Strategy<Value = L4> {
        let options = proptest::collection::vec(any::<u8>(), 0..=40);
        (any::<u32>(), any::<u8>(), options).prop_map(|(sequence, flags, options)| L4::Tcp { sequence, flags, options })
    }

    pub fn carrying(l4: impl Strategy<Value = L4>, max_payload: usize) -> impl Strategy<Value = Self> {
        let payload = (0..=max_payload, any::<u64>()).prop_map(|(len, seed)| noise(len, seed));
        let ip = (any::<bool>(), any::<u128>(), any::<u128>(), any::<u8>(), 1u8.., any::<u16>(), any::<bool>());
        (l4, ip, any::<(u16, u16)>(), payload).prop_map(|(l4, (v6, src, dst, tos, ttl, id, df), ports, payload)| Self {
            v6,
            l4,
            src,
            dst,
            tos,
            ttl,
            id,
            df,
            ports,
            payload,
        })
    }

    /// The packet, complete with all checksums.
    pub fn build(&self) -> Vec<u8> {
        let step = PacketBuilder::ip(if self.v6 { self.ipv6() } else { self.ipv4() });
        let mut packet = Vec::new();
        self.write(step, &mut packet);
        packet
    }

    /// The packet in a pod's frame, its TCP or UDP checksum left to the device; with it where that checksum
    /// starts in the frame and the offset of its field.
    pub fn build_partial(&self) -> (Vec<u8>, u16, u16) {
        let mut packet = self.build();
        let (ethertype, l4_offset) = if self.v6 { (EtherType::IPV6, 40) } else { (EtherType::IPV4, 20) };
        let (protocol, offset) = if matches!(self.l4, L4::Udp) { (17, 6) } else { (6, 16) };
        let addresses = if self.v6 { &packet[8..40] } else { &packet[12..20] };
        let l4_len = u32::try_from(packet.len() - l4_offset).unwrap().to_be_bytes();
        let pseudo = reference_sum(&[addresses, &[0, protocol], &l4_len].concat());
        packet[l4_offset + offset..][..2].copy_from_slice(&pseudo.to_be_bytes());

        let ethernet = Ethernet { dst: Mac([2, 0, 0, 0, 0, 5]), src: Mac([2, 0, 0, 0, 0, 6]), ethertype };
        let frame = [&ethernet.to_bytes()[..], &packet].concat();
        (frame, u16::try_from(14 + l4_offset).unwrap(), u16::try_from(offset).unwrap())
    }

    fn write(&self, step: PacketBuilderStep<IpHeaders>, packet: &mut Vec<u8>) {
        let (src_port, dst_port) = self.ports;
        match &self.l4 {
            L4::Tcp { sequence, flags, options } => {
                let mut tcp = TcpHeader::new(src_port, dst_port, *sequence, 0xfff0);
                let bit = |n: u8| flags >> n & 1 == 1;
                (tcp.fin, tcp.syn, tcp.rst, tcp.psh) = (bit(0), bit(1), bit(2), bit(3));
                (tcp.ack, tcp.urg, tcp.ece, tcp.cwr) = (bit(4), bit(5), bit(6), bit(7));
                tcp.set_options_raw(options).unwrap();
                step.tcp_header(tcp).write(packet, &self.payload).unwrap();
            }
            L4::Udp => step.udp(src_port, dst_port).write(packet, &self.payload).unwrap(),
            L4::Icmp if self.v6 => step.icmpv6_echo_request(src_port, dst_port).write(packet, &self.payload).unwrap(),
            L4::Icmp => step.icmpv4_echo_request(src_port, dst_port).write(packet, &self.payload).unwrap(),
        }
    }

    pub fn v4_addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        let low = |address: u128| Ipv4Addr::from_bits((address & 0xffff_ffff) as u32);
        (low(self.src), low(self.dst))
    }

    fn ipv4(&self) -> IpHeaders {
        let (src, dst) = self.v4_addresses();
        let header = Ipv4Header {
            dscp: (self.tos >> 2).try_into().unwrap(),
            ecn: (self.tos & 3).try_into().unwrap(),
            identification: self.id,
            dont_fragment: self.df,
            more_fragments: false,
            fragment_offset: IpFragOffset::ZERO,
            time_to_live: self.ttl,
            source: src.octets(),
            destination: dst.octets(),
            ..Ipv4Header::default()
        };
        IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    }

    pub fn flow_label(&self) -> u32 {
        u32::from(self.id) << 4
    }

    fn ipv6(&self) -> IpHeaders {
        let header = Ipv6Header {
            traffic_class: self.tos,
            flow_label: Ipv6FlowLabel::try_new(self.flow_label()).unwrap(),
            hop_limit: self.ttl,
            source: self.src.to_be_bytes(),
            destination: self.dst.to_be_bytes(),
            ..Ipv6Header::default()
        };
        IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
    }
}

/// Outer headers over an IPv6 or IPv4 underlay.
pub(crate) fn outer_params(v6: bool, udp_checksum: bool) -> OuterParams {
    let (local, remote) = if v6 { ("fd00:1::2", "fd00:1::3") } else { ("192.168.1.2", "192.168.1.3") };
    OuterParams {
        src_mac: Mac([2, 0, 0, 0, 0, 1]),
        dst_mac: Mac([2, 0, 0, 0, 0, 2]),
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        port: 8472,
        vni: Vni::new(0x0a_0b0c).unwrap(),
        ttl: 63,
        inner_src: Mac([2, 0, 0, 0, 0, 3]),
        inner_dst: Mac([2, 0, 0, 0, 0, 4]),
        udp_checksum,
    }
}

/// The sample behind the headers of `params`, and what the headers took from it.
pub(crate) fn encapsulate(params: &OuterParams, sample: &Sample) -> (Vec<u8>, Inner) {
    let (template, packet) = (OuterTemplate::new(params).unwrap(), sample.build());
    let inner = Inner {
        ethertype: if sample.v6 { EtherType::IPV6 } else { EtherType::IPV4 },
        l3_len: packet.len(),
        ecn: Ecn::from_tos(sample.tos),
        source_port: Entropy::Full.port(sample.id.into()),
        ip_id: sample.id,
        sum: template.needs_sum().then(|| inner_sum(&packet)),
    };
    let mut frame = vec![0xaa; template.len()];
    frame.extend(packet);
    assert!(template.write(&mut frame, &inner));
    (frame, inner)
}

/// `len` bytes that look random and depend on `seed`.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The sum of 16-bit words, one by one (RFC 1071 section 1).
pub(crate) fn reference_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (sum & 0xffff) as u16
}

/// Parses an IP packet, asserts that every length and checksum in it is right, and returns what
/// etherparse saw.
pub(crate) fn judge(packet: &[u8]) -> SlicedPacket<'_> {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    match (sliced.net.as_ref().unwrap(), sliced.transport.as_ref().unwrap()) {
        (NetSlice::Ipv4(ip), l4) => {
            let header = ip.header();
            assert_eq!(usize::from(header.total_len()), packet.len(), "IPv4 total length");
            assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum(), "IPv4 header checksum");
            judge_v4(l4, header.source(), header.destination());
        }
        (NetSlice::Ipv6(ip), l4) => {
            let header = ip.header();
            assert_eq!(usize::from(header.payload_length()) + 40, packet.len(), "IPv6 payload length");
            judge_v6(l4, header.source(), header.destination());
        }
        (NetSlice::Arp(_), _) => unreachable!("an IP packet"),
    }
    sliced
}

/// TCP may send a checksum of 0 as 0xffff, UDP must.
fn judge_tcp(checksum: u16, wanted: u16) {
    assert_eq!(checksum % 0xffff, wanted % 0xffff, "TCP");
}

fn judge_v4(l4: &TransportSlice<'_>, src: [u8; 4], dst: [u8; 4]) {
    match l4 {
        TransportSlice::Tcp(tcp) => judge_tcp(tcp.checksum(), tcp.calc_checksum_ipv4(src, dst).unwrap()),
        TransportSlice::Udp(udp) => {
            let wanted = udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), wanted, "UDP");
        }
        TransportSlice::Icmpv4(icmp) => assert_eq!(reference_sum(icmp.slice()), 0xffff, "ICMP"),
        other => panic!("unexpected {other:?}"),
    }
}

fn judge_v6(l4: &TransportSlice<'_>, src: [u8; 16], dst: [u8; 16]) {
    match l4 {
        TransportSlice::Tcp(tcp) => judge_tcp(tcp.checksum(), tcp.calc_checksum_ipv6(src, dst).unwrap()),
        TransportSlice::Udp(udp) => {
            let wanted = udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), wanted, "UDP");
        }
        TransportSlice::Icmpv6(icmp) => assert!(icmp.is_checksum_valid(src, dst), "ICMPv6"),
        other => panic!("unexpected {other:?}"),
    }
}
