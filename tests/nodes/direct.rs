//! Nodes that do without the tunnel where they share a link, among nodes that do not.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use etherparse::PacketBuilder;
use podwire::control::api::Way;
use podwire::steer::{Program, Verdict};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::cluster;
use super::harness::{
    Capture, Cluster, Host, Options, Pod, PodwireNode, Wire, assert_all_pairs_talk, pings, tcp_transfer, udp_echo,
    wait_until,
};
use super::hostile::{datagram_with, to_vtep};

in_both_modes! {
    nodes_of_one_link_need_no_tunnel,
    a_peer_behind_a_router_keeps_the_tunnel_though_it_needs_none_itself,
    the_way_changes_under_traffic,
}

/// Nothing is sent that the test has not sent.
fn unprobed(options: Options) -> Options {
    Options { sections: "[probe]\ninterval_s = 0\n", ..options }
}

fn direct(options: Options) -> Options {
    Options { vxlan: "direct_routing = true", ..options }
}

/// A pod's address of the underlay's family.
fn address(cluster: &Cluster, pod: &Pod) -> IpAddr {
    pod.address_like(cluster.a.host.underlay)
}

/// The frames from each of `hosts` to the switch that `filter` lets through while `traffic` runs.
fn sent<const N: usize>(
    cluster: &Cluster,
    hosts: [&Host; N],
    filter: &str,
    traffic: impl FnOnce(),
) -> [Vec<Vec<u8>>; N] {
    let captures = hosts.map(|host| {
        let file = cluster.prefix.dir().join(format!("{}.pcap", host.name()));
        Capture::start(&cluster.switch.netns, &host.port(), filter, &file)
    });
    traffic();
    captures.map(Capture::frames)
}

/// UDP of several sizes, TCP and echoes, in the underlay's family.
#[track_caller]
fn exchange(cluster: &Cluster, from: &Pod, to: &Pod) {
    let to_address = address(cluster, to);
    let largest = cluster.a.host.wire.overlay_mtu() as usize - 48;
    let seen = udp_echo(from, to, to_address, &[0, 1, 17, 900, largest]).expect("UDP");
    assert_eq!(seen, address(cluster, from), "the source was translated");
    tcp_transfer(from, to, to_address, 2_000_000).expect("TCP");
    assert!(pings(from, to_address, ""), "{} -> {}", from.name, to.name);
}

/// The ways of node `a` to a peer.
fn ways(node: &PodwireNode, peer: &str) -> Vec<Way> {
    node.status().peers.into_iter().find(|known| known.name == peer).expect("a peer").ways
}

/// Of all packets that a node carries while `traffic` runs, the share of the fast path is as the mode promises.
#[track_caller]
fn by_the_modes_path(node: &PodwireNode, options: Options, traffic: impl FnOnce()) {
    let before = node.carried();
    traffic();
    let carried = node.carried().since(before);
    if options.is_kernel() {
        assert_eq!(carried.fast, 0);
    } else {
        assert!(carried.fast > 1000 && carried.fast_share() >= 0.99, "{carried:?}");
    }
}

fn nodes_of_one_link_need_no_tunnel(options: Options) {
    for wire in [Wire::default(), Wire { ipv6: true, ..Wire::default() }] {
        let Some(cluster) = cluster(wire, direct(unprobed(options))) else { return };
        let (a, b, c) = (&cluster.a, &cluster.b, &cluster.c);
        c.connect_directly(&a.peer());
        c.connect_directly(&b.peer());
        assert_eq!([ways(a, "node-b"), ways(a, "node-c")], [[Way::Vxlan, Way::Direct]; 2]);
        let found = a.cli(&format!("routes --lookup {} --output json", address(&cluster, &b.pods[0])));
        let found: Value = serde_json::from_str(&found).expect("JSON");
        assert_eq!((&found["way"], &found["device"]), (&json!("direct"), &json!("eth0")));
        let tunnelled = sent(&cluster, [&a.host, &b.host, &c.host], "udp port 8472", || {
            by_the_modes_path(a, options, || {
                for to in [&b.pods[0], &c.pods[0]] {
                    exchange(&cluster, &a.pods[0], to);
                    exchange(&cluster, to, &a.pods[0]);
                }
            });
        });
        assert_eq!(tunnelled.map(|frames| frames.len()), [0; 3], "no packet of the underlay's family is tunnelled");
        // The other family is, and nodes and pods reach each other.
        assert_all_pairs_talk(&cluster.pods());
        for node in [b.host.underlay, c.host.underlay] {
            assert!(pings(&a.pods[0], node, ""), "{node}");
            assert!(a.host.netns.output(&format!("ping -n -c 1 -W 2 {node}")).status.success());
        }
        let from_node = format!("ping -n -c 1 -W 2 {}", address(&cluster, &b.pods[0]));
        assert!(a.host.netns.output(&from_node).status.success());
        assert_eq!(cluster.bad_checksums(), 0);
    }
}

fn a_peer_behind_a_router_keeps_the_tunnel_though_it_needs_none_itself(options: Options) {
    let Some(cluster) = cluster(Wire::default(), direct(unprobed(options))) else { return };
    let (a, b, c) = (&cluster.a, &cluster.b, &cluster.c);
    let [router, behind] = [&b.host.underlay, &c.host.underlay];
    a.host.netns.run(&format!("ip route add {behind} via {router}"));
    let is_tunnelled = || ways(a, "node-c") == [Way::Vxlan];
    assert!(wait_until(Duration::from_secs(10), is_tunnelled), "{:?}", ways(a, "node-c"));
    assert_eq!(ways(a, "node-b"), [Way::Vxlan, Way::Direct]);
    // It sees node a on its own link: what it sends has no tunnel, what it gets has one.
    c.connect_directly(&a.peer());
    let [there, back] = sent(&cluster, [&a.host, &c.host], "udp port 8472", || {
        by_the_modes_path(a, options, || {
            exchange(&cluster, &a.pods[0], &c.pods[0]);
            exchange(&cluster, &c.pods[0], &a.pods[0]);
        });
    });
    assert!(there.len() > 100 && back.is_empty(), "{} frames tunnelled there, {} back", there.len(), back.len());
    a.host.netns.run(&format!("ip route del {behind} via {router}"));
    assert!(wait_until(Duration::from_secs(10), || !is_tunnelled()));
    exchange(&cluster, &a.pods[0], &c.pods[0]);
}

fn the_way_changes_under_traffic(options: Options) {
    let Some(mut cluster) = cluster(Wire::default(), unprobed(options)) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let streams = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                tcp_transfer(&from, &to, to.v4.into(), 30_000_000).expect("the stream goes on whatever the way");
            }
        });
        for is_direct in [true, false, true] {
            cluster.a.set_options(if is_direct { direct(unprobed(options)) } else { unprobed(options) });
            let expected = if is_direct { &[Way::Vxlan, Way::Direct][..] } else { &[Way::Vxlan] };
            assert!(wait_until(Duration::from_secs(10), || ways(&cluster.a, "node-b") == expected));
            assert!(pings(&cluster.a.pods[1], cluster.b.pods[1].v4.into(), ""));
        }
        is_over.store(true, Ordering::Relaxed);
        streams.join().expect("all streams end well");
    });
    // Only node a needs no tunnel now: node b, which uses one, takes what has none, and by the same path.
    by_the_modes_path(&cluster.b, options, || exchange(&cluster, &cluster.a.pods[0], &cluster.b.pods[0]));
}

#[test]
fn a_strict_reverse_path_filter_is_heeded_until_no_tunnel_is_wanted() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let netns = cluster.b.host.netns.clone();
    netns.sysctl("ipv4/conf/all/rp_filter", "1");
    cluster.a.set_options(direct(Options::ADAPTIVE));
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].v4.into());
    let is_left = || {
        let reached = pings(&from, to, "");
        !reached && cluster.b.verdict(Program::Nic, Verdict::Bare) > 0
    };
    assert!(wait_until(Duration::from_secs(10), is_left), "node b takes what its kernel would drop");
    cluster.b.set_options(direct(Options::ADAPTIVE));
    assert!(wait_until(Duration::from_secs(10), || pings(&from, to, "")));
    assert_eq!(netns.run("cat /proc/sys/net/ipv4/conf/eth0/rp_filter").trim(), "2");
    exchange(&cluster, &cluster.a.pods[0], &cluster.b.pods[0]);
}

/// A whole packet from one pod to another, each field of its IP header given.
fn packet(cluster: &Cluster, to: &Pod, payload: usize) -> (IpAddr, Vec<u8>) {
    let from = &cluster.a.pods[0];
    let step = match address(cluster, to) {
        IpAddr::V4(to) => {
            let mut ip = etherparse::Ipv4Header::new(0, 40, etherparse::IpNumber::UDP, from.v4.octets(), to.octets())
                .expect("a header");
            (ip.identification, ip.dont_fragment) = (0x1234, payload.is_multiple_of(2));
            ip.dscp = etherparse::IpDscp::try_new(11).expect("a code point");
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()))
        }
        IpAddr::V6(to) => PacketBuilder::ipv6(from.v6.octets(), to.octets(), 40),
    };
    let mut bytes = Vec::new();
    step.udp(4000, 4001).write(&mut bytes, &vec![0x5a; payload]).expect("writes to a vector");
    (address(cluster, to), bytes)
}

/// Has pod a1 send packets as they are.
fn send(cluster: &Cluster, packets: &[(IpAddr, Vec<u8>)]) {
    cluster.a.pods[0].netns.within(|| {
        let domain = if packets[0].0.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).expect("a raw socket");
        for (to, bytes) in packets {
            socket.send_to(bytes, &SockAddr::from(std::net::SocketAddr::new(*to, 0))).expect("sends");
        }
    });
}

#[test]
fn frames_are_byte_by_byte_those_that_the_kernel_forwards() {
    for wire in [Wire::default(), Wire { ipv6: true, ..Wire::default() }] {
        let Some(mut cluster) = cluster(wire, direct(unprobed(Options::ADAPTIVE))) else { return };
        let on_wire = |cluster: &Cluster| {
            let packets = [0, 1, 18, 333, 1000, 1352].map(|payload| packet(cluster, &cluster.b.pods[0], payload));
            let [frames] = sent(cluster, [&cluster.a.host], "udp dst port 4001", || send(cluster, &packets));
            assert_eq!(frames.len(), packets.len());
            frames
        };
        let claimed = |cluster: &Cluster| cluster.a.verdict(Program::Pod, Verdict::Claimed);
        let before = claimed(&cluster);
        let workers = on_wire(&cluster);
        assert!(claimed(&cluster) >= before + 6, "the workers have sent them");
        cluster.a.set_options(direct(unprobed(Options::KERNEL)));
        assert_eq!(workers, on_wire(&cluster));
    }
}

#[test]
fn nobody_on_the_link_is_taken_for_a_pod_of_the_node() {
    let Some(cluster) = cluster(Wire::default(), direct(unprobed(Options::ADAPTIVE))) else { return };
    let (a, c) = (&cluster.a, &cluster.c);
    let (victim, other) = (a.pods[0].v4, a.pods[1].v4);
    let filter = format!("icmp and src host {other}");
    let seen = Capture::start(&a.pods[0].netns, "eth0", &filter, &cluster.prefix.dir().join("seen.pcap"));
    c.host.netns.run(&format!("ip address add {other}/32 dev lo"));
    c.host.netns.run(&format!("ip route add {victim}/32 via {} src {other}", a.host.underlay));
    c.host.netns.output(&format!("ping -n -c 3 -i 0.2 -W 1 -I {other} {victim}"));
    assert!(a.verdict(Program::Nic, Verdict::SpoofWire) >= 3);
    assert_eq!(seen.frames().len(), 0, "no forged packet reaches the pod");
}

#[test]
fn packets_with_a_group_policy_are_taken_where_they_are_wanted() {
    let Some(mut cluster) = cluster(Wire::default(), unprobed(Options::ADAPTIVE)) else { return };
    let pod = cluster.a.pods[0].clone();
    let arrives = |cluster: &Cluster| {
        let server = pod.netns.within(|| UdpSocket::bind((pod.v4, 4001)).expect("a free port"));
        server.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        let mut datagram = datagram_with(cluster, &pod, b"policy", etherparse::IpEcn::NotEct);
        // The G bit and a policy (draft-smith-vxlan-group-policy-05, section 2.1).
        datagram[0] |= 0x80;
        datagram[2..4].copy_from_slice(&0x4000_u16.to_be_bytes());
        to_vtep(cluster, &cluster.c.host).send(&datagram).expect("sends");
        server.recv(&mut [0; 16]).is_ok()
    };
    assert!(!arrives(&cluster), "a device without group policies drops them");
    cluster.a.set_options(Options { vxlan: "gbp = true", ..unprobed(Options::ADAPTIVE) });
    assert!(arrives(&cluster));
    assert!(cluster.a.verdict(Program::Nic, Verdict::VxlanFlags) >= 2, "the kernel path is for them");
    exchange(&cluster, &cluster.a.pods[0], &cluster.b.pods[0]);
    exchange(&cluster, &cluster.c.pods[0], &cluster.a.pods[0]);
}
