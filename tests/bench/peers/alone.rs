//! One node under test, with a bare host at the other end of its wire, which makes and takes tunnel packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use etherparse::PacketBuilder;

use super::load::{Load, PORT};
use super::rate::{Extent, Sender};
use super::routes;
use super::systems::{Node, System};
use crate::harness::{Host, Pod, Prefix, Wire, cable, wait_until};

/// The device number of the other host's end of the wire; pods have their own.
pub const WIRE: u32 = 255;

/// From where UDP source ports are counted.
const FIRST_PORT: u16 = 10_000;

/// Where the outer UDP header has its checksum, which is left out as the kernel leaves it out.
const OUTER_CHECKSUM: std::ops::Range<usize> = 40..42;

/// Bytes of a frame that are no datagram's.
pub const HEADERS: usize = 14 + 20 + 8;

/// How long a gateway may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

type Mac = [u8; 6];

pub struct Alone {
    pub node: Node,
    other: Host,
    /// One to the other host's pods, and more to those of [`routes`].
    routes: u32,
    /// VNI and UDP port.
    tunnel: (u32, u16),
    /// Outer and inner addresses of frames for the node: from, to.
    outer: [Mac; 2],
    inner: [Mac; 2],
    /// Of each pod: its own MAC and its gateway's.
    pods: Vec<[Mac; 2]>,
    _prefix: Prefix,
}

impl System {
    /// Builds the first node alone, with so many pods and routes, and has the load leave by all devices and arrive there;
    /// pods that send by sockets are left as they are.
    pub fn build_alone(&self, (pods, routes): Extent, sender: Sender) -> Result<(Alone, Load), String> {
        let prefix = Prefix::fresh();
        let [host, other] = cable(&prefix, Wire::default());
        let [kind, _] = self.nodes;
        let kind = if routes > 1 { kind.with_routes(routes)? } else { kind };
        let (own, peer) = (kind.peer_at(&host), kind.peer_at(&other));
        let macs = [&other, &host].map(|host| mac(&host.netns.mac("eth0")));
        if routes > 1 {
            routes::lead_by(&host.netns, &other.underlay.to_string());
        }
        let mut node = Node::start(kind, &prefix, host, &peer)?;
        if let Node::Kernel(node) | Node::Steered(node) = &node {
            routes::add(node, routes - 1, prefix.dir());
        }
        for n in 1..=pods {
            node.add_pod(&prefix, &format!("a{n}"))?;
        }
        let pods = node.pods().iter().map(|pod| macs_of(pod, remote(&other))).collect();
        let inner = [&peer, &own].map(|peer| peer.vtep_mac.as_deref().map_or([2, 0, 0, 0, 0, 1], mac));
        let mut load = Load::new(prefix.dir())?;
        let rig = Alone { node, other, routes, tunnel: kind.tunnel(), outer: macs, inner, pods, _prefix: prefix };
        rig.connect(&mut load, sender)?;
        Ok((rig, load))
    }
}

impl Alone {
    fn connect(&self, load: &mut Load, sender: Sender) -> Result<(), String> {
        // Said again, now that both ends are up: only then the node's takes what a program redirects to it.
        self.other.netns.run_all(["ethtool -K eth0 gro off", "ethtool -K eth0 gro on"]);
        load.leave_by(WIRE, &self.other.netns, "eth0")?;
        load.sink(&self.other.netns, "eth0")?;
        for (number, pod) in (0..).zip(self.node.pods()) {
            if sender == Sender::Frames {
                let_leave(load, number, &self.node, pod)?;
            }
            load.sink(&pod.netns, "eth0")?;
        }
        Ok(())
    }

    /// A frame of `size` bytes of a flow, from a pod to one of so many nodes.
    pub fn out(&self, pod: usize, flow: u16, size: usize, nodes: u32) -> Vec<u8> {
        let [from, to] = self.pods[pod];
        frame(from, to, self.node.pods()[pod].v4, self.remote(flow, nodes), flow, size)
    }

    /// The same flow's ends.
    pub fn flow(&self, pod: usize, flow: u16, nodes: u32) -> [SocketAddrV4; 2] {
        let from = SocketAddrV4::new(self.node.pods()[pod].v4, FIRST_PORT + flow);
        [from, SocketAddrV4::new(self.remote(flow, nodes), PORT)]
    }

    /// A pod of one of so many nodes.
    fn remote(&self, flow: u16, nodes: u32) -> Ipv4Addr {
        match nodes {
            1 => remote(&self.other),
            // Far apart.
            nodes => routes::pod((u32::from(flow) % nodes).wrapping_mul(7919) % (self.routes - 1)),
        }
    }

    /// The same the other way, in its tunnel.
    pub fn inwards(&self, pod: usize, flow: u16, size: usize) -> Vec<u8> {
        let ([from, to], (vni, port)) = (self.inner, self.tunnel);
        let inner = frame(from, to, remote(&self.other), self.node.pods()[pod].v4, flow, size);
        let vxlan = [0x0800_0000_u32, vni << 8].map(u32::to_be_bytes).concat();
        let (IpAddr::V4(from), IpAddr::V4(to)) = (self.other.underlay, self.node.host().underlay) else {
            unreachable!("this wire has IPv4");
        };
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.outer[0], self.outer[1])
            .ipv4(from.octets(), to.octets(), 64)
            .udp(49_152 + flow, port)
            .write(&mut frame, &[vxlan, inner].concat())
            .expect("a frame fits in memory");
        frame[OUTER_CHECKSUM].fill(0);
        frame
    }
}

/// A pod of a host that has none.
fn remote(host: &Host) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, host.index, 2)
}

/// Lets packets of a pod leave by its device, under a number. Frames that a program redirects to a veth device arrive
/// only if its other end merges what it receives, and the kernel wants both ends to (`veth_set_xdp_features` in
/// drivers/net/veth.c).
pub fn let_leave(load: &mut Load, number: u32, node: &Node, pod: &Pod) -> Result<(), String> {
    let end = pod.netns.link("eth0")["link_index"].as_u64().expect("the other end of a veth pair");
    let node = &node.host().netns;
    pod.netns.run("ethtool -K eth0 gro on");
    node.run(&format!("ethtool -K {} gro on", node.device(end)));
    load.leave_by(number, &pod.netns, "eth0")
}

/// A frame of `size` bytes of a flow.
pub fn frame(from: Mac, to: Mac, source: Ipv4Addr, destination: Ipv4Addr, flow: u16, size: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from, to)
        .ipv4(source.octets(), destination.octets(), 64)
        .udp(FIRST_PORT + flow, PORT)
        .write(&mut frame, &vec![0; size - HEADERS])
        .expect("a frame fits in memory");
    frame
}

/// A pod's MAC and its gateway's, which a datagram makes it learn.
pub fn macs_of(pod: &Pod, destination: Ipv4Addr) -> [Mac; 2] {
    let send = || UdpSocket::bind((pod.v4, 0)).and_then(|socket| socket.send_to(&[], (destination, PORT)));
    pod.netns.within(send).unwrap_or_else(|error| panic!("{} cannot send: {error}", pod.name));
    let mut gateway = None;
    wait_until(PATIENCE, || {
        let printed = pod.netns.run("ip -json -4 neigh show dev eth0");
        let neighbours: serde_json::Value = serde_json::from_str(&printed).expect("ip prints JSON");
        gateway =
            neighbours.as_array().into_iter().flatten().find_map(|neighbour| neighbour["lladdr"].as_str().map(mac));
        gateway.is_some()
    });
    [mac(&pod.netns.mac("eth0")), gateway.unwrap_or_else(|| panic!("{} finds no gateway", pod.name))]
}

fn mac(text: &str) -> Mac {
    let octets: Vec<u8> = text.split(':').filter_map(|octet| u8::from_str_radix(octet, 16).ok()).collect();
    octets.try_into().unwrap_or_else(|_| panic!("`{text}` is no MAC"))
}
