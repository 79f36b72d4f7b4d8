//! Evidence of a node in good order, which tests spoil.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::evidence::{
    CniFile, Configured, Cpu, Cpus, Daemon, Directory, Evidence, Interrupt, Kernel, Memory, Network, Place, PodDevices,
    Privileges, Trials, Uplink,
};
use super::finding::{Fix, Opinion, Severity};
use crate::config::{Config, Mode};
use crate::control::api::{
    ConfigStatus, DataplaneReport, DataplaneState, Masquerade, Nat, NatCheck, Path, Peer, Probe, ProbeState, Range,
    Status, Vxlan, Way,
};
use crate::control::netlink::{self, Link, LinkConf, LinkKind};
use crate::control::view::{DataplaneStatus, FrameLedger, TimesStatus, WorkerStatus};
use crate::ids::IfIndex;
use crate::steer::{XdpDevice, XdpDriver};
use crate::wire::Mac;
use crate::xsk::{Deferral, Driver, Queues, Rings};

const CONFIG: &str = r#"
[node]
name = "node-a"
uplink = "eth0"
pod_cidrs = ["10.244.1.0/24"]
[cluster]
pod_cidrs = ["10.244.0.0/16"]
[dataplane]
mode = "kernel"
frames = 8192
[[peers]]
name = "node-b"
underlay = "192.168.1.3"
pod_cidrs = ["10.244.2.0/24"]
"#;

/// Says what a check must say of a healthy node after `change`: one opinion of `severity` that has `word` somewhere.
#[track_caller]
pub fn assert_says(
    check: fn(&Evidence) -> Vec<Opinion>,
    change: impl Fn(&mut Evidence),
    severity: Severity,
    word: &str,
) {
    let mut evidence = healthy();
    change(&mut evidence);
    let opinions = check(&evidence);
    let fix = |opinion: &Opinion| match &opinion.fix {
        Some(Fix::Command(text) | Fix::Advice(text)) => text.clone(),
        Some(Fix::Tuning(profile)) => profile.name().to_owned(),
        None => String::new(),
    };
    let says = |opinion: &Opinion| format!("{} {} {}", opinion.evidence, opinion.meaning, fix(opinion)).contains(word);
    let found = opinions.iter().any(|opinion| opinion.severity == severity && says(opinion));
    assert!(found, "no {severity:?} with `{word}`: {opinions:#?}");
}

pub fn config(evidence: &mut Evidence) -> &mut Config {
    match &mut evidence.config {
        Configured::Valid(_, config) => config,
        other => panic!("{other:?}"),
    }
}

pub fn uplink(evidence: &mut Evidence) -> &mut Uplink {
    evidence.uplink.as_mut().and_then(|uplink| uplink.as_mut().ok()).expect("an uplink")
}

pub fn link<'a>(evidence: &'a mut Evidence, name: &str) -> &'a mut Link {
    let links = evidence.network.links.as_mut().expect("devices");
    links.iter_mut().find(|link| link.name == name).expect("a device")
}

pub fn healthy() -> Evidence {
    let mut config = Config::parse(CONFIG).expect("a valid configuration");
    config.dataplane.mode = Mode::Adaptive;
    config.dataplane.cores = vec![1, 3];
    let vxlan = netlink::Vxlan {
        vni: config.vxlan.vni,
        port: config.vxlan.port,
        local: IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2)),
        uplink: IfIndex(2),
        udp_checksum: false,
        gbp: false,
    };
    let (eth0, tunnel) =
        (device(2, "eth0", 1500, LinkKind::Other), device(3, "podwire.1", 1450, LinkKind::Vxlan(vxlan)));
    Evidence {
        config: Configured::Valid("/etc/podwire.toml".into(), Box::new(config)),
        daemon: Daemon::Well { status: Box::new(status()), pods: Vec::new(), ranges: vec![range()] },
        kernel: Kernel { release: "6.18.0".into(), btf: true, jit: Some("1".into()), knows_conntrack: true },
        trials: Trials {
            namespace: Some(Ok(())),
            veth: Some(Ok(())),
            vxlan: Some(Ok(())),
            programs: Some(Ok(())),
            xdp: Some(Ok(())),
            tcx: Some(Ok(())),
            packet_socket: Some(Ok(())),
            xdp_socket: Some(Ok(())),
            xdp_queue: Some(Ok(())),
        },
        privileges: Privileges { root: true, effective: Ok(u64::MAX), lockable: Ok(Some(0)), bpffs: Ok(true) },
        cpus: cpus(),
        memory: Memory { hugepages: Some((64, 64)), transparent: Some("never".into()) },
        uplink: Some(Ok(Uplink {
            link: eth0.clone(),
            driver: Ok(Driver { name: "mlx5_core".into(), bus: "0000:01:00.0".into() }),
            queues: Ok(Queues { receive: 2, send: 2 }),
            rings: Ok(Rings { rx: 1024, rx_max: 8192, tx: 1024, tx_max: 8192 }),
            hashes_ports: Ok(true),
            xdp: Ok(XdpDevice { driver: Some(XdpDriver { native: true, zero_copy: true }), ..XdpDevice::default() }),
            numa_node: Some(0),
            interrupts: vec![Interrupt { number: 24, cpus: vec![1] }],
            deferral: Some(Deferral { hard_irqs: 0, timeout_ns: 0 }),
        })),
        network: Network {
            links: Ok(vec![eth0, tunnel]),
            rp_filter_all: Some(0),
            forwarding: Some(1),
            conntrack: Some((10, 1000)),
            filters: Ok(Vec::new()),
            pods: vec![PodDevices {
                name: "web".into(),
                host_ifname: "pw1".into(),
                host_mtu: Some(1450),
                pod_mtu: Some(1450),
                foreign: Ok(Vec::new()),
            }],
        },
        place: place(),
    }
}

/// Everything wrong at once, as far as that goes.
pub fn ill() -> Evidence {
    let mut evidence = healthy();
    evidence.daemon = Daemon::Ill("no answer".into());
    evidence.kernel = Kernel { release: "5.4.0".into(), jit: Some("0".into()), ..Kernel::default() };
    evidence.privileges = Privileges { root: false, effective: Ok(0), lockable: Ok(Some(0)), bpffs: Ok(false) };
    evidence.memory = Memory::default();
    evidence.cpus.online.clear();
    evidence.network.rp_filter_all = Some(1);
    evidence.network.forwarding = Some(0);
    evidence.network.conntrack = Some((1, 1));
    evidence.place.runtime = Ok(Some(Directory { free_bytes: 0, ..directory() }));
    link(&mut evidence, "podwire.1").alias.clear();
    let refused = || Some(Err(std::io::Error::from_raw_os_error(libc::EPERM)));
    evidence.trials = Trials { namespace: refused(), programs: refused(), ..Trials::default() };
    let uplink = uplink(&mut evidence);
    uplink.link.mtu = 1280;
    uplink.hashes_ports = Ok(false);
    uplink.queues = Ok(Queues { receive: 2, send: 0 });
    uplink.numa_node = Some(7);
    evidence
}

fn device(index: u32, name: &str, mtu: u32, kind: LinkKind) -> Link {
    Link {
        index: IfIndex(index),
        name: name.into(),
        alias: if kind == LinkKind::Other { String::new() } else { "podwire".into() },
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu,
        up: true,
        running: true,
        master: None,
        lower: None,
        kind,
        conf: LinkConf { rp_filter: Some(0), ..LinkConf::default() },
    }
}

fn cpus() -> Cpus {
    let cpu =
        |id| Cpu { id, siblings: vec![id], numa_node: Some(0), governor: Some("performance".into()), ..Cpu::default() };
    Cpus { online: (0..8).collect(), isolated: vec![1, 3], workers: vec![cpu(1), cpu(3)] }
}

fn directory() -> Directory {
    Directory { is_dir: true, mode: 0o700, is_ours: true, unwritable: None, free_bytes: 1 << 30 }
}

fn place() -> Place {
    Place {
        runtime_dir: "/run/podwire".into(),
        runtime: Ok(Some(directory())),
        cni_dir: "/etc/cni/net.d".into(),
        cni: Ok(vec![CniFile { name: "10-podwire.conflist".into(), is_ours: true }]),
    }
}

fn status() -> Status {
    let worker = |worker, core| WorkerStatus {
        worker,
        core,
        pinned: true,
        load: 0.1,
        times: TimesStatus::default(),
        asleep: false,
        fresh: true,
        heartbeat_age_ns: Some(0),
        probation: None,
        frames: FrameLedger { total: 8, pool: 8, ..FrameLedger::default() },
        counts: BTreeMap::new(),
        drops: BTreeMap::new(),
    };
    let figures = DataplaneStatus {
        xdp: "native".into(),
        memory: "hugepages".into(),
        workers: vec![worker(0, 1), worker(1, 3)],
        ..DataplaneStatus::default()
    };
    Status {
        version: "0.1.0".into(),
        node: "node-a".into(),
        mode: "adaptive".into(),
        uptime_secs: 60,
        config: ConfigStatus { file: "/etc/podwire.toml".into(), generation: 1, last_error: None },
        dataplane: DataplaneReport {
            state: DataplaneState::Running,
            reason: None,
            retry_secs: None,
            figures: Some(figures),
        },
        uplink: None,
        vxlan: Vxlan {
            device: "podwire.1".into(),
            vni: 1,
            port: 8472,
            vtep: None,
            vtep_mac: None,
            second: None,
            mtu: Some(1450),
        },
        hub: None,
        nat: Nat { check: NatCheck::None, why: String::new() },
        masquerade: Masquerade { on: false, problem: None },
        kubernetes: None,
        peers: vec![Peer {
            name: "node-b".into(),
            underlay: IpAddr::V4(Ipv4Addr::new(192, 168, 1, 3)),
            vtep_mac: "02:70:c0:a8:01:03".into(),
            underlay6: None,
            vtep_mac6: None,
            ways: vec![Way::Vxlan],
            path: Path::Fast,
            reason: None,
            probe: Some(probe()),
        }],
        pods: 1,
        slow_pods: Vec::new(),
        problems: Vec::new(),
    }
}

/// Of which little is used.
fn range() -> Range {
    let cidr = "10.244.1.0/24".parse().expect("a range");
    Range { cidr, capacity: 254, used: 3, quarantined: 1, free: 250 }
}

/// Of a peer that answers.
fn probe() -> Probe {
    Probe {
        address: IpAddr::V4(Ipv4Addr::new(10, 244, 2, 0)),
        state: ProbeState::Answers,
        rtt_ns: Some(90_000),
        smoothed_rtt_ns: Some(100_000),
        sent: 40,
        lost: 0,
        recent: 32,
        recent_lost: 0,
        answered_ms_ago: Some(10),
        diagnosis: None,
    }
}
