//! `podwire top` on a node that carries real traffic.

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::termios::LocalFlags;
use serde_json::Value;

use super::cluster;
use super::harness::{Cluster, Options, Pod, PodwireNode, Screen, Wire, binary, signal, wait_until};

/// How long the first probes may take on a busy machine.
const PROBED: Duration = Duration::from_secs(30);

in_both_modes! {
    one_look_shows_what_a_pod_sends,
}

/// Ends a sender, even when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Has a pod send small datagrams to another one, about a thousand a second, while `f` works.
fn while_sending<T>(from: &Pod, to: &Pod, f: impl FnOnce() -> T) -> T {
    let destination = IpAddr::from(to.v4);
    let sink = to.netns.within(|| UdpSocket::bind((destination, 0))).expect("bind in the pod");
    let socket = from.netns.within(|| UdpSocket::bind((from.v4, 0))).expect("bind in the pod");
    socket.connect(sink.local_addr().expect("bound")).expect("a destination");
    let running = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                // The receiver does not read: what matters here is the way to it.
                let _ = socket.send(&[0; 64]);
                thread::sleep(Duration::from_millis(1));
            }
        });
        let _stop = Stop(&running);
        f()
    })
}

fn top(node: &PodwireNode) -> Command {
    let mut command = Command::new(binary());
    command.arg("top").arg("--runtime-dir").arg(node.runtime_dir());
    command
}

fn one_look_shows_what_a_pod_sends(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let Cluster { a, b, .. } = &cluster;
    let (json, text) =
        while_sending(&a.pods[0], &b.pods[0], || (a.cli("top --once --output json"), a.cli("top --once --interval 2")));
    let seen: Value = serde_json::from_str(&json).expect("JSON");
    let rate = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no rate in {json}"));
    let (used, unused) = if options.is_kernel() { ("kernel", "fast") } else { ("fast", "kernel") };
    assert!(rate(&seen[used]["tx_pps"]) > 100.0 && rate(&seen[unused]["tx_pps"]) < 100.0, "{json}");
    assert_eq!(seen["peers"].as_array().map(Vec::len), Some(2), "{json}");
    let answers = || {
        let seen: Value = serde_json::from_str(&a.cli("top --once --output json")).expect("JSON");
        seen["peers"].as_array().expect("peers").iter().all(|peer| peer["probe"]["smoothed_rtt_ns"].is_u64())
    };
    assert!(wait_until(PROBED, answers), "no round trip of the probes: {json}");
    let pod = |name: &str| seen["pods"].as_array().expect("pods").iter().find(|pod| pod["name"] == name).expect("it");
    if options.is_kernel() {
        assert!(pod("a1")["fast"].is_null(), "{json}");
    } else {
        assert!(rate(&pod("a1")["fast"]["rx_pps"]) > 100.0 && rate(&pod("a2")["fast"]["rx_pps"]) < 100.0, "{json}");
        let worker = &seen["workers"][0];
        assert!(rate(&worker["pod_rx_pps"]) > 100.0 && rate(&worker["wire_tx_pps"]) > 100.0, "{json}");
        assert!(rate(&worker["burst"]) >= 0.5 && rate(&worker["load"]) > 0.0, "{json}");
    }
    let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}\n{text}"));
    assert!(row(used).contains("out") && row("a1").contains("10.244.1."), "{text}");
    assert!(row("node-b").contains("192.168.1.3"), "{text}");
}

#[test]
fn the_live_view_shows_traffic_survives_a_restart_and_leaves_the_terminal_as_it_was() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let mut screen = Screen::start(&top(&cluster.a));
    while_sending(&cluster.a.pods[0], &cluster.b.pods[0], || {
        screen.wait_for("[all]");
        let sends = |line: &str| line.starts_with("a1 ") && line.split_whitespace().nth(1).is_some_and(|n| n.len() > 2);
        let seen = super::harness::wait_until(Duration::from_secs(20), || screen.text().lines().any(sends));
        assert!(seen, "{}", screen.text());
        assert!(screen.is_alternate() && !screen.settings().local_flags.contains(LocalFlags::ECHO));
        screen.press("\t\t\t");
        screen.wait_for("[pods]");
        screen.press("s");
        screen.wait_for("POD*");
    });
    cluster.a.kill();
    screen.wait_for("no daemon for");
    screen.wait_for("[pods]");
    cluster.a.launch();
    screen.wait_for("started anew");
    screen.press("q");
    assert!(screen.wait().success());
    assert!(!screen.is_alternate() && screen.settings().local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON));

    let mut screen = Screen::start(&top(&cluster.a));
    screen.wait_for("[all]");
    signal(screen.child(), libc::SIGTERM);
    assert!(screen.wait().success());
    assert!(!screen.is_alternate() && screen.settings().local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON));
}

#[test]
fn without_a_terminal_or_a_daemon_it_says_what_to_do() {
    let output = |args: &[&str]| {
        let output = Command::new(binary()).arg("top").args(args).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = output(&[]);
    assert!(code == Some(1) && said.contains("--once"), "{said}");
    let (code, said) = output(&["--output", "json"]);
    assert!(code == Some(1) && said.contains("--once"), "{said}");
    let (code, said) = output(&["--once", "--runtime-dir", "/nonexistent"]);
    assert!(code == Some(1) && said.contains("/nonexistent/control.sock"), "{said}");
}
