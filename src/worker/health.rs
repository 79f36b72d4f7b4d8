//! Whether a worker may say that it is alive.
//!
//! A worker that was away for longer than its heartbeat may age, or that has no packet memory left, has already cost
//! packets, and may do so again the next moment. So it is not trusted at once: for a probation it withholds its
//! heartbeat, carries what is still in its rings, and the kernel path has the rest.
//!
//! ```text
//!            away, or out of memory                     the probation is over
//!   well ───────────────────────────▶ on probation ──────────────────────────────▶ well
//!                                      ▲        │
//!                                      └────────┘ away, or still out of memory: it takes longer
//! ```
//!
//! An absence makes a probation longer by its [`RELAPSE`]th part: absences that are rare beside it do not keep it from
//! ending, frequent ones do.
//!
//! A worker that fails again within [`FORGIVEN_NS`] after a probation gets one of twice the length, up to
//! [`LONGEST_NS`]: however often one fails, its traffic changes the path about once a second at most.
//!
//! Pure: it is told the time, in nanoseconds of the monotonic clock.

/// The first probation: longer than the pauses that a busy machine's scheduler makes in a row.
const FIRST_NS: u64 = 50_000_000;

/// The longest. With more, pauses of a busy machine's scheduler, one in a second or two, would add up until hardly
/// anything goes by the workers.
const LONGEST_NS: u64 = 16 * FIRST_NS;

/// What part of a probation, though no less than the first, is added to it by each absence.
const RELAPSE: u64 = 8;

/// How long a worker is to be well for its last probation to be forgotten.
const FORGIVEN_NS: u64 = 1_000_000_000;

/// How long a worker may find no free frame, with none coming back: several times what a device needs to send a full
/// ring.
const STARVED_NS: u64 = 5_000_000;

/// What can be wrong with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ailment {
    /// It did not run: it hung, was stopped, or waited for its core.
    Away,
    /// It has no packet memory to send or to receive with.
    Starved,
}

/// A worker's packet memory between two passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Frames in its pool.
    pub free: usize,
    /// Frames that the uplink has ever finished with; only its changes matter.
    pub returned: u64,
}

/// A worker's time without a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probation {
    pub ailment: Ailment,
    pub until_ns: u64,
    length_ns: u64,
}

impl Probation {
    /// The probation after a further ailment: there is never more of it to come than its whole length.
    fn prolonged(self, now_ns: u64, ailment: Ailment) -> Self {
        let more_ns = (self.length_ns / RELAPSE).max(FIRST_NS);
        let until_ns = (self.until_ns.max(now_ns) + more_ns).min(now_ns + self.length_ns);
        Self { ailment, until_ns, ..self }
    }
}

/// What has gone wrong so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Toll {
    pub absences: u64,
    pub starvations: u64,
    /// Times that the heartbeat was lost.
    pub probations: u64,
}

/// The state of one worker, kept by itself.
#[derive(Debug)]
pub struct Health {
    /// The age at which the programs take a heartbeat for stale.
    limit_ns: u64,
    looked_ns: u64,
    returned: u64,
    /// Since when there was no free frame and none came back.
    dry_since_ns: Option<u64>,
    probation: Option<Probation>,
    /// Of the last probation; 0 at first.
    last_length_ns: u64,
    well_since_ns: u64,
    toll: Toll,
}

impl Health {
    /// Well, at `now_ns`.
    pub fn new(limit_ns: u64, now_ns: u64) -> Self {
        Self {
            limit_ns,
            looked_ns: now_ns,
            returned: 0,
            dry_since_ns: None,
            probation: None,
            last_length_ns: 0,
            well_since_ns: now_ns,
            toll: Toll::default(),
        }
    }

    /// Takes in how the worker is at `now_ns`. To be called whenever a heartbeat is due.
    pub fn look(&mut self, now_ns: u64, memory: Memory) {
        let away = now_ns.saturating_sub(self.looked_ns) >= self.limit_ns;
        let starved = self.is_starved(now_ns, memory);
        self.looked_ns = now_ns;
        let ailment = away.then_some(Ailment::Away).or(starved.then_some(Ailment::Starved));
        self.judge(now_ns, ailment);
    }

    /// Takes in that the worker wakes up at `now_ns`, having been called for the first time at `called_ns`, if at all.
    /// Sleep is no absence, but not to answer a call is.
    pub fn wake(&mut self, now_ns: u64, called_ns: Option<u64>) {
        let late = called_ns.is_some_and(|called_ns| now_ns.saturating_sub(called_ns) >= self.limit_ns);
        // Who slept has not looked at its memory.
        let hungry = self.dry_since_ns.is_some()
            && self.probation.is_some_and(|probation| probation.ailment == Ailment::Starved);
        self.looked_ns = now_ns;
        self.judge(now_ns, late.then_some(Ailment::Away).or(hungry.then_some(Ailment::Starved)));
    }

    /// The probation that the worker is on.
    pub fn probation(&self) -> Option<Probation> {
        self.probation
    }

    pub fn toll(&self) -> Toll {
        self.toll
    }

    fn is_starved(&mut self, now_ns: u64, memory: Memory) -> bool {
        let dry = memory.free == 0 && memory.returned == self.returned;
        self.returned = memory.returned;
        if !dry {
            self.dry_since_ns = None;
            return false;
        }
        let since_ns = *self.dry_since_ns.get_or_insert(now_ns);
        now_ns.saturating_sub(since_ns) >= STARVED_NS
    }

    fn judge(&mut self, now_ns: u64, ailment: Option<Ailment>) {
        let before = self.probation;
        let Some(ailment) = ailment else {
            if before.is_some_and(|probation| now_ns >= probation.until_ns) {
                self.probation = None;
                self.well_since_ns = now_ns;
            }
            return;
        };
        self.probation = Some(match before {
            Some(before) => before.prolonged(now_ns, ailment),
            None => self.sentence(now_ns, ailment),
        });
        self.toll.probations += u64::from(before.is_none());
        // Hunger lasts; each absence is another.
        let lasts = before.is_some_and(|before| before.ailment == ailment);
        match ailment {
            Ailment::Away => self.toll.absences += 1,
            Ailment::Starved => self.toll.starvations += u64::from(!lasts),
        }
    }

    /// The probation that begins now, after a time of health.
    fn sentence(&mut self, now_ns: u64, ailment: Ailment) -> Probation {
        let forgotten = now_ns.saturating_sub(self.well_since_ns) >= FORGIVEN_NS || self.last_length_ns == 0;
        let length_ns = if forgotten { FIRST_NS } else { (2 * self.last_length_ns).min(LONGEST_NS) };
        self.last_length_ns = length_ns;
        Probation { ailment, until_ns: now_ns + length_ns, length_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const LIMIT: u64 = 20 * MS;
    const FULL: Memory = Memory { free: 10, returned: 0 };
    const EMPTY: Memory = Memory { free: 0, returned: 0 };

    /// A worker that looks every millisecond of a clock that the tests turn.
    struct Ward {
        health: Health,
        now_ns: u64,
    }

    impl Ward {
        fn new() -> Self {
            Self { health: Health::new(LIMIT, 0), now_ns: 0 }
        }

        fn look(&mut self, memory: Memory) {
            self.health.look(self.now_ns, memory);
        }

        fn lapses(&self) -> u64 {
            self.health.toll().probations
        }

        /// Runs for some milliseconds; returns how many of them it had a heartbeat.
        fn run(&mut self, ms: u64, memory: Memory) -> u64 {
            (0..ms)
                .map(|_| {
                    self.now_ns += MS;
                    self.look(memory);
                    u64::from(self.health.probation().is_none())
                })
                .sum()
        }

        /// Is away, and returns the length of the probation that follows.
        fn leave(&mut self, ms: u64) -> u64 {
            self.now_ns += ms * MS;
            let absences = self.health.toll().absences;
            self.look(FULL);
            assert_eq!(self.health.toll().absences, absences + 1);
            (self.health.probation().unwrap().until_ns - self.now_ns) / MS
        }

        /// Waits until the heartbeat is back; returns how long that took.
        fn recover(&mut self) -> u64 {
            let start_ns = self.now_ns;
            while self.health.probation().is_some() {
                assert!(self.now_ns - start_ns <= 2 * LONGEST_NS);
                self.run(1, FULL);
            }
            (self.now_ns - start_ns) / MS
        }
    }

    #[test]
    fn pauses_below_the_limit_change_nothing() {
        let mut ward = Ward::new();
        for _ in 0..100 {
            ward.now_ns += LIMIT - 1;
            ward.look(FULL);
        }
        assert_eq!((ward.health.probation(), ward.health.toll()), (None, Toll::default()));
    }

    #[test]
    fn an_absence_costs_a_probation_and_then_the_heartbeat_is_back() {
        let mut ward = Ward::new();
        ward.run(100, FULL);
        assert_eq!(ward.leave(20), 50);
        assert_eq!(ward.recover(), 50);
        assert_eq!(ward.run(1000, FULL), 1000);
    }

    #[test]
    fn repeated_absences_cost_twice_as_much_each_time_up_to_the_longest() {
        let mut ward = Ward::new();
        let sentences: Vec<_> = (0..9)
            .map(|_| {
                let sentence = ward.leave(25);
                ward.recover();
                sentence
            })
            .collect();
        assert_eq!(sentences, [50, 100, 200, 400, 800, 800, 800, 800, 800]);
    }

    #[test]
    fn what_is_over_for_long_is_forgotten() {
        let mut ward = Ward::new();
        for sentence in [50, 100, 200] {
            assert_eq!(ward.leave(25), sentence);
            ward.recover();
        }
        ward.run(900, FULL);
        assert_eq!(ward.leave(25), 400);
        ward.recover();
        ward.run(1000, FULL);
        assert_eq!(ward.leave(25), 50);
    }

    #[test]
    fn an_absence_during_a_probation_prolongs_it_by_no_more_than_its_length() {
        let mut ward = Ward::new();
        ward.leave(25);
        ward.run(40, FULL);
        assert_eq!(ward.leave(25), 50);
        assert_eq!(ward.recover(), 50);
        assert_eq!((ward.leave(25), ward.lapses()), (100, 2));
    }

    #[test]
    fn rare_absences_do_not_keep_the_longest_probation_from_ending() {
        let mut ward = Ward::new();
        for _ in 0..7 {
            ward.leave(25);
            ward.recover();
        }
        // Off its core for 25 ms of each 3 s, for a minute.
        let healthy: u64 = (0..20)
            .map(|_| {
                ward.leave(25);
                ward.run(2975, FULL)
            })
            .sum();
        assert!(healthy >= 50_000, "{healthy} of 60000 ms");
    }

    #[test]
    fn a_worker_that_keeps_failing_changes_its_path_rarely() {
        let mut ward = Ward::new();
        // Off its core for 30 ms of each 200 ms, for a minute.
        for _ in 0..300 {
            ward.now_ns += 30 * MS;
            ward.look(FULL);
            ward.run(170, FULL);
        }
        assert!(ward.lapses() <= 60, "{} lapses in a minute", ward.lapses());
    }

    #[test]
    fn rare_pauses_cost_little() {
        let mut ward = Ward::new();
        let healthy: u64 = (0..100)
            .map(|_| {
                assert_eq!(ward.leave(30), 50);
                ward.run(2000, FULL)
            })
            .sum();
        assert!(healthy >= 100 * 1949, "{healthy} of 200000 ms");
    }

    #[test]
    fn pauses_at_random_do_not_add_up() {
        let mut ward = Ward::new();
        // One in 1.5 seconds on average, from 0.1 to 2.9 (xorshift64).
        let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
        let (mut healthy, start_ns) = (0, ward.now_ns);
        for _ in 0..1000 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            ward.now_ns += 25 * MS;
            ward.look(FULL);
            healthy += ward.run(100 + noise % 2800, FULL);
        }
        let share = healthy * 100 / ((ward.now_ns - start_ns) / MS);
        assert!(share >= 85, "{share} %");
    }

    #[test]
    fn memory_may_be_short_for_a_moment_and_long_while_frames_come_back() {
        let mut ward = Ward::new();
        assert_eq!(ward.run(5, EMPTY), 5);
        ward.run(1, FULL);
        assert_eq!(ward.run(5, EMPTY), 5);
        for returned in 8..1000 {
            assert_eq!(ward.run(1, Memory { free: 0, returned }), 1);
        }
    }

    #[test]
    fn exhausted_memory_withholds_the_heartbeat_until_it_is_back_and_the_probation_over() {
        let mut ward = Ward::new();
        ward.run(1, EMPTY);
        assert_eq!(ward.run(5, EMPTY), 4);
        assert_eq!(ward.health.probation().map(|probation| probation.ailment), Some(Ailment::Starved));
        assert_eq!(ward.run(10_000, EMPTY), 0, "as long as it lasts");
        assert_eq!((ward.recover(), ward.lapses()), (50, 1));
    }

    #[test]
    fn lasting_hunger_counts_once_and_each_absence_every_time() {
        let mut ward = Ward::new();
        ward.run(1000, EMPTY);
        ward.recover();
        ward.leave(25);
        ward.leave(25);
        assert_eq!(ward.health.toll(), Toll { absences: 2, starvations: 1, probations: 2 });
    }

    #[test]
    fn sleep_is_no_absence_unless_a_call_goes_unanswered() {
        let mut ward = Ward::new();
        let mut wake = |now_ms: u64, called_ms: Option<u64>| {
            ward.health.wake(now_ms * MS, called_ms.map(|ms| ms * MS));
            ward.health.probation().map(|probation| probation.until_ns / MS)
        };
        assert_eq!(wake(10_000, None), None);
        assert_eq!(wake(20_000, Some(19_981)), None);
        assert_eq!(wake(30_000, Some(29_980)), Some(30_050));
        // Asleep for the rest of the probation.
        assert_eq!(wake(30_049, None), Some(30_050));
        assert_eq!(wake(30_050, None), None);
    }

    #[test]
    fn a_hungry_worker_does_not_sleep_its_probation_off() {
        let mut ward = Ward::new();
        ward.run(10, EMPTY);
        for _ in 0..10 {
            ward.now_ns += 50 * MS;
            ward.health.wake(ward.now_ns, None);
            assert!(ward.health.probation().is_some());
        }
        assert_eq!((ward.recover(), ward.lapses()), (50, 1));
    }
}
