//! The filter that takes the place of a tcx link: what it replaces, what it leaves, and when it is chosen.

use std::os::fd::{AsFd, BorrowedFd};

use libbpf_rs::{Object, ObjectBuilder, Program, TC_INGRESS, TcHook, TcHookBuilder};
use podwire::ids::IfIndex;
use podwire::steer::{self, Steer, SteerError, TcChoice};

use crate::lab::Lab;
use crate::packets::V4;
use crate::rig::{config, is_root, refuse};

const OURS: u32 = 240;

/// `BPF_LINK_CREATE` (include/uapi/linux/bpf.h).
const LINK_CREATE: u32 = 28;

/// A namespace with a device that pods' frames may come to, and programs of another process.
struct Scene {
    lab: Lab,
    device: IfIndex,
    others: Object,
    steer: Steer,
}

impl Scene {
    fn new(choice: TcChoice) -> Self {
        let lab = Lab::new();
        lab.veth("pw1", "eth1");
        let device = lab.ifindex("pw1");
        let others = ObjectBuilder::default().open_file(concat!(env!("OUT_DIR"), "/steer.bpf.o")).unwrap().load();
        let mut steer = lab.load(&config(V4));
        steer.set_tc(choice);
        Self { lab, device, others: others.unwrap(), steer }
    }

    fn attach(&mut self) -> Result<(), SteerError> {
        self.lab.within(|| self.steer.attach_pod(self.device))
    }

    fn detach(&mut self) {
        self.lab.within(|| self.steer.detach_pod(self.device)).unwrap();
    }

    /// Attaches a program of the other process; returns its id.
    fn attach_other(&self, name: &str, place: u32) -> u32 {
        let program = self.others.progs().find(|program| program.name() == name).unwrap();
        let fd = program.as_fd();
        self.lab.within(|| {
            let mut hook = self.hook(fd, place);
            hook.create().unwrap();
            hook.attach().unwrap();
        });
        Program::id_from_fd(fd).unwrap()
    }

    /// The program of the filter at a place.
    fn attached(&self, place: u32) -> Option<u32> {
        let any = self.steer.fanout_fd();
        self.lab.within(|| self.hook(any, place).query().ok())
    }

    fn hook(&self, program: BorrowedFd<'_>, place: u32) -> TcHook {
        let ifindex = i32::try_from(self.device.0).unwrap();
        TcHookBuilder::new(program).ifindex(ifindex).priority(place).handle(place).hook(TC_INGRESS)
    }

    fn ours(&self) -> Option<u32> {
        Program::id_from_fd(self.steer.program_fd(podwire::steer::Program::Pod)).ok()
    }
}

#[test]
fn a_filter_stays_until_it_is_detached_and_leaves_the_others() {
    if !is_root() {
        return;
    }
    let mut scene = Scene::new(TcChoice::Clsact);
    let other = scene.attach_other("hub_drop", OURS + 1);
    scene.attach().unwrap();
    assert_eq!((scene.attached(OURS), scene.attached(OURS + 1)), (scene.ours(), Some(other)));
    scene.attach().expect("attaching again replaces our own");
    assert_eq!(scene.attached(OURS), scene.ours());
    scene.detach();
    assert_eq!((scene.attached(OURS), scene.attached(OURS + 1)), (None, Some(other)));
    scene.attach().unwrap();
    let next = scene.lab.load(&config(V4));
    let (earlier, device) = (scene.ours(), scene.device);
    scene.lab.within(|| drop(std::mem::replace(&mut scene.steer, next)));
    assert_eq!((scene.attached(OURS), scene.attached(OURS + 1)), (earlier, Some(other)), "it outlives its owner");
    assert!(scene.lab.within(|| steer::remove(None, &[device])).unwrap(), "it is found without a pin");
    assert!(!scene.lab.within(|| steer::remove(None, &[device])).unwrap(), "nothing to do is success");
    assert_eq!((scene.attached(OURS), scene.attached(OURS + 1)), (None, Some(other)));
}

#[test]
fn a_filter_of_a_killed_process_is_replaced_and_a_foreign_one_is_not() {
    if !is_root() {
        return;
    }
    let mut scene = Scene::new(TcChoice::Clsact);
    let stale = scene.attach_other("pod_steer", OURS);
    assert_eq!(scene.attached(OURS), Some(stale));
    scene.attach().unwrap();
    assert_eq!(scene.attached(OURS), scene.ours());
    scene.detach();
    let foreign = scene.attach_other("hub_drop", OURS);
    let error = scene.attach().unwrap_err().to_string();
    assert!(error.contains("(clsact)") && error.contains(&format!("bpftool prog show id {foreign}")), "{error}");
    assert_eq!(scene.attached(OURS), Some(foreign));
}

#[test]
fn is_chosen_by_itself_only_where_the_kernel_has_no_tcx() {
    if !is_root() {
        return;
    }
    let mut scene = Scene::new(TcChoice::Auto);
    scene.attach().unwrap();
    assert_eq!(scene.attached(OURS), None, "this kernel has tcx");
    scene.detach();
    for missing in [libc::EINVAL, libc::EOPNOTSUPP] {
        attach_without_links(&mut scene, missing).unwrap();
        assert_eq!(scene.attached(OURS), scene.ours());
        scene.detach();
    }
    let error = attach_without_links(&mut scene, libc::EPERM).unwrap_err();
    assert!(matches!(error, SteerError::Attach { mode: "tcx", .. }), "{error}");
    assert_eq!(scene.attached(OURS), None, "another refusal is no reason");
    scene.attach_other("hub_drop", OURS);
    let error = attach_without_links(&mut scene, libc::EINVAL).unwrap_err().to_string();
    assert!(error.contains("tcx (Invalid argument") && error.contains("Linux 6.6"), "{error}");
    assert!(error.contains("clsact filter (its ingress filter") && error.contains("Linux 6.1"), "{error}");
}

/// Attaches as on a kernel that refuses links with `errno`.
fn attach_without_links(scene: &mut Scene, errno: i32) -> Result<(), SteerError> {
    let Scene { lab, device, steer, .. } = scene;
    lab.within(|| {
        refuse(LINK_CREATE, errno);
        steer.attach_pod(*device)
    })
}
