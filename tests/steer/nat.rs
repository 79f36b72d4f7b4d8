//! What the programs make of flows that the node translates, as its conntrack knows them.

use std::net::IpAddr;
use std::os::fd::AsFd;

use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
use libbpf_rs::{Object, ObjectBuilder, Program};
use podwire::ids::{PodId, WorkerId};
use podwire::steer::{NatCheck, SteerConfig, Verdict, knows_conntrack};
use podwire::wire::Mac;

use crate::lab::Lab;
use crate::packets::*;
use crate::rig::{Rig, STALE_NS, config, is_root, now_ns};

const SERVICE: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const NODE: [&str; 2] = ["192.168.1.2", "fd00:192::2"];

const FROM_A: [Mac; 2] = [POD_A_MAC, GATEWAY_MAC];
const TO_A: [Mac; 2] = [PEER_MAC, VTEP_MAC];

/// The flag byte of a TCP header, and what is in it.
const FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A namespace whose conntrack knows flows of both families, and programs that ask it.
struct Scene {
    lab: Lab,
    rig: Rig,
}

impl Scene {
    fn new() -> Self {
        assert!(knows_conntrack(), "this kernel's conntrack can be asked");
        let lab = Lab::new();
        for family in FAMILIES {
            let (service, node) = (SERVICE[family], NODE[family]);
            let (a, b, remote) = (POD_A[family], POD_B[family], REMOTE_POD[family]);
            lab.track(&[
                // pod A asks a service, which pod REMOTE is behind
                format!("-p udp -s {a} -d {service} --sport 40000 --dport 53 --dst-nat {remote}"),
                format!("-p tcp -s {a} -d {service} --sport 40000 --dport 80 --dst-nat {remote} {ESTABLISHED}"),
                // pod B asks one that pod A is behind
                format!("-p udp -s {b} -d {service} --sport 40001 --dport 53 --dst-nat {a}"),
                // a remote pod asks this node's port, which pod A is behind
                format!("-p udp -s {remote} -d {node} --sport 40002 --dport 30000 --dst-nat {}", port(a, 53)),
                // pod A's address is hidden from a remote pod
                format!("-p udp -s {a} -d {remote} --sport 40003 --dport 53 --src-nat {node}"),
                // tracked, and not translated
                format!("-p udp -s {a} -d {remote} --sport 40004 --dport 53"),
                format!("-p tcp -s {a} -d {remote} --sport 40000 --dport 8080 {ESTABLISHED}"),
            ]);
        }
        let rig = Rig::new(V4);
        rig.steer.set_config(&SteerConfig { nat: NatCheck::Lookup, ..config(V4) }).unwrap();
        Self { lab, rig }
    }

    fn pod(&self, frame: &[u8]) -> Verdict {
        self.lab.within(|| self.rig.pod(frame))
    }

    fn nic(&self, inner: &[u8]) -> Verdict {
        self.lab.within(|| self.rig.nic(&encapsulate(V4, inner)))
    }
}

const ESTABLISHED: &str = "--state ESTABLISHED -u SEEN_REPLY,ASSURED";

fn port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// A TCP segment between port 40,000 and port `service`, from pod A or to it.
fn segment(family: usize, from_a: bool, service: u16, flags: u8) -> Vec<u8> {
    let (a, remote) = (POD_A[family], REMOTE_POD[family]);
    let (macs, ends) = if from_a { (FROM_A, [a, remote]) } else { (TO_A, [remote, a]) };
    let (from, to) = if from_a { (40_000, service) } else { (service, 40_000) };
    let at = ETHERNET + ip_header(family);
    let frame = patched(tcp(macs, ends, &[0; 20]), at, &u16::to_be_bytes(from));
    patched(patched(frame, at + 2, &u16::to_be_bytes(to)), at + FLAGS, &[flags])
}

#[test]
fn leaves_translated_flows_to_the_kernel_and_claims_the_others() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    for family in FAMILIES {
        let (a, b, remote) = (POD_A[family], POD_B[family], REMOTE_POD[family]);
        let from_a = |to, ports| scene.pod(&udp(FROM_A, [a, to], ports, b"?"));
        let to_a = |ports| scene.nic(&udp(TO_A, [remote, a], ports, b"?"));
        assert_eq!(to_a([53, 40_000]), Verdict::Nated, "the answer of a service");
        assert_eq!(to_a([53, 40_009]), Verdict::Claimed, "not known to conntrack");
        assert_eq!(to_a([53, 40_004]), Verdict::Claimed, "known, and not translated");
        assert_eq!(from_a(b, [53, 40_001]), Verdict::Nated, "a service's answer to a pod of this node");
        assert_eq!(from_a(b, [53, 40_009]), Verdict::Local);
        assert_eq!(from_a(remote, [53, 40_002]), Verdict::Nated, "a node port's answer");
        assert_eq!(from_a(remote, [40_003, 53]), Verdict::Nated, "translated at its source");
        assert_eq!(from_a(remote, [40_004, 53]), Verdict::Claimed, "known, and not translated");
        assert_eq!(from_a(remote, [40_009, 53]), Verdict::Claimed, "not known to conntrack");
        assert_eq!(scene.nic(&segment(family, false, 80, ACK)), Verdict::Nated);
        assert_eq!(scene.nic(&segment(family, false, 81, ACK)), Verdict::Claimed);
        assert_eq!(scene.nic(&segment(family, false, 8080, ACK)), Verdict::Claimed);
        assert_eq!(scene.pod(&segment(family, true, 8080, ACK)), Verdict::Claimed);
    }
}

#[test]
fn translated_connections_do_not_go_past_the_stack() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let lookup = SteerConfig { nat: NatCheck::Lookup, leaves_tcp: true, ..config(V4) };
    scene.rig.steer.set_config(&lookup).unwrap();
    scene.rig.lead_by_tunnel();
    // the address of the loopback device
    let tunnel = |frame| scene.lab.within(|| scene.rig.tunnel(&patched(frame, 0, &[0; 6]), 0).0);
    for family in FAMILIES {
        assert_eq!(scene.pod(&segment(family, true, 80, SYN)), Verdict::Nated);
        assert_eq!(tunnel(segment(family, false, 80, ACK)), Verdict::Nated, "the answer of a service");
        assert_eq!(scene.pod(&segment(family, true, 8080, ACK)), Verdict::Bypass, "known, and not translated");
        assert_eq!(tunnel(segment(family, false, 8080, ACK)), Verdict::Bypass);
    }
}

#[test]
fn leaves_a_flow_to_the_kernel_whose_answers_would_be_taken_for_a_translated_ones() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    for family in FAMILIES {
        let ends = [POD_A[family], REMOTE_POD[family]];
        // pod A's port 40,000 talks to the remote pod by the service, and now by its own address too
        assert_eq!(scene.pod(&udp(FROM_A, ends, [40_000, 53], b"?")), Verdict::Nated);
        assert_eq!(scene.pod(&segment(family, true, 80, SYN)), Verdict::Nated);
        assert_eq!(scene.pod(&segment(family, true, 80, ACK)), Verdict::Claimed, "has begun before");
        assert_eq!(scene.pod(&segment(family, true, 80, SYN | ACK)), Verdict::Claimed, "the other side began");
        assert_eq!(scene.pod(&segment(family, true, 81, SYN)), Verdict::Claimed);
        // the same from the other side of a node port
        let ends = [ends[1], ends[0]];
        assert_eq!(scene.nic(&udp(TO_A, ends, [40_002, 53], b"?")), Verdict::Nated);
    }
}

#[test]
fn leaves_what_conntrack_cannot_tell_to_the_kernel() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let only_kernel = |nat| scene.rig.steer.set_config(&SteerConfig { nat, ..config(V4) }).unwrap();
    for family in FAMILIES {
        let (a, b, remote) = (POD_A[family], POD_B[family], REMOTE_POD[family]);
        let ping = [echo(FROM_A, [a, remote]), echo(FROM_A, [a, b])];
        let question = udp(FROM_A, [a, remote], [40_009, 53], b"?");
        let answer = udp(TO_A, [remote, a], [53, 40_009], b"!");
        let protocol = ETHERNET + [9, 6][family];
        let stub = patched(question.clone(), protocol, &[6]);
        only_kernel(NatCheck::Lookup);
        for frame in &ping {
            assert_eq!(scene.pod(frame), Verdict::NatUnknown);
        }
        assert_eq!(scene.nic(&echo(TO_A, [remote, a])), Verdict::NatUnknown);
        assert_eq!(scene.pod(&stub), Verdict::Truncated, "ends inside its TCP header");
        only_kernel(NatCheck::Kernel);
        assert_eq!(scene.pod(&question), Verdict::NatUnknown);
        assert_eq!(scene.nic(&answer), Verdict::NatUnknown);
        only_kernel(NatCheck::None);
        assert_eq!([scene.pod(&ping[0]), scene.pod(&ping[1])], [Verdict::Claimed, Verdict::Local]);
        assert_eq!([scene.pod(&question), scene.nic(&answer)], [Verdict::Claimed; 2]);
        assert_eq!(scene.nic(&udp(TO_A, [remote, a], [53, 40_000], b"!")), Verdict::Claimed, "not asked");
    }
}

#[test]
fn asks_only_about_what_would_be_claimed_and_only_its_own_namespace() {
    if !is_root() {
        return;
    }
    let scene = Scene::new();
    let question = udp(FROM_A, [POD_A[V4], REMOTE_POD[V4]], [53, 40_002], b"?");
    let answer = encapsulate(V4, &udp(TO_A, [REMOTE_POD[V4], POD_A[V4]], [53, 40_000], b"!"));
    let Scene { lab, rig } = &scene;
    lab.within(|| {
        rig.heartbeat.sleep();
        assert_eq!([rig.pod(&question), rig.nic(&answer)], [Verdict::Nated; 2]);
        assert_eq!(rig.steer.credits().in_flight(PodId::new(1).unwrap()), 0, "no credit is taken");
        let (asleep, fresh) = rig.heartbeat.state(now_ns() + 2 * STALE_NS, STALE_NS);
        assert!(asleep && fresh, "nobody has called the worker");
        rig.heartbeat.stop();
        assert_eq!([rig.pod(&question), rig.nic(&answer)], [Verdict::Stale; 2]);
        rig.heartbeat.wake(now_ns());
    });
    let elsewhere = Lab::new();
    elsewhere.within(|| assert_eq!([rig.pod(&question), rig.nic(&answer)], [Verdict::Claimed; 2]));
}

#[test]
fn asks_about_frames_for_local_pods_when_nobody_is_there_to_say_what_is_translated() {
    if !is_root() {
        return;
    }
    let mut scene = Scene::new();
    scene.rig.steer.set_config(&config(V4)).unwrap();
    for family in FAMILIES {
        let answer = |port| udp(FROM_A, [POD_A[family], POD_B[family]], [53, port], b"!");
        let ping = echo(FROM_A, [POD_A[family], POD_B[family]]);
        assert_eq!(scene.pod(&answer(40_001)), Verdict::Local, "nothing is translated, says control");
        scene.rig.close_socket();
        assert_eq!(scene.pod(&answer(40_001)), Verdict::Nated);
        assert_eq!(scene.pod(&answer(40_009)), Verdict::Local);
        assert_eq!(scene.pod(&ping), Verdict::NatUnknown);
        scene.rig.register_socket(WorkerId(0));
    }
}

/// What a kernel without conntrack's look-ups shows of its types (`Documentation/bpf/btf.rst`): here one, `int`.
fn types_of_a_kernel_without_look_ups() -> Vec<u8> {
    const MAGIC: u16 = 0xeb9f;
    const INT: u32 = 1 << 24;
    let names = b"\0int\0";
    let header = [24, 0, 16, 16, u32::try_from(names.len()).unwrap()];
    let int = [1, INT, 4, 32];
    let words = header.iter().chain(&int).flat_map(|word: &u32| word.to_ne_bytes());
    MAGIC.to_ne_bytes().into_iter().chain([1, 0]).chain(words).chain(*names).collect()
}

#[test]
fn the_programs_load_where_conntrack_cannot_be_asked() {
    if !is_root() {
        return;
    }
    let types = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(types.path(), types_of_a_kernel_without_look_ups()).unwrap();
    let mut without = ObjectBuilder::default();
    without.btf_custom_path(types.path()).unwrap();
    let [with, without] = [ObjectBuilder::default(), without].map(|mut builder| {
        let object = builder.open_file(concat!(env!("OUT_DIR"), "/steer.bpf.o")).unwrap().load().unwrap();
        ["nic_steer", "pod_steer"].map(|name| instructions(&object, name))
    });
    assert!(without.iter().zip(with).all(|(without, with)| *without < with), "{without:?}, {with:?}");
}

/// How many bytes of a program the verifier has left: it removes what cannot be reached.
fn instructions(object: &Object, name: &str) -> usize {
    let program = object.progs().find(|program| program.name() == name).unwrap();
    let id = Program::id_from_fd(program.as_fd()).unwrap();
    let options = ProgInfoQueryOptions::default().include_xlated_prog_insns(true);
    let found = ProgInfoIter::with_query_opts(options).find(|info| info.id == id).unwrap();
    found.xlated_prog_insns.len()
}
