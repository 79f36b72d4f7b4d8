//! When a worker looks at what, and how long it polls in vain before it sleeps.

/// How long an adaptive worker polls in vain before it sleeps.
const SPIN_NS: u64 = 50_000;

/// The same while packets come as fast as a sleeper would be woken for: a pause is short then, and to wake up takes as
/// long as some packets.
const HOT_SPIN_NS: u64 = 250_000;

/// Away so long after it has let others run, a worker shares its core with somebody who needs all of it. To such a one
/// it would lose whole time slices, milliseconds each: in mode adaptive it sleeps rather, which lets others run too, and
/// takes the core back as soon as it wakes.
const HOG_NS: u64 = 1_000_000;

/// For how long it does not let such a one run then: at first, and at most. It is twice as long if that happens again
/// within some times of it, unless it has been back soon so often since that this was worth the time which is lost now. It
/// was no such one then: a virtual machine's core is away for a millisecond now and then, whoever has it.
const HOG_PAUSE_NS: [u64; 2] = [4_000_000, 4_096_000_000];
const HOG_MEMORY: u64 = 4;
const WORTH_A_HOG: u32 = 1000;

/// It is at least this long if it was away for longer than one of them takes.
const SEVERAL_HOGS_NS: u64 = 6_000_000;
const SEVERAL_HOGS_PAUSE_NS: u64 = 128_000_000;

/// With so many packets since the last beat the next one is near, and nobody answers each of them.
const CALM_PACKETS: u64 = 256;

/// How often a polling worker says that it is alive, and finds out how fast packets come.
const BEAT_NS: u64 = 1_000_000;

/// How often the worker asks the kernel for what only the kernel counts, and settles lost credits.
const HOUSEKEEPING_NS: u64 = 50_000_000;

/// The most idle passes between two looks at the clock.
const PASSES_PER_LOOK: u32 = 16;

/// So many packets within [`WakeRate::window_ns`] wake a worker: `bpf/worker.h`.
const WAKE_PACKETS: u64 = 16;

/// From how many packets a second on a worker that sleeps is woken; with 0, by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeRate(pub u32);

impl WakeRate {
    /// The time within which so many packets come that a worker is woken, in nanoseconds; 0: each wakes it.
    pub fn window_ns(self) -> u64 {
        (WAKE_PACKETS * 1_000_000_000).checked_div(self.0.into()).unwrap_or(0)
    }

    /// Whether packets that came so many within some nanoseconds are to keep a worker awake: at half the rate.
    fn keeps_awake(self, packets: u64, elapsed_ns: u64) -> bool {
        let window_ns = self.window_ns();
        window_ns > 0 && packets.saturating_mul(2 * window_ns) >= elapsed_ns.saturating_mul(WAKE_PACKETS)
    }
}

/// When what is due, in nanoseconds of the monotonic clock.
#[derive(Debug)]
pub struct Pace {
    pub now_ns: u64,
    passes_since_look: u32,
    wake_rate: WakeRate,
    idle_since_ns: u64,
    spin_ns: u64,
    beat_ns: u64,
    packets_since_beat: u64,
    housekeeping_due_ns: u64,
    yields_from_ns: u64,
    hog_pause_ns: u64,
    /// How often the worker has let others run since the last hog, and was back soon.
    soon_back: u32,
    is_busy: bool,
    is_calm: bool,
}

impl Pace {
    /// That of a worker that polls from now on.
    pub fn new(wake_rate: WakeRate, now_ns: u64) -> Self {
        Self {
            now_ns,
            passes_since_look: 0,
            wake_rate,
            idle_since_ns: now_ns,
            spin_ns: SPIN_NS,
            yields_from_ns: now_ns,
            hog_pause_ns: 0,
            soon_back: 0,
            is_busy: false,
            is_calm: true,
            beat_ns: now_ns,
            packets_since_beat: 0,
            housekeeping_due_ns: now_ns,
        }
    }

    /// Begins again after a sleep, during which packets were left to the kernel path until `left_ns`: if that was just now,
    /// they come fast.
    pub fn wake(&mut self, now_ns: u64, left_ns: u64) {
        let Self { wake_rate, housekeeping_due_ns, yields_from_ns, hog_pause_ns, soon_back, .. } = *self;
        *self = Self { housekeeping_due_ns, yields_from_ns, hog_pause_ns, soon_back, ..Self::new(wake_rate, now_ns) };
        if now_ns.saturating_sub(left_ns) < wake_rate.window_ns() {
            self.spin_ns = HOT_SPIN_NS;
        }
    }

    /// Notes a pass that had so many packets. Whether it is time to look at the clock.
    pub fn pass(&mut self, packets: usize) -> bool {
        self.passes_since_look += 1;
        self.packets_since_beat += packets as u64;
        let was_busy = std::mem::replace(&mut self.is_busy, packets > 0);
        self.is_busy || was_busy || self.passes_since_look >= PASSES_PER_LOOK
    }

    /// It is `now_ns`. Returns how many passes there have been since the last look.
    pub fn look(&mut self, now_ns: u64, busy: bool) -> u32 {
        self.now_ns = now_ns;
        if busy {
            self.idle_since_ns = now_ns;
        }
        std::mem::take(&mut self.passes_since_look)
    }

    /// Whether the worker has polled in vain for long enough.
    pub fn may_sleep(&self) -> bool {
        // Who wants the core and is not let run is to get it soon.
        let spin_ns = if self.is_beside_hog() { SPIN_NS } else { self.spin_ns };
        self.now_ns - self.idle_since_ns >= spin_ns
    }

    fn is_beside_hog(&self) -> bool {
        self.now_ns < self.yields_from_ns
    }

    /// Whether the worker is to let others run that wait for its core, as it finds nothing to do: the pod that is to
    /// answer what the worker has just brought it, for instance, which would wait until the worker sleeps.
    pub fn may_yield(&self) -> bool {
        self.is_calm && !self.is_beside_hog()
    }

    /// The worker has let others run since the last look, and is back at `now_ns`.
    pub fn yielded(&mut self, now_ns: u64) {
        let away_ns = now_ns - std::mem::replace(&mut self.now_ns, now_ns);
        if away_ns < HOG_NS {
            self.soon_back = self.soon_back.saturating_add(1);
            return;
        }
        let [least, most] = HOG_PAUSE_NS;
        let is_soon = now_ns - self.yields_from_ns < HOG_MEMORY * self.hog_pause_ns;
        let is_again = std::mem::take(&mut self.soon_back) < WORTH_A_HOG && is_soon;
        let least = if away_ns >= SEVERAL_HOGS_NS { SEVERAL_HOGS_PAUSE_NS } else { least };
        let longer = if is_again { 2 * self.hog_pause_ns } else { 0 };
        self.hog_pause_ns = longer.clamp(least, most);
        self.yields_from_ns = now_ns + self.hog_pause_ns;
    }

    /// Whether a sign of life is due.
    pub fn beat_is_due(&mut self) -> bool {
        let elapsed_ns = self.now_ns - self.beat_ns;
        if elapsed_ns < BEAT_NS {
            return false;
        }
        let packets = std::mem::take(&mut self.packets_since_beat);
        self.is_calm = packets.saturating_mul(BEAT_NS) < CALM_PACKETS * elapsed_ns;
        self.spin_ns = if self.wake_rate.keeps_awake(packets, elapsed_ns) { HOT_SPIN_NS } else { SPIN_NS };
        self.beat_ns = self.now_ns;
        true
    }

    /// Whether it is time to ask what only the kernel counts.
    pub fn housekeeping_is_due(&mut self) -> bool {
        let is_due = self.now_ns >= self.housekeeping_due_ns;
        if is_due {
            self.housekeeping_due_ns = self.now_ns + HOUSEKEEPING_NS;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls, a packet every so often, and returns after how long in vain it may sleep.
    fn patience(rate: u32, packet_every_ns: u64) -> u64 {
        let mut pace = Pace::new(WakeRate(rate), 1);
        let mut now_ns = 1;
        for _ in 0..3_000_000 / packet_every_ns {
            now_ns += packet_every_ns;
            pace.pass(1);
            pace.look(now_ns, true);
            pace.beat_is_due();
        }
        let last_ns = now_ns;
        while !pace.may_sleep() {
            now_ns += 1_000;
            pace.look(now_ns, false);
        }
        now_ns - last_ns
    }

    #[test]
    fn a_worker_waits_longer_while_packets_come_as_fast_as_it_would_be_woken_for() {
        assert_eq!(patience(20_000, 30_000), HOT_SPIN_NS);
        assert_eq!(patience(20_000, 90_000), HOT_SPIN_NS, "half as fast");
        assert_eq!(patience(20_000, 120_000), SPIN_NS);
        assert_eq!(patience(0, 1_000), SPIN_NS, "each wakes it");
    }

    #[test]
    fn who_was_woken_for_the_rate_of_packets_waits_for_more() {
        let patience = |rate, left_ns| {
            let mut pace = Pace::new(WakeRate(rate), 0);
            pace.wake(10_000_000, left_ns);
            let sleeps_ns = (pace.now_ns..).step_by(1_000).find(|&now_ns| {
                pace.look(now_ns, false);
                pace.may_sleep()
            });
            sleeps_ns.unwrap() - 10_000_000
        };
        assert_eq!(patience(20_000, 9_900_000), HOT_SPIN_NS);
        assert_eq!(patience(20_000, 9_100_000), SPIN_NS, "something else has woken it");
        assert_eq!(patience(0, 0), SPIN_NS, "each packet wakes it");
    }

    #[test]
    fn who_lets_others_run_does_not_lose_more_than_a_slice_to_one_that_needs_all() {
        let mut pace = Pace::new(WakeRate(0), 0);
        pace.look(10_000, false);
        pace.yielded(60_000);
        assert!(pace.may_yield(), "somebody has answered a packet");
        let pauses: Vec<_> = (0..12)
            .map(|_| {
                let back_ns = pace.now_ns + 3_000_000;
                pace.yielded(back_ns);
                pace.wake(back_ns + 1_000_000, 0);
                assert!(!pace.may_yield(), "also after it has slept");
                let again_ns = (back_ns..).step_by(1_000_000).find(|&now_ns| {
                    pace.look(now_ns, false);
                    pace.may_yield()
                });
                (again_ns.unwrap() - back_ns) / 1_000_000
            })
            .collect();
        assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 4096]);
        for (soon_back, pause_ms) in [(WORTH_A_HOG - 1, 4096), (WORTH_A_HOG, 4), (0, 8)] {
            pace.look(pace.yields_from_ns, false);
            (0..soon_back).for_each(|_| pace.yielded(pace.now_ns + 1_000));
            pace.yielded(pace.now_ns + 3_000_000);
            assert_eq!(pace.hog_pause_ns / 1_000_000, pause_ms, "after {soon_back}");
        }
        pace.look(pace.now_ns + 20_000_000_000, false);
        pace.yielded(pace.now_ns + 2_000_000);
        assert_eq!(pace.hog_pause_ns, HOG_PAUSE_NS[0], "it has been well for long");
        pace.look(pace.now_ns + 20_000_000_000, false);
        pace.yielded(pace.now_ns + 8_000_000);
        assert_eq!(pace.hog_pause_ns, SEVERAL_HOGS_PAUSE_NS, "two of them");
    }

    #[test]
    fn nobody_is_let_run_between_many_packets() {
        let mut pace = Pace::new(WakeRate(20_000), 0);
        for (packets, calm) in [(255, true), (256, false), (1, true)] {
            pace.pass(packets);
            pace.look(pace.now_ns + BEAT_NS, true);
            assert!(pace.beat_is_due());
            assert_eq!(pace.may_yield(), calm, "{packets}");
        }
    }

    #[test]
    fn the_window_is_that_of_the_programs() {
        assert_eq!(WakeRate(20_000).window_ns(), 800_000);
        assert_eq!(WakeRate(0).window_ns(), 0);
        let header = include_str!("../../bpf/worker.h");
        assert!(header.contains(&format!("#define WAKE_PACKETS {WAKE_PACKETS}\n")));
    }
}
