//! A node without podwire: plain kernel VXLAN, set up by `ip` and `bridge` in exactly Flannel's shape
//! (flannel `pkg/backend/vxlan/vxlan_network.go`): a device without learning, and for each other node a neighbour, a
//! forwarding entry and an onlink route; pods behind a bridge `cni0`; of a dual-stack node a second device with a MAC of
//! its own for what is IPv6. Or in Calico's: another VNI and port, and each pod
//! behind a route of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netns::{Netns, Prefix};
use super::site::{Host, Peer, Pod, Wire};

/// The gateway of Calico's pods, which nobody has: the node answers for it (`proxy_arp`).
const CALICO_GATEWAY: &str = "169.254.1.1";

/// Calico's MAC of every node's end of a pod's wire, and the address that follows from it.
const CALICO_MAC: &str = "ee:ee:ee:ee:ee:ee";
const CALICO_GATEWAY_V6: &str = "fe80::ecee:eeff:feee:eeee";

/// Whose set-up a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Flannel,
    Calico,
}

impl Shape {
    fn device(self) -> &'static str {
        match self {
            Self::Flannel => "flannel.1",
            Self::Calico => "vxlan.calico",
        }
    }

    /// What carries IPv6 where the nodes have a VTEP of each family.
    fn second_device(self) -> &'static str {
        match self {
            Self::Flannel => "flannel-v6.1",
            Self::Calico => "vxlan-v6.calico",
        }
    }

    /// VNI and UDP port.
    pub fn tunnel(self) -> (u32, u16) {
        match self {
            Self::Flannel => (1, 8472),
            Self::Calico => (4096, 4789),
        }
    }
}

pub struct KernelNode {
    pub host: Host,
    pub pods: Vec<Pod>,
    shape: Shape,
}

impl KernelNode {
    /// Sets the node up in Flannel's shape, with no pods and no peers.
    pub fn start(host: Host) -> Self {
        Self::shaped(host, Shape::Flannel)
    }

    /// Sets the node up, with no pods and no peers.
    pub fn shaped(host: Host, shape: Shape) -> Self {
        let node = Self { host, pods: Vec::new(), shape };
        let Host { netns, uplink, underlay, wire, .. } = &node.host;
        let [v4, v6] = node.host.gateways();
        netns.skip_dad();
        netns.sysctl("ipv4/ip_forward", "1");
        netns.sysctl("ipv6/conf/all/forwarding", "1");
        let (device, (vni, port), mtu) = (shape.device(), shape.tunnel(), node.mtu());
        let mut ends = vec![(device, *underlay, node.vtep_mac())];
        ends.extend(wire.dual.then(|| (shape.second_device(), node.host.addresses()[1], vtep_mac6(&node.host))));
        for (device, local, mac) in &ends {
            netns.run(&format!(
                "ip link add {device} address {mac} mtu {mtu} \
                 type vxlan id {vni} dev {uplink} local {local} dstport {port} nolearning",
            ));
        }
        let of_v6 = if wire.dual { shape.second_device() } else { device };
        netns.run_all([
            format!("ip address add {v4}/32 dev {device}"),
            format!("ip address add {v6}/128 dev {of_v6} nodad"),
        ]);
        for (device, ..) in &ends {
            netns.run(&format!("ip link set {device} up"));
        }
        match shape {
            Shape::Flannel => node.add_bridge(),
            // The kernel answers ARP for what it would send elsewhere.
            Shape::Calico => drop(netns.run(&format!("ip route add default dev {uplink}"))),
        }
        node
    }

    fn add_bridge(&self) {
        let [v4, v6] = self.bridge_addresses();
        self.host.netns.run_all([
            format!("ip link add cni0 mtu {} type bridge stp_state 0 mcast_snooping 0", self.mtu()),
            format!("ip address add {v4}/24 dev cni0"),
            format!("ip address add {v6}/64 dev cni0 nodad"),
            "ip link set cni0 up".to_owned(),
        ]);
    }

    /// What it has its devices and pods send at most. For dual-stack nodes too Flannel takes the overhead of IPv4 off, and
    /// leaves it to the kernel to lower the MTU of the IPv6 device (`pkg/backend/vxlan/device.go`).
    fn mtu(&self) -> u32 {
        Wire { dual: false, ..self.host.wire }.overlay_mtu()
    }

    /// The name of its VXLAN device.
    pub fn device(&self) -> &'static str {
        self.shape.device()
    }

    pub fn vtep_mac(&self) -> String {
        vtep_mac(&self.host)
    }

    /// The addresses of `cni0`, its pods' gateways.
    pub fn bridge_addresses(&self) -> [IpAddr; 2] {
        let index = self.host.index;
        [Ipv4Addr::new(10, 244, index, 1).into(), Ipv6Addr::new(0xfd00, 0x244, index.into(), 0, 0, 0, 0, 1).into()]
    }

    pub fn peer(&self) -> Peer {
        Self::peer_at(&self.host)
    }

    /// What the others must know of the node that this host is going to be.
    pub fn peer_at(host: &Host) -> Peer {
        Peer { vtep_mac6: host.wire.dual.then(|| vtep_mac6(host)), ..host.peer(Some(vtep_mac(host))) }
    }

    /// Makes a peer's pods reachable.
    pub fn connect(&self, peer: &Peer) {
        let first = (self.shape.device(), peer.underlay, peer.vtep_mac.as_ref());
        let second = peer.underlay6.map(|underlay| (self.shape.second_device(), underlay, peer.vtep_mac6.as_ref()));
        let ends = [first, second.unwrap_or(first)];
        for ((gateway, cidr), (device, underlay, mac)) in peer.gateways().into_iter().zip(peer.pod_cidrs()).zip(ends) {
            let mac = mac.expect("the kernel derives no MAC");
            self.host.netns.run_all([
                format!("ip neigh replace {gateway} lladdr {mac} dev {device} nud permanent"),
                format!("bridge fdb replace {mac} dev {device} self permanent dst {underlay}"),
                format!("ip route replace {cidr} via {gateway} dev {device} onlink"),
            ]);
        }
    }

    /// Makes a peer's pods of the underlay's family reachable without a tunnel, as `DirectRouting` does.
    pub fn connect_directly(&self, peer: &Peer) {
        let underlay = peer.underlay;
        let [v4, v6] = peer.pod_cidrs();
        let cidr = if underlay.is_ipv4() { v4 } else { v6 };
        self.host.netns.run(&format!("ip route replace {cidr} via {underlay}"));
    }

    /// Adds a pod as the shape's CNI plugin would.
    pub fn add_pod(&mut self, prefix: &Prefix, name: &str) {
        let netns = prefix.netns(name);
        netns.skip_dad();
        let (port, mtu) = (format!("veth-{name}"), self.mtu());
        self.host
            .netns
            .run(&format!("ip link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()));
        match self.shape {
            Shape::Flannel => self.plug_in(&netns, &port),
            Shape::Calico => self.route_to(&netns, &port),
        }
        self.pods.push(Pod::of(name.to_owned(), netns));
    }

    /// The last part of the next pod's addresses.
    fn next(&self) -> usize {
        self.pods.len() + 2
    }

    /// Behind the bridge.
    fn plug_in(&self, pod: &Netns, port: &str) {
        let (index, last) = (self.host.index, self.next());
        let [v4, v6] = self.bridge_addresses();
        self.host.netns.run(&format!("ip link set {port} master cni0 up"));
        pod.run_all([
            format!("ip address add 10.244.{index}.{last}/24 dev eth0"),
            format!("ip address add fd00:244:{index}::{last}/64 dev eth0 nodad"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via {v4}"),
            format!("ip route add default via {v6}"),
        ]);
    }

    /// Behind a route of its own (Calico's `cni-plugin/pkg/dataplane/linux/dataplane_linux.go`).
    fn route_to(&self, pod: &Netns, port: &str) {
        let (index, last) = (self.host.index, self.next());
        let node = &self.host.netns;
        node.run_all([
            format!("ip link set {port} address {CALICO_MAC} up"),
            format!("ip route add 10.244.{index}.{last}/32 dev {port}"),
            format!("ip route add fd00:244:{index}::{last}/128 dev {port}"),
        ]);
        node.sysctl(&format!("ipv4/conf/{port}/proxy_arp"), "1");
        node.sysctl(&format!("ipv4/neigh/{port}/proxy_delay"), "0");
        pod.run_all([
            format!("ip address add 10.244.{index}.{last}/32 dev eth0"),
            format!("ip address add fd00:244:{index}::{last}/128 dev eth0 nodad"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add {CALICO_GATEWAY} dev eth0 scope link"),
            format!("ip route add default via {CALICO_GATEWAY} dev eth0"),
            format!("ip route add default via {CALICO_GATEWAY_V6} dev eth0"),
        ]);
    }
}

fn vtep_mac6(host: &Host) -> String {
    format!("02:00:00:06:fe:{:02x}", host.index)
}

fn vtep_mac(host: &Host) -> String {
    format!("02:00:00:00:fe:{:02x}", host.index)
}
