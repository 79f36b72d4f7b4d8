//! The pods behind Flannel's bridge: which can be taken over as they are, and why not the others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::seen::Seen;
use super::{PodFate, Task, cache, inside};
use crate::control::api::Owner;
use crate::control::boottime;
use crate::control::netlink::{Link, LinkKind};
use crate::control::netns;
use crate::control::pods::{check_owner, is_followable, is_pod_name, lowest_free_id};
use crate::control::store::{Held, Store};
use crate::control::wiring::{GATEWAY_MAC, Pod, enterable, host_end};
use crate::ids::{PodId, is_device_name};

/// What old versions of host-local did not note.
const IFNAME: &str = "eth0";

/// A container that host-local knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub fate: PodFate,
    pub container: String,
    pub ifname: String,
    /// How it will be, if it can be taken over.
    pub pod: Option<Pod>,
}

/// All of them, in order of their first addresses.
pub fn all(task: &Task<'_>, seen: &Seen, store: &Store) -> Vec<Candidate> {
    let mut containers: BTreeMap<(String, String), Vec<IpAddr>> = BTreeMap::new();
    for entry in &seen.given.entries {
        let ifname = entry.ifname.clone().unwrap_or_else(|| IFNAME.to_owned());
        containers.entry((entry.container.clone(), ifname)).or_default().push(entry.address);
    }
    let mut taken = store.pods().iter().map(|pod| pod.id).collect();
    let mut candidates: Vec<Candidate> = containers
        .into_iter()
        .map(|((container, ifname), addresses)| {
            let id = lowest_free_id(&taken);
            let candidate = candidate(task, seen, store, id, (container, ifname, addresses));
            taken.extend(candidate.pod.as_ref().map(|pod| pod.id));
            candidate
        })
        .collect();
    candidates.sort_by_key(|candidate| candidate.fate.addresses.first().copied());
    candidates
}

fn candidate(
    task: &Task<'_>,
    seen: &Seen,
    store: &Store,
    id: Option<PodId>,
    (container, ifname, addresses): (String, String, Vec<IpAddr>),
) -> Candidate {
    let name = format!("{container}:{ifname}");
    let known = store.pods().iter().find(|pod| pod.name == name).cloned();
    let mut workload = known.as_ref().and_then(|pod| pod.owner.clone()).and_then(|owner| owner.workload);
    let found = known.map_or_else(
        || {
            let cached = cache::read(&task.cni_state, &seen.network.name, &container, &ifname)?;
            workload.clone_from(&cached.workload);
            let id = id.ok_or("no more pods are possible on this node")?;
            examine(seen, id, &container, &ifname, &addresses, cached)
        },
        Ok,
    );
    let must_restart = found.as_ref().err().cloned();
    Candidate { fate: PodFate { name, workload, addresses, must_restart }, container, ifname, pod: found.ok() }
}

/// The pod as it will be, or why it cannot be.
fn examine(
    seen: &Seen,
    id: PodId,
    container: &str,
    ifname: &str,
    addresses: &[IpAddr],
    cached: cache::Cached,
) -> Result<Pod, String> {
    let name = format!("{container}:{ifname}");
    let owner =
        Owner { network: seen.network.name.clone(), container: container.to_owned(), workload: cached.workload };
    check_owner(&owner).map_err(|error| error.to_string())?;
    if !is_pod_name(&name) || !is_device_name(ifname) {
        return Err("its container or its device has a name that cannot be used".to_owned());
    }
    if addresses.iter().filter(|address| address.is_ipv4()).count() > 1 || addresses.len() > 2 {
        return Err("it has more than one address of a family".to_owned());
    }
    if !is_followable(&cached.netns) {
        return Err(format!("{} names no network namespace for another process", cached.netns.display()));
    }
    let netns = enterable(&name, &cached.netns).map_err(|error| error.to_string())?;
    let look = || (inside::survey(ifname, addresses, |address| seen.is_gateway(address)), netns::cookie().ok());
    let (end, netns_cookie) = netns.within(look).map_err(|error| error.to_string())?;
    let end = end?;
    let host_end_link = seen.link(end.peer).filter(|link| is_port(seen, link, &end));
    let link =
        host_end_link.ok_or_else(|| format!("its {ifname} does not lead to a port of {}", seen.network.bridge))?;
    Ok(Pod {
        id,
        name,
        netns: cached.netns,
        ifname: ifname.to_owned(),
        host_ifname: host_end(id),
        host_ifindex: link.index,
        mac: end.mac,
        host_mac: GATEWAY_MAC,
        addresses: addresses.to_vec(),
        owner: Some(owner),
        netns_cookie,
        since_ms: Some(boottime::now_ms()),
    })
}

/// Whether a device is a port of the bridge and the other end of the pod's.
fn is_port(seen: &Seen, link: &Link, end: &inside::End) -> bool {
    let bridge = seen.bridge.as_ref().map(|bridge| bridge.index);
    link.kind == LinkKind::Veth && link.master.is_some() && link.master == bridge && link.lower == Some(end.index)
}

impl Candidate {
    /// What its addresses are remembered as while it stays where it is.
    pub fn held(&self, network: &str) -> Vec<Held> {
        let held = |address: &IpAddr| Held {
            address: *address,
            network: network.to_owned(),
            container: self.container.clone(),
            ifname: Some(self.ifname.clone()),
            since_ms: boottime::now_ms(),
        };
        self.fate.addresses.iter().map(held).collect()
    }
}
