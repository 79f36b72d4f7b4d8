//! The addresses of this node: who has which, and whether what is remembered is what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::api::ipam::{Addresses, Answer, Ask, Assignment, Entry, Imported, Skipped, State};
use super::api::{Owner, Range, Refusal, RefusalKind};
use super::boottime;
use super::ipam::Pool;
use super::node::Node;
use super::pods::{PodError, check_owner};
use super::store::{Held, Rest, StoreError};

impl Node {
    /// Answers a question about addresses.
    pub(super) fn answer_ipam(&mut self, ask: Ask) -> Result<Answer, Refusal> {
        self.meet_strangers();
        match ask {
            Ask::List => Ok(Answer::Addresses(self.addresses())),
            Ask::Release { address } => self.release(address).map(Answer::Released),
            Ask::Check => self.audit().map(Answer::Audit),
            Ask::Import { network, entries } => self.import(&network, entries).map(Answer::Imported),
        }
    }

    /// How full each of the node's ranges is.
    pub(super) fn ranges(&self) -> Vec<Range> {
        let pool = self.pool();
        self.config.node.pod_cidrs.iter().map(|cidr| pool.usage(cidr)).collect()
    }

    /// What a new pod's addresses depend on, now.
    pub(super) fn pool(&self) -> Pool<'_> {
        let rest = self.rest();
        let pods = self.store.pods().iter().flat_map(|pod| &pod.addresses);
        let held = self.store.held().iter().map(|held| &held.address);
        let strangers = self.strangers.iter().flat_map(|stranger| &stranger.addresses);
        let released = self.store.released().iter();
        Pool {
            cidrs: &self.config.node.pod_cidrs,
            exclude: &self.config.ipam.exclude,
            taken: pods.chain(held).chain(strangers).copied().collect(),
            quarantine: released.filter_map(|was| Some((was.address, rest.left(was.at_ms)?))).collect(),
            last: self.store.last(),
        }
    }

    /// When it is, and how long addresses rest.
    pub(super) fn rest(&self) -> Rest {
        Rest { now_ms: boottime::now_ms(), lasts: self.config.ipam.quarantine }
    }

    /// Lets go the addresses of other plugins' containers that `is_free` says, and names them.
    pub(super) fn let_go(&mut self, is_free: impl Fn(&Held) -> bool) -> Result<Vec<String>, StoreError> {
        let names: BTreeSet<String> = self.store.held().iter().filter(|held| is_free(held)).map(Held::name).collect();
        if !names.is_empty() {
            self.store.let_go(is_free, self.rest())?;
            tracing::info!(containers = ?names, "let go the addresses of another plugin's containers");
        }
        Ok(names.into_iter().collect())
    }

    fn addresses(&self) -> Addresses {
        let rest = self.rest();
        let row = |address, state| Assignment {
            address,
            last: None,
            state,
            pod: None,
            owner: None,
            age_secs: None,
            free_in_secs: None,
        };
        let age = |since_ms: u64| Some(rest.now_ms.saturating_sub(since_ms) / 1000);
        let given = self.store.pods().iter().flat_map(|pod| {
            pod.addresses.iter().map(move |address| Assignment {
                pod: Some(pod.name.clone()),
                owner: pod.owner.clone(),
                age_secs: pod.since_ms.and_then(age),
                ..row(*address, State::Given)
            })
        });
        let held = self.store.held().iter().map(|held| Assignment {
            pod: Some(held.name()),
            owner: Some(Owner { network: held.network.clone(), container: held.container.clone(), workload: None }),
            age_secs: age(held.since_ms),
            ..row(held.address, State::Held)
        });
        let resting = self.store.released().iter().filter_map(|was| {
            let left = rest.left(was.at_ms)?;
            let free_in_secs = Some(left.as_secs() + 1);
            Some(Assignment { age_secs: age(was.at_ms), free_in_secs, ..row(was.address, State::Quarantined) })
        });
        let excluded = self.config.ipam.exclude.iter().map(|range| {
            let last = Some(range.last()).filter(|last| *last != range.first());
            Assignment { last, ..row(range.first(), State::Excluded) }
        });
        let strangers = self.strangers.iter().flat_map(|stranger| {
            let addresses = stranger.addresses.iter();
            addresses.map(|address| Assignment { pod: Some(stranger.device.clone()), ..row(*address, State::Unknown) })
        });
        let mut addresses: Vec<Assignment> =
            given.chain(held).chain(resting).chain(excluded).chain(strangers).collect();
        addresses.sort_by_key(|row| row.address);
        Addresses { ranges: self.ranges(), addresses }
    }

    fn release(&mut self, address: IpAddr) -> Result<State, Refusal> {
        if let Some(pod) = self.store.pods().iter().find(|pod| pod.addresses.contains(&address)) {
            let name = &pod.name;
            let text = format!("{address} is of the pod `{name}`; detach it: podwire pods detach --name {name}");
            return Err(Refusal::new(RefusalKind::Taken, text));
        }
        if let Some(stranger) = self.strangers.iter().find(|stranger| stranger.addresses.contains(&address)) {
            return Err(Refusal::new(RefusalKind::Taken, format!("{address}: {}", stranger.advice())));
        }
        let is_held = self.store.held().iter().any(|held| held.address == address);
        if !is_held && !self.pool().quarantine.contains_key(&address) {
            let text = format!("{address} is neither held nor in quarantine; see `podwire ipam list`");
            return Err(Refusal::new(RefusalKind::NotFound, text));
        }
        self.store.release(address).map_err(PodError::from)?;
        tracing::info!(%address, "released");
        Ok(if is_held { State::Held } else { State::Quarantined })
    }

    fn import(&mut self, network: &str, entries: Vec<Entry>) -> Result<Imported, Refusal> {
        let mut imported = Imported::default();
        let mut new: BTreeMap<IpAddr, Held> = BTreeMap::new();
        for Entry { address, container, ifname } in entries {
            let owner = Owner { network: network.to_owned(), container: container.clone(), workload: ifname.clone() };
            let since_ms = boottime::now_ms();
            let held = Held { address, network: network.to_owned(), container, ifname, since_ms };
            if self.store.held().iter().chain(new.values()).any(|known| known.is_same(&held)) {
                imported.known.push(address);
                continue;
            }
            let obstacle = check_owner(&owner).map_err(|error| error.to_string());
            match obstacle.and_then(|()| self.may_hold(address)) {
                Ok(()) => _ = new.insert(address, held),
                Err(why) => imported.skipped.push(Skipped { what: address.to_string(), why }),
            }
        }
        imported.held = new.keys().copied().collect();
        if !new.is_empty() {
            self.store.hold(new.into_values().collect()).map_err(PodError::from)?;
            tracing::info!(network, addresses = ?imported.held, "imported");
        }
        Ok(imported)
    }

    /// Why an address of another plugin's container need not be held.
    fn may_hold(&self, address: IpAddr) -> Result<(), String> {
        if let Some(pod) = self.store.pods().iter().find(|pod| pod.addresses.contains(&address)) {
            return Err(format!("it is of the pod `{}` here", pod.name));
        }
        // One that another container held is that container's no longer.
        let taken = BTreeSet::new();
        Pool { taken, ..self.pool() }.choose(&[address]).map(|_| ()).map_err(|error| error.to_string())
    }
}
