//! What is left when the runtime or the daemon is killed, or is away, while pods come and go.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use k8s_cri::v1::PodSandboxState;
use serde_json::json;

use super::containerd::Containerd;
use super::harness::{Attachment, CniRuntime, PodwireNode, pings, signal, wait_until};
use super::inventory::{Inventory, pods};
use super::scene::{NETWORK, Running, Scene, pod_config, scene};

/// How long a plugin may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The processes that are podwire's plugin, started by this runtime to add a pod.
fn plugins_adding(containerd: &Containerd) -> Vec<PathBuf> {
    let binary = containerd.plugins().join("podwire");
    let is_ours = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        fs::read_link(process.join("exe")).is_ok_and(|exe| exe == binary)
            && environment.split(|&byte| byte == 0).any(|variable| variable == b"CNI_COMMAND=ADD")
    };
    fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()).filter(is_ours).collect()
}

/// Whether a process has a socket open; the plugin has one while it speaks to the daemon.
fn has_socket(process: &Path) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
    targets.any(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
}

/// The sandboxes that the runtime knows and that are in this state.
fn sandboxes(containerd: &Containerd, state: PodSandboxState) -> Vec<String> {
    let all = containerd.cri().sandboxes().expect("a list").into_iter();
    all.filter(|sandbox| sandbox.state() == state).map(|sandbox| sandbox.id).collect()
}

/// Asks the plugin to collect all attachments but those of the sandboxes that run, as CRI-O does when it starts.
fn collect(containerd: &Containerd, node: &PodwireNode) {
    let plugin = json!({ "type": "podwire", "runtimeDir": node.runtime_dir() });
    let list = json!({ "name": NETWORK, "cniVersion": "1.1.0", "plugins": [plugin] });
    let runtime = CniRuntime::new(vec![containerd.plugins()], list);
    let live = sandboxes(containerd, PodSandboxState::SandboxReady).into_iter();
    let live: Vec<_> =
        live.map(|container| Attachment { container, ifname: "eth0".to_owned(), ..Attachment::default() }).collect();
    runtime.gc(&live.iter().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("GC: {e}"));
}

/// Removes the sandboxes that do not run, as the kubelet does.
fn remove_dead(containerd: &Containerd) {
    let cri = containerd.cri();
    for id in sandboxes(containerd, PodSandboxState::SandboxNotready) {
        cri.stop_sandbox(&id).unwrap_or_else(|e| panic!("{id} does not stop: {e}"));
        cri.remove_sandbox(&id).unwrap_or_else(|e| panic!("{id} is not removed: {e}"));
    }
}

/// Starts a pod on node `a` while its daemon does not answer, and calls `event` when the plugin waits for it.
fn interrupt_add(scene: &mut Scene, name: &str, event: impl FnOnce(&mut Scene)) -> Result<String, tonic::Status> {
    signal(scene.cluster.a.daemon(), libc::SIGSTOP);
    let (cri, config) = (scene.a.cri(), pod_config(&scene.a, name));
    thread::scope(|scope| {
        let adding = scope.spawn(move || cri.run_sandbox(&config));
        let asked = wait_until(PATIENCE, || plugins_adding(&scene.a).iter().any(|process| has_socket(process)));
        event(scene);
        assert!(asked, "the plugin asks the daemon");
        adding.join().expect("a call")
    })
}

#[test]
fn a_runtime_killed_in_the_middle_of_add_leaks_nothing_after_collection() {
    let Some(mut scene) = scene() else { return };
    let live = Running::start(&scene.a, &pod_config(&scene.a, "live"));
    let before = Inventory::of(&scene.cluster.a, Some(&scene.a));
    let known = pods(&scene.cluster.a).len();
    let outcome = interrupt_add(&mut scene, "torn", |scene| {
        scene.a.kill();
        signal(scene.cluster.a.daemon(), libc::SIGCONT);
    });
    outcome.expect_err("nobody was there to answer");
    let ended = || plugins_adding(&scene.a).is_empty();
    assert!(wait_until(PATIENCE, ended), "the plugin ends by itself");
    assert_eq!(pods(&scene.cluster.a).len(), known + 1, "the daemon did what the plugin asked for");
    scene.a.launch();
    collect(&scene.a, &scene.cluster.a);
    assert_eq!(pods(&scene.cluster.a).len(), known, "what nobody wants is collected");
    remove_dead(&scene.a);
    before.assert_restored(&scene.cluster.a, Some(&scene.a));
    assert!(pings(&scene.cluster.b.pods[0], live.pod.v4.into(), ""), "the pod that was kept answers");
    live.remove();
}

#[test]
fn a_daemon_killed_in_the_middle_of_add_leaks_nothing() {
    let Some(mut scene) = scene() else { return };
    let before = Inventory::of(&scene.cluster.a, Some(&scene.a));
    let outcome = interrupt_add(&mut scene, "torn", |scene| scene.cluster.a.kill());
    outcome.expect_err("the daemon was killed before it could answer");
    scene.cluster.a.launch();
    before.assert_restored(&scene.cluster.a, Some(&scene.a));
    // An ADD takes some 15 ms: it is torn at several points, and done when the last comes.
    for pause in [0, 3, 6, 10, 15] {
        let (cri, config) = (scene.a.cri(), pod_config(&scene.a, &format!("torn-{pause}")));
        let outcome = thread::scope(|scope| {
            let adding = scope.spawn(|| cri.run_sandbox(&config));
            let begun = || adding.is_finished() || !plugins_adding(&scene.a).is_empty();
            assert!(wait_until(PATIENCE, begun), "the runtime calls the plugin");
            thread::sleep(Duration::from_millis(pause));
            scene.cluster.a.kill();
            adding.join().expect("a call")
        });
        scene.cluster.a.launch();
        if let Ok(sandbox) = outcome {
            cri.stop_sandbox(&sandbox).expect("the sandbox is stopped");
            cri.remove_sandbox(&sandbox).expect("the sandbox is removed");
        }
        before.assert_restored(&scene.cluster.a, Some(&scene.a));
    }
}

#[test]
fn pods_removed_while_the_daemon_is_down_are_detached_at_its_start() {
    let Some(mut scene) = scene() else { return };
    let before = Inventory::of(&scene.cluster.a, Some(&scene.a));
    let gone = Running::start(&scene.a, &pod_config(&scene.a, "gone"));
    scene.cluster.a.stop();
    gone.remove();
    scene.cluster.a.launch();
    before.assert_restored(&scene.cluster.a, Some(&scene.a));
    Running::start(&scene.a, &pod_config(&scene.a, "next")).remove();
    before.assert_restored(&scene.cluster.a, Some(&scene.a));
}
