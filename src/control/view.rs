//! What control and the data plane tell each other: the desired state going down as a [`View`],
//! the figures coming back as a [`DataplaneStatus`]. Plain data; nothing here acts.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Sum;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{Bulk, BusyPoll, Mode, Xdp, ZeroCopy};
use crate::fib::LocalPod;
use crate::ids::{HubEnds, IfIndex};
use crate::steer::{NatCheck, PodPath, Tunnel};
use crate::wire::{Mac, TunnelEnd, Vni};
use crate::worker;
use crate::xsk::Queues;

/// What workers are started with and keep; a change of any of it takes new ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub uplink: IfIndex,
    pub uplink_name: String,
    pub uplink_mac: Mac,
    pub queues: Queues,
    /// The packet rings tap its near end.
    pub hub: HubEnds,
    /// Our outer address.
    pub vtep: IpAddr,
    /// Our inner MAC.
    pub vtep_mac: Mac,
    /// Our end of the second tunnel.
    pub second: Option<TunnelEnd>,
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// Whether to send outer UDP checksums over IPv4.
    pub udp_checksum: bool,
    /// The largest inner IP packet, in bytes.
    pub mtu: u16,
    pub mode: Mode,
    /// The CPUs that run a worker each.
    pub cores: Vec<usize>,
    pub xdp: Xdp,
    pub zero_copy: ZeroCopy,
    pub busy_poll: BusyPoll,
    pub bulk: Bulk,
    /// Chunks of packet memory of each worker.
    pub frames: u32,
    /// Slots of each worker's packet ring.
    pub hub_slots: u32,
    /// Whether packets for pods may go in trains.
    pub pod_trains: bool,
    /// The age at which a silent worker's traffic goes to the kernel path.
    pub stale_ms: u64,
    /// From how many packets a second on a sleeping worker is woken; 0: by each.
    pub wake_pps: u32,
    /// This node's own ranges.
    pub pod_cidrs: Vec<IpNet>,
}

impl Settings {
    /// Our outer addresses.
    pub fn underlays(&self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(self.vtep).chain(self.second.map(|end| end.underlay))
    }
}

/// The whole desired state of the data plane, replaced as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The pods of this node.
    pub pods: Vec<PodView>,
    /// The remote nodes that can be reached through the uplink now. Packets for other nodes are
    /// left to the kernel path.
    pub remotes: Arc<[RemoteView]>,
    /// The VXLAN devices, and whether packets may go past the node's stack by them.
    pub tunnels: BTreeMap<IfIndex, bool>,
    /// The outer source addresses of all peers, reached or not.
    pub vteps: Arc<BTreeSet<IpAddr>>,
    /// Whether tunnel packets from elsewhere are dropped.
    pub known_vteps_only: bool,
    /// Whether workers take what comes for pods without the tunnel.
    pub takes_bare: bool,
    /// How flows that the node translates are told from others.
    pub nat: NatCheck,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    pub pod: LocalPod,
    pub addresses: Vec<IpAddr>,
    pub path: PodPath,
}

/// What is reached in one way by a remote node whose underlay next hop is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteView {
    pub name: String,
    /// The pod ranges that it owns, and those of its own addresses that are not for this node's kernel.
    pub prefixes: Vec<IpNet>,
    /// The outer destination address.
    pub underlay: IpAddr,
    /// The inner destination MAC; none without the tunnel.
    pub vtep_mac: Option<Mac>,
    /// The outer destination MAC: the peer's own on one link, else its gateway's.
    pub dst_mac: Mac,
    /// The largest inner IP packet, in bytes.
    pub mtu: u16,
    /// The kernel's tunnel to it, if packets may go by it past the node's stack.
    pub tunnel: Option<Tunnel>,
}

/// Figures by their stable label: see [`Count`](crate::counters::Count) and
/// [`DropReason`](crate::counters::DropReason).
pub type Counters = BTreeMap<String, u64>;

/// What a running data plane reports, or a stopped one reported last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataplaneStatus {
    /// How frames from the wire get to the workers: by XDP, `native` or `generic`, or without (`off`).
    pub xdp: String,
    /// Chunks of packet memory over all workers.
    pub frames: u64,
    /// What backs the packet memory, for people: `hugepages` or `pages`.
    pub memory: String,
    /// Whether the kernel path takes over TCP connections that move much.
    pub leaves_bulk: bool,
    pub queues: Vec<QueueStatus>,
    pub workers: Vec<WorkerStatus>,
    pub pods: Vec<CreditStatus>,
    pub verdicts: Vec<VerdictRow>,
}

/// One AF_XDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    pub queue: u32,
    pub worker: u16,
    /// Read back from the kernel after bind, not what was asked for.
    pub zero_copy: bool,
    pub busy_poll: BusyPollStatus,
    pub traffic: TrafficStatus,
}

/// Whether a worker runs the NAPI of a queue itself (`src/xsk/napi.rs`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyPollStatus {
    /// Why it does not; none while it does.
    pub refusal: Option<BusyPollRefusal>,
    /// The id of the NAPI, if the kernel tells one.
    pub napi_id: Option<u32>,
    /// How often the worker has run it, by a system call each,
    pub runs: u64,
    /// and the frames that it found after that.
    pub frames: u64,
}

/// Why a worker does not run a queue's NAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusyPollRefusal {
    /// `dataplane.busy_poll` is `off`.
    Off,
    /// The kernel receives: no frames come by the queue's socket.
    NoXdp,
    /// The device is half of a veth pair, which the sender's core polls, and without interrupts.
    Veth,
    /// sysfs does not show this device.
    Unseen,
    /// `napi_defer_hard_irqs` or `gro_flush_timeout` of the device was 0 when the data plane started.
    NotDeferred,
    /// The kernel has no busy-polling, or does not allow it; the log says which.
    Refused,
    /// Nothing has come yet by which the kernel would know.
    Unknown,
    /// The kernel knows no NAPI of the queue.
    NoNapi,
}

impl BusyPollRefusal {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoXdp => "the kernel receives",
            Self::Veth => "veth has no interrupts",
            Self::Unseen => "sysfs does not show the uplink",
            Self::NotDeferred => "napi_defer_hard_irqs or gro_flush_timeout was 0: tuning/README.md",
            Self::Refused => "the kernel refuses",
            Self::Unknown => "nothing came yet",
            Self::NoNapi => "the kernel knows no NAPI of the queue",
        }
    }
}

/// What a port has carried since the data plane started, seen from the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficStatus {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Frames that the kernel could not deliver to the port.
    pub lost: u64,
}

impl Sum for TrafficStatus {
    fn sum<I: Iterator<Item = Self>>(ports: I) -> Self {
        ports.fold(Self::default(), |sum, port| Self {
            rx_packets: sum.rx_packets + port.rx_packets,
            rx_bytes: sum.rx_bytes + port.rx_bytes,
            tx_packets: sum.tx_packets + port.tx_packets,
            tx_bytes: sum.tx_bytes + port.tx_bytes,
            lost: sum.lost + port.lost,
        })
    }
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    pub worker: u16,
    pub core: usize,
    /// It runs on that core alone.
    pub pinned: bool,
    /// The share of the last second that went into passes that found work; 0 to 1.
    pub load: f64,
    pub times: TimesStatus,
    /// It sleeps until a ring wakes it.
    pub asleep: bool,
    /// Its heartbeat is fresh, so the steering programs hand frames to it.
    pub fresh: bool,
    /// How long ago it last showed that it is alive, which a sleeping worker does every second or so; none while it
    /// has no heartbeat.
    pub heartbeat_age_ns: Option<u64>,
    /// It was not well, and has no heartbeat until it has been for a while; the kernel path carries meanwhile.
    pub probation: Option<ProbationStatus>,
    pub frames: FrameLedger,
    pub counts: Counters,
    pub drops: Counters,
}

/// What a worker has done with its time since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimesStatus {
    /// Passes that found work.
    pub busy: PassesStatus,
    /// Passes that found none.
    pub idle: PassesStatus,
    pub asleep_ns: u64,
}

/// A worker's passes of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassesStatus {
    /// By the classes of [`worker::bounds_ns`], and one more.
    pub by_duration: Vec<u64>,
    pub sum_ns: u64,
}

impl From<worker::Times> for TimesStatus {
    fn from(worker::Times { busy, idle, asleep_ns }: worker::Times) -> Self {
        Self { busy: busy.into(), idle: idle.into(), asleep_ns }
    }
}

impl From<worker::Passes> for PassesStatus {
    fn from(passes: worker::Passes) -> Self {
        Self { by_duration: passes.by_duration.to_vec(), sum_ns: passes.sum_ns }
    }
}

/// Why a worker may not carry packets now, and for how long at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbationStatus {
    pub reason: Ailment,
    pub remaining_ms: u64,
}

/// What was wrong with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ailment {
    /// It hung, was stopped, or waited for its core, for longer than its heartbeat may age.
    Away,
    /// It had no packet memory.
    Starved,
}

impl From<worker::Ailment> for Ailment {
    fn from(ailment: worker::Ailment) -> Self {
        match ailment {
            worker::Ailment::Away => Self::Away,
            worker::Ailment::Starved => Self::Starved,
        }
    }
}

/// Where a worker's chunks of packet memory are. The four places add up to `total`, or frames leaked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameLedger {
    pub total: u64,
    /// Free, in the worker's pool.
    pub pool: u64,
    /// Lent to the kernel to receive into, or received and not yet read.
    pub fill: u64,
    /// Lent to the kernel to send, or sent and not yet taken back.
    pub tx: u64,
    /// In the worker's hands.
    pub hands: u64,
}

impl FrameLedger {
    /// Whether each frame is in exactly one of the four places.
    pub fn is_balanced(&self) -> bool {
        self.pool + self.fill + self.tx + self.hands == self.total
    }
}

/// A pod's use of its share of the packet rings, and its packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditStatus {
    pub pod: u16,
    /// Frames that the steering program handed over and the worker has not consumed.
    pub in_flight: u64,
    /// Packets by the fast path, a super-packet counting once.
    pub traffic: TrafficStatus,
}

/// How often one steering program decided one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRow {
    pub program: String,
    pub verdict: String,
    pub help: String,
    pub packets: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_balanced_only_when_no_frame_is_missing_or_counted_twice() {
        let ledger = FrameLedger { total: 10, pool: 4, fill: 3, tx: 2, hands: 1 };
        assert!(ledger.is_balanced());
        assert!(!FrameLedger { total: 11, ..ledger }.is_balanced());
        assert!(!FrameLedger { total: 9, ..ledger }.is_balanced());
    }
}
