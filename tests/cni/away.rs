//! A daemon that is not there, or hangs, and a plugin that is killed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Netns, Options, binary, signal, wait_until};
use crate::plugin::{Call, Lab, Outcome, addresses, with};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn what_needs_a_daemon_says_so_and_may_be_tried_again() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.1.0"));
    lab.node.stop();
    lab.call("ADD", "c1", &pod, &config).fails(11, "no daemon answers");
    let prev = with(&config, &json!({ "prevResult": {} }));
    lab.call("CHECK", "c1", &pod, &prev).fails(11, "no daemon answers");
    let gc = with(&config, &json!({ "cni.dev/valid-attachments": [] }));
    lab.run(&Call::bare("GC", gc.to_string())).fails(11, "no daemon answers");
}

#[test]
fn del_succeeds_as_often_as_it_is_called_and_without_what_is_gone() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let config = lab.config("1.0.0");
    let add = |name: &str| {
        let pod = lab.prefix.netns(name);
        let result = lab.call("ADD", "c1", &pod, &config).result();
        (pod, result)
    };
    let del = |call: Call| lab.run(&call).is_silent_success();
    let without_netns = |config: &Value| Call::new("DEL", "c1", "".as_ref(), config);

    del(without_netns(&config));
    let (pod, result) = add("first");
    del(Call::new("DEL", "c1", &pod.path(), &with(&config, &json!({ "prevResult": result }))));
    del(without_netns(&config));
    let (_, _) = add("second");
    del(without_netns(&config).unset("CNI_NETNS").unset("CNI_PATH"));
    assert!(lab.pods().is_empty());
    let (pod, _) = add("third");
    pod.remove();
    let odd = json!({ "prevResult": 7, "ipam": { "type": "x" }, "runtimeConfig": [], "args": 1, "dns": "x" });
    del(without_netns(&with(&config, &odd)).set("CNI_ARGS", "=;;"));
    assert!(lab.pods().is_empty());
}

#[test]
fn del_without_a_daemon_is_done_when_there_is_one() {
    let Some(mut lab) = Lab::start(Options::KERNEL) else { return };
    let (pod, config) = (lab.prefix.netns("pod"), lab.config("1.0.0"));
    let before = Lab::state(&lab.node.host.netns);
    let kept = lab.prefix.netns("kept");
    let kept_result = lab.call("ADD", "kept", &kept, &config).result();
    let result = lab.call("ADD", "c1", &pod, &config).result();
    for stop in [PodStop::Killed, PodStop::Stopped] {
        match stop {
            PodStop::Killed => lab.node.kill(),
            PodStop::Stopped => lab.node.stop(),
        }
        for _ in 0..2 {
            lab.call("DEL", "c1", &pod, &config).is_silent_success();
            lab.call("DEL", "never", &pod, &config).is_silent_success();
        }
        lab.node.launch();
        let gone = wait_until(PATIENCE, || lab.pods().len() == 1);
        assert!(gone, "{:?}\n{}", lab.pods(), lab.node.log_text());
        assert!(!lab.answers(&addresses(&result)[0]) && lab.answers(&addresses(&kept_result)[0]));
        // The notes are gone with what they asked for: the same attachment can be made again.
        lab.call("ADD", "c1", &pod, &config).result();
    }
    lab.call("DEL", "c1", &pod, &config).is_silent_success();
    lab.call("DEL", "kept", &kept, &config).is_silent_success();
    let state = || Lab::state(&lab.node.host.netns);
    assert!(wait_until(PATIENCE, || state() == before), "{before}\nis now\n{}", state());
}

/// How the daemon went away.
#[derive(Clone, Copy)]
enum PodStop {
    Killed,
    Stopped,
}

#[test]
fn a_hanging_daemon_holds_no_runtime_up_and_leaks_nothing() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let config = lab.config("1.0.0");
    let [added, deleted, killed] = ["added", "deleted", "killed"].map(|name| lab.prefix.netns(name));
    lab.call("ADD", "deleted", &deleted, &config).result();
    signal(lab.node.daemon(), libc::SIGSTOP);
    let began = Instant::now();
    let start = |command: &str, container: &str, pod: &Netns| {
        Call::new(command, container, &pod.path(), &config).start(lab.node.host.netns.command(binary()))
    };
    let (add, del) = (start("ADD", "added", &added), start("DEL", "deleted", &deleted));
    let mut interrupted = start("ADD", "killed", &killed);
    thread::sleep(Duration::from_millis(500));
    interrupted.kill().unwrap();
    interrupted.wait().unwrap();
    Outcome::of(add).fails(11, "has not answered for 20 s");
    Outcome::of(del).is_silent_success();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());

    // As runtimes do after an ADD that failed or never answered.
    let dels = [("added", &added), ("killed", &killed)].map(|(name, pod)| start("DEL", name, pod));
    thread::sleep(Duration::from_millis(500));
    signal(lab.node.daemon(), libc::SIGCONT);
    for del in dels {
        Outcome::of(del).is_silent_success();
    }
    assert!(wait_until(PATIENCE, || lab.pods().is_empty()), "{:?}\n{}", lab.pods(), lab.node.log_text());
    for (container, pod) in [("added", &added), ("deleted", &deleted), ("killed", &killed)] {
        let result = lab.call("ADD", container, pod, &config).result();
        assert!(lab.answers(&addresses(&result)[0]), "{container}");
    }
}

#[test]
fn a_note_cannot_be_left_where_no_daemon_ever_was() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({ "cniVersion": "1.0.0", "name": "net", "type": "podwire", "runtimeDir": dir.path().join("x") });
    Call::new("DEL", "c1", "".as_ref(), &config).run_here().is_silent_success();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
