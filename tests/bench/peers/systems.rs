//! What is measured: pairs of nodes with one wire between them, of podwire and of its peers.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use podwire::config::derive_vtep_mac;

use super::machine::cores;
use super::relay::{Relay, RelayNode};
use super::routes;
use crate::harness::{
    Host, KernelNode, Options, OvsNode, Peer, Pod, PodwireNode, Prefix, Shape, Wire, cable, pings, wait_until,
};

/// How long the first packet between two pods may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a node is set up.
#[derive(Clone, Copy)]
pub enum Kind {
    Kernel(Shape),
    /// As Flannel's, with an XDP program on the uplink that lets everything pass: what XDP costs before it is of use.
    Xdp,
    /// As Flannel's, with receive packet steering: what a device hands over goes on on the cores that the load of `rate` and
    /// the drivers do not use, as podwire's worker does.
    Steered,
    /// Open vSwitch in userspace.
    Ovs,
    Podwire(Options),
    /// A ceiling.
    Relay(Relay),
}

const FLANNEL: Kind = Kind::Kernel(Shape::Flannel);
const CALICO: Kind = Kind::Kernel(Shape::Calico);
const ADAPTIVE: Kind = Kind::Podwire(Options::DEFAULT);
const BUSY: Kind = Kind::Podwire(Options { bulk: "auto", ..Options::BUSY });
/// The uplinks are veth, which gets no XDP by itself.
const NATIVE: Kind = Kind::Podwire(Options { xdp: "native", ..Options::DEFAULT });

const BUSY_NATIVE: Kind = Kind::Podwire(Options { bulk: "auto", xdp: "native", ..Options::BUSY });

/// Two nodes that can talk.
#[derive(Clone, Copy)]
pub struct System {
    pub name: &'static str,
    pub nodes: [Kind; 2],
}

/// All that can be compared; the first one is what the others are measured by.
pub const SYSTEMS: [System; 12] = [
    System { name: "flannel", nodes: [FLANNEL, FLANNEL] },
    System { name: "calico", nodes: [CALICO, CALICO] },
    System { name: "flannel-xdp", nodes: [Kind::Xdp, Kind::Xdp] },
    System { name: "flannel-rps", nodes: [Kind::Steered, Kind::Steered] },
    System { name: "ovs-dpdk", nodes: [Kind::Ovs, Kind::Ovs] },
    System { name: "podwire", nodes: [ADAPTIVE, ADAPTIVE] },
    System { name: "podwire-busy", nodes: [BUSY, ADAPTIVE] },
    System { name: "podwire-xdp", nodes: [NATIVE, NATIVE] },
    // As Open vSwitch: AF_XDP, and both nodes spin.
    System { name: "podwire-xdp-busy", nodes: [BUSY_NATIVE, BUSY_NATIVE] },
    System { name: "podwire-flannel", nodes: [ADAPTIVE, FLANNEL] },
    System { name: "testpmd", nodes: [Kind::Relay(Relay::Testpmd); 2] },
    System { name: "xdp-redirect", nodes: [Kind::Relay(Relay::Redirect); 2] },
];

/// Takes a line of a configuration file, without its blanks.
pub fn setting(line: &str) -> Result<String, String> {
    let line: String = line.chars().filter(|it| !it.is_whitespace()).collect();
    match line.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok(line),
        _ => Err("a key of the section `dataplane` and its value, as in frames=2048".to_owned()),
    }
}

/// What was built of a [`System`]. Dropped in this order: daemons first, the namespaces last.
pub struct Rig {
    pub nodes: [Node; 2],
    prefix: Prefix,
}

impl System {
    /// The same with a line in the section `dataplane` of its podwire nodes, if it has any.
    pub fn with(&self, setting: &str) -> Option<Self> {
        let set = |kind| match kind {
            // Options are constants everywhere else.
            Kind::Podwire(options) => {
                Kind::Podwire(Options { sections: [options.sections, setting, "\n"].concat().leak(), ..options })
            }
            other => other,
        };
        let is_podwire = self.nodes.iter().any(|kind| matches!(kind, Kind::Podwire(_)));
        is_podwire.then(|| Self { name: format!("{} {setting}", self.name).leak(), nodes: self.nodes.map(set) })
    }

    /// Whether it is no overlay, but the most that one could reach.
    pub fn is_ceiling(&self) -> bool {
        matches!(self.nodes, [Kind::Relay(_), _])
    }

    /// Whether its first node is that of another system too.
    pub fn is_mixed(&self) -> bool {
        matches!(self.nodes, [Kind::Podwire(_), Kind::Kernel(_)])
    }

    /// Builds the nodes, each with so many pods, and waits until their first ones talk.
    pub fn build(&self, wire: Wire, pods: usize) -> Result<Rig, String> {
        let prefix = Prefix::fresh();
        let [a, b] = cable(&prefix, wire);
        let [of_a, of_b] = self.nodes;
        let peers = [of_b.peer_at(&b), of_a.peer_at(&a)];
        let mut nodes = [Node::start(of_a, &prefix, a, &peers[0])?, Node::start(of_b, &prefix, b, &peers[1])?];
        for node in &mut nodes {
            for n in 1..=pods {
                let name = format!("{}{n}", node.host().letter);
                node.add_pod(&prefix, &name)?;
            }
        }
        let rig = Rig { nodes, prefix };
        let [from, to] = [&rig.nodes[0].pods()[0], &rig.nodes[1].pods()[0]];
        if !wait_until(PATIENCE, || pings(from, to.v4.into(), "")) {
            return Err(format!("the pods of {} do not reach each other", self.name));
        }
        Ok(rig)
    }
}

impl Rig {
    /// Adds a pod to the first node.
    pub fn add_pod(&mut self, name: &str) -> Result<(), String> {
        self.nodes[0].add_pod(&self.prefix, name)
    }

    /// A directory for files of this laboratory.
    pub fn dir(&self) -> &Path {
        self.prefix.dir()
    }
}

impl Kind {
    /// VNI and UDP port.
    pub fn tunnel(self) -> (u32, u16) {
        match self {
            Self::Kernel(shape) => shape.tunnel(),
            Self::Xdp | Self::Steered | Self::Ovs | Self::Podwire(_) | Self::Relay(_) => Shape::Flannel.tunnel(),
        }
    }

    /// The same with routes to so many nodes, as far as they are part of what it is.
    pub fn with_routes(self, routes: u32) -> Result<Self, String> {
        match self {
            Self::Kernel(_) | Self::Xdp | Self::Steered => Ok(self),
            Self::Ovs => Err("its tunnels to so many nodes are not set up here".to_owned()),
            Self::Relay(_) => Err("it has no routes".to_owned()),
            Self::Podwire(options) => {
                // Options are constants everywhere else.
                let sections = [options.sections, &routes::peers(routes - 1)].concat().leak();
                Ok(Self::Podwire(Options { sections, ..options }))
            }
        }
    }

    /// What the others must know of the node that this host is going to be.
    pub fn peer_at(self, host: &Host) -> Peer {
        match self {
            Self::Kernel(_) | Self::Xdp | Self::Steered => KernelNode::peer_at(host),
            Self::Ovs | Self::Relay(_) => host.peer(None),
            Self::Podwire(_) => host.peer(Some(derive_vtep_mac(host.underlay).to_string())),
        }
    }
}

/// Passes everything on.
const EMPTY: &str = "__attribute__((section(\"xdp\"))) int pass(void *ctx) { return 2 /* XDP_PASS */; }\n";

/// Has the driver of a device run a program in C for each packet.
pub fn attach_program(host: &Host, device: &str, program: &str, dir: &Path) -> Result<(), String> {
    let [source, object] = ["pass.c", "pass.o"].map(|name| dir.join(name));
    std::fs::write(&source, program).map_err(|e| format!("{}: {e}", source.display()))?;
    let (source, object) = (source.display(), object.display());
    for line in [
        format!("clang -O2 -g -target bpf -c {source} -o {object}"),
        format!("ip link set dev {device} xdpdrv object {object} section xdp"),
    ] {
        let output = host.netns.output(&line);
        if !output.status.success() {
            return Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    Ok(())
}

/// Has packets that come by a device go on on all cores but the first.
fn steer(host: &Host, device: &str) -> Result<(), String> {
    let others = (1_u64 << cores().min(32)) - 2;
    let line = format!("mount -t sysfs none /sys && echo {others:x} > /sys/class/net/{device}/queues/rx-0/rps_cpus");
    let output = host.netns.command("unshare").args(["--mount", "sh", "-c", &line]).output();
    let output = output.map_err(|e| format!("unshare: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr))) }
}

/// One of the two.
pub enum Node {
    Kernel(KernelNode),
    Steered(KernelNode),
    Ovs(OvsNode),
    Podwire(Box<PodwireNode>),
    Relay(RelayNode),
}

impl Node {
    pub fn start(kind: Kind, prefix: &Prefix, host: Host, peer: &Peer) -> Result<Self, String> {
        Ok(match kind {
            Kind::Kernel(shape) => {
                let node = KernelNode::shaped(host, shape);
                node.connect(peer);
                Self::Kernel(node)
            }
            Kind::Xdp => {
                let node = KernelNode::shaped(host, Shape::Flannel);
                node.connect(peer);
                attach_program(&node.host, &node.host.uplink, EMPTY, prefix.dir())?;
                Self::Kernel(node)
            }
            Kind::Steered => {
                let node = KernelNode::shaped(host, Shape::Flannel);
                node.connect(peer);
                steer(&node.host, &node.host.uplink)?;
                Self::Steered(node)
            }
            Kind::Ovs => Self::Ovs(OvsNode::start(prefix, host, peer)?),
            Kind::Relay(relay) => Self::Relay(RelayNode::new(host, relay)),
            Kind::Podwire(options) => {
                Self::Podwire(Box::new(PodwireNode::start(prefix, host, options, vec![peer.clone()])))
            }
        })
    }

    pub fn host(&self) -> &Host {
        match self {
            Self::Kernel(node) | Self::Steered(node) => &node.host,
            Self::Ovs(node) => &node.host,
            Self::Podwire(node) => &node.host,
            Self::Relay(node) => &node.host,
        }
    }

    pub fn pods(&self) -> &[Pod] {
        match self {
            Self::Kernel(node) | Self::Steered(node) => &node.pods,
            Self::Ovs(node) => &node.pods,
            Self::Podwire(node) => &node.pods,
            Self::Relay(node) => &node.pods,
        }
    }

    pub fn add_pod(&mut self, prefix: &Prefix, name: &str) -> Result<(), String> {
        match self {
            Self::Kernel(node) => node.add_pod(prefix, name),
            Self::Steered(node) => {
                node.add_pod(prefix, name);
                steer(&node.host, &format!("veth-{name}"))?;
            }
            Self::Ovs(node) => node.add_pod(prefix, name)?,
            Self::Podwire(node) => node.add_pod(prefix, name),
            Self::Relay(node) => node.add_pod(prefix, name)?,
        }
        Ok(())
    }

    /// What carries packets, if the kernel does not.
    pub fn process(&self) -> Option<&Child> {
        match self {
            Self::Kernel(_) | Self::Steered(_) | Self::Relay(_) => None,
            Self::Ovs(node) => Some(node.process()),
            Self::Podwire(node) => Some(node.daemon()),
        }
    }

    /// How long the threads that carry packets have run on a CPU; zero where the kernel does.
    pub fn worker_time(&self) -> Duration {
        match self {
            Self::Kernel(_) | Self::Steered(_) | Self::Relay(_) => Duration::ZERO,
            Self::Ovs(node) => node.worker_time(),
            Self::Podwire(node) => node.worker_time(),
        }
    }
}
