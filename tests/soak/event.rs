//! What happens to nodes: the faults of `scripts/faults`, and what is no fault but everyday life.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::fault::FAULTS;
use crate::harness::{Cluster, Options, Pod, PodwireNode, Prefix, pings, wait_until};

/// Pods that come and go at once, on each node.
const NEWCOMERS: usize = 3;

/// Pods that stay, on each node.
const RESIDENTS: usize = 2;

/// How long a change is left before it is taken back.
const LENGTH: Duration = Duration::from_millis(500);

/// How long what was removed by hand may be away.
const REPAIR: Duration = Duration::from_secs(10);

/// Something that happens to nodes, and leaves them as they were.
#[derive(Clone, Copy)]
pub struct Event {
    pub name: &'static str,
    /// Whether it takes no path away, so that nothing may get lost that is not counted.
    pub harmless: bool,
    pub happen: fn(&mut Cluster),
}

/// Everyday life. That of node `b` never ends its daemon.
const LIFE: [Event; 7] = [
    // First, because tokio keeps the thread that served it for ten seconds.
    Event { name: "a trace", harmless: true, happen: trace },
    Event { name: "pods come and go", harmless: true, happen: churn_pods },
    Event { name: "a peer leaves and comes back", harmless: false, happen: churn_peers },
    Event { name: "routes are removed by hand", harmless: false, happen: flush_routes },
    Event { name: "a worker more, and back", harmless: false, happen: exchange_workers },
    Event { name: "settings change, and back", harmless: true, happen: toggle_vteps },
    Event { name: "operators ask", harmless: true, happen: ask },
];

/// All of them.
pub fn all() -> Vec<Event> {
    let faults = FAULTS.iter().filter(|fault| fault.name != "none");
    let faults = faults.map(|fault| Event { name: fault.name, harmless: false, happen: fault.provoke });
    LIFE.into_iter().chain(faults).collect()
}

/// Has each thing of everyday life happen once. The kernel takes IPv6 addresses from a device that goes down, unless it
/// is told otherwise, which would leave nodes poorer.
pub fn warm_up(cluster: &mut Cluster) {
    for node in cluster.podwire_nodes() {
        node.host.netns.sysctl("ipv6/conf/all/keep_addr_on_down", "1");
    }
    for event in LIFE {
        (event.happen)(cluster);
    }
}

fn churn_pods(cluster: &mut Cluster) {
    let [of_a, of_b] = [cluster.a.pods[0].clone(), cluster.b.pods[0].clone()];
    come_and_go(&mut cluster.a, &cluster.prefix, &of_b);
    come_and_go(&mut cluster.b, &cluster.prefix, &of_a);
}

/// Pods that talk to a remote one as soon as they are there, and leave; with them those that a failure has left behind.
fn come_and_go(node: &mut PodwireNode, prefix: &Prefix, remote: &Pod) {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    for _ in 0..NEWCOMERS {
        node.add_pod(prefix, &format!("new-{}{}", node.host.letter, SERIAL.fetch_add(1, Ordering::Relaxed)));
        let pod = node.pods.last().expect("just added");
        for address in remote.addresses() {
            // Unlike what it judges, the first packet of a pod has no second chance.
            assert!((0..2).any(|_| pings(pod, address, "")), "{} does not reach {address}", pod.name);
        }
    }
    while node.pods.len() > RESIDENTS {
        node.remove_pod().netns.remove();
    }
}

fn churn_peers(cluster: &mut Cluster) {
    let c = cluster.c.peer();
    let (of_a, of_b) = (cluster.b.host.peer(None), cluster.a.host.peer(None));
    for (node, other) in [(&mut cluster.a, of_a), (&mut cluster.b, of_b)] {
        node.set_peers(vec![other.clone()]);
        thread::sleep(LENGTH);
        node.set_peers(vec![other, c.clone()]);
    }
}

/// What `ip` calls the routes that are ours.
const ROUTES: [&str; 2] = ["ip -4 route show table all proto 240", "ip -6 route show table all proto 240"];

fn flush_routes(cluster: &mut Cluster) {
    for node in cluster.podwire_nodes() {
        let netns = &node.host.netns;
        let count = || ROUTES.map(|line| netns.run(line).lines().count());
        let before = count();
        netns.run_all(ROUTES.map(|line| line.replace("show", "flush")));
        assert!(
            wait_until(REPAIR, || count() == before),
            "routes of {}: {:?}, not {before:?}",
            node.host.name(),
            count()
        );
    }
}

fn exchange_workers(cluster: &mut Cluster) {
    for node in [&mut cluster.a, &mut cluster.b] {
        let options = node.options();
        node.set_options(Options { workers: options.workers + 1, ..options });
        thread::sleep(LENGTH);
        node.set_options(options);
    }
}

fn toggle_vteps(cluster: &mut Cluster) {
    for node in [&mut cluster.a, &mut cluster.b] {
        let options = node.options();
        node.set_options(Options { known_vteps_only: !options.known_vteps_only, ..options });
        node.set_options(options);
    }
}

fn ask(cluster: &mut Cluster) {
    for node in cluster.podwire_nodes() {
        for line in ["status", "stats", "routes", "pods list", "ipam list", "ipam check", "top --once"] {
            node.cli(line);
        }
        // It fails while a peer is silent, which `c` may be just now.
        node.try_cli("peers");
    }
}

fn trace(cluster: &mut Cluster) {
    for node in cluster.podwire_nodes() {
        node.cli("trace --seconds 1 --protocol udp");
    }
}
