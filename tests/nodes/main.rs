//! Two podwire nodes and a plain kernel node in network namespaces, end to end.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "../soak/mod.rs"]
mod endurance;

/// Two tests of each check: with the data plane, and by the kernel path alone.
macro_rules! in_both_modes {
    ($($check:ident),+ $(,)?) => {
        mod in_mode_adaptive {
            $(#[test] fn $check() { super::$check(super::Options::ADAPTIVE); })+
        }
        mod in_mode_kernel {
            $(#[test] fn $check() { super::$check(super::Options::KERNEL); })+
        }
    };
}

mod asleep;
mod broken;
mod bulk;
mod bypass;
mod confined;
mod direct;
mod failover;
mod fairness;
mod hostile;
mod hosts;
mod judged;
mod latency;
mod lookup;
mod newcomers;
mod path;
mod reach;
mod restart;
mod shaping;
mod soak;
mod tables;
mod top;
mod trace;
mod trains;
mod wire_format;
mod without_xdp;

use harness::{Cluster, Options, Prefix, Wire, is_root};

/// The cluster, or `None` (and a line that says so) where it cannot be built.
fn cluster(wire: Wire, options: Options) -> Option<Cluster> {
    is_root().then(|| Cluster::start(Prefix::fresh(), wire, options))
}

/// Panics unless each frame of each podwire node is in exactly one of its four places.
#[track_caller]
fn assert_ledgers_balance(cluster: &Cluster) {
    for node in cluster.podwire_nodes() {
        let figures = node.status().dataplane.figures.expect("the data plane runs");
        assert!(!figures.workers.is_empty());
        for worker in figures.workers {
            assert!(worker.frames.total > 0 && worker.frames.is_balanced(), "{}: {worker:?}", node.host.name());
        }
    }
}
