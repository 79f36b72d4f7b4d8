//! Measures a cluster.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::OPTIONS;
use super::findings::{Capture, Findings, KernelMode, Paths, Reach, Source, Throughput, Trace};
use super::harness::{
    self, Cluster, Options, Pod, PodwireNode, Vxlan, iperf3, ping_matrix, tcp_transfer, traceroute, udp_echo,
};

/// The pods to measure between, and what lies between them.
fn routes(cluster: &Cluster) -> [(&'static str, &Pod, &Pod); 4] {
    let (a, b, c) = (&cluster.a.pods, &cluster.b.pods, &cluster.c.pods);
    [
        ("podwire to podwire", &a[0], &b[0]),
        ("podwire to kernel", &a[0], &c[0]),
        ("kernel to podwire", &c[0], &b[0]),
        ("same node", &a[0], &a[1]),
    ]
}

/// What throughput is measured with, and iperf3's options for it.
type Load = (&'static str, &'static str);

const DATAGRAMS: Load = ("UDP", "-u -l 1400 -b 100M");
/// On wires like these the kernel path takes it over.
const BULK: Load = ("TCP", "");

/// Measures everything. The paths' counters span reachability, capture and the throughput of datagrams.
pub fn measure(cluster: &mut Cluster, seconds: u32) -> Findings {
    let before = cluster.podwire_nodes().map(PodwireNode::carried);
    println!("pinging all pairs");
    let reachability = reachability(cluster);
    let (capture, addresses) = capture(cluster);
    println!("measuring throughput");
    let datagrams = throughput(cluster, DATAGRAMS, seconds);
    let paths = paths(cluster, before);
    let throughput = [throughput(cluster, BULK, seconds), datagrams].concat();
    let traceroute = traces(cluster);
    let bad_checksums = cluster.bad_checksums();
    println!("the same by the kernel path alone");
    let kernel_mode = kernel_mode(cluster, seconds);
    let mut findings = Findings {
        podwire: cluster.a.status().version,
        kernel: harness::host("uname -r").trim().to_owned(),
        reachability,
        throughput,
        paths,
        capture,
        addresses,
        traceroute,
        bad_checksums,
        kernel_mode,
        criteria: Vec::new(),
    };
    findings.criteria = findings.judge();
    findings
}

fn reachability(cluster: &Cluster) -> Vec<Reach> {
    let rows = ping_matrix(&cluster.pods()).into_iter();
    rows.map(|(from, to, address, answered)| Reach { from: from.name.clone(), to: to.name.clone(), address, answered })
        .collect()
}

/// Exchanges datagrams and streams on each route and looks at them on node `a`'s wire and at their receivers.
fn capture(cluster: &Cluster) -> (Capture, Vec<Source>) {
    let file = cluster.prefix.dir().join("demo.pcap");
    let port = cluster.a.host.port();
    let running = harness::Capture::start(&cluster.switch.netns, &port, "udp port 8472", &file);
    let mut addresses = Vec::new();
    for (_, from, to) in routes(cluster) {
        for destination in to.addresses() {
            let source = |protocol, seen| Source {
                from: from.name.clone(),
                to: to.name.clone(),
                protocol,
                own: from.address_like(destination),
                seen,
            };
            addresses.push(source("UDP", udp_echo(from, to, destination, &[1, 100, 1400]).ok()));
            addresses.push(source("TCP", tcp_transfer(from, to, destination, 100_000).ok()));
        }
    }
    (judge_frames(&running.frames()), addresses)
}

fn judge_frames(frames: &[Vec<u8>]) -> Capture {
    let parsed: Vec<_> = frames.iter().map(|frame| Vxlan::parse(frame)).collect();
    let is_ours = |frame: &&Vxlan| frame.flags == 0x08 && frame.reserved_is_zero && frame.vni == 1;
    let right: Vec<_> = parsed.iter().flatten().filter(is_ours).collect();
    let source_ports: BTreeSet<_> = right.iter().map(|frame| frame.outer.source.1).collect();
    let example = right.first().map(|frame| format!("{}, VXLAN {}: {}", frame.outer, frame.vni, frame.inner));
    Capture {
        frames: frames.len(),
        right: right.len(),
        source_ports: source_ports.len(),
        example: example.unwrap_or_default(),
        faults: parsed.iter().filter_map(|outcome| outcome.clone().err()).take(5).collect(),
    }
}

fn throughput(cluster: &Cluster, (protocol, options): Load, seconds: u32) -> Vec<Throughput> {
    let mut rows = Vec::new();
    for (route, from, to) in routes(cluster) {
        for address in [IpAddr::from(to.v4), to.v6.into()] {
            let measured = iperf3(from, to, address, seconds, options);
            rows.push(Throughput {
                from: from.name.clone(),
                to: to.name.clone(),
                route,
                address,
                protocol,
                bits_per_second: measured.bits_per_second,
                lost_percent: measured.lost_percent,
            });
        }
    }
    rows
}

fn paths(cluster: &Cluster, before: [harness::Carried; 2]) -> Vec<Paths> {
    let since = |(node, before): (&PodwireNode, _)| {
        let carried = node.carried().since(before);
        Paths {
            node: node.host.name(),
            fast: carried.fast,
            kernel: carried.kernel,
            fast_percent: carried.fast_share() * 100.0,
        }
    };
    cluster.podwire_nodes().into_iter().zip(before).map(since).collect()
}

/// Each remote route as traceroute sees it: a router for each node on the way, then the pod.
fn traces(cluster: &Cluster) -> Vec<Trace> {
    let Cluster { a, b, c, .. } = cluster;
    let remote = [
        (&a.pods[0], &b.pods[0], a.host.gateways(), b.host.gateways()),
        (&a.pods[0], &c.pods[0], a.host.gateways(), c.host.gateways()),
        (&c.pods[0], &b.pods[0], c.bridge_addresses(), b.host.gateways()),
    ];
    let mut rows = Vec::new();
    for (from, to, near, far) in remote {
        for ((destination, near), far) in to.addresses().into_iter().zip(near).zip(far) {
            let expected = [near, far, destination].map(Some).to_vec();
            let (from_name, to_name) = (from.name.clone(), to.name.clone());
            rows.push(Trace { from: from_name, to: to_name, hops: traceroute(from, destination), expected });
        }
    }
    rows
}

fn kernel_mode(cluster: &mut Cluster, seconds: u32) -> KernelMode {
    cluster.a.set_options(Options::KERNEL);
    cluster.b.set_options(Options::KERNEL);
    let before = cluster.podwire_nodes().map(PodwireNode::carried);
    let reachability = reachability(cluster);
    let throughput = [BULK, DATAGRAMS].map(|load| throughput(cluster, load, seconds.min(1))).concat();
    let fast = paths(cluster, before).iter().map(|row| row.fast).sum();
    cluster.a.set_options(OPTIONS);
    cluster.b.set_options(OPTIONS);
    KernelMode { reachability, throughput, fast }
}
