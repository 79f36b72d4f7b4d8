//! The kernel path on a real kernel: nodes set up through the crate's own interface, and one set up
//! by plain commands that judges them.

mod lab;

use lab::{Lab, Underlay};
use podwire::control::wiring::Pod;

const PLAIN_MAC: &str = "02:00:00:00:00:33";

/// Nodes `a` (1) and `b` (2) of ours, `c` (3) of plain commands; each with a pod at host part 9.
struct Three {
    lab: Lab,
    config: String,

}

impl Three {
    fn new(underlay: Underlay) -> Option<Self> {
        let lab = Lab::new(underlay)?;
        let mut pods = Vec::new();
        let mut macs = Vec::new();
        for (node, index, other) in [("a", 1, 2), ("b", 2, 1)] {
            lab.node(node, index);
            let config = lab.config(index, &[(other, None), (3, Some(PLAIN_MAC))]);
            let done = lab.reconcile(node, &config, &[]);
            macs.push((index, done.vtep.mac.to_string()));
            pods.push(lab.pod(node, index, 9, &done.vtep, &format!("{node}-pod")));
        }
        let peers: Vec<(u8, &str)> = macs.iter().map(|(index, mac)| (*index, mac.as_str())).collect();
        lab.plain_node("c", 3, PLAIN_MAC, &peers);
        let config = lab.config(1, &[(2, None), (3, Some(PLAIN_MAC))]);
        Some(Self { lab, config, pods })
    }

    fn all_reach_all(&self) {
        for from in ["a-pod", "b-pod", "c-pod"] {
            for to in 1..=3 {
                self.lab.reaches(from, &format!("10.244.{to}.9"));
                self.lab.reaches(from, &format!("fd00:244:{to}::9"));
            }
        }
    }
}

#[test]
fn pods_of_all_nodes_reach_each_other_over_an_ipv4_underlay() {
    let Some(three) = Three::new(Underlay::V4) else { return };
    three.all_reach_all();
}

#[test]
fn pods_of_all_nodes_reach_each_other_over_an_ipv6_underlay() {
    let Some(three) = Three::new(Underlay::V6) else { return };
    three.all_reach_all();
}
