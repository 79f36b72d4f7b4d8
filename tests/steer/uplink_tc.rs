//! The uplink without XDP: `nic_steer_tc`. That it decides as `nic_steer` does, the tests of that one show.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use podwire::ids::{HubEnds, IfIndex, PodId, QueueId, WorkerId};
use podwire::shared::Holder;
use podwire::steer::{self, Pins, PodPath, Program, Steer, SteerConfig, TcChoice, UplinkChoice, Verdict, XdpMode};

use crate::lab::{Lab, Raw, Tapped};
use crate::packets::*;
use crate::rig::{MTU, Rig, STALE_NS, config, expect, is_root, now_ns, pod, xdp_socket};

/// In the tag of a frame from the wire, as `bpf/claim.h` has it.
const FROM_WIRE: u16 = 0x2000;

#[test]
fn without_xdp_workers_take_no_tcp_and_nothing_that_was_merged() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let without = SteerConfig { leaves_tcp: true, ..config(V4) };
    rig.steer.set_config(&without).unwrap();
    let from_far = [GATEWAY_MAC, VTEP_MAC];
    for family in FAMILIES {
        let addresses = [REMOTE_POD[family], POD_A[family]];
        let frame = encapsulate(V4, &inner(family, 64));
        assert_eq!(rig.nic_tc(&frame, 0), Verdict::Claimed);
        assert_eq!(rig.nic_tc(&encapsulate(V4, &tcp(from_far, addresses, b"x")), 0), Verdict::Bulk);
        assert_eq!(rig.nic_tc(&encapsulate(V4, &echo(from_far, addresses)), 0), Verdict::Claimed);
        assert_eq!(rig.nic_tc(&encapsulate(V4, &tcp(from_far, addresses, b"x")), 20), Verdict::Bulk, "merged");
        assert_eq!(rig.nic_tc(&frame, 0), Verdict::Claimed, "which is no matter to others");
    }
    rig.steer.set_config(&SteerConfig { known_vteps_only: true, ..without }).unwrap();
    let frame = encapsulate(V4, &inner(V4, 64));
    for gso_size in [0, 20] {
        assert_eq!(rig.nic_tc(&frame, gso_size), Verdict::UnknownVtep, "what is injected is dropped, merged or not");
    }
}

#[test]
fn what_comes_for_a_pod_has_credits_of_its_own() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    rig.steer.set_config(&SteerConfig { slots: 10, ..config(V4) }).unwrap();
    let (credits, a) = (rig.steer.credits(), PodId::new(1).unwrap());
    let (to_a, from_a) = (encapsulate(V4, &inner(V4, 64)), from_a(REMOTE_POD[V4], 10));
    for in_flight in 1..=8 {
        assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Claimed);
        assert_eq!(credits.in_flight(Holder::FromWire(a)), in_flight);
    }
    assert_eq!(credits.in_flight(a), 0, "the pod has sent nothing");
    assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Quota, "eight of ten");
    assert_eq!((credits.refused(Holder::FromWire(a)), credits.refused(a)), (1, 0));
    let own: Vec<_> = (0..9).map(|_| rig.pod(&from_a)).collect();
    assert_eq!(own, [&[Verdict::Claimed; 8][..], &[Verdict::Quota]].concat(), "what it sends has as many slots");
    credits.set_quota(Holder::RingFromWire(WorkerId(0)), 1);
    credits.resync(a);
    credits.resync(WorkerId(0));
    assert_eq!(rig.pod(&from_a), Verdict::Claimed, "and no bound of the others'");
    // A worker that takes nothing at the moment is not the sender's fault.
    rig.heartbeat.beat(now_ns() - STALE_NS * 3 / 4);
    assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Late);
}

fn hub(host: &Lab) -> HubEnds {
    HubEnds { near: host.ifindex("pwhub0"), far: host.ifindex("pwhub1") }
}

/// The kernel path takes less time than a worker to wake up.
#[test]
fn what_follows_merged_datagrams_does_not_fall_behind_them() {
    if !is_root() {
        return;
    }
    // One large datagram of a pod, and several in tunnels of their own.
    let large = encapsulate(V4, &inner(V4, 64));
    let header = [8, 0, 0, 0, 0, 0, 1, 0];
    let train = |first: &[u8]| {
        let two = [&header[..], first, &header, &inner(V4, 64)].concat();
        udp([PEER_MAC, NIC_MAC], [PEER[V4], VTEP[V4]], [50_000, 8472], &two)
    };
    let after_tcp = train(&tcp([PEER_MAC, VTEP_MAC], [REMOTE_POD[V4], POD_A[V4]], b"x"));
    for (merged, all) in [(large, false), (train(&inner(V4, 64)), true), (after_tcp, true)] {
        let rig = Rig::new(V4);
        let [to_a, to_b] = [POD_A[V4], POD_B[V4]]
            .map(|to| encapsulate(V4, &udp([PEER_MAC, VTEP_MAC], [REMOTE_POD[V4], to], [53, 40_000], b"single")));
        assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Claimed);
        assert_eq!(rig.nic_tc(&merged, 20), Verdict::MultiBuffer);
        assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Behind, "what follows");
        let others = if all { Verdict::Behind } else { Verdict::Claimed };
        assert_eq!(rig.nic_tc(&to_b, 0), others, "what comes for others");
        assert_eq!(rig.pod(&from_a(REMOTE_POD[V4], 10)), Verdict::Claimed, "what pods send is another matter");
        std::thread::sleep(Duration::from_millis(1010));
        assert_eq!(rig.nic_tc(&to_a, 0), Verdict::Claimed, "after a second it is over");
    }
}

#[test]
fn merged_datagrams_of_others_change_nothing() {
    if !is_root() {
        return;
    }
    let rig = Rig::new(V4);
    let to_node = |port| udp([PEER_MAC, NIC_MAC], [PEER[V4], VTEP[V4]], [1, port], &[0; 100]);
    let other_vni = udp([PEER_MAC, NIC_MAC], [PEER[V4], VTEP[V4]], [1, 8472], &[8, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    let tcp_to_node = tcp([PEER_MAC, NIC_MAC], [PEER[V4], VTEP[V4]], &[0; 100]);
    let rows = [(to_node(443), Verdict::NotVxlan), (tcp_to_node, Verdict::NotVxlan), (other_vni, Verdict::VxlanVni)];
    for (merged, verdict) in rows {
        assert_eq!(rig.nic_tc(&merged, 20), verdict);
    }
    let to_nobody = udp([PEER_MAC, VTEP_MAC], [REMOTE_POD[V4], "10.244.1.99".parse().unwrap()], [1, 2], &[0; 100]);
    assert_eq!(rig.nic_tc(&encapsulate(V4, &to_nobody), 20), Verdict::MultiBuffer);
    let single = |to| encapsulate(V4, &udp([PEER_MAC, VTEP_MAC], [REMOTE_POD[V4], to], [53, 40_000], b"single"));
    assert_eq!([POD_A[V4], POD_B[V4]].map(|to| rig.nic_tc(&single(to), 0)), [Verdict::Claimed; 2]);
    assert_eq!(rig.nic_tc(&bare_to_a(), 20), Verdict::MultiBuffer, "for pod A");
    let after = [POD_A[V4], POD_B[V4]].map(|to| rig.nic_tc(&single(to), 0));
    assert_eq!(after, [Verdict::Behind, Verdict::Claimed]);
}

/// A datagram for pod A without a tunnel.
fn bare_to_a() -> Vec<u8> {
    udp([PEER_MAC, NIC_MAC], [REMOTE_POD[V4], POD_A[V4]], [53, 40_000], b"bare")
}

/// A node with one pod, whose uplink's other end is `wire`, in the same namespace.
struct Node {
    steer: Steer,
    _socket: OwnedFd,
    host: Lab,
    uplink: IfIndex,
}

impl Node {
    fn by(choice: TcChoice) -> Self {
        let host = Lab::new();
        for (near, far) in [("uplink", "wire"), ("pwhub0", "pwhub1"), ("pw1", "eth1")] {
            host.veth(near, far);
        }
        let hub = hub(&host);
        let mut steer = host.load(&SteerConfig { hub: hub.near, ..config(V4) });
        steer.set_tc(choice);
        steer.add_local(POD_A[V4], &pod(1, host.ifindex("pw1"), POD_A_MAC), PodPath::Fast).unwrap();
        steer.add_remote(REMOTE_RANGE[V4].parse().unwrap(), MTU, None).unwrap();
        let socket = xdp_socket().unwrap();
        steer.register_queue(QueueId(0), WorkerId(0), socket.as_fd()).unwrap();
        steer.heartbeat(WorkerId(0)).unwrap().beat(now_ns());
        let uplink = host.ifindex("uplink");
        host.within(|| steer.attach_hub(hub)).unwrap();
        let mode = host.within(|| steer.attach_uplink(uplink, UplinkChoice::Tc)).unwrap();
        assert_eq!(mode, None);
        Self { steer, _socket: socket, host, uplink }
    }

    /// Waits until `verdict` has been counted `frames` times.
    fn expect(&self, verdict: Verdict, frames: u64) {
        expect(&self.steer, Program::Nic, verdict, frames);
    }

    fn wire(&self) -> Raw {
        self.host.socket("wire", 0)
    }

    fn filters(&self) -> String {
        self.host.ip_output("-details link show uplink")
    }
}

#[test]
fn hands_frames_from_the_wire_to_the_pods_worker_and_leaves_the_rest() {
    if !is_root() {
        return;
    }
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let node = Node::by(choice);
        let ring = node.host.socket("pwhub0", libc::ETH_P_ALL);
        let frame = encapsulate(V4, &inner(V4, 64));
        // A tag is not in the frame any more when the program sees it.
        node.wire().send(&tagged(frame.clone(), TAGS[0], 1));
        node.expect(Verdict::Vlan, 1);
        node.wire().send(&frame);
        assert_eq!(ring.receive(), Some(Tapped { vlan: Some(FROM_WIRE | 1), frame }), "{choice:?}");
        assert_eq!(ring.receive(), None);
        node.expect(Verdict::Claimed, 1);
        assert!(!node.filters().contains("xdp"));
    }
}

#[test]
fn what_somebody_detaches_is_attached_again_and_the_next_process_takes_over() {
    if !is_root() {
        return;
    }
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let Node { mut steer, host, uplink, .. } = Node::by(choice);
        assert!(host.within(|| steer.repair()).is_empty());
        let mut next = host.load(&config(V4));
        next.set_tc(choice);
        host.within(|| next.attach_uplink(uplink, UplinkChoice::Tc)).unwrap();
        assert!(host.within(|| next.repair()).is_empty(), "{choice:?}");
        match choice {
            TcChoice::Clsact => host.tc("qdisc del dev uplink clsact"),
            _ => std::fs::remove_file(format!("/sys/fs/bpf/podwire/{}/links/uplink_tc", host.cookie())).unwrap(),
        }
        let repairs = host.within(|| next.repair());
        assert_eq!(repairs.iter().map(|repair| repair.program).collect::<Vec<_>>(), ["nic_steer_tc"]);
        assert!(repairs.iter().all(|repair| repair.outcome.is_ok()), "{repairs:?}");
        assert!(host.within(|| next.repair()).is_empty());
    }
}

#[test]
fn nothing_of_it_stays_where_there_is_xdp_again_or_after_a_removal() {
    if !is_root() {
        return;
    }
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let mut node = Node::by(choice);
        let (frame, uplink) = (encapsulate(V4, &inner(V4, 64)), node.uplink);
        let (host, steer) = (&node.host, &mut node.steer);
        let mode = host.within(|| steer.attach_uplink(uplink, UplinkChoice::Native)).unwrap();
        assert_eq!(mode, Some(XdpMode::Native));
        node.wire().send(&frame);
        node.expect(Verdict::Claimed, 1);
        // A newer process, which has attached nothing itself.
        let mut next = node.host.load(&config(V4));
        next.set_tc(choice);
        node.host.within(|| next.attach_uplink(uplink, UplinkChoice::Tc)).unwrap();
        assert!(!node.filters().contains("xdp"), "{choice:?}");
        let mut last = node.host.load(&config(V4));
        last.set_tc(choice);
        node.host.within(|| last.attach_hub(hub(&node.host))).unwrap();
        node.host.within(|| last.attach_uplink(uplink, UplinkChoice::Native)).unwrap();
        let judges = || {
            let judged = || node.steer.verdicts().unwrap().into_iter().map(|(.., n)| n).sum::<u64>();
            let before = judged();
            node.wire().send(&frame);
            std::thread::sleep(Duration::from_millis(50));
            judged() - before
        };
        assert_eq!(judges(), 1, "{choice:?}: one program");
        node.host.within(|| last.attach_uplink(uplink, UplinkChoice::Tc)).unwrap();
        assert_eq!(judges(), 1, "{choice:?}: the other one");
        node.host.within(|| steer::remove(Pins::find(node.host.cookie()), &[uplink])).unwrap();
        assert_eq!(judges(), 0, "{choice:?}: none");
    }
}
