//! Frames that nobody should send, from a machine that can reach the VTEP.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use etherparse::PacketBuilder;

use super::harness::{Capture, Cluster, Options, Pod, Wire, assert_all_pairs_talk};
use super::{assert_ledgers_balance, cluster};

/// VXLAN header with VNI 1.
const VXLAN: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];

/// A socket of node `c`, connected to the VTEP of node `a`.
fn to_vtep(cluster: &Cluster) -> UdpSocket {
    cluster.c.host.netns.within(|| {
        let socket = UdpSocket::bind((cluster.c.host.underlay, 0)).expect("bind on node c");
        socket.connect((cluster.a.host.underlay, 8472)).expect("a route to node a");
        socket
    })
}

/// The payload of a right VXLAN datagram: a UDP packet from a pod of `c` to a pod of `a`, ECN-capable.
fn datagram(cluster: &Cluster, to: &Pod) -> Vec<u8> {
    let mac = |text: String| -> [u8; 6] {
        let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hex")).collect();
        bytes.try_into().expect("6 bytes")
    };
    let mut ip =
        etherparse::Ipv4Header::new(0, 63, etherparse::IpNumber::UDP, cluster.c.pods[0].v4.octets(), to.v4.octets())
            .expect("a short payload");
    ip.ecn = etherparse::IpEcn::Ect0;
    let builder = PacketBuilder::ethernet2(mac(cluster.c.vtep_mac()), mac(cluster.a.vtep_mac()))
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        .udp(4000, 4001);
    let mut bytes = VXLAN.to_vec();
    builder.write(&mut bytes, b"sixteen bytes...").expect("writes to a vector");
    bytes
}

/// Makes the socket send with the mark "congestion experienced".
fn mark_congested(socket: &UdpSocket) {
    const LENGTH: libc::socklen_t = 4;
    let mark: libc::c_int = 3;
    let value = (&raw const mark).cast();
    // SAFETY: the descriptor is open; the option's value is a c_int of 4 bytes that lives through the call.
    let refused = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_TOS, value, LENGTH) };
    assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
}

/// A reproducible source of bytes (Marsaglia's xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }
}

#[test]
fn a_node_survives_malformed_vxlan_and_still_carries_its_pods() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (socket, good) = (to_vtep(&cluster), datagram(&cluster, &cluster.a.pods[0]));
    // The node answers some of these with ICMP errors, which come back as errors of the next send.
    let send = |payload: &[u8]| drop(socket.send(payload));
    for end in 0..good.len() {
        send(&good[..end]);
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            send(&bad);
        }
    }
    let nested = [&VXLAN[..], &good[8..50], &VXLAN, &good[8..]].concat();
    send(&nested);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for _ in 0..20_000 {
        let mut bad = good.clone();
        bad.resize(8 + noise.below(1440), 0);
        for _ in 0..noise.below(40) {
            let at = noise.below(bad.len());
            bad[at] = noise.next().to_le_bytes()[0];
        }
        send(&bad);
    }
    assert_all_pairs_talk(&cluster.pods());
    assert_ledgers_balance(&cluster);
}

#[test]
fn congestion_signalled_on_the_underlay_reaches_the_pod() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (socket, pod) = (to_vtep(&cluster), &cluster.a.pods[0]);
    mark_congested(&socket);
    let before = cluster.a.carried();
    let capture = Capture::start(&pod.netns, "eth0", "udp port 4001", &cluster.prefix.dir().join("ce.pcap"));
    socket.send(&datagram(&cluster, pod)).expect("node a is there");
    let frames = capture.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][15] & 3, 3, "RFC 6040: the mark is copied to an ECN-capable packet");
    let carried = cluster.a.carried().since(before);
    assert!(carried.fast >= 1 && carried.kernel == 0, "{carried:?}");
}
