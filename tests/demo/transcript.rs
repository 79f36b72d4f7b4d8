//! What operators see on node a while its pods are busy.

use std::fmt::Write as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::harness::{Cluster, Screen, binary, iperf3};

/// A live screen needs two readings for its rates.
const LOOK_AFTER: Duration = Duration::from_secs(4);

/// Commands and what they print, as for a terminal of 80 by 24.
pub fn transcript(cluster: &Cluster) -> String {
    let (a, [from, ..], [to, ..]) = (&cluster.a, &cluster.a.pods[..], &cluster.b.pods[..]) else {
        panic!("each node of the cluster has pods");
    };
    let mut top = Command::new(binary());
    top.arg("top").arg("--runtime-dir").arg(a.runtime_dir());
    let live = thread::scope(|scope| {
        scope.spawn(|| iperf3(from, to, to.v4.into(), 6, "-u -b 200M"));
        thread::sleep(LOOK_AFTER / 2);
        let screen = Screen::start(&top);
        screen.wait_for("[all]");
        thread::sleep(LOOK_AFTER / 2);
        screen.text()
    });
    let mut text = format!("$ podwire top\n{}\n", without_blanks(&live));
    for line in [format!("routes --lookup {}", to.v4), "routes --lookup 10.244.1.200".to_owned()] {
        let output = a.try_cli(&line);
        let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let _ = write!(text, "\n$ podwire {line}\n{printed}{said}");
    }
    text
}

fn without_blanks(screen: &str) -> String {
    screen.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
