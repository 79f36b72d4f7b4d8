//! A node of Flannel's with pods that Debian's plugins `bridge`, `host-local` and `portmap` have made, and a runtime that
//! keeps what libcni keeps. The plugin `flannel`, which Debian has not, is a script that does what it does.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Attachment, CniError, CniRuntime, KernelNode, Netns, Options, Pod, PodwireNode, Prefix, Switch, Wire, binary,
    is_root, wait_until,
};

/// Saves what it hands on to `bridge`, and removes a container by that (flannel-io/cni-plugin `flannel_linux.go`).
const PLUGIN: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 1
saved=../state/flannel/$CNI_CONTAINERID
case $CNI_COMMAND in
ADD) cat >/dev/null; mkdir -p ../state/flannel; cp ../delegate.json "$saved"; exec /usr/lib/cni/bridge <"$saved" ;;
DEL) cat >/dev/null; [ -e "$saved" ] || exit 0; /usr/lib/cni/bridge <"$saved" && rm "$saved" ;;
*) exec /usr/lib/cni/bridge ;;
esac
"#;

pub const BRIDGE: &str = "cni0";

/// Node `a` of Flannel's, node `b` of podwire's, and node `c`, which stays Flannel's.
pub struct Lab {
    pub a: PodwireNode,
    pub b: PodwireNode,
    pub c: KernelNode,
    /// Of node `a`, which runtimes have added.
    pub pods: Vec<Pod>,
    /// Where node `a` keeps plugins, their state, and configurations.
    pub dir: PathBuf,
    _switch: Switch,
    pub prefix: Prefix,
}

impl Lab {
    /// Sets the nodes up, with a pod on `b` and `c` each; `None` where the plugins are missing.
    pub fn start(options: Options) -> Option<Self> {
        if !is_root() || !Path::new("/usr/lib/cni/bridge").exists() {
            println!("skipped: needs root and the package containernetworking-plugins");
            return None;
        }
        let prefix = Prefix::fresh();
        let switch = Switch::new(&prefix, Wire { dual: true, ..Wire::default() });
        let [a, b, c] = [('a', 1), ('b', 2), ('c', 3)].map(|(letter, index)| switch.host(&prefix, letter, index));
        let (a, mut c) = (KernelNode::start(a), KernelNode::start(c));
        let [peer_a, peer_c] = [a.peer(), c.peer()];
        let mut b = PodwireNode::start(&prefix, b, options, vec![peer_a.clone(), peer_c.clone()]);
        let peer_b = b.peer();
        for (node, peer) in [(&a, &peer_b), (&a, &peer_c), (&c, &peer_a), (&c, &peer_b)] {
            node.connect(peer);
        }
        b.add_pod(&prefix, "b1");
        c.add_pod(&prefix, "c1");
        let vtep_macs = [peer_a.vtep_mac, peer_a.vtep_mac6];
        let a = PodwireNode::prepare(&prefix, a.host, options, vec![peer_b, peer_c], vtep_macs);
        let dir = prefix.dir().join("a-cni");
        let lab = Self { a, b, c, pods: Vec::new(), dir, _switch: switch, prefix };
        lab.write_files();
        Some(lab)
    }

    fn write_files(&self) {
        for dir in ["bin", "net.d", "state/results"] {
            fs::create_dir_all(self.dir.join(dir)).expect("a directory");
        }
        let write = |file: &str, text: &str| fs::write(self.dir.join(file), text).expect("a file");
        write("bin/flannel", PLUGIN);
        fs::set_permissions(self.dir.join("bin/flannel"), Permissions::from_mode(0o755)).expect("a mode");
        std::os::unix::fs::symlink(binary(), self.dir.join("bin/podwire")).expect("a link");
        write("delegate.json", &self.delegate().to_string());
        write("net.d/10-flannel.conflist", &flannel_list().to_string());
        write(
            "subnet.env",
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/32\n\
             FLANNEL_IPV6_SUBNET=fd00:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        );
    }

    /// What the plugin `flannel` hands on.
    fn delegate(&self) -> Value {
        json!({
            "cniVersion": "0.3.1", "name": "cbr0", "type": "bridge", "isGateway": true, "isDefaultGateway": true,
            "hairpinMode": true, "ipMasq": false, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": self.dir.join("state/networks"),
                "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:244:1::/64" }]],
                "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "fd00:244::/32" }],
            },
        })
    }

    /// Has a runtime with this list do something in the node's namespace.
    fn with_runtime<T: Send>(&self, list: Value, act: impl FnOnce(&CniRuntime) -> T + Send) -> T {
        let runtime = CniRuntime::new(vec![self.dir.join("bin"), PathBuf::from("/usr/lib/cni")], list);
        self.a.host.netns.within(|| act(&runtime))
    }

    /// Has Flannel add a pod; the container's id is the pod's name with a `c` before it.
    #[track_caller]
    pub fn add_flannel_pod(&mut self, name: &str, host_port: Option<u16>) {
        self.add(name, host_port, flannel_list());
    }

    /// Has podwire add a pod, by a list with the name of Flannel's.
    #[track_caller]
    pub fn add_podwire_pod(&mut self, name: &str) {
        self.add(name, None, self.podwire_list());
    }

    fn add(&mut self, name: &str, host_port: Option<u16>, list: Value) {
        let netns = self.prefix.netns(name);
        netns.skip_dad();
        let attachment = attachment(name, Some(&netns), host_port);
        let result = self.with_runtime(list, |runtime| runtime.add(&attachment));
        let result = result.unwrap_or_else(|error| panic!("add {name}: {error}"));
        let cached = json!({
            "kind": "cniCacheV1", "containerId": attachment.container, "config": "e30=", "ifName": "eth0",
            "networkName": "cbr0", "cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", name]],
            "result": result,
        });
        fs::write(self.result_of(name), cached.to_string()).expect("a cached result");
        self.pods.push(Pod::of(name.to_owned(), netns));
    }

    /// Where libcni keeps the result of a pod.
    pub fn result_of(&self, name: &str) -> PathBuf {
        self.dir.join(format!("state/results/cbr0-c{name}-eth0"))
    }

    /// Has Flannel's plugins remove a pod, whose namespace is still there.
    pub fn del_by_flannel(&self, pod: &Pod, host_port: Option<u16>) -> Result<(), CniError> {
        self.del(&attachment(&pod.name, Some(&pod.netns), host_port), flannel_list())
    }

    /// Has podwire remove a pod as containerd does at last: without a result, and without a namespace.
    pub fn del_by_podwire(&self, pod: &Pod, host_port: Option<u16>) -> Result<(), CniError> {
        self.del(&attachment(&pod.name, None, host_port), self.podwire_list())
    }

    fn del(&self, attachment: &Attachment, list: Value) -> Result<(), CniError> {
        self.with_runtime(list, |runtime| runtime.del(attachment))
    }

    fn podwire_list(&self) -> Value {
        let own = json!({ "type": "podwire", "runtimeDir": self.a.runtime_dir() });
        json!({ "cniVersion": "0.3.1", "name": "cbr0", "plugins": [own, portmap()] })
    }

    /// `podwire migrate WAY` with the places of this node.
    pub fn migrate(&self, way: &str, more: &str) -> std::process::Command {
        let dir = self.dir.display();
        self.a.command(&format!(
            "migrate {way} --config {} --cni-state {dir}/state --conf-dir {dir}/net.d --subnet-env {dir}/subnet.env {more}",
            self.a.config().display()
        ))
    }

    /// The same, which must succeed; returns what it says.
    #[track_caller]
    pub fn migrated(&self, way: &str, more: &str) -> Value {
        let output = self.migrate(way, &format!("{more} --output json")).output().expect("nsenter starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{way}: {said}{}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).expect("it prints JSON")
    }

    /// Node `a`, its pods and its files, in words: what must be the same when nothing was changed.
    pub fn picture(&self) -> String {
        let node = &self.a.host.netns;
        let pods = self.pods.iter().map(|pod| &pod.netns);
        let of_network = |netns: &Netns| {
            ["ip -o link", "ip -o address", "ip route show table all", "ip -6 route show table all", "ip rule"]
                .map(|line| netns.run(line))
                .concat()
        };
        let look = || [node].into_iter().chain(pods.clone()).map(of_network).collect::<String>();
        // Addresses of which the kernel still looks for duplicates change by themselves.
        assert!(wait_until(Duration::from_secs(10), || !look().contains(" tentative")), "addresses stay tentative");
        let network = look();
        let fixed: Vec<_> = network.lines().map(|line| line.split(" valid_lft").next().unwrap_or_default()).collect();
        let files = crate::harness::host(&format!("find {} -type f -printf %p:%s:%T@\\n", self.dir.display()));
        format!("{}\n{files}", fixed.join("\n"))
    }

    /// All pods of all nodes.
    pub fn all_pods(&self) -> Vec<&Pod> {
        self.pods.iter().chain(&self.a.pods).chain(&self.b.pods).chain(&self.c.pods).collect()
    }
}

fn attachment(name: &str, netns: Option<&Netns>, host_port: Option<u16>) -> Attachment {
    let ports = host_port.map(|port| json!([{ "hostPort": port, "containerPort": 80, "protocol": "tcp" }]));
    let capabilities = ports.map_or_else(|| json!({}), |ports| json!({ "portMappings": ports }));
    Attachment {
        container: format!("c{name}"),
        netns: netns.map(Netns::path),
        ifname: "eth0".into(),
        args: format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"),
        capabilities: capabilities.as_object().expect("an object").clone(),
    }
}

fn flannel_list() -> Value {
    let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
    json!({ "cniVersion": "0.3.1", "name": "cbr0", "plugins": [{ "type": "flannel", "delegate": delegate }, portmap()] })
}

fn portmap() -> Value {
    json!({ "type": "portmap", "capabilities": { "portMappings": true } })
}
