//! Pods that the data plane has yet to be told of.
//!
//! To put a program on a device, the kernel waits for a grace period of RCU with all network configuration locked
//! (`tcx_entry_sync` in `include/net/tcx.h`): 10 to 20 ms, in which no pod can be wired. Runtimes add many pods at a time
//! and wait for each. So a pod that a runtime adds begins on the kernel path, which is complete, and takes the fast path
//! as soon as nobody waits; while others go on coming, in a tenth of the control thread's time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::node::Node;
use crate::ids::PodId;

/// After so long without a call, nobody waits.
const QUIET: Duration = Duration::from_millis(50);

/// A pod waits for quiet so long at most,
const LONGEST: Duration = Duration::from_millis(500);
/// and the next one for so many times what it took to tell of the last one.
const SHARE: u32 = 9;

/// In the order of their coming.
#[derive(Debug)]
pub struct Newcomers {
    pods: VecDeque<PodId>,
    quiet_at: Instant,
    /// When the first one is told of although calls go on coming.
    turn_at: Instant,
}

impl Newcomers {
    pub fn new(now: Instant) -> Self {
        Self { pods: VecDeque::new(), quiet_at: now, turn_at: now }
    }

    pub fn contains(&self, pod: PodId) -> bool {
        self.pods.contains(&pod)
    }

    pub fn add(&mut self, pod: PodId, now: Instant) {
        if self.pods.is_empty() {
            self.turn_at = self.turn_at.max(now + LONGEST);
        }
        self.pods.push_back(pod);
    }

    /// Forgets a pod that is detached.
    pub fn remove(&mut self, pod: PodId) {
        self.pods.retain(|other| *other != pod);
    }

    /// Notes a call of a runtime.
    pub fn hear(&mut self, now: Instant) {
        self.quiet_at = now + QUIET;
    }

    /// When the data plane is to be told of the first one.
    pub fn due(&self) -> Option<Instant> {
        (!self.pods.is_empty()).then(|| self.quiet_at.min(self.turn_at))
    }

    /// Lets the first one go; telling of it is what comes next, and [`Newcomers::told`] after it.
    pub fn release(&mut self) {
        self.pods.pop_front();
    }

    /// Notes how long it took.
    pub fn told(&mut self, begin: Instant, end: Instant) {
        self.turn_at = end + (end - begin) * SHARE;
    }
}

impl Node {
    /// Tells the data plane of the first of the newcomers, if there are any.
    pub fn welcome(&mut self, now: Instant) {
        self.newcomers.release();
        self.drive(now);
        self.newcomers.told(now, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pod(id: u16) -> PodId {
        PodId::new(id).unwrap()
    }

    #[test]
    fn a_pod_waits_until_nobody_calls() {
        let start = Instant::now();
        let mut newcomers = Newcomers::new(start);
        assert_eq!(newcomers.due(), None);
        for ms in [0, 20, 40] {
            newcomers.add(pod(u16::try_from(ms).unwrap() + 1), start + ms * MS);
            newcomers.hear(start + ms * MS);
        }
        assert_eq!(newcomers.due(), Some(start + 90 * MS));
        newcomers.release();
        newcomers.told(start + 90 * MS, start + 110 * MS);
        assert!(!newcomers.contains(pod(1)) && newcomers.contains(pod(21)));
        assert_eq!(newcomers.due(), Some(start + 90 * MS), "the next one follows at once");
        newcomers.remove(pod(21));
        newcomers.remove(pod(41));
        assert_eq!(newcomers.due(), None);
    }

    #[test]
    fn while_calls_go_on_pods_have_a_tenth_of_the_time() {
        let start = Instant::now();
        let mut newcomers = Newcomers::new(start);
        newcomers.add(pod(1), start);
        newcomers.add(pod(2), start);
        newcomers.hear(start + 480 * MS);
        assert_eq!(newcomers.due(), Some(start + 500 * MS));
        newcomers.release();
        newcomers.told(start + 500 * MS, start + 520 * MS);
        newcomers.hear(start + 690 * MS);
        assert_eq!(newcomers.due(), Some(start + 700 * MS));
    }
}
