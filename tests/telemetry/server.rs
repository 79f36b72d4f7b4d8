//! What the HTTP server does for clients of all kinds, and what they cannot do to the daemon.

use std::fs;
use std::io::{Error, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::cluster;
use crate::exposition::{Exposition, get, metrics_address, talk, try_get};
use crate::harness::{Options, PodwireNode, wait_until};

const PATIENCE: Duration = Duration::from_secs(10);

fn connect(node: &PodwireNode) -> TcpStream {
    let stream = node.host.netns.within(|| TcpStream::connect(metrics_address())).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

#[test]
fn each_path_and_method_has_its_answer_by_tcp_and_by_unix_socket() {
    let Some(cluster) = cluster() else { return };
    let node = &cluster.a;
    let mut unix = UnixStream::connect(node.runtime_dir().join("metrics.sock")).expect("it listens");
    let by_unix = talk(&mut unix, "GET /metrics HTTP/1.1\r\nHost: podwire\r\n\r\n").expect("an answer");
    assert!(by_unix.status == 200 && by_unix.body.contains("podwire_build_info{"), "{by_unix:?}");
    assert!(by_unix.head.contains("content-type: text/plain; version=0.0.4"), "{}", by_unix.head);
    let rows = [
        ("GET /metrics", 200, "podwire_build_info{"),
        ("HEAD /metrics", 200, ""),
        ("GET /healthz", 200, "ok"),
        ("GET /readyz", 200, "ok"),
        ("GET /", 404, "/metrics"),
        ("GET /metrics/../../etc/passwd", 404, "/metrics"),
        ("POST /metrics", 405, "GET"),
        ("DELETE /healthz", 405, "GET"),
        ("nonsense", 400, ""),
    ];
    for (line, status, said) in rows {
        let request = format!("{line} HTTP/1.1\r\nHost: podwire\r\n\r\n");
        let answer = talk(&mut connect(node), &request).expect("an answer");
        assert!(answer.status == status && answer.body.contains(said), "{line}: {answer:?}");
    }
    node.host.netns.run("ip link del eth0");
    let is_unready = || get(&node.host.netns, metrics_address(), "/readyz").status == 503;
    assert!(wait_until(PATIENCE, is_unready), "ready without an uplink");
    let why = get(&node.host.netns, metrics_address(), "/readyz").body;
    assert!(why.contains("eth0"), "{why}");
    assert_eq!(get(&node.host.netns, metrics_address(), "/healthz").status, 200);
}

#[test]
fn clients_that_stall_or_flood_are_cut_off_and_hold_up_nobody() {
    let Some(cluster) = cluster() else { return };
    let node = &cluster.a;
    let mut stalled: Vec<_> = (0..100).map(|_| connect(node)).collect();
    for stream in &mut stalled {
        // Those beyond the limit are closed already.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nX-Slow: ");
    }
    let begin = Instant::now();
    assert!(node.status().uptime_secs < 600, "the command line is served");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    let is_served = || {
        let mut stream = connect(node);
        let mut answer = Vec::new();
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: podwire\r\n\r\n");
        let _ = stream.read_to_end(&mut answer);
        answer.starts_with(b"HTTP/1.1 200")
    };
    assert!(wait_until(2 * PATIENCE, is_served), "those who stall are not cut off");
    assert!(begin.elapsed() > Duration::from_secs(5), "there is no limit of connections");

    let mut endless = connect(node);
    let _ = endless.write_all(format!("GET /metrics HTTP/1.1\r\nX-Long: {}", "x".repeat(1 << 20)).as_bytes());
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "a head of a megabyte was read");

    let begin = Instant::now();
    let took: Vec<_> = (0..200)
        .map(|_| Exposition::of(node).get("podwire_control_response_seconds", &[]).expect("a value").to_bits())
        .collect();
    let snapshots = took.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
    let limit = begin.elapsed().as_millis() / 250 + 2;
    assert!(snapshots as u128 <= limit, "the control loop was asked {snapshots} times, not {limit}");
}

#[test]
fn a_control_loop_that_hangs_is_told_by_the_health_check() {
    let Some(cluster) = cluster() else { return };
    let node = &cluster.a;
    // Only its main thread is held, as if it waited for something.
    let held = Held::hold(node.daemon().id());
    let answer = get(&node.host.netns, metrics_address(), "/healthz");
    assert!(answer.status == 503 && answer.body.contains("has not answered for 5 s"), "{answer:?}");
    drop(held);
    let is_well = || get(&node.host.netns, metrics_address(), "/healthz").status == 200;
    assert!(wait_until(PATIENCE, is_well), "it stays unwell");
}

#[test]
fn metrics_follow_the_configuration_and_an_address_that_is_taken_is_a_problem() {
    let Some(mut cluster) = cluster() else { return };
    let off = Options { metrics: false, ..cluster.a.options() };
    let on = cluster.a.options();
    let netns = cluster.a.host.netns.clone();
    let listens = || netns.within(|| TcpStream::connect(metrics_address())).is_ok();
    let socket = cluster.a.runtime_dir().join("metrics.sock");
    assert!(listens() && socket.exists());
    let starts = |node: &PodwireNode| node.log_text().matches("the data plane runs").count();
    assert_eq!(starts(&cluster.a), 1);

    cluster.a.set_options(off);
    assert!(wait_until(PATIENCE, || !listens() && !socket.exists()), "still served");
    let taken = netns.within(|| TcpListener::bind(metrics_address())).expect("the address is free");
    cluster.a.set_options(on);
    let says = |text: &str| cluster.a.status().problems.iter().any(|problem| problem.contains(text));
    let problem = "cannot serve metrics on 127.0.0.1:9477";
    assert!(wait_until(PATIENCE, || says(problem)), "{:?}", cluster.a.status().problems);
    drop(taken);
    // News of the kernel are an occasion to try again.
    netns.run("ip address add 10.99.0.1/32 dev lo");
    assert!(wait_until(2 * PATIENCE, || !says(problem) && listens()), "{:?}", cluster.a.status().problems);
    assert_eq!(starts(&cluster.a), 1, "the data plane was not touched");

    let file = cluster.a.config();
    let text = fs::read_to_string(&file).expect("the configuration");
    assert!(Exposition::of(&cluster.a).get("podwire_pod_packets_total", &[]).is_some());
    assert!(Exposition::of(&cluster.a).get("podwire_peer_probe_sent_packets_total", &[]).is_some());
    let fewer = text.replace("[metrics]", "[metrics]\nper_pod = false\nper_peer = false");
    fs::write(&file, fewer).expect("write the file");
    // While it is opened anew nobody answers.
    let has_few = || {
        try_get(&netns, metrics_address(), "/metrics").is_ok_and(|answer| {
            let has = |name| answer.body.contains(name);
            answer.status == 200 && !has("podwire_pod_packets_total") && !has("podwire_peer_probe_sent_packets_total")
        })
    };
    assert!(wait_until(PATIENCE, has_few), "pods or peers still have series");
    assert_eq!(Exposition::of(&cluster.a).get("podwire_pods", &[]), Some(2.0));
    cluster.a.stop();
    assert!(!socket.exists(), "the socket outlives the daemon");
}

/// The main thread of a process, kept from running by ptrace(2) while this lives.
struct Held(libc::pid_t);

impl Held {
    fn hold(process: u32) -> Self {
        let pid = libc::pid_t::try_from(process).expect("a pid");
        for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
            // SAFETY: neither request reads or writes memory of ours.
            assert_eq!(unsafe { libc::ptrace(request, pid, 0, 0) }, 0, "{}", Error::last_os_error());
        }
        let mut status = 0;
        // SAFETY: the status outlives the call.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
        assert!(libc::WIFSTOPPED(status), "{status}");
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the request reads and writes no memory of ours.
        assert_eq!(unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) }, 0, "{}", Error::last_os_error());
    }
}
