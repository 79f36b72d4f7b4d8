//! From Flannel to podwire.
//!
//! First all pods send what they have to say to the node, be it for a pod beside them, while their devices are still
//! ports of the bridge: it takes what goes to [`GATEWAY_MAC`], its ports', for the node. Then one port after the other
//! leaves the bridge. So at no time does a pod ask the bridge for one that has left.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::candidates::{self, Candidate};
use super::network::File;
use super::seen::Seen;
use super::steps::{MoveError, Steps, rename_device};
use super::tunnel::{self, Mark};
use super::{Locks, MigrateError, Migration, PROTOCOL_BOOT, PROTOCOL_KERNEL, Task, check_root, inside};
use crate::config::second_device;
use crate::control::boottime;
use crate::control::kernel::{Kernel, apply, delete_link};
use crate::control::netlink::{Link, LinkSettings, MAIN_TABLE, Route, RouteKind, unless_missing};
use crate::control::plan::{self, ALIAS, Action, PROTOCOL};
use crate::control::runtime::pods_path;
use crate::control::store::{Held, Rest, Store};
use crate::control::sysctl;
use crate::control::wiring::{GATEWAY_MAC, Pod, enterable, host_end_sysctls};
use crate::ids::IfIndex;

/// Of the routes to pods that stay behind the bridge: a pod of podwire's that gets such an address goes before.
const STAY_METRIC: u32 = 4096;

/// The network that the bridge's own addresses are held in: no runtime collects it.
const BRIDGES: &str = "flannel";

/// Takes the node over from Flannel, as far as that was not done yet, or says what that would change.
pub fn from_flannel(task: &Task<'_>) -> Result<Migration, MigrateError> {
    check_root()?;
    let mut kernel = Kernel::new()?;
    let obstacles = Seen::look(&mut kernel, task)?.obstacles(task);
    if task.acts && !obstacles.is_empty() {
        return Err(MigrateError::Obstacles(obstacles));
    }
    let locks = task.acts.then(|| Locks::take(&task.runtime_dir)).transpose()?;
    if let Some(locks) = &locks {
        locks.dir.dedicate()?;
    }
    let (store, _) = Store::open(&pods_path(&task.runtime_dir))?;
    let seen = Seen::look(&mut kernel, task)?;
    let mut steps = Steps { acts: task.acts, ..Steps::default() };
    steps.migration.obstacles = obstacles;
    Adoption { task, kernel, store, seen, steps }.run()
}

struct Adoption<'t> {
    task: &'t Task<'t>,
    kernel: Kernel,
    store: Store,
    seen: Seen,
    steps: Steps,
}

impl Adoption<'_> {
    fn run(mut self) -> Result<Migration, MigrateError> {
        let candidates = match self.seen.bridge {
            Some(_) => candidates::all(self.task, &self.seen, &self.store),
            None => Vec::new(),
        };
        self.steps.migration.pods = candidates.iter().map(|candidate| candidate.fate.clone()).collect();
        self.put_conflist_aside();
        self.pin_bridge();
        self.hold(&candidates);
        let moved = self.move_pods(&candidates)?;
        self.take_tunnels()?;
        self.leave_bridge(&candidates, &moved);
        self.say_next();
        Ok(self.steps.finish())
    }

    /// From now on no runtime adds a pod to Flannel.
    fn put_conflist_aside(&mut self) {
        if let File::InPlace(path) = &self.seen.network.file {
            let aside = File::aside(path);
            let what = format!("rename {} to {}", path.display(), aside.display());
            self.steps.step(&what, || fs::rename(path, &aside));
        }
    }

    /// A bridge takes over the MAC of one of its ports unless it was given one, and would change it as they leave.
    fn pin_bridge(&mut self) {
        let Some(bridge) = self.seen.bridge.as_ref().filter(|_| self.steps.acts) else { return };
        let settings = LinkSettings { mac: bridge.mac, ..LinkSettings::default() };
        if let Err(error) = self.kernel.netlink.set_link(bridge.index, settings) {
            self.steps.migration.failures.push(format!("cannot keep the MAC of {}: {error}", bridge.name));
        }
    }

    /// The addresses of pods that stay are given to no other, nor those of the bridge, which it needs on the way back.
    fn hold(&mut self, candidates: &[Candidate]) {
        let staying = candidates.iter().filter(|candidate| candidate.pod.is_none());
        let network = &self.seen.network;
        let gateways = self.seen.gateways.iter().map(|gateway| Held {
            address: gateway.addr(),
            network: BRIDGES.to_owned(),
            container: network.bridge.clone(),
            ifname: None,
            since_ms: boottime::now_ms(),
        });
        let mut held: Vec<_> = staying.flat_map(|candidate| candidate.held(&network.name)).chain(gateways).collect();
        held.retain(|held| !self.store.held().iter().any(|known| known.is_same(held)));
        if !held.is_empty() {
            let addresses: Vec<_> = held.iter().map(|held| held.address.to_string()).collect();
            self.steps.step(&format!("hold {}", addresses.join(", ")), || self.store.hold(held));
        }
    }

    /// Moves those that can be; returns the devices that have left the bridge.
    fn move_pods(&mut self, candidates: &[Candidate]) -> Result<BTreeSet<IfIndex>, MigrateError> {
        let flannels = self.seen.tunnels().map(|(link, _)| link.index);
        let tunnels = flannels.chain(self.seen.own_tunnels().map(|(link, _)| link.index));
        let mut sources: Vec<IpAddr> = Vec::new();
        for tunnel in tunnels {
            sources.extend(self.kernel.netlink.addresses(Some(tunnel))?.into_iter().map(|own| own.address.addr()));
        }
        let movable = candidates.iter().filter_map(|candidate| Some((candidate, candidate.pod.as_ref()?)));
        let (done, mut open): (Vec<_>, Vec<_>) = movable.partition(|(_, pod)| self.is_moved(pod));
        let mut moved: BTreeSet<IfIndex> = done.into_iter().map(|(_, pod)| pod.host_ifindex).collect();
        let Self { kernel, store, seen, steps, .. } = self;
        open.retain(|(candidate, pod)| {
            steps.step(&format!("have pod {} send to the node", candidate.fate.label()), || {
                prepare(kernel, store, seen, pod)
            })
        });
        for (candidate, pod) in open {
            let what =
                format!("move pod {} from {} to {}", candidate.fate.label(), seen.network.bridge, pod.host_ifname);
            if steps.step(&what, || leave(kernel, seen, &sources, pod)) {
                moved.insert(pod.host_ifindex);
            }
        }
        Ok(moved)
    }

    /// Whether a pod is where it is to be: that it left the bridge was its last step.
    fn is_moved(&self, pod: &Pod) -> bool {
        let end = self.seen.link(pod.host_ifindex);
        end.is_some_and(|link| link.name == pod.host_ifname && link.master.is_none())
    }

    /// The VXLAN devices become podwire's as they are.
    fn take_tunnels(&mut self) -> Result<(), MigrateError> {
        let from = Mark { alias: "", protocol: PROTOCOL_BOOT };
        let to = Mark { alias: ALIAS, protocol: PROTOCOL };
        for (link, vxlan) in self.seen.tunnels() {
            let Some(vxlan) = vxlan else { continue };
            let first = self.task.config.device_of(vxlan.vni);
            let name = if self.seen.is_second(&vxlan) { second_device(&first, vxlan.vni) } else { first };
            tunnel::hand_over(&mut self.kernel.netlink, &mut self.steps, link, &name, from, to)?;
        }
        Ok(())
    }

    /// Removes the bridge, or gives it what it still needs to serve the pods that stay.
    fn leave_bridge(&mut self, candidates: &[Candidate], moved: &BTreeSet<IfIndex>) {
        let Some(bridge) = self.seen.bridge.clone() else { return };
        let ports: Vec<_> =
            self.seen.ports().filter(|port| !moved.contains(&port.index)).map(|port| port.name.clone()).collect();
        let Self { kernel, seen, steps, .. } = self;
        if ports.is_empty() {
            steps.step(&format!("remove {}", bridge.name), || delete_link(&mut kernel.netlink, bridge.index));
            return;
        }
        steps.migration.left.push(format!(
            "{} stays for what is behind it ({}); when that has restarted, run this again",
            bridge.name,
            ports.join(", ")
        ));
        let is_moved =
            |candidate: &&Candidate| candidate.pod.as_ref().is_some_and(|pod| moved.contains(&pod.host_ifindex));
        let staying = candidates.iter().filter(|candidate| !is_moved(candidate));
        let addresses: Vec<IpAddr> = staying.flat_map(|candidate| candidate.fate.addresses.clone()).collect();
        let what = format!("have {} serve only the pods that stay", bridge.name);
        steps.step(&what, || narrow(kernel, seen, &bridge, &addresses));
    }

    fn say_next(&mut self) {
        if self.seen.bridge.is_none() && self.seen.tunnels().next().is_none() {
            return;
        }
        let network = &self.seen.network.name;
        self.steps.migration.next.extend([
            "start podwire: podwire run --config FILE".to_owned(),
            format!("let runtimes call it: podwire cni install --name {network} --chain portmap"),
        ]);
        self.steps.migration.left.push(
            "Flannel's chains (FLANNEL-POSTRTG, FLANNEL-FWD) masquerade and accept what podwire does too; a reboot takes \
             them away"
                .to_owned(),
        );
    }
}

/// Has a pod send all to the node, and remembers it. Its device is a port of the bridge still, with a MAC that the bridge
/// takes for the node's.
fn prepare(kernel: &mut Kernel, store: &mut Store, seen: &Seen, pod: &Pod) -> Result<(), MoveError> {
    let settings = LinkSettings { mac: Some(GATEWAY_MAC), ..LinkSettings::default() };
    kernel.netlink.set_link(pod.host_ifindex, settings)?;
    if !store.pods().iter().any(|known| known.name == pod.name) {
        let rest = Rest { now_ms: boottime::now_ms(), lasts: Duration::ZERO };
        store.insert(pod.clone(), &[], rest)?;
    }
    let netns = enterable(&pod.name, &pod.netns)?;
    netns.within(|| inside::to_podwire(pod, |address| seen.is_gateway(address)))??;
    match pod.mend_in(&netns, None)?.failures.into_iter().next() {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

/// Takes a pod's device out of the bridge, once the node knows another way to the pod. `sources` are the tunnel's
/// addresses.
fn leave(kernel: &mut Kernel, seen: &Seen, sources: &[IpAddr], pod: &Pod) -> Result<(), MoveError> {
    if let Some(link) = seen.link(pod.host_ifindex) {
        rename_device(&mut kernel.netlink, link, &pod.host_ifname)?;
    }
    for (key, value) in host_end_sysctls(&pod.host_ifname, &pod.addresses) {
        sysctl::ensure(&key, value)?;
    }
    for object in plan::pod_objects(sources, pod) {
        apply(&mut kernel.netlink, Action::Replace, &object)?;
    }
    Ok(kernel.netlink.set_master(pod.host_ifindex, None)?)
}

/// Has the bridge serve `addresses` and no longer the node's whole range, which is podwire's; the node answers for the
/// pods that have left when one that stays asks for them.
fn narrow(kernel: &mut Kernel, seen: &Seen, bridge: &Link, addresses: &[IpAddr]) -> Result<(), MoveError> {
    sysctl::ensure(&format!("ipv4/conf/{}/proxy_arp", bridge.name), "1")?;
    for address in addresses {
        let kind = RouteKind::Via { device: bridge.index, gateway: None };
        let route = Route { table: MAIN_TABLE, destination: IpNet::from(*address), kind, source: None };
        kernel.netlink.add_route_of_metric(&route, PROTOCOL_BOOT, STAY_METRIC)?;
    }
    for gateway in &seen.gateways {
        unless_missing(kernel.netlink.delete_route(MAIN_TABLE, gateway.trunc(), PROTOCOL_KERNEL))?;
    }
    Ok(())
}
