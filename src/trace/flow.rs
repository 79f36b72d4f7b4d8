use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{EtherType, Ethernet, Ipv4, Ipv6, Protocol, VxlanHeader};

const UDP_LEN: usize = 8;

/// Whose packet a frame is, as far as its bytes tell: nothing is checked but that they are there, since the packets that
/// nobody wants are traced too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source and destination of the tunnel that carries it, if one does.
    pub outer: Option<(IpAddr, IpAddr)>,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    /// Source and destination port; none in a later fragment and behind IPv6 extension headers.
    pub ports: Option<(u16, u16)>,
}

impl Flow {
    /// Reads an Ethernet frame; one to the UDP port `vxlan_port` for the frame in it. `None`: no IP header is there.
    pub fn read(frame: &[u8], vxlan_port: u16) -> Option<Self> {
        let (outer, l4) = Self::plain(frame)?;
        let is_tunnel = outer.protocol == Protocol::UDP && outer.ports.is_some_and(|(_, to)| to == vxlan_port);
        let inner = l4.get(UDP_LEN + VxlanHeader::LEN..).filter(|_| is_tunnel).and_then(Self::plain);
        Some(match inner {
            Some((inner, _)) => Self { outer: Some((outer.source, outer.destination)), ..inner },
            None => outer,
        })
    }

    /// All its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let outer = self.outer.into_iter().flat_map(|(source, destination)| [source, destination]);
        [self.source, self.destination].into_iter().chain(outer)
    }

    /// The frame's own packet, and what follows its IP header.
    fn plain(frame: &[u8]) -> Option<(Self, &[u8])> {
        let ethernet = Ethernet::parse(frame)?;
        let packet = frame.get(Ethernet::LEN..)?;
        match ethernet.ethertype {
            EtherType::IPV4 => Self::v4(packet),
            EtherType::IPV6 => Self::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &[u8]) -> Option<(Self, &[u8])> {
        let [version_ihl, _, _, _, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *packet.first_chunk::<{ Ipv4::LEN }>()?;
        let (protocol, offset) = (Protocol(protocol), u16::from_be_bytes([f0, f1]) & 0x1fff);
        let l4 = packet.get(usize::from(version_ihl & 0xf) * 4..).unwrap_or_default();
        let flow = Self {
            outer: None,
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            protocol,
            ports: ports(protocol, l4).filter(|_| offset == 0),
        };
        Some((flow, l4))
    }

    fn v6(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (header, l4) = packet.split_first_chunk::<{ Ipv6::LEN }>()?;
        let (fixed, addresses) = header.split_first_chunk::<8>()?;
        let (source, destination) = addresses.split_first_chunk::<16>()?;
        let protocol = Protocol(fixed[6]);
        let flow = Self {
            outer: None,
            source: Ipv6Addr::from(*source).into(),
            destination: Ipv6Addr::from(*destination.first_chunk::<16>()?).into(),
            protocol,
            ports: ports(protocol, l4),
        };
        Some((flow, l4))
    }
}

fn ports(protocol: Protocol, l4: &[u8]) -> Option<(u16, u16)> {
    let [s0, s1, d0, d1] = *l4.first_chunk()?;
    protocol.has_ports().then(|| (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
}
