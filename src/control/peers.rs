//! A change of peers alone, such as a node of a large cluster that comes or goes: what it asks of kernel and data plane is
//! done at once, at a cost that does not grow with the kernel's tables. Nothing is listed; what others have changed is
//! found by the next look.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::kernel::{Done, Kernel, KernelError, request};
use super::netlink::Echo;
use super::node::Node;
use super::plan::{self, Action, Change, Object, ObjectChange, Tunnels};
use super::underlay;
use super::vtep::Vtep;
use crate::config::{Config, Peer};

/// The peers in which two configurations differ; those that have changed are in both lists.
#[derive(Debug, Default, PartialEq)]
struct Difference {
    gone: Vec<Arc<Peer>>,
    new: Vec<Arc<Peer>>,
}

impl Difference {
    fn between(old: &[Arc<Peer>], new: &[Arc<Peer>]) -> Self {
        fn by_name(peers: &[Arc<Peer>]) -> HashMap<&str, &Arc<Peer>> {
            peers.iter().map(|peer| (peer.name.as_str(), peer)).collect()
        }
        let without = |peers: &[Arc<Peer>], others: &HashMap<&str, &Arc<Peer>>| {
            let differs = |peer: &&Arc<Peer>| others.get(peer.name.as_str()) != Some(peer);
            peers.iter().filter(differs).cloned().collect()
        };
        Self { gone: without(old, &by_name(new)), new: without(new, &by_name(old)) }
    }
}

impl Kernel {
    /// Turns what the peers of `old` ask for into what those of `new` do, on the tunnels that are there.
    fn change_peers(&mut self, old: &Config, new: &Config, vtep: &Vtep, tunnels: Tunnels) -> Done {
        let mut done = Done::default();
        // The rules stay as long as there are peers.
        let of_peers = |config| {
            let mut objects = plan::of_peers(config, vtep, tunnels);
            objects.retain(|object| !matches!(object, Object::Rule(_)));
            objects
        };
        let changes = plan::plan(of_peers(new), of_peers(old), |device| tunnels.name(new, device).unwrap_or_default());
        self.apply_plan(&changes, &mut done);
        done
    }
}

impl Node {
    /// Has another configuration in force that differs from the present one in peers alone; says whether all is as wanted
    /// now, without a look to follow. `None`, and nothing is done, when it takes a look at everything:
    /// it differs in more, there is no tunnel yet, or the first peer comes, or the last one goes, or some may do without
    /// the tunnel. [`Node::follow_peers`] is left to the caller.
    pub(super) fn put_peers_in_force(&mut self, config: &Config, now: Instant) -> Option<bool> {
        let (vtep, tunnels) = (self.observed.vtep.clone()?, self.observed.tunnels?);
        let base = config.with_peers(Vec::new());
        if config.vxlan.direct_routing
            || self.config.peers.is_empty()
            || config.peers.is_empty()
            || self.config.with_peers(Vec::new()) != base
        {
            return None;
        }
        let Difference { gone, new } = Difference::between(&self.config.peers, &config.peers);
        let (gone, new) = (base.with_peers(gone), base.with_peers(new));
        let done = self.kernel.change_peers(&gone, &new, &vtep, tunnels);
        self.echoes.extend(done.changes.iter().filter_map(echo));
        let are_found = self.find_hops(&vtep, &gone, &new);
        self.config = config.clone();
        self.file.generation += 1;
        self.drive(now);
        self.journal.tell_changes(&done.changes, now);
        Some(done.failures.is_empty() && are_found.unwrap_or(false))
    }

    /// Knows the underlay next hops of new peers, and forgets those of the others; says whether each was found.
    fn find_hops(&mut self, vtep: &Vtep, gone: &Config, new: &Config) -> Result<bool, KernelError> {
        for end in gone.peers.iter().flat_map(|peer| peer.ends()) {
            self.observed.hops.remove(&end.underlay);
        }
        let underlays = vtep.ends_used(&new.peers);
        let hops = underlay::resolve_few(&mut self.kernel.netlink, &vtep.uplink, &underlays);
        let hops = hops.map_err(request("resolve new peers"))?;
        let are_found = hops.iter().all(Result::is_ok);
        self.observed.hops.extend(underlays.into_iter().zip(hops));
        Ok(are_found)
    }
}

/// What the kernel will tell of a change of ours without saying that it was ours.
fn echo(change: &Change) -> Option<Echo> {
    let Change::Object(ObjectChange { action, object, .. }) = change else { return None };
    match (action, object) {
        (Action::Delete, Object::Fdb(entry)) => Some(Echo::FdbDeleted(entry.mac)),
        (_, Object::Fdb(entry)) => Some(Echo::FdbSet(entry.mac)),
        (Action::Delete, Object::Neighbour(neighbour)) => Some(Echo::NeighbourDeleted(neighbour.address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::wire::Mac;

    fn peer(name: &str, last: u8) -> Arc<Peer> {
        Arc::new(Peer {
            name: name.to_owned(),
            underlay: IpAddr::from([192, 168, 1, last]),
            vtep_mac: Mac([2, 0, 0, 0, 0, last]),
            second: None,
            pod_cidrs: vec![format!("10.244.{last}.0/24").parse().unwrap()],
            addresses: Vec::new(),
        })
    }

    #[test]
    fn what_stays_is_in_neither_list_and_what_has_changed_in_both() {
        let old = [peer("stays", 1), peer("goes", 2), peer("changes", 3)];
        let new = [peer("comes", 4), peer("changes", 5), peer("stays", 1)];
        let Difference { gone, new } = Difference::between(&old, &new);
        assert_eq!(gone, [peer("goes", 2), peer("changes", 3)]);
        assert_eq!(new, [peer("comes", 4), peer("changes", 5)]);
    }
}
