//! The program behind `scripts/bench`: what one podwire node carries, beside the same node on the kernel path alone.
//!
//! Both ways are measured in the same run, in alternating rounds, because the machine's speed drifts; what counts is
//! the ratio of medians. Nodes, wire, pods and load all share the machine's cores, so absolute figures are low.

#[path = "../harness/mod.rs"]
mod harness;

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Parser;
use harness::{Cluster, Netns, Options, Pod, Prefix, Wire, histogram, iperf3, is_root};
use serde::Serialize;

/// Measures a podwire node in busy and adaptive mode beside the kernel path alone.
#[derive(Parser)]
#[command(name = "scripts/bench")]
struct Arguments {
    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds of each measurement
    #[arg(long, value_name = "N", default_value_t = 2)]
    seconds: u32,
    /// Rounds of all modes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
}

const MODES: [(&str, Options); 3] =
    [("kernel", Options::KERNEL), ("adaptive", Options::DEFAULT), ("busy", Options { bulk: "auto", ..Options::BUSY })];

/// What is measured: a name, a unit, and how.
type Measure = (&'static str, &'static str, fn(&Cluster, u32) -> f64);

const MEASURES: [Measure; 6] = [
    ("TCP, pod to wire", "Gbit/s", |cluster, seconds| tcp(&cluster.a.pods[0], &cluster.c.pods[0], seconds)),
    ("TCP, wire to pod", "Gbit/s", |cluster, seconds| tcp(&cluster.c.pods[0], &cluster.a.pods[0], seconds)),
    ("UDP 64 B, pod to wire", "Mpps", |cluster, seconds| udp(&cluster.a.pods[0], &cluster.c.pods[0], seconds)),
    ("UDP 64 B, wire to pod", "Mpps", |cluster, seconds| udp(&cluster.c.pods[0], &cluster.a.pods[0], seconds)),
    ("ping-pong, median", "µs", |cluster, seconds| ping_pong(&cluster.a.pods[0], &cluster.c.pods[0], seconds, 50.0)),
    ("ping-pong, 99 %", "µs", |cluster, seconds| ping_pong(&cluster.a.pods[0], &cluster.c.pods[0], seconds, 99.0)),
];

/// The rounds of one measure in one mode.
#[derive(Serialize)]
struct Row {
    measure: &'static str,
    unit: &'static str,
    mode: &'static str,
    rounds: Vec<f64>,
    median: f64,
    /// Median of this mode by median of the kernel path.
    ratio: f64,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if !is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    let mut cluster = Cluster::start(Prefix::named("pwbench"), Wire::default(), Options::KERNEL);
    let mut rounds = vec![Vec::new(); MEASURES.len() * MODES.len()];
    for round in 1..=arguments.rounds {
        for (m, (mode, options)) in MODES.into_iter().enumerate() {
            println!("round {round} of {}: {mode}", arguments.rounds);
            cluster.a.set_options(options);
            for (n, (.., measure)) in MEASURES.into_iter().enumerate() {
                rounds[n * MODES.len() + m].push(measure(&cluster, arguments.seconds));
            }
        }
    }
    let rows = rows(rounds);
    print(&rows);
    if let Some(file) = arguments.json {
        fs::write(file, serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(())
}

fn rows(rounds: Vec<Vec<f64>>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for (index, mut rounds) in rounds.into_iter().enumerate() {
        let ((measure, unit, _), (mode, _)) = (MEASURES[index / MODES.len()], MODES[index % MODES.len()]);
        rounds.sort_by(f64::total_cmp);
        let median = rounds[rounds.len() / 2];
        let kernel = rows.iter().find(|row| row.measure == measure).map_or(median, |row| row.median);
        rows.push(Row { measure, unit, mode, rounds, median, ratio: median / kernel });
    }
    rows
}

fn print(rows: &[Row]) {
    println!("\n{:<24} {:<9} {:>15} {:>21} {:>10}", "MEASURE", "MODE", "MEDIAN", "LEAST TO MOST", "BY KERNEL");
    for row in rows {
        let spread = format!("{:.3} to {:.3}", row.rounds[0], row.rounds[row.rounds.len() - 1]);
        let median = format!("{:.3} {}", row.median, row.unit);
        println!("{:<24} {:<9} {median:>15} {spread:>21} {:>10.2}", row.measure, row.mode, row.ratio);
    }
}

fn tcp(from: &Pod, to: &Pod, seconds: u32) -> f64 {
    iperf3(from, to, to.v4.into(), seconds, "").bits_per_second / 1e9
}

/// Millions of datagrams a second that reach the receiver's socket, sent as fast as one thread can: frames of 64 bytes
/// with their check sequence. The socket is never read, so that receiving them costs the machine as little as it can.
fn udp(from: &Pod, to: &Pod, seconds: u32) -> f64 {
    const BYTES: usize = 18;
    const BETWEEN_LOOKS: u32 = 64;
    let (sender, receiver) = (bind(from), bind(to));
    sender.connect(receiver.local_addr().expect("bound")).expect("a route");
    let (before, start) = (datagrams(&to.netns), Instant::now());
    let end = Duration::from_secs(u64::from(seconds));
    while start.elapsed() < end {
        for _ in 0..BETWEEN_LOOKS {
            // A full queue is the load's limit, not an error.
            let _refused = sender.send(&[0; BYTES]);
        }
    }
    let elapsed = start.elapsed();
    // What is under way arrives.
    thread::sleep(Duration::from_millis(100));
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let arrived = (datagrams(&to.netns) - before) as f64;
    arrived / elapsed.as_secs_f64() / 1e6
}

/// The round trip between two pods at a percentile, in microseconds: one datagram of 18 bytes there and back at a time.
fn ping_pong(from: &Pod, to: &Pod, seconds: u32, percentile: f64) -> f64 {
    const LIMIT: Duration = Duration::from_secs(1);
    let (client, server) = (bind(from), bind(to));
    for socket in [&client, &server] {
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
    }
    client.connect(server.local_addr().expect("bound")).expect("a route");
    let (running, mut trips) = (AtomicBool::new(true), histogram());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 64];
            while running.load(Ordering::Relaxed) {
                if let Ok((len, source)) = server.recv_from(&mut buffer) {
                    let _lost = server.send_to(&buffer[..len], source);
                }
            }
        });
        let end = Instant::now() + Duration::from_secs(u64::from(seconds));
        while Instant::now() < end {
            let start = Instant::now();
            let answered = client.send(&[0; 18]).and_then(|_| client.recv(&mut [0; 64])).is_ok();
            // A lost one counts as long as it was waited for.
            let trip = if answered { start.elapsed() } else { LIMIT };
            trips.saturating_record(u64::try_from(trip.as_nanos()).unwrap_or(u64::MAX));
        }
        running.store(false, Ordering::Relaxed);
    });
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds for people")]
    let trip = trips.value_at_percentile(percentile) as f64;
    trip / 1e3
}

fn bind(pod: &Pod) -> UdpSocket {
    pod.netns.within(|| UdpSocket::bind((pod.v4, 0))).expect("bind in the pod")
}

/// UDP datagrams that reached a socket of the namespace, whether it had room for them or not.
fn datagrams(netns: &Netns) -> u64 {
    let text = netns.within(|| fs::read_to_string("/proc/thread-self/net/snmp")).expect("/proc/net/snmp");
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let wanted = |name: &str| matches!(name, "InDatagrams" | "RcvbufErrors");
    let pairs = names.split_whitespace().zip(values.split_whitespace()).filter(|(name, _)| wanted(name));
    pairs.map(|(_, value)| value.parse::<u64>().expect("a number")).sum()
}
