//! A daemon that is killed at any step of an attach or a detach: the next one leaves nothing of what was begun.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use podwire::control::api::{Attach, Pod as Listed, Reply, Request};
use podwire::control::client;
use serde_json::Value;

use super::harness::{Netns, Options, PodwireNode, Prefix, Switch, Wire, is_root, wait_until};

/// How often each verb is cut short, each time later.
const ROUNDS: u32 = 16;

const PATIENCE: Duration = Duration::from_secs(10);

/// A node alone, and two namespaces for pods.
struct Scene {
    node: PodwireNode,
    pods: [Netns; 2],
    _prefix: Prefix,
}

/// What is there of pods, a line an object.
type Traces = BTreeSet<String>;

impl Scene {
    fn new() -> Option<Self> {
        is_root().then(|| {
            let prefix = Prefix::fresh();
            let host = Switch::new(&prefix, Wire::default()).host(&prefix, 'a', 1);
            let node = PodwireNode::start(&prefix, host, Options::ADAPTIVE, Vec::new());
            let pods = ["p0", "p1"].map(|name| prefix.netns(name));
            Self { node, pods, _prefix: prefix }
        })
    }

    fn listed(&self) -> Vec<Listed> {
        serde_json::from_str(&self.node.cli("pods list --output json")).expect("JSON")
    }

    fn is_listed(&self, name: &str) -> bool {
        self.listed().iter().any(|pod| pod.name == name)
    }

    fn attach(&self, n: usize) -> Request {
        Request::PodsAttach(Attach {
            name: format!("p{n}"),
            netns: self.pods[n].path(),
            ifname: "eth0".to_owned(),
            addresses: Vec::new(),
            mac: None,
            owner: None,
        })
    }

    /// Asks the daemon; says whether it did what was asked.
    fn ask(&self, request: Request) -> bool {
        matches!(client::call(&self.node.runtime_dir(), request), Ok(Reply::Attached(_) | Reply::Detached { .. }))
    }

    /// Kills the daemon a time after it was asked, and starts the next one; says whether it did what was asked.
    fn cut_short(&mut self, request: Request, after: Duration) -> bool {
        let dir = self.node.runtime_dir();
        let asked = thread::spawn(move || client::call(&dir, request));
        thread::sleep(after);
        self.node.kill();
        let done = matches!(asked.join().expect("no panic"), Ok(Reply::Attached(_) | Reply::Detached { .. }));
        self.node.launch();
        done
    }

    /// What there is of pods in the kernel.
    fn found(&self) -> Traces {
        let node = &self.node.host.netns;
        let json = |line: &str| -> Vec<Value> { serde_json::from_str(&node.run(line)).unwrap_or_default() };
        let is_host_end = |name: &str| name.strip_prefix("pw").is_some_and(|id| id.parse::<u16>().is_ok());
        let links = json("ip -json link").into_iter();
        let devices =
            links.filter_map(|link| link["ifname"].as_str().filter(|name| is_host_end(name)).map(str::to_owned));
        let mut found: Traces = devices.map(|name| format!("device {name}")).collect();
        for (what, line) in [("route", "route show proto 240"), ("neighbour", "neigh show nud permanent")] {
            for object in ["-4", "-6"].into_iter().flat_map(|family| json(&format!("ip {family} -json {line}"))) {
                let device = object["dev"].as_str().unwrap_or_default();
                if is_host_end(device) {
                    found.insert(format!("{what} {} dev {device}", object["dst"].as_str().unwrap_or_default()));
                }
            }
        }
        let pins = fs::read_dir(self.node.pins().join("links")).expect("the pins").flatten();
        let names = pins.map(|pin| pin.file_name().to_string_lossy().into_owned());
        found.extend(names.filter(|name| name.starts_with("pod_")).map(|name| format!("link {name}")));
        let entries: usize = ["local4", "local6"].map(|map| self.entries(map)).into_iter().sum();
        found.insert(format!("{entries} addresses steered"));
        let inside = self.pods.iter().filter(|pod| pod.output("ip link show dev eth0").status.success());
        found.extend(inside.map(|pod| format!("eth0 in {}", pod.path().display())));
        found
    }

    /// How many pods' addresses a steering map knows.
    fn entries(&self, map: &str) -> usize {
        let path = self.node.pins().join("maps").join(map);
        let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(path).output();
        let entries: Vec<Value> = serde_json::from_slice(&output.expect("bpftool starts").stdout).unwrap_or_default();
        entries.len()
    }

    /// What there should be of the pods that the daemon knows.
    fn wanted(&self) -> Traces {
        let pods = self.listed();
        let mut wanted = Traces::new();
        for pod in &pods {
            let device = &pod.host_ifname;
            wanted.insert(format!("device {device}"));
            wanted.insert(format!("link pod_{}", self.node.host.netns.link(device)["ifindex"]));
            wanted.insert(format!("eth0 in {}", pod.netns.display()));
            for address in &pod.addresses {
                wanted.extend(["route", "neighbour"].map(|what| format!("{what} {address} dev {device}")));
            }
        }
        let addresses = pods.iter().map(|pod| pod.addresses.len()).sum::<usize>();
        wanted.insert(format!("{addresses} addresses steered"));
        wanted
    }

    #[track_caller]
    fn assert_nothing_left(&self, after: &str) {
        let (mut found, mut wanted) = (Traces::new(), Traces::new());
        let agrees = wait_until(PATIENCE, || {
            (found, wanted) = (self.found(), self.wanted());
            found == wanted
        });
        assert!(agrees, "after {after}: {found:#?}\nwanted: {wanted:#?}\n{}", self.node.log_text());
    }
}

fn detach() -> Request {
    Request::PodsDetach { name: "p1".to_owned(), network: None }
}

#[test]
fn what_a_killed_daemon_had_begun_is_undone_or_finished() {
    let Some(mut scene) = Scene::new() else { return };
    // A pod that stays, whose attach says how long one takes.
    let start = Instant::now();
    assert!(scene.ask(scene.attach(0)));
    let longest = start.elapsed() * 2;
    scene.assert_nothing_left("the first attach");
    let mut done = [0, 0];
    for round in 0..ROUNDS {
        let after = longest * round / ROUNDS;
        let attached = scene.cut_short(scene.attach(1), after);
        assert!(scene.is_listed("p1") || !attached, "an attach that was answered is forgotten");
        scene.assert_nothing_left(&format!("an attach cut short after {after:?}"));
        if !scene.is_listed("p1") {
            assert!(scene.ask(scene.attach(1)));
        }
        let detached = scene.cut_short(detach(), after);
        assert!(!scene.is_listed("p1") || !detached, "a detach that was answered is forgotten");
        // As who asked for it does again: until then the pod may be without its device.
        assert!(scene.ask(detach()));
        scene.assert_nothing_left(&format!("a detach cut short after {after:?}"));
        done[0] += u32::from(attached);
        done[1] += u32::from(detached);
    }
    println!("{done:?} attaches and detaches of {ROUNDS} were done before the end, which came within {longest:?}");
    assert!(done.iter().all(|done| *done < ROUNDS), "none was cut short");
}
