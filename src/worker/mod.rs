//! A worker: a pinned thread that owns its queues of the uplink, its ring of the pods' hub, its packet memory and
//! its counters, and shares nothing with other workers but the published route table.
//!
//! [`Worker::poll_once`] is one pass: a burst in each direction. [`Worker::run`] pins the thread and repeats it,
//! shows that it is alive while it is well ([`Health`]), and in adaptive mode sleeps when there is nothing to do:
//!
//! ```text
//!            work                nothing for a while           a ring or the inbox has something
//!   polling ──────▶ polling ──────────────────────▶ asleep ──────────────────────────────▶ polling
//! ```
//!
//! To wake up takes longer than the kernel takes for a packet. So the programs leave packets for a sleeper to the kernel
//! until they are so many that polling pays ([`WakeRate`]); a sleeper has nothing in its rings that they could overtake.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod clock;
mod fault;
mod health;
mod inbox;
mod pace;
mod place;
mod schedule;
mod sleep;
mod times;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{hint, thread};

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
use pace::Pace;
pub use pace::WakeRate;
pub use place::near;
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

/// For so long a packet that was left to the kernel path may be on its way: in a queue of the CPU that sent it. By
/// measurement: without it some of 10,000 packets at a rate that wakes a worker over and over were overtaken.
const ON_ITS_WAY_NS: u64 = 100_000;

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
    /// As the programs have it.
    pub wake_rate: WakeRate,
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
        let mut pace = Pace::new(around.wake_rate, now_ns());
        let mut health = Health::new(around.stale_ns, pace.now_ns);
        self.times.begin(pace.now_ns);
        around.heartbeat.wake(pace.now_ns);
        loop {
            let packets = self.poll_once();
            if pace.pass(packets) {
                self.look_at_clock(around, &mut pace, &mut health, packets > 0);
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
        let passes = pace.look(now_ns(), busy);
        self.times.end_passes(pace.now_ns, passes, busy);
        if pace.beat_is_due() {
            health.look(pace.now_ns, self.memory());
            let is_well = self.is_well(around, health);
            beat_if(is_well, &around.heartbeat, pace.now_ns);
            self.publish(&around.board);
        }
        if pace.housekeeping_is_due() {
            self.keep_house();
        }
        // Others may have run since the rings were looked at.
        if busy || self.has_work() {
            return;
        }
        if around.polling == Polling::Adaptive && pace.may_sleep() {
            self.sleep(around, pace, health);
        } else if pace.may_yield() {
            self.let_others_run(pace);
        }
    }

    fn let_others_run(&mut self, pace: &mut Pace) {
        thread::yield_now();
        pace.yielded(now_ns());
        self.times.end_wait(pace.now_ns);
    }

    /// Waits until what was left to the kernel path at `left_ns` is out of the way of what the worker will take.
    fn let_pass(&mut self, pace: &mut Pace, left_ns: u64) {
        loop {
            pace.look(now_ns(), false);
            if pace.now_ns >= left_ns.saturating_add(ON_ITS_WAY_NS) {
                return;
            }
            if pace.may_yield() {
                self.let_others_run(pace);
            } else {
                hint::spin_loop();
            }
        }
    }

    fn sleep(&mut self, around: &Surroundings, pace: &mut Pace, health: &mut Health) {
        self.tally.add(Count::Sleeps, 1);
        health.look(pace.now_ns, self.memory());
        let is_well = self.is_well(around, health);
        self.publish(&around.board);
        self.fib.rest();
        beat_if(is_well, &around.heartbeat, now_ns());
        around.heartbeat.sleep();
        let limit = health
            .probation()
            .map_or(Duration::MAX, |it| Duration::from_nanos(it.until_ns.saturating_sub(pace.now_ns)));
        // A frame that came before the programs knew of the sleep does not wake anyone.
        let must_wait = !self.has_work() && around.inbox.is_quiet();
        let woken = !must_wait || until_woken(self.wakers(around), limit);
        let left_ns = around.heartbeat.left_ns();
        pace.wake(now_ns(), left_ns);
        self.times.end_sleep(pace.now_ns);
        // Nobody can answer a call whose frame was lost.
        health.wake(pace.now_ns, around.heartbeat.called_ns().filter(|_| woken));
        if self.is_well(around, health) {
            around.heartbeat.wake(pace.now_ns);
        } else {
            around.heartbeat.stop();
        }
        self.let_pass(pace, left_ns);
        self.times.end_wait(pace.now_ns);
    }

    /// Whether the worker is to say that it is alive. Without the uplink or the hub it carries nothing: the kernel path
    /// does, until control starts it again, or the hub is up again.
    fn is_well(&mut self, around: &Surroundings, health: &Health) -> bool {
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
        self.wire.look_at_napi();
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

/// Says that a worker is alive, or that it takes no more frames.
fn beat_if(is_well: bool, heartbeat: &Heartbeat, now_ns: u64) {
    if is_well {
        heartbeat.beat(now_ns);
    } else {
        heartbeat.stop();
    }
}
