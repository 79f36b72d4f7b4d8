//! Nodes on one switch, set up through the crate's own interface.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Mutex;

use podwire::config::Config;
use podwire::control::kernel::{Kernel, Reconciled};
use podwire::control::vtep::Vtep;
use podwire::control::wiring::{Attach, Pod};
use podwire::ids::PodId;

use crate::harness::{Host, KernelNode, Netns, Peer, Prefix, Switch, Wire, is_root};

/// A switch and what hangs on it. Nodes and pods go by short names.
pub struct Lab {
    switch: Switch,
    places: Mutex<BTreeMap<String, Netns>>,
    prefix: Prefix,
}

impl Lab {
    /// `None`, and a word about it, when namespaces cannot be made.
    pub fn new(ipv6: bool) -> Option<Self> {
        is_root().then(|| {
            let prefix = Prefix::fresh();
            let switch = Switch::new(&prefix, Wire { ipv6, ..Wire::default() });
            Self { switch, places: Mutex::default(), prefix }
        })
    }

    /// Node number `index` with its uplink `eth0` on the switch, called by its letter.
    pub fn node(&self, letter: char, index: u8) -> Host {
        let host = self.switch.host(&self.prefix, letter, index);
        self.places.lock().unwrap().insert(letter.to_string(), host.netns.clone());
        host
    }

    /// A node of plain commands with a pod called `NAME-pod`.
    pub fn plain_node(&self, letter: char, index: u8) -> KernelNode {
        let mut node = KernelNode::start(self.node(letter, index));
        let name = format!("{letter}-pod");
        node.add_pod(&self.prefix, &name);
        self.places.lock().unwrap().insert(name, node.pods[0].netns.clone());
        node
    }

    /// A namespace with nothing in it.
    pub fn namespace(&self, name: &str) {
        let netns = self.prefix.netns(name);
        self.places.lock().unwrap().insert(name.to_owned(), netns);
    }

    pub fn remove(&self, name: &str) {
        self.places.lock().unwrap().remove(name).unwrap().remove();
    }

    pub fn netns(&self, name: &str) -> Netns {
        self.places.lock().unwrap()[name].clone()
    }

    pub fn netns_path(&self, name: &str) -> PathBuf {
        self.netns(name).path()
    }

    /// Runs a command in a namespace; it must succeed.
    #[track_caller]
    pub fn run(&self, name: &str, command: &str) -> String {
        self.netns(name).run(command)
    }

    #[track_caller]
    pub fn ip(&self, name: &str, arguments: &str) -> String {
        self.run(name, &format!("ip {arguments}"))
    }

    /// Runs `work` on the kernel of a node.
    pub fn kernel<T: Send>(&self, node: &str, work: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        self.netns(node).within(|| work(&mut Kernel::new().unwrap()))
    }

    /// Reconciles a node; nothing may fail.
    #[track_caller]
    pub fn reconcile(&self, node: &str, config: &str, pods: &[Pod]) -> Reconciled {
        let config = Config::parse(config).unwrap();
        let done = self.kernel(node, |kernel| kernel.reconcile(&config, pods)).unwrap();
        assert!(done.done.failures.is_empty(), "{:#?}", done.done.failures);
        done
    }

    /// A pod of a node, in a namespace of its own called `name`.
    pub fn pod(&self, node: &str, vtep: &Vtep, id: u16, name: &str) -> Pod {
        self.namespace(name);
        let request = self.request(vtep, id, name);
        self.kernel(node, |kernel| kernel.attach(vtep, &request)).unwrap()
    }

    /// Asks for a pod whose addresses end in `id`.
    pub fn request(&self, vtep: &Vtep, id: u16, name: &str) -> Attach {
        let address = |first: &IpAddr| match first {
            IpAddr::V4(first) => (u32::from(*first) + u32::from(id)).to_be_bytes().into(),
            IpAddr::V6(first) => (u128::from(*first) + u128::from(id)).to_be_bytes().into(),
        };
        Attach {
            id: PodId::new(id).unwrap(),
            name: name.to_owned(),
            netns: self.netns_path(name),
            ifname: "eth0".to_owned(),
            addresses: vtep.addresses.iter().map(address).collect(),
            mac: None,
            owner: None,
        }
    }

    /// What one `ping` from a place says.
    pub fn ping(&self, from: &str, target: &str, options: &str) -> String {
        let output = self.netns(from).output(&format!("ping -n -c 1 -W 2 {options} {target}"));
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
    }

    /// Asserts that the first packet from a place to `target` is answered.
    #[track_caller]
    pub fn reaches(&self, from: &str, target: &str) {
        let said = self.ping(from, target, "");
        assert!(said.contains(" 0% packet loss"), "{from} -> {target}: {said}");
    }
}

/// The configuration of a node that knows `peers`.
pub fn config(host: &Host, peers: &[Peer]) -> String {
    let ranges = |ranges: [String; 2]| format!("pod_cidrs = {ranges:?}\n");
    let mut text = [
        format!("[node]\nname = \"{}\"\nuplink = \"{}\"\n", host.name(), host.uplink),
        ranges(host.peer(None).pod_cidrs()),
        "[cluster]\npod_cidrs = [\"10.244.0.0/16\", \"fd00:244::/32\"]\n".to_owned(),
        "[dataplane]\nmode = \"kernel\"\n".to_owned(),
    ]
    .concat();
    for peer in peers {
        text += &[
            format!("[[peers]]\nname = \"{}\"\nunderlay = \"{}\"\n", peer.name, peer.underlay),
            peer.vtep_mac.as_ref().map(|mac| format!("vtep_mac = \"{mac}\"\n")).unwrap_or_default(),
            ranges(peer.pod_cidrs()),
            format!("addresses = {:?}\n", peer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()),
        ]
        .concat();
    }
    text
}

/// Node number `index` as a peer of ours, which need not exist.
pub fn peer(letter: char, index: u8) -> Peer {
    let underlay = Ipv4Addr::new(192, 168, 1, index + 1).into();
    Peer {
        name: format!("node-{letter}"),
        index,
        underlay,
        vtep_mac: None,
        underlay6: None,
        vtep_mac6: None,
        addresses: Vec::new(),
    }
}
