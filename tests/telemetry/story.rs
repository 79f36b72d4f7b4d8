//! What happens to a node while it is scraped, so that each metric has something to tell.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use podwire::control::api::{Peer, Pod, ProbeState, Stats, Status};

use crate::exposition::Exposition;
use crate::harness::{Cluster, Options, Pod as Talker, PodwireNode, tcp_transfer, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than the daemon lets a snapshot serve.
const SETTLED: Duration = Duration::from_millis(400);

/// A node's answers to the command line.
pub struct Told {
    pub status: Status,
    pub stats: Stats,
}

impl Told {
    fn by(node: &PodwireNode) -> Self {
        Self { status: node.status(), stats: node.stats() }
    }
}

/// What `/proc` says of a daemon.
pub struct Process {
    pub status: String,
    pub limits: String,
    pub fds: usize,
    pub threads: usize,
}

impl Process {
    fn of(node: &PodwireNode) -> Self {
        let dir = PathBuf::from(format!("/proc/{}", node.daemon().id()));
        let read = |name: &str| fs::read_to_string(dir.join(name)).expect("the daemon runs");
        let count = |name: &str| fs::read_dir(dir.join(name)).expect("the daemon runs").count();
        Self { status: read("status"), limits: read("limits"), fds: count("fd"), threads: count("task") }
    }
}

/// What was scraped of node `a`, and when.
pub struct Story {
    /// Before anything happened.
    pub before: Exposition,
    /// While and after a worker hung and then had no packet memory.
    pub faulty: Vec<Exposition>,
    /// With a file that was refused.
    pub refused: Exposition,
    /// At the end of all that, between two answers to the command line.
    pub after: Exposition,
    pub earlier: Told,
    pub later: Told,
    pub pods: Vec<Pod>,
    pub process: Process,
    /// With the uplink down.
    pub down: Exposition,
    /// Without the uplink.
    pub bare: Exposition,
    /// With the data plane off, and somebody else's rules that translate.
    pub kernel: Exposition,
}

impl Story {
    /// Lets it happen.
    pub fn of(cluster: &mut Cluster) -> Self {
        let before = Exposition::of(&cluster.a);
        let answers = |peer: &Peer| peer.probe.as_ref().is_some_and(|probe| probe.state == ProbeState::Answers);
        assert!(wait_until(PATIENCE, || cluster.a.status().peers.iter().all(answers)), "a peer does not answer");
        move_bulk(cluster);
        let faulty = suffer(cluster);
        move_bulk(cluster);
        let refused = refuse(&cluster.a);
        cluster.a.set_options(Options { masquerade: true, ..cluster.a.options() });
        cluster.a.add_pod(&cluster.prefix, "a3");
        cluster.a.remove_pod();
        // A second and a half more for figures in whole seconds.
        thread::sleep(Duration::from_millis(1500));
        let earlier = Told::by(&cluster.a);
        thread::sleep(SETTLED);
        let after = Exposition::of(&cluster.a);
        let later = Told::by(&cluster.a);
        let pods = serde_json::from_str(&cluster.a.cli("pods list --output json")).expect("pods list prints JSON");
        let (node, process) = (&cluster.a, Process::of(&cluster.a));
        let down = scrape_when(node, "ip link set eth0 down", |page| {
            let silent = page.get("podwire_peers_probed", &[("state", "silent")]);
            (page.get("podwire_uplink_up", &[]), silent) == (Some(0.0), Some(2.0))
        });
        let bare = scrape_when(node, "ip link del eth0", |page| page.get("podwire_uplink_up", &[]).is_none());
        cluster.switch.plug(&cluster.a.host);
        cluster.a.set_options(Options { mode: "kernel", ..cluster.a.options() });
        cluster.a.host.netns.run("nft add table ip other");
        cluster.a.host.netns.run("nft add chain ip other post { type nat hook postrouting priority 100 ; }");
        let kernel = scrape_when(&cluster.a, "nft add rule ip other post ip daddr 10.9.0.0/16 masquerade", |page| {
            page.get("podwire_nat_check", &[("check", "none")]) == Some(0.0)
        });
        Self { before, faulty, refused, after, earlier, later, pods, process, down, bare, kernel }
    }
}

/// Super-packets in both directions.
fn move_bulk(cluster: &Cluster) {
    let (a, b) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    for (from, to) in [(a, b), (b, a)] {
        tcp_transfer(from, to, to.v4.into(), 8 << 20).expect("bytes arrive");
    }
}

/// The worker hangs, and then is without packet memory, while pods talk.
fn suffer(cluster: &Cluster) -> Vec<Exposition> {
    let (from, to) = (&cluster.b.pods[0], &cluster.a.pods[0]);
    let mut pages = Vec::new();
    for fault in ["hang", "starve"] {
        let flood = |from: &Talker, to: &Talker| {
            let line = format!("ping -q -n -i 0.001 -c 1000 -W 1 {}", to.v4);
            from.netns.command("ping").args(line.split(' ').skip(1)).stdout(std::process::Stdio::null()).spawn()
        };
        let floods = [flood(from, to), flood(to, from)].map(|child| child.expect("ping starts"));
        thread::sleep(Duration::from_millis(200));
        cluster.a.cli(&format!("fault {fault} --ms 600"));
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(260));
            pages.push(Exposition::of(&cluster.a));
        }
        for mut flood in floods {
            flood.wait().expect("our child");
        }
    }
    pages
}

/// Has a file refused, and puts the good one back.
fn refuse(node: &PodwireNode) -> Exposition {
    let good = fs::read_to_string(node.config()).expect("the configuration");
    fs::write(node.config(), "nonsense").expect("write the file");
    assert!(wait_until(PATIENCE, || node.status().config.last_error.is_some()), "nonsense was taken");
    thread::sleep(SETTLED);
    let page = Exposition::of(node);
    fs::write(node.config(), good).expect("write the file");
    assert!(wait_until(PATIENCE, || node.status().config.last_error.is_none()), "what is good was refused");
    page
}

/// Does something to the node, and scrapes until it shows.
fn scrape_when(node: &PodwireNode, line: &str, shows: impl Fn(&Exposition) -> bool) -> Exposition {
    node.host.netns.run(line);
    let mut page = Exposition::of(node);
    let seen = wait_until(PATIENCE, || {
        thread::sleep(SETTLED);
        page = Exposition::of(node);
        shows(&page)
    });
    assert!(seen, "{line} does not show:\n{}", page.text);
    page
}
