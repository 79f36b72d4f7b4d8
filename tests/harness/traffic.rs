//! Traffic between pods, and what the receivers make of it.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use hdrhistogram::Histogram;
use podwire::latency::{MIN_BYTES, reflect};
use serde_json::Value;

use super::netns::Netns;
use super::on_core;
use super::site::Pod;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// For round trips: up to ten seconds in nanoseconds, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("these bounds are valid")
}

/// Polls until `done` or the time is over; says which.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends one echo request with `options` of `ping`; true when an answer came.
pub fn pings(from: &Pod, to: IpAddr, options: &str) -> bool {
    from.netns.output(&format!("ping -n -q -c 1 -W 2 {options} {to}")).status.success()
}

/// Every ordered pair of pods in both families, as `(from, to, address, answered)`.
pub fn ping_matrix<'a>(pods: &[&'a Pod]) -> Vec<(&'a Pod, &'a Pod, IpAddr, bool)> {
    let mut rows = Vec::new();
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            for address in to.addresses() {
                rows.push((*from, *to, address, pings(from, address, "")));
            }
        }
    }
    rows
}

/// Panics, naming each silent pair, unless all pods reach each other in both families.
#[track_caller]
pub fn assert_all_pairs_talk(pods: &[&Pod]) {
    let silent: Vec<_> = ping_matrix(pods)
        .into_iter()
        .filter(|row| !row.3)
        .map(|(from, to, address, _)| format!("{} -> {} ({address})", from.name, to.name))
        .collect();
    assert!(silent.is_empty(), "no answer: {silent:#?}");
}

/// Bytes that differ from packet to packet and from offset to offset.
fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251 + seed * 7) % 256).expect("below 256")).collect()
}

fn bind(pod: &Pod, address: IpAddr) -> UdpSocket {
    let socket = pod.netns.within(|| UdpSocket::bind((address, 0))).expect("bind in the pod");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// Sends one datagram of each size to `to` and back, checks content, and returns the address that the receiver saw.
pub fn udp_echo(from: &Pod, to: &Pod, destination: IpAddr, sizes: &[usize]) -> io::Result<IpAddr> {
    echo(&bind(from, from.address_like(destination)), &bind(to, destination), sizes)
}

/// As [`udp_echo`], with a source of the kernel's choice.
pub fn udp_echo_unbound(from: &Pod, to: &Pod, destination: IpAddr, sizes: &[usize]) -> io::Result<IpAddr> {
    let any: IpAddr = if destination.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    echo(&bind(from, any), &bind(to, destination), sizes)
}

fn echo(client: &UdpSocket, server: &UdpSocket, sizes: &[usize]) -> io::Result<IpAddr> {
    let mut buffer = vec![0; 65536];
    let mut seen = None;
    for (seed, &size) in sizes.iter().enumerate() {
        let sent = pattern(seed, size);
        client.send_to(&sent, server.local_addr()?)?;
        let (len, source) = server.recv_from(&mut buffer)?;
        assert_eq!(buffer[..len], sent, "the datagram of {size} bytes came changed");
        server.send_to(&buffer[..len], source)?;
        let (len, _) = client.recv_from(&mut buffer)?;
        assert_eq!(buffer[..len], sent, "the answer of {size} bytes came changed");
        assert_eq!(*seen.get_or_insert(source), source, "the source changed between datagrams");
    }
    Ok(seen.expect("at least one size").ip())
}

/// Sends `bytes` from one pod to another over TCP, checks the content, and returns the address that the receiver saw.
pub fn tcp_transfer(from: &Pod, to: &Pod, destination: IpAddr, bytes: usize) -> io::Result<IpAddr> {
    let listener = to.netns.within(|| TcpListener::bind((destination, 0)))?;
    let target = listener.local_addr()?;
    let block = pattern(1, 1 << 16);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> io::Result<()> {
            let mut stream = from.netns.within(|| TcpStream::connect_timeout(&target, PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut left = bytes;
            while left > 0 {
                let now = left.min(block.len());
                stream.write_all(&block[..now])?;
                left -= now;
            }
            Ok(())
        });
        let received = receive(&listener, &block, bytes);
        sender.join().expect("the sender does not panic")?;
        received
    })
}

fn receive(listener: &TcpListener, block: &[u8], bytes: usize) -> io::Result<IpAddr> {
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    wait_until(PATIENCE, || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (mut stream, source): (TcpStream, SocketAddr) =
        accepted.ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "no connection came"))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    loop {
        let len = stream.read(&mut buffer)?;
        if len == 0 {
            break;
        }
        let expected = block.iter().cycle().skip(total % block.len()).take(len);
        assert!(buffer[..len].iter().eq(expected), "the stream was changed after {total} bytes");
        total += len;
    }
    assert_eq!(total, bytes, "the stream ended early");
    Ok(source.ip())
}

/// Calls `ask` with a socket in one pod while a reflector at the address it is given answers in the other.
pub fn with_reflector<T>(
    from: &Pod,
    to: &Pod,
    ask: impl FnOnce(&UdpSocket, SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    with_reflector_on(None, from, to, ask)
}

/// As [`with_reflector`]; who asks and who answers have a core each, if they are to.
pub fn with_reflector_on<T>(
    cores: Option<[usize; 2]>,
    from: &Pod,
    to: &Pod,
    ask: impl FnOnce(&UdpSocket, SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    const DAY: Duration = Duration::from_secs(86_400);
    let [client, server] = [from, to].map(|pod| pod.netns.within(|| UdpSocket::bind((pod.v4, 0))));
    let (client, server) = (client?, server?);
    let (target, ended) = (server.local_addr()?, AtomicBool::new(false));
    thread::scope(|scope| {
        let answer = || reflect(&server, Instant::now() + DAY, &ended);
        scope.spawn(move || cores.map_or_else(answer, |[_, core]| on_core(core, answer)));
        let _ends = EndOnDrop(&ended);
        let ask = || ask(&client, target);
        match cores {
            Some([core, _]) => on_core(core, ask),
            None => ask(),
        }
    })
}

/// Tells the other threads of a scope that it ends, also if it does so by a panic.
pub struct EndOnDrop<'a>(pub &'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks a reflector for `time`, the next time when the answer is there. Returns how many answers did not come within a
/// second, and the others' round trips. An answer that comes later than that is not taken for another one's.
pub fn ping_pong(socket: &UdpSocket, target: SocketAddr, time: Duration) -> io::Result<(u64, Histogram<u64>)> {
    const LIMIT: Duration = Duration::from_secs(1);
    // As `podwire::latency::reflect` takes it for a request.
    let mut request = [0; MIN_BYTES];
    request[..8].copy_from_slice(b"podwire?");
    socket.connect(target)?;
    socket.set_read_timeout(Some(LIMIT))?;
    let (mut lost, mut trips) = (0, histogram());
    let begin = Instant::now();
    for number in 0_u64.. {
        request[NUMBER].copy_from_slice(&number.to_be_bytes());
        let start = Instant::now();
        if start - begin >= time {
            break;
        }
        let is_answered = socket.send(&request).is_ok() && receive_answer(socket, &request[NUMBER]);
        if is_answered {
            trips.saturating_record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        } else {
            lost += 1;
        }
    }
    Ok((lost, trips))
}

/// Where a request has its number.
const NUMBER: Range<usize> = 8..16;

/// Waits for the answer with this number.
fn receive_answer(socket: &UdpSocket, number: &[u8]) -> bool {
    let mut answer = [0; MIN_BYTES];
    while socket.recv(&mut answer).is_ok() {
        if &answer[NUMBER] == number {
            return true;
        }
    }
    false
}

/// What iperf3 measured.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// As received.
    pub bits_per_second: f64,
    pub seconds: f64,
    /// Of datagrams, 0 to 100; 0 for TCP.
    pub lost_percent: f64,
    /// Segments that TCP sent again; 0 for UDP.
    pub retransmits: u64,
    /// CPU seconds of client and server, in user mode and in the kernel.
    pub user_s: f64,
    pub system_s: f64,
}

/// An iperf3 server in a pod, for one measurement.
struct Server(Child);

impl Server {
    fn start(netns: &Netns) -> Self {
        let mut command = netns.command("iperf3");
        let child = command.args(["-s", "-1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self(child.expect("iperf3 starts"));
        let listening = || netns.run("ss -Hltn sport = :5201").contains("5201");
        assert!(wait_until(PATIENCE, listening), "iperf3 does not listen");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Runs iperf3 between two pods for `seconds`, with more `options` (`-u -b 500M`, `-R`).
#[track_caller]
pub fn iperf3(from: &Pod, to: &Pod, destination: IpAddr, seconds: u32, options: &str) -> Throughput {
    try_iperf3(from, to, destination, seconds, options).unwrap_or_else(|error| panic!("{}: {error}", from.name))
}

/// As [`iperf3`]; the error says what became of it.
pub fn try_iperf3(
    from: &Pod,
    to: &Pod,
    destination: IpAddr,
    seconds: u32,
    options: &str,
) -> Result<Throughput, String> {
    let _server = Server::start(&to.netns);
    // It waits without end for the answer of a server that it cannot reach any more.
    let limit = seconds + 15;
    let line =
        format!("timeout -k 1 {limit} iperf3 --json --connect-timeout 3000 -c {destination} -t {seconds} {options}");
    let output = from.netns.output(&line);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let end = &report["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let bits_per_second = sum["bits_per_second"].as_f64().ok_or_else(|| format!("`{line}`: {}", report["error"]))?;
    let seconds = sum["seconds"].as_f64().unwrap_or(f64::from(seconds));
    let cpu_s = |mode: &str| {
        let percent = |end_of_it: &str| end["cpu_utilization_percent"][format!("{end_of_it}_{mode}")].as_f64();
        [percent("host"), percent("remote")].into_iter().flatten().sum::<f64>() / 100.0 * seconds
    };
    Ok(Throughput {
        bits_per_second,
        seconds,
        lost_percent: end["sum"]["lost_percent"].as_f64().unwrap_or(0.0),
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        user_s: cpu_s("user"),
        system_s: cpu_s("system"),
    })
}

/// The routers on the way and the destination, as `traceroute` sees them; `None` where nobody answered.
pub fn traceroute(from: &Pod, to: IpAddr) -> Vec<Option<IpAddr>> {
    let printed = from.netns.run(&format!("traceroute -n -q 1 -w 2 -m 8 {to}"));
    let hop = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    printed.lines().skip(1).map(hop).collect()
}

/// Packets that the namespace's stack threw away for a bad checksum, over all protocols and both families.
pub fn bad_checksums(netns: &Netns) -> u64 {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let (v4, v6) = netns.within(|| (read("snmp"), read("snmp6")));
    snmp_sum(&v4.expect("/proc/net/snmp")) + snmp6_sum(&v6.expect("/proc/net/snmp6"))
}

/// `/proc/net/snmp`: for each protocol a line of names, then a line of values.
fn snmp_sum(text: &str) -> u64 {
    let lines: Vec<_> = text.lines().collect();
    let pairs = lines.chunks_exact(2).flat_map(|pair| pair[0].split_whitespace().zip(pair[1].split_whitespace()));
    pairs
        .filter(|(name, _)| name.contains("InCsumErrors"))
        .map(|(_, value)| value.parse::<u64>().expect("a number"))
        .sum()
}

/// `/proc/net/snmp6`: a name and a value on each line.
fn snmp6_sum(text: &str) -> u64 {
    let lines = text.lines().filter(|line| line.contains("InCsumErrors"));
    lines
        .map(|line| line.split_whitespace().nth(1).and_then(|value| value.parse::<u64>().ok()).expect("a number"))
        .sum()
}

#[test]
fn checksum_errors_of_all_protocols_are_summed() {
    let tcp_and_udp = "Tcp: RtoMin InErrs InCsumErrors\nTcp: 200 5 2\nUdp: InCsumErrors x\nUdp: 3 9\n";
    assert_eq!(snmp_sum(tcp_and_udp), 5);
    assert_eq!(snmp6_sum("Ip6InReceives 7\nIcmp6InCsumErrors 1\nUdp6InCsumErrors 2\n"), 3);
}
