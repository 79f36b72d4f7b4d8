//! The addresses that the node has for pods.

use super::evidence::{Daemon, Evidence};
use super::finding::Opinion;
use crate::control::api::Range;

/// Of a range, in per cent; less is scarce.
const SCARCE: u64 = 5;

pub(super) fn ranges(evidence: &Evidence) -> Vec<Opinion> {
    match &evidence.daemon {
        Daemon::Well { ranges, .. } => ranges.iter().map(range).collect(),
        _ => vec![Opinion::ok("a daemon gives them out")],
    }
}

fn range(Range { cidr, capacity, used, quarantined, free }: &Range) -> Opinion {
    let seen = format!("{free} of {capacity} addresses of {cidr} are free, {used} used, {quarantined} resting");
    let advice = "`podwire ipam list` shows who has which: detach what is not needed, lower ipam.quarantine_s, or give \
                  the node a larger range";
    match free {
        0 => Opinion::error(seen, format!("{cidr} is exhausted: no pod can be attached")).advice(advice),
        free if free.saturating_mul(100) < capacity.saturating_mul(SCARCE) => {
            Opinion::warning(seen, "soon no pod can be attached").advice(advice)
        }
        _ => Opinion::ok(seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    #[test]
    fn a_range_is_judged_by_what_is_free() {
        for (free, severity) in [(0, Severity::Error), (12, Severity::Warning), (13, Severity::Ok)] {
            let change = |evidence: &mut Evidence| match &mut evidence.daemon {
                Daemon::Well { ranges, .. } => ranges[0].free = free,
                other => panic!("{other:?}"),
            };
            assert_says(ranges, change, severity, "10.244.1.0/24");
        }
    }
}
