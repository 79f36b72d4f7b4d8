//! Frames that nobody should send, from a machine that can reach the VTEP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use etherparse::PacketBuilder;
use podwire::steer::{Program, Verdict};

use super::harness::{Capture, Cluster, Host, Options, Pod, PodwireNode, Wire, assert_all_pairs_talk, pings};
use super::{assert_ledgers_balance, cluster};

/// VXLAN header with VNI 1.
const VXLAN: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 1, 0];

/// A socket of a machine, connected to the VTEP of node `a`.
pub(super) fn to_vtep(cluster: &Cluster, from: &Host) -> UdpSocket {
    from.netns.within(|| {
        let socket = UdpSocket::bind((from.underlay, 0)).expect("bind on the underlay");
        socket.connect((cluster.a.host.underlay, 8472)).expect("a route to node a");
        socket
    })
}

/// The payload of a right VXLAN datagram: a UDP packet from a pod of `c` to port 4001 of a pod of `a`, ECN-capable.
fn datagram(cluster: &Cluster, to: &Pod, payload: &[u8]) -> Vec<u8> {
    datagram_with(cluster, to, payload, etherparse::IpEcn::Ect0)
}

/// The same, with another codepoint.
pub(super) fn datagram_with(cluster: &Cluster, to: &Pod, payload: &[u8], ecn: etherparse::IpEcn) -> Vec<u8> {
    tunnelled(cluster, &cluster.a, cluster.c.pods[0].v4, to, payload, ecn)
}

/// The payload of a VXLAN datagram to `node`: a UDP packet from `source` to port 4001 of one of its pods.
fn tunnelled(
    cluster: &Cluster,
    node: &PodwireNode,
    source: Ipv4Addr,
    to: &Pod,
    payload: &[u8],
    ecn: etherparse::IpEcn,
) -> Vec<u8> {
    let mut ip = etherparse::Ipv4Header::new(0, 63, etherparse::IpNumber::UDP, source.octets(), to.v4.octets())
        .expect("a short payload");
    ip.ecn = ecn;
    let builder = PacketBuilder::ethernet2(mac(&cluster.c.vtep_mac()), mac(&node.vtep_mac()))
        .ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        .udp(4000, 4001);
    let mut bytes = VXLAN.to_vec();
    builder.write(&mut bytes, payload).expect("writes to a vector");
    bytes
}

fn mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    bytes.try_into().expect("6 bytes")
}

/// A socket of a pod that gets what is sent by [`tunnelled`].
fn victim(pod: &Pod) -> UdpSocket {
    let socket = pod.netns.within(|| UdpSocket::bind((pod.v4, 4001)).expect("bind in the pod"));
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    socket
}

/// The length of the next datagram.
fn next(receiver: &UdpSocket) -> usize {
    receiver.recv(&mut [0; 2000]).expect("a datagram")
}

/// Makes the socket send with the mark "congestion experienced".
pub(super) fn mark_congested(socket: &UdpSocket) {
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
    let socket = to_vtep(&cluster, &cluster.c.host);
    let good = datagram(&cluster, &cluster.a.pods[0], b"sixteen bytes...");
    let logged = || cluster.a.log_text().lines().count();
    let before = logged();
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
    assert!(logged() - before < 20, "who can send fills no log\n{}", cluster.a.log_text());
    assert_ledgers_balance(&cluster);
}

fn an_ipv6_vtep_beside_an_ipv4_one_hears_peers_alone(options: Options) {
    let Some(cluster) = cluster(Wire { dual: true, ..Wire::default() }, options) else { return };
    let (a, c, pod) = (&cluster.a, &cluster.c, &cluster.a.pods[0]);
    let receiver = pod.netns.within(|| UdpSocket::bind((pod.v6, 4001)).expect("bind in the pod"));
    receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    c.host.netns.run("ip address add fd00:192:168:1::66/64 dev eth0 nodad");
    let [own, peer] = [a.peer(), c.peer()];
    let datagram = |macs: [&Option<String>; 2], payload: &[u8]| {
        let [from, to] = macs.map(|text| mac(text.as_ref().expect("a MAC")));
        let packet = PacketBuilder::ethernet2(from, to).ipv6(c.pods[0].v6.octets(), pod.v6.octets(), 63);
        let mut bytes = VXLAN.to_vec();
        packet.udp(4000, 4001).write(&mut bytes, payload).expect("writes to a vector");
        bytes
    };
    let by_ipv6 = |from: Option<IpAddr>, payload: &[u8]| {
        let from = from.expect("an IPv6 VTEP");
        let socket = c.host.netns.within(|| UdpSocket::bind((from, 0)).expect("an address of the machine"));
        let bytes = datagram([&peer.vtep_mac6, &own.vtep_mac6], payload);
        socket.send_to(&bytes, (own.underlay6.expect("an IPv6 VTEP"), 8472)).expect("sends");
    };
    by_ipv6("fd00:192:168:1::66".parse().ok(), &[1; 16]);
    by_ipv6(peer.underlay6, &[1; 17]);
    assert_eq!(next(&receiver), 17, "what was sent before it does not arrive");
    // A peer that knows of no second VTEP sends IPv6 to the first.
    to_vtep(&cluster, &c.host).send(&datagram([&peer.vtep_mac, &own.vtep_mac], &[1; 18])).expect("sends");
    assert_eq!(next(&receiver), 18);
}

/// Echo requests, for tcpdump.
const ECHOES: &str = "icmp[icmptype] == icmp-echo or (icmp6 and ip6[40] == 128)";

/// Part of the rule, as nft lists it, against sources that a pod forges,
const FORGED: &str = "saddr . iif";
/// against pods' addresses that come from elsewhere,
const FROM_ELSEWHERE: &str = "fib saddr oifname";
/// and against tunnels that no peer has sent.
const NO_PEER: &str = "saddr != @vteps";

/// How many packets a rule of the guard has dropped since it was put in place.
fn guarded(node: &PodwireNode, rule: &str) -> Option<u64> {
    let output = node.host.netns.output("nft list chain inet podwire guard");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let line = text.lines().find(|line| line.contains(rule))?;
    line.split("counter packets ").nth(1)?.split(' ').next()?.parse().ok()
}

/// How many packets all rules of the guard have dropped.
fn all_guarded(node: &PodwireNode) -> u64 {
    let text = node.host.netns.run("nft list chain inet podwire guard");
    let counts = text.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

#[test]
fn a_pod_that_no_program_looks_after_forges_no_source() {
    let Some(mut cluster) = cluster(Wire::default(), Options::KERNEL) else { return };
    let [pod, neighbour] = [0, 1].map(|n| cluster.a.pods[n].clone());
    let (remote, dir) = (cluster.b.pods[0].clone(), cluster.prefix.dir().to_owned());
    let forge = |from: &IpAddr| drop(pod.netns.run(&format!("ip address add {from} dev lo")));
    let all = [IpAddr::from(neighbour.v4), neighbour.v6.into()];
    all.iter().for_each(forge);
    let capture = |name: &str| Capture::start(&remote.netns, "eth0", ECHOES, &dir.join(name));
    let ping = |from: IpAddr| pings(&pod, remote.address_like(from), &format!("-I {from} -W 1"));
    let seen = capture("guarded.pcap");
    for from in all {
        let before = guarded(&cluster.a, FORGED).expect("the rule is there");
        assert!(!ping(from), "{from}");
        assert_eq!(guarded(&cluster.a, FORGED), Some(before + 1), "{from}");
        assert!(pings(&pod, remote.address_like(from), ""));
    }
    assert_eq!(seen.frames().len(), 2, "the honest ones");
    // Without the rule they would arrive, which shows that it is the rule.
    let seen = capture("open.pcap");
    cluster.a.kill();
    let loose = "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.pw1.rp_filter=0";
    cluster.a.host.netns.run_all(["nft flush chain inet podwire guard", loose]);
    for from in all {
        assert!(!ping(from), "the answers go to its neighbour");
    }
    let frames = seen.frames();
    assert_eq!(frames.len(), 2, "{frames:?}");
    cluster.a.launch();
    assert_eq!(guarded(&cluster.a, FORGED), Some(0));
}

#[test]
fn congestion_signalled_on_the_underlay_reaches_the_pod() {
    congestion_signalled_reaches_the_pod(Options::ADAPTIVE);
}

fn congestion_signalled_reaches_the_pod(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (socket, pod) = (to_vtep(&cluster, &cluster.c.host), &cluster.a.pods[0]);
    mark_congested(&socket);
    let before = cluster.a.carried();
    let capture = Capture::start(&pod.netns, "eth0", "udp port 4001", &cluster.prefix.dir().join("ce.pcap"));
    socket.send(&datagram(&cluster, pod, b"sixteen bytes...")).expect("node a is there");
    let frames = capture.frames();
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0][15] & 3, 3, "RFC 6040: the mark is copied to an ECN-capable packet");
    let carried = cluster.a.carried().since(before);
    assert!(carried.fast >= 1 && carried.kernel == 0, "{carried:?}");
}

#[test]
fn what_is_no_peer_injects_nothing_whole_or_in_fragments_unless_all_are_let_in() {
    what_is_no_peer_injects_nothing(Options::ADAPTIVE);
}

fn what_is_no_peer_injects_nothing(options: Options) {
    const SMALL: usize = 16;
    const LARGE: usize = 1000;
    let Some(mut cluster) = cluster(Wire::default(), options) else { return };
    let stranger = cluster.switch.host(&cluster.prefix, 's', 98);
    stranger.netns.run("ip link set eth0 mtu 600");
    let pod = &cluster.a.pods[0];
    let receiver = victim(pod);
    let next = || next(&receiver);
    let (small, large) = (datagram(&cluster, pod, &[1; SMALL]), datagram(&cluster, pod, &[1; LARGE]));
    let marker = datagram(&cluster, pod, &[1; SMALL + 1]);
    let (forged, honest) = (to_vtep(&cluster, &stranger), to_vtep(&cluster, &cluster.c.host));
    for bytes in [&small, &large] {
        forged.send(bytes).expect("node a is there");
    }
    honest.send(&marker).expect("node a is there");
    assert_eq!(next(), SMALL + 1, "what was sent before it does not arrive");
    let dropped = cluster.a.verdict(Program::Nic, Verdict::UnknownVtep);
    assert_eq!(dropped, 2, "the small one, and of the large one what is needed to put it together");

    cluster.a.set_options(Options { known_vteps_only: false, ..options });
    for (bytes, length) in [(&small, SMALL), (&large, LARGE)] {
        forged.send(bytes).expect("node a is there");
        assert_eq!(next(), length);
    }
}

in_both_modes!(
    a_tunnel_brings_nothing_from_a_pod_of_this_node,
    a_stranger_gets_in_by_no_device,
    an_ipv6_vtep_beside_an_ipv4_one_hears_peers_alone,
    a_pod_gets_nothing_into_the_overlay_by_a_tunnel_of_its_own,
);

mod without_xdp {
    use super::Options;

    #[test]
    fn a_tunnel_brings_nothing_from_a_pod_of_this_node() {
        super::a_tunnel_brings_nothing_from_a_pod_of_this_node(Options::WITHOUT_XDP);
    }

    #[test]
    fn a_stranger_gets_in_by_no_device() {
        super::a_stranger_gets_in_by_no_device(Options::WITHOUT_XDP);
    }

    #[test]
    fn what_is_no_peer_injects_nothing_whole_or_in_fragments_unless_all_are_let_in() {
        super::what_is_no_peer_injects_nothing(Options::WITHOUT_XDP);
    }

    #[test]
    fn congestion_signalled_on_the_underlay_reaches_the_pod() {
        super::congestion_signalled_reaches_the_pod(Options::WITHOUT_XDP);
    }
}

fn a_tunnel_brings_nothing_from_a_pod_of_this_node(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (pod, other) = (&cluster.a.pods[0], &cluster.a.pods[1]);
    let (receiver, peer) = (victim(pod), to_vtep(&cluster, &cluster.c.host));
    let forged = tunnelled(&cluster, &cluster.a, other.v4, pod, &[1; 16], etherparse::IpEcn::Ect0);
    peer.send(&forged).expect("node a is there");
    peer.send(&datagram(&cluster, pod, &[1; 17])).expect("node a is there");
    assert_eq!(next(&receiver), 17, "what was sent before it does not arrive");
    assert_eq!(guarded(&cluster.a, FROM_ELSEWHERE), Some(1));
}

/// Programs look at the uplink alone, and in mode kernel at nothing.
fn a_stranger_gets_in_by_no_device(options: Options) {
    let Some(mut cluster) = cluster(Wire::default(), options) else { return };
    let stranger = cluster.switch.host(&cluster.prefix, 's', 98);
    let node = &cluster.a.host;
    cluster.switch.netns.run_all([
        format!("ip link add port-a2 type veth peer name eth1 netns {}", node.netns.name()),
        "ip link set port-a2 master br0 up".to_owned(),
    ]);
    // Without an address `rp_filter` lets nothing in.
    node.netns.run_all(["ip addr add 192.0.2.1/24 dev eth1", "ip link set eth1 up"]);
    let pod = cluster.a.pods[0].clone();
    let (receiver, forged, honest) = (victim(&pod), to_vtep(&cluster, &stranger), to_vtep(&cluster, &cluster.c.host));
    let bytes = datagram(&cluster, &pod, &[1; 16]);
    let vtep = node.underlay;
    let macs = ["eth0", "eth1"].map(|device| node.netns.mac(device));
    // A switch that had yet to learn it would send eth1's frames to eth0 too.
    cluster.switch.netns.run(&format!("bridge fdb replace {} dev port-a2 master static", macs[1]));
    let via = |mac: &str| drop(stranger.netns.run(&format!("ip neigh replace {vtep} lladdr {mac} dev eth0")));
    for mac in &macs {
        via(mac);
        forged.send(&bytes).expect("node a is there");
    }
    honest.send(&datagram(&cluster, &pod, &[1; 17])).expect("node a is there");
    assert_eq!(next(&receiver), 17, "what was sent before it does not arrive");
    let by_program = cluster.a.verdict(Program::Nic, Verdict::UnknownVtep);
    assert_eq!(by_program, u64::from(!options.is_kernel()));
    assert_eq!(guarded(&cluster.a, NO_PEER), Some(2 - by_program));

    cluster.a.set_options(Options { known_vteps_only: false, ..options });
    for mac in &macs {
        via(mac);
        forged.send(&bytes).expect("node a is there");
        assert_eq!(next(&receiver), 16, "by {mac}");
    }
}

/// Masqueraded, it would come from a node that all know.
fn a_pod_gets_nothing_into_the_overlay_by_a_tunnel_of_its_own(options: Options) {
    let Some(cluster) = cluster(Wire::default(), Options { masquerade: true, ..options }) else { return };
    let Cluster { a, b, c, .. } = &cluster;
    let (attacker, source, ecn) = (&a.pods[0], c.pods[0].v4, etherparse::IpEcn::Ect0);
    let before = [a, b].map(all_guarded);
    let socket = attacker.netns.within(|| UdpSocket::bind((attacker.v4, 0))).expect("bind in the pod");
    let (on_a, on_b) = (victim(&a.pods[1]), victim(&b.pods[0]));
    let targets =
        [(a, a.host.underlay, &a.pods[1]), (a, a.host.gateways()[0], &a.pods[1]), (b, b.host.underlay, &b.pods[0])];
    for (node, vtep, victim) in targets {
        let forged = tunnelled(&cluster, node, source, victim, &[1; 16], ecn);
        // Refused or not, nothing may come of it.
        drop(socket.send_to(&forged, (vtep, 8472)));
    }
    for (node, receiver, pod) in [(a, on_a, &a.pods[1]), (b, on_b, &b.pods[0])] {
        let peer = c.host.netns.within(|| UdpSocket::bind((c.host.underlay, 0))).expect("bind on the underlay");
        let honest = tunnelled(&cluster, node, source, pod, &[1; 17], ecn);
        peer.send_to(&honest, (node.host.underlay, 8472)).expect("the node is there");
        assert_eq!(next(&receiver), 17, "what was sent before it does not arrive");
    }
    let dropped: u64 = [a, b].into_iter().zip(before).map(|(node, before)| all_guarded(node) - before).sum();
    assert_eq!(dropped, 3);
}

#[test]
fn pods_reach_neither_metrics_nor_control_of_a_node() {
    const METRICS_PORT: u16 = 9477;
    let Some(cluster) = cluster(Wire::default(), Options { metrics: true, ..Options::ADAPTIVE }) else { return };
    let node = &cluster.a.host;
    let reaches = |address: IpAddr| {
        let at = SocketAddr::new(address, METRICS_PORT);
        TcpStream::connect_timeout(&at, Duration::from_millis(500)).is_ok()
    };
    let locks = || {
        let name = std::os::unix::net::SocketAddr::from_abstract_name("podwire").expect("a name");
        UnixStream::connect_addr(&name).is_ok()
    };
    let local = IpAddr::from([127, 0, 0, 1]);
    assert!(node.netns.within(|| reaches(local) && locks()), "the node itself does");
    for pod in [&cluster.a.pods[0], &cluster.b.pods[0], &cluster.c.pods[0]] {
        let addresses = [node.addresses(), node.gateways(), [local, IpAddr::from([0; 16])]].concat();
        let gained = pod.netns.within(|| addresses.into_iter().find(|address| reaches(*address)));
        assert_eq!(gained, None, "from {}", pod.name);
        assert!(!pod.netns.within(locks), "from {}", pod.name);
    }
}
