//! Where a worker's time goes: passes that found work, passes that did not, and sleep.
//!
//! A pass without work costs less than two readings of the clock, so the worker reads it after each pass that found
//! work, after the first one then that did not, and after every few more. Each reading ends a span of one or more passes. Those before the last one
//! found nothing and are taken for ordinary; what the span has over is the last one's:
//!
//! ```text
//!   reading                          reading     reading                             reading
//!      ├──idle──┼──idle──┼────busy─────┤─────busy───┤──idle──┼─ … ─┼──idle (preempted)──┤
//! ```
//!
//! Pure: it is told the time, in nanoseconds of the monotonic clock.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bound of the shortest passes, in nanoseconds.
const SHORTEST_NS: u64 = 128;

/// How many bounds there are, each twice the one before: up to 67 ms.
const BOUNDS: usize = 20;

/// A class for each bound, and one for what is longer than all.
const CLASSES: usize = BOUNDS + 1;

/// The upper bounds of the classes of durations, in nanoseconds.
pub fn bounds_ns() -> [u64; BOUNDS] {
    std::array::from_fn(|at| SHORTEST_NS << at)
}

/// Passes of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passes {
    /// How many took up to the bound of the same place in [`bounds_ns`] and longer than the one before; last, those
    /// that took longer than all bounds.
    pub by_duration: [u64; CLASSES],
    /// All of them together.
    pub sum_ns: u64,
}

impl Passes {
    /// Adds `passes` passes that took `sum_ns` together.
    fn add(&mut self, passes: u64, sum_ns: u64) {
        let Some(each_ns) = sum_ns.checked_div(passes) else { return };
        let doublings = each_ns.div_ceil(SHORTEST_NS).max(1).next_power_of_two().trailing_zeros() as usize;
        if let Some(class) = self.by_duration.get_mut(doublings.min(CLASSES - 1)) {
            *class += passes;
        }
        self.sum_ns += sum_ns;
    }
}

/// What a worker has done with its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Passes that found work.
    pub busy: Passes,
    /// Passes that found none.
    pub idle: Passes,
    pub asleep_ns: u64,
}

/// The account that a worker keeps of itself.
#[derive(Clone, Debug, Default)]
pub struct Timesheet {
    times: Times,
    read_ns: u64,
    /// An ordinary pass without work.
    idle_pass_ns: u64,
}

impl Timesheet {
    /// Begins the first span.
    pub fn begin(&mut self, now_ns: u64) {
        self.read_ns = now_ns;
    }

    /// Ends a span of `passes` passes, of which none but the last one, if `busy`, has found work.
    pub fn end_passes(&mut self, now_ns: u64, passes: u32, busy: bool) {
        let span_ns = self.end_span(now_ns);
        let before_last = u64::from(passes.saturating_sub(1));
        let ordinary_ns = (before_last * self.idle_pass_ns).min(span_ns);
        self.times.idle.add(before_last, ordinary_ns);
        let last = if busy { &mut self.times.busy } else { &mut self.times.idle };
        last.add(1, span_ns - ordinary_ns);
        if !busy {
            // An interruption is not ordinary: the estimate at most doubles.
            let mean_ns = span_ns / u64::from(passes.max(1));
            self.idle_pass_ns = mean_ns.min(2 * self.idle_pass_ns.max(1));
        }
    }

    /// Ends a time without passes in which others had the core.
    pub fn end_wait(&mut self, now_ns: u64) {
        self.times.idle.sum_ns += self.end_span(now_ns);
    }

    /// Ends a sleep.
    pub fn end_sleep(&mut self, now_ns: u64) {
        self.times.asleep_ns += self.end_span(now_ns);
    }

    fn end_span(&mut self, now_ns: u64) -> u64 {
        let span_ns = now_ns.saturating_sub(self.read_ns);
        self.read_ns = now_ns;
        span_ns
    }

    /// Makes the figures visible to readers of `page`.
    pub fn publish(&self, page: &TimesPage) {
        for (cells, passes) in [(&page.busy, &self.times.busy), (&page.idle, &self.times.idle)] {
            for (cell, value) in cells.by_duration.iter().zip(passes.by_duration) {
                cell.store(value, Ordering::Relaxed);
            }
            cells.sum_ns.store(passes.sum_ns, Ordering::Relaxed);
        }
        page.asleep_ns.store(self.times.asleep_ns, Ordering::Relaxed);
    }
}

/// Where one worker publishes and anyone reads. Each figure is exact; figures of one reading may be a publication apart.
#[derive(Debug, Default)]
pub struct TimesPage {
    busy: PassCells,
    idle: PassCells,
    asleep_ns: AtomicU64,
}

#[derive(Debug, Default)]
struct PassCells {
    by_duration: [AtomicU64; CLASSES],
    sum_ns: AtomicU64,
}

impl TimesPage {
    pub fn read(&self) -> Times {
        Times { busy: self.busy.read(), idle: self.idle.read(), asleep_ns: self.asleep_ns.load(Ordering::Relaxed) }
    }
}

impl PassCells {
    fn read(&self) -> Passes {
        Passes {
            by_duration: self.by_duration.each_ref().map(|cell| cell.load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The class that a pass of a given length is counted in.
    fn class(each_ns: u64) -> usize {
        let mut passes = Passes::default();
        passes.add(1, each_ns);
        passes.by_duration.iter().position(|&count| count == 1).unwrap()
    }

    #[test]
    fn a_pass_is_counted_under_the_first_bound_that_holds_it() {
        assert_eq!((bounds_ns()[0], bounds_ns()[BOUNDS - 1]), (128, 67_108_864));
        for (at, bound) in bounds_ns().into_iter().enumerate() {
            assert_eq!((class(bound), class(bound + 1)), (at, at + 1), "{bound} ns");
        }
        assert_eq!((class(0), class(u64::MAX >> 1)), (0, BOUNDS));
    }

    /// A timesheet that has learnt that an idle pass takes 100 ns.
    fn experienced() -> Timesheet {
        let mut sheet = Timesheet::default();
        for span in 1..=10 {
            sheet.end_passes(span * 1_000, 10, false);
        }
        assert_eq!((sheet.idle_pass_ns, sheet.times.idle.sum_ns), (100, 10_000));
        sheet
    }

    #[test]
    fn work_after_idle_passes_is_charged_without_them() {
        let mut sheet = experienced();
        sheet.end_passes(12_000, 6, true);
        assert_eq!((sheet.times.busy.sum_ns, sheet.times.idle.sum_ns), (1_500, 10_500));
        assert_eq!(sheet.times.busy.by_duration[4], 1, "up to 2048 ns: {:?}", sheet.times.busy);
    }

    #[test]
    fn an_interruption_is_one_long_pass_and_not_many_longer_ones() {
        let mut sheet = experienced();
        let before = sheet.times.idle;
        sheet.end_passes(10_000 + 4_000_000, 10, false);
        let idle = sheet.times.idle;
        assert_eq!(idle.by_duration[0] - before.by_duration[0], 9);
        assert_eq!(idle.by_duration[15] - before.by_duration[15], 1, "up to 4.2 ms: {idle:?}");
        assert_eq!(sheet.idle_pass_ns, 200, "the estimate is hardly misled");
    }

    #[test]
    fn a_page_reads_what_was_published() {
        let (mut sheet, page) = (experienced(), TimesPage::default());
        sheet.end_passes(20_000, 1, true);
        sheet.end_sleep(1_000_000);
        sheet.publish(&page);
        assert_eq!(page.read(), sheet.times);
        assert_eq!(page.read().asleep_ns, 980_000);
    }

    proptest! {
        #[test]
        fn every_nanosecond_and_every_pass_is_counted_once(
            spans in prop::collection::vec((0..10_000_000_u64, 1..40_u32, any::<bool>(), any::<bool>()), 0..50),
        ) {
            let (mut sheet, mut now_ns, mut passes) = (Timesheet::default(), 7, 0);
            sheet.begin(now_ns);
            for (span_ns, count, busy, asleep) in spans {
                now_ns += span_ns;
                if asleep {
                    sheet.end_sleep(now_ns);
                } else {
                    sheet.end_passes(now_ns, count, busy);
                    passes += u64::from(count);
                }
            }
            let Times { busy, idle, asleep_ns } = sheet.times;
            prop_assert_eq!(busy.sum_ns + idle.sum_ns + asleep_ns, now_ns - 7);
            let counted: u64 = busy.by_duration.iter().chain(&idle.by_duration).sum();
            prop_assert_eq!(counted, passes);
        }
    }
}
