//! Pods that a runtime adds by CNI: they begin on the kernel path.

use std::time::{Duration, Instant};

use serde_json::json;

use super::cluster;
use super::harness::{Attachment, Cluster, CniRuntime, Netns, Options, Wire, cni_dir, wait_until};

/// How long a busy machine may take to tell the data plane of a pod.
const PATIENCE: Duration = Duration::from_secs(30);

fn runtime(cluster: &Cluster) -> CniRuntime {
    let plugin = json!({ "type": "podwire", "runtimeDir": cluster.a.runtime_dir() });
    let list = json!({ "cniVersion": "1.1.0", "name": "newcomers", "plugins": [plugin] });
    CniRuntime::new(vec![cni_dir(&cluster.prefix)], list)
}

fn attachment(container: &str, netns: &Netns) -> Attachment {
    Attachment {
        container: container.into(),
        netns: Some(netns.path()),
        ifname: "eth0".into(),
        ..Attachment::default()
    }
}

#[track_caller]
fn assert_talks(cluster: &Cluster, pod: &Netns) {
    for other in [&cluster.a.pods[0], &cluster.b.pods[0], &cluster.c.pods[0]] {
        for address in other.addresses() {
            let answered = pod.output(&format!("ping -n -q -c 1 -W 2 {address}")).status.success();
            assert!(answered, "{} at {address}", other.name);
        }
    }
}

#[test]
fn a_pod_that_a_runtime_adds_talks_at_once_and_is_steered_while_others_come_and_go() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (runtime, before) = (runtime(&cluster), cluster.a.steered());
    let [first, other] = ["first", "other"].map(|name| cluster.prefix.netns(name));
    runtime.add(&attachment("first", &first)).expect("it is added");
    assert_talks(&cluster, &first);
    assert!(wait_until(PATIENCE, || cluster.a.steered() == before + 1), "nobody waits, and it has no program");
    assert_talks(&cluster, &first);
    runtime.del(&attachment("first", &first)).expect("it is removed");
    assert!(wait_until(PATIENCE, || cluster.a.steered() == before));

    // Calls that never pause, each as soon as the one before is answered.
    runtime.add(&attachment("first", &first)).expect("it is added");
    let start = Instant::now();
    while cluster.a.steered() == before {
        runtime.add(&attachment("other", &other)).expect("it is added");
        runtime.del(&attachment("other", &other)).expect("it is removed");
        assert!(start.elapsed() < PATIENCE, "calls go on, and no pod gets its program");
    }
}
