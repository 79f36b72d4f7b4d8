//! What nodes hold, to see at the end that it is what they held at the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::harness::{Cluster, PodwireNode, VXLAN_DEVICE, wait_until};

/// How long what was let go may take to be gone: the kernel frees by grace periods, tokio's idle threads end in 10 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// Numbers of things by what they are.
#[derive(Debug, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, usize>);

impl Inventory {
    pub fn take(cluster: &Cluster) -> Self {
        let mut counts = BTreeMap::new();
        for node in cluster.podwire_nodes() {
            let of = |what: &str| format!("{what} of {}", node.host.name());
            counts.extend(held(node).into_iter().map(|(what, count)| (of(what), count)));
            counts.extend(shown(node).into_iter().map(|(what, count)| (of(what), count)));
        }
        let prefix = format!("{}-", cluster.prefix.name());
        let ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(&prefix);
        let namespaces = fs::read_dir("/run/netns").expect("namespaces").flatten().filter(ours).count();
        counts.insert("network namespaces".to_owned(), namespaces);
        Self(counts)
    }

    /// Of what there is more now, after some time to settle.
    pub fn growth(&self, cluster: &Cluster) -> Vec<String> {
        let mut grown = Vec::new();
        wait_until(PATIENCE, || {
            grown = self.less_than(&Self::take(cluster));
            grown.is_empty()
        });
        grown
    }

    fn less_than(&self, now: &Self) -> Vec<String> {
        let grown = |(what, before): (&String, &usize)| {
            let after = now.0.get(what).filter(|after| *after > before)?;
            Some(format!("{what}: {before} before, {after} after"))
        };
        self.0.iter().filter_map(grown).collect()
    }
}

/// What the daemon's process holds, and what it has pinned and stored. A BPF object lives as long as one of these, or an
/// attachment, which a pinned link is, refers to it.
fn held(node: &PodwireNode) -> [(&'static str, usize); 7] {
    let process = Path::new("/proc").join(node.daemon().id().to_string());
    let infos: Vec<_> = fs::read_dir(process.join("fdinfo"))
        .expect("the daemon runs")
        .flatten()
        .filter_map(|info| fs::read_to_string(info.path()).ok())
        .collect();
    let objects = |field: &str| {
        let ids = infos.iter().flat_map(|info| info.lines()).filter(|line| line.starts_with(field));
        ids.collect::<BTreeSet<_>>().len()
    };
    let threads = fs::read_dir(process.join("task")).expect("the daemon runs").count();
    [
        ("descriptors", infos.len()),
        ("threads", threads),
        ("BPF maps", objects("map_id:")),
        ("BPF programs", objects("prog_id:")),
        ("BPF links", objects("link_id:")),
        ("pins", files(&node.pins())),
        ("files in the runtime directory", files(&node.runtime_dir())),
    ]
}

/// What the kernel shows in the node's namespace, in lines.
fn shown(node: &PodwireNode) -> [(&'static str, usize); 8] {
    let lines = |line: &str| node.host.netns.run(line).lines().count();
    [
        ("devices", lines("ip -oneline link show")),
        ("IPv4 routes", lines("ip -4 route show table all")),
        ("IPv6 routes", lines("ip -6 route show table all")),
        ("rules", lines("ip -4 rule show") + lines("ip -6 rule show")),
        ("permanent neighbours", lines("ip neigh show nud permanent")),
        ("forwarding entries", lines(&format!("bridge fdb show dev {VXLAN_DEVICE}"))),
        ("lines of nft's ruleset", lines("nft list ruleset")),
        ("sockets", lines("ss --no-header --all --packet") + lines("ss --no-header --all --xdp")),
    ]
}

fn files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

/// The memory of a daemon that no file stands behind, packet memory in ordinary pages included.
pub fn anonymous_kib(node: &PodwireNode) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.daemon().id())).expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
