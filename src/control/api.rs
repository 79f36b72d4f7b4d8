//! The control protocol: one JSON line asks, one JSON line answers, on a Unix socket that only the
//! daemon's user can open. What these types serialise to is also what `--output json` prints.

pub mod ipam;
mod kubernetes;
mod lookup;
mod overlay;
mod probe;
pub mod trace;

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::netns::NetnsId;
use super::view::{Counters, CreditStatus, DataplaneStatus, QueueStatus, VerdictRow};
use crate::wire::Mac;

pub use kubernetes::{ChangeTimes, Kubernetes, KubernetesState};
pub use lookup::{Destination, Lookup};
pub use overlay::{Path, Peer, Route, Second, Vxlan, Way};
pub use probe::{Cause, Diagnosis, Probe, ProbeState};

/// The protocol that this binary speaks; a peer with another one is refused with a clear error.
pub const VERSION: u32 = 2;

/// The longest request, in bytes, newline included: a list of the names of all pods that a node can have fits.
pub const MAX_REQUEST: usize = 1024 * 1024;

/// A request as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestLine {
    pub version: u32,
    pub request: Request,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status,
    Stats,
    Routes,
    /// What becomes of packets of pods for this address.
    Lookup {
        address: IpAddr,
    },
    PodsList,
    PodsAttach(Attach),
    PodsDetach {
        name: String,
        /// Only a pod of this CNI network.
        #[serde(default)]
        network: Option<String>,
    },
    /// Look at what is really there of a pod.
    PodsCheck {
        name: String,
    },
    /// Detach the pods of a CNI network that are not in `keep`.
    PodsCollect {
        network: String,
        keep: Vec<String>,
    },
    /// Whether a pod can be attached now.
    Ready,
    Ipam(ipam::Ask),
    /// Tell of packets from now on.
    Trace(Box<trace::Ask>),
    /// Hand over to the kernel path and end. Only for a client in the daemon's own network namespace, which goes on to
    /// remove what the daemon has made there.
    Leave {
        netns: NetnsId,
    },
    Fault(Provocation),
}

/// What a test has a worker suffer; refused unless the daemon was started to be tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provocation {
    pub worker: u16,
    pub kind: FaultKind,
    /// How long it lasts.
    pub ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The worker spins and looks at nothing.
    Hang,
    /// The worker runs without packet memory.
    Starve,
    /// The worker makes a system call that its filter forbids.
    Overstep,
}

/// Which pod to wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    pub name: String,
    /// A file that names the pod's network namespace, absolute.
    pub netns: PathBuf,
    /// The device to make in the pod.
    pub ifname: String,
    /// Exactly these addresses, or when empty a free one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// The MAC of the device in the pod; without it one that follows from the addresses.
    #[serde(default)]
    pub mac: Option<Mac>,
    /// Who asks by CNI; nobody when it is done by hand.
    #[serde(default)]
    pub owner: Option<Owner>,
}

/// For whom a container runtime has attached a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The name of the network configuration.
    pub network: String,
    /// The runtime's id of the container.
    pub container: String,
    /// `namespace/pod` of Kubernetes, for people.
    pub workload: Option<String>,
}

/// The part of a line that every version of the protocol can read.
#[derive(Debug, Deserialize)]
pub struct Versioned {
    pub version: u32,
}

/// A reply as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplyLine {
    pub version: u32,
    pub reply: Reply,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Status(Box<Status>),
    Stats(Box<Stats>),
    Routes(Vec<Route>),
    Lookup(Lookup),
    Pods(Vec<Pod>),
    Attached(Pod),
    /// Detached; false when there was no such pod.
    Detached {
        found: bool,
    },
    /// The pod's wiring is as attach left it.
    Checked(Pod),
    /// The pods that were detached, by name.
    Collected {
        removed: Vec<String>,
    },
    Ready(Ready),
    Ipam(ipam::Answer),
    /// A [`trace::Event`] a line follows.
    Tracing,
    /// The daemon ends. Its locks are free when it has.
    Leaving,
    /// The worker has its fault.
    Provoked,
    Error(Refusal),
}

/// A request that was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// Names the object and the way out.
    pub text: String,
}

/// What a client can do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The request can never be granted as it is.
    Invalid,
    /// Nothing is called so.
    NotFound,
    /// The node cannot do it now; later it may.
    NotReady,
    /// Nothing is left to give; later there may be.
    Exhausted,
    /// The pod's network namespace cannot be entered, or is the node's own.
    Namespace,
    /// A name, an address or a device is taken.
    Taken,
    /// Something else went wrong.
    Internal,
}

/// Whether a pod can be attached, and how many more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Why no pod can be attached now.
    pub problem: Option<String>,
    /// The MTU of pods, in bytes of an IP packet.
    pub mtu: Option<u16>,
    pub ranges: Vec<Range>,
}

/// How full a range of the node's addresses is. Counts above 2^64 - 1 are shown as that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    pub cidr: IpNet,
    /// How many addresses may be given out.
    pub capacity: u64,
    pub used: u64,
    /// Released a short time ago, and not given out yet.
    pub quarantined: u64,
    pub free: u64,
}

/// `podwire status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub node: String,
    /// The configured mode: `busy`, `adaptive` or `kernel`.
    pub mode: String,
    pub uptime_secs: u64,
    pub config: ConfigStatus,
    pub dataplane: DataplaneReport,
    pub uplink: Option<Uplink>,
    pub vxlan: Vxlan,
    pub hub: Option<Hub>,
    pub nat: Nat,
    pub masquerade: Masquerade,
    /// The source of ranges and peers; none when they are in the file.
    pub kubernetes: Option<Kubernetes>,
    pub peers: Vec<Peer>,
    /// How many pods are attached.
    pub pods: usize,
    /// Those of them that take the kernel path whatever the other end is.
    pub slow_pods: Vec<SlowPod>,
    /// What is wrong now, each with the object's name.
    pub problems: Vec<String>,
}

/// A pod that the workers do not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowPod {
    pub name: String,
    pub reason: String,
}

/// Which configuration is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    pub file: PathBuf,
    /// 1 at start, one more for each change applied.
    pub generation: u64,
    /// Why the file as it is now was refused, if it was.
    pub last_error: Option<String>,
}

/// Whether the data plane carries packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataplaneState {
    /// Workers carry what the steering programs claim.
    Running,
    /// Kernel path only, as configured.
    Kernel,
    /// Kernel path only, because the data plane could not start; it is tried again.
    Failed,
}

/// The data plane's state and, while it runs, its figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataplaneReport {
    pub state: DataplaneState,
    pub reason: Option<String>,
    /// Seconds until the next try, when it failed.
    pub retry_secs: Option<u64>,
    pub figures: Option<DataplaneStatus>,
}

/// The device that carries the outer frames.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    pub name: String,
    pub ifindex: u32,
    pub mac: String,
    pub mtu: u32,
    pub up: bool,
    pub rx_queues: u32,
    pub addresses: Vec<IpAddr>,
}

/// Where the packet rings tap what pods send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hub {
    pub ifindex: u32,
}

/// What the steering programs do about flows that the node translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatCheck {
    /// Nothing is translated.
    None,
    /// Each flow is looked up in conntrack, and ICMP left to the kernel path.
    Lookup,
    /// All is left to the kernel path.
    Kernel,
}

/// The translation of addresses by others than podwire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    pub check: NatCheck,
    /// What may translate; empty when nothing does.
    pub why: String,
}

/// Our own translation of what leaves the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masquerade {
    /// As configured.
    pub on: bool,
    /// Why it is not as configured.
    pub problem: Option<String>,
}

/// An attached pod: `podwire pods list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub id: u16,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub mac: String,
    pub netns: PathBuf,
    pub ifname: String,
    /// The host end of its veth pair.
    pub host_ifname: String,
    pub host_mac: String,
    /// In bytes of an IP packet; none while the node does not know its own.
    pub mtu: Option<u16>,
    pub owner: Option<Owner>,
    /// How its packets travel where both ends allow it.
    pub path: Path,
    /// Why not the fast path.
    pub reason: Option<String>,
    /// What is wrong with its wiring, if anything.
    pub problem: Option<String>,
}

/// `podwire stats`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub workers: Vec<WorkerStats>,
    /// What the workers of earlier data planes of this daemon counted.
    pub retired: Tallies,
    pub pods: Vec<PodStats>,
    /// What each AF_XDP socket has carried.
    pub queues: Vec<QueueStatus>,
    /// What the steering programs decided, those of earlier data planes included.
    pub verdicts: Vec<VerdictRow>,
    /// The kernel's counters of the devices that the kernel path uses.
    pub kernel: Vec<DeviceStats>,
}

/// Packets and drops by label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tallies {
    pub counts: Counters,
    pub drops: Counters,
}

/// What one worker counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStats {
    pub worker: u16,
    #[serde(flatten)]
    pub tallies: Tallies,
}

/// A pod's use of the packet rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStats {
    pub name: String,
    #[serde(flatten)]
    pub credit: CreditStatus,
}

/// The kernel's counters of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStats {
    pub device: String,
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub rx_dropped: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub tx_dropped: u64,
}

impl Refusal {
    pub fn new(kind: RefusalKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(RefusalKind::Invalid, text)
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(RefusalKind::Internal, text)
    }
}

impl Tallies {
    /// Adds `counts` and `drops` label by label.
    pub fn add(&mut self, counts: &Counters, drops: &Counters) {
        for (mine, theirs) in [(&mut self.counts, counts), (&mut self.drops, drops)] {
            for (label, value) in theirs {
                *mine.entry(label.clone()).or_default() += value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_is_stable_and_refuses_what_it_does_not_know() {
        let attach = Attach {
            name: "web".into(),
            netns: "/run/netns/web".into(),
            ifname: "eth0".into(),
            addresses: vec!["10.244.1.7".parse().unwrap()],
            mac: Some(Mac([2, 0, 0, 0, 0, 7])),
            owner: Some(Owner { network: "podwire".into(), container: "c1".into(), workload: None }),
        };
        let line = RequestLine { version: VERSION, request: Request::PodsAttach(attach) };
        let text = serde_json::to_string(&line).unwrap();
        let expected = r#"{"version":2,"request":{"pods-attach":{"name":"web","netns":"/run/netns/web","ifname":"eth0","addresses":["10.244.1.7"],"mac":"02:00:00:00:00:07","owner":{"network":"podwire","container":"c1","workload":null}}}}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<RequestLine>(&text).unwrap().request, line.request);
        for bad in [
            r#"{"version":2,"request":"reboot"}"#,
            r#"{"version":2,"request":"status","also":1}"#,
            r#"{"version":2,"request":{"pods-detach":{"name":"web","force":true}}}"#,
            r#"{"request":"status"}"#,
        ] {
            assert!(serde_json::from_str::<RequestLine>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tallies_add_label_by_label() {
        let mut sum = Tallies::default();
        let row = |label: &str, value| Counters::from([(label.to_owned(), value)]);
        sum.add(&row("polls", 2), &row("no_pod", 1));
        sum.add(&row("polls", 3), &row("no_route", 5));
        assert_eq!(sum.counts["polls"], 5);
        assert_eq!((sum.drops["no_pod"], sum.drops["no_route"]), (1, 5));
    }
}
