//! What others have attached to a pod's device, told from what is ours.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::{Object, ObjectBuilder, Program, libbpf_sys};
use podwire::ids::IfIndex;
use podwire::steer::{Pins, TcChoice, foreign_programs, is_our_filter};

use crate::lab::Lab;
use crate::packets::V4;
use crate::rig::{config, is_root};

/// Attaches a program of another process by tcx, for as long as the returned link is open.
fn attach(lab: &Lab, program: &Object, ifindex: IfIndex, hook: libbpf_sys::bpf_attach_type) -> (OwnedFd, u32) {
    let program = program.progs().find(|program| program.name() == "hub_drop").unwrap().as_fd().try_clone_to_owned();
    let program = program.unwrap();
    let device = i32::try_from(ifindex.0).unwrap();
    // SAFETY: no options are given.
    let link =
        lab.within(|| unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), device, hook, std::ptr::null()) });
    assert!(link >= 0, "{}", std::io::Error::from_raw_os_error(-link));
    // SAFETY: the call made this descriptor for us.
    (unsafe { OwnedFd::from_raw_fd(link) }, Program::id_from_fd(program.as_fd()).unwrap())
}

#[test]
fn others_programs_are_found_at_both_hooks_and_ours_is_not_among_them() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.veth("pw1", "eth1");
    let device = lab.ifindex("pw1");
    let mut steer = lab.load(&config(V4));
    let foreign = || lab.within(|| foreign_programs(Pins::find(lab.cookie()).as_ref(), device)).unwrap();
    assert_eq!(foreign(), [0; 0]);
    lab.within(|| steer.attach_pod(device)).unwrap();
    assert_eq!(foreign(), [0; 0]);
    drop(steer);
    assert_eq!(foreign(), [0; 0], "ours outlives its owner");
    let pin = format!("/sys/fs/bpf/podwire/{}/links/pod_{device}", lab.cookie());
    let _held = libbpf_rs::Link::open(&pin).unwrap();
    std::fs::remove_file(&pin).unwrap();
    assert_eq!(foreign(), [0; 0], "ours without its pin");
    let others = ObjectBuilder::default().open_file(concat!(env!("OUT_DIR"), "/steer.bpf.o")).unwrap().load().unwrap();
    for hook in [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS] {
        let (link, id) = attach(&lab, &others, device, hook);
        assert_eq!(foreign(), [id]);
        drop(link);
        assert_eq!(foreign(), [0; 0]);
    }
    lab.ip("link del pw1");
    assert_eq!(foreign(), [0; 0], "a device that has gone has none");
}

#[test]
fn our_filter_is_known_by_its_place() {
    if !is_root() {
        return;
    }
    let lab = Lab::new();
    lab.veth("pw1", "eth1");
    let device = lab.ifindex("pw1");
    let mut steer = lab.load(&config(V4));
    steer.set_tc(TcChoice::Clsact);
    lab.within(|| steer.attach_pod(device)).unwrap();
    lab.tc("filter add dev pw1 ingress pref 7 u32 match u32 0 0 classid 1:1");
    let filters = lab.within(|| {
        let mut netlink = podwire::control::netlink::Netlink::open().unwrap();
        netlink.filters(device, podwire::control::netlink::Hook::Ingress).unwrap()
    });
    let ours =
        |filter: &&podwire::control::netlink::Filter| is_our_filter(&filter.kind, filter.priority, filter.handle);
    assert_eq!(filters.iter().filter(ours).count(), 1, "{filters:?}");
    let others: Vec<_> = filters.iter().filter(|filter| !ours(filter)).collect();
    assert!(
        !others.is_empty() && others.iter().all(|filter| (&*filter.kind, filter.priority) == ("u32", 7)),
        "{filters:?}"
    );
}
