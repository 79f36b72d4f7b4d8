//! What the demonstration finds, as data: `--json` writes exactly this.

use std::net::IpAddr;

use serde::Serialize;

/// The share of pod-to-remote-pod packets that the fast path must carry on podwire nodes, in percent. A worker that once
/// waits for its core, beside all loads on few cores, leaves 100 ms of them to the kernel path.
const FAST_PERCENT: f64 = 95.0;

#[derive(Serialize)]
pub struct Findings {
    pub podwire: String,
    pub kernel: String,
    pub reachability: Vec<Reach>,
    pub throughput: Vec<Throughput>,
    pub paths: Vec<Paths>,
    pub capture: Capture,
    pub addresses: Vec<Source>,
    pub traceroute: Vec<Trace>,
    /// Packets that any pod's or node's stack threw away for a bad checksum.
    pub bad_checksums: u64,
    /// The same with `mode = "kernel"`.
    pub kernel_mode: KernelMode,
    pub criteria: Vec<Criterion>,
}

/// Whether one pod's echo request was answered by another.
#[derive(Serialize)]
pub struct Reach {
    pub from: String,
    pub to: String,
    pub address: IpAddr,
    pub answered: bool,
}

#[derive(Clone, Serialize)]
pub struct Throughput {
    pub from: String,
    pub to: String,
    pub route: &'static str,
    pub address: IpAddr,
    pub protocol: &'static str,
    pub bits_per_second: f64,
    pub lost_percent: f64,
}

/// Packets between a podwire node's pods and remote pods, by the path that carried them.
#[derive(Serialize)]
pub struct Paths {
    pub node: String,
    pub fast: u64,
    pub kernel: u64,
    pub fast_percent: f64,
}

/// What was seen between node `a` and the switch.
#[derive(Serialize)]
pub struct Capture {
    pub frames: usize,
    /// Frames that are VXLAN of our identifier, complete, with right checksums.
    pub right: usize,
    pub source_ports: usize,
    pub example: String,
    pub faults: Vec<String>,
}

/// The source address of a pod's packets as their receiver saw it.
#[derive(Serialize)]
pub struct Source {
    pub from: String,
    pub to: String,
    pub protocol: &'static str,
    pub own: IpAddr,
    pub seen: Option<IpAddr>,
}

#[derive(Serialize)]
pub struct Trace {
    pub from: String,
    pub to: String,
    pub hops: Vec<Option<IpAddr>>,
    pub expected: Vec<Option<IpAddr>>,
}

#[derive(Serialize)]
pub struct KernelMode {
    pub reachability: Vec<Reach>,
    pub throughput: Vec<Throughput>,
    /// Packets that workers carried; none run.
    pub fast: u64,
}

#[derive(Serialize)]
pub struct Criterion {
    pub name: &'static str,
    pub met: bool,
}

impl Findings {
    /// What must hold for the demonstration to succeed.
    pub fn judge(&self) -> Vec<Criterion> {
        let all_answer = |rows: &[Reach]| !rows.is_empty() && rows.iter().all(|row| row.answered);
        let criterion = |name, met| Criterion { name, met };
        vec![
            criterion("every pod reaches every pod, IPv4 and IPv6", all_answer(&self.reachability)),
            criterion("every measurement moved data", self.throughput.iter().all(|row| row.bits_per_second > 0.0)),
            criterion(
                "at least 95 % of packets by the fast path on podwire nodes, bulk TCP apart",
                self.paths.iter().all(|row| row.fast_percent >= FAST_PERCENT),
            ),
            criterion(
                "frames on the wire are VXLAN with right checksums",
                self.capture.frames > 0 && self.capture.right == self.capture.frames,
            ),
            criterion("no address was translated", self.addresses.iter().all(|row| row.seen == Some(row.own))),
            criterion("no bad checksum at any receiver", self.bad_checksums == 0),
            criterion("traceroute sees each node once", self.traceroute.iter().all(|row| row.hops == row.expected)),
            criterion(
                "every pod reaches every pod by the kernel path alone",
                all_answer(&self.kernel_mode.reachability) && self.kernel_mode.fast == 0,
            ),
        ]
    }
}
