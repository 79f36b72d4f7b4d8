//! Endurance: what happens to nodes in their life, over and over, while their pods talk.
//!
//! A run is a series of turns. A turn is one event, and then a quiet time, both under numbered streams at a bounded rate
//! and TCP connections; in the quiet time pods also exchange datagrams of all sizes and bulk data, checked byte by
//! byte. What an event may cost is for `scripts/faults` to bound. Here a packet may be lost only where the event takes
//! the path away, or where a counter tells of it; none may come to a wrong pod; no connection may break; and at the end
//! nodes hold what they held at the beginning. Node `b` keeps its daemon all the time, so that what leaks is seen.

mod event;
mod inventory;
mod outcome;
mod turn;

#[path = "../faults/fault.rs"]
#[expect(dead_code, reason = "bounds and words are for scripts/faults")]
mod fault;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::harness::{Cluster, PodwireNode};
use event::Event;
use inventory::{Inventory, anonymous_kib};
pub use outcome::{Outcome, Turn};
use turn::Stage;

/// What a run is to be.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub length: Duration,
    /// Datagrams a second of each stream.
    pub rate: u64,
    /// The least length of a quiet time.
    pub quiet: Duration,
    /// Of the order of events.
    pub seed: u64,
}

/// By how much a daemon's own memory may grow: what its allocator keeps differs from time to time.
const GROWTH_KIB: u64 = 16 * 1024;

/// Runs turns until the time is over or `stopped`, tells of each, and takes stock.
pub fn run(cluster: &mut Cluster, plan: Plan, stopped: impl Fn() -> bool, mut tell: impl FnMut(&Turn)) -> Outcome {
    let stage = Stage::of(cluster, plan);
    // What is made at the first use is no leak.
    event::warm_up(cluster);
    let (held, memory_kib) = (Inventory::take(cluster), anonymous_kib(&cluster.b));
    let mut outcome = Outcome::new(plan.seed, memory_kib);
    let (mut dice, mut coming) = (fastrand::Rng::with_seed(plan.seed), Vec::new());
    let start = Instant::now();
    while start.elapsed() < plan.length && !stopped() {
        if coming.is_empty() {
            coming = event::all();
            dice.shuffle(&mut coming);
        }
        let event = coming.pop().expect("there are events");
        let turn = guarded(cluster, &stage, &event, start.elapsed());
        tell(&turn);
        let lost = !turn.failures.is_empty() && !stage.settles(cluster);
        outcome.add(turn);
        if lost {
            outcome.failures.push("the nodes did not come back: the run ends".to_owned());
            break;
        }
    }
    outcome.seconds = start.elapsed().as_secs();
    take_stock(cluster, &held, &mut outcome);
    outcome
}

/// A turn; a panic of the laboratory is a failure of the turn.
fn guarded(cluster: &mut Cluster, stage: &Stage, event: &Event, at: Duration) -> Turn {
    catch_unwind(AssertUnwindSafe(|| stage.turn(cluster, event, at))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref().map(|s: &&str| (*s).into()));
        Turn::failed(event.name, at, text.unwrap_or_else(|| "a panic".to_owned()))
    })
}

/// Looks for what was not given back.
fn take_stock(cluster: &mut Cluster, held: &Inventory, outcome: &mut Outcome) {
    // Its daemon is as young as that at the beginning.
    cluster.a.stop();
    cluster.a.launch();
    outcome.leaks = held.growth(cluster);
    outcome.memory_kib.1 = anonymous_kib(&cluster.b);
    let (before, after) = outcome.memory_kib;
    if after > before + GROWTH_KIB {
        outcome.leaks.push(format!("memory of node-b's daemon: {before} KiB before, {after} KiB after"));
    }
    outcome.leaks.extend(cluster.podwire_nodes().into_iter().flat_map(unbalanced));
    outcome.bad_checksums = cluster.bad_checksums();
}

/// The workers with a frame that is in none or two of its four places.
fn unbalanced(node: &PodwireNode) -> Vec<String> {
    let workers = node.status().dataplane.figures.map(|figures| figures.workers).unwrap_or_default();
    let leaky = workers.into_iter().filter(|worker| !worker.frames.is_balanced());
    leaky
        .map(|worker| format!("frames of worker {} of {}: {:?}", worker.worker, node.host.name(), worker.frames))
        .collect()
}
