use std::net::IpAddr;

use ipnet::IpNet;

use super::{Direction, Fate, Flow};
use crate::counters::DropReason;
use crate::ids::IfIndex;
use crate::wire::Protocol;

/// Which packets are traced: those that meet every condition. Made once, and then only read, by workers too.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The UDP port of tunnel packets, whose inner packet is what counts.
    pub vxlan_port: u16,
    pub fates: Fates,
    /// Only packets of this direction; what is [`Direction::Local`] has both.
    pub direction: Option<Direction>,
    /// Only packets that each of these has a part in.
    pub parties: Vec<Party>,
    /// Only packets from or to this port.
    pub port: Option<u16>,
    /// Only packets of one of these; of any when empty.
    pub protocols: &'static [Protocol],
}

impl Filter {
    /// Whether a packet that was seen at `device`, or at none that is known, meets all conditions but that on fates.
    pub fn matches(&self, direction: Direction, device: IfIndex, flow: Option<&Flow>) -> bool {
        let is_on_way = self.direction.is_none_or(|wanted| direction == wanted || direction == Direction::Local);
        let has_port = |port| flow.and_then(|flow| flow.ports).is_some_and(|(from, to)| from == port || to == port);
        let is_of = |protocol: &Protocol| flow.is_some_and(|flow| flow.protocol == *protocol);
        is_on_way
            && self.parties.iter().all(|party| party.is_in(device, flow))
            && self.port.is_none_or(has_port)
            && (self.protocols.is_empty() || self.protocols.iter().any(is_of))
    }
}

/// A pod, a peer, a host, a network: a packet is of it by the device that it came from, or by any of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// [`IfIndex::NONE`]: no device.
    pub device: IfIndex,
    pub prefixes: Vec<Prefix>,
}

impl Party {
    fn is_in(&self, device: IfIndex, flow: Option<&Flow>) -> bool {
        let holds = |address| self.prefixes.iter().any(|prefix| prefix.contains(address));
        (self.device != IfIndex::NONE && self.device == device)
            || flow.is_some_and(|flow| flow.addresses().map(number).any(holds))
    }
}

/// A range of addresses of one family. IPv4 is a range of IPv6 (RFC 4291 section 2.5.5.2), so that one comparison does
/// for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    bits: u128,
    mask: u128,
}

impl Prefix {
    fn contains(self, address: u128) -> bool {
        address & self.mask == self.bits
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        let host_bits = net.max_prefix_len() - net.prefix_len();
        let mask = u128::MAX.checked_shl(host_bits.into()).unwrap_or(0);
        Self { bits: number(net.addr()) & mask, mask }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// A set of what a worker may do with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates(u64);

const _: () = assert!(DropReason::ALL.len() < 64, "a bit each, and one for what is not dropped");

impl Fates {
    pub const NONE: Self = Self(0);
    pub const FORWARDED: Self = Self(1);

    /// Packets that were dropped for this reason.
    pub fn dropped(reason: DropReason) -> Self {
        Self(2 << reason as u32)
    }

    /// Packets that were dropped, for whatever reason.
    pub fn all_dropped() -> Self {
        DropReason::ALL.iter().fold(Self::NONE, |all, &reason| all.or(Self::dropped(reason)))
    }

    /// Packets of either set.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn contains(self, fate: Fate) -> bool {
        let one = match fate {
            Fate::Forwarded(_) => Self::FORWARDED,
            Fate::Dropped(reason) => Self::dropped(reason),
        };
        self.0 & one.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;

    const VXLAN: u16 = 8472;

    /// A packet in one of a few flows that share addresses and ports, or such a packet in a tunnel.
    #[derive(Clone, Debug)]
    struct Packet {
        is_v6: bool,
        source: u8,
        destination: u8,
        tcp: Option<bool>,
        ports: (u16, u16),
        tunnel: Option<(u8, u8)>,
    }

    fn address(is_v6: bool, last: u8) -> IpAddr {
        if is_v6 {
            Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            Ipv4Addr::new(10, 244, 0, last).into()
        }
    }

    fn frame(packet: &Packet) -> Vec<u8> {
        let Packet { is_v6, source, destination, tcp, ports, tunnel } = *packet;
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = match (address(is_v6, source), address(is_v6, destination)) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), 64),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source.octets(), destination.octets(), 64),
            _ => unreachable!("both are of one family"),
        };
        let mut bytes = Vec::new();
        match (tcp, is_v6) {
            (Some(true), _) => ip.tcp(ports.0, ports.1, 1, 1).write(&mut bytes, b"data").unwrap(),
            (Some(false), _) => ip.udp(ports.0, ports.1).write(&mut bytes, b"data").unwrap(),
            (None, false) => ip.icmpv4_echo_request(1, 1).write(&mut bytes, b"data").unwrap(),
            (None, true) => ip.icmpv6_echo_request(1, 1).write(&mut bytes, b"data").unwrap(),
        }
        let Some((from, to)) = tunnel else { return bytes };
        let outer = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([192, 168, 1, from], [192, 168, 1, to], 64);
        let payload = [&[8, 0, 0, 0, 0, 0, 1, 0], &bytes[..]].concat();
        let mut bytes = Vec::new();
        outer.udp(50000, VXLAN).write(&mut bytes, &payload).unwrap();
        bytes
    }

    /// Addresses, protocol and ports of a frame without a tunnel, by another parser.
    fn plain(frame: &[u8]) -> (Vec<IpAddr>, u8, Option<(u16, u16)>) {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let (addresses, protocol) = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header();
                (vec![header.source_addr().into(), header.destination_addr().into()], ip.payload_ip_number().0)
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                (vec![header.source_addr().into(), header.destination_addr().into()], header.next_header().0)
            }
            other => panic!("{other:?}"),
        };
        let ports = match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
            Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
            _ => None,
        };
        (addresses, protocol, ports)
    }

    /// What the filter is to say, by the plainest means.
    fn oracle(filter: &Filter, nets: &[IpNet], direction: Direction, packet: &Packet) -> bool {
        let inner = Packet { tunnel: None, ..packet.clone() };
        let (mut addresses, protocol, ports) = plain(&frame(&inner));
        if packet.tunnel.is_some() {
            addresses.extend(plain(&frame(packet)).0);
        }
        nets.iter().all(|net| addresses.iter().any(|address| net.contains(address)))
            && filter.port.is_none_or(|port| ports.is_some_and(|(from, to)| [from, to].contains(&port)))
            && (filter.protocols.is_empty() || filter.protocols.contains(&Protocol(protocol)))
            && filter.direction.is_none_or(|wanted| direction == Direction::Local || direction == wanted)
    }

    prop_compose! {
        fn packets()(
            is_v6: bool, source in 0..4u8, destination in 0..4u8, tcp: Option<bool>,
            ports in (1..4u16, 1..4u16), tunnel in prop::option::of((1..4u8, 1..4u8)),
        ) -> Packet {
            Packet { is_v6, source, destination, tcp, ports, tunnel }
        }
    }

    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        let inner = (any::<bool>(), 0..4u8, 0..=3u8).prop_map(|(is_v6, last, host_bits)| {
            let address = address(is_v6, last);
            IpNet::new(address, if is_v6 { 128 } else { 32 } - host_bits).unwrap()
        });
        let outer = (1..4u8).prop_map(|last| IpNet::from(IpAddr::from([192, 168, 1, last])));
        let all = Just("0.0.0.0/0".parse().unwrap());
        prop::collection::vec(prop_oneof![4 => inner, 2 => outer, 1 => all], 0..3)
    }

    fn directions() -> impl Strategy<Value = Direction> {
        prop::sample::select(vec![Direction::FromPod, Direction::ToPod, Direction::Local])
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_reading(
            packet in packets(),
            nets in nets(),
            port in prop::option::of(1..4u16),
            protocols in prop::sample::select(vec![&[][..], &[Protocol::TCP], &[Protocol::UDP], &[Protocol::ICMP, Protocol::ICMPV6]]),
            wanted in prop::sample::select(vec![None, Some(Direction::FromPod), Some(Direction::ToPod)]),
            direction in directions(),
        ) {
            let party = |net: &IpNet| Party { device: IfIndex::NONE, prefixes: vec![Prefix::from(*net)] };
            let filter = Filter {
                vxlan_port: VXLAN,
                fates: Fates::NONE,
                direction: wanted,
                parties: nets.iter().map(party).collect(),
                port,
                protocols,
            };
            let bytes = frame(&packet);
            let found = filter.matches(direction, IfIndex::NONE, Flow::read(&bytes, VXLAN).as_ref());
            prop_assert_eq!(found, oracle(&filter, &nets, direction, &packet));
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool, cut: prop::sample::Index) {
            let _ = Flow::read(&bytes, VXLAN);
            let mut frame = frame(&Packet { is_v6: v6, source: 1, destination: 2, tcp: None, ports: (1, 2), tunnel: Some((1, 2)) });
            frame.truncate(cut.index(frame.len()));
            let _ = Flow::read(&frame, VXLAN);
        }
    }

    #[test]
    fn a_device_makes_a_party_whatever_the_packet_says() {
        let party = Party { device: IfIndex(7), prefixes: Vec::new() };
        assert!(party.is_in(IfIndex(7), None));
        assert!(!party.is_in(IfIndex(8), None));
        assert!(!Party { device: IfIndex::NONE, prefixes: Vec::new() }.is_in(IfIndex::NONE, None));
    }

    #[test]
    fn fates_are_told_apart() {
        let hop = Fate::Forwarded(super::super::Hop::Vtep([10, 0, 0, 1].into()));
        for &reason in DropReason::ALL {
            let one = Fates::dropped(reason);
            let held: Vec<_> = DropReason::ALL.iter().filter(|&&other| one.contains(Fate::Dropped(other))).collect();
            assert_eq!(held, [&reason]);
            assert!(Fates::all_dropped().contains(Fate::Dropped(reason)) && !one.contains(hop));
        }
        assert!(Fates::FORWARDED.contains(hop) && !Fates::all_dropped().contains(hop));
    }
}
