//! A worker: a pinned thread that owns its queues of the uplink, its ring of the pods' hub, its packet memory and
//! its counters, and shares nothing with other workers but the published route table.
//!
//! [`Worker::poll_once`] is one pass: a burst in each direction. [`Worker::run`] pins the thread and repeats it,
//! shows that it is alive while it is well ([`Health`]), and in adaptive mode sleeps when there is nothing to do:
//!
//! ```text
//!            work                nothing for SPIN_NS           a ring or the inbox has something
//!   polling ──────▶ polling ──────────────────────▶ asleep ──────────────────────────────▶ polling
//! ```
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod clock;
mod fault;
mod health;
mod inbox;
mod schedule;
mod sleep;
mod times;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::confine;
use crate::counters::{Count, FramePage, Tally, TallyPage};
use crate::fib::{Fib, Reader};
use crate::frame::Pool;
use crate::pipeline::Pipeline;
use crate::port::{Hub, PodPort, Uplink, WirePort};
use crate::shared::Heartbeat;
use crate::trace::{self, Tap, Trace};
use fault::Withheld;
use schedule::settle_on;

pub use clock::now_ns;
pub use fault::Fault;
pub use health::{Ailment, Health, Memory, Probation, Toll};
pub use inbox::{Inbox, Message};
use sleep::until_woken;
pub use times::{Passes, Times, TimesPage, Timesheet, bounds_ns};

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

/// The most idle passes between two looks at the clock.
const PASSES_PER_LOOK: u32 = 16;

/// What control and the worker both see.
#[derive(Debug, Default)]
pub struct Board {
    pub tally: TallyPage,
    pub frames: FramePage,
    pub times: TimesPage,
    /// The worker lost its device; the data plane must be built again.
    pub dead: AtomicBool,
    /// The worker runs on its own core alone.
    pub pinned: AtomicBool,
    /// Until when the worker is on probation, or 0.
    probation_until_ns: AtomicU64,
    /// That is for lack of packet memory.
    starved: AtomicBool,
}

impl Board {
    /// The probation that the worker is on, and until when.
    pub fn probation(&self) -> Option<(Ailment, u64)> {
        let until_ns = self.probation_until_ns.load(Ordering::Acquire);
        let ailment = if self.starved.load(Ordering::Relaxed) { Ailment::Starved } else { Ailment::Away };
        (until_ns != 0).then_some((ailment, until_ns))
    }

    fn show(&self, probation: Option<Probation>) {
        self.starved.store(probation.is_some_and(|it| it.ailment == Ailment::Starved), Ordering::Relaxed);
        // Pairs with the reader: who sees the probation sees its reason.
        self.probation_until_ns.store(probation.map_or(0, |it| it.until_ns), Ordering::Release);
    }
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
    withheld: Withheld,
    times: Timesheet,
    tap: Option<Tap>,
}

impl<W: WirePort, P: PodPort> Worker<W, P> {
    pub fn new(wire: W, pods: P, pool: Pool, pipeline: Pipeline, fib: Reader<Fib>) -> Self {
        let (tally, withheld, times) = (Tally::default(), Withheld::default(), Timesheet::default());
        Self { wire, pods, pool, tally, pipeline, fib, withheld, times, tap: None }
    }

    /// Traces from now on, or no longer.
    pub fn trace(&mut self, tap: Option<Tap>) {
        self.tap = tap;
    }

    /// One pass: a burst from the pods to the wire, and one from the wire to the pods. Returns how many packets
    /// there were.
    pub fn poll_once(&mut self) -> usize {
        let Some(mut tap) = self.tap.take() else { return self.pass(&mut trace::Off) };
        tap.stamp(now_ns());
        let work = self.pass(&mut tap);
        self.tap = Some(tap);
        work
    }

    fn pass(&mut self, trace: &mut impl Trace) -> usize {
        let Self { wire, pods, pool, tally, pipeline, fib, withheld, .. } = self;
        let fib = fib.get();
        let from_pods = pipeline.pods_to_wire(pods, wire, fib, pool, tally, trace);
        withheld.withhold(pool);
        let from_wire = pipeline.wire_to_pods(wire, pods, fib, pool, tally, trace);
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
    /// The age at which the programs take the heartbeat for stale.
    pub stale_ns: u64,
    pub inbox: Arc<Inbox>,
    pub board: Arc<Board>,
}

impl Worker<Uplink, Hub> {
    /// Runs until it is told to stop, and returns what it owned.
    #[must_use = "the worker owns packet memory"]
    pub fn run(mut self, around: &Surroundings) -> Self {
        around.board.pinned.store(settle_on(around.core), Ordering::Relaxed);
        // What works for the daemon works here; unconfined it does not run, and control sees that it has ended.
        if confine::thread(confine::Thread::Worker).is_err() {
            return self;
        }
        let mut pace = Pace::new(now_ns());
        let mut health = Health::new(around.stale_ns, pace.now_ns);
        self.times.begin(pace.now_ns);
        around.heartbeat.wake(pace.now_ns);
        loop {
            let busy = self.poll_once() > 0;
            pace.passes_since_look += 1;
            if busy || pace.passes_since_look >= PASSES_PER_LOOK {
                self.look_at_clock(around, &mut pace, &mut health, busy);
                match around.inbox.take() {
                    Some(Message::Stop) => break,
                    Some(Message::Fault(Fault::Hang(time))) => fault::hang(time),
                    Some(Message::Fault(Fault::Starve(time))) => self.withheld.begin(time),
                    Some(Message::Fault(Fault::Overstep)) => fault::overstep(),
                    Some(Message::Trace(tap)) => self.trace(tap),
                    None => {}
                }
            }
        }
        around.heartbeat.stop();
        self.withheld.give_back(&mut self.pool);
        self.drain();
        self.publish(&around.board);
        self
    }

    fn look_at_clock(&mut self, around: &Surroundings, pace: &mut Pace, health: &mut Health, busy: bool) {
        pace.now_ns = now_ns();
        self.times.end_passes(pace.now_ns, std::mem::take(&mut pace.passes_since_look), busy);
        if pace.now_ns >= pace.beat_due_ns {
            pace.beat_due_ns = pace.now_ns + BEAT_NS;
            health.look(pace.now_ns, self.memory());
            if self.may_beat(around, health) {
                around.heartbeat.beat(pace.now_ns);
            } else {
                around.heartbeat.stop();
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
            self.sleep(around, pace, health);
        }
    }

    fn sleep(&mut self, around: &Surroundings, pace: &mut Pace, health: &mut Health) {
        self.tally.add(Count::Sleeps, 1);
        health.look(pace.now_ns, self.memory());
        if !self.may_beat(around, health) {
            around.heartbeat.stop();
        }
        self.publish(&around.board);
        self.fib.rest();
        around.heartbeat.sleep();
        let limit = health
            .probation()
            .map_or(Duration::MAX, |it| Duration::from_nanos(it.until_ns.saturating_sub(pace.now_ns)));
        // A frame that came before the programs knew of the sleep does not wake anyone.
        let must_wait = !self.has_work() && around.inbox.is_quiet();
        let woken = !must_wait || until_woken(self.wakers(around), limit);
        *pace = Pace { housekeeping_due_ns: pace.housekeeping_due_ns, ..Pace::new(now_ns()) };
        self.times.end_sleep(pace.now_ns);
        // Nobody can answer a call whose frame was lost.
        health.wake(pace.now_ns, around.heartbeat.called_ns().filter(|_| woken));
        if self.may_beat(around, health) {
            around.heartbeat.wake(pace.now_ns);
        } else {
            around.heartbeat.stop();
        }
    }

    /// Whether the worker is to say that it is alive. Without the uplink or the hub it carries nothing: the kernel path
    /// does, until control starts it again, or the hub is up again.
    fn may_beat(&mut self, around: &Surroundings, health: &Health) -> bool {
        let Toll { absences, starvations, probations } = health.toll();
        self.tally.set(Count::Absences, absences);
        self.tally.set(Count::Starvations, starvations);
        self.tally.set(Count::Probations, probations);
        around.board.show(health.probation());
        !self.pods.is_dead() && !self.wire.is_dead() && health.probation().is_none()
    }

    /// What makes an end of its sleep.
    fn wakers<'a>(&'a self, around: &'a Surroundings) -> impl Iterator<Item = BorrowedFd<'a>> {
        self.wire.fds().chain([self.pods.fd(), around.inbox.fd()])
    }

    fn memory(&self) -> Memory {
        let (_, sending) = self.wire.lent();
        Memory { free: self.pool.len(), returned: self.tally.count(Count::WireTxPackets).wrapping_sub(sending) }
    }

    fn has_work(&self) -> bool {
        self.wire.has_work() || self.pods.ready(1) > 0
    }

    fn keep_house(&mut self) {
        self.wire.count_lost(&mut self.tally);
        self.pods.count_lost(&mut self.tally);
        self.pods.settle(&mut self.tally);
    }

    /// Carries what was claimed before the programs saw that the worker stops. A frame may still be on its way to the
    /// ring by then: in a CPU's backlog, or in a batch of the driver.
    fn drain(&mut self) {
        const LINGER_NS: u64 = 2_000_000;
        const LIMIT_NS: u64 = 100_000_000;
        let begin_ns = now_ns();
        let (mut now, mut last_work) = (begin_ns, begin_ns);
        while now - last_work < LINGER_NS && now - begin_ns < LIMIT_NS {
            let worked = self.poll_once() > 0 || self.has_work();
            now = now_ns();
            last_work = if worked { now } else { last_work };
        }
        self.keep_house();
    }

    fn publish(&self, board: &Board) {
        self.tally.publish(&board.tally);
        self.times.publish(&board.times);
        let (fill, send) = self.wire.lent();
        let (pool, withheld) = (self.pool.len() as u64, self.withheld.len() as u64);
        let frames = &board.frames;
        let cells = [&frames.pool, &frames.fill, &frames.send, &frames.withheld];
        for (cell, value) in cells.into_iter().zip([pool, fill, send, withheld]) {
            AtomicU64::store(cell, value, Ordering::Relaxed);
        }
        board.dead.store(self.wire.is_dead(), Ordering::Relaxed);
    }
}

/// When what is due, in nanoseconds of the monotonic clock.
#[derive(Debug)]
struct Pace {
    now_ns: u64,
    idle_since_ns: u64,
    beat_due_ns: u64,
    housekeeping_due_ns: u64,
    passes_since_look: u32,
}

impl Pace {
    fn new(now_ns: u64) -> Self {
        Self {
            now_ns,
            idle_since_ns: now_ns,
            beat_due_ns: now_ns + BEAT_NS,
            housekeeping_due_ns: now_ns,
            passes_since_look: 0,
        }
    }
}
