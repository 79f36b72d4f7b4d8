//! `podwire bench`: round trips between pods of two nodes.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::cluster;
use super::harness::{Options, Pod, PodwireNode, Wire, binary, signal, wait_until};

in_both_modes! {
    round_trips_to_a_pod_of_another_node_are_measured_and_drawn,
}

/// `podwire bench` on a node.
fn bench(node: &PodwireNode, line: &str) -> Command {
    let mut command = node.host.netns.command(binary());
    command.arg("bench").args(line.split_whitespace()).arg("--runtime-dir").arg(node.runtime_dir());
    command
}

/// A reflector in a pod, which listens.
struct Reflector(Child);

impl Reflector {
    fn start(node: &PodwireNode, pod: &Pod) -> Self {
        let mut command = bench(node, &format!("reflect --from {} --seconds 60", pod.name));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let reflector = Self(child);
        let listens = || pod.netns.run("ss -Hlun sport = :7").lines().count() == 2;
        assert!(wait_until(Duration::from_secs(20), listens), "no reflector in {}", pod.name);
        reflector
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn round_trips_to_a_pod_of_another_node_are_measured_and_drawn(options: Options) {
    let Some(cluster) = cluster(Wire::default(), options) else { return };
    let (a, b) = (&cluster.a, &cluster.b);
    let to = &b.pods[0];
    let _reflector = Reflector::start(b, to);
    let (hgrm, svg) = (cluster.prefix.dir().join("trips.hgrm"), cluster.prefix.dir().join("trips.svg"));
    let before = (a.carried(), b.carried());
    let line = format!("latency --from a1 --to {} --rate 500 --seconds 2 --hgrm {}", to.v4, hgrm.display());
    let output = bench(a, &line).args(["--output", "json"]).output().expect("it starts");
    let seen = json(&output);
    let row = &seen["targets"][0];
    assert!(output.status.success() && row["sent"] == 1000, "{seen}");
    assert!(row["received"].as_u64().is_some_and(|count| count >= 950), "{seen}");
    let us = |name: &str| row["round_trip_us"][name].as_f64().expect("a time");
    assert!(us("p50") > 1.0 && us("p50") <= us("p99") && us("p99") <= us("max"), "{seen}");
    let carried = (a.carried().since(before.0), b.carried().since(before.1));
    let by = |carried: super::harness::Carried| if options.is_kernel() { carried.kernel } else { carried.fast };
    // Of 2000; a worker that waits for its core leaves some to the kernel path.
    assert!(by(carried.0) >= 1000 && by(carried.1) >= 1000, "they took the path of the mode: {carried:?}");
    let text = fs::read_to_string(hgrm).expect("the histogram");
    assert!(text.contains("1/(1-Percentile)") && text.contains("#[Max"), "{text}");

    let line = format!("latency --from a1 --to four={} --to six=[{}]:7 --rate 200 --seconds 1", to.v4, to.v6);
    let output = bench(a, &line).arg("--svg").arg(&svg).output().expect("it starts");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && table.contains("P99.99") && table.contains("\nsix "), "{table}");
    let picture = fs::read_to_string(svg).expect("the picture");
    assert!(["four", "six", "99%"].iter().all(|word| picture.contains(word)), "{picture:.200}");
}

#[test]
fn an_interrupted_measurement_tells_what_it_saw_and_a_silent_target_what_to_do() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (a, b) = (&cluster.a, &cluster.b);
    let to = &b.pods[0];
    let silent =
        bench(a, &format!("latency --from a1 --to {} --rate 50 --seconds 1", to.v4)).output().expect("it starts");
    let said = String::from_utf8_lossy(&silent.stderr).into_owned();
    assert!(silent.status.code() == Some(1) && said.contains("podwire bench reflect --from POD --port 7"), "{said}");
    assert!(said.contains("nobody listens"), "{said}");
    for (line, reason) in [
        ("latency --from nobody --to 10.244.2.1".to_owned(), "no pod is called `nobody`"),
        (format!("latency --from a1 --to {} --rate 100000 --seconds 3600", to.v4), "lower --rate or --seconds"),
    ] {
        let output = bench(a, &line).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(reason), "{said}");
    }

    let _reflector = Reflector::start(b, to);
    let line = format!("latency --from a1 --to {} --rate 100 --seconds 600 --output json", to.v4);
    let child = bench(a, &line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    thread::sleep(Duration::from_secs(2));
    signal(&child, libc::SIGINT);
    let output = child.wait_with_output().expect("our child");
    let seen = json(&output);
    assert!(output.status.success() && seen["interrupted"] == true, "{seen}");
    assert!(seen["targets"][0]["received"].as_u64().is_some_and(|count| count > 0), "{seen}");
}
#[test]
fn a_reflector_that_pauses_is_seen_in_all_that_was_due_meanwhile() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let to = &cluster.b.pods[0];
    let reflector = Reflector::start(&cluster.b, to);
    let mut command = bench(&cluster.a, &format!("latency --from a1 --to {} --rate 200 --seconds 5", to.v4));
    command.args(["--output", "json"]);
    let measured = thread::scope(|scope| {
        let measured = scope.spawn(|| command.output().expect("it starts"));
        thread::sleep(Duration::from_millis(1500));
        signal(&reflector.0, libc::SIGSTOP);
        thread::sleep(Duration::from_millis(200));
        signal(&reflector.0, libc::SIGCONT);
        measured.join().expect("no panic")
    });
    let seen = json(&measured);
    let row = &seen["targets"][0];
    assert_eq!((&row["sent"], &row["lost"]), (&Value::from(1000), &Value::from(0)), "{seen}");
    // 40 of 1000 were due in the pause, fewer than a pod may have on their way to a worker: the slowest 1 % waited for
    // most of it.
    let us = |name: &str| row["round_trip_us"][name].as_f64().expect("a time");
    assert!(us("max") >= 150_000.0 && us("p99") >= 120_000.0, "{seen}");
}
