//! What the daemon has given up of what it could do.

use std::fs::{self, DirEntry};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use podwire::control::api::DataplaneState;

use super::harness::{Options, PodwireNode, Wire, assert_all_pairs_talk, wait_until};
use super::{assert_ledgers_balance, cluster};

/// The same for setpriv(1).
const KEPT_BY_NAME: &str = "-all,+dac_override,+net_broadcast,+net_admin,+net_raw,+ipc_lock,+sys_ptrace,+sys_admin,\
                            +sys_nice,+perfmon,+bpf";

/// `nobody`.
const USER: u32 = 65534;

const PATIENCE: Duration = Duration::from_secs(10);

/// `CAP_DAC_OVERRIDE`, `NET_BROADCAST`, `NET_ADMIN`, `NET_RAW`, `IPC_LOCK`, `SYS_PTRACE`, `SYS_ADMIN`, `SYS_NICE`,
/// `PERFMON`, `BPF`, by their numbers in `include/uapi/linux/capability.h`.
const KEPT: u64 = 1 << 1 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 19 | 1 << 21 | 1 << 23 | 1 << 38 | 1 << 39;

/// A thread of the daemon, as `/proc` tells of it.
#[derive(Debug)]
struct Thread {
    name: String,
    permitted: u64,
    effective: u64,
    no_new_privs: bool,
    /// 2: by a filter (proc(5)).
    seccomp: u32,
    filters: u32,
    nice: i32,
}

fn threads(node: &PodwireNode) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.daemon().id())).expect("the daemon runs");
    let read = |task: DirEntry| {
        let file = |name| fs::read_to_string(task.path().join(name)).ok();
        Some(parse(&file("status")?, &file("stat")?))
    };
    tasks.flatten().filter_map(read).collect()
}

fn parse(status: &str, stat: &str) -> Thread {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
    };
    let set = |name: &str| u64::from_str_radix(field(name), 16).expect("hexadecimal");
    let number = |name: &str| field(name).parse().expect("a number");
    // The third field follows on the name.
    let nice = stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(16));
    Thread {
        name: field("Name").to_owned(),
        permitted: set("CapPrm"),
        effective: set("CapEff"),
        no_new_privs: field("NoNewPrivs") == "1",
        seccomp: number("Seccomp"),
        filters: number("Seccomp_filters"),
        nice: nice.expect("the 19th field").parse().expect("a number"),
    }
}

#[test]
fn each_thread_has_the_privileges_and_system_calls_that_it_needs() {
    let Some(cluster) = cluster(Wire::default(), Options { metrics: true, ..Options::ADAPTIVE }) else { return };
    let is_own = |thread: &Thread| ["podwire-w0", "podwire-metrics"].contains(&thread.name.as_str());
    // Both begin as control's.
    let settled = || threads(&cluster.a).iter().filter(|thread| is_own(thread) && thread.filters == 2).count() == 2;
    assert!(wait_until(PATIENCE, settled), "{:?}", threads(&cluster.a));
    let threads = threads(&cluster.a);
    let control = threads.iter().find(|thread| thread.name == "podwire").expect("control");
    for thread in &threads {
        let own = is_own(thread);
        let allowed = if own { 0 } else { KEPT };
        assert_eq!((thread.permitted, thread.effective), (allowed, allowed), "{thread:?}");
        assert!(thread.no_new_privs && thread.seccomp == 2, "{thread:?}");
        assert_eq!(thread.filters, if own { 2 } else { 1 }, "{thread:?}");
        let nice = if thread.name == "podwire-w0" { control.nice.min(-5) } else { control.nice };
        assert_eq!(thread.nice, nice, "workers go before others: {thread:?}");
    }
    for name in ["podwire", "podwire-w0", "podwire-metrics"] {
        assert!(threads.iter().any(|thread| thread.name == name), "{threads:?}");
    }
}

#[test]
fn a_worker_that_oversteps_ends_the_daemon_and_pods_go_on() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    // It may end before it has answered.
    drop(cluster.a.try_cli("fault overstep --worker 0 --ms 1"));
    let status = cluster.a.wait_for_death(PATIENCE);
    assert_eq!(status.signal(), Some(libc::SIGSYS));
    assert_all_pairs_talk(&cluster.pods());
    cluster.a.launch();
    assert_eq!(cluster.a.state(), Some(DataplaneState::Running));
    assert_all_pairs_talk(&cluster.pods());
    assert_ledgers_balance(&cluster);
}

#[test]
fn filters_can_be_left_out_and_privileges_are_dropped_all_the_same() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    cluster.a.stop();
    cluster.a.launch_by(&[], &["--no-seccomp"]);
    for thread in threads(&cluster.a) {
        let allowed = if thread.name == "podwire-w0" { 0 } else { KEPT };
        assert_eq!((thread.effective, thread.seccomp), (allowed, 0), "{thread:?}");
    }
    // Without a filter it is harmless.
    cluster.a.cli("fault overstep --worker 0 --ms 1");
    assert_all_pairs_talk(&cluster.pods());
}

#[test]
fn another_user_with_these_capabilities_runs_it_too() {
    let options = Options { masquerade: true, ..Options::ADAPTIVE };
    let Some(mut cluster) = cluster(Wire::default(), options) else { return };
    cluster.a.stop();
    let give_to = |node: &PodwireNode, user: u32| {
        node.host.netns.run(&format!("chown -R {user} {}", node.runtime_dir().display()));
    };
    give_to(&cluster.a, USER);
    let [user, group] = ["--reuid", "--regid"].map(|option| format!("{option}={USER}"));
    let sets = ["--inh-caps", "--ambient-caps", "--bounding-set"].map(|option| format!("{option}={KEPT_BY_NAME}"));
    let [inheritable, ambient, bounding] = &sets;
    cluster.a.launch_by(&["setpriv", &user, &group, "--clear-groups", inheritable, ambient, bounding], &[]);
    let status = fs::read_to_string(format!("/proc/{}/status", cluster.a.daemon().id())).expect("the daemon runs");
    assert!(status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}")), "{status}");

    cluster.a.add_pod(&cluster.prefix, "other");
    assert_all_pairs_talk(&cluster.pods());
    cluster.a.host.netns.run("nft delete table inet podwire");
    let is_back = || cluster.a.host.netns.output("nft list table inet podwire").status.success();
    assert!(wait_until(PATIENCE, is_back), "{}", cluster.a.log_text());
    assert_ledgers_balance(&cluster);
    cluster.a.stop();
    give_to(&cluster.a, 0);
    cluster.a.launch();
    assert_all_pairs_talk(&cluster.pods());
}
