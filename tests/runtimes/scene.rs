//! The cluster with a containerd on each of the podwire nodes.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use k8s_cri::v1::{LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata};

use super::containerd::Containerd;
use super::cri::{Cri, info};
use super::harness::{Cluster, Netns, Options, Pod, PodwireNode, Prefix, Wire, is_root};
use super::{image, web};

/// What the network is called.
pub const NETWORK: &str = "podwire";

/// Debian's reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Fields are dropped in this order.
pub struct Scene {
    pub a: Containerd,
    pub b: Containerd,
    pub cluster: Cluster,
}

/// The scene, or `None` (and a line that says so) where it cannot be built.
pub fn scene() -> Option<Scene> {
    is_equipped(&["containerd", "ctr", "runc", "iptables"]).then(|| {
        let cluster = Cluster::start(Prefix::fresh(), Wire::default(), Options::ADAPTIVE);
        let [a, b] = cluster.podwire_nodes().map(|node| {
            let dir = cluster.prefix.dir().join(node.host.name()).join("containerd");
            install_network(node, &dir);
            Containerd::start(&cluster.prefix, &node.host.netns, &dir)
        });
        Scene { a, b, cluster }
    })
}

/// Whether these programs are there, and what else runtimes need; says so when not.
pub fn is_equipped(programs: &[&str]) -> bool {
    if !is_root() {
        return false;
    }
    let directories = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let is_found = |name: &str| directories.iter().any(|directory| Path::new(directory).join(name).exists());
    let missing = programs.iter().filter(|name| !is_found(name)).map(|&name| name.to_owned());
    let plugins = ["loopback", "portmap", "bandwidth"].map(|name| format!("{PLUGINS}/{name}"));
    let files = plugins.into_iter().chain([image::BUSYBOX.to_owned()]).filter(|path| !Path::new(path).exists());
    let missing: Vec<_> = missing.chain(files).collect();
    if !missing.is_empty() {
        println!("skipped: needs {}", missing.join(", "));
    }
    missing.is_empty()
}

/// A pod that a runtime runs.
pub struct Running {
    pub pod: Pod,
    pub sandbox: String,
    pub container: String,
    cri: Cri,
}

/// What a pod asks for.
pub fn pod_config(containerd: &Containerd, name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-of-{name}"),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        linux: Some(LinuxPodSandboxConfig { cgroup_parent: containerd.cgroup.clone(), ..Default::default() }),
        ..Default::default()
    }
}

impl Running {
    /// Runs a pod with a web server in a container.
    #[track_caller]
    pub fn start(containerd: &Containerd, config: &PodSandboxConfig) -> Self {
        let cri = containerd.cri();
        let name = &config.hostname;
        let sandbox = cri.run_sandbox(config).unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        let container = cri.run_container(&sandbox, config, web::server()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let status = cri.sandbox_status(&sandbox).expect("a status");
        let spec = info(&status);
        let namespaces = spec["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces").iter();
        let network = namespaces.filter(|n| n["type"] == "network").find_map(|n| n["path"].as_str());
        let netns = Netns::mounted_at(Path::new(network.expect("a network namespace")));
        let pod = Pod::of(name.clone(), netns);
        let network = status.status.and_then(|status| status.network).expect("the runtime knows addresses");
        let told = [network.ip.clone()].into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip));
        let told: Vec<IpAddr> = told.map(|ip| ip.parse().expect("an address")).collect();
        assert_eq!(told, pod.addresses(), "the runtime was told what the pod has");
        Self { pod, sandbox, container, cri }
    }

    /// Runs a command in the container; returns whether it succeeded, and what it printed.
    #[track_caller]
    pub fn exec(&self, line: &str) -> (bool, String) {
        let words: Vec<_> = line.split_whitespace().collect();
        let done = self.cri.exec(&self.container, &words).unwrap_or_else(|e| panic!("{line}: {e}"));
        let printed = [done.stdout, done.stderr].concat();
        (done.exit_code == 0, String::from_utf8_lossy(&printed).into_owned())
    }

    /// Stops and removes the pod.
    #[track_caller]
    pub fn remove(self) {
        self.cri.stop_sandbox(&self.sandbox).unwrap_or_else(|e| panic!("{} does not stop: {e}", self.pod.name));
        self.cri.remove_sandbox(&self.sandbox).unwrap_or_else(|e| panic!("{} is not removed: {e}", self.pod.name));
    }
}

/// Puts podwire and the plugins after it into a runtime's `<dir>/bin`, and their configuration into `<dir>/net.d`.
pub fn install_network(node: &PodwireNode, dir: &Path) {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).expect("a directory");
    for name in ["loopback", "portmap", "bandwidth"] {
        symlink(Path::new(PLUGINS).join(name), bin.join(name)).expect("a link");
    }
    node.cli(&format!(
        "cni install --name {NETWORK} --chain portmap,bandwidth --bin-dir {} --conf-dir {}",
        bin.display(),
        dir.join("net.d").display()
    ));
}
