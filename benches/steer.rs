//! What the steering programs take for a packet, by the kernel's own clock: without conntrack's look-ups, with look-ups
//! that find nothing, and with look-ups that find a flow among 10,000; and what a trace adds whose ring is full. Needs root
//! and the tool `conntrack`.
//!
//! `pod_steer` is measured up to the credit, which is refused: a claimed frame is tagged, and could not be judged again.

#[path = "../tests/steer/lab.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod lab;
#[path = "../tests/steer/packets.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod packets;
#[path = "../tests/steer/rig.rs"]
#[allow(dead_code, reason = "shared with the tests, which use all of it")]
mod rig;

use std::os::fd::AsRawFd;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use libbpf_rs::libbpf_sys;
use podwire::steer::{NatCheck, Program, ProgramTap, SteerConfig, Verdict, Verdicts};
use podwire::wire::Mac;

use lab::Lab;
use packets::{
    ETHERNET, GATEWAY_MAC, PEER_MAC, POD_A, POD_A_MAC, REMOTE_POD, V4, V6, VTEP_MAC, encapsulate, ip_header, patched,
    tcp, udp,
};
use rig::{Rig, config, is_root};

/// Flows that conntrack holds.
const FLOWS: u16 = 10_000;

/// The most runs that one call asks for: a signal is heard between calls.
const RUNS: u64 = 1 << 16;

const FROM_A: [Mac; 2] = [POD_A_MAC, GATEWAY_MAC];
const TO_A: [Mac; 2] = [PEER_MAC, VTEP_MAC];

/// Remote ports: of translated flows to the remote pod and from it, of one that is tracked only, and of none.
const ASKED: u16 = 20_000;
const ASKS: u16 = 40_000;
const TRACKED: u16 = 50_000;
const UNKNOWN: u16 = 60_000;
const POD_PORT: u16 = 80;

fn main() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    for family in [V4, V6] {
        fill(&lab, family);
    }
    lab.within(|| {
        let mut criterion = Criterion::default().configure_from_args();
        for (family, name) in [(V4, "IPv4"), (V6, "IPv6")] {
            measure(&mut criterion, family, name);
        }
        criterion.final_summary();
    });
}

/// Gives conntrack [`FLOWS`] of each protocol: half by which pod A asks services, half by which it is asked as one, and
/// one more that is not translated.
fn fill(lab: &Lab, family: usize) {
    let (a, remote) = (POD_A[family], REMOTE_POD[family]);
    let service = ["10.96.0.1", "fd00:96::1"][family];
    let kinds = [("udp", ""), ("tcp", "--state ESTABLISHED -u SEEN_REPLY,ASSURED")];
    let flows = kinds.iter().flat_map(|(protocol, state)| {
        let translated = (0..FLOWS / 2).flat_map(move |n| {
            let (asked, asks) = (ASKED + n, ASKS + n);
            [
                format!(
                    "-p {protocol} -s {a} -d {service} --sport {POD_PORT} --dport {asked} --dst-nat {remote} {state}"
                ),
                format!(
                    "-p {protocol} -s {remote} -d {service} --sport {asks} --dport {POD_PORT} --dst-nat {a} {state}"
                ),
            ]
        });
        translated.chain([format!("-p {protocol} -s {remote} -d {a} --sport {TRACKED} --dport {POD_PORT} {state}")])
    });
    lab.track(&flows.collect::<Vec<_>>());
}

fn measure(criterion: &mut Criterion, family: usize, name: &str) {
    let rig = Rig::new(V4);
    for is_tcp in [true, false] {
        let protocol = if is_tcp { "TCP" } else { "UDP" };
        for (program, label) in [(Program::Nic, "nic_steer"), (Program::Pod, "pod_steer")] {
            let mut group = criterion.benchmark_group(format!("{label} {name} {protocol}"));
            let (claim, slots, translated) =
                if program == Program::Nic { (Verdict::Claimed, rig::SLOTS, ASKED) } else { (Verdict::Quota, 0, ASKS) };
            let rows = [
                ("no look-up", NatCheck::None, UNKNOWN, claim),
                ("not found", NatCheck::Lookup, UNKNOWN, claim),
                ("found, not translated", NatCheck::Lookup, TRACKED, claim),
                ("found, translated", NatCheck::Lookup, translated + FLOWS / 4, Verdict::Nated),
            ];
            for (row, nat, port, expected) in rows {
                rig.steer.set_config(&SteerConfig { nat, slots, ..config(V4) }).expect("the map can be written");
                let frame = frame(program, family, is_tcp, port);
                let (verdict, _) = rig.judge(program, &frame, 0);
                assert_eq!(verdict, expected, "{label} {name} {protocol}: {row}");
                run(&mut group, &rig, program, row, &frame, None);
            }
            rig.steer.set_config(&SteerConfig { slots, ..config(V4) }).expect("the map can be written");
            let tap = rig.steer.tap(Verdicts::such_as(|_, _| true)).expect("the ring can be read");
            run(&mut group, &rig, program, "no look-up, traced", &frame(program, family, is_tcp, UNKNOWN), Some(&tap));
        }
    }
}

/// A packet between pod A and a remote pod's `port`, as the program meets it.
fn frame(program: Program, family: usize, is_tcp: bool, port: u16) -> Vec<u8> {
    let (a, remote) = (POD_A[family], REMOTE_POD[family]);
    let (macs, ends, ports) = if program == Program::Nic {
        (TO_A, [remote, a], [port, POD_PORT])
    } else {
        (FROM_A, [a, remote], [POD_PORT, port])
    };
    let packet = if is_tcp {
        let ports = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
        patched(tcp(macs, ends, &[0; 64]), ETHERNET + ip_header(family), &ports)
    } else {
        udp(macs, ends, ports, &[0; 64])
    };
    if program == Program::Nic { encapsulate(V4, &packet) } else { packet }
}

fn run(
    group: &mut BenchmarkGroup<'_, WallTime>,
    rig: &Rig,
    program: Program,
    row: &str,
    frame: &[u8],
    tap: Option<&ProgramTap>,
) {
    let fd = rig.steer.program_fd(program).as_raw_fd();
    group.bench_function(row, |bencher| {
        bencher.iter_custom(|runs| {
            rig.heartbeat.beat(rig::now_ns());
            if let Some(tap) = tap {
                tap.renew(rig::now_ns());
            }
            let full = (0..runs / RUNS).map(|_| repeat(fd, frame, RUNS));
            full.chain([repeat(fd, frame, runs % RUNS)]).sum()
        });
    });
}

/// Runs a program `times` on `frame`; returns the time that all took.
fn repeat(fd: i32, frame: &[u8], times: u64) -> Duration {
    if times == 0 {
        return Duration::ZERO;
    }
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: u32::try_from(frame.len()).expect("a frame"),
        repeat: i32::try_from(times).expect("at most RUNS"),
        ..Default::default()
    };
    // SAFETY: `data_in` is of the length given with it, and nothing is to be written.
    let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(fd, &raw mut options) };
    assert_eq!(result, 0, "a test run");
    Duration::from_nanos(u64::from(options.duration) * times)
}
