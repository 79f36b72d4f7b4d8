//! The program behind `scripts/bench`: what one podwire node carries, beside the same node on the kernel path alone.
//!
//! Both ways are measured in the same run, in alternating rounds, because the machine's speed drifts; what counts is
//! the ratio of medians. Nodes, wire, pods and load all share the machine's cores, so absolute figures are low.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "peers/machine.rs"]
mod machine;
#[path = "peers/report.rs"]
mod report;

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Parser;
use harness::{Cluster, Netns, Options, Pod, Prefix, Wire, histogram, iperf3, is_root};
use machine::Machine;
use report::{Measure, Report};

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

const GBITS: Measure = Measure { name: "Gbit/s", digits: 2, compared: true };
const MPPS: Measure = Measure { name: "Mpps", digits: 3, compared: true };
const MICROSECONDS: Measure = Measure { name: "µs", digits: 1, compared: true };

/// What is measured: a name, in what, and how.
type Scenario = (&'static str, Measure, fn(&Cluster, u32) -> f64);

const SCENARIOS: [Scenario; 6] = [
    ("TCP, pod to wire", GBITS, |cluster, seconds| tcp(&cluster.a.pods[0], &cluster.c.pods[0], seconds)),
    ("TCP, wire to pod", GBITS, |cluster, seconds| tcp(&cluster.c.pods[0], &cluster.a.pods[0], seconds)),
    ("UDP 64 B, pod to wire", MPPS, |cluster, seconds| udp(&cluster.a.pods[0], &cluster.c.pods[0], seconds)),
    ("UDP 64 B, wire to pod", MPPS, |cluster, seconds| udp(&cluster.c.pods[0], &cluster.a.pods[0], seconds)),
    ("ping-pong, median", MICROSECONDS, |it, seconds| ping_pong(&it.a.pods[0], &it.c.pods[0], seconds, 50.0)),
    ("ping-pong, 99 %", MICROSECONDS, |it, seconds| ping_pong(&it.a.pods[0], &it.c.pods[0], seconds, 99.0)),
];

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    if !is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    let mut cluster = Cluster::start(Prefix::named("pwbench"), Wire::default(), Options::KERNEL);
    let reference = MODES[0].0;
    let mut report = Report::new(Machine::look(), arguments.seconds, arguments.rounds, reference);
    for round in 1..=arguments.rounds {
        for (mode, options) in MODES {
            cluster.a.set_options(options);
            for (scenario, unit, find) in SCENARIOS {
                let found = find(&cluster, arguments.seconds);
                eprintln!("round {round} of {}: {mode}: {scenario}:{}", arguments.rounds, unit.tell(found));
                report.add(round, scenario, mode, Ok(vec![(unit, found)]));
            }
        }
    }
    report.tell();
    arguments.json.map_or(Ok(()), |file| report.write(&file))
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
