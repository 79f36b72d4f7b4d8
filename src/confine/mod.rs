//! What the daemon gives up of what it could do, so that whoever gets hold of it can do no more.
//!
//! | | capabilities | system calls |
//! |---|---|---|
//! | control and what it starts (`nft`) | `KEPT` | `calls::control`; others fail with `EPERM` |
//! | a worker | none | `calls::WORKER`; another one ends the process |
//! | the metrics thread | none | `calls::METRICS`; another one ends the process |
//!
//! Both belong to a thread and pass to those that it starts, so the daemon confines itself before it starts any, and
//! workers and the metrics thread give up the rest when they have settled. Nobody gets anything back
//! (`no_new_privs`). When a process ends so, the kernel path carries the pods, the service manager starts the next, and
//! the kernel's log names the thread and the number of the call (`audit: type=1326`).

mod calls;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use calls::Group;

/// What the daemon keeps.
const KEPT: [CapabilitySet; 10] = [
    // Devices, routes, rules, sysctls of the network, programs on devices, nft.
    CapabilitySet::NET_ADMIN,
    // Packet sockets, AF_XDP sockets, probes by raw ICMP sockets.
    CapabilitySet::NET_RAW,
    // News of pods' namespaces (NETLINK_LISTEN_ALL_NSID).
    CapabilitySet::NET_BROADCAST,
    // Programs, maps and pins.
    CapabilitySet::BPF,
    // Programs that read packet pointers and structures of the kernel.
    CapabilitySet::PERFMON,
    // To enter the network namespace of a pod, and to mount bpffs where it is missing.
    CapabilitySet::SYS_ADMIN,
    // Namespaces that are named by /proc/PID/ns/net.
    CapabilitySet::SYS_PTRACE,
    // Namespaces that another user has mounted.
    CapabilitySet::DAC_OVERRIDE,
    // Packet memory beyond RLIMIT_MEMLOCK.
    CapabilitySet::IPC_LOCK,
    // Workers before others on their cores.
    CapabilitySet::SYS_NICE,
];

/// What a program that the daemon runs, `nft`, has of it where the daemon is not root.
const HANDED_ON: CapabilitySet = CapabilitySet::NET_ADMIN;

/// Why the daemon cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[source] Errno),
    #[error("cannot renounce new privileges: {0}")]
    Privileges(#[source] Errno),
    #[error("cannot filter system calls: {0}; does this kernel have CONFIG_SECCOMP_FILTER? --no-seccomp does without")]
    Filter(#[from] seccompiler::Error),
    #[error("cannot build the filter of system calls: {0}")]
    Compile(#[from] seccompiler::BackendError),
}

/// A thread that needs less than the one that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    Worker,
    Metrics,
}

/// Whether this process is confined, with filters of system calls or without. Tests that run a worker in a process of
/// their own are not.
static FILTERS: OnceLock<bool> = OnceLock::new();

/// Confines the calling thread, and all threads and processes that it starts from now on, to what the daemon needs.
/// Called once, while there is one thread. Without `filters` system calls are not filtered.
pub fn daemon(filters: bool) -> Result<(), ConfineError> {
    keep(KEPT.into_iter().collect(), HANDED_ON)?;
    set_no_new_privs(true).map_err(ConfineError::Privileges)?;
    if filters {
        apply(calls::control(), Refusal::Error)?;
    }
    FILTERS.get_or_init(|| filters);
    Ok(())
}

/// Confines the calling thread further, if it belongs to a daemon that is confined.
pub fn thread(kind: Thread) -> Result<(), ConfineError> {
    let Some(&filters) = FILTERS.get() else { return Ok(()) };
    keep(CapabilitySet::empty(), CapabilitySet::empty())?;
    if filters {
        let groups = match kind {
            Thread::Worker => calls::WORKER,
            Thread::Metrics => calls::METRICS,
        };
        apply(groups.iter().copied(), Refusal::End)?;
    }
    Ok(())
}

/// Gives up all capabilities of the calling thread but `kept`, and lets programs that it runs have `handed_on` of them.
fn keep(kept: CapabilitySet, handed_on: CapabilitySet) -> Result<(), ConfineError> {
    let held = capabilities(None).map_err(ConfineError::Capabilities)?;
    let permitted = held.permitted & kept;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: permitted & handed_on };
    set_capabilities(None, sets).map_err(ConfineError::Capabilities)?;
    // What is no longer inheritable has left the ambient set by itself (capabilities(7)).
    for capability in sets.inheritable.iter() {
        configure_capability_in_ambient_set(capability, true).map_err(ConfineError::Capabilities)?;
    }
    Ok(())
}

/// What becomes of a system call that is not allowed.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// `EPERM`.
    Error,
    /// The process ends as by SIGSYS.
    End,
}

fn apply(groups: impl Iterator<Item = Group>, refusal: Refusal) -> Result<(), ConfineError> {
    Ok(seccompiler::apply_filter(&program(groups, refusal)?)?)
}

fn program(groups: impl Iterator<Item = Group>, refusal: Refusal) -> Result<BpfProgram, ConfineError> {
    let refused = match refusal {
        Refusal::Error => SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs()),
        Refusal::End => SeccompAction::KillProcess,
    };
    let prctl = calls::PRCTL.map(|option| {
        SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, option)?])
    });
    let mut rules = BTreeMap::from([(libc::SYS_prctl, prctl.into_iter().collect::<Result<_, _>>()?)]);
    // Without a rule of its own a call is allowed whatever its arguments are.
    rules.extend(groups.flat_map(|group| group.calls).map(|&number| (number, Vec::new())));
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use super::*;

    #[test]
    fn what_workers_and_metrics_may_do_control_may_do() {
        let calls = |groups: &mut dyn Iterator<Item = Group>| -> BTreeSet<_> {
            groups.flat_map(|group| group.calls).copied().collect()
        };
        let control = calls(&mut calls::control());
        for groups in [calls::WORKER, calls::METRICS] {
            let these = calls(&mut groups.iter().copied());
            assert!(these.is_subset(&control) && these.len() < control.len() / 2);
        }
    }

    #[test]
    fn control_can_go_on_and_cannot_do_what_is_not_listed() {
        let confined = thread::spawn(|| {
            rustix::process::chroot("/").expect("root may, before");
            apply(calls::control(), Refusal::Error).unwrap();
            std::fs::read("/proc/self/status").unwrap();
            rustix::process::chroot("/")
        });
        if rustix::process::geteuid().is_root() {
            assert_eq!(confined.join().unwrap(), Err(Errno::PERM));
        } else {
            println!("skipped: needs root");
        }
    }
}
