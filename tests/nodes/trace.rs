//! `podwire trace`: what it shows of real packets, judged by tshark where it writes files.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use podwire::control::api::trace::{End, Event, Outcome, Packet, Side};
use podwire::control::api::{self};
use podwire::counters::DropReason;

use super::cluster;
use super::harness::{
    Cluster, Options, Pod, PodwireNode, Wire, iperf3, pings, signal, tcp_transfer, udp_echo, wait_until,
};
use super::hostile::{datagram_with, mark_congested, to_vtep};

/// A trace that runs.
pub(super) struct Trace {
    pub(super) client: Child,
    stderr: BufReader<ChildStderr>,
}

impl Trace {
    /// Begins one, which is on when this returns.
    pub(super) fn start(node: &PodwireNode, line: &str, stdout: impl Into<Stdio>) -> Self {
        let mut command = node.command(&format!("trace {line}"));
        let mut client = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("nsenter starts");
        let mut stderr = BufReader::new(client.stderr.take().expect("piped"));
        let mut said = String::new();
        stderr.read_line(&mut said).expect("it speaks");
        assert!(said.starts_with("tracing"), "{said}");
        Self { client, stderr }
    }

    /// Ends it as Ctrl-C does.
    pub(super) fn finish(self) -> Ended {
        signal(&self.client, libc::SIGINT);
        self.ended()
    }

    /// Waits until it has ended by itself.
    pub(super) fn ended(mut self) -> Ended {
        let mut stdout = String::new();
        if let Some(mut pipe) = self.client.stdout.take() {
            pipe.read_to_string(&mut stdout).expect("text");
        }
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).expect("text");
        let code = self.client.wait().expect("our child").code();
        Ended { code, stdout, stderr }
    }
}

/// What a trace has said.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// The packets that the trace says it has lost.
    #[track_caller]
    pub(super) fn lost(&self) -> u64 {
        let lost = self.stderr.split(" packet(s), ").nth(1).and_then(|rest| rest.split(' ').next());
        lost.expect("a figure").parse().expect("a number")
    }

    /// The packets of `--output json`, and how it ended.
    #[track_caller]
    pub(super) fn events(&self) -> (Vec<Packet>, End) {
        assert_eq!(self.code, Some(0), "{self:?}");
        let mut packets = Vec::new();
        let mut end = None;
        for line in self.stdout.lines() {
            match serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")) {
                Event::Packet(packet) => packets.push(*packet),
                Event::End(last) => end = Some(last),
            }
        }
        (packets, end.expect("it says how it ended"))
    }
}

/// A field of each packet of a file, as tshark reads it.
pub(super) fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-d", "udp.port==8472,vxlan", "-T", "fields", "-E", "separator=|", "-r"]).arg(file);
    for field in fields {
        command.args(["-e", field]);
    }
    let read = command.output().expect("tshark starts");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let text = String::from_utf8(read.stdout).expect("text");
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

/// The device at the host end of a pod.
pub(super) fn device(node: &PodwireNode, pod: &Pod) -> String {
    let pods: Vec<api::Pod> = serde_json::from_str(&node.cli("pods list --output json")).expect("JSON");
    pods.into_iter().find(|known| known.name == pod.name).expect("the pod").host_ifname
}

/// Waits until packets of a trace that has just begun are told of: workers learn of it a moment later.
fn settle(cluster: &Cluster, from: &Pod, to: &Pod) {
    assert!(pings(from, to.v4.into(), ""), "{}", cluster.a.log_text());
}

#[test]
fn a_file_shows_each_packet_before_and_after_encapsulation_to_tshark() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let file = cluster.prefix.dir().join("trace.pcapng");
    let line = format!("--pod {} --protocol udp --write {}", from.name, file.display());
    let trace = Trace::start(&cluster.a, &line, Stdio::null());
    settle(&cluster, from, to);
    for destination in to.addresses() {
        udp_echo(from, to, destination, &[100]).expect("UDP");
    }
    let ended = trace.finish();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("8 packet(s), 0 more lost"), "{ended:?}");
    let (pod, uplink) = (device(&cluster.a, from), cluster.a.host.uplink.clone());
    let [out, back] = ["forwarded to node-b (192.168.1.3)", "forwarded to pod a1"];
    let seen = tshark(&file, &["frame.interface_name", "frame.comment", "vxlan.vni", "frame.len", "frame.cap_len"]);
    let length = |inner: usize, is_wire: bool| (inner + if is_wire { 50 } else { 0 }).to_string();
    let row = |device: &str, comment: &str, inner: usize, is_wire: bool| {
        let (length, captured) = (length(inner, is_wire), inner + if is_wire { 50 } else { 0 });
        let vni = if is_wire { "1" } else { "" };
        [device, comment, vni, &length, &captured.min(256).to_string()].map(str::to_owned).to_vec()
    };
    let mut expected = Vec::new();
    for inner in [142, 162] {
        expected.push(row(&pod, out, inner, false));
        expected.push(row(&uplink, out, inner, true));
        expected.push(row(&uplink, back, inner, true));
        expected.push(row(&pod, back, inner, false));
    }
    assert_eq!(seen, expected);
    let addresses = tshark(&file, &["ip.src", "udp.dstport"]);
    assert!(addresses[1][0].starts_with(&format!("192.168.1.2,{}", from.v4)), "{addresses:?}");
    assert!(addresses[1][1].starts_with("8472,"), "{addresses:?}");
    assert!(pcapng_is_sound(&file), "tshark takes the file without complaint");
}

/// Whether `capinfos`-like reading finds no fault: tshark's expert information has no malformed packet.
pub(super) fn pcapng_is_sound(file: &Path) -> bool {
    let malformed = Command::new("tshark").args(["-Y", "_ws.malformed", "-r"]).arg(file).output();
    malformed.expect("tshark starts").stdout.is_empty()
}

/// Whether a packet is one that a filter names.
type Holds = fn(&Packet) -> bool;

#[test]
fn filters_show_what_they_name_and_bounds_end_the_trace() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let [a1, a2] = [&cluster.a.pods[0], &cluster.a.pods[1]];
    let (b, c) = (&cluster.b.pods[0], &cluster.c.pods[0]);
    let mixture = || {
        for (from, to) in [(a1, b), (a2, b), (a1, c)] {
            udp_echo(from, to, to.v4.into(), &[50]).expect("UDP");
            tcp_transfer(from, to, to.v6.into(), 1000).expect("TCP");
        }
    };
    let hold: [(&str, Holds); 5] = [
        ("--peer node-c", |packet| {
            packet.flow.as_ref().is_some_and(|flow| {
                [flow.source, flow.destination]
                    .iter()
                    .any(|a| a.to_string().starts_with("10.244.3.") || a.to_string().starts_with("fd00:244:3:"))
            })
        }),
        ("--protocol tcp --direction to-pod", |packet| {
            packet.flow.as_ref().is_some_and(|flow| flow.protocol == 6)
                && packet.direction == api::trace::Direction::ToPod
        }),
        ("--pod a2", |packet| packet.pod.as_deref() == Some("a2")),
        ("--net fd00:244:2::/64 --verdict forwarded", |packet| {
            packet.flow.as_ref().is_some_and(|flow| flow.source.is_ipv6()) && packet.outcome == Outcome::Fast
        }),
        ("--host 192.168.1.4", |packet| packet.side == Side::Wire),
    ];
    for (filter, holds) in hold {
        let trace = Trace::start(&cluster.a, &format!("{filter} --output json"), Stdio::piped());
        mixture();
        mixture();
        let (packets, end) = trace.finish().events();
        assert!(!packets.is_empty() && packets.iter().all(holds), "{filter}: {packets:#?}");
        assert_eq!((end.packets, end.lost), (packets.len() as u64, 0), "{filter}");
        assert!(packets.is_sorted_by_key(|packet| packet.time_ns), "{filter}");
    }

    let trace = Trace::start(&cluster.a, "--count 3 --output json --snaplen 20", Stdio::piped());
    mixture();
    mixture();
    let (packets, end) = trace.ended().events();
    assert_eq!((packets.len(), end.reason.as_str()), (3, "as many packets as were asked for"));
    assert!(packets.iter().all(|packet| packet.bytes.len() == 40 && packet.length > 20));
    let (_, end) = Trace::start(&cluster.a, "--seconds 1 --output json", Stdio::piped()).ended().events();
    assert_eq!(end.reason, "the time is over");

    for (filter, complaint) in [
        ("--pod nobody", "no pod is called `nobody`; see `podwire pods list`"),
        ("--peer nobody", "no peer is called `nobody`; see `podwire status`"),
        ("--verdict lost", "no verdict is called `lost`"),
    ] {
        let refused = cluster.a.try_cli(&format!("trace {filter}"));
        assert_eq!(refused.status.code(), Some(1), "{filter}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(complaint), "{refused:?}");
    }
}

/// Has node `a` drop packets, for signalled congestion that they do not support, until `seen` has one.
fn lose_packets(cluster: &Cluster, number: usize) {
    let (socket, pod) = (to_vtep(cluster, &cluster.c.host), &cluster.a.pods[0]);
    mark_congested(&socket);
    let packet = datagram_with(cluster, pod, b"sixteen bytes...", etherparse::IpEcn::NotEct);
    for _ in 0..number {
        socket.send(&packet).expect("node a is there");
    }
}

#[test]
fn drops_are_shown_with_their_reason_and_summed_up() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (a, b) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let trace = Trace::start(&cluster.a, "drops --output json --count 2", Stdio::piped());
    settle(&cluster, a, b);
    lose_packets(&cluster, 2);
    let (packets, _) = trace.ended().events();
    for packet in packets {
        let seen = (packet.outcome, packet.verdict.as_str(), packet.side, packet.seen_by.as_str());
        assert_eq!(seen, (Outcome::Dropped, DropReason::EcnIllegal.label(), Side::Wire, "worker"));
        assert_eq!((packet.meaning.as_str(), packet.pod.as_deref()), (DropReason::EcnIllegal.help(), Some("a1")));
    }

    let trace = Trace::start(&cluster.a, "drops --sample 1000", Stdio::piped());
    settle(&cluster, a, b);
    lose_packets(&cluster, 7);
    let ended = {
        assert!(wait_until(Duration::from_secs(5), || dropped(&cluster) >= 9), "all are dropped");
        trace.finish()
    };
    let lines: Vec<_> = ended.stdout.lines().collect();
    let shown = lines.iter().filter(|line| line.contains("dropped by worker: ecn_illegal")).count();
    assert_eq!(shown, 1, "one of a thousand: {ended:?}");
    let summed = lines.iter().find(|line| line.starts_with("worker ecn_illegal")).expect("a sum");
    assert!(summed.split_whitespace().any(|word| word == "7"), "the sum leaves none out: {summed}");
}

fn dropped(cluster: &Cluster) -> u64 {
    cluster.a.worker().drops[DropReason::EcnIllegal.label()]
}

#[test]
fn one_trace_at_a_time_and_a_killed_one_leaves_nothing_on() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let mut first = Trace::start(&cluster.a, "", Stdio::null());
    let second = cluster.a.try_cli("trace --count 1");
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("a trace runs already"), "{second:?}");
    first.client.kill().expect("our child");
    first.client.wait().expect("our child");
    let free = wait_until(Duration::from_secs(5), || cluster.a.try_cli("trace --seconds 1").status.success());
    assert!(free, "the first one is still on");
}

#[test]
fn a_client_that_does_not_read_loses_packets_of_the_trace_and_none_of_the_pods() {
    let Some(cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let (from, to) = (&cluster.a.pods[0], &cluster.b.pods[0]);
    let file = cluster.prefix.dir().join("flood.pcapng");
    let trace = Trace::start(&cluster.a, &format!("--write {}", file.display()), Stdio::null());
    settle(&cluster, from, to);
    signal(&trace.client, libc::SIGSTOP);
    iperf3(from, to, to.v4.into(), 2, "-u -b 40M -l 200");
    let before = cluster.a.carried();
    assert!(pings(from, to.v4.into(), ""), "the pods go on");
    let carried = cluster.a.carried().since(before);
    assert!(carried.fast >= 1 && carried.kernel == 0, "by the fast path: {carried:?}");
    signal(&trace.client, libc::SIGCONT);
    let ended = trace.finish();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lost = ended.lost();
    assert!(lost > 1000, "{ended:?}");
    let told: u64 = tshark(&file, &["frame.drop_count"]).iter().filter_map(|row| row[0].parse::<u64>().ok()).sum();
    assert!(told <= lost, "{told} of {lost}");
    super::assert_ledgers_balance(&cluster);
}

#[test]
fn a_trace_ends_with_a_word_when_the_data_plane_goes() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let trace = Trace::start(&cluster.a, "--output json", Stdio::piped());
    cluster.a.set_options(Options::BUSY);
    let (_, end) = trace.ended().events();
    assert_eq!(end.reason, "the data plane was stopped or started again");
    let trace = Trace::start(&cluster.a, "--output json", Stdio::piped());
    cluster.a.stop();
    let (_, end) = trace.ended().events();
    assert_eq!(end.reason, "the data plane was stopped or started again");
    cluster.a.launch();
    let trace = Trace::start(&cluster.a, "--output json", Stdio::piped());
    cluster.a.kill();
    let ended = trace.ended();
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("the trace broke off: the daemon has ended"), "{ended:?}");
}
