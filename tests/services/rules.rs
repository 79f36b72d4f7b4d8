//! nftables rules of the kind that kube-proxy writes (`pkg/proxy/nftables/proxier.go`): the same hooks, marks and
//! statements, in a table of their own.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use super::harness::Netns;
use super::peers::PROTOCOLS;

/// A service and the endpoints behind it, for TCP and UDP.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: &'static str,
    /// What clients ask: the cluster's address, or none for one of a node port alone.
    pub cluster: Option<SocketAddr>,
    /// A port of any of the node's own addresses.
    pub node_port: Option<u16>,
    /// Whether what comes by the node port leaves with the node's address, so that answers come back here.
    pub masquerades: bool,
    pub endpoints: Vec<SocketAddr>,
    /// Whether a client stays with its endpoint.
    pub has_affinity: bool,
}

impl Service {
    pub fn cluster(name: &'static str, address: SocketAddr, endpoints: &[SocketAddr]) -> Self {
        Self {
            name,
            cluster: Some(address),
            node_port: None,
            masquerades: false,
            endpoints: endpoints.to_vec(),
            has_affinity: false,
        }
    }

    pub fn node_port(name: &'static str, port: u16, masquerades: bool, endpoint: SocketAddr) -> Self {
        Self { name, cluster: None, node_port: Some(port), masquerades, endpoints: vec![endpoint], has_affinity: false }
    }
}

/// Puts the rules for `services`, all of one family, in the place of what the node's table of that family holds.
pub fn set(node: &Netns, is_ipv6: bool, services: &[Service]) {
    load(node, &text(is_ipv6, services));
}

/// Removes the table.
pub fn remove(node: &Netns, is_ipv6: bool) {
    node.run(&format!("nft delete table {} kube-proxy", family(is_ipv6)));
}

/// Loads a text of nftables in a namespace.
#[track_caller]
pub fn load(node: &Netns, text: &str) {
    let mut command = node.command("nft");
    let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("nft starts");
    nft.stdin.take().expect("piped").write_all(text.as_bytes()).expect("nft reads");
    let output = nft.wait_with_output().expect("our child");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn family(is_ipv6: bool) -> &'static str {
    if is_ipv6 { "ip6" } else { "ip" }
}

fn text(is_ipv6: bool, services: &[Service]) -> String {
    let ip = family(is_ipv6);
    let mut chains = String::new();
    let (mut by_address, mut by_port) = (Vec::new(), Vec::new());
    for service in services {
        write_service(&mut chains, ip, service);
        for protocol in PROTOCOLS.map(super::peers::Protocol::name) {
            if let Some(address) = service.cluster {
                let (name, port) = (service.name, address.port());
                by_address.push(format!("{} . {protocol} . {port} : goto service-{name}", address.ip()));
            }
            if let Some(port) = service.node_port {
                by_port.push(format!("{protocol} . {port} : goto external-{}", service.name));
            }
        }
    }
    let elements = |list: &[String]| match list {
        [] => String::new(),
        list => format!("elements = {{ {} }}", list.join(", ")),
    };
    format!(
        r"
table {ip} kube-proxy {{}}
delete table {ip} kube-proxy
table {ip} kube-proxy {{
    chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
    {chains}
    map service-ips {{ type {ip}v4_or_6 . inet_proto . inet_service : verdict; {} }}
    map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}
    chain services {{
        {ip} daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local meta l4proto . th dport vmap @service-nodeports
    }}
    chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{
        type nat hook postrouting priority 100;
        meta mark & 0x4000 == 0 return
        meta mark set meta mark ^ 0x4000
        masquerade fully-random
    }}
    chain filter-forward {{ type filter hook forward priority -110; ct state invalid drop; }}
}}
",
        elements(&by_address),
        elements(&by_port),
    )
    .replace(&format!("{ip}v4_or_6"), if is_ipv6 { "ipv6_addr" } else { "ipv4_addr" })
}

/// The chains of a service and of its endpoints.
fn write_service(chains: &mut String, ip: &str, service: &Service) {
    let Service { name, endpoints, has_affinity, masquerades, .. } = service;
    let count = endpoints.len();
    let affinity = |n: usize| format!("affinity-{name}-{n}");
    for (n, endpoint) in endpoints.iter().enumerate() {
        let (target, address) = (destination(*endpoint), endpoint.ip());
        let stay = if *has_affinity { format!("update @{} {{ {ip} saddr }}", affinity(n)) } else { String::new() };
        if *has_affinity {
            let kind = if address.is_ipv6() { "ipv6_addr" } else { "ipv4_addr" };
            writeln!(chains, "set {} {{ type {kind}; flags dynamic, timeout; timeout 3h; }}", affinity(n))
                .expect("text");
        }
        writeln!(
            chains,
            "chain endpoint-{name}-{n} {{\n {ip} saddr {address} jump mark-for-masquerade\n {stay}\n \
             meta l4proto {{ tcp, udp }} dnat to {target}\n}}"
        )
        .expect("text");
    }
    let choices: Vec<_> = (0..count).map(|n| format!("{n} : goto endpoint-{name}-{n}")).collect();
    let stays: Vec<_> = match has_affinity {
        true => (0..count).map(|n| format!(" {ip} saddr @{} goto endpoint-{name}-{n}\n", affinity(n))).collect(),
        false => Vec::new(),
    };
    let choice = match count {
        0 => String::new(),
        count => format!(" numgen random mod {count} vmap {{ {} }}\n", choices.join(", ")),
    };
    writeln!(chains, "chain service-{name} {{\n{}{choice}}}", stays.concat()).expect("text");
    let mark = if *masquerades { "jump mark-for-masquerade" } else { "" };
    writeln!(chains, "chain external-{name} {{\n {mark}\n goto service-{name}\n}}").expect("text");
}

fn destination(endpoint: SocketAddr) -> String {
    match endpoint.ip() {
        IpAddr::V4(address) => format!("{address}:{}", endpoint.port()),
        IpAddr::V6(address) => format!("[{address}]:{}", endpoint.port()),
    }
}
