//! Two podwire nodes and one of Flannel's in a cluster whose state is the API server's.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::harness::{
    Host, KernelNode, Options, Pod, PodwireNode, Prefix, Switch, VXLAN_DEVICE, Wire, pings, wait_until,
};
use crate::kubernetes::ApiServer;
use crate::manifests::{account, flannel_role};

const PATIENCE: Duration = Duration::from_secs(60);

const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
    "Backend": {"Type": "vxlan"}}"#;

/// Before the keys of Flannel's annotations.
const FLANNEL: &str = "flannel.alpha.coreos.com";

/// Fields are dropped in this order: daemons first, the namespaces last.
struct Cluster {
    a: PodwireNode,
    b: PodwireNode,
    c: KernelNode,
    server: ApiServer,
    _switch: Switch,
    prefix: Prefix,
}

impl Cluster {
    fn start() -> Option<Self> {
        if !ApiServer::is_available() {
            return None;
        }
        let prefix = Prefix::fresh();
        let switch = Switch::new(&prefix, Wire::default());
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
        let mut cluster = Self { a, b, c: KernelNode::start(c), server, _switch: switch, prefix };
        cluster.annotate(&cluster.c.host.name(), &flannel(&cluster.c.host.underlay.to_string(), &cluster.c.vtep_mac()));
        let [a, b, c] = [cluster.a.host.peer(None), cluster.b.host.peer(None), cluster.c.peer()];
        cluster.a.await_peers(vec![b, c.clone()]);
        cluster.b.await_peers(vec![a, c]);
        Some(cluster)
    }

    /// What a node's own daemon would write on its object.
    fn annotate(&self, name: &str, annotations: &Value) {
        let patch = Patch::Strategic(json!({ "metadata": { "annotations": annotations } }));
        let params = PatchParams::default();
        self.server.ask(async |client| Api::<Node>::all(client).patch_status(name, &params, &patch).await);
    }

    /// A Flannel node that nobody has set up, known to the API server only; returns its range once it is published.
    fn add_stranger(&self, name: &str, last: u8) -> String {
        self.server.create_node(name);
        let range = self.server.pod_cidrs(name).swap_remove(0);
        self.annotate(name, &flannel(&format!("192.168.1.{last}"), &format!("02:00:00:00:fe:{last:02x}")));
        range
    }

    /// Waits until both podwire nodes have a route to a range, or none; prints how long that took.
    #[track_caller]
    fn await_route(&self, what: &str, range: &str, wanted: bool) {
        let begun = Instant::now();
        for node in [&self.a, &self.b] {
            let has_route = || !node.host.netns.run(&format!("ip route show {range}")).is_empty();
            assert!(
                wait_until(PATIENCE, || has_route() == wanted),
                "{what}: {}\n{}",
                node.host.name(),
                node.log_text()
            );
        }
        println!("{what}: {:?}", begun.elapsed());
    }

    /// What Flannel does on its node for each other node that has published itself (`vxlan_network.go`).
    fn run_flannel(&self) {
        let nodes = self.server.ask(async |client| Api::<Node>::all(client).list(&ListParams::default()).await);
        for node in nodes.items.iter().filter(|node| node.metadata.name.as_ref() != Some(&self.c.host.name())) {
            if annotation(node, "kube-subnet-manager") != Some("true") {
                continue;
            }
            let data: Value = serde_json::from_str(annotation(node, "backend-data").expect("data")).expect("JSON");
            let (mac, to) =
                (data["VtepMAC"].as_str().expect("a MAC"), annotation(node, "public-ip").expect("an address"));
            let range = &node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref()).expect("pod ranges")[0];
            let gateway = range.split('/').next().expect("an address");
            self.c.host.netns.run_all([
                format!("ip neigh replace {gateway} lladdr {mac} dev flannel.1 nud permanent"),
                format!("bridge fdb replace {mac} dev flannel.1 self permanent dst {to}"),
                format!("ip route replace {range} via {gateway} dev flannel.1 onlink"),
            ]);
        }
    }

    /// A pod on each node.
    fn add_pods(&mut self) -> [Pod; 3] {
        self.a.add_pod(&self.prefix, "a1");
        self.b.add_pod(&self.prefix, "b1");
        self.c.add_pod(&self.prefix, "c1");
        [&self.a.pods[0], &self.b.pods[0], &self.c.pods[0]].map(Clone::clone)
    }
}

/// What Flannel publishes of a node.
fn flannel(public_ip: &str, vtep_mac: &str) -> Value {
    json!({
        (format!("{FLANNEL}/kube-subnet-manager")): "true",
        (format!("{FLANNEL}/backend-type")): "vxlan",
        (format!("{FLANNEL}/backend-data")): format!(r#"{{"VNI":1,"VtepMAC":"{vtep_mac}"}}"#),
        (format!("{FLANNEL}/public-ip")): public_ip,
    })
}

fn annotation<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    node.metadata.annotations.as_ref()?.get(&format!("{FLANNEL}/{key}")).map(String::as_str)
}

/// Each to each by IPv4, and by IPv6 where both nodes are podwire's: Flannel has a tunnel of its own for each family.
#[track_caller]
fn assert_all_talk(pods: &[Pod; 3]) {
    for from in pods {
        for to in pods.iter().filter(|to| to.name != from.name) {
            assert!(pings(from, to.v4.into(), ""), "{} to {}", from.name, to.name);
        }
    }
    assert!(pings(&pods[0], pods[1].v6.into(), "") && pings(&pods[1], pods[0].v6.into(), ""));
}

/// That a podwire node has published what Flannel's nodes read, and that its network is there.
fn assert_published(cluster: &Cluster, node: &PodwireNode) {
    let published = cluster.server.node(&node.host.name());
    let annotations = published.metadata.annotations.clone().expect("annotations");
    let wanted = flannel(&node.host.underlay.to_string(), &node.host.netns.mac(VXLAN_DEVICE));
    for (key, value) in wanted.as_object().expect("annotations") {
        assert_eq!(annotations.get(key).map(String::as_str), value.as_str(), "{key}");
    }
    assert_eq!(annotations.get("podwire.io/version").map(String::as_str), Some(env!("CARGO_PKG_VERSION")));
    let conditions = published.status.and_then(|status| status.conditions).unwrap_or_default();
    let found = conditions.iter().find(|condition| condition.type_ == "NetworkUnavailable");
    assert_eq!(found.map(|condition| &*condition.status), Some("False"));
}

#[test]
fn podwire_and_flannel_nodes_follow_the_api_server_and_outlast_it() {
    let Some(mut cluster) = Cluster::start() else { return };
    for node in [&cluster.a, &cluster.b] {
        assert_published(&cluster, node);
    }
    cluster.run_flannel();
    let pods = cluster.add_pods();
    assert_all_talk(&pods);

    let range = cluster.add_stranger("stranger", 77);
    cluster.await_route("a node comes", &range, true);
    cluster.server.delete_node("stranger");
    cluster.await_route("a node goes", &range, false);

    cluster.server.kill();
    assert_all_talk(&pods);
    cluster.server.launch();
    let range = cluster.add_stranger("later", 78);
    cluster.await_route("a node comes after the server was away", &range, true);

    cluster.server.delete_node(&cluster.c.host.name());
    cluster.await_route("Flannel's node goes", &cluster.c.peer().pod_cidrs()[0], false);
    assert!(pings(&pods[0], pods[1].v4.into(), ""), "the others stay");
}
