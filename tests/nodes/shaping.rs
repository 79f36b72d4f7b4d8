//! A pod whose host end has something of others on it: a queueing discipline, a filter, a program. It takes hold, by
//! the kernel path, and the fast path is taken again when it has gone.

use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use libbpf_rs::{ObjectBuilder, libbpf_sys};
use podwire::control::api::{Path, Pod as Listed};
use podwire::steer::{Program, Verdict};
use serde_json::{Value, json};

use super::cluster;
use super::harness::{Cluster, Netns, Options, Pod, PodwireNode, Wire, iperf3, pings, wait_until};

/// How long the daemon may take to notice on a busy machine.
const NOTICE: Duration = Duration::from_secs(5);

/// The most that a measurement may show of the 16 Mbit/s that pods are shaped to, in bits a second.
const MOST: f64 = 24e6;

/// The first pod of node `a`.
const DEVICE: &str = "pw1";

const TBF: &str = "tbf rate 16mbit burst 64kb latency 200ms";

/// The first pod of node `a`, as `podwire pods list` shows it.
fn listed(cluster: &Cluster) -> Listed {
    let pods: Vec<Listed> = serde_json::from_str(&cluster.a.cli("pods list --output json")).expect("JSON");
    let pod = pods.into_iter().find(|pod| pod.name == "a1").expect("it is attached");
    assert_eq!(pod.host_ifname, DEVICE);
    pod
}

/// Waits until the first pod takes the kernel path for a reason that contains `why`, or the fast path without one.
#[track_caller]
fn wait_for_path(cluster: &Cluster, why: Option<&str>) {
    let start = Instant::now();
    let is_so = || match (listed(cluster), why) {
        (Listed { path: Path::Kernel, reason: Some(reason), .. }, Some(why)) => reason.contains(why),
        (Listed { path: Path::Fast, reason: None, .. }, None) => true,
        _ => false,
    };
    assert!(wait_until(NOTICE, is_so), "{why:?}: {:?}", listed(cluster));
    println!("noticed within {:?}: {why:?}", start.elapsed());
    let status = cluster.a.status();
    let slow: Vec<_> =
        status.slow_pods.iter().map(|slow| (&*slow.name, slow.reason.contains(why.unwrap_or("-")))).collect();
    assert_eq!(slow, why.map(|_| ("a1", true)).into_iter().collect::<Vec<_>>());
    let (text, list) = (cluster.a.cli("status"), cluster.a.cli("pods list"));
    assert!(
        why.is_none_or(|why| text.contains(&format!("a1 takes the kernel path: {DEVICE} has")) && list.contains(why))
    );
}

/// Packets of node `a` that took the fast path, of any program.
fn fast(node: &PodwireNode) -> u64 {
    let ways = [(Program::Nic, Verdict::Claimed), (Program::Pod, Verdict::Claimed), (Program::Pod, Verdict::Local)];
    ways.into_iter().map(|(program, verdict)| node.verdict(program, verdict)).sum()
}

/// Packets that have passed the qdisc at the root of a device.
fn queued(netns: &Netns, device: &str) -> u64 {
    let printed = netns.run(&format!("tc -json -statistics qdisc show dev {device}"));
    let qdiscs: Value = serde_json::from_str(&printed).expect("tc prints JSON");
    let root = qdiscs.as_array().into_iter().flatten().find(|qdisc| qdisc["root"] == true).expect("a root qdisc");
    root["packets"].as_u64().expect("a counter")
}

/// Pings by the first pod of `a` and to it, a remote pod and one of the same node at the other end, in both families.
#[track_caller]
fn ping_around(cluster: &Cluster) {
    let (pod, others) = (&cluster.a.pods[0], [&cluster.b.pods[0], &cluster.a.pods[1]]);
    for other in others {
        for (from, to) in [(pod, other), (other, pod)] {
            for address in to.addresses() {
                assert!(pings(from, address, ""), "{} -> {address}", from.name);
            }
        }
    }
}

/// Eight pings there and back, four of them by the wire: what of it the programs passed to the fast path.
#[track_caller]
fn assert_path(cluster: &Cluster, path: Path) {
    let before = fast(&cluster.a);
    ping_around(cluster);
    let carried = fast(&cluster.a) - before;
    match path {
        Path::Fast => assert!(carried >= 16, "{carried} of 16 packets by the fast path"),
        Path::Kernel => assert_eq!(carried, 0, "packets by the fast path"),
    }
}

fn rate(from: &Pod, to: &Pod) -> f64 {
    iperf3(from, to, to.v4.into(), 3, "").bits_per_second
}

/// Forges a source address at a pod, which must not get out.
#[track_caller]
fn assert_honest(node: &PodwireNode, pod: &Pod, to: &Pod) {
    pod.netns.run("ip address add 10.244.1.200/32 dev lo");
    let before = node.verdict(Program::Pod, Verdict::SpoofIp);
    assert!(!pings(pod, to.v4.into(), "-I 10.244.1.200 -W 1"));
    assert_eq!(node.verdict(Program::Pod, Verdict::SpoofIp), before + 1);
    pod.netns.run("ip address del 10.244.1.200/32 dev lo");
}

#[test]
fn a_qdisc_takes_hold_of_what_comes_to_a_pod_and_is_left() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let node = cluster.a.host.netns.clone();
    assert_path(&cluster, Path::Fast);
    node.run(&format!("tc qdisc add dev {DEVICE} root {TBF}"));
    wait_for_path(&cluster, Some("the qdisc tbf"));
    let before = queued(&node, DEVICE);
    assert_path(&cluster, Path::Kernel);
    // Four requests and four replies come to the pod.
    assert!(queued(&node, DEVICE) >= before + 8);
    assert_honest(&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
    for from in [&cluster.b.pods[0], &cluster.a.pods[1]] {
        let measured = rate(from, &cluster.a.pods[0]);
        assert!(measured < MOST, "{measured} bit/s from {}", from.name);
    }
    // The programs go on without a daemon, and the next one knows from its first look on.
    cluster.a.kill();
    ping_around(&cluster);
    let before = queued(&node, DEVICE);
    cluster.a.launch();
    assert_eq!(listed(&cluster).path, Path::Kernel);
    assert_path(&cluster, Path::Kernel);
    assert!(queued(&node, DEVICE) >= before + 8);
    node.run(&format!("tc qdisc del dev {DEVICE} root"));
    wait_for_path(&cluster, None);
    assert_path(&cluster, Path::Fast);
    let log = cluster.a.log_text();
    assert_eq!(log.matches("may take the fast path again").count(), 1, "{log}");
}

/// Whether this kernel can redirect to an intermediate functional block; says so when not.
fn has_ifb(node: &Netns) -> bool {
    let added = node.output("ip link add ifb0 type ifb").status.success();
    if !added {
        println!("skipped: this kernel has no ifb devices");
    }
    added
}

#[test]
fn a_filter_takes_hold_of_what_comes_from_a_pod_and_is_left() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let node = &cluster.a.host.netns;
    if !has_ifb(node) {
        return;
    }
    node.run_all(["ip link set ifb0 up", &format!("tc qdisc add dev ifb0 root {TBF}")]);
    node.run(&format!("tc qdisc add dev {DEVICE} handle ffff: ingress"));
    assert_path(&cluster, Path::Fast);
    let matching = "protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0";
    node.run(&format!("tc filter add dev {DEVICE} parent ffff: {matching}"));
    wait_for_path(&cluster, Some("a filter u32 at its ingress"));
    let before = queued(node, "ifb0");
    assert_path(&cluster, Path::Kernel);
    assert!(queued(node, "ifb0") >= before + 8);
    assert_honest(&cluster.a, &cluster.a.pods[0], &cluster.b.pods[0]);
    for to in [&cluster.b.pods[0], &cluster.a.pods[1]] {
        let measured = rate(&cluster.a.pods[0], to);
        assert!(measured < MOST, "{measured} bit/s to {}", to.name);
    }
    node.run(&format!("tc filter del dev {DEVICE} parent ffff:"));
    wait_for_path(&cluster, None);
    assert_path(&cluster, Path::Fast);
}

#[test]
fn a_program_of_others_takes_hold_and_is_left() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (node, pod, remote) = (&cluster.a.host.netns, &cluster.a.pods[0], &cluster.b.pods[0]);
    let object = ObjectBuilder::default().open_file(concat!(env!("OUT_DIR"), "/steer.bpf.o")).unwrap().load().unwrap();
    // One that drops all.
    let program = object.progs().find(|program| program.name() == "hub_drop").unwrap().as_fd().as_raw_fd();
    let device = node.link(DEVICE)["ifindex"].as_i64().and_then(|index| i32::try_from(index).ok()).unwrap();
    for hook in [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS] {
        let link = node.within(|| {
            // SAFETY: no options are given.
            let link = unsafe { libbpf_sys::bpf_link_create(program, device, hook, std::ptr::null()) };
            assert!(link >= 0, "{}", std::io::Error::from_raw_os_error(-link));
            // SAFETY: the call made this descriptor for us.
            unsafe { OwnedFd::from_raw_fd(link) }
        });
        wait_for_path(&cluster, Some("a tcx program of others"));
        for to in [IpAddr::from(remote.v4), remote.v6.into()] {
            assert!(!pings(pod, to, "-W 1"), "the program drops all");
        }
        drop(link);
        wait_for_path(&cluster, None);
        assert_path(&cluster, Path::Fast);
    }
}

/// Runs Debian's `bandwidth` plugin after podwire's ADD, as a runtime does; false (and a line that says so) without it.
fn shape_by_plugin(cluster: &Cluster, verb: &str) -> bool {
    const PLUGIN: &str = "/usr/lib/cni/bandwidth";
    if !std::path::Path::new(PLUGIN).exists() {
        println!("skipped: needs {PLUGIN} (Debian's containernetworking-plugins)");
        return false;
    }
    let (node, pod) = (&cluster.a.host.netns, &cluster.a.pods[0]);
    let netns = pod.netns.path().display().to_string();
    let interfaces = json!([
        { "name": DEVICE, "mac": node.mac(DEVICE) },
        { "name": "eth0", "mac": pod.netns.mac("eth0"), "sandbox": netns },
    ]);
    let ips = json!([{ "version": "4", "interface": 1, "address": format!("{}/32", pod.v4) }]);
    let config = json!({
        "cniVersion": "0.4.0", "name": "podwire", "type": "bandwidth",
        "runtimeConfig": { "bandwidth": {
            "ingressRate": 16_000_000, "ingressBurst": 524_288, "egressRate": 16_000_000, "egressBurst": 524_288,
        }},
        "prevResult": { "cniVersion": "0.4.0", "interfaces": interfaces, "ips": ips },
    });
    let mut command = node.command(PLUGIN);
    command.envs([
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "a1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/usr/lib/cni"),
    ]);
    let mut plugin = command.env("CNI_NETNS", netns).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    plugin.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = plugin.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    true
}

#[test]
fn the_bandwidth_plugin_shapes_both_directions() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let node = &cluster.a.host.netns;
    if !has_ifb(node) || !shape_by_plugin(&cluster, "ADD") {
        return;
    }
    wait_for_path(&cluster, Some("the qdisc tbf"));
    assert_path(&cluster, Path::Kernel);
    let (shaped, remote, local) = (&cluster.a.pods[0], &cluster.b.pods[0], &cluster.a.pods[1]);
    for (from, to) in [(shaped, remote), (remote, shaped), (shaped, local), (local, shaped)] {
        let measured = rate(from, to);
        println!("{} -> {}: {:.1} Mbit/s", from.name, to.name, measured / 1e6);
        assert!(measured < MOST, "{measured} bit/s, {} -> {}", from.name, to.name);
    }
    shape_by_plugin(&cluster, "DEL");
}
