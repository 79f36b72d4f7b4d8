//! What outlives the process that attached it, and how the next one takes it over.

use std::path::PathBuf;
use std::process::Command;

use libbpf_rs::{Link, MapCore, MapHandle, Program as Loaded};
use podwire::ids::{HubEnds, IfIndex};
use podwire::steer::{self, Pins, PodPath, Program, Steer, SteerError, TcChoice, UplinkChoice, XdpMode};

use crate::lab::Lab;
use crate::packets::*;
use crate::rig::{MTU, Scratch, config, is_root, pod, refuse, run};

/// The devices of a scene, and those at their other ends.
const DEVICES: [(&str, &str); 4] = [("uplink", "wire"), ("pwhub0", "pwhub1"), ("pw1", "eth1"), ("podwire.1", "tunnel")];

/// A namespace with an uplink, a hub, the host end of a pod's veth pair and what stands for a VXLAN device.
struct Scene {
    lab: Lab,
    pins: PathBuf,
}

/// A link as it is pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    link: u32,
    program: u32,
}

impl Scene {
    /// None, and a word of it, without root.
    fn new() -> Option<Self> {
        is_root().then(Self::build)
    }

    fn build() -> Self {
        let lab = Lab::new();
        for (near, far) in DEVICES {
            lab.veth(near, far);
        }
        let pins = PathBuf::from(format!("/sys/fs/bpf/podwire/{}", lab.cookie()));
        Self { lab, pins }
    }

    fn attach_all(&self, steer: &mut Steer) -> Option<XdpMode> {
        let [uplink, near, far, pod] = ["uplink", "pwhub0", "pwhub1", "pw1"].map(|name| self.lab.ifindex(name));
        let (hub, tunnel) = (HubEnds { near, far }, self.lab.ifindex("podwire.1"));
        self.lab.within(|| {
            steer.attach_hub(hub).unwrap();
            steer.attach_pod(pod).unwrap();
            steer.attach_tunnel(tunnel).unwrap();
            steer.attach_uplink(uplink, UplinkChoice::Auto).unwrap()
        })
    }

    /// Programs that are attached everywhere, by what `choice` says.
    fn attached_by(&self, choice: TcChoice) -> Steer {
        let mut steer = self.lab.load(&config(V4));
        steer.set_tc(choice);
        self.attach_all(&mut steer);
        steer
    }

    fn pod_link(&self) -> String {
        format!("pod_{}", self.lab.ifindex("pw1"))
    }

    fn tunnel_link(&self) -> String {
        format!("tunnel_{}", self.lab.ifindex("podwire.1"))
    }

    fn held(&self, name: &str) -> Held {
        let info = Link::open(self.pins.join("links").join(name)).unwrap().info().unwrap();
        Held { link: info.id, program: info.prog_id }
    }

    fn links(&self) -> [Held; 5] {
        [&self.pod_link(), "hub", "uplink", "hub_far", &self.tunnel_link()].map(|name| self.held(name))
    }

    fn pinned_links(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.pins.join("links")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Detaches a link as an operator would.
    fn detach_by_hand(&self, name: &str) {
        let status = Command::new("bpftool").args(["link", "detach", "id", &self.held(name).link.to_string()]).status();
        assert!(status.unwrap().success());
    }
}

fn frame() -> Vec<u8> {
    udp([POD_A_MAC, GATEWAY_MAC], [POD_A[V4], REMOTE_POD[V4]], [1, 2], b"x")
}

fn frames_judged(steer: &Steer) -> u64 {
    steer.verdicts().unwrap().into_iter().map(|(_, _, frames)| frames).sum()
}

fn program_id(steer: &Steer, program: Program) -> u32 {
    Loaded::id_from_fd(steer.program_fd(program)).unwrap()
}

#[test]
fn the_next_process_exchanges_the_programs_of_the_links_that_are_there() {
    let Some(scene) = Scene::new() else { return };
    let mut first = scene.lab.load(&config(V4));
    let mode = scene.attach_all(&mut first);
    let before = scene.links();
    drop(first);
    assert_eq!(scene.links(), before, "they outlive their process");
    let mut next = scene.lab.load(&config(V4));
    assert_eq!(scene.links(), before, "loading exchanges nothing");
    assert_eq!(scene.attach_all(&mut next), mode);
    let after = scene.links();
    assert_eq!(after.map(|held| held.link), before.map(|held| held.link), "no link is made anew");
    assert!(before.iter().zip(after).all(|(before, after)| before.program != after.program), "{before:?} {after:?}");
    let programs = [Program::Pod, Program::Nic, Program::Tunnel].map(|program| program_id(&next, program));
    assert_eq!([after[0].program, after[2].program, after[4].program], programs);
}

#[test]
fn a_program_takes_over_from_another_one_of_the_same_process() {
    let Some(scene) = Scene::new() else { return };
    let mut first = scene.lab.load(&config(V4));
    scene.attach_all(&mut first);
    let before = scene.links();
    let mut next = scene.lab.load(&config(V4));
    scene.attach_all(&mut next);
    drop(first);
    assert_eq!(scene.links().map(|held| held.link), before.map(|held| held.link));
    assert_eq!(scene.held("uplink").program, program_id(&next, Program::Nic));
}

#[test]
fn the_maps_are_fresh_and_pinned_and_the_counters_go_on() {
    let Some(scene) = Scene::new() else { return };
    let first = scene.lab.load(&config(V4));
    first.add_local(POD_A[V4], &pod(1, IfIndex(1), POD_A_MAC), PodPath::Fast).unwrap();
    first.add_remote(REMOTE_RANGE[V4].parse().unwrap(), MTU, None).unwrap();
    run(first.program_fd(Program::Pod), &frame(), Some(0)).unwrap();
    let pinned = |name: &str| MapHandle::from_pinned_path(scene.pins.join("maps").join(name)).unwrap();
    assert_eq!((frames_judged(&first), pinned("local4").keys().count(), pinned("remote4").keys().count()), (1, 1, 1));
    drop(first);
    let next = scene.lab.load(&config(V4));
    assert_eq!((frames_judged(&next), pinned("local4").keys().count(), pinned("remote4").keys().count()), (1, 0, 0));
    run(next.program_fd(Program::Pod), &frame(), Some(0)).unwrap();
    assert_eq!(frames_judged(&next), 2);
}

#[test]
fn counters_that_are_laid_out_otherwise_are_not_taken_over() {
    let Some(scene) = Scene::new() else { return };
    drop(scene.lab.load(&config(V4)));
    let (other, counters) = (scene.pins.join("maps/other"), scene.pins.join("maps/verdicts"));
    let create = format!("map create {} type percpu_array key 4 value 8 entries 2 name verdicts", other.display());
    assert!(Command::new("bpftool").args(create.split(' ')).status().unwrap().success());
    std::fs::rename(other, counters).unwrap();
    let next = scene.lab.load(&config(V4));
    run(next.program_fd(Program::Pod), &frame(), Some(0)).unwrap();
    assert_eq!(frames_judged(&next), 1);
}

#[test]
fn a_link_whose_device_has_gone_is_replaced() {
    let Some(scene) = Scene::new() else { return };
    scene.attach_all(&mut scene.lab.load(&config(V4)));
    let before = scene.links();
    let gone = [scene.pod_link(), scene.tunnel_link()];
    for (near, far) in DEVICES {
        scene.lab.ip(&format!("link del {near}"));
        scene.lab.veth(near, far);
    }
    let mut next = scene.lab.load(&config(V4));
    scene.attach_all(&mut next);
    let after = scene.links();
    assert!(before.iter().all(|before| after.iter().all(|after| after.link != before.link)), "{before:?} {after:?}");
    assert!(gone.iter().all(|gone| scene.pinned_links().contains(gone)));
    next.detach_other_devices().unwrap();
    assert_eq!(scene.pinned_links(), ["hub", "hub_far", &scene.pod_link(), &scene.tunnel_link(), "uplink"]);
}

#[test]
fn a_pin_with_another_devices_link_or_no_link_at_all_is_replaced() {
    let Some(scene) = Scene::new() else { return };
    let mut steer = scene.lab.load(&config(V4));
    scene.attach_all(&mut steer);
    let links = scene.pins.join("links");
    std::fs::rename(links.join("hub"), links.join(scene.pod_link())).unwrap();
    std::fs::rename(scene.pins.join("maps/configs"), links.join("hub")).unwrap();
    let mut next = scene.lab.load(&config(V4));
    scene.attach_all(&mut next);
    let [pod, hub, ..] = scene.links();
    assert_eq!(pod.program, program_id(&next, Program::Pod));
    assert_ne!(hub.link, pod.link);
}

#[test]
fn what_the_kernel_does_not_tell_about_stays_attached() {
    /// Commands of bpf(2) (include/uapi/linux/bpf.h).
    const OBJ_GET: u32 = 7;
    const OBJ_GET_INFO_BY_FD: u32 = 15;
    const LINK_UPDATE: u32 = 29;
    let Some(scene) = Scene::new() else { return };
    let mut first = scene.lab.load(&config(V4));
    scene.attach_all(&mut first);
    let before = scene.links();
    let [uplink, near, far, pod] = ["uplink", "pwhub0", "pwhub1", "pw1"].map(|name| scene.lab.ifindex(name));
    let hub = HubEnds { near, far };
    let mut next = scene.lab.load(&config(V4));
    for command in [OBJ_GET, OBJ_GET_INFO_BY_FD, LINK_UPDATE] {
        let refused = scene.lab.within(|| {
            refuse(command, libc::EMFILE);
            [next.attach_uplink(uplink, UplinkChoice::Auto).map(drop), next.attach_hub(hub), next.attach_pod(pod)]
        });
        assert!(refused.iter().all(Result::is_err), "{command}: {refused:?}");
        assert_eq!(scene.links(), before, "{command}");
    }
    scene.attach_all(&mut next);
    assert_eq!(scene.links().map(|held| held.link), before.map(|held| held.link));
}

#[test]
fn the_mode_of_xdp_changes_by_a_new_link_and_nothing_of_the_other_stays() {
    let Some(scene) = Scene::new() else { return };
    let uplink = scene.lab.ifindex("uplink");
    let attach = |choice| {
        let mut steer = scene.lab.load(&config(V4));
        let mode = scene.lab.within(|| steer.attach_uplink(uplink, choice)).unwrap();
        (mode, scene.held("uplink").link)
    };
    let (native, first) = attach(UplinkChoice::Native);
    let (generic, second) = attach(UplinkChoice::Generic);
    assert_eq!((native, generic), (Some(XdpMode::Native), Some(XdpMode::Generic)));
    assert_ne!(first, second);
    assert_eq!(attach(UplinkChoice::Generic), (Some(XdpMode::Generic), second));
    let (best, third) = attach(UplinkChoice::Auto);
    assert_eq!(best, Some(XdpMode::Native), "what the driver can is taken again");
    assert_eq!(attach(UplinkChoice::AnyXdp), (Some(XdpMode::Native), third));
    let mut steer = scene.lab.load(&config(V4));
    let other = scene.lab.ifindex("pw1");
    scene.lab.within(|| steer.attach_uplink(other, UplinkChoice::Auto)).unwrap();
    let state = scene.lab.ip_output("link show uplink");
    assert!(!state.contains("xdp"), "it is not left behind on the other device: {state}");
}

#[test]
fn what_somebody_detaches_is_attached_again() {
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let Some(scene) = Scene::new() else { return };
        let mut steer = scene.attached_by(choice);
        let mut repair = || {
            let repairs = scene.lab.within(|| steer.repair());
            assert!(repairs.iter().all(|repair| repair.outcome.is_ok()), "{repairs:?}");
            let mut programs: Vec<_> = repairs.iter().map(|repair| repair.program).collect();
            programs.sort_unstable();
            programs
        };
        assert_eq!(repair(), [""; 0]);
        scene.detach_by_hand("uplink");
        if choice == TcChoice::Tcx {
            scene.detach_by_hand("hub");
            scene.detach_by_hand("hub_far");
            scene.detach_by_hand(&scene.pod_link());
            scene.detach_by_hand(&scene.tunnel_link());
        } else {
            scene.lab.tc("qdisc del dev pw1 clsact");
            scene.lab.tc("qdisc del dev pwhub0 clsact");
            scene.lab.tc("qdisc del dev pwhub1 clsact");
            scene.lab.tc("qdisc del dev podwire.1 clsact");
        }
        assert_eq!(repair(), ["hub_deliver", "hub_drop", "nic_steer", "pod_steer", "tunnel_steer"]);
        assert_eq!(repair(), [""; 0], "{choice:?}");
        scene.held("uplink");
        std::fs::remove_file(scene.pins.join("links/uplink")).unwrap();
        assert_eq!(repair(), ["nic_steer"]);
        assert_eq!(repair(), [""; 0]);
    }
}

#[test]
fn a_tunnel_can_be_left_alone_by_whoever_did_not_attach_there() {
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let Some(scene) = Scene::new() else { return };
        let first = scene.attached_by(choice);
        let (tunnel, link) = (scene.lab.ifindex("podwire.1"), scene.tunnel_link());
        let is_attached = || {
            let of_tcx = scene.pinned_links().contains(&link);
            of_tcx || scene.lab.tc_output("filter show dev podwire.1 ingress").contains("tunnel_steer")
        };
        assert!(is_attached(), "{choice:?}");
        drop(first);
        let mut next = scene.lab.load(&config(V4));
        next.set_tc(choice);
        for _ in 0..2 {
            scene.lab.within(|| next.detach_tunnel(tunnel)).unwrap();
            assert!(!is_attached(), "{choice:?}");
        }
        scene.lab.ip("link del podwire.1");
        scene.lab.within(|| next.detach_tunnel(tunnel)).expect("nothing to do is success");
    }
}

#[test]
fn what_cannot_be_repaired_is_reported_each_time() {
    let Some(scene) = Scene::new() else { return };
    let mut steer = scene.lab.load(&config(V4));
    scene.attach_all(&mut steer);
    scene.lab.ip("link del pw1");
    for _ in 0..2 {
        let repairs = scene.lab.within(|| steer.repair());
        assert!(matches!(&repairs[..], [one] if one.program == "pod_steer" && one.outcome.is_err()), "{repairs:?}");
    }
}

#[test]
fn removal_leaves_nothing_while_the_owner_lives_and_can_be_repeated() {
    for choice in [TcChoice::Tcx, TcChoice::Clsact] {
        let Some(scene) = Scene::new() else { return };
        let mut steer = scene.attached_by(choice);
        let devices = ["pw1", "pwhub0", "pwhub1", "podwire.1"].map(|name| scene.lab.ifindex(name));
        for _ in 0..2 {
            scene.lab.within(|| steer::remove(Pins::find(scene.lab.cookie()), &devices)).unwrap();
            assert!(!scene.pins.exists());
            assert!(!scene.lab.ip_output("link show uplink").contains("xdp"));
        }
        let repairs = scene.lab.within(|| steer.repair());
        assert_eq!(repairs.len(), 5, "nothing was attached any more: {repairs:?}");
    }
}

#[test]
fn a_removal_that_was_cut_short_can_be_finished() {
    let Some(scene) = Scene::new() else { return };
    for gone in ["links", "maps"] {
        let pins = Pins::open(scene.lab.cookie()).unwrap();
        std::fs::remove_dir(scene.pins.join(gone)).unwrap();
        pins.remove().unwrap();
        assert!(!scene.pins.exists(), "{gone}");
    }
}

#[test]
fn pins_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let Some(scene) = Scene::new() else { return };
    drop(scene.lab.load(&config(V4)));
    for dir in [scene.pins.clone(), scene.pins.join("links"), scene.pins.join("maps")] {
        assert_eq!(std::fs::metadata(dir).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    std::os::unix::fs::chown(&scene.pins, Some(1000), None).unwrap();
    let error = Pins::open(scene.lab.cookie()).unwrap_err();
    assert!(matches!(&error, SteerError::Pins { path, .. } if *path == scene.pins), "{error}");
    assert!(error.to_string().contains("of user 1000; remove it"), "{error}");
}

#[test]
fn one_bpf_file_system_is_mounted_where_none_is_however_many_ask() {
    if !is_root() {
        return;
    }
    let scratches = [Scratch::new(), Scratch::new(), Scratch::new()];
    let (mounted, error) = without_bpffs(|| {
        std::thread::scope(|scope| {
            let opening: Vec<_> = scratches.iter().map(|scratch| scope.spawn(|| scratch.pins())).collect();
            for pins in opening {
                pins.join().unwrap();
            }
        });
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        shell("mount -t tmpfs none /sys/fs");
        (mounts.matches(" /sys/fs/bpf bpf ").count(), Pins::open(1).unwrap_err().to_string())
    });
    assert_eq!(mounted, 1);
    assert!(error.starts_with("cannot mount a BPF file system on /sys/fs/bpf: No such file"), "{error}");
    assert!(error.contains("`mount -t bpf bpf /sys/fs/bpf`"), "{error}");
}

/// Works in a mount namespace of its own in which no BPF file system is mounted by custom.
fn without_bpffs<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        // SAFETY: takes and touches no memory; this thread ends with `work`.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        shell("mount --make-rprivate / && while umount /sys/fs/bpf 2>/dev/null; do :; done");
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).unwrap()
}

fn shell(line: &str) {
    assert!(Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
}
