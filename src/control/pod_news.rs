//! Which pods something was heard of: their namespaces, and the pods that live there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use super::netlink::{Heard, NamespaceId, NamespaceMonitor, NetlinkError};
use super::netns::Netns;
use super::wiring::Pod;
use crate::ids::{IfIndex, PodId};

/// Listens to the namespaces of pods.
#[derive(Debug)]
pub struct PodNews {
    monitor: NamespaceMonitor,
    homes: BTreeMap<PodId, Home>,
    /// What happened in these before they were listened to was not heard.
    fresh: BTreeSet<PodId>,
}

/// Where a pod lives, which may be where others live too.
#[derive(Debug)]
struct Home {
    netns: PathBuf,
    /// Another pod may have been given the id since; no two have had the same device.
    host_ifindex: IfIndex,
    name: NamespaceId,
}

/// Pods to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    All,
    These(BTreeSet<PodId>),
}

impl Pods {
    pub fn contains(&self, pod: PodId) -> bool {
        match self {
            Self::All => true,
            Self::These(pods) => pods.contains(&pod),
        }
    }
}

impl Home {
    fn is_of(&self, pod: &Pod) -> bool {
        (&self.netns, self.host_ifindex) == (&pod.netns, pod.host_ifindex)
    }
}

impl PodNews {
    /// Hears of no pod yet.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { monitor: NamespaceMonitor::open()?, homes: BTreeMap::new(), fresh: BTreeSet::new() })
    }

    /// Listens to `pods` from now on, and to no others. A pod that cannot be listened to is tried again next time.
    /// Says whether there is a pod that was not listened to before.
    pub fn follow(&mut self, pods: &[Pod]) -> bool {
        self.homes.retain(|id, home| pods.iter().any(|pod| pod.id == *id && home.is_of(pod)));
        for pod in pods {
            if !self.homes.contains_key(&pod.id)
                && let Ok(netns) = Netns::open(&pod.netns)
                && let Ok(name) = self.monitor.watch(&netns)
            {
                self.homes.insert(pod.id, Home { netns: pod.netns.clone(), host_ifindex: pod.host_ifindex, name });
                self.fresh.insert(pod.id);
            }
        }
        !self.fresh.is_empty()
    }

    /// The pods that something was heard of since the last call, or could have been.
    pub fn take(&mut self) -> Pods {
        let mut pods = std::mem::take(&mut self.fresh);
        match self.monitor.drain() {
            Ok(Heard::In(namespaces)) => {
                pods.extend(self.homes.iter().filter(|(_, home)| namespaces.contains(&home.name)).map(|(pod, _)| *pod));
                Pods::These(pods)
            }
            Ok(Heard::Overflow) => Pods::All,
            Err(error) => {
                tracing::warn!(%error, "notifications of pods cannot be read");
                Pods::All
            }
        }
    }
}

impl AsRawFd for PodNews {
    fn as_raw_fd(&self) -> RawFd {
        self.monitor.as_raw_fd()
    }
}
