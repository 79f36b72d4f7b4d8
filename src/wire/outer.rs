//! What goes in front of a pod's packet: a template prepared by control with its partial
//! checksums, copied and fixed up per packet.
//!
//! ```text
//! outer Ethernet | outer IPv4 or IPv6 | UDP | VXLAN | inner Ethernet | inner IP packet ...
//! Ethernet | the pod's IP packet ...                    to a node that is reached without a tunnel
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Ecn, EtherType, Ethernet, Ipv4, Ipv6, Mac, Protocol, Sum, Vni, VxlanHeader, pseudo_v4, pseudo_v6};

/// UDP, VXLAN and inner Ethernet headers, in bytes.
const TUNNEL_LEN: usize = 8 + VxlanHeader::LEN + Ethernet::LEN;
const V4_LEN: usize = Ethernet::LEN + Ipv4::LEN + TUNNEL_LEN;
const V6_LEN: usize = Ethernet::LEN + Ipv6::LEN + TUNNEL_LEN;

/// What the outer headers towards one remote node consist of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterParams {
    /// The uplink's MAC.
    pub src_mac: Mac,
    /// The MAC of the underlay's next hop.
    pub dst_mac: Mac,
    /// Our VTEP address.
    pub local: IpAddr,
    /// The remote VTEP address, of the same family.
    pub remote: IpAddr,
    /// The VXLAN port of the remote node.
    pub port: u16,
    pub vni: Vni,
    /// The outer time to live or hop limit.
    pub ttl: u8,
    /// Our VTEP's MAC.
    pub inner_src: Mac,
    /// The remote VTEP's MAC.
    pub inner_dst: Mac,
    /// Whether to compute the UDP checksum on IPv4; on IPv6 it always is.
    pub udp_checksum: bool,
}

/// What the outer headers take from the packet that they carry.
#[derive(Clone, Copy, Debug)]
pub struct Inner {
    pub ethertype: EtherType,
    /// The inner IP packet in bytes.
    pub l3_len: usize,
    /// The inner packet's codepoint.
    pub ecn: Ecn,
    pub source_port: u16,
    /// The outer IPv4 identification: the outer packet may be fragmented on its way.
    pub ip_id: u16,
    /// The sum over the whole inner IP packet, as it is sent; used if [`OuterTemplate::needs_sum`].
    pub sum: Option<Sum>,
}

/// The headers of [`OuterParams`], or Ethernet's alone, ready but for what [`Inner`] says.
#[derive(Clone, Debug)]
pub struct OuterTemplate(Family);

#[derive(Clone, Debug)]
enum Family {
    V4 {
        headers: [u8; V4_LEN],
        /// Over the IPv4 header.
        ip_sum: Sum,
        /// Over the pseudo header and all that follows the IPv4 header, when a checksum is wanted.
        udp_sum: Option<Sum>,
    },
    V6 {
        headers: [u8; V6_LEN],
        udp_sum: Sum,
    },
    Direct {
        /// The ethertype is left at 0.
        header: [u8; Ethernet::LEN],
        remote: IpAddr,
    },
}

impl OuterTemplate {
    /// The template, or `None` when `local` and `remote` differ in family.
    pub fn new(params: &OuterParams) -> Option<Self> {
        match (params.local, params.remote) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => Some(Self(Family::v4(params, local, remote))),
            (IpAddr::V6(local), IpAddr::V6(remote)) => Some(Self(Family::v6(params, local, remote))),
            _ => None,
        }
    }

    /// No tunnel: to the node at `remote`, whose MAC `dst_mac` is, from the uplink's.
    pub fn direct(src_mac: Mac, dst_mac: Mac, remote: IpAddr) -> Self {
        let header = Ethernet { dst: dst_mac, src: src_mac, ethertype: EtherType(0) }.to_bytes();
        Self(Family::Direct { header, remote })
    }

    /// The bytes that the headers take over an underlay of that address' family.
    pub fn len_over(underlay: IpAddr) -> usize {
        if underlay.is_ipv4() { V4_LEN } else { V6_LEN }
    }

    /// The bytes that the headers take in front of the inner IP packet, inner Ethernet header included.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        match self.0 {
            Family::V4 { .. } => V4_LEN,
            Family::V6 { .. } => V6_LEN,
            Family::Direct { .. } => Ethernet::LEN,
        }
    }

    /// The remote node's underlay address.
    pub fn remote(&self) -> IpAddr {
        match &self.0 {
            Family::V4 { headers, .. } => IpAddr::from(concat::<4>(&[&headers[30..34]])),
            Family::V6 { headers, .. } => IpAddr::from(concat::<16>(&[&headers[38..54]])),
            Family::Direct { remote, .. } => *remote,
        }
    }

    /// Whether [`OuterTemplate::write`] uses [`Inner::sum`].
    #[inline]
    pub fn needs_sum(&self) -> bool {
        !matches!(self.0, Family::V4 { udp_sum: None, .. } | Family::Direct { .. })
    }

    /// Writes the headers to the first [`OuterTemplate::len`] bytes of `out`. False, with `out`
    /// undefined, when `out` is shorter, the packet is too long for its length fields, or a sum is needed and missing.
    #[inline]
    #[must_use]
    pub fn write(&self, out: &mut [u8], inner: &Inner) -> bool {
        match &self.0 {
            Family::V4 { headers, ip_sum, udp_sum } => write_v4(out, headers, *ip_sum, *udp_sum, inner),
            Family::V6 { headers, udp_sum } => write_v6(out, headers, *udp_sum, inner),
            Family::Direct { header, .. } => write_direct(out, header, inner.ethertype),
        }
        .is_some()
    }
}

impl Family {
    fn v4(params: &OuterParams, local: Ipv4Addr, remote: Ipv4Addr) -> Self {
        let [s0, s1, s2, s3] = local.octets();
        let [d0, d1, d2, d3] = remote.octets();
        let udp = Protocol::UDP.0;
        let ip = [0x45, 0, 0, 0, 0, 0, 0, 0, params.ttl, udp, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
        let tunnel = tunnel(params);
        let udp_sum = pseudo_v4(local.to_bits(), remote.to_bits(), Protocol::UDP, 0) + Sum::of_array(&tunnel);
        Self::V4 {
            headers: concat(&[&ethernet(params, EtherType::IPV4), &ip, &tunnel]),
            ip_sum: Sum::of_array(&ip),
            udp_sum: params.udp_checksum.then_some(udp_sum),
        }
    }

    fn v6(params: &OuterParams, local: Ipv6Addr, remote: Ipv6Addr) -> Self {
        let fixed = [0x60, 0, 0, 0, 0, 0, Protocol::UDP.0, params.ttl];
        let tunnel = tunnel(params);
        let ethernet = ethernet(params, EtherType::IPV6);
        Self::V6 {
            headers: concat(&[&ethernet, &fixed, &local.octets(), &remote.octets(), &tunnel]),
            udp_sum: pseudo_v6(local.to_bits(), remote.to_bits(), Protocol::UDP, 0) + Sum::of_array(&tunnel),
        }
    }
}

fn ethernet(params: &OuterParams, ethertype: EtherType) -> [u8; Ethernet::LEN] {
    Ethernet { dst: params.dst_mac, src: params.src_mac, ethertype }.to_bytes()
}

/// UDP, VXLAN and inner Ethernet with source port, length, checksum and inner ethertype left at 0.
fn tunnel(params: &OuterParams) -> [u8; TUNNEL_LEN] {
    let [p0, p1] = params.port.to_be_bytes();
    let inner = Ethernet { dst: params.inner_dst, src: params.inner_src, ethertype: EtherType(0) };
    concat(&[&[0, 0, p0, p1, 0, 0, 0, 0], &VxlanHeader { vni: params.vni }.to_bytes(), &inner.to_bytes()])
}

/// The parts one after the other; they fill an array of N bytes exactly.
fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(parts.iter().copied().flatten()) {
        *to = *from;
    }
    bytes
}

#[inline]
fn write_v4(out: &mut [u8], headers: &[u8; V4_LEN], ip_sum: Sum, udp_sum: Option<Sum>, inner: &Inner) -> Option<()> {
    let total_len = u16::try_from(inner.l3_len.checked_add(Ipv4::LEN + TUNNEL_LEN)?).ok()?;
    let out: &mut [u8; V4_LEN] = out.first_chunk_mut()?;
    *out = *headers;
    let (head, tunnel) = out.split_last_chunk_mut::<TUNNEL_LEN>()?;
    let ip: &mut [u8; Ipv4::LEN] = head.last_chunk_mut()?;

    let ecn = inner.ecn.encapsulate() as u8;
    let sum = ip_sum + Sum::from(u16::from(ecn)) + Sum::from(total_len) + Sum::from(inner.ip_id);
    ip[1] = ecn;
    [ip[2], ip[3]] = total_len.to_be_bytes();
    [ip[4], ip[5]] = inner.ip_id.to_be_bytes();
    [ip[10], ip[11]] = sum.checksum().to_be_bytes();

    let udp_len = total_len.checked_sub(20)?;
    let checksum = match udp_sum {
        None => 0,
        Some(sum) => udp_checksum(sum, udp_len, inner)?,
    };
    fix_tunnel(tunnel, udp_len, checksum, inner);
    Some(())
}

#[inline]
fn write_v6(out: &mut [u8], headers: &[u8; V6_LEN], udp_sum: Sum, inner: &Inner) -> Option<()> {
    let udp_len = u16::try_from(inner.l3_len.checked_add(TUNNEL_LEN)?).ok()?;
    let out: &mut [u8; V6_LEN] = out.first_chunk_mut()?;
    *out = *headers;
    let (head, tunnel) = out.split_last_chunk_mut::<TUNNEL_LEN>()?;
    let ip: &mut [u8; Ipv6::LEN] = head.last_chunk_mut()?;

    ip[1] = (inner.ecn.encapsulate() as u8) << 4;
    [ip[4], ip[5]] = udp_len.to_be_bytes();
    fix_tunnel(tunnel, udp_len, udp_checksum(udp_sum, udp_len, inner)?, inner);
    Some(())
}

#[inline]
fn write_direct(out: &mut [u8], header: &[u8; Ethernet::LEN], ethertype: EtherType) -> Option<()> {
    let head: &mut [u8; Ethernet::LEN] = out.first_chunk_mut()?;
    *head = *header;
    [head[12], head[13]] = ethertype.0.to_be_bytes();
    Some(())
}

/// The checksum over pseudo header, UDP, VXLAN, inner Ethernet and inner packet. The length counts
/// twice: in the pseudo header and in the UDP header.
#[inline]
fn udp_checksum(template: Sum, udp_len: u16, inner: &Inner) -> Option<u16> {
    let len = Sum::from(udp_len);
    let sum = template + len + len + Sum::from(inner.source_port) + Sum::from(inner.ethertype.0) + inner.sum?;
    Some(sum.udp_checksum())
}

#[inline]
fn fix_tunnel(tunnel: &mut [u8; TUNNEL_LEN], udp_len: u16, checksum: u16, inner: &Inner) {
    [tunnel[0], tunnel[1]] = inner.source_port.to_be_bytes();
    [tunnel[4], tunnel[5]] = udp_len.to_be_bytes();
    [tunnel[6], tunnel[7]] = checksum.to_be_bytes();
    [tunnel[28], tunnel[29]] = inner.ethertype.0.to_be_bytes();
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Encapsulated;
    use crate::wire::sample::{self, Sample, encapsulate, outer_params};

    fn any_params() -> impl Strategy<Value = OuterParams> {
        (any::<[bool; 2]>(), 0..=Vni::MAX, any::<u16>()).prop_map(|([v6, udp_checksum], vni, port)| OuterParams {
            vni: Vni::new(vni).unwrap(),
            port,
            ..outer_params(v6, udp_checksum)
        })
    }

    #[test]
    fn families_do_not_mix() {
        let (v4, v6) = (outer_params(false, false), outer_params(true, false));
        assert!(OuterTemplate::new(&OuterParams { local: v6.local, ..v4 }).is_none());
        assert!(OuterTemplate::new(&OuterParams { remote: v4.remote, ..v6 }).is_none());
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let inner = Inner {
            ethertype: EtherType::IPV4,
            l3_len: 0,
            ecn: Ecn::NotEct,
            source_port: 0,
            ip_id: 0,
            sum: Some(Sum::ZERO),
        };
        for (v6, len, most) in [(false, 64, 65535 - 50), (true, 84, 65535 - 30)] {
            let template = OuterTemplate::new(&outer_params(v6, true)).unwrap();
            assert_eq!((template.len(), OuterTemplate::len_over(outer_params(v6, true).local)), (len, len));
            assert!(template.write(&mut vec![0; len], &Inner { l3_len: most, ..inner }));
            assert!(!template.write(&mut vec![0; len], &Inner { l3_len: most + 1, ..inner }));
            assert!(!template.write(&mut vec![0; len], &Inner { l3_len: usize::MAX, ..inner }));
            assert!(!template.write(&mut vec![0; len - 1], &inner));
            assert!(!template.write(&mut vec![0; len], &Inner { sum: None, ..inner }));
        }
    }

    #[test]
    fn without_a_tunnel_there_is_ethernet_alone() {
        let remote = "192.168.1.3".parse().unwrap();
        let template = OuterTemplate::direct(Mac([2; 6]), Mac([4; 6]), remote);
        assert_eq!((template.len(), template.remote(), template.needs_sum()), (Ethernet::LEN, remote, false));
        let mut inner =
            Inner { ethertype: EtherType::IPV6, l3_len: 40, ecn: Ecn::Ect0, source_port: 50000, ip_id: 7, sum: None };
        let mut out = [9; 16];
        assert!(template.write(&mut out, &inner));
        assert_eq!(out, [4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 0x86, 0xdd, 9, 9]);
        inner.ethertype = EtherType::IPV4;
        assert!(template.write(&mut out[..14], &inner) && !template.write(&mut out[..13], &inner));
        assert_eq!(out[12..14], [8, 0]);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
        let template = OuterTemplate::new(&outer_params(true, false)).unwrap();
        let mut out = [0; V6_LEN];
        let mut inner = Inner {
            ethertype: EtherType::IPV4,
            l3_len: 40,
            ecn: Ecn::NotEct,
            source_port: 50000,
            ip_id: 0,
            sum: Some(Sum::ZERO),
        };
        assert!(template.write(&mut out, &inner));
        let checksum = u16::from_be_bytes([out[60], out[61]]);
        inner.sum = Some(Sum::from(checksum));
        assert!(template.write(&mut out, &inner));
        assert_eq!(out[60..62], [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn the_outer_packet_is_what_was_asked_for(params in any_params(), sample in Sample::any(1500)) {
            let (frame, inner) = encapsulate(&params, &sample);
            let no_checksum = params.local.is_ipv4() && !params.udp_checksum;
            let (checksummed, _) = encapsulate(&OuterParams { udp_checksum: true, ..params }, &sample);
            let mut expected = checksummed.clone();
            if no_checksum {
                expected[40..42].fill(0);
            }
            prop_assert_eq!(&frame, &expected);

            let outer = sample::judge(&checksummed[14..]);
            match outer.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    let ip = ip.header();
                    prop_assert_eq!((ip.ttl(), ip.dont_fragment(), ip.identification()), (63, false, sample.id));
                    prop_assert_eq!((ip.dcp().value(), ip.ecn().value()), (0, sample.tos & 3));
                    prop_assert_eq!([ip.source_addr(), ip.destination_addr()].map(IpAddr::from), [params.local, params.remote]);
                }
                NetSlice::Ipv6(ip) => {
                    let ip = ip.header();
                    prop_assert_eq!((ip.hop_limit(), ip.flow_label().value()), (63, 0));
                    prop_assert_eq!(ip.traffic_class(), sample.tos & 3);
                    prop_assert_eq!([ip.source_addr(), ip.destination_addr()].map(IpAddr::from), [params.local, params.remote]);
                }
                NetSlice::Arp(_) => unreachable!(),
            }
            let Some(TransportSlice::Udp(udp)) = outer.transport else { panic!("not UDP") };
            prop_assert_eq!((udp.source_port(), udp.destination_port()), (inner.source_port, params.port));
        }

        #[test]
        fn what_is_encapsulated_is_read_back(params in any_params(), sample in Sample::any(300), padding in 0usize..20) {
            let (mut frame, inner) = encapsulate(&params, &sample);
            let end = frame.len();
            frame.extend(vec![0; padding]);
            let read = Encapsulated::parse(&frame).unwrap();
            let expected = Encapsulated {
                outer_src: params.local,
                outer_dst: params.remote,
                outer_ecn: inner.ecn,
                dst_port: params.port,
                vni: params.vni,
                inner_dst: params.inner_dst,
                inner_src: params.inner_src,
                inner_ethertype: inner.ethertype,
                inner_l3_offset: OuterTemplate::new(&params).unwrap().len(),
                inner_end: end,
            };
            prop_assert_eq!(read, expected);
            prop_assert_eq!(&frame[read.inner_l3_offset..read.inner_end], &sample.build()[..]);
        }
    }
}
