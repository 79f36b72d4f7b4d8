//! podman with its CNI backend.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::harness::{Cluster, Netns, Options, Pod, Prefix, Wire, pings};
use super::inventory::Inventory;
use super::scene::{NETWORK, install_network, is_equipped};
use super::web::{PORT, ask, server};
use super::{containerd, image};

const HOST_PORT: u16 = 18090;

/// podman on a node, with storage and state of its own.
struct Podman {
    netns: Netns,
    dir: PathBuf,
    cgroup: String,
    /// Where it is written which namespace its container has, for when nobody removes it.
    adopted: PathBuf,
}

impl Podman {
    fn new(prefix: &Prefix, netns: &Netns, dir: &Path) -> Self {
        prefix.at_end("podman", containerd::REMOVE);
        let config = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{dir}/bin\"]\nnetwork_config_dir = \"{dir}/net.d\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"none\"\nlock_type = \"file\"\n",
            dir = dir.display()
        );
        fs::write(dir.join("containers.conf"), config).expect("a file is written");
        Self {
            netns: netns.clone(),
            dir: dir.to_owned(),
            cgroup: format!("/{}", prefix.name()),
            adopted: prefix.dir().join("adopted"),
        }
    }

    fn command(&self) -> Command {
        let dir = &self.dir;
        let mut command = self.netns.command("podman");
        command.env("CONTAINERS_CONF", dir.join("containers.conf")).args(["--storage-driver", "vfs"]);
        for (option, part) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(dir.join(part));
        }
        command.arg("--runtime-flag").arg(format!("root={}", dir.join("runc").display()));
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command().args(line.split_whitespace()).output().expect("nsenter starts")
    }

    #[track_caller]
    fn run(&self, line: &str) -> String {
        let output = self.output(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {line}: {}\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs the web server in a container of this name, behind a port of the node.
    #[track_caller]
    fn start(&self, name: &str, host_port: u16) -> Pod {
        let rootfs = image::rootfs(&self.dir);
        self.run(&format!(
            "run --detach --name {name} --hostname {name} --network {NETWORK} --publish {host_port}:{PORT} \
             --cgroup-parent {} --ulimit nofile=20000:20000 --ulimit nproc=10000:10000 --rootfs {} {}",
            self.cgroup,
            rootfs.display(),
            server().join(" ")
        ));
        let netns = self.run(&format!("inspect --format {{{{.NetworkSettings.SandboxKey}}}} {name}"));
        fs::write(&self.adopted, &netns).expect("a file is written");
        Pod::of(name.to_owned(), Netns::mounted_at(Path::new(netns.trim())))
    }
}

#[test]
fn containers_of_podman_are_reached_and_leave_nothing_behind() {
    if !is_equipped(&["podman", "conmon", "runc", "iptables"]) {
        return;
    }
    let cluster = Cluster::start(Prefix::fresh(), Wire::default(), Options::ADAPTIVE);
    let node = &cluster.a;
    let dir = cluster.prefix.dir().join("podman");
    install_network(node, &dir);
    let before = Inventory::of(node, None);
    let podman = Podman::new(&cluster.prefix, &node.host.netns, &dir);
    let web = podman.start("web", HOST_PORT);
    let remote = &cluster.b;
    for (address, host) in web.addresses().into_iter().zip(node.host.addresses()) {
        assert!(pings(&remote.pods[0], address, ""), "{address} answers");
        for (client, endpoint) in [
            (&remote.pods[0].netns, SocketAddr::new(address, PORT)),
            (&remote.host.netns, SocketAddr::new(host, HOST_PORT)),
        ] {
            assert_eq!(ask(client, endpoint).expect("an answer"), "web", "{endpoint}");
        }
    }
    podman.run("rm --force --time 0 web");
    before.assert_restored(node, None);
    assert!(!web.netns.path().exists(), "podman removes the namespace");
}
