//! Two podwire nodes and one of Flannel's in a cluster whose state is the API server's.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::api_server::ApiServer;
use super::manifests::{account, flannel_role};
use crate::harness::{Host, KernelNode, Options, Pod, PodwireNode, Prefix, Switch, Wire};

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
    "Backend": {"Type": "vxlan"}}"#;

/// Before the keys of Flannel's annotations.
const FLANNEL: &str = "flannel.alpha.coreos.com";

/// Nodes `a` and `b` run podwire, `c` is set up by what Flannel does. Fields are dropped in this order: daemons first,
/// the namespaces last.
pub struct FlannelCluster {
    pub a: PodwireNode,
    pub b: PodwireNode,
    pub c: KernelNode,
    pub server: ApiServer,
    switch: Switch,
    pub prefix: Prefix,
    kubeconfig: String,
}

impl FlannelCluster {
    /// Starts all, and waits until the podwire nodes carry packets for their peers.
    pub fn start(prefix: Prefix) -> Self {
        let switch = Switch::new(&prefix, Wire { dual: true, ..Wire::default() });
        let server = ApiServer::start(&prefix, &switch);
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "kube-flannel-cfg", "namespace": "kube-flannel" },
            "data": { "net-conf.json": NET_CONF },
        });
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-flannel" } });
        server.create([account(), vec![namespace, map], flannel_role()].concat());
        let hosts = [('a', 1), ('b', 2), ('c', 3)].map(|(letter, index)| switch.host(&prefix, letter, index));
        // Ranges are given in turn, and those of the laboratory's hosts begin with the second.
        for name in ["first".to_owned()].into_iter().chain(hosts.iter().map(Host::name)) {
            server.create_node(&name);
            server.pod_cidrs(&name);
        }
        let kubeconfig = server.account("podwire", "podwire");
        let kubeconfig = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
        let [a, b, c] = hosts;
        let [a, b] = [a, b].map(|host| PodwireNode::begin(&prefix, host, Options::ADAPTIVE, &kubeconfig));
        let mut cluster = Self { a, b, c: KernelNode::start(c), server, switch, prefix, kubeconfig };
        let [a, b, c] = [cluster.a.host.peer(None), cluster.b.host.peer(None), cluster.c.peer()];
        let end = |underlay: &IpAddr, mac: &Option<String>| (underlay.to_string(), mac.clone().expect("a MAC"));
        let (underlay, mac) = end(&c.underlay, &c.vtep_mac);
        cluster.server.annotate(&c.name, &flannel(&underlay, &mac));
        let (underlay6, mac6) = end(&c.underlay6.expect("a second VTEP"), &c.vtep_mac6);
        cluster.server.annotate(&c.name, &flannel_v6(&underlay6, &mac6));
        cluster.a.await_peers(vec![b, c.clone()]);
        cluster.b.await_peers(vec![a, c]);
        cluster
    }

    /// Starts a daemon on a further host, whose object is there, and waits for nothing.
    pub fn add_podwire(&self, letter: char, index: u8) -> PodwireNode {
        let host = self.switch.host(&self.prefix, letter, index);
        PodwireNode::begin(&self.prefix, host, Options::ADAPTIVE, &self.kubeconfig)
    }

    /// A Flannel node that nobody has set up, known to the API server only; returns its range once it is published.
    pub fn add_stranger(&self, name: &str, last: u8) -> String {
        self.server.create_node(name);
        let range = self.server.pod_cidrs(name).swap_remove(0);
        self.server.annotate(name, &flannel(&format!("192.168.1.{last}"), &format!("02:00:00:00:fe:{last:02x}")));
        range
    }

    /// What Flannel does on its node for each other node that has published itself (`vxlan_network.go`).
    pub fn run_flannel(&self) {
        let nodes = self.server.ask(async |client| Api::<Node>::all(client).list(&ListParams::default()).await);
        for node in nodes.items.iter().filter(|node| node.metadata.name.as_ref() != Some(&self.c.host.name())) {
            if annotation(node, "kube-subnet-manager") != Some("true") {
                continue;
            }
            let ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref()).expect("pod ranges");
            let families =
                [("flannel.1", "backend-data", "public-ip"), ("flannel-v6.1", "backend-v6-data", "public-ipv6")];
            for (range, (device, data, to)) in ranges.iter().zip(families) {
                let Some(data) = annotation(node, data) else { continue };
                let data: Value = serde_json::from_str(data).expect("JSON");
                let mac = data["VtepMAC"].as_str().expect("a MAC");
                let to = annotation(node, to).expect("an address");
                let gateway = range.split('/').next().expect("an address");
                self.c.host.netns.run_all([
                    format!("ip neigh replace {gateway} lladdr {mac} dev {device} nud permanent"),
                    format!("bridge fdb replace {mac} dev {device} self permanent dst {to}"),
                    format!("ip route replace {range} via {gateway} dev {device} onlink"),
                ]);
            }
        }
    }

    /// A pod on each node.
    pub fn add_pods(&mut self) -> [Pod; 3] {
        self.a.add_pod(&self.prefix, "a1");
        self.b.add_pod(&self.prefix, "b1");
        self.c.add_pod(&self.prefix, "c1");
        [&self.a.pods[0], &self.b.pods[0], &self.c.pods[0]].map(Clone::clone)
    }
}

/// What Flannel publishes of a node.
pub fn flannel(public_ip: &str, vtep_mac: &str) -> Value {
    json!({
        (format!("{FLANNEL}/kube-subnet-manager")): "true",
        (format!("{FLANNEL}/backend-type")): "vxlan",
        (format!("{FLANNEL}/backend-data")): format!(r#"{{"VNI":1,"VtepMAC":"{vtep_mac}"}}"#),
        (format!("{FLANNEL}/public-ip")): public_ip,
    })
}

/// What Flannel publishes of a dual-stack node besides.
pub fn flannel_v6(public_ipv6: &str, vtep_mac: &str) -> Value {
    json!({
        (format!("{FLANNEL}/backend-v6-data")): format!(r#"{{"VNI":1,"VtepMAC":"{vtep_mac}"}}"#),
        (format!("{FLANNEL}/public-ipv6")): public_ipv6,
    })
}

/// One of Flannel's annotations.
pub fn annotation<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    node.metadata.annotations.as_ref()?.get(&format!("{FLANNEL}/{key}")).map(String::as_str)
}
