//! Rates of counters between two readings: what `stats --watch` and `top` show.

use std::time::Duration;

/// How much a counter has grown. One that went back was started anew meanwhile, as by a restart of the daemon, and all
/// that it shows came since.
pub(super) fn growth(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

/// Growth a second.
#[expect(clippy::cast_precision_loss, reason = "a rate is shown with three digits")]
pub(super) fn per_second(before: u64, now: u64, elapsed: Duration) -> f64 {
    growth(before, now) as f64 / elapsed.as_secs_f64().max(1e-3)
}

/// The quotient of what two counters have grown by; none when the second one has not.
#[expect(clippy::cast_precision_loss, reason = "a quotient is shown with three digits")]
pub(super) fn quotient(dividend: u64, divisor: u64) -> Option<f64> {
    (divisor > 0).then(|| dividend as f64 / divisor as f64)
}

/// A figure in at most five characters, such as `0`, `7.5`, `42`, `1.23M`.
pub(super) fn short(value: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut scaled = value;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"");
    // What rounds to 1000 is told in the next unit.
    while scaled >= 999.5 {
        let Some(next) = units.next() else { break };
        (scaled, unit) = (scaled / 1000.0, next);
    }
    let digits = match scaled {
        _ if scaled < 0.05 => 0,
        _ if unit.is_empty() => usize::from(scaled < 9.95),
        _ if scaled < 9.995 => 2,
        _ if scaled < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_went_back_has_grown_by_all_that_it_shows() {
        assert_eq!((growth(100, 160), growth(160, 160), growth(1_000_000, 30)), (60, 0, 30));
        let rate = per_second(1_000_000, 30, Duration::from_secs(2));
        assert!((rate - 15.0).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn readings_without_time_between_them_give_a_finite_rate() {
        assert!(per_second(0, u64::MAX, Duration::ZERO).is_finite());
        assert_eq!((quotient(8, 0), quotient(8, 2)), (None, Some(4.0)));
    }

    #[test]
    fn figures_are_short_whatever_their_size() {
        let cases = [
            (0.0, "0"),
            (0.04, "0"),
            (0.06, "0.1"),
            (7.52, "7.5"),
            (9.96, "10"),
            (42.4, "42"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_234.0, "1.23k"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (1_234_567.0, "1.23M"),
            (999_600_000.0, "1.00G"),
            (4e12, "4.00T"),
            (4e15, "4000T"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text, "{value}");
        }
    }
}
