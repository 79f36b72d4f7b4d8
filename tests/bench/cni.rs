//! The program behind `scripts/bench cni`: how fast pods come and go by podwire's CNI plugin, beside Debian's `bridge`
//! with `host-local`.
//!
//! Both are asked in the same run and the same network namespace, in alternating rounds, because the machine's speed
//! drifts. Either gives each pod an address of both families. The pods' namespaces are made beforehand, and have
//! duplicate address detection off: the reference would wait for it. While the reference works no podwire runs, which
//! would look at each of its devices.

#[path = "../harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Parser;
use harness::{
    Attachment, CniError, CniRuntime, Netns, Options, PodwireNode, Prefix, Switch, Wire, cni_dir, is_root, wait_until,
};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Value, json};

/// Where Debian's containernetworking-plugins are.
const REFERENCE_DIR: &str = "/usr/lib/cni";

/// Each round asks for all addresses again at once.
const IPAM: &str = "[ipam]\nquarantine_s = 0\n";

/// How long the data plane may take to be told of all pods.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures how fast podwire's CNI plugin adds and removes pods, beside bridge and host-local.
#[derive(Parser)]
#[command(name = "scripts/bench cni")]
struct Arguments {
    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many pods to add and remove
    #[arg(long, value_name = "N", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=250))]
    pods: u32,
    /// How many at a time, besides one after another
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=128))]
    together: u32,
    /// Rounds of both plugins
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

/// What one plugin did of one verb, so many at a time.
struct Tally {
    plugin: &'static str,
    at_a_time: u32,
    verb: &'static str,
    /// How long each took, in microseconds.
    latencies: Histogram<u64>,
    /// How long all took together.
    elapsed: Duration,
}

#[derive(Serialize)]
struct Row {
    plugin: &'static str,
    at_a_time: u32,
    verb: &'static str,
    calls: u64,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
    /// By the rate of the reference.
    ratio: f64,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if !is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    let prefix = Prefix::named("pwbench");
    let switch = Switch::new(&prefix, Wire::default());
    let host = switch.host(&prefix, 'a', 1);
    host.netns.skip_dad();
    let options = Options { sections: IPAM, ..Options::ADAPTIVE };
    let mut node = PodwireNode::start(&prefix, host, options, Vec::new());
    let (podwire, reference) = (podwire(&prefix, &node), reference(prefix.dir()));
    let pods: Vec<Netns> = (0..arguments.pods).map(|n| prefix.netns(&format!("pod{n}"))).collect();
    pods.iter().for_each(Netns::skip_dad);
    let netns = node.host.netns.clone();
    let ways = [1, arguments.together];
    let (mut of_reference, mut of_podwire) = (tallies("bridge + host-local", ways), tallies("podwire", ways));
    for round in 1..=arguments.rounds {
        println!("round {round} of {}", arguments.rounds);
        node.stop();
        measure(&netns, &reference, &pods, &mut of_reference, || ());
        node.launch();
        measure(&netns, &podwire, &pods, &mut of_podwire, || wait_for_programs(&node, pods.len()));
    }
    let rows: Vec<Row> = of_reference.iter().zip(&of_podwire).flat_map(|(theirs, ours)| rows(theirs, ours)).collect();
    print(&rows);
    if let Some(file) = arguments.json {
        fs::write(file, serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(())
}

fn podwire(prefix: &Prefix, node: &PodwireNode) -> CniRuntime {
    let plugin = json!({ "type": "podwire", "runtimeDir": node.runtime_dir() });
    CniRuntime::new(vec![cni_dir(prefix)], list("podwire", &plugin))
}

/// As Debian's users set it up: a bridge with the gateway's addresses, and pods out of a range of each family.
fn reference(dir: &Path) -> CniRuntime {
    let plugin = json!({
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipam": {
            "type": "host-local",
            "dataDir": dir.join("host-local"),
            "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        },
    });
    CniRuntime::new(vec![REFERENCE_DIR.into()], list("reference", &plugin))
}

fn list(name: &str, plugin: &Value) -> Value {
    json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] })
}

fn tallies(plugin: &'static str, ways: [u32; 2]) -> Vec<Tally> {
    let tally = |at_a_time, verb| Tally { plugin, at_a_time, verb, latencies: histogram(), elapsed: Duration::ZERO };
    ways.into_iter().flat_map(|at_a_time| ["ADD", "DEL"].map(|verb| tally(at_a_time, verb))).collect()
}

/// Waits until so many pods have their steering program, which comes after ADD has returned: the removal of a pod that
/// never had it would be cheaper.
fn wait_for_programs(node: &PodwireNode, pods: usize) {
    let start = Instant::now();
    assert!(wait_until(PATIENCE, || node.steered() == pods), "{} of {pods} pods have a program", node.steered());
    println!("all pods may take the fast path {:.1} s after the last ADD", start.elapsed().as_secs_f64());
}

/// Does what each tally is for, in their order, and `settle` after each ADD of all.
fn measure(netns: &Netns, runtime: &CniRuntime, pods: &[Netns], tallies: &mut [Tally], settle: impl Fn()) {
    let attachment = |(n, netns): (usize, &Netns)| Attachment {
        container: format!("bench{n}"),
        netns: Some(netns.path()),
        ifname: "eth0".into(),
        ..Attachment::default()
    };
    let attachments: Vec<Attachment> = pods.iter().enumerate().map(attachment).collect();
    for tally in tallies {
        let call = |attachment: &Attachment| match tally.verb {
            "ADD" => runtime.add(attachment).map(drop),
            _ => runtime.del(attachment),
        };
        let (elapsed, latencies) = netns.within(|| all(&attachments, tally.at_a_time, call));
        tally.elapsed += elapsed;
        tally.latencies.add(latencies).expect("of the same bounds");
        if tally.verb == "ADD" {
            settle();
        }
    }
}

/// Calls for all attachments, `at_a_time` of them at once.
fn all(
    attachments: &[Attachment],
    at_a_time: u32,
    call: impl Fn(&Attachment) -> Result<(), CniError> + Sync,
) -> (Duration, Histogram<u64>) {
    let (next, latencies) = (AtomicUsize::new(0), Mutex::new(histogram()));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                while let Some(attachment) = attachments.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let start = Instant::now();
                    call(attachment).unwrap_or_else(|error| panic!("{}: {error}", attachment.container));
                    let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                    latencies.lock().expect("no panic").saturating_record(took);
                }
            });
        }
    });
    (start.elapsed(), latencies.into_inner().expect("no panic"))
}

/// Up to a minute in microseconds, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are valid")
}

/// The same verb of both plugins.
fn rows(theirs: &Tally, ours: &Tally) -> [Row; 2] {
    [theirs, ours].map(|tally| Row {
        plugin: tally.plugin,
        at_a_time: tally.at_a_time,
        verb: tally.verb,
        calls: tally.latencies.len(),
        p50_ms: tally.milliseconds(50.0),
        p99_ms: tally.milliseconds(99.0),
        per_second: tally.per_second(),
        ratio: tally.per_second() / theirs.per_second(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
impl Tally {
    fn milliseconds(&self, percentile: f64) -> f64 {
        self.latencies.value_at_percentile(percentile) as f64 / 1e3
    }

    fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }
}

fn print(rows: &[Row]) {
    println!(
        "\n{:<4} {:>9}  {:<20} {:>10} {:>10} {:>8} {:>13}",
        "VERB", "AT A TIME", "PLUGIN", "MEDIAN", "99 %", "A SECOND", "BY REFERENCE"
    );
    for Row { plugin, at_a_time, verb, p50_ms, p99_ms, per_second, ratio, .. } in rows {
        println!(
            "{verb:<4} {at_a_time:>9}  {plugin:<20} {p50_ms:>7.1} ms {p99_ms:>7.1} ms {per_second:>8.1} {ratio:>13.2}"
        );
    }
}
