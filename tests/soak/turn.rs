//! One turn: an event, then a quiet time.

use std::thread;
use std::time::{Duration, Instant};

use podwire::control::api::{DataplaneState, Path};

use super::Plan;
use super::event::Event;
use super::inventory::anonymous_kib;
use super::outcome::{Passage, Turn};
use crate::harness::{
    Cluster, Connections, Flow, Pod, PodwireNode, figures, losses, pings, since, stream_at, tcp_transfer, udp_echo,
    wait_until,
};

/// How long streams run before an event.
const LEAD: Duration = Duration::from_millis(300);

/// How long paths may take to be as before.
const PATIENCE: Duration = Duration::from_secs(30);

/// After which also what is found late has been counted.
const LATE: Duration = Duration::from_secs(3);

const UDP_SIZES: [usize; 7] = [0, 1, 64, 512, 1024, 1400, 5000];
const TCP_BYTES: usize = 2_000_000;

/// The pods that talk, and how.
pub struct Stage {
    plan: Plan,
    a: [Pod; 2],
    b: [Pod; 2],
    c: [Pod; 2],
}

impl Stage {
    pub fn of(cluster: &Cluster, plan: Plan) -> Self {
        let two = |pods: &[Pod]| [pods[0].clone(), pods[1].clone()];
        Self { plan, a: two(&cluster.a.pods), b: two(&cluster.b.pods), c: two(&cluster.c.pods) }
    }

    /// Between podwire nodes, from and to the plain node, and within a node.
    fn flows(&self) -> [Flow<'_>; 5] {
        let Self { a: [a1, a2], b: [b1, b2], c: [c1, c2], .. } = self;
        [Flow::v4(a1, b1), Flow::v6(b1, a1), Flow::v4(a2, c1), Flow::v6(c2, b2), Flow::v4(a1, a2)]
    }

    fn pods(&self) -> Vec<&Pod> {
        [&self.a, &self.b, &self.c].into_iter().flatten().collect()
    }

    /// Has the event happen, waits for the paths, and watches them for the quiet time.
    pub fn turn(&self, cluster: &mut Cluster, event: &Event, at: Duration) -> Turn {
        let mut turn = Turn::new(event.name, at);
        let mut settled = false;
        turn.event = self.watch(cluster, |cluster| {
            thread::sleep(LEAD);
            (event.happen)(cluster);
            settled = self.settles(cluster);
        });
        if !settled {
            turn.failures.push("the paths are not as before".to_owned());
        }
        let end = Instant::now() + self.plan.quiet;
        turn.quiet = self.watch(cluster, |_| {
            for (one, other) in [(&self.a[0], &self.b[0]), (&self.a[1], &self.c[1]), (&self.c[0], &self.b[1])] {
                turn.failures.extend(mixed(one, other));
            }
            thread::sleep(end.saturating_duration_since(Instant::now()));
        });
        turn.memory_kib = anonymous_kib(&cluster.b);
        turn.judge(event.harmless);
        turn
    }

    /// Streams and connections while `act` goes on, and what became of them.
    fn watch(&self, cluster: &mut Cluster, act: impl FnOnce(&mut Cluster)) -> Passage {
        let (flows, pods) = (self.flows(), self.pods());
        let before = cluster.podwire_nodes().map(figures);
        let connections = Connections::open(&flows[..2]);
        let deliveries = stream_at(self.plan.rate, &flows, &pods, || act(cluster));
        let mut passage = Passage::of(&deliveries, &connections.close());
        if passage.lost > 0 {
            thread::sleep(LATE);
        }
        for (node, before) in cluster.podwire_nodes().into_iter().zip(&before) {
            passage.count(&losses(since(figures(node), before)));
        }
        passage
    }

    /// Waits until all peers are served by the fast path and all flows pass; says whether they do.
    pub fn settles(&self, cluster: &Cluster) -> bool {
        let passes = |flow: &Flow<'_>| pings(flow.from, flow.address, "");
        wait_until(PATIENCE, || cluster.podwire_nodes().into_iter().all(serves) && self.flows().iter().all(passes))
    }
}

fn serves(node: &PodwireNode) -> bool {
    // Not by `PodwireNode::status`: the daemon may be about to start.
    node.state() == Some(DataplaneState::Running) && node.status().peers.iter().all(|peer| peer.path == Path::Fast)
}

/// A ping, datagrams of all sizes and a TCP stream, in each family and both directions; what failed twice.
fn mixed(one: &Pod, other: &Pod) -> Vec<String> {
    let mut failures = Vec::new();
    for (from, to) in [(one, other), (other, one)] {
        for address in to.addresses() {
            let attempt = || -> Result<(), String> {
                let told = |what: &str| format!("{what} from {} to {} ({address})", from.name, to.name);
                pings(from, address, "").then_some(()).ok_or_else(|| told("no answer"))?;
                udp_echo(from, to, address, &UDP_SIZES).map_err(|e| told(&format!("datagrams: {e}")))?;
                tcp_transfer(from, to, address, TCP_BYTES).map_err(|e| told(&format!("TCP: {e}")))?;
                Ok(())
            };
            failures.extend(attempt().or_else(|_| attempt()).err());
        }
    }
    failures
}
