//! Takes podwire away from a node: all of it, or the data plane alone.
//!
//! A daemon that runs is asked to hand over to the kernel path and to leave. Then the locks of daemons are taken, so
//! that none starts meanwhile, and what bears podwire's marks is removed. That takes no configuration: devices are known
//! by their alias or shape, routes, rules and neighbours by their protocol, settings by what the daemon wrote down. What
//! cannot be removed is reported and does not stop the rest; all of it can be repeated.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::api::{Reply, Request};
use super::client::{self, ClientError};
use super::dataplane;
use super::hub;
use super::kernel::{Kernel, KernelError, apply, delete_link, request};
use super::netlink::{Link, LinkKind, MAIN_TABLE, Place, name_of};
use super::netns::Netns;
use super::originals::{Originals, Restored};
use super::plan::{self, ALIAS, Change, NODES_TABLE, Object, PROTOCOL};
use super::ruleset;
use super::runtime::{Namespace, RuntimeDir, RuntimeError, pods_path};
use super::store::{Store, StoreError};
use super::underlay;
use crate::ids::IfIndex;

/// How long a daemon may take to leave once it has said so,
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// and how often to look.
const POLL: Duration = Duration::from_millis(10);

/// How much to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Programs and hub. The pods go on by the kernel path, and a later daemon takes them over.
    DataPlane,
    /// Everything.
    All {
        /// Although pods are attached, which lose their network.
        despite_pods: bool,
    },
}

/// What was removed.
#[derive(Debug, Default, Serialize)]
pub struct Uninstalled {
    /// A daemon ran and was stopped.
    pub stopped_daemon: bool,
    /// The pods that were attached.
    pub pods: Vec<String>,
    /// Whether they still are.
    pub pods_stay: bool,
    /// Each change of the node, for people.
    pub changes: Vec<String>,
    /// What stays as podwire made it, and why.
    pub left: Vec<String>,
    /// What could not be removed, and why.
    pub failures: Vec<String>,
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error("only root can remove devices and routes; run it as root")]
    NotRoot,
    #[error(
        "{} pod(s) are attached and would lose their network: {}; detach them, or leave them the kernel path with --keep-kernel, or say --yes",
        .0.len(), .0.join(", ")
    )]
    Attached(Vec<String>),
    #[error(
        "runtime directory {path} belongs to a podwire of another network namespace; run it there, or name the directory of this one with --runtime-dir",
        path = .0.display()
    )]
    OtherNamespace(PathBuf),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot tell which network namespace this is: {0}")]
    Netns(#[from] io::Error),
}

/// Removes podwire from the network namespace of the calling thread. `runtime_dir` is where its daemon keeps its state.
pub fn uninstall(runtime_dir: &Path, extent: Extent) -> Result<Uninstalled, UninstallError> {
    if !rustix::process::geteuid().is_root() {
        return Err(UninstallError::NotRoot);
    }
    let mut kernel = Kernel::new()?;
    expendable(&mut kernel, runtime_dir, extent)?;
    let stopped_daemon = ask_to_leave(runtime_dir)?;
    let patience = if stopped_daemon { PATIENCE } else { Duration::ZERO };
    let _namespace = within(patience, Namespace::claim)?;
    let was_used = RuntimeDir::was_used(runtime_dir);
    let dir = was_used.then(|| within(patience, || RuntimeDir::claim(runtime_dir))).transpose()?;
    if dir.as_ref().map_or(Ok(true), RuntimeDir::is_of_this_namespace)? {
        // Until the locks were taken, others could come.
        let pods = expendable(&mut kernel, runtime_dir, extent)?;
        let pods_stay = extent == Extent::DataPlane;
        let removal = Uninstalled { stopped_daemon, pods, pods_stay, ..Uninstalled::default() };
        let mut uninstaller = Uninstaller { kernel, removal };
        uninstaller.remove(extent, dir);
        if extent != Extent::DataPlane && !was_used {
            uninstaller.miss(runtime_dir);
        }
        Ok(uninstaller.removal)
    } else {
        Err(UninstallError::OtherNamespace(runtime_dir.to_owned()))
    }
}

/// The attached pods; an error if they would lose their network, and may not.
fn expendable(kernel: &mut Kernel, runtime_dir: &Path, extent: Extent) -> Result<Vec<String>, UninstallError> {
    let pods = attached(kernel, runtime_dir)?;
    if extent == (Extent::All { despite_pods: false }) && !pods.is_empty() {
        return Err(UninstallError::Attached(pods));
    }
    Ok(pods)
}

/// The names of the pods that have a device on the node; that of the device where nothing remembers the pod.
fn attached(kernel: &mut Kernel, runtime_dir: &Path) -> Result<Vec<String>, UninstallError> {
    let ends = kernel.host_ends().map_err(request("list devices"))?;
    let (store, _) = Store::open(&pods_path(runtime_dir))?;
    let name = |link: Link| match store.pods().iter().find(|pod| pod.host_ifname == link.name) {
        Some(pod) => pod.name.clone(),
        None => link.name,
    };
    Ok(ends.into_iter().map(name).collect())
}

/// Whether a daemon ran, which now ends.
pub(super) fn ask_to_leave(runtime_dir: &Path) -> Result<bool, UninstallError> {
    let netns = Netns::current()?.id()?;
    match client::call(runtime_dir, Request::Leave { netns }) {
        Ok(Reply::Leaving) => Ok(true),
        Ok(other) => Err(ClientError::Unexpected(Box::new(other)).into()),
        Err(ClientError::NoDaemon(..)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Claims what another podwire holds as soon as it is free.
pub(super) fn within<T>(patience: Duration, claim: impl Fn() -> Result<T, RuntimeError>) -> Result<T, RuntimeError> {
    let end = Instant::now() + patience;
    loop {
        match claim() {
            Err(RuntimeError::Busy(_) | RuntimeError::BusyNamespace(_)) if Instant::now() < end => thread::sleep(POLL),
            claimed => return claimed,
        }
    }
}

/// Detaches the data plane's programs, whichever process attached them, and deletes their pins; says whether there were
/// any.
pub(super) fn remove_programs(kernel: &mut Kernel) -> Result<bool, Box<dyn Error>> {
    let qdiscs = kernel.netlink.qdiscs()?.into_iter();
    let filtered: BTreeSet<_> =
        qdiscs.filter(|qdisc| qdisc.place == Place::Filters).map(|qdisc| qdisc.device).collect();
    let devices: Vec<IfIndex> = filtered.into_iter().collect();
    Ok(dataplane::remove(&devices)?)
}

struct Uninstaller {
    kernel: Kernel,
    removal: Uninstalled,
}

impl Uninstaller {
    /// From what carries packets last to what is needed first.
    fn remove(&mut self, extent: Extent, dir: Option<RuntimeDir>) {
        self.remove_data_plane();
        if extent != Extent::DataPlane {
            self.remove_rules();
            self.remove_routes();
            self.remove_devices();
            self.release_neighbours();
            if let Some(dir) = dir {
                self.restore_settings(&dir);
                self.remove_runtime_dir(dir);
            }
        }
    }

    /// Says that something of podwire was here, but no daemon has used `runtime_dir`.
    fn miss(&mut self, runtime_dir: &Path) {
        if !self.removal.changes.is_empty() {
            self.removal.failures.push(format!(
                "{} is not where the daemon kept its state; name that directory with --runtime-dir to remove it and to put the node's settings back",
                runtime_dir.display()
            ));
        }
    }

    fn remove_data_plane(&mut self) {
        let removed = remove_programs(&mut self.kernel);
        if self.ok(removed) == Some(true) {
            self.note(&"detach the programs and delete their pins");
        }
        let removed = self.kernel.remove_hub();
        if self.ok(removed) == Some(true) {
            self.note(&Change::DeleteDevice { name: hub::NEAR.to_owned() });
        }
    }

    fn remove_rules(&mut self) {
        if self.ok(ruleset::remove()) == Some(true) {
            self.note(&"delete the nftables rules");
        }
    }

    fn remove_routes(&mut self) {
        let netlink = &mut self.kernel.netlink;
        let routes = [MAIN_TABLE, NODES_TABLE].map(|table| netlink.routes(table, PROTOCOL));
        let rules = netlink.rules(PROTOCOL);
        let links = netlink.links();
        let links = self.ok(links).unwrap_or_default();
        let routes = routes.into_iter().filter_map(|routes| self.ok(routes)).flatten().map(Object::Route);
        let mut objects: Vec<Object> = routes.collect();
        objects.extend(self.ok(rules).into_iter().flatten().map(Object::Rule));
        for change in plan::plan(Vec::new(), objects, |index| name_of(&links, index)) {
            let done = apply(&mut self.kernel.netlink, change.action, &change.object);
            if self.ok(done.map_err(request(change.to_string()))).is_some() {
                self.note(&change);
            }
        }
    }

    /// The pods' devices and the VXLAN device, and with them all that lies on them.
    fn remove_devices(&mut self) {
        let ends = self.kernel.host_ends();
        let links = self.kernel.netlink.links();
        let is_tunnel =
            |link: &Link| link.alias == ALIAS && matches!(link.kind, LinkKind::Vxlan(_) | LinkKind::OtherVxlan);
        let tunnels = self.ok(links).into_iter().flatten().filter(is_tunnel);
        let devices: Vec<Link> = tunnels.chain(self.ok(ends).into_iter().flatten()).collect();
        for Link { index, name, .. } in devices {
            let deleted = delete_link(&mut self.kernel.netlink, index);
            if self.ok(deleted.map_err(request(format!("delete {name}")))).is_some() {
                self.note(&Change::DeleteDevice { name });
            }
        }
    }

    fn release_neighbours(&mut self) {
        let links = self.kernel.netlink.links();
        let links = self.ok(links).unwrap_or_default();
        let released = underlay::release(&mut self.kernel.netlink, |_, _| false).map_err(request("forget neighbours"));
        for (index, address) in self.ok(released).into_iter().flatten() {
            self.note(&format_args!("delete neighbour {address} dev {}", name_of(&links, index)));
        }
    }

    fn restore_settings(&mut self, dir: &RuntimeDir) {
        let originals = Originals::open(&dir.sysctls());
        let Some(originals) = self.ok(originals) else { return };
        let may_stop_routing = self.has_one_network();
        for restored in originals.restore(may_stop_routing) {
            match self.ok(restored) {
                Some(Restored::Changed(changed)) => self.note(&changed),
                Some(Restored::Left { key, value }) => self.removal.left.push(format!(
                    "net/{key} stays {value}, which others than podwire may need to forward between the other devices"
                )),
                None => {}
            }
        }
    }

    /// Whether there is nothing to forward between, by the addresses of devices. Who relies on forwarding that is on
    /// already, as Docker does, does not turn it on.
    fn has_one_network(&mut self) -> bool {
        let addresses = self.kernel.netlink.addresses(None);
        let Some(addresses) = self.ok(addresses) else { return false };
        let routed = addresses.iter().filter(|own| !own.address.addr().is_loopback());
        routed.map(|own| own.index).collect::<BTreeSet<_>>().len() <= 1
    }

    fn remove_runtime_dir(&mut self, dir: RuntimeDir) {
        let path = dir.path().display().to_string();
        match dir.remove() {
            Ok(true) => self.note(&format_args!("delete directory {path}")),
            Ok(false) => self.note(&format_args!("delete podwire's files in {path}, which holds others")),
            Err(error) => self.removal.failures.push(format!("cannot delete directory {path}: {error}")),
        }
    }

    fn note(&mut self, change: &dyn Display) {
        self.removal.changes.push(change.to_string());
    }

    /// The value; an error is kept as a failure.
    fn ok<T, E: Display>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.removal.failures.push(error.to_string())).ok()
    }
}
