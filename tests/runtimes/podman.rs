//! podman with its CNI backend.

use std::net::SocketAddr;
use std::path::Path;

use super::harness::{Cluster, Netns, Options, Pod, Podman, Prefix, Wire, pings};
use super::image;
use super::inventory::Inventory;
use super::scene::{NETWORK, install_network, is_equipped};
use super::web::{PORT, ask, server};

const HOST_PORT: u16 = 18090;

/// Runs the web server in a container of this name, behind a port of the node.
#[track_caller]
fn start(podman: &Podman, name: &str, host_port: u16) -> Pod {
    let rootfs = image::rootfs(podman.dir());
    podman.run(&format!(
        "run --detach --name {name} --hostname {name} --network {NETWORK} --publish {host_port}:{PORT} \
         --cgroup-parent {} --ulimit nofile=20000:20000 --ulimit nproc=10000:10000 --rootfs {} {}",
        podman.cgroup(),
        rootfs.display(),
        server().join(" ")
    ));
    let netns = podman.run(&format!("inspect --format {{{{.NetworkSettings.SandboxKey}}}} {name}"));
    podman.adopt(&netns);
    Pod::of(name.to_owned(), Netns::mounted_at(Path::new(netns.trim())))
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
    let web = start(&podman, "web", HOST_PORT);
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
