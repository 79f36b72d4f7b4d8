//! What the tests of this crate stand on.

use std::time::Duration;

use podwire::control::api::Status;
use serde_json::{Value, json};

use crate::api::Api;
use crate::harness::{Host, Options, PodwireNode, Prefix, Switch, Wire, is_root, wait_until};

/// How long a node may take to follow.
pub const PATIENCE: Duration = Duration::from_secs(15);

pub const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
    "Backend": {"Type": "vxlan"}}"#;

const FLANNEL: &str = "flannel.alpha.coreos.com";

/// One podwire node on its kernel path and a server.
pub struct Scene {
    pub node: PodwireNode,
    pub api: Api,
    _switch: Switch,
    pub prefix: Prefix,
}

impl Scene {
    /// Starts a node whose object is there, or `None` where that cannot be.
    pub fn start() -> Option<Self> {
        let scene = Self::begin(NET_CONF, |api, host| register(api, host, 9))?;
        scene.expect("following", |status| status.kubernetes.as_ref().is_some_and(|k| k.joined));
        Some(scene)
    }

    /// Starts a node after the server was prepared.
    pub fn begin(net_conf: &str, prepare: impl FnOnce(&Api, &Host)) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let prefix = Prefix::fresh();
        let switch = Switch::new(&prefix, Wire::default());
        let host = switch.host(&prefix, 'a', 1);
        let api = Api::start(net_conf);
        api.listen_in(&host.netns);
        prepare(&api, &host);
        let node = PodwireNode::begin(&prefix, host, Options::KERNEL, &Api::kubeconfig(None));
        Some(Self { node, api, _switch: switch, prefix })
    }

    /// Waits until the node's status is as it should be, and returns it.
    #[track_caller]
    pub fn expect(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let mut last = None;
        let found = wait_until(PATIENCE, || {
            let output = self.node.try_cli("status --output json");
            last = serde_json::from_slice::<Status>(&output.stdout).ok();
            last.as_ref().is_some_and(&is_so)
        });
        assert!(found, "{what}: {last:#?}\n{}", self.node.log_text());
        last.expect("a status")
    }

    /// Waits until one of the node's problems says this.
    #[track_caller]
    pub fn expect_problem(&self, said: &str) -> Status {
        self.expect(said, |status| status.problems.iter().any(|problem| problem.contains(said)))
    }

    /// Waits until these and no others are the node's peers.
    #[track_caller]
    pub fn expect_peers(&self, names: &[&str]) -> Status {
        self.expect(&format!("{names:?}"), |status| {
            status.peers.iter().map(|peer| peer.name.as_str()).eq(names.iter().copied())
        })
    }

    /// Waits until the server's object of this node is as it should be, and returns it.
    #[track_caller]
    pub fn expect_node(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let name = self.node.host.name();
        let found = wait_until(PATIENCE, || is_so(&self.api.node(&name)));
        let node = self.api.node(&name);
        assert!(found, "{what}: {node:#}\n{}", self.node.log_text());
        node
    }

    /// What leads to a range in the kernel.
    pub fn route(&self, range: &str) -> String {
        self.node.host.netns.run(&format!("ip route show {range}"))
    }

    /// Makes a Flannel node that takes part.
    pub fn flannel_node(&self, name: &str, second: u8, last: u8, range: &str) {
        self.api.change(|store| {
            store.create(name, second, &[range.to_owned()]);
            store.annotate(name, &flannel(&format!("192.168.1.{last}"), &format!("02:00:00:00:fe:{last:02x}")));
        });
    }
}

/// Makes the object of a host, with its ranges.
pub fn register(api: &Api, host: &Host, second: u8) {
    let ranges = host.peer(None).pod_cidrs();
    api.change(|store| store.create(&host.name(), second, &ranges));
}

/// What a Flannel node publishes.
pub fn flannel(public_ip: &str, vtep_mac: &str) -> Value {
    json!({
        (format!("{FLANNEL}/kube-subnet-manager")): "true",
        (format!("{FLANNEL}/backend-type")): "vxlan",
        (format!("{FLANNEL}/backend-data")): format!("{{\"VNI\":1,\"VtepMAC\":\"{vtep_mac}\"}}"),
        (format!("{FLANNEL}/public-ip")): public_ip,
    })
}

/// What a dual-stack Flannel node publishes besides.
pub fn flannel_v6(public_ipv6: &str, vtep_mac: &str) -> Value {
    json!({
        (format!("{FLANNEL}/backend-v6-data")): format!("{{\"VNI\":1,\"VtepMAC\":\"{vtep_mac}\"}}"),
        (format!("{FLANNEL}/public-ipv6")): public_ipv6,
    })
}

/// Whether a node of the server has published itself.
pub fn is_published(node: &Value) -> bool {
    annotation(node, "backend-data").is_string() && network_unavailable(node) == "False"
}

/// One of Flannel's annotations.
pub fn annotation<'v>(node: &'v Value, key: &str) -> &'v Value {
    &node["metadata"]["annotations"][format!("{FLANNEL}/{key}")]
}

pub fn network_unavailable(node: &Value) -> &Value {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|c| c["type"] == "NetworkUnavailable").map_or(&Value::Null, |c| &c["status"])
}

/// The MAC of the VTEP that a node of the server has published under `key`.
pub fn published_mac(node: &Value, key: &str) -> String {
    let data = annotation(node, key).as_str().expect("a published node");
    let data: Value = serde_json::from_str(data).expect("JSON");
    data["VtepMAC"].as_str().expect("a MAC").to_owned()
}
