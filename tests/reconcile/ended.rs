//! Pods whose network namespace ends without a detach, and those that only look like it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::time::{Duration, Instant};

use podwire::control::api::Pod as Listed;

use super::harness::{Cluster, Options, Pod, PodwireNode, Prefix, Wire, is_root, pings, wait_until};

/// How long a runtime has to detach its pod itself,
const GRACE: Duration = Duration::from_secs(5);
/// and how long the daemon may take to do it then, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(25);

fn cluster(options: Options) -> Option<Cluster> {
    is_root().then(|| {
        let mut cluster = Cluster::start(Prefix::fresh(), Wire::default(), options);
        for name in ["a3", "a4"] {
            cluster.a.add_pod(&cluster.prefix, name);
        }
        cluster
    })
}

fn listed(node: &PodwireNode) -> Vec<Listed> {
    serde_json::from_str(&node.cli("pods list --output json")).expect("JSON")
}

fn names(node: &PodwireNode) -> BTreeSet<String> {
    listed(node).into_iter().map(|pod| pod.name).collect()
}

#[track_caller]
fn wait_for_pods(node: &PodwireNode, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    assert!(wait_until(PATIENCE, || names(node) == expected), "{:?}\n{}", names(node), node.log_text());
}

/// A process that keeps a pod's network namespace alive.
struct Holder(Child);

impl Holder {
    fn of(pod: &Pod) -> Self {
        let child = pod.netns.command("sleep").arg("600").spawn().expect("sleep starts");
        let inside = || fs::metadata(format!("/proc/{}/ns/net", child.id())).map(|file| file.ino()).ok();
        let own = fs::metadata(pod.netns.path()).expect("the namespace").ino();
        assert!(wait_until(PATIENCE, || inside() == Some(own)), "it does not enter");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_pod_whose_namespace_has_ended_is_detached_after_a_while() {
    let Some(mut cluster) = cluster(Options::ADAPTIVE) else { return };
    let [gone, replaced, held, other] = [0, 1, 2, 3].map(|index| cluster.a.pods[index].clone());
    let holder = Holder::of(&held);
    let links = || fs::read_dir(cluster.a.pins().join("links")).expect("the pins").count();
    let before = (links(), cluster.a.log_text().len());
    let start = Instant::now();
    gone.netns.clone().remove();
    held.netns.clone().remove();
    // Where the pod was there is another namespace now.
    replaced.netns.clone().remove();
    let netns = cluster.prefix.netns("a2");
    assert_eq!(netns.path(), replaced.netns.path());
    netns.run("ip link add eth0 type veth peer name eth1");
    let found = netns.run("ip -json link");

    wait_for_pods(&cluster.a, &["a3", "a4"]);
    assert!(start.elapsed() >= GRACE, "the runtime had only {:?}", start.elapsed());
    assert_eq!(links(), before.0 - 2, "links of the steering programs");
    let log = cluster.a.log_text().split_off(before.1);
    for name in ["a1", "a2"] {
        let told = format!("its network namespace has ended, and nobody has detached it pod=\"{name}\"");
        assert_eq!(log.matches(&told).count(), 1, "{log}");
        assert_eq!(log.matches(&format!("detached pod=\"{name}\"")).count(), 1, "{log}");
    }
    assert!(!log.contains("device pw1 is gone; detach it") && !log.contains("device pw2 is gone; detach it"), "{log}");
    assert_eq!(netns.run("ip -json link"), found, "another namespace at the path is left alone");
    assert!(pings(&other, held.v4.into(), ""), "a namespace without a path is alive");
    cluster.a.cli(&format!(
        "pods attach --netns {} --ifname eth9 --name next --ip {}",
        netns.path().display(),
        gone.v4
    ));

    // The last one goes while no daemon runs.
    cluster.a.kill();
    drop(holder);
    cluster.a.launch();
    wait_for_pods(&cluster.a, &["a4", "next"]);
    let problems = cluster.a.status().problems;
    assert!(problems.is_empty(), "{problems:?}");
}

/// Takes the number of their namespaces from what the daemon remembers of its pods, as one of an earlier version.
fn forget_namespaces(node: &PodwireNode) {
    let path = node.runtime_dir().join("pods.json");
    let mut store: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("the store")).expect("JSON");
    for pod in store["pods"].as_array_mut().expect("pods") {
        pod.as_object_mut().expect("a pod").remove("netns_cookie").expect("its namespace is remembered");
    }
    fs::write(path, store.to_string()).expect("written");
}

#[test]
fn a_pod_whose_namespace_may_be_alive_is_reported_and_stays() {
    let Some(mut cluster) = cluster(Options::KERNEL) else { return };
    let [deleted, replaced] = [0, 1].map(|index| cluster.a.pods[index].clone());
    deleted.netns.run("ip link del eth0");
    cluster.a.stop();
    forget_namespaces(&cluster.a);
    replaced.netns.clone().remove();
    let _netns = cluster.prefix.netns("a2");
    cluster.a.launch();
    let is_told = |device: &str| {
        let told = format!("its device {device} is gone; detach it");
        cluster.a.status().problems.iter().any(|problem| problem.contains(&told))
    };
    assert!(wait_until(PATIENCE, || is_told("pw1") && is_told("pw2")), "{:?}", cluster.a.status().problems);
    std::thread::sleep(GRACE * 2);
    assert!(is_told("pw1") && is_told("pw2"), "{:?}", cluster.a.status().problems);
    assert_eq!(names(&cluster.a), ["a1", "a2", "a3", "a4"].map(str::to_owned).into());
    cluster.a.cli("pods detach --name a1");
    cluster.a.cli("pods detach --name a2");
    assert!(wait_until(PATIENCE, || cluster.a.status().problems.is_empty()), "{:?}", cluster.a.status().problems);
}
