//! From podwire to Flannel.
//!
//! All pods' devices become ports of the bridge while the pods still send everything to the node, which knows the way to
//! each; then the pods learn that there is a bridge, where each finds the others; then the node forgets its own ways.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::network::{File, callers, own_conflist};
use super::seen::{Seen, flannel_device};
use super::steps::{MoveError, Steps, rename_device};
use super::subnet::Subnet;
use super::tunnel::{self, Mark};
use super::{
    Locks, MigrateError, Migration, PROTOCOL_BOOT, PodFate, Task, check_root, files, flanneld_obstacle, inside,
};
use crate::config::derive_vtep_mac;
use crate::control::boottime;
use crate::control::conflist::PLUGIN;
use crate::control::durable;
use crate::control::hub;
use crate::control::kernel::{Kernel, apply};
use crate::control::netlink::{
    Address, Link, LinkSettings, MAIN_TABLE, Netlink, NetlinkError, RouteKind, name_of, unless_missing,
};
use crate::control::plan::{self, ALIAS, Action, NODES_TABLE, Object, PROTOCOL};
use crate::control::runtime::pods_path;
use crate::control::store::{Rest, Store};
use crate::control::sysctl;
use crate::control::underlay;
use crate::control::uninstall::remove_programs;
use crate::control::wiring::{Pod, enterable};
use crate::ids::IfIndex;

/// How long a bridge may take to run, which is a second at most (`net/core/link_watch.c`), and how often to look.
const CARRIER_WAIT: Duration = Duration::from_secs(3);
const CARRIER_POLL: Duration = Duration::from_millis(5);

/// Gives the node back to Flannel, as far as that was not done yet, or says what that would change.
pub fn to_flannel(task: &Task<'_>) -> Result<Migration, MigrateError> {
    check_root()?;
    let mut kernel = Kernel::new()?;
    let (store, _) = Store::open(&pods_path(&task.runtime_dir))?;
    let seen = Seen::look(&mut kernel, task)?;
    if !has_podwire(task, &seen, &store) {
        return Ok(Migration { done: task.acts, ..Migration::default() });
    }
    let tunnel = seen.own_tunnels().map(|(link, _)| link).chain(seen.tunnels().map(|(link, _)| link)).next();
    let (subnet, subnet_env) = Subnet::of(task, tunnel.map_or(0, |link| link.mtu))?;
    let obstacles = obstacles(&store, &subnet);
    if task.acts && !obstacles.is_empty() {
        return Err(MigrateError::Obstacles(obstacles));
    }
    let _locks = task.acts.then(|| Locks::take(&task.runtime_dir)).transpose()?;
    // Until the locks were taken, pods came and went.
    let (store, _) = Store::open(&pods_path(&task.runtime_dir))?;
    let seen = Seen::look(&mut kernel, task)?;
    let late = self::obstacles(&store, &subnet);
    if task.acts && !late.is_empty() {
        return Err(MigrateError::Obstacles(late));
    }
    let mut steps = Steps { acts: task.acts, ..Steps::default() };
    steps.migration.obstacles = obstacles;
    Release { task, kernel, store, seen, subnet, subnet_env, steps }.run()
}

/// Whether anything of the node is podwire's.
fn has_podwire(task: &Task<'_>, seen: &Seen, store: &Store) -> bool {
    seen.own_tunnels().next().is_some()
        || !store.pods().is_empty()
        || matches!(seen.network.file, File::Aside(_))
        || !callers(&task.conf_dir, PLUGIN).is_empty()
}

/// What keeps the node from being given back.
fn obstacles(store: &Store, subnet: &Subnet) -> Vec<String> {
    let is_gateway = |address: &&IpAddr| subnet.gateways.iter().any(|gateway| gateway.addr() == **address);
    let of_pod = |pod: &Pod| {
        let gateway = pod.addresses.iter().find(is_gateway).map(|address| {
            format!("pod {} has {address}, which Flannel's bridge needs: restart the pod elsewhere", pod.name)
        });
        let by_hand = pod.owner.is_none().then(|| {
            format!("pod {} was attached by hand: detach it (podwire pods detach --name {})", pod.name, pod.name)
        });
        gateway.or(by_hand)
    };
    flanneld_obstacle().into_iter().chain(store.pods().iter().filter_map(of_pod)).collect()
}

struct Release<'t> {
    task: &'t Task<'t>,
    kernel: Kernel,
    store: Store,
    seen: Seen,
    subnet: Subnet,
    /// The text of `subnet.env`, if it is missing.
    subnet_env: Option<String>,
    steps: Steps,
}

impl Release<'_> {
    fn run(mut self) -> Result<Migration, MigrateError> {
        self.steps.migration.pods = self.store.pods().iter().map(fate).collect();
        self.remove_conflists();
        self.remove_data_plane();
        self.write_files();
        if let Some(bridge) = self.make_bridge() {
            self.move_pods(bridge);
        }
        self.give_tunnels()?;
        self.remove_routes()?;
        self.restore_conflist();
        self.say_next();
        Ok(self.steps.finish())
    }

    /// From now on no runtime adds a pod to podwire.
    fn remove_conflists(&mut self) {
        for (path, _) in callers(&self.task.conf_dir, PLUGIN) {
            self.steps.step(&format!("remove {}", path.display()), || fs::remove_file(&path));
        }
    }

    fn remove_data_plane(&mut self) {
        if self.seen.links.iter().any(|link| link.name == hub::NEAR && link.alias == ALIAS) {
            let kernel = &mut self.kernel;
            self.steps.step("detach the data plane's programs", || remove_programs(kernel).map(|_| ()));
            self.steps.step("remove the data plane's hub", || kernel.remove_hub().map(|_| ()));
        }
    }

    /// Has Flannel's plugins know the pods, and no addresses but theirs.
    fn write_files(&mut self) {
        let Self { task, store, seen, subnet, subnet_env, steps, .. } = self;
        if let Some(text) = subnet_env {
            let path = &task.subnet_env;
            steps.step(&format!("write {}", path.display()), || {
                path.parent().map_or(Ok(()), fs::create_dir_all)?;
                durable::replace(path, text.as_bytes(), 0o644)
            });
        }
        for pod in store.pods() {
            let Some(owner) = &pod.owner else { continue };
            let what = format!("tell Flannel's plugins of pod {}", label(pod));
            steps.step(&what, || files::note(&task.cni_state, &seen.network, subnet, pod, owner));
        }
        for (range, gateway) in subnet.gateways.iter().enumerate() {
            let alike = |last: &&IpAddr| last.is_ipv6() == gateway.addr().is_ipv6();
            if let Some(last) = store.last().iter().copied().find(|last| alike(&last)) {
                let what = format!("have host-local go on after {last}");
                steps.step(&what, || files::note_last(&task.cni_state, &seen.network, range, last));
            }
        }
        // Behind a bridge there may be pods that only host-local knows.
        if seen.bridge.is_some() {
            return;
        }
        let pods = store.pods().iter().flat_map(|pod| pod.addresses.iter().copied());
        let kept: BTreeSet<IpAddr> = pods.chain(store.held().iter().map(|held| held.address)).collect();
        let given = seen.given.entries.iter().map(|entry| entry.address);
        for address in given.filter(|address| !kept.contains(address)) {
            let what = format!("give {address} back to host-local");
            steps.step(&what, || files::give_back(&task.cni_state, &seen.network, address));
        }
    }

    /// The bridge, with the pods' gateways; `None` while that is only planned, or when it failed.
    fn make_bridge(&mut self) -> Option<IfIndex> {
        let Self { kernel, seen, subnet, steps, .. } = self;
        let (name, mut made) = (&seen.network.bridge, None);
        steps.step(&format!("set up {name} with {}", list(&subnet.gateways)), || {
            let index = make_bridge(&mut kernel.netlink, name, subnet, seen.bridge.as_ref())?;
            made = Some(index);
            Ok::<_, MoveError>(())
        });
        // A plan moves pods to a bridge that is not there yet.
        made.or_else(|| (!steps.acts).then_some(IfIndex::NONE))
    }

    /// Each step for all pods before the next one.
    fn move_pods(&mut self, bridge: IfIndex) {
        let Self { kernel, store, seen, subnet, steps, .. } = self;
        let mut pods = store.pods().to_vec();
        pods.retain(|pod| {
            let what = format!("move pod {} from {} to {}", label(pod), pod.host_ifname, seen.network.bridge);
            steps.step(&what, || enter_bridge(&mut kernel.netlink, pod, bridge))
        });
        if steps.acts {
            wait_until_running(&mut kernel.netlink, bridge);
        }
        pods.retain(|pod| {
            steps.step(&format!("have pod {} use the bridge", label(pod)), || -> Result<(), MoveError> {
                let netns = enterable(&pod.name, &pod.netns)?;
                Ok(netns.within(|| inside::to_flannel(pod, subnet))??)
            })
        });
        for pod in pods {
            let what = format!("forget the route to pod {}", label(&pod));
            if steps.step(&what, || forget_way(kernel, seen, &pod)) && steps.acts {
                let rest = Rest { now_ms: boottime::now_ms(), lasts: Duration::ZERO };
                if let Err(error) = store.remove(&pod.name, rest) {
                    steps.migration.failures.push(error.to_string());
                }
            }
        }
    }

    fn give_tunnels(&mut self) -> Result<(), MigrateError> {
        let from = Mark { alias: ALIAS, protocol: PROTOCOL };
        let to = Mark { alias: "", protocol: PROTOCOL_BOOT };
        for (link, vxlan) in self.seen.own_tunnels() {
            let name = flannel_device(&vxlan);
            tunnel::hand_over(&mut self.kernel.netlink, &mut self.steps, link, &name, from, to)?;
        }
        Ok(())
    }

    /// What Flannel has not: the ways to the other nodes' own addresses by the tunnel.
    fn remove_routes(&mut self) -> Result<(), MigrateError> {
        let Self { kernel, seen, steps, .. } = self;
        let netlink = &mut kernel.netlink;
        let mut objects: Vec<Object> = netlink.routes(NODES_TABLE, PROTOCOL)?.into_iter().map(Object::Route).collect();
        objects.extend(netlink.rules(PROTOCOL)?.into_iter().map(Object::Rule));
        for change in plan::plan(Vec::new(), objects, |index| name_of(&seen.links, index)) {
            steps.step(&change.to_string(), || apply(netlink, change.action, &change.object));
        }
        if !netlink.managed_neighbours(PROTOCOL)?.is_empty() {
            steps.step("forget the neighbours of the underlay", || underlay::release(netlink, |_, _| false).map(drop));
        }
        Ok(())
    }

    fn restore_conflist(&mut self) {
        let conf_dir = &self.task.conf_dir;
        match &self.seen.network.file {
            File::InPlace(_) => {}
            File::Aside(aside) => {
                let path = File::in_place(aside);
                let what = format!("rename {} to {}", aside.display(), path.display());
                self.steps.step(&what, || fs::rename(aside, &path));
            }
            File::Missing => {
                let (path, text) = own_conflist(conf_dir);
                self.steps.step(&format!("write {}", path.display()), || {
                    fs::create_dir_all(conf_dir)?;
                    durable::replace(&path, text.as_bytes(), 0o644)
                });
            }
        }
    }

    fn say_next(&mut self) {
        let Migration { left, next, .. } = &mut self.steps.migration;
        left.push("podwire's nftables rules stay, which masquerade until flanneld does".to_owned());
        next.extend([
            "start flanneld, or let its DaemonSet run on this node".to_owned(),
            "remove what is left of podwire: podwire uninstall".to_owned(),
        ]);
    }
}

fn fate(pod: &Pod) -> PodFate {
    PodFate {
        name: pod.name.clone(),
        workload: pod.owner.as_ref().and_then(|owner| owner.workload.clone()),
        addresses: pod.addresses.clone(),
        must_restart: None,
    }
}

/// What people call a pod.
fn label(pod: &Pod) -> &str {
    pod.owner.as_ref().and_then(|owner| owner.workload.as_deref()).unwrap_or(&pod.name)
}

fn list(gateways: &[ipnet::IpNet]) -> String {
    gateways.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// A bridge with the gateways' addresses and routes, in the place of podwire's answer for the node's whole range.
fn make_bridge(
    netlink: &mut Netlink,
    name: &str,
    subnet: &Subnet,
    present: Option<&Link>,
) -> Result<IfIndex, MoveError> {
    if present.is_none() {
        let first = subnet.gateways.first().map_or(IpAddr::from([0; 4]), ipnet::IpNet::addr);
        netlink.add_bridge(name, derive_vtep_mac(first), subnet.mtu)?;
    }
    let index = match present {
        Some(link) => link.index,
        None => netlink.link(name)?.map_or(IfIndex::NONE, |link| link.index),
    };
    // Nobody else has its addresses, and pods are asked for from its link-local one.
    sysctl::ensure(&format!("ipv6/conf/{name}/accept_dad"), "0")?;
    netlink.set_link(index, LinkSettings { up: Some(true), ..LinkSettings::default() })?;
    for route in netlink.routes(MAIN_TABLE, PROTOCOL)?.iter().filter(|route| route.kind == RouteKind::Unreachable) {
        netlink.delete_route(route.table, route.destination, PROTOCOL)?;
    }
    for gateway in &subnet.gateways {
        let address = Address { index, address: *gateway };
        // One that lost its route gets it back.
        unless_missing(netlink.delete_address(&address))?;
        netlink.add_address(&address)?;
    }
    Ok(index)
}

/// Until the kernel has seen its first port, a bridge has no link-local address to look for pods from.
fn wait_until_running(netlink: &mut Netlink, bridge: IfIndex) {
    let end = Instant::now() + CARRIER_WAIT;
    let mut is_running = || {
        let links = netlink.links().unwrap_or_default();
        links.iter().any(|link| link.index == bridge && link.running)
    };
    while !is_running() && Instant::now() < end {
        thread::sleep(CARRIER_POLL);
    }
}

/// The pod's device becomes a port of the bridge; the node still finds the pod by its own route.
fn enter_bridge(netlink: &mut Netlink, pod: &Pod, bridge: IfIndex) -> Result<(), NetlinkError> {
    netlink.set_master(pod.host_ifindex, Some(bridge))?;
    // As Flannel's configuration asks of the bridge plugin: a pod reaches itself by a service.
    netlink.set_hairpin(pod.host_ifindex)
}

/// Has the node find the pod behind the bridge, and gives its device the name and the MAC of any other port.
fn forget_way(kernel: &mut Kernel, seen: &Seen, pod: &Pod) -> Result<(), MoveError> {
    let netlink = &mut kernel.netlink;
    for object in plan::pod_objects(&[], pod) {
        apply(netlink, Action::Delete, &object)?;
    }
    let Some(link) = seen.link(pod.host_ifindex) else { return Ok(()) };
    let mac = derive_vtep_mac(pod.addresses.first().copied().unwrap_or(IpAddr::from([0; 4])));
    let [.., a, b, c, d] = mac.0;
    rename_device(netlink, link, &format!("veth{a:02x}{b:02x}{c:02x}{d:02x}"))?;
    Ok(netlink.set_link(link.index, LinkSettings { mac: Some(mac), ..LinkSettings::default() })?)
}
