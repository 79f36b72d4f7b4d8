//! The cluster that most tests run on: nodes `a` and `b` run podwire, node `c` is a plain kernel node, two pods each.

use super::kernel_node::KernelNode;
use super::netns::Prefix;
use super::podwire_node::{Options, PodwireNode};
use super::site::{Pod, Switch, Wire};

/// Fields are dropped in this order: daemons first, the namespaces last.
pub struct Cluster {
    pub a: PodwireNode,
    pub b: PodwireNode,
    pub c: KernelNode,
    pub switch: Switch,
    pub prefix: Prefix,
}

impl Cluster {
    /// Builds the cluster and waits until it is ready. Only node `a` spins: two would leave a small machine no CPU.
    pub fn start(prefix: Prefix, wire: Wire, options: Options) -> Self {
        let switch = Switch::new(&prefix, wire);
        let [a, b, c] = [('a', 1), ('b', 2), ('c', 3)].map(|(letter, index)| switch.host(&prefix, letter, index));
        let mut c = KernelNode::start(c);
        let (peer_a, peer_b) = (a.peer(None), b.peer(None));
        let a = PodwireNode::start(&prefix, a, options, vec![peer_b, c.peer()]);
        let b_options = if options.mode == "busy" { Options { mode: "adaptive", ..options } } else { options };
        let b = PodwireNode::start(&prefix, b, b_options, vec![peer_a, c.peer()]);
        c.connect(&a.peer());
        c.connect(&b.peer());
        for n in 1..=2 {
            c.add_pod(&prefix, &format!("c{n}"));
        }
        let mut cluster = Self { a, b, c, switch, prefix };
        for n in 1..=2 {
            cluster.a.add_pod(&cluster.prefix, &format!("a{n}"));
            cluster.b.add_pod(&cluster.prefix, &format!("b{n}"));
        }
        cluster
    }

    /// All pods of all nodes.
    pub fn pods(&self) -> Vec<&Pod> {
        [&self.a.pods, &self.b.pods, &self.c.pods].into_iter().flatten().collect()
    }

    /// The nodes that run podwire.
    pub fn podwire_nodes(&self) -> [&PodwireNode; 2] {
        [&self.a, &self.b]
    }

    /// Leaves namespaces and daemons in place when this value is dropped and the process ends.
    pub fn keep(&mut self) {
        self.a.keep();
        self.b.keep();
        self.prefix.keep();
    }

    /// Packets with a bad checksum that nodes and pods have seen.
    pub fn bad_checksums(&self) -> u64 {
        let hosts = [&self.a.host, &self.b.host, &self.c.host].map(|host| &host.netns);
        let pods = self.pods().into_iter().map(|pod| &pod.netns);
        hosts.into_iter().chain(pods).map(super::bad_checksums).sum()
    }
}
