//! Routes to the pods of many other nodes that do not exist: each has a range of its own in 11.0.0.0/8 and an address of
//! its own in 172.16.0.0/12, behind the host at the other end of the wire.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::harness::{KernelNode, Netns};

/// The most that the addresses have room for.
pub const MOST: u32 = 1 << 16;

/// The address of a node's first pod.
pub fn pod(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0b00_0002 | node << 8)
}

fn range(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0b00_0000 | node << 8)
}

fn underlay(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xac10_0000 | node)
}

/// Makes the host at the other end the way to all of them.
pub fn lead_by(netns: &Netns, gateway: &str) {
    netns.run(&format!("ip route add 172.16.0.0/12 via {gateway}"));
}

/// Peers for podwire's configuration.
pub fn peers(count: u32) -> String {
    let mut text = String::from("[probe]\ninterval_s = 0\n");
    for node in 0..count {
        let (underlay, range) = (underlay(node), range(node));
        write!(text, "\n[[peers]]\nname = \"far-{node}\"\nunderlay = \"{underlay}\"\npod_cidrs = [\"{range}/24\"]\n")
            .expect("a string");
    }
    text
}

/// Gives a kernel node what it has for each other node: a route, a neighbour, a forwarding entry.
pub fn add(node: &KernelNode, count: u32, dir: &Path) {
    let (device, netns) = (node.device(), &node.host.netns);
    let (mut routes, mut entries) = (String::new(), String::new());
    for node in 0..count {
        let [.., high, low] = node.to_be_bytes();
        let (mac, range) = (format!("02:11:00:00:{high:02x}:{low:02x}"), range(node));
        let neighbour = format!("neigh add {range} lladdr {mac} dev {device} nud permanent");
        writeln!(routes, "{neighbour}\nroute add {range}/24 via {range} dev {device} onlink").expect("a string");
        writeln!(entries, "fdb append {mac} dev {device} dst {}", underlay(node)).expect("a string");
    }
    for (program, lines) in [("ip", routes), ("bridge", entries)] {
        let file = dir.join(program);
        fs::write(&file, lines).expect("write a batch");
        netns.run(&format!("{program} -batch {}", file.display()));
    }
}
