//! Two nodes with a pod each, their packets, and workers over memory ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use ipnet::IpNet;
use podwire::fib::{Fib, LocalPod, NextHop, Publisher, Remote};
use podwire::frame::Region;
use podwire::ids::{IfIndex, PodId};
use podwire::pipeline::{Node, Pipeline};
use podwire::port::memory::{FromPod, MemoryPods, MemoryWire};
use podwire::wire::{Mac, OuterParams, OuterTemplate, Vni};
use podwire::worker::Worker;

pub type MemoryWorker = Worker<MemoryWire, MemoryPods>;

pub const PORT: u16 = 8472;
pub const MTU: u16 = 1450;
pub const FRAMES: u32 = 256;

/// The family of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    V4,
    V6,
}

impl Underlay {
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub fn vtep(self, node: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 168, 1, node + 1).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 0, u16::from(node) + 1).into(),
        }
    }

    /// Bytes before the inner IP packet.
    pub fn outer_len(self) -> usize {
        match self {
            Self::V4 => 64,
            Self::V6 => 84,
        }
    }
}

pub fn uplink_mac(node: u8) -> Mac {
    Mac([2, 0, 0, 0, 0xaa, node])
}

pub fn vtep_mac(node: u8) -> Mac {
    Mac([2, 0, 0, 0, 0xff, node])
}

pub fn pod_v4(node: u8) -> [u8; 4] {
    [10, 244, node, 5]
}

pub fn pod_v6(node: u8) -> [u8; 16] {
    Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, 5).octets()
}

/// The one pod of each node.
pub fn pod(node: u8) -> LocalPod {
    LocalPod {
        id: PodId::new(7).unwrap(),
        ifindex: IfIndex(70),
        mac: Mac([2, 0, 0, 0, 0xcc, node]),
        gateway_mac: Mac([2, 0, 0, 0, 0xbb, node]),
    }
}

pub fn table(node: u8, underlay: Underlay) -> Fib {
    let peer = 3 - node;
    let outer = OuterTemplate::new(&OuterParams {
        src_mac: uplink_mac(node),
        dst_mac: uplink_mac(peer),
        local: underlay.vtep(node),
        remote: underlay.vtep(peer),
        port: PORT,
        vni: Vni::new(1).unwrap(),
        ttl: 64,
        inner_src: vtep_mac(node),
        inner_dst: vtep_mac(peer),
        udp_checksum: true,
    });
    table_by(node, outer.unwrap())
}

/// A worker that sends to the other node without a tunnel.
pub fn direct_worker(node: u8, underlay: Underlay) -> MemoryWorker {
    let peer = 3 - node;
    let outer = OuterTemplate::direct(uplink_mac(node), uplink_mac(peer), underlay.vtep(peer));
    worker_with(node, underlay, table_by(node, outer))
}

fn table_by(node: u8, outer: OuterTemplate) -> Fib {
    let peer = 3 - node;
    let net = |text: String| text.parse::<IpNet>().unwrap();
    let remote = NextHop::Remote(Remote { outer, mtu: MTU });
    Fib::build([
        (net(format!("10.244.{node}.0/24")), NextHop::Blackhole),
        (net(format!("fd00:244:{node}::/64")), NextHop::Blackhole),
        (IpNet::from(IpAddr::from(pod_v4(node))), NextHop::Local(pod(node))),
        (IpNet::from(IpAddr::from(pod_v6(node))), NextHop::Local(pod(node))),
        (net(format!("10.244.{peer}.0/24")), remote.clone()),
        (net(format!("fd00:244:{peer}::/64")), remote),
    ])
}

/// A worker of node 1 or 2 with [`FRAMES`] frames that remembers what it sends and delivers.
pub fn worker(node: u8, underlay: Underlay) -> MemoryWorker {
    worker_with(node, underlay, table(node, underlay))
}

fn worker_with(node: u8, underlay: Underlay, table: Fib) -> MemoryWorker {
    let (_region, pool) = Region::map(FRAMES).unwrap();
    let mut publisher = Publisher::new(table);
    let pipeline = Pipeline::new(this(node, underlay));
    Worker::new(MemoryWire::recording(), MemoryPods::recording(), pool, pipeline, publisher.reader())
}

pub fn this(node: u8, underlay: Underlay) -> Node {
    Node {
        vtep: underlay.vtep(node),
        vtep_mac: vtep_mac(node),
        second: None,
        uplink_mac: uplink_mac(node),
        port: PORT,
        vni: Vni::new(1).unwrap(),
    }
}

/// What the worker sent on the wire since the last call.
pub fn sent(worker: &mut MemoryWorker) -> Vec<Vec<u8>> {
    worker.wire.sent.as_mut().map(std::mem::take).unwrap()
}

/// What the worker delivered to its pod since the last call.
pub fn delivered(worker: &mut MemoryWorker) -> Vec<Vec<u8>> {
    let all = worker.pods.delivered.as_mut().map(std::mem::take).unwrap();
    all.into_iter().map(|packet| packet.frame).collect()
}

/// Offers a frame as the pod of the worker's node sent it.
pub fn from_pod(worker: &mut MemoryWorker, frame: &[u8]) {
    with_request(worker, frame, [0; 10]);
}

/// Offers a frame with its virtio header.
pub fn with_request(worker: &mut MemoryWorker, frame: &[u8], virtio: [u8; 10]) {
    worker.pods.incoming.push(FromPod { pod: pod(1).id, from_wire: false, virtio, frame: Some(frame.to_vec()) });
}

/// Offers a frame from the wire as the kernel has received it for the pod of the worker's node.
pub fn received(worker: &mut MemoryWorker, frame: Option<Vec<u8>>, virtio: [u8; 10]) {
    worker.pods.incoming.push(FromPod { pod: pod(1).id, from_wire: true, virtio, frame });
}

/// All frames are back in the pool.
pub fn assert_conserved(worker: &MemoryWorker) {
    assert_eq!(worker.pool.len(), FRAMES as usize, "{:?}", worker.tally);
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2(pod(1).mac.0, pod(1).gateway_mac.0)
}

fn finish<T>(builder: impl FnOnce(&mut Vec<u8>) -> T) -> Vec<u8> {
    let mut frame = Vec::new();
    builder(&mut frame);
    frame
}

/// A UDP datagram from the pod of node 1 to the one of node 2.
pub fn udp_v4(payload: &[u8], ttl: u8) -> Vec<u8> {
    let builder = ethernet().ipv4(pod_v4(1), pod_v4(2), ttl).udp(4000, 5000);
    finish(|frame| builder.write(frame, payload).unwrap())
}

pub fn udp_v6(payload: &[u8], hop_limit: u8) -> Vec<u8> {
    let builder = ethernet().ipv6(pod_v6(1), pod_v6(2), hop_limit).udp(4000, 5000);
    finish(|frame| builder.write(frame, payload).unwrap())
}

pub fn tcp_v4(payload: &[u8]) -> Vec<u8> {
    let builder = ethernet().ipv4(pod_v4(1), pod_v4(2), 64).tcp(4000, 5000, 77, 1000).ack(3);
    finish(|frame| builder.write(frame, payload).unwrap())
}

pub fn tcp_v6(payload: &[u8]) -> Vec<u8> {
    let builder = ethernet().ipv6(pod_v6(1), pod_v6(2), 64).tcp(4000, 5000, 77, 1000).ack(3);
    finish(|frame| builder.write(frame, payload).unwrap())
}

pub fn ping_v4(payload: &[u8]) -> Vec<u8> {
    let builder = ethernet().ipv4(pod_v4(1), pod_v4(2), 64).icmpv4_echo_request(1, 2);
    finish(|frame| builder.write(frame, payload).unwrap())
}

pub fn ping_v6(payload: &[u8]) -> Vec<u8> {
    let builder = ethernet().ipv6(pod_v6(1), pod_v6(2), 64).icmpv6_echo_request(1, 2);
    finish(|frame| builder.write(frame, payload).unwrap())
}

/// One packet of each kind that the fast path carries.
pub fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let payload: Vec<u8> = (0..=255).collect();
    vec![
        ("UDP over IPv4", udp_v4(&payload, 64)),
        ("empty UDP over IPv4", udp_v4(&[], 64)),
        ("UDP over IPv6", udp_v6(&payload, 64)),
        ("TCP over IPv4", tcp_v4(&payload)),
        ("TCP over IPv6", tcp_v6(&payload)),
        ("ICMP", ping_v4(&payload)),
        ("ICMPv6", ping_v6(&payload)),
        ("the largest packet", udp_v4(&vec![9; usize::from(MTU) - 28], 64)),
    ]
}

/// The VXLAN frame that node 1 makes of a pod's frame, as it reaches node 2.
pub fn encapsulated(frame: &[u8], underlay: Underlay) -> Vec<u8> {
    let mut sender = worker(1, underlay);
    from_pod(&mut sender, frame);
    sender.poll_once();
    sent(&mut sender).pop().expect("the frame is carried")
}
