//! The configuration file: TOML in, validated values out, whole or not at all.
//!
//! [`Config::parse`] reports every fault at once, each with its key, value, reason and line, so
//! that a file is repaired in one go. What is left for later is only what the file cannot show:
//! whether the uplink exists and which addresses it has.

mod check;
mod error;
mod join;
mod parse;
mod range;
mod reader;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use error::{ConfigError, Problem};
pub use join::{Joined, Members, OwnNode};
pub use range::{AddressRange, from_bits, to_bits};

use crate::wire::{Mac, TunnelEnd, Vni};

/// The most workers a node may run: heartbeats and fanout are laid out for this many.
pub const MAX_WORKERS: usize = 64;

/// A valid configuration. Two equal values ask for the same node.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: Node,
    pub cluster: Cluster,
    pub vxlan: Vxlan,
    pub dataplane: Dataplane,
    pub metrics: Metrics,
    pub ipam: Ipam,
    pub probe: Probe,
    pub peers: Vec<Arc<Peer>>,
    /// With it ranges, peers, VNI and port come from the Kubernetes API: the file's configuration has none of them, see
    /// [`Config::join`].
    pub kubernetes: Option<Kubernetes>,
    /// What works, but is hardly what was meant.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// This configuration with other peers.
    #[must_use]
    pub fn with_peers(&self, peers: Vec<Arc<Peer>>) -> Self {
        Self {
            node: self.node.clone(),
            cluster: self.cluster.clone(),
            vxlan: self.vxlan.clone(),
            dataplane: self.dataplane.clone(),
            metrics: self.metrics,
            ipam: self.ipam.clone(),
            probe: self.probe,
            peers,
            kubernetes: self.kubernetes.clone(),
            warnings: self.warnings.clone(),
        }
    }
}

/// This node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub name: String,
    /// The device that carries the outer frames.
    pub uplink: String,
    /// The address of our VTEP; the uplink's own when `None`.
    pub underlay: Option<IpAddr>,
    /// The MAC of our VXLAN device; [`derive_vtep_mac`] of the VTEP address when `None`.
    pub vtep_mac: Option<Mac>,
    /// The address of our second VTEP; where one is wanted ([`Config::wants_second`]), the uplink's own when `None`.
    pub underlay6: Option<IpAddr>,
    /// The MAC of our second VXLAN device; [`derive_vtep_mac`] of the second VTEP's address when `None`.
    pub vtep_mac6: Option<Mac>,
    /// At most one of each family. Empty only until the Kubernetes API has told them.
    pub pod_cidrs: Vec<IpNet>,
}

/// What all nodes share.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Every node's pod ranges should lie inside one of these.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether what pods send to the outside of the cluster leaves with the node's address. Default false, as
    /// Flannel's `--ip-masq`.
    pub masquerade: bool,
    /// The family of all VTEP addresses; `None` when the addresses that are given say it.
    pub underlay_is_ipv6: Option<bool>,
}

/// The tunnel, equal on all nodes but for the device name.
#[derive(Clone, Debug, PartialEq)]
pub struct Vxlan {
    /// Never 0. Default 1.
    pub vni: Vni,
    /// UDP destination port. Default 8472, the kernel's and Flannel's; IANA's is 4789.
    pub port: u16,
    /// The kernel's VXLAN device. Default `podwire.VNI`.
    pub device: String,
    /// Whether outer UDP checksums are sent over IPv4; over IPv6 they always are (RFC 7348
    /// section 5, RFC 6935). Default false.
    pub udp_checksum: bool,
    /// Whether packets for nodes that the uplink reaches without a gateway do without the tunnel. Default false.
    pub direct_routing: bool,
    /// Whether the kernel's device takes and sends group policies (`IFLA_VXLAN_GBP`). Default false.
    pub gbp: bool,
    /// The MTU of the underlay where it is less than the uplink's, in bytes.
    pub underlay_mtu: Option<u32>,
}

/// The Kubernetes API as the source of the cluster's nodes and ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kubernetes {
    /// How to reach the API; the pod's service account when `None`.
    pub kubeconfig: Option<PathBuf>,
    /// Flannel's `net-conf.json`; that of the ConfigMap `kube-flannel-cfg` when `None`.
    pub net_conf: Option<PathBuf>,
    /// Where to write Flannel's `subnet.env`; nowhere when `None`.
    pub subnet_env: Option<PathBuf>,
    /// Where to keep the nodes, for a start while the API is away; nowhere when `None`.
    pub cache: Option<PathBuf>,
}

/// The workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataplane {
    /// Default adaptive.
    pub mode: Mode,
    /// The CPUs that run a worker each; empty only in [`Mode::Kernel`].
    pub cores: Vec<usize>,
    /// Default auto.
    pub xdp: Xdp,
    /// Default auto.
    pub zero_copy: ZeroCopy,
    /// Default auto.
    pub busy_poll: BusyPoll,
    /// Packet memory of each worker, in chunks of a frame. Default 8192.
    pub frames: u32,
    /// Slots of each worker's packet ring at the hub, each for a frame of the pods' MTU. Default 4096.
    pub hub_slots: u32,
    /// Whether workers hand packets for pods over in trains, past the host ends of their veth pairs. Default true.
    pub pod_trains: bool,
    /// The age at which a silent worker's traffic goes to the kernel path. Default 20, at least 10.
    pub stale_ms: u64,
    /// Whether tunnel packets that do not come from a peer's `underlay` are dropped. Default true; false where the
    /// underlay translates source addresses.
    pub known_vteps_only: bool,
    /// Default auto.
    pub bulk: Bulk,
    /// From how many packets a second on a sleeping worker is woken for them; fewer go past it where `bypass` lets them.
    /// Default 20,000; 0: by each.
    pub wake_pps: u32,
    /// Whether what no worker takes, though it could, goes past the node's routing and netfilter. Default true.
    pub bypass: bool,
}

/// Where Prometheus finds the node's metrics: nowhere by default, as a node's ports are its operator's to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The TCP address to serve them on. Whoever can reach it can read them.
    pub listen: Option<SocketAddr>,
    /// Whether to serve them on `metrics.sock` in the runtime directory too. Default false.
    pub socket: bool,
    /// Whether each pod has series of its own. Default true.
    pub per_pod: bool,
    /// Whether each peer has. Default true.
    pub per_peer: bool,
}

/// Which addresses pods get.
#[derive(Clone, Debug, PartialEq)]
pub struct Ipam {
    /// Never given to a pod; apart from each other, in order. Default none.
    pub exclude: Vec<AddressRange>,
    /// For how long a released address is not given out again. Default 30 s.
    pub quarantine: Duration,
}

/// Probes of the peers through the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// How often each peer is probed, at most; zero for never. Default 5 s.
    pub interval: Duration,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// Its VTEP address, of the same family on all nodes.
    pub underlay: IpAddr,
    /// As given, or [`derive_vtep_mac`] of `underlay`.
    pub vtep_mac: Mac,
    /// Its IPv6 VTEP beside an IPv4 one, which Flannel's dual-stack nodes have.
    pub second: Option<TunnelEnd>,
    /// At most one of each family.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses besides those of its VTEPs that pods reach through the overlay.
    pub addresses: Vec<IpAddr>,
}

/// How the workers poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Spin always.
    Busy,
    /// Spin while there is traffic, then sleep until there is more.
    Adaptive,
    /// No workers: the kernel path carries everything.
    Kernel,
}

/// How frames from the wire get to the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// By AF_XDP, with the program in the driver, or not at all.
    Native,
    /// By AF_XDP, with the program in the kernel's generic hook.
    Generic,
    /// By AF_XDP where the driver can and that costs the kernel path nothing, else as [`Xdp::Off`].
    Auto,
    /// The kernel receives, and carries TCP; the program runs at the uplink's ingress (tc).
    Off,
}

impl Xdp {
    /// Whether there must be AF_XDP, as nothing else gives what is asked for besides.
    pub fn is_needed(self, zero_copy: ZeroCopy, bulk: Bulk) -> bool {
        match self {
            Self::Native | Self::Generic => true,
            Self::Auto => zero_copy == ZeroCopy::Require || bulk == Bulk::Workers,
            Self::Off => false,
        }
    }
}

/// Whether AF_XDP shares packet memory with the NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Refuse to start without.
    Require,
    /// Copy.
    Off,
    /// Where the driver can.
    Auto,
}

/// Whether workers run the driver's receive path themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusyPoll {
    /// Where the driver lets them, and the device holds interrupts back for them.
    Auto,
    Off,
}

/// Who carries TCP connections that move much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bulk {
    Workers,
    /// The kernel path.
    Kernel,
    /// The workers, but the kernel path where AF_XDP copies.
    Auto,
}

impl Config {
    /// Reads and validates a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Validates a text. Worker cores are checked against the CPUs that are online now.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        parse::document(text, &online_cpus())
    }

    /// Whether the underlay is IPv6: that of the node's own VTEP, else of the peers; `None` when
    /// the file does not say.
    pub fn underlay_is_ipv6(&self) -> Option<bool> {
        let underlay = self.node.underlay.or_else(|| self.peers.first().map(|peer| peer.underlay));
        self.cluster.underlay_is_ipv6.or(underlay.map(|address| address.is_ipv6()))
    }

    /// The kernel's VXLAN devices: of the first tunnel, and of the second if there is to be one.
    pub fn tunnel_devices(&self) -> impl Iterator<Item = String> {
        std::iter::once(self.vxlan.device.clone()).chain(self.wants_second().then(|| self.vxlan.second_device()))
    }

    /// Whether the node is to have an IPv6 VTEP beside its IPv4 one.
    pub fn wants_second(&self) -> bool {
        let Node { underlay6, vtep_mac6, .. } = &self.node;
        let is_asked_for =
            underlay6.is_some() || vtep_mac6.is_some() || self.peers.iter().any(|peer| peer.second.is_some());
        is_asked_for && self.underlay_is_ipv6() != Some(true)
    }

    /// Whether the ranges and peers are still to come from the Kubernetes API.
    pub fn awaits_members(&self) -> bool {
        self.kubernetes.is_some() && self.node.pod_cidrs.is_empty()
    }

    /// Every range that holds pods, of the cluster and of its nodes; most lie inside another one.
    pub fn pod_ranges(&self) -> impl Iterator<Item = IpNet> {
        let ranges = [&self.cluster.pod_cidrs, &self.node.pod_cidrs].into_iter();
        ranges.chain(self.peers.iter().map(|peer| &peer.pod_cidrs)).flatten().copied()
    }
}

impl Vxlan {
    /// What the VXLAN device of the second VTEP is called.
    pub fn second_device(&self) -> String {
        second_device(&self.device, self.vni)
    }
}

/// What the VXLAN device of the second VTEP is called beside `first`: as Flannel's, `NAME-v6.VNI` beside `NAME.VNI`, if
/// that is not too long for the kernel.
pub fn second_device(first: &str, vni: Vni) -> String {
    let name = match first.rsplit_once('.') {
        Some((name, number)) => format!("{name}-v6.{number}"),
        None => format!("{first}-v6"),
    };
    if name.len() <= check::DEVICE_NAME_MAX { name } else { format!("pw6.{}", vni.get()) }
}

impl Peer {
    /// The end of its first tunnel.
    pub fn first(&self) -> TunnelEnd {
        TunnelEnd { underlay: self.underlay, mac: self.vtep_mac }
    }

    /// The ends of its tunnels, the first one first.
    pub fn ends(&self) -> impl Iterator<Item = TunnelEnd> {
        std::iter::once(self.first()).chain(self.second)
    }

    /// The addresses of the node itself: `underlay` first.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ends().map(|end| end.underlay).chain(self.addresses.iter().copied())
    }

    /// The pod range through which packets of pods for `address`, one of the node's own, travel.
    pub fn range_for(&self, address: IpAddr) -> Option<IpNet> {
        self.pod_cidrs.iter().copied().find(|cidr| cidr.addr().is_ipv6() == address.is_ipv6())
    }

    /// All that pods reach through the overlay: pod ranges, and the node's own addresses of their families.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        let addresses = self.node_addresses().filter(|address| self.range_for(*address).is_some());
        self.pod_cidrs.iter().copied().chain(addresses.map(IpNet::from))
    }
}

/// The MAC of the VTEP at `underlay`, when no one chose another: nodes agree on it without
/// talking.
///
/// IPv4 a.b.c.d gives `02:70:a:b:c:d`, which cannot collide. IPv6 gives `06` and 40 bits of a
/// hash (FNV-1a), whose collisions validation refuses. Both are locally administered unicast
/// (IEEE 802 section 8.4).
pub fn derive_vtep_mac(underlay: IpAddr) -> Mac {
    match underlay {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            Mac([0x02, 0x70, a, b, c, d])
        }
        IpAddr::V6(address) => hashed_mac(&address.octets()),
    }
}

/// `06` and 40 bits of a hash (FNV-1a): locally administered unicast.
pub fn hashed_mac(bytes: &[u8]) -> Mac {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut mac = [0x06; 6];
    mac[1..].copy_from_slice(&hash.to_be_bytes()[..5]);
    Mac(mac)
}

/// The CPUs in `/sys/devices/system/cpu/online`; empty when it cannot be read.
fn online_cpus() -> Vec<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    parse_cpu_list(&text)
}

/// Reads the kernel's list format, such as `0-3,6`.
pub fn parse_cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// An enum written as a word in the file.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),+ }) => {
        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("is not one of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
    };
}

words!(Mode { Busy => "busy", Adaptive => "adaptive", Kernel => "kernel" });
words!(Xdp { Native => "native", Generic => "generic", Auto => "auto", Off => "off" });
words!(Bulk { Workers => "workers", Kernel => "kernel", Auto => "auto" });
words!(BusyPoll { Auto => "auto", Off => "off" });
words!(ZeroCopy { Require => "require", Off => "off", Auto => "auto" });

#[cfg(test)]
mod tests;
