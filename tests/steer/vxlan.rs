//! Encapsulation judged by the kernel: random packets of a pod, put into the tunnel by the pipeline, come out of the
//! kernel's VXLAN device as they went in, a hop older.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::Command;
use std::time::{Duration, Instant};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder, TcpHeader,
};
use fastrand::Rng;

use crate::lab::{Lab, Raw};
use crate::rig::is_root;

#[allow(dead_code, reason = "the tests of the pipeline use more of it")]
#[path = "../pipeline/world.rs"]
mod world;

use world::{Underlay, from_pod, pod, pod_v4, pod_v6, sent, uplink_mac, vtep_mac, worker};

const PACKETS: usize = 2048;
/// Few enough to wait at a device together.
const BURST: usize = 64;
/// How long a busy machine may take for a burst.
const PATIENCE: Duration = Duration::from_secs(20);

const UDP: usize = 17;

/// The receiving end of a tunnel from node 1 to node 2, with a socket at either side of it.
struct Tunnel {
    wire: Raw,
    device: Raw,
    _labs: [Lab; 2],
}

impl Tunnel {
    fn new(underlay: Underlay) -> Self {
        let (near, far) = (Lab::new(), Lab::new());
        near.veth("w1", "w2");
        near.give("w2", &far);
        far.ip(&format!("link set w2 address {}", uplink_mac(2)));
        far.within(|| std::fs::write("/proc/sys/net/ipv6/conf/w2/disable_ipv6", "0").unwrap());
        let (vtep, nodad) = if underlay == Underlay::V6 { ("64", " nodad") } else { ("24", "") };
        far.ip(&format!("address add {}/{vtep} dev w2{nodad}", underlay.vtep(2)));
        far.ip(&format!(
            "link add vx address {} mtu 1450 type vxlan id 1 dstport {} local {} dev w2 nolearning",
            vtep_mac(2),
            world::PORT,
            underlay.vtep(2)
        ));
        // What it receives is to be seen one by one.
        let is_off = far.within(|| Command::new("ethtool").args(["-K", "vx", "gro", "off"]).status().unwrap());
        assert!(is_off.success(), "ethtool");
        let device = far.socket("vx", libc::ETH_P_ALL);
        far.ip("link set vx up");
        Self { wire: near.socket("w1", 0), device, _labs: [near, far] }
    }

    /// Sends frames to the far end, and takes as many of the device.
    fn carry(&self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        for frame in frames {
            self.wire.send(frame);
        }
        let (begin, mut arrived) = (Instant::now(), Vec::new());
        while arrived.len() < frames.len() && begin.elapsed() < PATIENCE {
            arrived.extend(self.device.receive().map(|tapped| tapped.frame));
        }
        arrived
    }
}

/// So many random bytes.
fn noise(rng: &mut Rng, len: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; rng.usize(len)];
    rng.fill(&mut bytes);
    bytes
}

/// A frame of the pod of node 1 to the one of node 2.
fn random_frame(rng: &mut Rng) -> Vec<u8> {
    let payload = noise(rng, 0..1200);
    let is_v6 = rng.bool();
    let ip = PacketBuilder::ethernet2(pod(1).mac.0, pod(1).gateway_mac.0).ip(random_ip(rng, is_v6));
    let mut frame = Vec::new();
    match rng.u8(..if is_v6 { 3 } else { 4 }) {
        0 => ip.udp(rng.u16(..), rng.u16(..)).write(&mut frame, &payload).unwrap(),
        1 => ip.tcp_header(random_tcp(rng)).write(&mut frame, &payload).unwrap(),
        2 if is_v6 => ip.icmpv6_echo_request(rng.u16(..), rng.u16(..)).write(&mut frame, &payload).unwrap(),
        2 => ip.icmpv4_echo_request(rng.u16(..), rng.u16(..)).write(&mut frame, &payload).unwrap(),
        _ => ip.write(&mut frame, IpNumber(rng.u8(150..)), &payload).unwrap(),
    }
    let l4 = if is_v6 { 54 } else { 34 };
    if usize::from(frame[if is_v6 { 20 } else { 23 }]) == UDP {
        match rng.u8(..4) {
            0 if !is_v6 => frame[l4 + 6..l4 + 8].fill(0),
            1 => add_surplus(&mut frame, is_v6, rng),
            _ => {}
        }
    }
    frame
}

fn random_ip(rng: &mut Rng, is_v6: bool) -> IpHeaders {
    if is_v6 {
        let header = Ipv6Header {
            traffic_class: rng.u8(..),
            hop_limit: rng.u8(2..),
            source: pod_v6(1),
            destination: pod_v6(2),
            ..Ipv6Header::default()
        };
        return IpHeaders::Ipv6(header, Ipv6Extensions::default());
    }
    let header = Ipv4Header {
        dscp: rng.u8(..64).try_into().unwrap(),
        ecn: rng.u8(..4).try_into().unwrap(),
        identification: rng.u16(..),
        dont_fragment: rng.bool(),
        fragment_offset: IpFragOffset::ZERO,
        time_to_live: rng.u8(2..),
        source: pod_v4(1),
        destination: pod_v4(2),
        ..Ipv4Header::default()
    };
    IpHeaders::Ipv4(header, Ipv4Extensions::default())
}

fn random_tcp(rng: &mut Rng) -> TcpHeader {
    let mut tcp = TcpHeader::new(rng.u16(..), rng.u16(..), rng.u32(..), rng.u16(..));
    (tcp.syn, tcp.ack, tcp.psh, tcp.fin) = (rng.bool(), rng.bool(), rng.bool(), rng.bool());
    tcp.set_options_raw(&noise(rng, 0..41)).unwrap();
    tcp
}

/// Bytes behind the datagram that the packet's length covers, but not the datagram's (RFC 9868 section 6).
fn add_surplus(frame: &mut Vec<u8>, is_v6: bool, rng: &mut Rng) {
    frame.extend(noise(rng, 1..60));
    let at = if is_v6 { 18 } else { 16 };
    let len = u16::try_from(frame.len() - if is_v6 { 54 } else { 14 }).unwrap();
    frame[at..at + 2].copy_from_slice(&len.to_be_bytes());
    if !is_v6 {
        write_ipv4_checksum(frame);
    }
}

fn write_ipv4_checksum(frame: &mut [u8]) {
    let checksum = Ipv4Header::from_slice(&frame[14..]).unwrap().0.calc_header_checksum();
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
}

/// What the VXLAN device of node 2 should make of a pod's frame.
fn expected(frame: &[u8]) -> Vec<u8> {
    let mut expected = [&vtep_mac(2).0[..], &vtep_mac(1).0, &frame[12..]].concat();
    if frame[12] == 0x08 {
        expected[22] -= 1;
        write_ipv4_checksum(&mut expected);
    } else {
        expected[21] -= 1;
    }
    expected
}

fn counted(frames: impl IntoIterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, usize> {
    frames.into_iter().fold(BTreeMap::new(), |mut counts, frame| {
        *counts.entry(frame).or_default() += 1;
        counts
    })
}

#[test]
fn random_packets_come_out_of_the_kernels_device_as_they_went_in() {
    if !is_root() {
        return;
    }
    for underlay in Underlay::ALL {
        let (mut rng, tunnel, mut node) = (Rng::with_seed(8472), Tunnel::new(underlay), worker(1, underlay));
        for _ in 0..PACKETS / BURST {
            let frames: Vec<_> = std::iter::repeat_with(|| random_frame(&mut rng)).take(BURST).collect();
            for frame in &frames {
                from_pod(&mut node, frame);
            }
            node.poll_once();
            let outer = sent(&mut node);
            assert_eq!(outer.len(), BURST, "{:?}", node.tally);
            let (wanted, arrived) = (counted(frames.iter().map(|f| expected(f))), counted(tunnel.carry(&outer)));
            for (frame, count) in &wanted {
                assert_eq!(arrived.get(frame), Some(count), "over {underlay:?}: {frame:02x?}");
            }
            assert_eq!(arrived.len(), wanted.len());
        }
    }
}
