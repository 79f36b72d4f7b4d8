//! What the steering programs decide about real packets, as `podwire trace` shows it.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use podwire::control::api::trace::{Direction, Outcome, Packet, Side};
use podwire::steer::{Program, Verdict};

use super::cluster;
use super::harness::{Cluster, Options, PodwireNode, Wire, pings, signal, tcp_transfer, udp_echo, wait_until};
use super::hostile::{datagram_with, to_vtep};
use super::trace::{Trace, device, pcapng_is_sound, tshark};

/// How long a busy machine may take for what is due at once.
const SOON: Duration = Duration::from_secs(20);

/// Gives pod `a1` the addresses of pod `c1`, and has it send one echo request from each to a pod of another node.
fn forge(cluster: &Cluster) {
    let (pod, victim, remote) = (&cluster.a.pods[0], &cluster.c.pods[0], &cluster.b.pods[0]);
    for from in victim.addresses() {
        pod.netns.output(&format!("ip address add {from} dev lo nodad"));
        assert!(!pings(pod, remote.address_like(from), &format!("-I {from} -W 1")), "{from}");
    }
}

/// Devices and comments of a file.
fn comments(file: &Path) -> Vec<(String, String)> {
    let rows = tshark(file, &["frame.interface_name", "frame.comment"]);
    rows.into_iter().map(|row| <[String; 2]>::try_from(row).expect("two fields").into()).collect()
}

fn left(program: Program, verdict: Verdict) -> String {
    format!("left to the kernel path by {}: {} ({})", program.label(), verdict.label(), verdict.help())
}

fn dropped(program: Program, verdict: Verdict) -> String {
    format!("dropped by {}: {} ({})", program.label(), verdict.label(), verdict.help())
}

#[test]
fn what_programs_drop_is_shown_to_tshark_and_summed_up() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let stranger = cluster.switch.host(&cluster.prefix, 's', 98);
    let (pod, uplink) = (device(&cluster.a, &cluster.a.pods[0]), cluster.a.host.uplink.clone());
    let inject = || {
        let packet = datagram_with(&cluster, &cluster.a.pods[0], b"sixteen bytes...", etherparse::IpEcn::NotEct);
        to_vtep(&cluster, &stranger).send(&packet).expect("node a is there");
        let count = || cluster.a.verdict(Program::Nic, Verdict::UnknownVtep);
        assert!(wait_until(SOON, || count() > 0), "it arrives");
    };
    let file = cluster.prefix.dir().join("drops.pcapng");
    let trace = Trace::start(&cluster.a, &format!("--drops --write {}", file.display()), Stdio::null());
    forge(&cluster);
    inject();
    assert_eq!(trace.finish().code, Some(0));
    let [spoofed, unknown] = [dropped(Program::Pod, Verdict::SpoofIp), dropped(Program::Nic, Verdict::UnknownVtep)];
    assert_eq!(comments(&file), [(pod.clone(), spoofed.clone()), (pod, spoofed.clone()), (uplink, unknown.clone())]);
    let sources = tshark(&file, &["ip.src", "ipv6.src", "vxlan.vni"]);
    let [v4, v6] = cluster.c.pods[0].addresses().map(|address| address.to_string());
    assert_eq!((&sources[0][0], &sources[1][1]), (&v4, &v6), "as they were forged");
    assert!(sources[2][0].starts_with(&stranger.underlay.to_string()) && sources[2][2] == "1", "{sources:?}");
    assert!(pcapng_is_sound(&file));

    let trace = Trace::start(&cluster.a, "drops --protocol icmp --net 10.244.0.0/16 --pod a1", Stdio::piped());
    forge(&cluster);
    inject();
    let ended = trace.finish();
    assert_eq!(ended.stdout.matches(&spoofed).count(), 1, "what the filter names: {ended:?}");
    assert!(!ended.stdout.contains(&unknown), "{ended:?}");
    let sum = ended.stdout.lines().find(|line| line.starts_with("pod_steer spoof_ip")).expect("a sum");
    assert!(sum.split_whitespace().any(|word| word == "2"), "the sum leaves none out: {sum}");
}

#[test]
fn what_is_left_to_the_kernel_is_shown_with_its_reason() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let file = cluster.prefix.dir().join("kernel.pcapng");
    let trace = Trace::start(&cluster.a, &format!("--pod a1 --path kernel --write {}", file.display()), Stdio::null());
    assert!(pings(from, to.v4.into(), ""), "by the workers, and so not in the trace");
    for destination in to.addresses() {
        assert!(!pings(from, destination, "-t 1 -W 1"));
        assert!(pings(from, destination, "-s 3000"));
    }
    assert!(pings(from, to.v4.into(), "-R"));
    assert!(pings(from, cluster.a.host.underlay, ""));
    assert_eq!(trace.finish().code, Some(0));
    let (pod, seen) = (device(&cluster.a, from), comments(&file));
    let count = |verdict| seen.iter().filter(|row| **row == (pod.clone(), left(Program::Pod, verdict))).count();
    assert_eq!((count(Verdict::Ttl), count(Verdict::Options), count(Verdict::UnknownDestination)), (2, 1, 1));
    assert!(count(Verdict::Fragment) >= 4, "two fragments or more of each family: {seen:?}");
    assert!(seen.iter().all(|(_, comment)| comment.starts_with("left to the kernel path by")), "{seen:?}");
    let from_wire = (cluster.a.host.uplink.clone(), left(Program::Nic, Verdict::Fragment));
    assert!(seen.contains(&from_wire), "the answers, in the tunnel: {seen:?}");
    assert!(pcapng_is_sound(&file));
}

#[test]
fn answers_of_translated_flows_and_packets_between_pods_are_shown() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let [from, neighbour] = [0, 1].map(|n| &cluster.a.pods[n]);
    let to = &cluster.b.pods[0];
    let by = |program, verdict| move |packet: &Packet| (&*packet.seen_by, &*packet.verdict) == (program, verdict);

    let trace = Trace::start(&cluster.a, "--protocol udp --output json", Stdio::piped());
    udp_echo(from, neighbour, neighbour.v6.into(), &[100]).expect("UDP");
    let (packets, _) = trace.finish().events();
    let hops: Vec<_> = packets.iter().map(|packet| packet.next_hop.as_deref()).collect();
    assert_eq!(hops, [Some("pod a2"), Some("pod a1")], "{packets:#?}");
    for packet in &packets {
        assert!(by("pod_steer", "local")(packet) && packet.length == 162, "{packet:?}");
        assert_eq!((packet.outcome, packet.direction, packet.side), (Outcome::Fast, Direction::Local, Side::Pod));
    }

    cluster.a.host.netns.run_all([
        "nft add table ip t",
        "nft add chain ip t pre { type nat hook prerouting priority dstnat ; }",
        &format!("nft add rule ip t pre ip daddr 10.96.0.1 udp dport 53 dnat to {}:5300", to.v4),
    ]);
    let trace = Trace::start(&cluster.a, "--path kernel --port 5300 --output json --count 1", Stdio::piped());
    let server = to.netns.within(|| UdpSocket::bind((to.v4, 5300))).expect("bind in the pod");
    let client = from.netns.within(|| UdpSocket::bind((from.v4, 0))).expect("bind in the pod");
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
    }
    // The first ones may come before the daemon has seen the rule.
    let before = cluster.a.verdict(Program::Nic, Verdict::Nated);
    let answered = || {
        client.send_to(b"question", "10.96.0.1:53").expect("a route");
        let (_, whom) = server.recv_from(&mut [0; 64]).expect("the question");
        server.send_to(b"answer", whom).expect("a route");
        let _from = client.recv_from(&mut [0; 64]).expect("the answer");
        cluster.a.verdict(Program::Nic, Verdict::Nated) > before
    };
    assert!(wait_until(SOON, answered), "the answers are told from others");
    let (packets, _) = trace.ended().events();
    let [answer] = &packets[..] else { panic!("{packets:#?}") };
    assert!(by("nic_steer", "nated")(answer), "{answer:?}");
    assert_eq!(
        (answer.outcome, answer.direction, answer.pod.as_deref()),
        (Outcome::Kernel, Direction::ToPod, Some("a1"))
    );
    let flow = answer.flow.as_ref().expect("UDP");
    assert_eq!((flow.source, flow.source_port), (IpAddr::from(to.v4), Some(5300)));
    assert_eq!(flow.tunnel, Some((cluster.b.host.underlay, cluster.a.host.underlay)));
}

#[test]
fn a_flood_of_what_is_traced_costs_the_trace_and_not_the_pods() {
    const FLOOD: u64 = 60_000;
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let ([flooder, pod], remote) = ([0, 1].map(|n| &cluster.a.pods[n]), &cluster.b.pods[0]);
    let trace = Trace::start(&cluster.a, "--path all --verdict spoof_ip,local", Stdio::null());
    signal(&trace.client, libc::SIGSTOP);
    forge(&cluster);
    let spoofed = || cluster.a.verdict(Program::Pod, Verdict::SpoofIp);
    let before = spoofed();
    thread::scope(|scope| {
        scope.spawn(|| {
            let forged = (cluster.c.pods[0].v4, 0);
            let socket = flooder.netns.within(|| UdpSocket::bind(forged)).expect("it has that address too");
            (0..FLOOD).for_each(|_| drop(socket.send_to(&[0; 64], (remote.v4, 9))));
        });
        for to in [flooder, remote] {
            for destination in to.addresses() {
                udp_echo(pod, to, destination, &[1000; 50]).expect("the pods lose nothing");
            }
        }
    });
    assert!(wait_until(SOON, || spoofed() - before > FLOOD / 2), "they are judged: {}", spoofed() - before);
    signal(&trace.client, libc::SIGCONT);
    let ended = trace.finish();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.lost() > 10_000, "{ended:?}");
    super::assert_ledgers_balance(&cluster);
}

/// What the programs are to tell of, a mask for each.
fn wanted(node: &PodwireNode) -> Vec<u64> {
    let path = node.pins().join("maps/data_trace");
    let dump = super::harness::host(&format!("bpftool -j map dump pinned {}", path.display()));
    let dump: serde_json::Value = serde_json::from_str(&dump).expect("JSON");
    let masks = dump.pointer("/0/formatted/value/.data.trace/0/trace/wanted").unwrap_or_else(|| panic!("{dump}"));
    masks.as_array().expect("an array").iter().map(|mask| mask.as_u64().expect("a mask")).collect()
}

#[test]
fn the_programs_stop_telling_when_the_client_or_the_daemon_is_killed() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    assert_eq!(wanted(&cluster.a), [0, 0, 0]);
    let mut trace = Trace::start(&cluster.a, "--path all", Stdio::null());
    assert!(wanted(&cluster.a).iter().all(|&mask| mask != 0));
    trace.client.kill().expect("our child");
    trace.client.wait().expect("our child");
    assert!(wait_until(SOON, || wanted(&cluster.a) == [0, 0, 0]), "the daemon takes it back");

    let _trace = Trace::start(&cluster.a, "--path all", Stdio::null());
    cluster.a.kill();
    assert!(wanted(&cluster.a).iter().all(|&mask| mask != 0), "nobody takes it back");
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let expired = || {
        assert!(pings(from, to.v4.into(), ""), "by the kernel path");
        tcp_transfer(from, to, to.v4.into(), 1000).expect("past the stack");
        wanted(&cluster.a) == [0, 0, 0]
    };
    assert!(wait_until(SOON, expired), "the programs do it themselves");
    cluster.a.launch();
}
