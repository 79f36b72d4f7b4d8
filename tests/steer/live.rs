//! The programs at work on devices.

use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::{Xdp, XdpFlags};
use podwire::ids::{HubEnds, QueueId, WorkerId};
use podwire::steer::{
    self, Pins, PodPath, Program, Steer, SteerConfig, SteerError, TcChoice, UplinkChoice, Verdict, XdpMode,
};

use crate::lab::{Lab, Tapped};
use crate::packets::*;
use crate::rig::{MTU, Scratch, config, counted, expect, is_root, now_ns, pod, refuse, xdp_socket};

const HOOKS: [TcChoice; 2] = [TcChoice::Tcx, TcChoice::Clsact];

/// A node with two pods, a hub and two workers that are alive. `pw1` and `pw2` are the pods' host ends; `eth1` is
/// pod A's own end, in the node's namespace; pod B's is `eth2`, in one of its own.
struct Node {
    steer: Steer,
    _sockets: [OwnedFd; 2],
    host: Lab,
    pod_b: Lab,
}

impl Node {
    fn new() -> Self {
        Self::by(TcChoice::Auto)
    }

    fn by(choice: TcChoice) -> Self {
        let (host, pod_b) = (Lab::new(), Lab::new());
        host.veth("pw1", "eth1");
        host.veth("pw2", "eth2");
        host.give("eth2", &pod_b);
        host.veth("pwhub0", "pwhub1");
        let mut steer = host.load(&SteerConfig { workers: 2, rings: 2, hub: host.ifindex("pwhub0"), ..config(V4) });
        steer.set_tc(choice);
        for (device, id, addresses, mac) in [("pw1", 1, POD_A, POD_A_MAC), ("pw2", 2, POD_B, POD_B_MAC)] {
            let ifindex = host.ifindex(device);
            for address in addresses {
                steer.add_local(address, &pod(id, ifindex, mac), PodPath::Fast).unwrap();
            }
            host.within(|| steer.attach_pod(ifindex)).unwrap();
        }
        for range in REMOTE_RANGE {
            steer.add_remote(range.parse().unwrap(), MTU, None).unwrap();
        }
        let hub = HubEnds { near: host.ifindex("pwhub0"), far: host.ifindex("pwhub1") };
        host.within(|| steer.attach_hub(hub)).unwrap();
        let sockets = [0, 1].map(|worker| {
            let socket = xdp_socket().unwrap();
            steer.register_queue(QueueId(worker.into()), WorkerId(worker), socket.as_fd()).unwrap();
            steer.heartbeat(WorkerId(worker)).unwrap().beat(now_ns());
            socket
        });
        Self { steer, _sockets: sockets, host, pod_b }
    }

    fn count(&self, verdict: Verdict) -> u64 {
        counted(&self.steer, Program::Pod, verdict)
    }

    /// Waits until `verdict` has been counted `frames` times.
    fn expect(&self, verdict: Verdict, frames: u64) {
        expect(&self.steer, Program::Pod, verdict, frames);
    }
}

#[test]
fn hands_each_pods_frames_to_its_worker_with_the_pods_id_and_to_nobody_else() {
    if !is_root() {
        return;
    }
    for choice in HOOKS {
        let node = Node::by(choice);
        let rings = [0, 1].map(|_| node.host.socket("pwhub0", libc::ETH_P_ALL));
        for ring in &rings {
            ring.join(7, node.steer.fanout_fd());
        }
        // a protocol's own tap comes after tcx: it sees what the stack would see
        let stack = node.host.socket("pwhub0", libc::ETH_P_IP);
        let from_b = udp([POD_B_MAC, GATEWAY_MAC], [POD_B[V4], REMOTE_POD[V4]], [1, 2], b"from b");
        node.host.socket("eth1", 0).send(&from_a(REMOTE_POD[V4], 9));
        node.pod_b.socket("eth2", 0).send(&from_b);
        assert_eq!(rings[1].receive(), Some(Tapped { vlan: Some(1), frame: from_a(REMOTE_POD[V4], 9) }));
        assert_eq!(rings[0].receive(), Some(Tapped { vlan: Some(2), frame: from_b }));
        assert_eq!(rings.map(|ring| ring.receive()), [None, None]);
        assert_eq!(stack.receive(), None, "hub_drop lets nothing through");
        node.expect(Verdict::Claimed, 2);
    }
}

#[test]
fn frames_that_were_claimed_before_a_stop_still_go_to_their_worker() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let rings = [0, 1].map(|_| node.host.socket("pwhub0", libc::ETH_P_ALL));
    for ring in &rings {
        ring.join(8, node.steer.fanout_fd());
    }
    node.steer.set_config(&SteerConfig { workers: 0, rings: 2, ..config(V4) }).unwrap();
    let frame = from_a(REMOTE_POD[V4], 9);
    node.host.socket("pwhub1", 0).send(&tagged(frame.clone(), TAGS[0], 1));
    assert_eq!(rings[1].receive(), Some(Tapped { vlan: Some(1), frame }));
    assert_eq!(rings[0].receive(), None);
}

#[test]
fn delivers_between_pods_of_a_node_and_drops_a_spoofers_frames() {
    if !is_root() {
        return;
    }
    for choice in HOOKS {
        let node = Node::by(choice);
        let (sender, receiver) = (node.host.socket("eth1", 0), node.pod_b.socket("eth2", libc::ETH_P_ALL));
        for family in FAMILIES {
            let frame = from_a(POD_B[family], 9);
            sender.send(&patched(frame.clone(), 6, &POD_B_MAC.0));
            sender.send(&frame);
            let got = receiver.receive().expect("the honest frame arrives");
            assert_eq!(got.frame[..12], [POD_B_MAC.0, GATEWAY_MAC.0].concat());
            let ttl = ETHERNET + [8, 7][family];
            assert_eq!(got.frame[ttl], frame[ttl] - 1);
            assert_eq!(receiver.receive(), None, "and no other");
        }
        node.expect(Verdict::Local, 2);
        node.expect(Verdict::SpoofMac, 2);
    }
}

#[test]
fn a_pods_vlan_tag_hides_no_source_address_from_the_check() {
    if !is_root() {
        return;
    }
    for choice in HOOKS {
        let node = Node::by(choice);
        let sender = node.host.socket("eth1", 0);
        // a protocol's own tap comes after the stack has taken the tags of VLAN 0 off
        let stack = [libc::ETH_P_IP, libc::ETH_P_IPV6].map(|protocol| node.host.socket("pw1", protocol));
        for family in FAMILIES {
            let honest = from_a(NO_POD[family], 9);
            let spoofed = udp([POD_A_MAC, GATEWAY_MAC], [POD_B[family], NO_POD[family]], [1, 2], &[]);
            for frame in [&honest, &spoofed] {
                for tag in TAGS {
                    sender.send(&tagged(frame.clone(), tag, 0));
                    sender.send(&tagged(tagged(frame.clone(), TAGS[0], 0), tag, 0));
                }
            }
            sender.send(&spoofed);
            sender.send(&honest);
            assert_eq!(stack[family].receive(), Some(Tapped { vlan: None, frame: honest }), "the one without a tag");
            assert_eq!(stack[family].receive(), None, "and no other");
        }
        node.expect(Verdict::PodVlan, 16);
        node.expect(Verdict::SpoofIp, 2);
    }
}

#[test]
fn judges_skbs_that_a_test_run_cannot_make() {
    if !is_root() {
        return;
    }
    let node = Node::new();
    let sender = node.host.socket("eth1", 0);
    for family in FAMILIES {
        for length in ETHERNET..ETHERNET + ip_header(family) {
            sender.send(&from_a(REMOTE_POD[family], 0)[..length]);
        }
    }
    node.expect(Verdict::Truncated, 20 + 40);
    sender.send(&tagged(from_a(REMOTE_POD[V4], 0), TAGS[0], 5));
    node.expect(Verdict::PodVlan, 1);
    // headers outside the linear part
    for (nth, range) in (1..).zip(REMOTE_RANGE) {
        node.steer.add_remote(range.parse().unwrap(), 9000, None).unwrap();
        node.host.socket("eth1", 0).send_paged(&from_a(REMOTE_POD[nth - 1], 6000), 14);
        node.expect(Verdict::Claimed, u64::try_from(nth).unwrap());
    }
    node.expect(Verdict::Truncated, 20 + 40);
}

#[test]
fn a_detached_pod_takes_the_kernel_path() {
    if !is_root() {
        return;
    }
    for choice in HOOKS {
        let mut node = Node::by(choice);
        let (sender, pw1) = (node.host.socket("eth1", 0), node.host.ifindex("pw1"));
        let stack = node.host.socket("pw1", libc::ETH_P_IP);
        let frame = from_a(REMOTE_POD[V4], 9);
        node.host.within(|| node.steer.attach_pod(pw1)).expect("attaching again replaces our own");
        sender.send(&frame);
        assert_eq!(stack.receive(), None);
        node.expect(Verdict::Claimed, 1);
        node.host.within(|| node.steer.detach_pod(pw1)).unwrap();
        node.host.within(|| node.steer.detach_pod(pw1)).expect("nothing to do is success");
        sender.send(&frame);
        assert_eq!(stack.receive(), Some(Tapped { vlan: None, frame }));
        node.expect(Verdict::Claimed, 1);
        let missing = node.host.within(|| node.steer.attach_pod(podwire::ids::IfIndex(424_242))).unwrap_err();
        assert!(missing.to_string().starts_with("cannot attach pod_steer to interface 424242"), "{missing}");
    }
}

#[test]
fn instances_in_two_namespaces_do_not_meet() {
    if !is_root() {
        return;
    }
    let mut nodes = [Node::new(), Node::new()];
    for node in &mut nodes {
        node.host.veth("uplink", "wire");
        let mode = node.host.within(|| node.steer.attach_uplink(node.host.ifindex("uplink"), UplinkChoice::Native));
        assert_eq!(mode.unwrap(), Some(XdpMode::Native));
    }
    nodes[0].host.socket("eth1", 0).send(&from_a(REMOTE_POD[V4], 9));
    nodes[0].expect(Verdict::Claimed, 1);
    assert_eq!(nodes[1].count(Verdict::Claimed), 0);
}

#[test]
fn never_evicts_a_foreign_program() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.veth("uplink", "wire");
    let uplink = lab.ifindex("uplink");
    let scratch = Scratch::new();
    let foreign = Steer::load(&config(V4), scratch.pins()).unwrap();
    let mut steer = lab.load(&config(V4));
    let device = i32::try_from(uplink.0).unwrap();
    for mode in [XdpFlags::DRV_MODE, XdpFlags::SKB_MODE] {
        let mode = || XdpFlags::from_bits_truncate(mode.bits());
        // attached as `ip link set … xdp` does, which a link could not be told from by its owner alone
        let (attached, id) = lab.within(|| {
            let xdp = Xdp::new(foreign.program_fd(Program::Nic));
            (xdp.attach(device, mode()), xdp.query_id(device, mode()).unwrap())
        });
        attached.unwrap();
        for choice in [UplinkChoice::Native, UplinkChoice::Generic, UplinkChoice::AnyXdp] {
            let error = lab.within(|| steer.attach_uplink(uplink, choice)).unwrap_err();
            assert!(matches!(error, SteerError::UplinkTaken { program, .. } if program == id), "{choice:?}: {error}");
            assert!(error.to_string().contains(&format!("bpftool prog show id {id}")), "{error}");
        }
        assert_eq!(lab.within(|| steer.attach_uplink(uplink, UplinkChoice::Auto)).unwrap(), None, "it does without");
        lab.within(|| {
            let xdp = Xdp::new(foreign.program_fd(Program::Nic));
            assert_eq!(xdp.query_id(device, mode()).unwrap(), id, "it is still there");
            xdp.detach(device, mode()).unwrap();
        });
        assert!(lab.within(|| steer.attach_uplink(uplink, UplinkChoice::Auto)).is_ok(), "once it has gone");
        steer::remove(Pins::find(lab.cookie()), &[]).unwrap();
        steer = lab.load(&config(V4));
    }
}

#[test]
fn takes_generic_xdp_or_none_where_the_driver_has_no_native() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    let lo = lab.ifindex("lo");
    let mut steer = lab.load(&config(V4));
    let error = lab.within(|| steer.attach_uplink(lo, UplinkChoice::Native)).unwrap_err();
    assert!(error.to_string().contains("(native XDP)"), "{error}");
    let busy = lab.within(|| {
        refuse(28, libc::EBUSY); // BPF_LINK_CREATE
        steer.attach_uplink(lo, UplinkChoice::AnyXdp).unwrap_err()
    });
    assert!(matches!(busy, SteerError::Attach { mode: "generic XDP", .. }), "no other program is to blame: {busy}");
    assert_eq!(lab.within(|| steer.attach_uplink(lo, UplinkChoice::AnyXdp)).unwrap(), Some(XdpMode::Generic));
    let again = lab.within(|| steer.attach_uplink(lo, UplinkChoice::Generic));
    assert_eq!(again.unwrap(), Some(XdpMode::Generic), "our own attachment is replaced");
    assert_eq!(lab.within(|| steer.attach_uplink(lo, UplinkChoice::Auto)).unwrap(), None);
    assert!(!lab.ip_output("link show lo").contains("xdp"), "and given up for the program at the ingress");
}
