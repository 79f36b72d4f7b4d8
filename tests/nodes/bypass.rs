//! TCP that no worker takes, past the stacks of the nodes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use podwire::steer::{Program, Verdict};

use super::cluster;
use super::harness::{
    Capture, Cluster, Options, Pod, PodwireNode, VXLAN_DEVICE, Wire, pings, tcp_transfer, udp_echo, wait_until,
};

const PATIENCE: Duration = Duration::from_secs(10);

const WITHOUT: Options = Options { sections: "bypass = false\n", ..Options::WITHOUT_XDP };

/// Has a node count what its stack forwards of `packets`, and drop what it has seen half of, as kube-proxy does.
pub(super) fn count_forwarded_of(packets: &str, node: &PodwireNode) {
    node.host.netns.run_all([
        "nft add table inet seen",
        "nft add chain inet seen forward { type filter hook forward priority 0 ; }",
        &format!("nft add rule inet seen forward {packets} counter"),
        "nft add rule inet seen forward ct state invalid drop",
    ]);
}

fn count_forwarded(node: &PodwireNode) {
    count_forwarded_of("meta l4proto tcp", node);
}

/// How many of these packets the stack of a node has forwarded.
pub(super) fn forwarded(node: &PodwireNode) -> u64 {
    let printed = node.host.netns.run("nft list table inet seen");
    let (_, count) = printed.split_once("counter packets ").expect("a counter");
    count.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
}

/// What the programs of a node have sent past its stack, from its pods and to them.
fn bypassed(node: &PodwireNode) -> [u64; 2] {
    [Program::Pod, Program::Tunnel].map(|program| node.verdict(program, Verdict::Bypass))
}

/// Moves bytes both ways by every family.
#[track_caller]
fn transfer(from: &Pod, to: &Pod) {
    for (from, to) in [(from, to), (to, from)] {
        for destination in to.addresses() {
            tcp_transfer(from, to, destination, 2_000_000).unwrap_or_else(|e| panic!("to {destination}: {e}"));
        }
    }
}

#[test]
fn tcp_between_pods_of_two_nodes_is_not_seen_by_their_stacks() {
    let plain = Wire::default();
    for wire in [plain, Wire { ipv6: true, ..plain }, Wire { dual: true, ..plain }, Wire { uncut: true, ..plain }] {
        let Some(cluster) = cluster(wire, Options::WITHOUT_XDP) else { return };
        let Cluster { a, b, c, .. } = &cluster;
        count_forwarded(a);
        let from = &a.pods[0];
        for to in [&b.pods[0], &c.pods[0]] {
            let before = bypassed(a);
            transfer(from, to);
            assert!(bypassed(a).iter().zip(before).all(|(now, before)| *now > before + 10), "{:?}", bypassed(a));
        }
        assert_eq!(forwarded(a), 0, "all of it went past");
        let to = &b.pods[0];
        for destination in to.addresses() {
            assert!(pings(from, destination, "-s 3000"), "in fragments");
            udp_echo(from, to, destination, &[10, 1000]).expect("UDP");
        }
        assert_eq!(cluster.bad_checksums(), 0);
    }
}

/// As a router does: each of the two nodes is a hop.
#[test]
fn tcp_that_goes_past_the_stacks_has_had_its_hops() {
    let Some(cluster) = cluster(Wire::default(), Options::WITHOUT_XDP) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let file = cluster.prefix.dir().join("hops.pcap");
    let capture = Capture::start(&to.netns, "eth0", &format!("tcp and src host {}", from.v4), &file);
    tcp_transfer(from, to, to.v4.into(), 100_000).expect("TCP");
    let frames = capture.frames();
    assert!(!frames.is_empty() && frames.iter().all(|frame| frame[22] == 62), "{:?}", frames.first());
}

#[test]
fn it_can_be_switched_off_and_on_under_a_connection() {
    let Some(mut cluster) = cluster(Wire::default(), WITHOUT) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    count_forwarded(&cluster.a);
    transfer(&from, &to);
    assert_eq!((bypassed(&cluster.a), forwarded(&cluster.a) > 20), ([0; 2], true), "the stack has all");
    let mut connection = Connection::open(&from, &to);
    for (options, is_bypassed) in [(Options::WITHOUT_XDP, true), (WITHOUT, false), (Options::WITHOUT_XDP, true)] {
        cluster.a.set_options(options);
        let (before, seen) = (bypassed(&cluster.a), forwarded(&cluster.a));
        connection.ask(20);
        Connection::open(&from, &to).ask(2);
        Connection::open(&to, &from).ask(2);
        let has_grown = bypassed(&cluster.a).into_iter().zip(before).map(|(now, before)| now >= before + 20);
        assert!(has_grown.eq([is_bypassed; 2]), "{:?} since {before:?}", bypassed(&cluster.a));
        assert_eq!(forwarded(&cluster.a) > seen, !is_bypassed);
    }
}

#[test]
fn it_goes_on_without_the_daemon_and_under_the_next_one() {
    let Some(mut cluster) = cluster(Wire::default(), Options::WITHOUT_XDP) else { return };
    let (from, to) = (cluster.a.pods[0].clone(), cluster.b.pods[0].clone());
    count_forwarded(&cluster.a);
    let mut connection = Connection::open(&from, &to);
    connection.ask(20);
    for end in [PodwireNode::kill, PodwireNode::stop] {
        meanwhile_others_open(&from, &to, || {
            end(&mut cluster.a);
            connection.ask(20);
            cluster.a.launch();
        });
        let before = bypassed(&cluster.a);
        connection.ask(20);
        assert!(bypassed(&cluster.a).iter().zip(before).all(|(now, before)| *now >= before + 20));
    }
    assert_eq!(forwarded(&cluster.a), 0, "at no time");
    cluster.a.uninstall_data_plane();
    connection.ask(20);
    assert!(forwarded(&cluster.a) >= 40, "the kernel path alone");
}

/// Opens connections there and back, over and over, until `event` is over. Each must open at once: a segment of which a
/// stack has not seen the other half would be sent again after a second.
#[track_caller]
fn meanwhile_others_open(from: &Pod, to: &Pod, event: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let (mut opened, mut longest) = (0, Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [(from, to), (to, from)] {
                    let start = Instant::now();
                    Connection::open(from, to).ask(1);
                    (opened, longest) = (opened + 1, longest.max(start.elapsed()));
                }
            }
            (opened, longest)
        });
        event();
        done.store(true, Ordering::Relaxed);
        let (opened, longest) = opening.join().expect("each connection opens");
        assert!(opened > 10 && longest < Duration::from_millis(900), "{opened}, the slowest in {longest:?}");
    });
}

/// There IPv4 does not go by the VXLAN device.
#[test]
fn connections_without_the_tunnel_are_the_stacks() {
    let options =
        Options { vxlan: "direct_routing = true", sections: "[probe]\ninterval_s = 0\n", ..Options::WITHOUT_XDP };
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    count_forwarded(&cluster.a);
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    tcp_transfer(from, to, to.v4.into(), 2_000_000).expect("TCP");
    assert_eq!((bypassed(&cluster.a), forwarded(&cluster.a) > 20), ([0; 2], true));
}

/// A program or filter there might have the stack get what comes, while the answers go past.
#[test]
fn with_something_of_others_on_the_vxlan_device_connections_are_the_stacks() {
    let Some(cluster) = cluster(Wire::default(), Options::WITHOUT_XDP) else { return };
    let (a, from, to) = (&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
    count_forwarded(a);
    a.host.netns.run(&format!("tc qdisc add dev {VXLAN_DEVICE} root tbf rate 1gbit burst 64kb latency 200ms"));
    let are_the_stacks = || {
        let before = bypassed(a);
        Connection::open(from, to).ask(5);
        Connection::open(to, from).ask(5);
        bypassed(a) == before
    };
    assert!(wait_until(PATIENCE, are_the_stacks));
    a.host.netns.run(&format!("tc qdisc del dev {VXLAN_DEVICE} root"));
    assert!(wait_until(PATIENCE, || !are_the_stacks()));
}

/// A connection from a pod to another, which echoes.
struct Connection {
    near: TcpStream,
    far: TcpStream,
}

impl Connection {
    fn open(from: &Pod, to: &Pod) -> Self {
        let listener = to.netns.within(|| TcpListener::bind((to.v4, 0))).expect("binds");
        let target: SocketAddr = listener.local_addr().expect("an address");
        let near = from.netns.within(|| TcpStream::connect_timeout(&target, PATIENCE)).expect("connects");
        let (far, _) = listener.accept().expect("accepts");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        }
        Self { near, far }
    }

    /// Has so many words go there and back.
    #[track_caller]
    fn ask(&mut self, times: u32) {
        for n in 0..times {
            let mut word = [0; 4];
            self.near.write_all(&n.to_be_bytes()).expect("writes");
            self.far.read_exact(&mut word).expect("the word arrives");
            self.far.write_all(&word).expect("writes");
            self.near.read_exact(&mut word).expect("the answer arrives");
            assert_eq!(word, n.to_be_bytes());
        }
    }
}
