//! What backs packet memory.

use super::evidence::Evidence;
use super::finding::Opinion;
use super::privileges::packet_memory;

const HUGE_PAGE: u64 = 2 << 20;

pub(super) fn hugepages(evidence: &Evidence) -> Vec<Opinion> {
    let needed = packet_memory(evidence).div_ceil(HUGE_PAGE);
    let figures = evidence.daemon.status().and_then(|status| status.dataplane.figures.as_ref());
    if needed == 0 {
        return vec![Opinion::ok("no worker is configured")];
    }
    if figures.is_some_and(|figures| figures.memory == "hugepages") {
        return vec![Opinion::ok("packet memory is in hugepages")];
    }
    let (all, free) = evidence.memory.hugepages.unwrap_or_default();
    let transparent = evidence.memory.transparent.as_deref().unwrap_or("not there");
    if figures.is_none() && free >= needed {
        return vec![Opinion::ok(format!("{free} are free, {needed} are needed"))];
    }
    let seen = format!("{free} of {all} hugepages are free, {needed} are needed; transparent ones: {transparent}");
    vec![if ["always", "madvise"].contains(&transparent) {
        Opinion::ok(seen)
    } else {
        Opinion::note(seen, "packet memory lies in small pages: more TLB misses for each burst")
            .tuning(evidence.profile())
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::evidence::Daemon;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    #[test]
    fn small_pages_are_noted_when_there_are_neither_huge_nor_transparent_ones() {
        let without = |e: &mut Evidence, free, transparent: &str| {
            e.daemon = Daemon::Away("none".into());
            e.memory.hugepages = Some((64, free));
            e.memory.transparent = Some(transparent.into());
        };
        assert_says(hugepages, |e| without(e, 3, "never"), Severity::Note, "3 of 64 hugepages are free, 32 are needed");
        assert_says(hugepages, |e| without(e, 3, "madvise"), Severity::Ok, "madvise");
        assert_says(hugepages, |e| without(e, 32, "never"), Severity::Ok, "32 are free");
    }
}
