//! What was seen on the machine. Gathered by `gather`, judged by the checks, written by hand in their tests.

use std::io;
use std::path::PathBuf;

use crate::config::{Config, Mode};
use crate::control::api::{Pod, Range, Status};
use crate::control::netlink::Link;
use crate::steer::{AttachedProgram, XdpDevice};
use crate::xsk::{Deferral, Driver, Queues, Rings};

use super::finding::Profile;

/// What was seen, or why it could not be.
pub type Seen<T> = Result<T, String>;

/// All of it.
#[derive(Debug)]
pub struct Evidence {
    pub config: Configured,
    pub daemon: Daemon,
    pub kernel: Kernel,
    pub trials: Trials,
    pub privileges: Privileges,
    pub cpus: Cpus,
    pub memory: Memory,
    /// None when no configuration names it.
    pub uplink: Option<Seen<Uplink>>,
    pub network: Network,
    pub place: Place,
}

/// The configuration file.
#[derive(Debug)]
pub enum Configured {
    /// None was named, and none is where it is by custom.
    No,
    /// Refused, or not readable.
    Bad(PathBuf, String),
    Valid(PathBuf, Box<Config>),
}

impl Configured {
    pub fn valid(&self) -> Option<&Config> {
        match self {
            Self::Valid(_, config) => Some(config),
            _ => None,
        }
    }
}

/// The daemon of the runtime directory.
#[derive(Debug)]
pub enum Daemon {
    /// None answers; why.
    Away(String),
    /// One is there and does not answer as it should; how.
    Ill(String),
    Well {
        status: Box<Status>,
        pods: Vec<Pod>,
        /// How full the node's ranges are.
        ranges: Vec<Range>,
    },
}

impl Daemon {
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Well { status, .. } => Some(status),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct Kernel {
    /// Such as `6.1.0-28-amd64`.
    pub release: String,
    /// Its types, which programs ask for.
    pub btf: bool,
    /// `net.core.bpf_jit_enable`; none where the namespace does not show it.
    pub jit: Option<String>,
    pub knows_conntrack: bool,
}

/// What was tried out, in a network namespace made for it. None: not tried, because an earlier trial failed.
#[derive(Debug, Default)]
pub struct Trials {
    pub namespace: Option<io::Result<()>>,
    pub veth: Option<io::Result<()>>,
    pub vxlan: Option<io::Result<()>>,
    /// The steering programs, as the daemon loads them.
    pub programs: Option<io::Result<()>>,
    /// Attached natively to a veth.
    pub xdp: Option<io::Result<()>>,
    pub tcx: Option<io::Result<()>>,
    pub packet_socket: Option<io::Result<()>>,
    pub xdp_socket: Option<io::Result<()>>,
    /// Packet memory for an AF_XDP socket, bound to a queue of a veth.
    pub xdp_queue: Option<io::Result<()>>,
}

#[derive(Debug)]
pub struct Privileges {
    pub root: bool,
    /// A bit each, by the numbers of `include/uapi/linux/capability.h`.
    pub effective: Seen<u64>,
    /// Bytes that may be locked; none for no limit.
    pub lockable: Seen<Option<u64>>,
    /// Whether there is a BPF file system to pin in.
    pub bpffs: Seen<bool>,
}

#[derive(Debug, Default)]
pub struct Cpus {
    pub online: Vec<usize>,
    /// By the scheduler's `isolcpus=`.
    pub isolated: Vec<usize>,
    /// Those of the workers, as configured.
    pub workers: Vec<Cpu>,
}

/// A worker's CPU.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    pub id: usize,
    /// The hardware threads of its core, itself among them.
    pub siblings: Vec<usize>,
    pub numa_node: Option<usize>,
    /// None where the machine does not scale frequencies, or a hypervisor does.
    pub governor: Option<String>,
    pub idle_states: Vec<IdleState>,
    /// Threads of others that ran or waited for it, by name, in some of the samples.
    pub rivals: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleState {
    pub name: String,
    /// How long it takes to wake up.
    pub latency_us: u64,
    pub disabled: bool,
}

#[derive(Debug, Default)]
pub struct Memory {
    /// Pages of 2 MiB: (all, free); none where the kernel has none.
    pub hugepages: Option<(u64, u64)>,
    /// The chosen word of `transparent_hugepage/enabled`.
    pub transparent: Option<String>,
}

/// The uplink.
#[derive(Clone, Debug)]
pub struct Uplink {
    pub link: Link,
    pub driver: Seen<Driver>,
    pub queues: Seen<Queues>,
    pub rings: Seen<Rings>,
    /// Whether it spreads UDP flows of the underlay's family over queues by their ports.
    pub hashes_ports: Seen<bool>,
    pub xdp: Seen<XdpDevice>,
    pub numa_node: Option<usize>,
    pub interrupts: Vec<Interrupt>,
    /// None where sysfs does not show the device.
    pub deferral: Option<Deferral>,
}

/// An interrupt of the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    pub number: u32,
    pub cpus: Vec<usize>,
}

/// The node's network namespace.
#[derive(Debug)]
pub struct Network {
    pub links: Seen<Vec<Link>>,
    /// `net.ipv4.conf.all.rp_filter`.
    pub rp_filter_all: Option<u8>,
    /// `net.ipv4.ip_forward`.
    pub forwarding: Option<u8>,
    /// Entries of conntrack: (used, at most).
    pub conntrack: Option<(u64, u64)>,
    /// The tables of nftables that filter.
    pub filters: Seen<Vec<String>>,
    pub pods: Vec<PodDevices>,
}

/// A pod's two ends.
#[derive(Clone, Debug)]
pub struct PodDevices {
    pub name: String,
    pub host_ifname: String,
    pub host_mtu: Option<u32>,
    /// In the pod; none where that cannot be seen.
    pub pod_mtu: Option<u32>,
    /// Programs of others at the host end, by XDP or tcx.
    pub foreign: Seen<Vec<AttachedProgram>>,
}

/// Files.
#[derive(Debug)]
pub struct Place {
    pub runtime_dir: PathBuf,
    /// None when there is no such directory yet.
    pub runtime: Seen<Option<Directory>>,
    pub cni_dir: PathBuf,
    /// In the order in which runtimes read them.
    pub cni: Seen<Vec<CniFile>>,
}

#[derive(Clone, Debug)]
pub struct Directory {
    pub is_dir: bool,
    pub mode: u32,
    pub is_ours: bool,
    /// Why this user cannot write there, if it cannot.
    pub unwritable: Option<String>,
    pub free_bytes: u64,
}

/// A CNI configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniFile {
    pub name: String,
    /// Whether it calls podwire's plugin.
    pub is_ours: bool,
}

impl Evidence {
    /// The profile of `tuning/` for this node.
    pub fn profile(&self) -> Profile {
        let mode = self.config.valid().map(|config| config.dataplane.mode);
        match mode {
            _ if self.cpus.online.len() <= 2 => Profile::Small,
            Some(Mode::Busy) => Profile::LowLatency,
            _ => Profile::Throughput,
        }
    }

    /// The uplink and the workers' CPUs, such as `1,3`, where workers are configured.
    pub fn tuned(&self) -> Option<(&str, String)> {
        let config = self.config.valid().filter(|_| self.has_workers())?;
        let cores: Vec<_> = config.dataplane.cores.iter().map(ToString::to_string).collect();
        Some((&config.node.uplink, cores.join(",")))
    }

    /// Whether workers are configured.
    pub fn has_workers(&self) -> bool {
        self.config.valid().is_some_and(|config| config.dataplane.mode != Mode::Kernel)
    }

    /// The uplink, as far as it was seen.
    pub fn uplink(&self) -> Option<&Uplink> {
        self.uplink.as_ref()?.as_ref().ok()
    }

    /// A device by its name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.network.links.as_ref().ok()?.iter().find(|link| link.name == name)
    }
}
