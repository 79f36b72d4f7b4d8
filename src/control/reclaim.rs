//! Pods that ended without a detach. A pod's device goes with its network namespace; when that has happened, nothing is
//! left to serve, and its addresses are wanted by others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::netns::{self, Netns};
use super::node::Node;
use super::wiring::Pod;
use crate::ids::IfIndex;

/// How long the runtime has to detach the pod itself. Some remove the namespace first; on a busy machine seconds pass
/// between the two, and who comes in time is told that there was such a pod.
const GRACE: Duration = Duration::from_secs(5);

/// Since when pods are known to have ended, by their devices, of which no two have had the same.
pub type Ended = BTreeMap<IfIndex, Instant>;

impl Node {
    /// Detaches the pods that ended long enough ago. To be called about every second; cheap as long as no device is
    /// gone.
    pub fn reclaim(&mut self, now: Instant) {
        let gone = self.store.pods().iter().filter(|pod| self.observed.gone.contains(&pod.id));
        let found: Vec<_> =
            gone.filter(|pod| pod.has_ended()).map(|pod| (pod.host_ifindex, pod.name.clone())).collect();
        self.ended.retain(|device, _| found.iter().any(|(found, _)| found == device));
        for (device, name) in found {
            if now.saturating_duration_since(*self.ended.entry(device).or_insert(now)) < GRACE {
                continue;
            }
            tracing::warn!(pod = name, "its network namespace has ended, and nobody has detached it");
            if let Err(error) = self.detach(&name, now) {
                self.journal.tell_problem(&format!("pod {name} cannot be detached: {error}"), now);
                self.ended.insert(device, now);
            }
        }
    }
}

impl Pod {
    /// Whether the network namespace that the pod was attached in is not at its path any more: nothing is there that is
    /// a namespace, or another one is. False when that cannot be told.
    pub(super) fn has_ended(&self) -> bool {
        match Netns::open(&self.netns) {
            Ok(there) => matches!(
                (self.netns_cookie, there.within(netns::cookie)),
                (Some(own), Ok(Ok(other))) if own != other
            ),
            Err(error) => netns::names_none(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wiring::tests::pod_at;

    #[test]
    fn a_pod_has_ended_when_its_namespace_is_not_there_and_not_when_that_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let here = "/proc/thread-self/ns/net".as_ref();
        let own = netns::cookie().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        for (path, cookie, ended) in [
            (file.as_path(), Some(own), true),
            (&file.join("below"), Some(own), true),
            (&dir.path().join("missing"), None, true),
            (here, Some(own), false),
            (here, None, false),
            // only root may enter it to see
            (here, Some(own + 1), is_root),
            ("/proc/thread-self/ns/uts".as_ref(), Some(own), false),
        ] {
            assert_eq!(pod_at(path, cookie).has_ended(), ended, "{path:?} {cookie:?}");
        }
    }
}
