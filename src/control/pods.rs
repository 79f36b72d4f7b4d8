//! Attaching pods to this node and detaching them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::api::{self, Owner, Refusal, RefusalKind};
use super::ipam::AddressError;
use super::kernel::delete_link;
use super::netlink::Link;
use super::node::Node;
use super::pod_news::Pods;
use super::store::StoreError;
use super::wiring::{self, GATEWAY_MAC, WiringError};
use crate::ids::{PodId, is_device_name};
use crate::wire::Mac;

/// Longer names than any orchestrator's `namespace/name`.
const MAX_NAME: usize = 320;

/// The longest word of an [`Owner`].
const MAX_WORD: usize = 512;

/// Why a pod is not attached or detached, or not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(
        "pod name `{0}` is not usable: 1 to {MAX_NAME} letters, digits, or any of `-_.:/`, the first a letter or a digit"
    )]
    Name(String),
    #[error("a pod called `{0}` is attached already; detach it first, or choose another name")]
    NameTaken(String),
    #[error("device name `{0}` is not usable: 1 to 15 visible characters without `/` and `:`")]
    Ifname(String),
    #[error("network namespace {path} is named in a way that another process cannot follow; use an absolute path such as /run/netns/NAME or /proc/PID/ns/net", path = .0.display())]
    Netns(PathBuf),
    #[error("no pod is called `{0}`; see `podwire pods list`")]
    Unknown(String),
    #[error("MAC {0} is not usable: a pod needs a unicast address other than its gateway's ({GATEWAY_MAC})")]
    Mac(Mac),
    #[error("{what} `{word}` is not usable: 1 to {MAX_WORD} visible ASCII characters")]
    Word { what: &'static str, word: String },
    #[error("{0} pods are attached, no more are possible on this node; detach one")]
    Full(usize),
    #[error("this node cannot wire pods now: {0}")]
    NotReady(String),
    #[error("{} pod(s) could not be detached: {}", .0.len(), .0.join("; "))]
    Leftover(Vec<String>),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<PodError> for Refusal {
    fn from(error: PodError) -> Self {
        let kind = match &error {
            PodError::Name(_) | PodError::Ifname(_) | PodError::Netns(_) | PodError::Mac(_) | PodError::Word { .. } => {
                RefusalKind::Invalid
            }
            PodError::NameTaken(_) => RefusalKind::Taken,
            PodError::Unknown(_) => RefusalKind::NotFound,
            PodError::Full(_) => RefusalKind::Exhausted,
            PodError::NotReady(_) => RefusalKind::NotReady,
            PodError::Leftover(_) | PodError::Store(_) => RefusalKind::Internal,
            PodError::Address(error) => match error {
                AddressError::Foreign(..)
                | AddressError::Reserved(_)
                | AddressError::Excluded(..)
                | AddressError::Second(_) => RefusalKind::Invalid,
                AddressError::Taken(_) => RefusalKind::Taken,
                AddressError::Exhausted { .. } => RefusalKind::Exhausted,
            },
            PodError::Wiring(error) => match error {
                WiringError::Netns { .. } | WiringError::HostNetns { .. } => RefusalKind::Namespace,
                WiringError::Family { .. } => RefusalKind::Invalid,
                WiringError::Taken { .. } => RefusalKind::Taken,
                WiringError::Request { source, .. } if source.errno() == Some(libc::EEXIST) => RefusalKind::Taken,
                WiringError::Request { .. } | WiringError::Sysctl { .. } | WiringError::Broken { .. } => {
                    RefusalKind::Internal
                }
            },
        };
        Self::new(kind, error.to_string())
    }
}

impl Node {
    /// Chooses addresses, wires the pod and remembers it. All or nothing; once it returns, the pod's first packet
    /// passes. A pod that is attached by hand is steered then; one that a runtime adds is one of the newcomers, unless
    /// nothing but its program would drop what it forges.
    pub fn attach(&mut self, request: api::Attach, now: Instant) -> Result<api::Pod, PodError> {
        // A note about an earlier pod of this name must not be taken for one about this pod.
        self.heed_notes(now);
        self.meet_strangers();
        let is_chosen = request.addresses.is_empty();
        let request = self.admit(request)?;
        if self.notes.may_tell_of(&request.name) {
            let why = format!("a note to detach {} cannot be read or removed; see the log", request.name);
            return Err(PodError::NotReady(why));
        }
        let Some(vtep) = &self.observed.vtep else {
            return Err(PodError::NotReady(self.obstacles()));
        };
        let pod = self.kernel.attach(vtep, &request)?;
        let given = if is_chosen { pod.addresses.as_slice() } else { &[] };
        if let Err(error) = self.store.insert(pod.clone(), given, self.rest()) {
            if let Err(leftover) = self.kernel.detach(&pod) {
                tracing::error!(pod = pod.name, error = %leftover, "cannot undo the wiring");
            }
            return Err(error.into());
        }
        tracing::info!(pod = pod.name, addresses = ?pod.addresses, device = pod.host_ifname, "attached");
        if pod.owner.is_some() && self.rules.is_in_place() {
            self.newcomers.add(pod.id, now);
        } else {
            self.drive(now);
        }
        Ok(self.describe(&pod))
    }

    /// Takes the pod's wiring away, and with it its program, for which one grace period of RCU is waited and not two; then
    /// its place in the data plane, then that in the store, which its addresses leave for quarantine. Of a pod of another
    /// plugin only the addresses are known. False when there is no such pod.
    pub fn detach(&mut self, name: &str, now: Instant) -> Result<bool, PodError> {
        let Some(pod) = self.store.pods().iter().find(|pod| pod.name == name).cloned() else {
            return Ok(!self.let_go(|held| held.is_of(name))?.is_empty());
        };
        self.kernel.detach(&pod)?;
        self.observed.gone.insert(pod.id);
        self.newcomers.remove(pod.id);
        self.drive(now);
        self.store.remove(name, self.rest())?;
        self.observed.gone.remove(&pod.id);
        self.faults.remove(&pod.id);
        tracing::info!(pod = pod.name, addresses = ?pod.addresses, "detached");
        // Of several interfaces of a container another one has to take the default route over.
        let others = self.store.pods().iter().filter(|other| other.netns == pod.netns).map(|other| other.id);
        let others: BTreeSet<PodId> = others.collect();
        if !others.is_empty() {
            self.mend_pods(&Pods::These(others), now);
        }
        Ok(true)
    }

    /// Detaches the pods of which notes say that they were to be. A note goes when its pod has; what cannot be detached
    /// is tried again at the next call. Says whether a pod was detached.
    pub fn heed_notes(&mut self, now: Instant) -> bool {
        let mut has_detached = false;
        for name in self.notes.read() {
            match self.detach(&name, now) {
                Ok(detached) => {
                    has_detached |= detached;
                    self.notes.remove(&name);
                }
                Err(error) => {
                    tracing::warn!(pod = name, %error, "cannot detach a pod that a note tells of; it is tried again");
                }
            }
        }
        has_detached
    }

    /// Whether there is a pod of this name that was not attached for a CNI network.
    pub fn is_of_others(&self, name: &str, network: &str) -> bool {
        let pod = self.store.pods().iter().find(|pod| pod.name == name);
        pod.is_some_and(|pod| pod.owner.as_ref().is_none_or(|owner| owner.network != network))
    }

    /// Looks at what is really there of a pod, on the node and inside, and changes nothing.
    pub fn check(&mut self, name: &str) -> Result<api::Pod, PodError> {
        let pod = self.store.pods().iter().find(|pod| pod.name == name);
        let pod = pod.ok_or_else(|| PodError::Unknown(name.to_owned()))?;
        let vtep = self.observed.vtep.as_ref().ok_or_else(|| PodError::NotReady(self.obstacles()))?;
        self.kernel.verify(vtep, pod)?;
        match self.not_ready() {
            Some(problem) => Err(PodError::NotReady(problem)),
            None => Ok(self.describe(pod)),
        }
    }

    /// Detaches the pods of a CNI network that are not in `keep`, and lets go what other plugins' containers have in it;
    /// what cannot be detached does not stop the rest.
    pub fn collect(&mut self, network: &str, keep: &[String], now: Instant) -> Result<Vec<String>, PodError> {
        let kept: BTreeSet<&str> = keep.iter().map(String::as_str).collect();
        let of_network = |pod: &&wiring::Pod| pod.owner.as_ref().is_some_and(|owner| owner.network == network);
        let pods = self.store.pods().iter().filter(of_network).map(|pod| pod.name.clone());
        let mut removed: Vec<String> = pods.filter(|name| !kept.contains(name.as_str())).collect();
        let mut failures = Vec::new();
        removed.retain(|name| match self.detach(name, now) {
            Ok(found) => found,
            Err(error) => {
                failures.push(error.to_string());
                false
            }
        });
        match self.let_go(|held| held.network == network && !keep.iter().any(|name| held.is_of(name))) {
            Ok(names) => removed.extend(names),
            Err(error) => failures.push(error.to_string()),
        }
        if failures.is_empty() { Ok(removed) } else { Err(PodError::Leftover(failures)) }
    }

    /// Looks for host ends of no pod that is remembered. An attach that was cut short has left them, and they are
    /// removed, unless pods may have been forgotten: then they are only told of.
    pub fn remove_orphans(&mut self) {
        if !self.store.is_complete() {
            self.meet_strangers();
            return self.strangers.iter().for_each(|stranger| tracing::error!("{}", stranger.advice()));
        }
        let ends = match self.kernel.host_ends() {
            Ok(ends) => ends,
            Err(error) => return tracing::warn!(%error, "cannot look for devices that pods have left"),
        };
        let orphans: Vec<Link> =
            ends.into_iter().filter(|link| wiring::is_of_stranger(link, self.store.pods())).collect();
        for Link { index, name, .. } in orphans {
            match delete_link(&mut self.kernel.netlink, index) {
                Ok(()) => tracing::warn!(device = name, "removed what an attach that was cut short has left"),
                Err(error) => tracing::warn!(device = name, %error, "cannot remove what an attach has left"),
            }
        }
    }

    /// Looks for pods that were forgotten, unless none can have been. When the last one is gone, that is remembered.
    pub(super) fn meet_strangers(&mut self) {
        if self.store.is_complete() {
            return;
        }
        match self.kernel.host_side() {
            Ok(seen) => self.strangers = seen.strangers(self.store.pods()),
            Err(error) => return tracing::warn!(%error, "cannot look for pods that were forgotten"),
        }
        if self.strangers.is_empty()
            && let Err(error) = self.store.complete()
        {
            tracing::warn!("{error}");
        }
    }

    /// Checks a request against this node and completes it.
    fn admit(&self, request: api::Attach) -> Result<wiring::Attach, PodError> {
        let api::Attach { name, netns, ifname, addresses, mac, owner } = request;
        if !is_pod_name(&name) {
            return Err(PodError::Name(name));
        }
        if !is_device_name(&ifname) {
            return Err(PodError::Ifname(ifname));
        }
        if !is_followable(&netns) {
            return Err(PodError::Netns(netns));
        }
        if let Some(mac) = mac.filter(|mac| !mac.is_unicast() || *mac == GATEWAY_MAC) {
            return Err(PodError::Mac(mac));
        }
        owner.as_ref().map_or(Ok(()), check_owner)?;
        let pods = self.store.pods();
        if pods.iter().any(|pod| pod.name == name) {
            return Err(PodError::NameTaken(name));
        }
        let addresses = self.pool().choose(&addresses)?;
        let strangers = self.strangers.iter().map(|stranger| stranger.id);
        let ids: BTreeSet<_> = pods.iter().map(|pod| pod.id).chain(strangers).collect();
        let id = lowest_free_id(&ids).ok_or(PodError::Full(pods.len()))?;
        Ok(wiring::Attach { id, name, netns, ifname, addresses, mac, owner })
    }
}

pub(super) fn check_owner(Owner { network, container, workload }: &Owner) -> Result<(), PodError> {
    let words = [("network", Some(network)), ("container", Some(container)), ("workload", workload.as_ref())];
    let unusable =
        |word: &String| !(1..=MAX_WORD).contains(&word.len()) || !word.bytes().all(|byte| byte.is_ascii_graphic());
    match words.into_iter().find_map(|(what, word)| Some((what, word.filter(|word| unusable(word))?))) {
        Some((what, word)) => Err(PodError::Word { what, word: word.clone() }),
        None => Ok(()),
    }
}

/// Whether a path names the same network namespace to every process.
pub(super) fn is_followable(netns: &Path) -> bool {
    netns.is_absolute() && !netns.starts_with("/proc/self") && !netns.starts_with("/proc/thread-self")
}

pub(super) fn lowest_free_id(taken: &BTreeSet<PodId>) -> Option<PodId> {
    (1..=PodId::MAX).filter_map(PodId::new).find(|id| !taken.contains(id))
}

pub(super) fn is_pod_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    first && name.len() <= MAX_NAME && name.bytes().all(usable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_orchestrators_are_usable_and_odd_ones_are_not() {
        for good in ["web", "default/web-7c9f", "7", "a.b_c:d"] {
            assert!(is_pod_name(good), "{good}");
        }
        for bad in ["", "-web", "../web", "a b", "wéb", "a\nb", &"x".repeat(MAX_NAME + 1)] {
            assert!(!is_pod_name(bad), "{bad}");
        }
    }

    #[test]
    fn ids_are_reused_from_the_lowest_and_run_out() {
        let all: BTreeSet<_> = (1..=PodId::MAX).filter_map(PodId::new).collect();
        assert_eq!(lowest_free_id(&all), None);
        let mut some = all;
        some.remove(&PodId::new(3).unwrap());
        some.remove(&PodId::new(9).unwrap());
        assert_eq!(lowest_free_id(&some), PodId::new(3));
        assert_eq!(lowest_free_id(&BTreeSet::new()), PodId::new(1));
    }
}
