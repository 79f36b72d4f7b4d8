//! The image of `deploy/Containerfile`, run as a kubelet would run the DaemonSet's container: with its privileges, its
//! read-only root, its mounts, its hook and its probes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, ExecAction, PodSpec};
use serde_json::Value;

use crate::harness::{
    Attachment, CniRuntime, Host, KernelNode, Netns, Peer, Pod, Podman, Prefix, Switch, VXLAN_DEVICE, Wire,
    assert_all_pairs_talk, binary, is_root, wait_until,
};
use crate::kubernetes::{ApiServer, account, annotation, deploy, flannel, object};

const PATIENCE: Duration = Duration::from_secs(20);

const IMAGE: &str = "podwire:test";
const NAME: &str = "podwire";
const PORTMAP: &str = "/usr/lib/cni/portmap";

/// Whether there is a podman, and what else this needs; says so when not, or fails where CI must not skip.
fn is_equipped() -> bool {
    let needed = ["/usr/bin/podman", "/usr/bin/conmon", "/usr/sbin/runc", PORTMAP];
    let missing: Vec<_> = needed.into_iter().filter(|path| !Path::new(path).exists()).collect();
    if !missing.is_empty() {
        assert!(std::env::var_os("CI").is_none(), "{} are missing", missing.join(", "));
        println!("skipped: needs {}", missing.join(", "));
    }
    missing.is_empty() && is_root()
}

/// Builds the image of the binary under test.
fn build(podman: &Podman) {
    let context = podman.dir().join("context");
    fs::create_dir_all(&context).expect("a directory");
    fs::copy(binary(), context.join("podwire")).expect("the binary is copied");
    let file = deploy().join("Containerfile");
    podman.run(&format!("build --quiet --tag {IMAGE} --file {} {}", file.display(), context.display()));
}

/// The pod of the DaemonSet, on a node whose directories are in the laboratory.
struct Daemon {
    podman: Podman,
    pod: PodSpec,
    /// Instead of `/`, for what the daemon keeps or installs on its node.
    root: PathBuf,
    /// What the kubelet adds, in podman's words.
    added: Vec<String>,
}

impl Daemon {
    fn new(podman: Podman, config: &[(&str, &str)]) -> Self {
        let set: DaemonSet = serde_json::from_value(object("DaemonSet")).expect("a DaemonSet");
        let pod = set.spec.expect("a spec").template.spec.expect("a pod");
        let daemon = Self { root: podman.dir().join("node"), podman, pod, added: Vec::new() };
        for dir in ["config", "run/podwire", "var/lib/podwire", "opt/cni/bin", "etc/cni/net.d"] {
            fs::create_dir_all(daemon.root.join(dir)).expect("a directory");
        }
        for (name, text) in config {
            fs::write(daemon.root.join("config").join(name), text).expect("a file is written");
        }
        fs::copy(PORTMAP, daemon.root.join("opt/cni/bin/portmap")).expect("a plugin is copied");
        daemon
    }

    fn container(&self) -> &Container {
        let [container] = &self.pod.containers[..] else { panic!("one container") };
        container
    }

    /// Starts the container, and runs its hook.
    #[track_caller]
    fn start(&self) {
        let mut command = self.podman.command();
        command.args(["run", "--detach", "--name", NAME, "--cgroup-parent", self.podman.cgroup()]);
        command.args(["--ulimit", "nofile=20000:20000", "--ulimit", "nproc=10000:10000"]);
        command
            .args(self.privileges())
            .args(self.mounts())
            .args(&self.added)
            .arg(IMAGE)
            .args(self.container().args.iter().flatten());
        let output = command.output().expect("nsenter starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let hook = self.container().lifecycle.as_ref().and_then(|hooks| hooks.post_start.as_ref()?.exec.as_ref());
        self.exec(hook.expect("a hook after the start"));
    }

    /// The security context in podman's words. What podman would do besides is turned off.
    fn privileges(&self) -> Vec<String> {
        let context = self.container().security_context.as_ref().expect("a security context");
        assert_eq!(context.privileged, Some(false));
        assert_eq!(context.allow_privilege_escalation, Some(false));
        assert_eq!(context.read_only_root_filesystem, Some(true));
        assert_eq!(context.seccomp_profile.as_ref().map(|profile| &*profile.type_), Some("RuntimeDefault"));
        assert_eq!((self.pod.host_network, self.pod.host_pid), (Some(true), None));
        let capabilities = context.capabilities.as_ref().expect("capabilities");
        let drop = capabilities.drop.iter().flatten().map(|name| format!("--cap-drop={name}"));
        let add = capabilities.add.iter().flatten().map(|name| format!("--cap-add={name}"));
        let fixed = ["--network=host", "--read-only", "--read-only-tmpfs=false", "--security-opt=no-new-privileges"];
        fixed.map(str::to_owned).into_iter().chain(drop).chain(add).collect()
    }

    fn mounts(&self) -> Vec<String> {
        let volumes = self.pod.volumes.as_deref().unwrap_or_default();
        let mounts = self.container().volume_mounts.iter().flatten();
        mounts
            .map(|mount| {
                let volume = volumes.iter().find(|volume| volume.name == mount.name).expect("the volume of a mount");
                let host = volume.host_path.as_ref().map(|host| PathBuf::from(&host.path));
                let source = match host {
                    Some(path) if ["/run/netns", "/sys/fs/bpf", "/proc/sys/net"].map(Path::new).contains(&&*path) => {
                        path
                    }
                    Some(path) => self.root.join(path.strip_prefix("/").expect("an absolute path")),
                    None => self.root.join("config"),
                };
                let read_only = if mount.read_only == Some(true) { ",ro" } else { "" };
                let propagation = match mount.mount_propagation.as_deref() {
                    None => "rprivate",
                    Some("HostToContainer") => "rslave",
                    Some(other) => panic!("{other} is for privileged containers only"),
                };
                format!("--volume={}:{}:{propagation}{read_only}", source.display(), mount.mount_path)
            })
            .collect()
    }

    /// Runs a hook or a probe in the container; it must succeed.
    #[track_caller]
    fn exec(&self, action: &ExecAction) -> String {
        let words = action.command.as_deref().expect("a command").join(" ");
        self.podman.run(&format!("exec {NAME} {words}"))
    }

    /// What both probes ask, which must be well.
    #[track_caller]
    fn probe(&self) {
        for probe in [&self.container().liveness_probe, &self.container().readiness_probe] {
            self.exec(probe.as_ref().and_then(|probe| probe.exec.as_ref()).expect("a probe"));
        }
    }

    fn status(&self) -> Value {
        let printed = self.podman.run(&format!("exec {NAME} /podwire status --output json"));
        serde_json::from_str(&printed).expect("status prints JSON")
    }

    /// The network that the hook has installed, as the node's runtime finds it.
    fn network(&self) -> CniRuntime {
        let text = fs::read_to_string(self.root.join("etc/cni/net.d/10-podwire.conflist")).expect("a configuration");
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        list["plugins"][0]["runtimeDir"] = self.root.join("run/podwire").to_str().expect("UTF-8").into();
        CniRuntime::new(vec![self.root.join("opt/cni/bin")], list)
    }
}

/// A configuration of a node with one peer.
fn config(node: &Host, peer: &Peer) -> String {
    let own = node.peer(None);
    format!(
        "[node]\nname = {:?}\nuplink = {:?}\npod_cidrs = {:?}\n\
         [cluster]\npod_cidrs = [\"10.244.0.0/16\", \"fd00:244::/32\"]\n\
         [dataplane]\nmode = \"adaptive\"\ncores = [1]\n\
         [[peers]]\nname = {:?}\nunderlay = \"{}\"\nvtep_mac = {:?}\npod_cidrs = {:?}\n",
        own.name,
        node.uplink,
        own.pod_cidrs(),
        peer.name,
        peer.underlay,
        peer.vtep_mac.as_deref().expect("a MAC"),
        peer.pod_cidrs(),
    )
}

/// Adds a pod as the node's runtime does.
fn add_pod(network: &CniRuntime, netns: Netns, name: &str) -> Pod {
    let attachment = Attachment {
        container: name.to_owned(),
        netns: Some(netns.path()),
        ifname: "eth0".to_owned(),
        ..Attachment::default()
    };
    network.add(&attachment).unwrap_or_else(|e| panic!("{e:?}"));
    Pod::of(name.to_owned(), netns)
}

#[test]
fn the_image_is_the_binary_alone() {
    if !is_equipped() {
        return;
    }
    let prefix = Prefix::fresh();
    let netns = prefix.netns("node");
    let podman = Podman::new(&prefix, &netns, prefix.dir());
    build(&podman);
    let said = podman.run(&format!(
        "run --rm --network none --cgroup-parent {} --ulimit nofile=20000:20000 --ulimit nproc=10000:10000 {IMAGE} --version",
        podman.cgroup()
    ));
    assert_eq!(said.trim(), concat!("podwire ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_privileges_of_the_manifest_are_enough() {
    if !is_equipped() {
        return;
    }
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire::default());
    let [a, c] = [('a', 1), ('c', 3)].map(|(letter, index)| switch.host(&prefix, letter, index));
    let mut c = KernelNode::start(c);
    let dir = prefix.dir().join("podman");
    fs::create_dir_all(&dir).expect("a directory");
    let config = config(&a, &c.peer());
    let daemon = Daemon::new(Podman::new(&prefix, &a.netns, &dir), &[("podwire.toml", &config)]);
    build(&daemon.podman);
    daemon.start();
    daemon.probe();
    assert_eq!(daemon.status()["dataplane"]["state"], "running", "{}", daemon.status());

    c.connect(&a.peer(Some(a.netns.mac(VXLAN_DEVICE))));
    c.add_pod(&prefix, "c1");
    let network = daemon.network();
    // Namespaces that are made while the container runs.
    let pods = ["a1", "a2"].map(|name| add_pod(&network, prefix.netns(name), name));
    assert_all_pairs_talk(&[&pods[0], &pods[1], &c.pods[0]]);
    let log = daemon.podman.output(&format!("logs {NAME}"));
    let log = String::from_utf8_lossy(&log.stderr).into_owned();
    let mut told = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    assert!(told.all(|line| line.contains("there is no program `nft`")), "{log}");

    // A rolling update: what is pinned on the node stays, and the next container takes it over.
    daemon.podman.run(&format!("rm --force --time 15 {NAME}"));
    assert_all_pairs_talk(&[&pods[0], &pods[1], &c.pods[0]]);
    daemon.start();
    assert!(wait_until(PATIENCE, || daemon.status()["dataplane"]["state"] == "running"));
    assert_eq!(daemon.status()["pods"], 2, "{}", daemon.status());
    assert_all_pairs_talk(&[&pods[0], &pods[1], &c.pods[0]]);
    daemon.podman.run(&format!("rm --force --time 15 {NAME}"));
}

/// With the configuration of the manifests, and the account that a kubelet mounts.
#[test]
fn the_container_joins_its_cluster_by_its_service_account() {
    if !is_equipped() || !ApiServer::is_available() {
        return;
    }
    let prefix = Prefix::fresh();
    let switch = Switch::new(&prefix, Wire::default());
    let server = ApiServer::start(&prefix, &switch);
    server.create(account());
    // Ranges are given in turn, and those of the laboratory's hosts begin with the second.
    for name in ["first", "node-a", "node-b"] {
        server.create_node(name);
        server.pod_cidrs(name);
    }
    server.annotate("node-b", &flannel("192.168.1.3", "02:00:00:00:fe:02"));

    let a = switch.host(&prefix, 'a', 1);
    let dir = prefix.dir().join("podman");
    fs::create_dir_all(&dir).expect("a directory");
    let map = object("ConfigMap");
    let files = ["podwire.toml", "net-conf.json"].map(|name| (name, map["data"][name].as_str().expect("a text")));
    let mut daemon = Daemon::new(Podman::new(&prefix, &a.netns, &dir), &files);
    let (account, address) = server.pod_account("podwire", "podwire");
    let variables = address.into_iter().chain([format!("NODE_NAME={}", a.name())]);
    daemon.added = variables.map(|variable| format!("--env={variable}")).collect();
    daemon.added.push(format!("--volume={}:/var/run/secrets/kubernetes.io/serviceaccount:ro", account.display()));
    build(&daemon.podman);
    daemon.start();
    daemon.probe();
    assert_eq!(daemon.status()["peers"][0]["name"], "node-b", "{}", daemon.status());
    let is_published = || annotation(&server.node("node-a"), "public-ip") == Some("192.168.1.2");
    assert!(wait_until(PATIENCE, is_published), "{:?}", server.node("node-a").metadata.annotations);
    assert!(wait_until(PATIENCE, || daemon.root.join("var/lib/podwire/nodes.json").exists()), "nothing is kept");
    daemon.podman.run(&format!("rm --force --time 15 {NAME}"));
}
