//! What there is on a node that pods add to, to see whether those that went have left something.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use podwire::control::api::Pod;
use podwire::control::api::ipam::{Addresses, State};

use super::containerd::Containerd;
use super::harness::{PodwireNode, wait_until};

/// How long a node may take to clean up behind an answer: a device goes with its namespace some time after the last
/// process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything by a line that tells it from all else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

impl Inventory {
    /// Devices, queueing disciplines, routes and neighbours of a node, the chains that `portmap` makes for a pod, and what
    /// the daemon knows; and the namespaces of its runtime, if it has one.
    pub fn of(node: &PodwireNode, containerd: Option<&Containerd>) -> Self {
        let netns = &node.host.netns;
        let mut all: BTreeSet<_> = pods(node).into_iter().map(|pod| format!("pod {}", pod.name)).collect();
        all.extend(addresses_in_use(node).into_iter().map(|address| format!("address {address}")));
        for (what, line) in [
            ("link", "ip -oneline -brief link show"),
            ("qdisc", "tc qdisc show"),
            ("route", "ip -4 route show table all"),
            ("route", "ip -6 route show table all"),
            ("neighbour", "ip neigh show nud permanent"),
        ] {
            let lines = netns.run(line);
            // What the kernel adds to each device by itself, when its link-local address has become valid.
            let lines = lines.lines().filter(|line| !line.contains(" table local "));
            all.extend(lines.map(|line| format!("{what} {}", line.trim())));
        }
        for family in ["iptables", "ip6tables"] {
            let rules = netns.run(&format!("{family}-save -t nat"));
            all.extend(rules.lines().filter(|rule| rule.contains("CNI-DN-")).map(|rule| format!("{family} {rule}")));
        }
        let namespaces = containerd.and_then(|containerd| fs::read_dir(containerd.namespaces()).ok());
        let namespaces = namespaces.into_iter().flatten().flatten().map(|entry| entry.file_name());
        all.extend(namespaces.map(|name| format!("namespace {}", name.display())));
        Self(all)
    }

    /// Waits until the node is as it was when this was taken, or panics with the difference. What the daemon remembers
    /// must be what is there, too.
    #[track_caller]
    pub fn assert_restored(&self, node: &PodwireNode, containerd: Option<&Containerd>) {
        let mut now = Self::of(node, containerd);
        wait_until(PATIENCE, || {
            now = Self::of(node, containerd);
            now == *self
        });
        let more: Vec<_> = now.0.difference(&self.0).collect();
        let less: Vec<_> = self.0.difference(&now.0).collect();
        assert!(now == *self, "{} has more: {more:#?}\nand less: {less:#?}", node.host.name());
        node.cli("ipam check");
    }
}

/// The pods that the daemon knows.
#[track_caller]
pub fn pods(node: &PodwireNode) -> Vec<Pod> {
    serde_json::from_str(&node.cli("pods list --output json")).expect("podwire prints JSON")
}

/// The addresses that the daemon cannot give to others, but for those that rest after their release.
#[track_caller]
fn addresses_in_use(node: &PodwireNode) -> Vec<IpAddr> {
    let all: Addresses = serde_json::from_str(&node.cli("ipam list --output json")).expect("podwire prints JSON");
    let in_use = all.addresses.into_iter().filter(|address| address.state != State::Quarantined);
    in_use.map(|address| address.address).collect()
}
