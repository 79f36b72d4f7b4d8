use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::control::view::{PodView, RemoteView, View};
use crate::fib::LocalPod;
use crate::ids::IfIndex;
use crate::steer::{PodPath, Steer, SteerError, Tunnel};

/// What the steering programs were told, step by step: after a failed update it is still true, and the next one does
/// what is missing.
#[derive(Debug, Default)]
pub struct Steered {
    locals: BTreeMap<IpAddr, Local>,
    remotes: HashMap<IpNet, Way>,
    vteps: BTreeSet<IpAddr>,
    /// Of pods.
    devices: BTreeSet<IfIndex>,
    /// Where packets go past the node's stack, and where it is known not to.
    tunnels: BTreeMap<IfIndex, bool>,
}

/// The largest packet that a prefix takes, and by which tunnel it may go past the node's stack.
type Way = (u16, Option<Tunnel>);

/// What the programs are to be told of other nodes: each prefix and the way to it. Made once for both steps of an update.
#[derive(Debug)]
pub struct Prefixes(HashMap<IpNet, Way>);

impl Prefixes {
    pub fn of(remotes: &[RemoteView]) -> Self {
        let ways = remotes.iter().flat_map(|remote| {
            let way = (remote.mtu, remote.tunnel);
            remote.prefixes.iter().map(move |prefix| (*prefix, way))
        });
        Self(ways.collect())
    }
}

/// A pod as the programs know it by one of its addresses.
type Local = (LocalPod, PodPath);

impl Steered {
    /// Stops steering what is gone or changed; a pod that only takes another path stays known, or what it sends would be
    /// taken for forged. Goes on after an error and returns the first.
    pub fn withdraw(&mut self, steer: &mut Steer, view: &View, Prefixes(remotes): &Prefixes) -> Result<(), SteerError> {
        let (locals, devices) = (addresses(&view.pods), devices(&view.pods));
        let mut result = Ok(());
        self.locals.retain(|address, (pod, _)| {
            locals.get(address) == Some(pod) || !note(&mut result, steer.remove_local(*address))
        });
        self.devices.retain(|device| devices.contains(device) || !note(&mut result, steer.detach_pod(*device)));
        // What leaves by a tunnel past the stack first, or its answers would be new to the stack.
        let may_bypass = |tunnel: Tunnel| view.tunnels.get(&tunnel.device) == Some(&true);
        let back = self.remotes.iter().filter(|(_, (_, tunnel))| tunnel.is_some_and(|tunnel| !may_bypass(tunnel)));
        for (prefix, (mtu, _)) in sorted(back.map(|(prefix, way)| (*prefix, *way))) {
            if note(&mut result, steer.add_remote(prefix, mtu, None)) {
                self.remotes.insert(prefix, (mtu, None));
            }
        }
        self.tunnels.retain(|tunnel, is_attached| {
            let stays = view.tunnels.get(tunnel) == Some(is_attached);
            stays || *is_attached && !note(&mut result, steer.detach_tunnel(*tunnel))
        });
        let gone = self.remotes.keys().filter(|prefix| !remotes.contains_key(prefix)).copied();
        for prefix in sorted(gone) {
            if note(&mut result, steer.remove_remote(prefix)) {
                self.remotes.remove(&prefix);
            }
        }
        self.vteps.retain(|vtep| view.vteps.contains(vtep) || !note(&mut result, steer.remove_vtep(*vtep)));
        result
    }

    /// Steers what is new or changed: all of a pod's addresses are known before its frames are judged by them. Goes on
    /// after an error and returns the first.
    pub fn extend(&mut self, steer: &mut Steer, view: &View, Prefixes(remotes): &Prefixes) -> Result<(), SteerError> {
        let mut result = Ok(());
        for vtep in &*view.vteps {
            if !self.vteps.contains(vtep) && note(&mut result, steer.add_vtep(*vtep)) {
                self.vteps.insert(*vtep);
            }
        }
        for PodView { pod, addresses, path } in &view.pods {
            for address in addresses {
                let local = (*pod, *path);
                if self.locals.get(address) != Some(&local) && note(&mut result, steer.add_local(*address, pod, *path))
                {
                    self.locals.insert(*address, local);
                }
            }
        }
        // Nobody reads of them yet: whoever is exchanged for an earlier program goes on where that one was.
        if self.devices.is_empty() {
            note(&mut result, self.extend_remotes(steer, remotes, &view.tunnels));
        }
        for (tunnel, may_bypass) in &view.tunnels {
            if self.tunnels.contains_key(tunnel) {
                continue;
            }
            // An earlier data plane may have attached it.
            let step = if *may_bypass { steer.attach_tunnel(*tunnel) } else { steer.detach_tunnel(*tunnel) };
            if note(&mut result, step) {
                self.tunnels.insert(*tunnel, *may_bypass);
            }
        }
        // Nothing leaves by a tunnel past the stack whose answers the stack would get.
        note(&mut result, self.extend_remotes(steer, remotes, &self.tunnels.clone()));
        let known = known(&view.pods, &self.locals);
        self.devices.retain(|device| known.contains(device) || !note(&mut result, steer.detach_pod(*device)));
        for device in known {
            if !self.devices.contains(&device) && note(&mut result, steer.attach_pod(device)) {
                self.devices.insert(device);
            }
        }
        result
    }

    /// Tells of prefixes that are new or changed, and of their tunnels where those in `tunnels` bypass. Goes on after an
    /// error and returns the first.
    fn extend_remotes(
        &mut self,
        steer: &Steer,
        remotes: &HashMap<IpNet, Way>,
        tunnels: &BTreeMap<IfIndex, bool>,
    ) -> Result<(), SteerError> {
        let mut result = Ok(());
        let bypasses = |tunnel: &Tunnel| tunnels.get(&tunnel.device) == Some(&true);
        let ways = remotes.iter().map(|(prefix, (mtu, tunnel))| (*prefix, (*mtu, tunnel.filter(bypasses))));
        for (prefix, way) in sorted(ways.filter(|(prefix, way)| self.remotes.get(prefix) != Some(way))) {
            let (mtu, tunnel) = way;
            if note(&mut result, steer.add_remote(prefix, mtu, tunnel)) {
                self.remotes.insert(prefix, way);
            }
        }
        result
    }
}

/// What is to be told, in order: the first error is of the same prefix each time.
fn sorted<T: Ord>(changes: impl Iterator<Item = T>) -> Vec<T> {
    let mut changes: Vec<T> = changes.collect();
    changes.sort_unstable();
    changes
}

/// Whether a step was done; keeps the first error.
fn note(result: &mut Result<(), SteerError>, step: Result<(), SteerError>) -> bool {
    let done = step.is_ok();
    if result.is_ok() {
        *result = step;
    }
    done
}

/// The pods of a node by address.
pub fn addresses(pods: &[PodView]) -> BTreeMap<IpAddr, LocalPod> {
    pods.iter().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.pod))).collect()
}

fn devices(pods: &[PodView]) -> BTreeSet<IfIndex> {
    pods.iter().map(|pod| pod.pod.ifindex).collect()
}

/// The devices of the pods whose addresses the programs know, each one: frames from another would be taken for forged.
fn known(pods: &[PodView], locals: &BTreeMap<IpAddr, Local>) -> BTreeSet<IfIndex> {
    let is_its_own = |pod: &PodView, address: &IpAddr| locals.get(address).is_some_and(|(known, _)| *known == pod.pod);
    let is_known = |pod: &&PodView| pod.addresses.iter().all(|address| is_its_own(pod, address));
    pods.iter().filter(is_known).map(|pod| pod.pod.ifindex).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PodId;
    use crate::wire::Mac;

    #[test]
    fn a_pod_is_judged_only_when_all_its_addresses_are_known_as_its_own() {
        let pod = |id: u16, addresses: [&str; 2]| PodView {
            pod: LocalPod {
                id: PodId::new(id).unwrap(),
                ifindex: IfIndex(id.into()),
                mac: Mac([2; 6]),
                gateway_mac: Mac([4; 6]),
            },
            addresses: addresses.map(|address| address.parse().unwrap()).to_vec(),
            path: PodPath::Fast,
        };
        let pods = [pod(1, ["10.0.0.1", "fd00::1"]), pod(2, ["10.0.0.2", "fd00::2"]), pod(3, ["10.0.0.3", "fd00::3"])];
        let mut locals: BTreeMap<IpAddr, Local> =
            addresses(&pods).into_iter().map(|(address, pod)| (address, (pod, PodPath::Kernel))).collect();
        assert_eq!(known(&pods, &locals), [1, 2, 3].map(IfIndex).into());
        locals.remove(&"fd00::2".parse::<IpAddr>().unwrap());
        locals.insert("10.0.0.3".parse().unwrap(), (pods[0].pod, PodPath::Fast));
        assert_eq!(known(&pods, &locals), [IfIndex(1)].into());
    }
}
