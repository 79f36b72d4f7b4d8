//! A laboratory of nodes and pods in network namespaces, as every lecture on Kubernetes networking draws them:
//! underlay 192.168.1.0/24, nodes .2, .3, .4, pods out of 10.244.0.0/16 and fd00:244::/48.
//!
//! Needs root and `ip`, `bridge`, `ethtool`, `ping`, `iperf3`, `tcpdump`, `traceroute`, `ss`; [`OvsNode`] needs Open
//! vSwitch. A failure of the laboratory itself is a panic that names the command.
#![allow(dead_code, unused_imports, reason = "each test crate uses its own part of the laboratory")]

mod capture;
mod cluster;
mod cni;
mod flood;
mod kernel_node;
mod netns;
mod ovs_node;
mod podman;
mod podwire_node;
mod screen;
mod site;
mod stream;
mod traffic;
mod trial;
mod trickle;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Child;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub use capture::{Capture, Vxlan};
pub use cluster::Cluster;
pub use cni::{Attachment, CniError, CniRuntime, cni_dir};
pub use flood::{Beside, Flood};
pub use kernel_node::{KernelNode, Shape};
pub use netns::{Netns, Prefix, host};
pub use ovs_node::OvsNode;
pub use podman::{Podman, RUNTIME_REMAINS};
pub use podwire_node::{Carried, Options, PodwireNode, SECOND_DEVICE, VXLAN_DEVICE, binary};
pub use screen::Screen;
pub use site::{Host, Peer, Pod, Switch, Wire, cable};
pub use stream::{Deliveries, Delivery, Flow, RATE, stream_at, stream_during};
pub use traffic::*;
pub use trial::{Noticed, figures, losses, notice, since};
pub use trickle::{Connections, Fared};

/// Whether the laboratory can be built; says so when not, in the words that `scripts/test` counts.
pub fn is_root() -> bool {
    // SAFETY: no argument, no failure.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: needs root");
    }
    root
}

/// Whether this kernel has VLAN devices; says so when not.
pub fn has_vlan_devices() -> bool {
    if !is_root() {
        return false;
    }
    let netns = Prefix::fresh().netns("vlan");
    let added = netns.output("ip link add link lo name vlan1 type vlan id 1").status.success();
    if !added {
        println!("skipped: this kernel has no VLAN devices (8021q)");
    }
    added
}

/// Sends a signal to a child that has not been waited for.
pub fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).expect("a pid");
    // SAFETY: plain system call; the child is ours and not reaped, so the pid is not reused.
    unsafe { libc::kill(pid, signal) };
}

/// The value of a line of a file of the kernel's that tells KiB.
pub fn kib(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).expect("a file of the kernel's");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// How much memory of a child is in RAM.
pub fn resident_kib(child: &Child) -> u64 {
    kib(&format!("/proc/{}/status", child.id()), "VmRSS:")
}

/// Does the calling thread's work on a core, and gives the thread back the cores that it had.
pub fn on_core<T>(core: usize, work: impl FnOnce() -> T) -> T {
    let cores = sched_getaffinity(None).expect("the calling thread exists");
    let mut one = CpuSet::new();
    one.set(core);
    sched_setaffinity(None, &one).expect("a core of this machine");
    let result = catch_unwind(AssertUnwindSafe(work));
    sched_setaffinity(None, &cores).expect("the cores that it had");
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// How long those threads of a child have run on a CPU whose names begin so: the first figure of each one's `schedstat`.
pub fn thread_time(child: &Child, name: &str) -> Duration {
    let threads = fs::read_dir(format!("/proc/{}/task", child.id())).expect("the child runs");
    let run_ns = threads.flatten().filter_map(|thread| {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).ok();
        let is_it = read("comm")?.starts_with(name);
        is_it.then(|| read("schedstat"))??.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(run_ns.sum())
}
