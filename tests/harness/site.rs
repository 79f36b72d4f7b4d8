//! The ground that nodes stand on: a switch, and hosts with an uplink to it.
//!
//! ```text
//!   switch namespace            host namespace            pod namespaces
//!   ┌──────────────┐ veth wire ┌───────────────────┐ veth ┌──────────────┐
//!   │ br0 ── port-a ├──────────┤ eth0  192.168.1.2 ├──────┤ eth0 of pod a1│
//!   │     └─ port-b ├── …      └───────────────────┘      └──────────────┘
//!   └──────────────┘
//! ```
//!
//! A veth wire would carry partial checksums and super-packets, which no cable does: both ends of each wire have their
//! offloads off, so that what crosses it is complete frames of at most the MTU. Pods keep their offloads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread;

use super::netns::{Netns, Prefix};

/// What the underlay looks like.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// IPv6 instead of IPv4 between the nodes.
    pub ipv6: bool,
    /// IPv6 beside IPv4: each node has a VTEP of each family.
    pub dual: bool,
    pub mtu: u32,
    /// Receive and transmit queues of each uplink.
    pub queues: u32,
    /// Nodes speak through `eth0.<id>` instead of `eth0`.
    pub vlan: Option<u16>,
    /// Checksums are left unfinished and packets uncut, as between containers. Else it behaves as a cable.
    pub uncut: bool,
}

impl Default for Wire {
    fn default() -> Self {
        Self { ipv6: false, dual: false, mtu: 1500, queues: 1, vlan: None, uncut: false }
    }
}

impl Wire {
    /// What an inner packet has left of the MTU (RFC 7348 section 4.3).
    pub fn overlay_mtu(&self) -> u32 {
        self.mtu - if self.ipv6 || self.dual { 70 } else { 50 }
    }
}

/// A namespace with a bridge.
pub struct Switch {
    pub netns: Netns,
    wire: Wire,
}

impl Switch {
    pub fn new(prefix: &Prefix, wire: Wire) -> Self {
        let netns = prefix.netns("switch");
        netns.run_all(["ip link add br0 type bridge stp_state 0 mcast_snooping 0", "ip link set br0 up"]);
        Self { netns, wire }
    }

    /// A host plugged into the switch. `index` makes its addresses: 192.168.1.(index + 1), pods in 10.244.index.0/24.
    pub fn host(&self, prefix: &Prefix, letter: char, index: u8) -> Host {
        let host = Host::new(prefix.netns(&format!("node-{letter}")), self.wire, letter, index);
        self.plug(&host);
        host
    }

    /// Makes the wire from the switch to a host, which has lost its end or never had one.
    pub fn plug(&self, host: &Host) {
        let (port, Wire { queues, mtu, uncut, .. }) = (host.port(), self.wire);
        let offloads = if uncut { "tx on tso on gso on" } else { "tx off tso off gso off" };
        self.netns.run_all([
            format!(
                "ip link add {port} mtu {mtu} numtxqueues {queues} numrxqueues {queues} type veth \
                 peer name eth0 mtu {mtu} numtxqueues {queues} numrxqueues {queues} netns {}",
                host.netns.name()
            ),
            format!("ip link set {port} master br0 up"),
            format!("ethtool -K {port} {offloads} gro off"),
        ]);
        host.bring_up(&format!("ethtool -K eth0 {offloads}"));
    }
}

/// Two hosts, `a` and `b`, with one wire between them and no switch. Both merge what they receive, as NICs' drivers do,
/// and have a queue for what they send, as NICs have: a veth device drops at once what the other end has no room for.
pub fn cable(prefix: &Prefix, wire: Wire) -> [Host; 2] {
    let [a, b] = [('a', 1), ('b', 2)]
        .map(|(letter, index)| Host::new(prefix.netns(&format!("node-{letter}")), wire, letter, index));
    let Wire { queues, mtu, .. } = wire;
    let end = format!("name eth0 mtu {mtu} numtxqueues {queues} numrxqueues {queues}");
    a.netns.run(&format!("ip link add {end} type veth peer {end} netns {}", b.netns.name()));
    for host in [&a, &b] {
        host.bring_up("ethtool -K eth0 tx off tso off gso off gro on");
        host.netns.run("tc qdisc add dev eth0 root pfifo_fast");
    }
    [a, b]
}

/// A machine before anything of an overlay is set up.
pub struct Host {
    pub netns: Netns,
    pub letter: char,
    pub index: u8,
    /// The device towards the switch.
    pub uplink: String,
    pub underlay: IpAddr,
    pub wire: Wire,
}

impl Host {
    fn new(netns: Netns, wire: Wire, letter: char, index: u8) -> Self {
        let uplink = wire.vlan.map_or("eth0".to_owned(), |id| format!("eth0.{id}"));
        let underlay = addresses(index)[usize::from(wire.ipv6)];
        Self { netns, letter, index, uplink, underlay, wire }
    }

    /// The core of the `nth` thread that carries its packets, if some do so in userspace.
    pub fn core(&self, nth: usize) -> usize {
        (usize::from(self.index) + nth) % thread::available_parallelism().map_or(1, usize::from)
    }

    /// Makes its end of the wire ready for use.
    fn bring_up(&self, offloads: &str) {
        self.netns.run_all([offloads, "ip link set eth0 up"]);
        if let Some(vlan) = self.wire.vlan {
            self.netns.run_all([
                format!("ip link add link eth0 name {} type vlan id {vlan}", self.uplink),
                format!("ip link set {} up", self.uplink),
            ]);
        }
        // Debian's choice (systemd's 50-default.conf).
        self.netns.sysctl("ipv4/conf/all/rp_filter", "2");
        for address in self.addresses() {
            self.netns.run(&format!("ip address add {} dev {} nodad", with_prefix(address), self.uplink));
        }
    }

    pub fn name(&self) -> String {
        format!("node-{}", self.letter)
    }

    /// The switch's end of the wire.
    pub fn port(&self) -> String {
        format!("port-{}", self.letter)
    }

    /// Its addresses of both families; one is that of the underlay.
    pub fn addresses(&self) -> [IpAddr; 2] {
        addresses(self.index)
    }

    /// The first address of the node's pod range of each family, which its VXLAN device has.
    pub fn gateways(&self) -> [IpAddr; 2] {
        gateways(self.index)
    }

    /// What the other nodes must know of this one.
    pub fn peer(&self, vtep_mac: Option<String>) -> Peer {
        let underlay6 = self.wire.dual.then(|| self.addresses()[1]);
        let is_vtep = |address: &IpAddr| *address == self.underlay || Some(*address) == underlay6;
        let addresses = self.addresses().into_iter().filter(|address| !is_vtep(address)).collect();
        let (name, vtep_mac6) = (self.name(), None);
        Peer { name, index: self.index, underlay: self.underlay, vtep_mac, underlay6, vtep_mac6, addresses }
    }
}

/// A node as the others see it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: String,
    pub index: u8,
    pub underlay: IpAddr,
    /// None where it follows from the underlay address, as between podwire nodes.
    pub vtep_mac: Option<String>,
    /// Its IPv6 VTEP beside the IPv4 one.
    pub underlay6: Option<IpAddr>,
    pub vtep_mac6: Option<String>,
    /// Its addresses besides those of its VTEPs.
    pub addresses: Vec<IpAddr>,
}

impl Peer {
    /// The first address of each of its pod ranges.
    pub fn gateways(&self) -> [IpAddr; 2] {
        gateways(self.index)
    }

    /// Its pod ranges.
    pub fn pod_cidrs(&self) -> [String; 2] {
        pod_cidrs(self.index)
    }
}

fn addresses(index: u8) -> [IpAddr; 2] {
    let last = index + 1;
    [Ipv4Addr::new(192, 168, 1, last).into(), Ipv6Addr::new(0xfd00, 0x192, 0x168, 1, 0, 0, 0, last.into()).into()]
}

fn with_prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

fn gateways(index: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, 244, index, 0).into(), Ipv6Addr::new(0xfd00, 0x244, index.into(), 0, 0, 0, 0, 0).into()]
}

/// The pod ranges of the node with this index.
pub fn pod_cidrs(index: u8) -> [String; 2] {
    let [v4, v6] = gateways(index);
    [format!("{v4}/24"), format!("{v6}/64")]
}

/// A pod: a namespace with an `eth0` that some node has wired.
#[derive(Clone, Debug)]
pub struct Pod {
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pod {
    /// Takes the pod as its node has wired it: the addresses are read from the device.
    pub fn of(name: String, netns: Netns) -> Self {
        let printed = netns.run("ip -json address show dev eth0 scope global");
        let eth0: serde_json::Value = serde_json::from_str(&printed).expect("ip prints JSON");
        let address = |family: &str| {
            let infos = eth0[0]["addr_info"].as_array().into_iter().flatten();
            let mut found = infos.filter(|i| i["family"] == family).filter_map(|i| i["local"].as_str());
            found.next().unwrap_or_else(|| panic!("{name} has no {family} address: {printed}")).to_owned()
        };
        let (v4, v6) = (address("inet").parse().expect("IPv4"), address("inet6").parse().expect("IPv6"));
        Self { name, netns, v4, v6 }
    }

    /// Its addresses of both families.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Its address of the same family as `other`.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }
}
