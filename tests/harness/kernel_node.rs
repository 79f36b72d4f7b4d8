//! A node without podwire: plain kernel VXLAN, set up by `ip` and `bridge` in exactly Flannel's shape
//! (flannel `pkg/backend/vxlan/vxlan_network.go`): a device without learning, and for each other node a neighbour, a
//! forwarding entry and an onlink route; pods behind a bridge `cni0`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::netns::Prefix;
use super::site::{Host, Peer, Pod};

const DEVICE: &str = "flannel.1";

pub struct KernelNode {
    pub host: Host,
    pub pods: Vec<Pod>,
}

impl KernelNode {
    /// Sets the node up, with no pods and no peers.
    pub fn start(host: Host) -> Self {
        let node = Self { host, pods: Vec::new() };
        let Host { netns, uplink, underlay, wire, .. } = &node.host;
        let [v4, v6] = node.host.gateways();
        let [bridge_v4, bridge_v6] = node.bridge_addresses();
        netns.skip_dad();
        netns.sysctl("ipv4/ip_forward", "1");
        netns.sysctl("ipv6/conf/all/forwarding", "1");
        let mtu = wire.overlay_mtu();
        netns.run_all([
            format!(
                "ip link add {DEVICE} address {} mtu {mtu} \
                 type vxlan id 1 dev {uplink} local {underlay} dstport 8472 nolearning",
                node.vtep_mac()
            ),
            format!("ip address add {v4}/32 dev {DEVICE}"),
            format!("ip address add {v6}/128 dev {DEVICE} nodad"),
            format!("ip link set {DEVICE} up"),
            format!("ip link add cni0 mtu {mtu} type bridge stp_state 0 mcast_snooping 0"),
            format!("ip address add {bridge_v4}/24 dev cni0"),
            format!("ip address add {bridge_v6}/64 dev cni0 nodad"),
            "ip link set cni0 up".to_owned(),
        ]);
        node
    }

    pub fn vtep_mac(&self) -> String {
        format!("02:00:00:00:fe:{:02x}", self.host.index)
    }

    /// The addresses of `cni0`, its pods' gateways.
    pub fn bridge_addresses(&self) -> [IpAddr; 2] {
        let index = self.host.index;
        [Ipv4Addr::new(10, 244, index, 1).into(), Ipv6Addr::new(0xfd00, 0x244, index.into(), 0, 0, 0, 0, 1).into()]
    }

    pub fn peer(&self) -> Peer {
        self.host.peer(Some(self.vtep_mac()))
    }

    /// Makes a peer's pods reachable.
    pub fn connect(&self, peer: &Peer) {
        let underlay = peer.underlay;
        let vtep_mac = peer.vtep_mac.as_deref().expect("the kernel derives no MAC");
        let netns = &self.host.netns;
        netns.run(&format!("bridge fdb replace {vtep_mac} dev {DEVICE} self permanent dst {underlay}"));
        for (gateway, cidr) in peer.gateways().into_iter().zip(peer.pod_cidrs()) {
            netns.run_all([
                format!("ip neigh replace {gateway} lladdr {vtep_mac} dev {DEVICE} nud permanent"),
                format!("ip route replace {cidr} via {gateway} dev {DEVICE} onlink"),
            ]);
        }
    }

    /// Adds a pod behind the bridge, as the bridge plugin would.
    pub fn add_pod(&mut self, prefix: &Prefix, name: &str) {
        let netns = prefix.netns(name);
        netns.skip_dad();
        let (index, last) = (self.host.index, self.pods.len() + 2);
        let port = format!("veth-{name}");
        let [v4, v6] = self.bridge_addresses();
        let mtu = self.host.wire.overlay_mtu();
        self.host.netns.run_all([
            format!("ip link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()),
            format!("ip link set {port} master cni0 up"),
        ]);
        netns.run_all([
            format!("ip address add 10.244.{index}.{last}/24 dev eth0"),
            format!("ip address add fd00:244:{index}::{last}/64 dev eth0 nodad"),
            "ip link set eth0 up".to_owned(),
            format!("ip route add default via {v4}"),
            format!("ip route add default via {v6}"),
        ]);
        self.pods.push(Pod::of(name.to_owned(), netns));
    }
}
