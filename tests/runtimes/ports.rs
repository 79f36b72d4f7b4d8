//! Ports of nodes that `portmap` hands to pods.

use std::net::{IpAddr, SocketAddr};

use k8s_cri::v1::{PodSandboxConfig, PortMapping, Protocol};

use super::harness::Netns;
use super::scene::{Running, pod_config, scene};
use super::web::{PORT, ask};

const HOST_PORT: u16 = 18080;

/// The pod's web server behind a port of its node.
pub fn mapping(host_port: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: PORT.into(),
        host_port: host_port.into(),
        host_ip: String::new(),
    }
}

#[test]
fn a_host_port_answers_to_nodes_pods_and_its_own_node_until_the_pod_goes() {
    let Some(scene) = scene() else { return };
    let config = PodSandboxConfig { port_mappings: vec![mapping(HOST_PORT)], ..pod_config(&scene.a, "web-a") };
    let web = Running::start(&scene.a, &config);
    let cluster = &scene.cluster;
    let (a, b) = (&cluster.a.host, &cluster.b.host);
    let clients: [(&str, &Netns); 5] = [
        ("another node", &b.netns),
        ("its own node", &a.netns),
        ("a pod of another node", &cluster.b.pods[0].netns),
        ("a pod of its own node", &cluster.a.pods[0].netns),
        ("itself", &web.pod.netns),
    ];
    let endpoints = a.addresses().map(|address: IpAddr| SocketAddr::new(address, HOST_PORT));
    for (who, netns) in clients {
        for endpoint in endpoints {
            let name = ask(netns, endpoint).unwrap_or_else(|e| panic!("{who} asks {endpoint}: {e}"));
            assert_eq!(name, "web-a", "{who} asks {endpoint}");
        }
    }
    web.remove();
    for endpoint in endpoints {
        ask(&b.netns, endpoint).expect_err("nobody is behind the port any more");
    }
}
