//! What arrives of the peers' tunnels at our uplink, before the kernel judges it: the only place where it can be seen
//! that a peer sends with another VNI, or to another MAC than ours, all of which the kernel drops without a word.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::echo::Echo;
use crate::ids::IfIndex;
use crate::packet::{self, Filter, Step, Tap, Then};
use crate::wire::Mac;

/// Headers up to the end of an echo, with IPv4 options inside and outside.
const SNAP: u32 = 192;

/// Kernel memory for what waits to be taken, in bytes: more than a flood of bad packets is worth.
const ROOM: i32 = 256 * 1024;

/// From the outer UDP header on: VXLAN's VNI, the inner Ethernet header, the inner IP header.
const VNI: u32 = 12;
const ETHERNET: u32 = 16;
const INNER: u32 = ETHERNET + 14;

const ICMP: u32 = 1;
const UDP: u32 = 17;
const ICMPV6: u32 = 58;
const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;

/// Our end of the tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub uplink: IfIndex,
    pub underlay: IpAddr,
    pub port: u16,
    pub vni: u32,
    pub mac: Mac,
    /// Of the VXLAN device, at most one of each family.
    pub addresses: Vec<IpAddr>,
}

/// A tunnel packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// The outer source address.
    pub from: IpAddr,
    pub what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// With a VNI that is not ours.
    Vni(u32),
    /// With our VNI, to a MAC that is not ours.
    ToMac(Mac),
    /// ICMP to our VXLAN device's address, or that claims to come from it.
    FromNode { mac: Mac, address: IpAddr, reply: Option<Echo> },
}

/// A look at the uplink.
#[derive(Debug)]
pub struct Witness {
    own: Own,
    tap: Tap,
}

impl Witness {
    pub fn open(own: Own) -> Result<Self, packet::Error> {
        let ethertype = if own.underlay.is_ipv6() { ETH_IPV6 } else { ETH_IPV4 };
        let tap = Tap::open(own.uplink, ethertype, &own.filter(), SNAP, ROOM)?;
        Ok(Self { own, tap })
    }

    /// The next packet that tells something; `None` when none waits.
    pub fn take(&self) -> io::Result<Option<Sighting>> {
        let mut buffer = [0; SNAP as usize];
        while let Some(packet) = self.tap.take(&mut buffer)? {
            if let Some(sighting) = self.own.read(packet) {
                return Ok(Some(sighting));
            }
        }
        Ok(None)
    }
}

impl Own {
    /// Accepts tunnel packets with another VNI or MAC, and ICMP between nodes; what pods send is not copied.
    fn filter(&self) -> Filter {
        use Then::{Accept, Next, Reject};
        let (protocol, begin) = if self.underlay.is_ipv6() { (6, Step::Index(40)) } else { (9, Step::IndexIpv4(0)) };
        let mut steps = vec![Step::Byte(protocol), Step::Equal(UDP, Next, Reject)];
        if self.underlay.is_ipv4() {
            // No later fragment.
            steps.extend([Step::Half(6), Step::AnyBit(0x1fff, Reject, Next)]);
        }
        let [m0, m1, m2, m3, m4, m5] = self.mac.0;
        steps.extend([
            begin,
            Step::HalfAt(2),
            Step::Equal(self.port.into(), Next, Reject),
            Step::WordAt(VNI),
            Step::ShiftRight(8),
            Step::Equal(self.vni, Next, Accept),
            Step::WordAt(ETHERNET),
            Step::Equal(u32::from_be_bytes([m0, m1, m2, m3]), Next, Accept),
            Step::HalfAt(ETHERNET + 4),
            Step::Equal(u16::from_be_bytes([m4, m5]).into(), Next, Accept),
        ]);
        for address in &self.addresses {
            steps.extend(node_traffic(*address));
        }
        steps.push(Step::AnyBit(0, Reject, Reject));
        Filter(steps)
    }

    /// Understands what the filter accepted.
    fn read(&self, packet: &[u8]) -> Option<Sighting> {
        let (from, udp) = ip(packet)?;
        let (vxlan, frame) = udp.get(8..)?.split_first_chunk::<8>()?;
        let &[flags, _, _, _, v0, v1, v2, _] = vxlan;
        // The I flag (RFC 7348 section 5).
        if flags & 0x08 == 0 {
            return None;
        }
        let vni = u32::from_be_bytes([0, v0, v1, v2]);
        let (to_mac, rest) = frame.split_first_chunk()?;
        let (from_mac, rest) = rest.split_first_chunk()?;
        let to_mac = Mac(*to_mac);
        let what = if vni != self.vni {
            What::Vni(vni)
        } else if to_mac != self.mac {
            What::ToMac(Some(to_mac).filter(|mac| mac.is_unicast())?)
        } else {
            let (address, message) = ip(rest.get(2..)?)?;
            What::FromNode { mac: Mac(*from_mac), address, reply: Echo::of_reply(address.is_ipv6(), message) }
        };
        Some(Sighting { from, what })
    }
}

/// The source of an IP packet, and what it carries.
fn ip(packet: &[u8]) -> Option<(IpAddr, &[u8])> {
    let first = *packet.first()?;
    match first >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            Some((Ipv4Addr::from(source).into(), packet.get(usize::from(first & 0xf) * 4..)?))
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            Some((Ipv6Addr::from(source).into(), packet.get(40..)?))
        }
        _ => None,
    }
}

/// Accepts ICMP of one family to or from `address`, and goes on behind itself with all else.
fn node_traffic(address: IpAddr) -> Vec<Step> {
    let (ethertype, protocol, icmp, [source, destination], octets) = match address {
        IpAddr::V4(address) => (ETH_IPV4, 9, ICMP, [12, 16], address.octets().to_vec()),
        IpAddr::V6(address) => (ETH_IPV6, 6, ICMPV6, [8, 24], address.octets().to_vec()),
    };
    let ends = [source, destination].map(|at| accept_same(&octets, INNER + at));
    let mut rest = ends.concat();
    for (at, value) in [(INNER + protocol, icmp), (INNER - 2, ethertype.into())] {
        let load = if value == icmp { Step::ByteAt(at) } else { Step::HalfAt(at) };
        rest.splice(0..0, [load, Step::Equal(value, Then::Next, behind(rest.len()))]);
    }
    rest
}

/// Accepts a packet with these bytes, a multiple of four, at an offset, and goes on behind itself with all else.
fn accept_same(octets: &[u8], at: u32) -> Vec<Step> {
    let (words, _) = octets.as_chunks::<4>();
    let mut steps = Vec::new();
    let places: Vec<_> = words.iter().zip((at..).step_by(4)).collect();
    for (word, at) in places.into_iter().rev() {
        let then = if steps.is_empty() { Then::Accept } else { Then::Next };
        let same = Step::Equal(u32::from_be_bytes(*word), then, behind(steps.len()));
        steps.splice(0..0, [Step::WordAt(at), same]);
    }
    steps
}

/// Skips `steps`, of which a filter has few.
fn behind(steps: usize) -> Then {
    Then::Skip(u8::try_from(steps).unwrap_or(u8::MAX))
}

/// What holds of any packet: one that tells something is a VXLAN packet of a peer, and tells what it bears.
#[cfg(fuzzing)]
pub fn fuzz(packet: &[u8]) {
    let (underlay, mac) = (Ipv4Addr::new(192, 168, 1, 2).into(), Mac([2, 0, 0, 0, 0, 2]));
    let own = Own { uplink: IfIndex(1), underlay, port: 8472, vni: 1, mac, addresses: Vec::new() };
    let holds = |bytes: &[u8]| packet.windows(bytes.len()).any(|window| window == bytes);
    match own.read(packet).map(|sighting| sighting.what) {
        Some(What::Vni(vni)) => assert!(vni != 1 && holds(&vni.to_be_bytes()[1..])),
        Some(What::ToMac(to)) => assert!(to != mac && to.is_unicast() && holds(&to.0)),
        Some(What::FromNode { mac: from, reply, .. }) => {
            assert!(holds(&mac.0) && holds(&from.0));
            assert!(reply.is_none_or(|echo| holds(&echo.token.to_be_bytes())));
        }
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use etherparse::PacketBuilder;

    use super::*;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const ECHO: Echo = Echo { id: 7, sequence: 8, token: 9 };

    fn own(underlay: &str) -> Own {
        let addresses = ["10.244.1.0", "fd00:244:1::"].map(|address| address.parse().unwrap()).to_vec();
        Own { uplink: IfIndex(1), underlay: underlay.parse().unwrap(), port: 8472, vni: 1, mac: OURS, addresses }
    }

    /// An inner frame: an ICMP message from one address to another.
    fn inner(to_mac: Mac, from: &str, to: &str, message: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(THEIRS.0, to_mac.0);
        let (mut frame, is_ipv6) = (Vec::new(), from.contains(':'));
        let protocol = if is_ipv6 { 58 } else { 1 };
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                builder.ipv4(from.octets(), to.octets(), 64).write(&mut frame, protocol.into(), message).unwrap();
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                builder.ipv6(from.octets(), to.octets(), 64).write(&mut frame, protocol.into(), message).unwrap();
            }
            _ => unreachable!("one family"),
        }
        frame
    }

    /// A tunnel packet, from its outer IP header on.
    fn outer(ipv6: bool, port: u16, vni: u32, frame: &[u8]) -> Vec<u8> {
        let header = [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes()].concat();
        let mut packet = Vec::new();
        let builder = PacketBuilder::ethernet2([0; 6], [0; 6]);
        let body = [&header, frame].concat();
        if ipv6 {
            let [from, to] = ["fd00:192:168:1::3", "fd00:192:168:1::2"].map(|a| a.parse::<Ipv6Addr>().unwrap());
            builder.ipv6(from.octets(), to.octets(), 64).udp(5, port).write(&mut packet, &body).unwrap();
        } else {
            builder.ipv4([192, 168, 1, 3], [192, 168, 1, 2], 64).udp(5, port).write(&mut packet, &body).unwrap();
        }
        packet.split_off(14)
    }

    /// What the kernel lets through by the filter and is understood.
    fn seen(own: &Own, packet: &[u8]) -> Option<What> {
        let (near, far) = UnixDatagram::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        own.filter().attach(far.as_fd(), SNAP).unwrap();
        near.send(packet).unwrap();
        let mut buffer = [0; SNAP as usize];
        let len = far.recv(&mut buffer).ok()?;
        let sighting = own.read(&buffer[..len]).expect("what the filter accepts is understood");
        assert_eq!(sighting.from.is_ipv6(), own.underlay.is_ipv6());
        Some(sighting.what)
    }

    #[test]
    fn what_tells_something_is_let_through_and_all_else_is_not() {
        let mut reply = ECHO.request(false, 1400);
        reply[0] = 0;
        let mut reply6 = ECHO.request(true, 1400);
        reply6[0] = 129;
        let from = |address: &str, reply| What::FromNode { mac: THEIRS, address: address.parse().unwrap(), reply };
        let node = |to: &str| inner(OURS, "10.244.2.0", to, &reply);
        for (underlay, is_ipv6) in [("192.168.1.2", false), ("fd00:192:168:1::2", true)] {
            let own = own(underlay);
            let look = |port, vni, frame: &[u8]| seen(&own, &outer(is_ipv6, port, vni, frame));
            assert_eq!(look(8472, 1, &node("10.244.1.0")), Some(from("10.244.2.0", Some(ECHO))));
            let frame = inner(OURS, "fd00:244:2::", "fd00:244:1::", &reply6);
            assert_eq!(look(8472, 1, &frame), Some(from("fd00:244:2::", Some(ECHO))));
            let request = inner(OURS, "10.244.1.0", "10.244.9.0", &ECHO.request(false, 40));
            assert_eq!(look(8472, 1, &request), Some(from("10.244.1.0", None)), "from our own address");
            assert_eq!(look(8472, 2, &node("10.244.1.7")), Some(What::Vni(2)), "even of a pod");
            let other = inner(THEIRS, "10.244.2.0", "10.244.1.7", &reply);
            assert_eq!(look(8472, 1, &other), Some(What::ToMac(THEIRS)));
            for (port, vni, frame) in [
                (8472, 1, node("10.244.1.7")),
                (4789, 2, node("10.244.1.0")),
                (8472, 1, inner(OURS, "fd00:244:2::", "fd00:244:1::1", &reply6)),
                (8472, 1, inner(OURS, "fd00:244:2::", "fd00:244:0:1::", &reply6)),
                (8472, 1, node("10.244.1.0")[..20].to_vec()),
            ] {
                assert_eq!(look(port, vni, &frame), None, "{port} {vni} {}", frame.len());
            }
        }
    }

    #[test]
    fn noise_is_not_understood_and_does_no_harm() {
        let packet = outer(false, 8472, 1, &inner(OURS, "10.244.2.0", "10.244.1.0", &ECHO.request(false, 40)));
        let own = own("192.168.1.2");
        for len in 0..packet.len() {
            let _ = own.read(&packet[..len]);
            let mut bad = packet.clone();
            bad[len] ^= 0xff;
            let _ = own.read(&bad);
        }
        assert_eq!(own.read(&packet[..60]), None, "cut inside of the inner header");
    }
}
