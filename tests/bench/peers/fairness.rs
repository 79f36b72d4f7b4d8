//! `scripts/bench fairness`: what a pod gets beside pods of its node that flood, and what these get.

use std::time::Duration;

use super::machine::as_f64;
use super::report::{Figures, Measure};
use super::systems::{Kind, Node, Rig, System};
use crate::harness::{Beside, Flood, Flow, Wire, pings};

/// Pods of each node: as many as may flood, and one that talks beside them.
const PODS: usize = 17;

const P50: Measure = Measure { name: "p50 µs", digits: 1, compared: true };
const P99: Measure = Measure { name: "p99 µs", digits: 1, compared: true };
const LOST: Measure = Measure { name: "lost", digits: 0, compared: false };
const OFFERED: Measure = Measure { name: "sent Mpps", digits: 3, compared: false };
const ARRIVED: Measure = Measure { name: "got Mpps", digits: 3, compared: true };
const SENT_INDEX: Measure = Measure { name: "J sent", digits: 3, compared: false };
const INDEX: Measure = Measure { name: "J got", digits: 3, compared: false };
const REORDERED: Measure = Measure { name: "reordered", digits: 0, compared: false };

impl System {
    /// Whether its second node is the kernel alone, so that what is measured is its first one.
    pub fn ends_in_kernel(&self) -> bool {
        matches!(self.nodes[1], Kind::Kernel(_))
    }

    /// Builds it with pods enough, which know the way to each other.
    pub fn build_crowd(&self) -> Result<Rig, String> {
        let rig = self.build(Wire::default(), PODS)?;
        let [node, other] = &rig.nodes;
        let all = || node.pods().iter().flat_map(|from| other.pods()[..2].iter().map(move |to| (from, to)));
        all().all(|(from, to)| pings(from, to.v4.into(), "")).then_some(()).ok_or("a pod is not reached")?;
        Ok(rig)
    }
}

pub fn name(floods: usize) -> String {
    match floods {
        0 => "ping-pong".to_owned(),
        1 => "ping-pong beside a pod that floods".to_owned(),
        _ => format!("ping-pong beside {floods} pods that flood, every second one three times as much"),
    }
}

/// Floods come from one core, which is not that of the first node's worker.
pub fn measure(rig: &Rig, floods: usize, seconds: u32) -> Result<Figures, String> {
    let [node, other] = &rig.nodes;
    let [pods, others] = [node, other].map(Node::pods);
    let (asker, flooders) = pods.split_last().ok_or("no pods")?;
    let flows = flooders.iter().take(floods).map(|pod| Flow::v4(pod, &others[0]));
    let beside = Beside::measure([asker, &others[1]], 0, &Flood::uneven(flows), Duration::from_secs(seconds.into()));
    let at = |quantile| as_f64(beside.trips.value_at_quantile(quantile)) / 1e3;
    let mut figures = vec![(P50, at(0.5)), (P99, at(0.99)), (LOST, as_f64(beside.lost))];
    if floods > 0 {
        let mpps = |packets: u64| as_f64(packets) / f64::from(seconds) / 1e6;
        let [sent, got] = beside.fairness();
        figures.extend([
            (OFFERED, mpps(beside.floods.iter().map(|flood| flood.sent).sum())),
            (ARRIVED, mpps(beside.arrived().sum())),
            (SENT_INDEX, sent),
            (INDEX, got),
            (REORDERED, as_f64(beside.floods.iter().map(|flood| flood.reordered).sum())),
        ]);
    }
    Ok(figures)
}
