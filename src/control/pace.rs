//! When a kind of look at the kernel is due, so that it takes no more than its share of the control thread's time.

use std::time::{Duration, Instant};

/// A kind of look takes at most one part in so many of the time, unless
const SHARE: u32 = 10;
/// that made the next one wait for longer than this; then it takes half of it.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// The pace of one kind of look.
#[derive(Debug)]
pub struct Pace {
    due: Option<Instant>,
    /// Before this the last look has had more than its share.
    rest_until: Instant,
    /// A look takes at most one part in this many of the time.
    share: u32,
}

impl Pace {
    /// The first look is due at `due`, or when one is asked for.
    pub fn new(due: Option<Instant>, now: Instant) -> Self {
        Self { due, rest_until: now, share: SHARE }
    }

    /// One of which a look may take half of the time.
    pub fn urgent(now: Instant) -> Self {
        Self { due: None, rest_until: now, share: 1 }
    }

    /// When the next look is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Asks for a look at `at`, or as soon as the last one has been rested from.
    pub fn ask(&mut self, at: Instant) {
        let at = at.max(self.rest_until);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Notes a look that took from `begin` to `end`, and that the next one is due after `interval`, if any.
    pub fn looked(&mut self, begin: Instant, end: Instant, interval: Option<Duration>) {
        self.rest_until = end + rest(end - begin, self.share);
        self.due = interval.map(|interval| (end + interval).max(self.rest_until));
    }
}

/// How long to wait after a look that took `took`.
fn rest(took: Duration, share: u32) -> Duration {
    (took * share).min(took.max(LONGEST_REST))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_look_waits_until_the_last_one_has_been_rested_from() {
        let start = Instant::now();
        let mut pace = Pace::new(None, start);
        assert!(!pace.is_due(start));
        pace.ask(start + 3 * MS);
        pace.ask(start + 5 * MS);
        assert_eq!(pace.due(), Some(start + 3 * MS), "the earlier one stays");
        pace.looked(start + 3 * MS, start + 5 * MS, None);
        assert_eq!(pace.due(), None);
        pace.ask(start + 6 * MS);
        assert_eq!(pace.due(), Some(start + 25 * MS));
    }

    #[test]
    fn an_urgent_look_rests_as_long_as_it_took() {
        let start = Instant::now();
        let mut pace = Pace::urgent(start);
        pace.looked(start, start + 20 * MS, None);
        pace.ask(start + 20 * MS);
        assert_eq!(pace.due(), Some(start + 40 * MS));
    }

    #[test]
    fn a_slow_look_takes_half_of_the_time_at_most() {
        let start = Instant::now();
        for (took, expected) in [(0, 0), (2, 20), (50, 500), (200, 500), (900, 900)] {
            let mut pace = Pace::new(Some(start), start);
            pace.looked(start, start + took * MS, Some(Duration::ZERO));
            assert_eq!(pace.due(), Some(start + (took + expected) * MS), "{took}");
        }
    }
}
