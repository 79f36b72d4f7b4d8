//! Streams at a constant rate between pods, of numbered datagrams, and what became of each.
//!
//! The machine that carries the packets also runs the senders and receivers, and makes each of them wait for a CPU now
//! and then. So that this is not taken for the network's doing, arrivals are timed by the pod's kernel
//! (`SO_TIMESTAMPNS`), and a sender notes when it sent: its own silences are taken off a gap.

use std::io;
use std::mem;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

use super::site::Pod;

/// Datagrams a second of each stream.
pub const RATE: u64 = 20_000;

/// Where every pod listens.
pub(super) const PORT: u16 = 7020;

/// A sender wakes up this often at that rate.
const TICK_NS: u64 = 500_000;

/// Datagrams of a tick.
const BATCH: usize = (RATE * TICK_NS / 1_000_000_000) as usize;

/// How often a receiver empties its socket: the arrivals were timed before.
const DRAIN: Duration = Duration::from_millis(4);

/// How long the last datagrams may be on their way.
pub(super) const LINGER: Duration = Duration::from_millis(300);

/// Room for a second and more of a stream, in the kernel's bookkeeping.
const RECEIVE_BUFFER: libc::c_int = 32 << 20;

const MAGIC: [u8; 8] = *b"podwires";

/// Bytes of a datagram: the magic, the stream, the number.
const BYTES: usize = 8 + 8 + 8;

/// One direction.
#[derive(Clone, Copy)]
pub struct Flow<'a> {
    pub from: &'a Pod,
    pub to: &'a Pod,
    pub address: IpAddr,
}

impl<'a> Flow<'a> {
    /// The flow to a pod's IPv4 address.
    pub fn v4(from: &'a Pod, to: &'a Pod) -> Self {
        Self { from, to, address: to.v4.into() }
    }

    /// The flow to a pod's IPv6 address.
    pub fn v6(from: &'a Pod, to: &'a Pod) -> Self {
        Self { from, to, address: to.v6.into() }
    }
}

/// What became of a stream.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Delivery {
    pub sent: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Arrived after a later one (RFC 4737).
    pub reordered: u64,
    /// The longest time between two arrivals,
    pub longest_gap_ms: f64,
    /// and the same with the longest silence of the sender in that time taken off.
    pub network_gap_ms: f64,
    /// The longest time between two sends.
    pub sender_gap_ms: f64,
}

/// What became of all streams.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Deliveries {
    /// In the order of the flows.
    pub streams: Vec<Delivery>,
    /// Datagrams that any pod saw and that were not for it.
    pub misdelivered: u64,
}

/// Streams in all `flows` while `event` happens. All of `pods`, the receivers among them, listen for what is not theirs.
pub fn stream_during(flows: &[Flow<'_>], pods: &[&Pod], event: impl FnOnce()) -> Deliveries {
    stream_at(RATE, flows, pods, event)
}

/// The same with another number of datagrams a second of each stream.
pub fn stream_at(rate: u64, flows: &[Flow<'_>], pods: &[&Pod], event: impl FnOnce()) -> Deliveries {
    let tick_ns = BATCH as u64 * 1_000_000_000 / rate;
    let taps: Vec<_> = pods.iter().map(|pod| Tap::open(pod)).collect();
    let receivers: Vec<_> = flows.iter().map(|flow| Receiver::bind(flow, PORT)).collect();
    let (sending, receiving) = (AtomicBool::new(true), AtomicBool::new(true));
    thread::scope(|scope| {
        let arrivals: Vec<_> = receivers.iter().map(|receiver| scope.spawn(|| receiver.run(&receiving))).collect();
        let sends: Vec<_> = (0u64..)
            .zip(flows)
            .map(|(stream, flow)| {
                let sending = &sending;
                let socket = open(flow.from, flow.from.address_like(flow.address), 0);
                scope.spawn(move || send(&socket, SocketAddr::new(flow.address, PORT), stream, tick_ns, sending))
            })
            .collect();
        // Also when the event panics, so that the scope can end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(event));
        sending.store(false, Ordering::Relaxed);
        let sends: Vec<_> = sends.into_iter().map(|thread| thread.join().expect("a sender")).collect();
        thread::sleep(LINGER);
        receiving.store(false, Ordering::Relaxed);
        let arrivals: Vec<_> = arrivals.into_iter().map(|thread| thread.join().expect("a receiver")).collect();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        let mut deliveries = Deliveries::default();
        for ((stream, sends), arrivals) in (0u64..).zip(&sends).zip(arrivals) {
            let (own, foreign): (Vec<_>, Vec<_>) = arrivals.into_iter().partition(|arrival| arrival.stream == stream);
            deliveries.streams.push(judge(sends, &own, tick_ns));
            deliveries.misdelivered += foreign.len() as u64;
        }
        deliveries.misdelivered += taps.iter().map(Tap::count).sum::<u64>();
        deliveries
    })
}

/// When each datagram was sent.
pub(super) type Sends = Vec<u64>;

#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    stream: u64,
    number: u64,
    at_ns: u64,
}

/// Compares what was sent with what arrived, in the order of arrival.
pub(super) fn judge(sends: &[u64], arrivals: &[Arrival], tick_ns: u64) -> Delivery {
    let mut seen = vec![false; sends.len()];
    let (mut duplicated, mut reordered, mut next) = (0, 0, 0);
    for arrival in arrivals {
        let index = usize::try_from(arrival.number).expect("numbers of this run");
        duplicated += u64::from(mem::replace(&mut seen[index], true));
        reordered += u64::from(arrival.number < next);
        next = next.max(arrival.number + 1);
    }
    let mut times: Vec<_> = arrivals.iter().map(|arrival| arrival.at_ns).chain(sends.last().copied()).collect();
    times.sort_unstable();
    let gaps =
        || [sends.first().copied()].into_iter().flatten().chain(times.iter().copied()).zip(times.iter().copied());
    let network = gaps()
        .map(|(from, to)| to.saturating_sub(from) - silence(sends, from, to, tick_ns).min(to.saturating_sub(from)));
    Delivery {
        sent: sends.len() as u64,
        lost: seen.iter().filter(|seen| !**seen).count() as u64,
        duplicated,
        reordered,
        longest_gap_ms: milliseconds(gaps().map(|(from, to)| to.saturating_sub(from)).max()),
        network_gap_ms: milliseconds(network.max()),
        sender_gap_ms: milliseconds(sends.windows(2).map(|pair| pair[1] - pair[0]).max()),
    }
}

/// By how much the sender's longest silence between two times was longer than it should have been.
fn silence(sends: &[u64], from: u64, to: u64, tick_ns: u64) -> u64 {
    // From the last that was sent before to the first that was sent after.
    let first = sends.partition_point(|&sent| sent <= from).saturating_sub(1);
    let end = (sends.partition_point(|&sent| sent < to) + 1).min(sends.len());
    let within = sends.get(first..end).unwrap_or_default();
    let pauses = within.windows(2).map(|pair| pair[1].min(to).saturating_sub(pair[0].max(from)));
    pauses.max().unwrap_or(0).saturating_sub(tick_ns)
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds for people")]
fn milliseconds(ns: Option<u64>) -> f64 {
    (ns.unwrap_or(0) as f64 / 1e4).round() / 100.0
}

/// Sends until told to stop. After a silence it goes on at its rate: it does not catch up.
fn send(socket: &UdpSocket, to: SocketAddr, stream: u64, tick_ns: u64, sending: &AtomicBool) -> Sends {
    prefer();
    let mut payloads = [[0u8; BYTES]; BATCH];
    let to = Address::of(to);
    let mut sends = Sends::new();
    let mut due_ns = now_ns(ClockId::CLOCK_MONOTONIC);
    while sending.load(Ordering::Relaxed) {
        sleep_until(due_ns);
        due_ns = (due_ns + tick_ns).max(now_ns(ClockId::CLOCK_MONOTONIC));
        for payload in &mut payloads {
            *payload = number(stream, sends.len() as u64);
            sends.push(now_ns(ClockId::CLOCK_REALTIME));
        }
        to.send_all(socket, &mut payloads);
    }
    sends
}

/// The datagram of a stream with a number.
pub(super) fn number(stream: u64, number: u64) -> [u8; BYTES] {
    let mut payload = [0; BYTES];
    payload[..8].copy_from_slice(&MAGIC);
    payload[8..16].copy_from_slice(&stream.to_be_bytes());
    payload[16..].copy_from_slice(&number.to_be_bytes());
    payload
}

/// A destination as the kernel wants it.
struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Address {
    fn of(address: SocketAddr) -> Self {
        // SAFETY: all-zero bytes are a valid address structure.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let at: *mut libc::sockaddr_storage = &raw mut storage;
        let len = match address {
            SocketAddr::V4(v4) => {
                // SAFETY: the storage has room and alignment for every address structure.
                let to = unsafe { &mut *at.cast::<libc::sockaddr_in>() };
                to.sin_family = libc::sa_family_t::try_from(libc::AF_INET).expect("small");
                to.sin_port = v4.port().to_be();
                to.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                // SAFETY: as above.
                let to = unsafe { &mut *at.cast::<libc::sockaddr_in6>() };
                to.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).expect("small");
                to.sin6_port = v6.port().to_be();
                to.sin6_addr.s6_addr = v6.ip().octets();
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        Self { storage, len: libc::socklen_t::try_from(len).expect("small") }
    }

    /// Sends all in one call. What the kernel refuses is lost.
    fn send_all(&self, socket: &UdpSocket, payloads: &mut [[u8; BYTES]; BATCH]) {
        let mut parts = payloads.each_mut().map(|p| libc::iovec { iov_base: p.as_mut_ptr().cast(), iov_len: BYTES });
        // SAFETY: all-zero bytes are valid message headers.
        let mut messages: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for (message, part) in messages.iter_mut().zip(&mut parts) {
            message.msg_hdr.msg_name = (&raw const self.storage).cast_mut().cast();
            message.msg_hdr.msg_namelen = self.len;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let count = libc::c_uint::try_from(BATCH).expect("small");
        // SAFETY: the headers point at the address and the payloads, which outlive the call.
        unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
    }
}

/// The socket of a flow's destination.
pub(super) struct Receiver(UdpSocket);

impl Receiver {
    pub fn bind(flow: &Flow<'_>, port: u16) -> Self {
        let socket = open(flow.to, flow.address, port);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BUFFER);
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1);
        socket.set_nonblocking(true).expect("a socket");
        Self(socket)
    }

    pub fn run(&self, receiving: &AtomicBool) -> Vec<Arrival> {
        let mut arrivals = Vec::with_capacity(1 << 20);
        let mut last = false;
        while !last {
            last = !receiving.load(Ordering::Relaxed);
            thread::sleep(DRAIN);
            while let Some(arrival) = self.receive() {
                arrivals.push(arrival);
            }
        }
        arrivals
    }

    /// Takes the next datagram out of the socket, if there is one.
    fn receive(&self) -> Option<Arrival> {
        let mut payload = [0u8; BYTES];
        let mut part = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: BYTES };
        let mut control = [0u64; 8];
        // SAFETY: all-zero bytes are a valid message header.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = mem::size_of_val(&control);
        // SAFETY: the header points at buffers of the lengths that it says, which outlive the call.
        let len = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) };
        if usize::try_from(len).ok()? != BYTES || payload[..8] != MAGIC {
            return None;
        }
        // SAFETY: the kernel has written the control messages of a valid header.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        assert!(!header.is_null(), "the kernel times arrivals");
        // SAFETY: the header was just checked.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: the only control message asked for is a time.
        let time: libc::timespec = unsafe { data.cast::<libc::timespec>().read_unaligned() };
        let number = |at: usize| u64::from_be_bytes(payload[at..at + 8].try_into().expect("8 bytes"));
        Some(Arrival { stream: number(8), number: number(16), at_ns: nanoseconds(time.into()) })
    }
}

/// A tap on a pod's device for streams that are not to one of its addresses, which its own stack would not tell of.
struct Tap(OwnedFd);

impl Tap {
    fn open(pod: &Pod) -> Self {
        pod.netns.within(|| {
            let protocol = libc::c_int::from(u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be());
            // SAFETY: plain system call.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, protocol) };
            assert!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
            // SAFETY: nobody else owns the new descriptor.
            let tap = Self(unsafe { OwnedFd::from_raw_fd(fd) });
            let mut code = foreign_streams(pod);
            let program =
                libc::sock_fprog { len: u16::try_from(code.len()).expect("short"), filter: code.as_mut_ptr() };
            set_option(&tap.0, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program);
            set_option(&tap.0, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1);
            // What came before the filter was there.
            tap.count();
            tap
        })
    }

    /// How many frames it has seen since the last time.
    fn count(&self) -> u64 {
        let mut frame = [0u8; 64];
        let mut count = 0;
        // SAFETY: the buffer has the length that it is given with.
        while unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) } >= 0 {
            count += 1;
        }
        count
    }
}

/// A filter for frames with a datagram to [`PORT`] at an address that is not the pod's.
fn foreign_streams(pod: &Pod) -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_ABS;
    const WORD: u32 = LOAD | libc::BPF_W;
    const HALF: u32 = LOAD | libc::BPF_H;
    const BYTE: u32 = LOAD | libc::BPF_B;
    const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let op = |code: u32, jt: u8, jf: u8, k: u32| {
        let code = u16::try_from(code).expect("16 bits");
        libc::sock_filter { code, jt, jf, k }
    };
    let port = u32::from(PORT);
    let words: Vec<_> = pod.v6.octets().chunks_exact(4).map(|w| u32::from_be_bytes([w[0], w[1], w[2], w[3]])).collect();
    vec![
        op(HALF, 0, 0, 12),
        op(IF_EQUAL, 0, 6, 0x0800),
        op(BYTE, 0, 0, 23),
        op(IF_EQUAL, 0, 17, 17),
        op(HALF, 0, 0, 36),
        op(IF_EQUAL, 0, 15, port),
        op(WORD, 0, 0, 30),
        op(IF_EQUAL, 13, 14, u32::from(pod.v4)),
        // Not IPv4.
        op(IF_EQUAL, 0, 12, 0x86dd),
        op(BYTE, 0, 0, 20),
        op(IF_EQUAL, 0, 10, 17),
        op(HALF, 0, 0, 56),
        op(IF_EQUAL, 0, 8, port),
        op(WORD, 0, 0, 38),
        op(IF_EQUAL, 0, 7, words[0]),
        op(WORD, 0, 0, 42),
        op(IF_EQUAL, 0, 5, words[1]),
        op(WORD, 0, 0, 46),
        op(IF_EQUAL, 0, 3, words[2]),
        op(WORD, 0, 0, 50),
        op(IF_EQUAL, 0, 1, words[3]),
        op(RETURN, 0, 0, 0),
        op(RETURN, 0, 0, 64),
    ]
}

pub(super) fn open(pod: &Pod, address: IpAddr, port: u16) -> UdpSocket {
    pod.netns.within(|| UdpSocket::bind((address, port))).expect("bind in the pod")
}

fn set_option<T>(socket: &impl AsRawFd, level: libc::c_int, name: libc::c_int, value: &T) {
    let len = libc::socklen_t::try_from(mem::size_of::<T>()).expect("small");
    // SAFETY: the value is a live structure of the length that is given.
    let refused = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), len) };
    assert_eq!(refused, 0, "socket option {level}/{name}: {}", io::Error::last_os_error());
}

/// Has the calling thread run before others, as far as it may: its pauses would pass for the network's.
fn prefer() {
    let _unprivileged = rustix::process::setpriority_process(None, -15);
}

pub(super) fn now_ns(clock: ClockId) -> u64 {
    nanoseconds(clock_gettime(clock).expect("every Linux has it"))
}

fn nanoseconds(time: TimeSpec) -> u64 {
    u64::try_from(Duration::from(time).as_nanos()).expect("a time of this century")
}

fn sleep_until(at_ns: u64) {
    let at = TimeSpec::from_duration(Duration::from_nanos(at_ns));
    let _interrupted = clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at);
}

#[test]
fn a_stream_is_judged_by_what_arrives_and_when() {
    const MS: u64 = 1_000_000;
    let sends: Vec<_> = (0..100).map(|n| n * MS / 2).collect();
    let arrival = |number: u64, at_ns: u64| Arrival { stream: 0, number, at_ns };
    let on_time = |number: u64| arrival(number, sends[usize::try_from(number).unwrap()] + 1000);
    let all: Vec<_> = (0..100).map(on_time).collect();
    let whole = judge(&sends, &all, TICK_NS);
    assert_eq!((whole.sent, whole.lost, whole.duplicated, whole.reordered), (100, 0, 0, 0));
    assert!((whole.longest_gap_ms - 0.5).abs() < 0.01, "{whole:?}");
    // 20 to 29 are lost, 40 comes twice, 60 after 61.
    let mut broken: Vec<_> = all.iter().copied().filter(|a| !(20..30).contains(&a.number)).collect();
    broken.insert(31, broken[30]);
    broken.swap(51, 52);
    let judged = judge(&sends, &broken, TICK_NS);
    assert_eq!((judged.lost, judged.duplicated, judged.reordered), (10, 1, 2), "{judged:?}");
    assert!((judged.longest_gap_ms - 5.5).abs() < 0.01, "{judged:?}");
    assert!((judged.network_gap_ms - 5.5).abs() < 0.01, "{judged:?}");
    // Nothing after the 50th: the gap lasts until the last send.
    assert!((judge(&sends, &all[..50], TICK_NS).longest_gap_ms - 25.0).abs() < 0.01);
}

#[test]
fn a_senders_silence_is_not_the_networks() {
    const MS: u64 = 1_000_000;
    let at = |n: u64| if n < 50 { n * MS } else { n * MS + 30 * MS };
    let sends: Vec<_> = (0..100).map(at).collect();
    let arrivals: Vec<_> = (0..100).map(|number| Arrival { stream: 0, number, at_ns: at(number) + 1000 }).collect();
    let judged = judge(&sends, &arrivals, TICK_NS);
    assert!((judged.longest_gap_ms - 31.0).abs() < 0.01 && (judged.sender_gap_ms - 31.0).abs() < 0.01, "{judged:?}");
    assert!(judged.network_gap_ms <= 1.0, "{judged:?}");
    // The network is silent for 10 ms more.
    let cut: Vec<_> = arrivals.into_iter().filter(|a| !(50..60).contains(&a.number)).collect();
    let judged = judge(&sends, &cut, TICK_NS);
    assert!((judged.network_gap_ms - 10.5).abs() < 0.01, "{judged:?}");
}

#[test]
fn a_datagram_at_the_wrong_pod_is_noticed() {
    if !super::is_root() {
        return;
    }
    let prefix = super::Prefix::fresh();
    let [from, wrong, right] = ["from", "wrong", "right"].map(|name| prefix.netns(name));
    from.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", wrong.name()));
    let pods = [(&from, 1), (&wrong, 2), (&right, 3)].map(|(netns, last)| {
        netns.skip_dad();
        let (v4, v6) = (format!("10.0.0.{last}"), format!("fd00::{last}"));
        let device = if last == 3 { "lo" } else { "eth0" };
        netns.run_all([
            format!("ip link set {device} up"),
            format!("ip address add {v4}/24 dev {device}"),
            format!("ip address add {v6}/64 dev {device} nodad"),
        ]);
        let (v4, v6) = (v4.parse().expect("IPv4"), v6.parse().expect("IPv6"));
        Pod { name: format!("pod{last}"), netns: netns.clone(), v4, v6 }
    });
    let [from, wrong, right] = &pods;
    // Whoever has the address, his frames go to the wrong one.
    let mac = wrong.netns.mac("eth0");
    for address in right.addresses() {
        from.netns.run(&format!("ip neigh add {address} lladdr {mac} dev eth0"));
    }
    let second = || thread::sleep(Duration::from_millis(100));
    for address in right.addresses() {
        let strays = stream_during(&[Flow { from, to: right, address }], &[wrong], second);
        assert!(strays.misdelivered > 100 && strays.streams[0].lost == strays.streams[0].sent, "{strays:?}");
    }
    for address in wrong.addresses() {
        let whole = stream_during(&[Flow { from, to: wrong, address }], &[wrong], second);
        assert!(whole.misdelivered == 0 && whole.streams[0].lost == 0, "{whole:?}");
    }
}
