//! Nodes on one switch, each a network namespace, pods too; all gone when the [`Lab`] is.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use podwire::config::Config;
use podwire::control::kernel::{Kernel, Reconciled, Vtep};
use podwire::control::netns::Netns;
use podwire::control::wiring::{Attach, Pod};
use podwire::ids::PodId;

/// The underlay's family.
#[derive(Clone, Copy, PartialEq)]
pub enum Underlay {
    V4,
    V6,
}

impl Underlay {
    /// The address of node `index`.
    pub fn address(self, index: u8) -> String {
        match self {
            Self::V4 => format!("192.168.1.{}", index + 1),
            Self::V6 => format!("fd00:192:168:1::{}", index + 1),
        }
    }
}

/// A switch and what hangs on it.
pub struct Lab {
    prefix: String,
    pub underlay: Underlay,
}

impl Lab {
    /// `None`, and a word about it, when namespaces cannot be made.
    pub fn new(underlay: Underlay) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // SAFETY: takes nothing, cannot fail.
        if unsafe { libc::geteuid() } != 0 {
            println!("skipped: needs root");
            return None;
        }
        let prefix = format!("kp{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { prefix, underlay };
        lab.namespace("switch");
        lab.ip("switch", "link add br0 type bridge");
        lab.ip("switch", "link set br0 up");
        Some(lab)
    }

    fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub fn netns_path(&self, name: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns(name))
    }

    pub fn namespace(&self, name: &str) {
        succeed(Command::new("ip").args(["netns", "add", &self.netns(name)]));
        self.ip(name, "link set lo up");
    }

    pub fn remove(&self, name: &str) {
        succeed(Command::new("ip").args(["netns", "del", &self.netns(name)]));
    }

    /// `ip ARGUMENTS` inside a namespace; must succeed.
    pub fn ip(&self, name: &str, arguments: &str) -> String {
        self.run(name, &format!("ip {arguments}"))
    }

    /// A command inside a namespace; must succeed.
    pub fn run(&self, name: &str, command: &str) -> String {
        let output = self.output(name, command);
        assert!(output.status.success(), "{name}: {command}: {}", text(&output));
        text(&output)
    }

    pub fn output(&self, name: &str, command: &str) -> Output {
        let mut words = command.split_whitespace();
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--net={}", self.netns_path(name).display())).arg(words.next().unwrap()).args(words);
        inside.output().unwrap()
    }

    /// Runs `work` on the kernel of a node.
    pub fn kernel<T: Send>(&self, node: &str, work: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        Netns::open(&self.netns_path(node)).unwrap().within(|| work(&mut Kernel::new().unwrap())).unwrap()
    }

    /// Node number `index` with its uplink `eth0` on the switch and, so that the wire carries whole
    /// checksums as a real one does, without transmit offload.
    pub fn node(&self, name: &str, index: u8) {
        self.namespace(name);
        let (port, switch) = (format!("p{index}"), self.netns("switch"));
        self.ip(name, &format!("link add eth0 type veth peer name {port} netns {switch}"));
        self.ip("switch", &format!("link set {port} master br0 up"));
        self.run(name, "ethtool -K eth0 tx off");
        let length = if self.underlay == Underlay::V4 { 24 } else { 64 };
        self.ip(name, &format!("address add {}/{length} dev eth0 nodad", self.underlay.address(index)));
        self.ip(name, "link set eth0 up");
    }

    /// A node of plain commands, laid out as Flannel does, with a pod `NAME-pod` at host part 9.
    pub fn plain_node(&self, name: &str, index: u8, mac: &str, peers: &[(u8, &str)]) {
        self.node(name, index);
        self.skip_dad(name);
        for key in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            self.run(name, &format!("sysctl -qw {key}"));
        }
        let local = self.underlay.address(index);
        let device =
            format!("link add flannel.1 address {mac} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning");
        self.ip(name, &device);
        let mtu = if self.underlay == Underlay::V4 { 1450 } else { 1430 };
        self.ip(name, &format!("link set flannel.1 mtu {mtu} up"));
        self.ip(name, &format!("address add 10.244.{index}.0/32 dev flannel.1"));
        self.ip(name, &format!("address add fd00:244:{index}::/128 dev flannel.1 nodad"));
        for (peer, mac) in peers {
            let vtep = self.underlay.address(*peer);
            self.run(name, &format!("bridge fdb replace {mac} dev flannel.1 self permanent dst {vtep}"));
            for (range, first) in [
                (format!("10.244.{peer}.0/24"), format!("10.244.{peer}.0")),
                (format!("fd00:244:{peer}::/64"), format!("fd00:244:{peer}::")),
            ] {
                self.ip(name, &format!("neigh replace {first} lladdr {mac} dev flannel.1 nud permanent"));
                self.ip(name, &format!("route replace {range} via {first} dev flannel.1 onlink"));
            }
        }
        self.plain_pod(name, index, mtu);
    }

    /// Lets plain devices made from now on use their link-local addresses at once.
    fn skip_dad(&self, name: &str) {
        self.run(name, "sysctl -qw net.ipv6.conf.default.accept_dad=0");
    }

    fn plain_pod(&self, name: &str, index: u8, mtu: u32) {
        let pod = format!("{name}-pod");
        self.namespace(&pod);
        self.skip_dad(&pod);
        self.ip(name, &format!("link add vpod type veth peer name eth0 netns {}", self.netns(&pod)));
        self.ip(name, &format!("link set vpod mtu {mtu} up"));
        self.ip(name, &format!("address add 10.244.{index}.1/24 dev vpod"));
        self.ip(name, &format!("address add fd00:244:{index}::1/64 dev vpod nodad"));
        self.ip(&pod, &format!("link set eth0 mtu {mtu} up"));
        self.ip(&pod, &format!("address add 10.244.{index}.9/24 dev eth0"));
        self.ip(&pod, &format!("address add fd00:244:{index}::9/64 dev eth0 nodad"));
        self.ip(&pod, &format!("route add default via 10.244.{index}.1"));
        self.ip(&pod, &format!("-6 route add default via fd00:244:{index}::1"));
    }

    /// The configuration of node `index` with peers given as (index, VTEP MAC or none).
    pub fn config(&self, index: u8, peers: &[(u8, Option<&str>)]) -> String {
        let ranges = |index: u8| format!("pod_cidrs = [\"10.244.{index}.0/24\", \"fd00:244:{index}::/64\"]\n");
        let mut text = format!("[node]\nname = \"node-{index}\"\nuplink = \"eth0\"\n{}", ranges(index));
        text += "[cluster]\npod_cidrs = [\"10.244.0.0/16\", \"fd00:244::/32\"]\n[dataplane]\nmode = \"kernel\"\n";
        for (peer, mac) in peers {
            let vtep = self.underlay.address(*peer);
            text += "[[peers]]\n";
            text += &[format!("name = \"node-{peer}\"\nunderlay = \"{vtep}\"\n"), ranges(*peer)].concat();
            text += &mac.map(|mac| format!("vtep_mac = \"{mac}\"\n")).unwrap_or_default();
        }
        text
    }

    /// Reconciles a node; nothing may fail.
    pub fn reconcile(&self, node: &str, config: &str, pods: &[Pod]) -> Reconciled {
        let config = Config::parse(config).unwrap();
        let done = self.kernel(node, |kernel| kernel.reconcile(&config, pods)).unwrap();
        assert!(done.failures.is_empty(), "{:#?}", done.failures);
        done
    }

    /// A pod of node number `index`, in a namespace of its own called `name`.
    pub fn pod(&self, node: &str, index: u8, id: u16, vtep: &Vtep, name: &str) -> Pod {
        self.namespace(name);
        let request = self.request(index, id, name);
        self.kernel(node, |kernel| kernel.attach(vtep, &request)).unwrap()
    }

    pub fn request(&self, index: u8, id: u16, name: &str) -> Attach {
        Attach {
            id: PodId::new(id).unwrap(),
            name: name.to_owned(),
            netns: self.netns_path(name),
            ifname: "eth0".to_owned(),
            addresses: vec![
                format!("10.244.{index}.{id}").parse().unwrap(),
                format!("fd00:244:{index}::{id}").parse().unwrap(),
            ],
        }
    }

    /// The output of `ping` from a pod to the pod with host part `id` of node `index`.
    pub fn ping(&self, from: &str, target: &str, options: &str) -> String {
        text(&self.output(from, &format!("ping -n -c 1 -W 2 {options} {target}")))
    }

    /// Asserts that `from` reaches `target`.
    #[track_caller]
    pub fn reaches(&self, from: &str, target: &str) {
        let said = self.ping(from, target, "");
        assert!(said.contains(" 0% packet loss"), "{from} -> {target}: {said}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
        let ours = format!("{}-", self.prefix);
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            if name.starts_with(&ours) {
                let _ = Command::new("ip").args(["netns", "del", &name]).output();
            }
        }
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}
