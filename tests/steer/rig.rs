//! Loaded programs with a node around them, and test runs of single frames (`BPF_PROG_TEST_RUN`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libbpf_rs::libbpf_sys;
use podwire::fib::LocalPod;
use podwire::ids::{IfIndex, PodId, QueueId, WorkerId};
use podwire::shared::Heartbeat;
use podwire::steer::{NatCheck, Outcome, Pins, PodPath, Program, Steer, SteerConfig, Tunnel, Verdict};
use podwire::wire::{Mac, Vni};

use crate::packets::{
    GATEWAY_MAC, NIC_MAC, PEER_MAC, POD_A, POD_A_MAC, POD_B, POD_B_MAC, REMOTE_RANGE, VTEP, VTEP_MAC,
};

pub const MTU: u16 = 1450;
pub const SLOTS: u64 = 1 << 40;
pub const STALE_NS: u64 = 10_000_000_000;
/// Test runs come from the loopback device unless told otherwise.
pub const POD_A_IFINDEX: IfIndex = IfIndex(1);
pub const POD_B_IFINDEX: IfIndex = IfIndex(999_999);

/// Test runs come from its device too.
pub const TUNNEL: Tunnel = Tunnel { device: IfIndex(1), peer_mac: PEER_MAC, own_mac: VTEP_MAC };

/// Whether tests of the kernel can run; says so when they cannot.
pub fn is_root() -> bool {
    // SAFETY: takes and touches nothing.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        println!("skipped: needs root");
    }
    root
}

pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours to write.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) }, 0);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

pub fn config(family: usize) -> SteerConfig {
    SteerConfig {
        vtep: VTEP[family],
        vtep_mac: VTEP_MAC,
        second: None,
        port: 8472,
        vni: Vni::new(1).unwrap(),
        max_frame: 2048,
        max_packet: 9000,
        pod_mtu: u32::from(MTU),
        workers: 1,
        rings: 1,
        stale_ns: STALE_NS,
        slots: SLOTS,
        bulk_bytes: 0,
        wake_ns: 0,
        hub: IfIndex(1),
        nat: NatCheck::None,
        uplink_mac: NIC_MAC,
        known_vteps_only: false,
        takes_bare: true,
        leaves_tcp: false,
    }
}

/// How many frames `program` has given `verdict`.
pub fn counted(steer: &Steer, program: Program, verdict: Verdict) -> u64 {
    let verdicts = steer.verdicts().unwrap();
    verdicts.into_iter().find(|&(by, v, _)| by == program && v == verdict).map_or(0, |(.., frames)| frames)
}

/// Waits until `program` has given `verdict` to so many frames.
#[track_caller]
pub fn expect(steer: &Steer, program: Program, verdict: Verdict, frames: u64) {
    let end = Instant::now() + Duration::from_secs(2);
    while counted(steer, program, verdict) != frames && Instant::now() < end {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(counted(steer, program, verdict), frames, "{verdict:?} in {:?}", steer.verdicts());
}

pub fn pod(id: u16, ifindex: IfIndex, mac: Mac) -> LocalPod {
    LocalPod { id: PodId::new(id).unwrap(), ifindex, mac, gateway_mac: GATEWAY_MAC }
}

/// Pins of no namespace, which are removed when this is dropped.
pub struct Scratch(u64);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // namespaces are counted from 1
        Self(1 << 63 | u64::from(std::process::id()) << 24 | NEXT.fetch_add(1, Ordering::Relaxed))
    }

    pub fn pins(&self) -> Pins {
        Pins::open(self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        Pins::find(self.0).map(Pins::remove);
    }
}

/// Programs of a node with pods A and B, one remote range for each family, and one worker with a socket on queue 0.
pub struct Rig {
    pub steer: Steer,
    pub heartbeat: Heartbeat,
    socket: Option<OwnedFd>,
    _scratch: Scratch,
}

/// What came out of a test run.
pub struct Ran {
    pub code: i32,
    pub frame: Vec<u8>,
}

impl Rig {
    pub fn new(underlay: usize) -> Self {
        let scratch = Scratch::new();
        let steer = Steer::load(&config(underlay), scratch.pins()).unwrap();
        for family in 0..2 {
            steer.add_local(POD_A[family], &pod(1, POD_A_IFINDEX, POD_A_MAC), PodPath::Fast).unwrap();
            steer.add_local(POD_B[family], &pod(2, POD_B_IFINDEX, POD_B_MAC), PodPath::Fast).unwrap();
            steer.add_remote(REMOTE_RANGE[family].parse().unwrap(), MTU, None).unwrap();
        }
        let heartbeat = steer.heartbeat(WorkerId(0)).unwrap();
        heartbeat.beat(now_ns());
        let mut rig = Self { steer, heartbeat, socket: None, _scratch: scratch };
        rig.register_socket(WorkerId(0));
        rig
    }

    /// Puts a new socket of `worker` on queue 0, where test runs arrive.
    pub fn register_socket(&mut self, worker: WorkerId) {
        let socket = xdp_socket().unwrap();
        self.steer.register_queue(QueueId(0), worker, socket.as_fd()).unwrap();
        self.socket = Some(socket);
    }

    pub fn close_socket(&mut self) {
        self.socket = None;
    }

    pub fn counts(&self) -> Vec<u64> {
        self.steer.verdicts().unwrap().into_iter().map(|(_, _, frames)| frames).collect()
    }

    /// Runs one frame and says which verdict was counted, having checked that it was one.
    pub fn judge(&self, program: Program, frame: &[u8], gso_size: u32) -> (Verdict, Ran) {
        self.judge_by(self.steer.program_fd(program), program, frame, (program != Program::Nic).then_some(gso_size))
    }

    /// The same by a program that counts as `program`; with a `gso_size`, 0 for none, it is one of tc.
    fn judge_by(&self, fd: BorrowedFd<'_>, program: Program, frame: &[u8], gso_size: Option<u32>) -> (Verdict, Ran) {
        let before = self.counts();
        let ran = run(fd, frame, gso_size).unwrap();
        let after = self.steer.verdicts().unwrap();
        let mut counted = after.iter().zip(before).filter(|((.., now), then)| now != then);
        let (&(by, verdict, now), then) = counted.next().expect("every frame has a verdict");
        assert!(counted.next().is_none() && now == then + 1 && by == program, "one verdict a frame");
        (verdict, ran)
    }

    /// A frame from the wire, of which it does not matter whether there is XDP.
    pub fn nic(&self, frame: &[u8]) -> Verdict {
        let verdict = self.nic_xdp(frame);
        // the least that a test run takes as an skb (net/bpf/test_run.c)
        if frame.len() >= 54 {
            assert_eq!(self.nic_tc(frame, 0), verdict, "the same without XDP");
        }
        verdict
    }

    pub fn nic_xdp(&self, frame: &[u8]) -> Verdict {
        const XDP_DROP: i32 = 1;
        const XDP_PASS: i32 = 2;
        const XDP_REDIRECT: i32 = 4;
        let (verdict, ran) = self.judge(Program::Nic, frame, 0);
        let code = match verdict.outcome() {
            Outcome::Fast => XDP_REDIRECT,
            Outcome::Kernel => XDP_PASS,
            Outcome::Dropped => XDP_DROP,
        };
        assert_eq!(ran.code, code, "{verdict:?}");
        assert_eq!(ran.frame, frame, "nic_steer changes nothing");
        verdict
    }

    /// A frame from the wire where there is no XDP.
    pub fn nic_tc(&self, frame: &[u8], gso_size: u32) -> Verdict {
        let (verdict, ran) = self.judge_by(self.steer.uplink_tc_fd(), Program::Nic, frame, Some(gso_size));
        assert_eq!(ran.code, tcx_code(verdict), "{verdict:?}");
        assert_eq!(ran.frame, frame, "nic_steer_tc changes nothing");
        verdict
    }

    pub fn pod(&self, frame: &[u8]) -> Verdict {
        self.pod_gso(frame, 0).0
    }

    pub fn pod_gso(&self, frame: &[u8], gso_size: u32) -> (Verdict, Vec<u8>) {
        let (verdict, ran) = self.judge(Program::Pod, frame, gso_size);
        assert_eq!(ran.code, tcx_code(verdict), "{verdict:?}");
        if !matches!(verdict, Verdict::Local | Verdict::Bypass) {
            assert_eq!(ran.frame, frame, "only a frame that goes on from here is changed");
        }
        (verdict, ran.frame)
    }

    /// A frame from the device of [`TUNNEL`].
    pub fn tunnel(&self, frame: &[u8], gso_size: u32) -> (Verdict, Vec<u8>) {
        let (verdict, ran) = self.judge(Program::Tunnel, frame, gso_size);
        assert_eq!(ran.code, tcx_code(verdict), "{verdict:?}");
        if verdict != Verdict::Bypass {
            assert_eq!(ran.frame, frame, "only a frame that goes on from here is changed");
        }
        (verdict, ran.frame)
    }

    /// Says that the remote pods are reached by [`TUNNEL`].
    pub fn lead_by_tunnel(&self) {
        for range in REMOTE_RANGE {
            self.steer.add_remote(range.parse().unwrap(), MTU, Some(TUNNEL)).unwrap();
        }
    }
}

fn tcx_code(verdict: Verdict) -> i32 {
    const TCX_NEXT: i32 = -1;
    const TCX_DROP: i32 = 2;
    const TCX_REDIRECT: i32 = 7;
    match verdict.outcome() {
        Outcome::Fast => TCX_REDIRECT,
        Outcome::Kernel => TCX_NEXT,
        Outcome::Dropped => TCX_DROP,
    }
}

/// An AF_XDP socket with a receive ring, which is all that an XSKMAP asks for (net/xdp/xskmap.c).
pub fn xdp_socket() -> io::Result<OwnedFd> {
    // SAFETY: touches no memory of ours.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let entries: u32 = 64;
    // SAFETY: the option is four bytes, read from `entries`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_RX_RING, (&raw const entries).cast(), 4)
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

/// The fields of `struct __sk_buff` that a test run takes, at their offsets (include/uapi/linux/bpf.h).
fn sk_buff(gso_size: u32) -> [u8; 184] {
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 184];
    if gso_size != 0 {
        context[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&2_u32.to_ne_bytes());
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_ne_bytes());
    }
    context
}

/// Runs `frame` through a program once; one of tc where there is a `gso_size`.
pub fn run(fd: BorrowedFd<'_>, frame: &[u8], gso_size: Option<u32>) -> io::Result<Ran> {
    let mut out = vec![0; frame.len()];
    let context = sk_buff(gso_size.unwrap_or(0));
    let length = u32::try_from(frame.len()).unwrap();
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: length,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: length,
        ..Default::default()
    };
    if gso_size.is_some() {
        options.ctx_in = context.as_ptr().cast();
        options.ctx_size_in = 184;
    }
    // SAFETY: every pointer is to memory of the length given with it, alive through the call.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd.as_raw_fd(), &raw mut options) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    out.truncate(usize::try_from(options.data_size_out).unwrap());
    Ok(Ran { code: options.retval.cast_signed(), frame: out })
}

/// Makes every call of bpf(2) with `command` fail with `errno` in the calling thread, for the rest of its life.
pub fn refuse(command: u32, errno: i32) {
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    let mut steps = [
        step(LOAD, 0, NUMBER),
        step(IF_EQUAL, 3, u32::try_from(libc::SYS_bpf).unwrap()),
        step(LOAD, 0, FIRST_ARGUMENT),
        step(IF_EQUAL, 1, command),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 6, filter: steps.as_mut_ptr() };
    // SAFETY: `program` describes `steps`; both outlive the call, which reads them only.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
