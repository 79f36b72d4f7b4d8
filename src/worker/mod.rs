//! A worker: a pinned thread that owns its queues of the uplink, its ring of the pods' hub, its packet memory and
//! its counters, and shares nothing with other workers but the published route table.
//!
//! [`Worker::poll_once`] is one pass: a burst in each direction. [`Worker::run`] pins the thread and repeats it,
//! shows that it is alive, and in adaptive mode sleeps when there is nothing to do:
//!
//! ```text
//!            work                nothing for SPIN_NS           a ring or the inbox has something
//!   polling ──────▶ polling ──────────────────────▶ asleep ──────────────────────────────▶ polling
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod clock;
mod inbox;
mod sleep;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::counters::{Count, FramePage, Tally, TallyPage};
use crate::fib::{Fib, Reader};
use crate::frame::Pool;
use crate::pipeline::Pipeline;
use crate::port::{Hub, PodPort, Uplink, WirePort};
use crate::shared::Heartbeat;

pub use clock::now_ns;
pub use inbox::{Inbox, Message};
pub use sleep::Sleep;

/// How a worker waits for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// Never sleeps: the lowest latency, for a core of its own.
    Busy,
    /// Polls while there is traffic, sleeps when there is none.
    Adaptive,
}

/// How long an adaptive worker polls in vain before it sleeps.
const SPIN_NS: u64 = 50_000;

/// How often a polling worker says that it is alive.
const BEAT_NS: u64 = 1_000_000;

/// How often the worker asks the kernel for what only the kernel counts, and settles lost credits.
const HOUSEKEEPING_NS: u64 = 50_000_000;

/// Idle passes between two looks at the clock.
const PASSES_PER_LOOK: u32 = 16;

/// What control and the worker both see.
#[derive(Debug, Default)]
pub struct Board {
    pub tally: TallyPage,
    pub frames: FramePage,
    /// The worker lost its device; the data plane must be built again.
    pub dead: AtomicBool,
    /// The worker runs on its own core alone.
    pub pinned: AtomicBool,
}

/// One worker, over any ports.
#[derive(Debug)]
pub struct Worker<W, P> {
    pub wire: W,
    pub pods: P,
    pub pool: Pool,
    pub tally: Tally,
    pipeline: Pipeline,
    fib: Reader<Fib>,
}

impl<W: WirePort, P: PodPort> Worker<W, P> {
    pub fn new(wire: W, pods: P, pool: Pool, pipeline: Pipeline, fib: Reader<Fib>) -> Self {
        Self { wire, pods, pool, tally: Tally::default(), pipeline, fib }
    }

    /// One pass: a burst from the wire to the pods, and one from the pods to the wire. Returns how many packets
    /// there were.
    pub fn poll_once(&mut self) -> usize {
        let Self { wire, pods, pool, tally, pipeline, fib } = self;
        let fib = fib.get();
        let from_wire = pipeline.wire_to_pods(wire, pods, fib, pool, tally);
        let from_pods = pipeline.pods_to_wire(pods, wire, fib, pool, tally);
        if from_pods == 0 {
            // Sent frames come back and the receive side gets new ones, whatever else there is to do.
            wire.flush(pool, tally);
        }
        let work = from_wire + from_pods;
        tally.add(Count::Polls, 1);
        tally.add(Count::BusyPolls, u64::from(work > 0));
        work
    }
}

/// What a worker over the kernel's ports needs besides them.
#[derive(Debug)]
pub struct Surroundings {
    pub polling: Polling,
    pub core: core_affinity::CoreId,
    pub heartbeat: Heartbeat,
    pub inbox: Arc<Inbox>,
    pub sleep: Sleep,
    pub board: Arc<Board>,
}

impl Worker<Uplink, Hub> {
    /// Runs until it is told to stop, and returns what it owned.
    #[must_use = "the worker owns packet memory"]
    pub fn run(mut self, around: &Surroundings) -> Self {
        around.board.pinned.store(settle_on(around.core), Ordering::Relaxed);
        let mut pace = Pace::new(now_ns());
        around.heartbeat.wake(pace.now_ns);
        loop {
            let busy = self.poll_once() > 0;
            if busy || pace.passes_until_look == 0 {
                self.look_at_clock(around, &mut pace, busy);
                if around.inbox.take() == Some(Message::Stop) {
                    break;
                }
            }
            pace.passes_until_look = pace.passes_until_look.checked_sub(1).unwrap_or(PASSES_PER_LOOK);
        }
        around.heartbeat.stop();
        self.drain();
        self.publish(&around.board);
        self
    }

    fn look_at_clock(&mut self, around: &Surroundings, pace: &mut Pace, busy: bool) {
        pace.now_ns = now_ns();
        if pace.now_ns >= pace.beat_due_ns {
            pace.beat_due_ns = pace.now_ns + BEAT_NS;
            // Without its device a worker carries nothing: the kernel path does, until control starts it again.
            if self.wire.is_dead() {
                around.heartbeat.stop();
            } else {
                around.heartbeat.beat(pace.now_ns);
            }
            self.publish(&around.board);
        }
        if pace.now_ns >= pace.housekeeping_due_ns {
            pace.housekeeping_due_ns = pace.now_ns + HOUSEKEEPING_NS;
            self.keep_house();
        }
        if busy {
            pace.idle_since_ns = pace.now_ns;
        } else if around.polling == Polling::Adaptive && pace.now_ns - pace.idle_since_ns >= SPIN_NS {
            self.sleep(around, pace);
        }
    }

    fn sleep(&mut self, around: &Surroundings, pace: &mut Pace) {
        self.tally.add(Count::Sleeps, 1);
        self.publish(&around.board);
        self.fib.rest();
        around.heartbeat.sleep();
        // A frame that came before the programs knew of the sleep does not wake anyone.
        if !self.has_work() && around.inbox.is_empty() {
            around.sleep.until_woken();
        }
        *pace = Pace { housekeeping_due_ns: pace.housekeeping_due_ns, ..Pace::new(now_ns()) };
        around.heartbeat.wake(pace.now_ns);
    }

    fn has_work(&self) -> bool {
        self.wire.has_work() || self.pods.ready(1) > 0
    }

    fn keep_house(&mut self) {
        self.wire.count_lost(&mut self.tally);
        self.pods.count_lost(&mut self.tally);
        self.pods.settle(&mut self.tally);
    }

    /// Carries what was claimed before the programs saw that the worker stops.
    fn drain(&mut self) {
        const PASSES: usize = 1000;
        for _ in 0..PASSES {
            if self.poll_once() == 0 && !self.has_work() {
                break;
            }
        }
        self.keep_house();
    }

    fn publish(&self, board: &Board) {
        self.tally.publish(&board.tally);
        let (fill, send) = self.wire.lent();
        let FramePage { pool: pool_cell, fill: fill_cell, send: send_cell } = &board.frames;
        for (cell, value) in [(pool_cell, self.pool.len() as u64), (fill_cell, fill), (send_cell, send)] {
            AtomicU64::store(cell, value, Ordering::Relaxed);
        }
        board.dead.store(self.wire.is_dead(), Ordering::Relaxed);
    }
}

/// Pins the calling thread and puts it before others on its core: a worker that waits for its core is taken for hung.
/// Without the privilege it runs as any thread. Returns whether it is pinned.
fn settle_on(core: core_affinity::CoreId) -> bool {
    // About three times a thread's usual share. Much further down a worker that spins can starve what the kernel defers
    // to ksoftirqd on its core, and with it its own frames.
    const FIRST: i32 = -5;
    // On Linux a priority is a thread's.
    let _unprivileged = rustix::process::setpriority_process(None, FIRST);
    core_affinity::set_for_current(core)
}

/// When what is due, in nanoseconds of the monotonic clock.
#[derive(Debug)]
struct Pace {
    now_ns: u64,
    idle_since_ns: u64,
    beat_due_ns: u64,
    housekeeping_due_ns: u64,
    passes_until_look: u32,
}

impl Pace {
    fn new(now_ns: u64) -> Self {
        Self {
            now_ns,
            idle_since_ns: now_ns,
            beat_due_ns: now_ns + BEAT_NS,
            housekeeping_due_ns: now_ns,
            passes_until_look: PASSES_PER_LOOK,
        }
    }
}
