//! The kernel path: everything the kernel needs to carry the pods' packets alone. Its parts are in
//! `forwarding`, `tunnel`, `hosting` and `wiring` (pods) and `underlay`; here they come together.
//!
//! ```text
//!   pod eth0 ── pwN ──▶ routes ──▶ VXLAN device ──▶ neighbour, FDB ──▶ uplink
//! ```
//!
//! Pods reach the other nodes' own addresses through the overlay too, by a rule and a table of ours.
//!
//! Laid out as Flannel does: per peer and family a route to the peer's range through its first
//! address, a permanent neighbour for that address with the peer's VTEP MAC, and one forwarding
//! entry from that MAC to the peer's VTEP; or, to a peer on the uplink's link if the tunnel is not wanted there, a route
//! by its underlay address. A dual-stack node of Flannel's has two VTEPs, an IPv4 one and an IPv6 one, with a device each:
//! what is IPv6 goes by the second tunnel to peers that have one too.
//!
//! [`Kernel::reconcile`] lists, compares and changes only what differs; it can be called at any time and as often as one
//! likes.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{Link, MAIN_TABLE, Netlink, NetlinkError, Request, Route, name_of, unless_missing};
use super::originals::Originals;
use super::plan::{self, Action, Change, NODES_TABLE, Object, ObjectChange, PROTOCOL, Tunnels};
use super::shaping::Shaped;
use super::sysctl::{self, SysctlError};
use super::underlay::{self, Hop, NoHop};
use super::vtep::{MTU_MIN, Uplink, Vtep};
use super::wiring::{Pod, is_of_stranger};
use crate::config::Config;
use crate::ids::{IfIndex, PodId};
use crate::xsk::Queues;

/// What [`Kernel::reconcile`] found and did.
#[derive(Debug)]
pub struct Reconciled {
    pub vtep: Vtep,
    /// None if they could not be had.
    pub tunnels: Option<Tunnels>,
    pub done: Done,
}

/// What was done to the node.
#[derive(Debug, Default)]
pub struct Done {
    /// What was changed, each printable for the log. Empty when all was in place.
    pub changes: Vec<Change>,
    /// What could not be changed, and why; the rest was.
    pub failures: Vec<String>,
    /// Pods whose host end is not there any more.
    pub gone: BTreeSet<PodId>,
}

impl Done {
    /// Gives a setting its value, which is a change, or a failure.
    pub(super) fn ensure_sysctl(&mut self, key: &str, value: &str) {
        match sysctl::ensure(key, value) {
            Ok(changed) => self.changes.extend(changed.map(Change::Sysctl)),
            Err(error) => self.failures.push(error.to_string()),
        }
    }

    fn note(&mut self, change: ObjectChange, result: Result<(), NetlinkError>) {
        match result {
            Ok(()) => self.changes.push(Change::Object(change)),
            Err(error) => self.failures.push(format!("cannot {change}: {error}")),
        }
    }
}

/// Why the kernel path cannot be set up at all.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("there is no device {0}; set node.uplink to the device that reaches the other nodes")]
    NoUplink(String),
    #[error("{0} is not an Ethernet device; VXLAN frames of the data plane need one")]
    NotEthernet(String),
    #[error("cannot ask how many queues {0} has: {1}")]
    Queues(String, #[source] std::io::Error),
    #[error("{0} has no usable address of the peers' family; give it one or set node.underlay")]
    NoAddress(String),
    #[error("{0} has no usable IPv6 address for a second VTEP, which peers have; give it one or set node.underlay6")]
    NoSecondAddress(String),
    #[error("{key} {underlay} is not an address of this node; give it to a device or set another one")]
    ForeignUnderlay { key: &'static str, underlay: IpAddr },
    #[error(
        "our own address {underlay} lies inside the pod range {range}; tunnels cannot end there: set node.underlay or node.underlay6, or other pod ranges"
    )]
    UnderlayOfPods { underlay: IpAddr, range: IpNet },
    #[error("our own VTEP {what} is that of peer {peer} too; set it right in one of the files")]
    SameAsPeer { what: String, peer: String },
    #[error("the MTU {mtu} of {uplink} leaves pods less than {MTU_MIN} bytes")]
    SmallMtu { uplink: String, mtu: u32 },
    #[error("{0} exists and is not podwire's VXLAN device (alias podwire); remove it or choose another vxlan.device")]
    ForeignDevice(String),
    #[error("{0} exists and is not one end of podwire's hub (a veth with the alias podwire); remove or rename it")]
    ForeignHub(String),
    #[error("cannot have the kernel complete the checksums of {device}: {source}")]
    Checksums { device: String, source: std::io::Error },
    #[error("{0} was removed while it was being set up")]
    Vanished(String),
    #[error("cannot {what}: {source}")]
    Request { what: String, source: NetlinkError },
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

impl KernelError {
    /// Whether the kernel's tables changed too fast to be read: what was seen before is as true as it was.
    pub fn says_nothing(&self) -> bool {
        matches!(self, Self::Request { source: NetlinkError::Restless, .. })
    }
}

/// The kernel of one network namespace.
#[derive(Debug)]
pub struct Kernel {
    pub(super) netlink: Netlink,
    originals: Option<Originals>,
    pub(super) known: Known,
    last_seen: Option<Seen>,
}

/// What can change without a notification, and what comes with it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// With some of their sysctls.
    links: Vec<Link>,
    uplink_queues: Option<Queues>,
    uplink_is_strict: Option<bool>,
    /// Programs come without a notification.
    shaped: Option<Shaped>,
}

/// What was seen to be ours. It stays ours when someone takes its mark off, or puts something else in its place.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The VXLAN devices.
    pub tunnel: Option<IfIndex>,
    pub second_tunnel: Option<IfIndex>,
    /// Both ends of the hub.
    pub hub: BTreeSet<IfIndex>,
    /// By table and destination.
    routes: HashSet<(u8, IpNet)>,
}

impl Kernel {
    /// For the network namespace of the calling thread, which must make all later calls too:
    /// sysctls are those of the caller's namespace.
    pub fn new() -> Result<Self, KernelError> {
        let netlink = Netlink::open().map_err(request("open a netlink socket"))?;
        Ok(Self { netlink, originals: None, known: Known::default(), last_seen: None })
    }

    /// Remembers from now on what settings of the whole node were before they were changed.
    pub fn remember(&mut self, originals: Originals) {
        self.originals = Some(originals);
    }

    /// Gives a setting of the whole node its value, which is a change, or a failure.
    pub(super) fn ensure_node_sysctl(&mut self, key: &str, value: &str, done: &mut Done) {
        if let Some(Err(error)) = self.originals.as_mut().map(|originals| originals.note(key, value)) {
            done.failures.push(error.to_string());
        }
        done.ensure_sysctl(key, value);
    }

    /// Brings sysctls, VXLAN device, addresses, routes, neighbours, forwarding entries and the
    /// host side of `pods` to what is desired. What fails is reported and does not stop the rest; an error says that
    /// our end of the tunnel is not known, and nothing was done.
    pub fn reconcile(&mut self, config: &Config, pods: &[Pod]) -> Result<Reconciled, KernelError> {
        let mut vtep = self.vtep(config)?;
        let mut done = Done::default();
        let tunnels = self.ensure_path(config, &mut vtep, pods, &mut done);
        let tunnels = tunnels.map_err(|error| done.failures.push(error.to_string())).ok();
        Ok(Reconciled { vtep, tunnels, done })
    }

    fn ensure_path(
        &mut self,
        config: &Config,
        vtep: &mut Vtep,
        pods: &[Pod],
        done: &mut Done,
    ) -> Result<Tunnels, KernelError> {
        if let Err(error) = self.ensure_forwarding(config, done) {
            done.failures.push(error.to_string());
        }
        let links = self.links()?;
        let tunnels = self.ensure_tunnels(config, vtep, &links, done);
        let present = self.ensure_pods(pods, &links, Some(u32::from(vtep.mtu)), done);
        let tunnels = match tunnels {
            Ok(tunnels) => tunnels,
            // Pods of the node need no tunnel to talk.
            Err(error) => {
                self.ensure_pod_objects(config, &present, &links, done)?;
                return Err(error);
            }
        };
        let mut observed = self.observe(tunnels, &present).map_err(request("list routes and neighbours"))?;
        // What a forgotten pod has keeps it going until its device is removed.
        let strangers: HashSet<IfIndex> =
            links.iter().filter(|link| is_of_stranger(link, pods)).map(|link| link.index).collect();
        observed.retain(|object| object.device().is_none_or(|device| !strangers.contains(&device)));
        self.apply_plan(
            &plan::plan(plan::desired(config, vtep, tunnels, &present), observed, |index| {
                // It may have been made after the devices were listed.
                tunnels.name(config, index).unwrap_or_else(|| name_of(&links, index))
            }),
            done,
        );
        Ok(tunnels)
    }

    /// Makes the changes of a plan, many at a time. A change that fails is reported and does not stop the others.
    pub(super) fn apply_plan(&mut self, changes: &[ObjectChange], done: &mut Done) {
        for run in changes.chunk_by(|one, next| goes_alone(&one.object) == goes_alone(&next.object)) {
            let requests = run.iter().filter_map(|change| request_of(change.action, &change.object));
            let results = self.netlink.change_all(requests.collect());
            let mut results = results.unwrap_or_default().into_iter();
            for change in run {
                self.settle(change.clone(), results.next(), done);
            }
        }
    }

    /// Notes what became of a change, after the detours that a refused one may take; makes it if nobody has.
    fn settle(&mut self, mut change: ObjectChange, result: Option<Result<(), NetlinkError>>, done: &mut Done) {
        let is_made = result.and_then(Result::ok);
        let mut result = is_made.map_or_else(|| apply(&mut self.netlink, change.action, &change.object), Ok);
        let Object::Route(Route { table, destination, .. }) = change.object else {
            return done.note(change, result);
        };
        // Ours was there: someone has put another one in its place.
        if is_taken(&result) && change.action == Action::Add && self.known.routes.contains(&(table, destination)) {
            change.action = Action::Replace;
            result = apply(&mut self.netlink, change.action, &change.object);
        }
        match (&result, change.action) {
            (Ok(()), Action::Delete) => self.known.routes.remove(&(table, destination)),
            (Ok(()), _) => self.known.routes.insert((table, destination)),
            (Err(_), _) => false,
        };
        done.note(change, result);
    }

    /// Whether devices have changed since the last call. Cheap: for what the kernel tells nobody of.
    pub fn has_drifted(&mut self, config: &Config, pods: &[Pod]) -> Result<bool, KernelError> {
        let uplink = &config.node.uplink;
        let seen = Seen {
            links: self.links()?,
            uplink_queues: Queues::of(uplink).ok(),
            uplink_is_strict: sysctl::has_strict_rp_filter(uplink).ok(),
            shaped: self.shaped(pods).ok(),
        };
        let drifted = self.last_seen.as_ref().is_some_and(|last| *last != seen);
        self.last_seen = Some(seen);
        Ok(drifted)
    }

    /// The underlay next hop of each of `peers`, in order. Those not resolved are asked for; a
    /// notification follows when the answer is there.
    pub fn next_hops(&mut self, uplink: &Uplink, peers: &[IpAddr]) -> Result<Vec<Result<Hop, NoHop>>, KernelError> {
        underlay::resolve(&mut self.netlink, uplink, peers).map_err(request("resolve the peers"))
    }

    pub(super) fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        self.netlink.links().map_err(request("list devices"))
    }

    pub(super) fn link(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        self.netlink.link(name).map_err(request(format!("look for {name}")))
    }

    /// What is ours now.
    fn observe(&mut self, tunnels: Tunnels, pods: &[Pod]) -> Result<Vec<Object>, NetlinkError> {
        let ours: HashSet<IfIndex> = pods.iter().map(|pod| pod.host_ifindex).chain(tunnels.devices()).collect();
        let mut objects = Vec::new();
        for device in tunnels.devices() {
            objects.extend(self.netlink.addresses(Some(device))?.into_iter().map(Object::Address));
            objects.extend(self.netlink.fdb(device)?.into_iter().map(Object::Fdb));
        }
        let neighbours = self.netlink.permanent_neighbours()?.into_iter();
        objects.extend(neighbours.filter(|neighbour| ours.contains(&neighbour.index)).map(Object::Neighbour));
        for table in [MAIN_TABLE, NODES_TABLE] {
            let routes = self.netlink.routes(table, PROTOCOL)?;
            self.known.routes.extend(routes.iter().map(|route| (table, route.destination)));
            objects.extend(routes.into_iter().map(Object::Route));
        }
        objects.extend(self.netlink.rules(PROTOCOL)?.into_iter().map(Object::Rule));
        Ok(objects)
    }
}

/// Whether changes of an object are made one at a time; there are few of its kind.
fn goes_alone(object: &Object) -> bool {
    matches!(object, Object::Address(_) | Object::Rule(_))
}

/// The change as a request of the kind that many are made at a time of; none of an object that goes alone.
fn request_of(action: Action, object: &Object) -> Option<Request> {
    Some(match (action, object) {
        (_, Object::Address(_) | Object::Rule(_)) => return None,
        (Action::Delete, Object::Neighbour(neighbour)) => Request::delete_neighbour(neighbour.index, neighbour.address),
        (Action::Delete, Object::Fdb(entry)) => Request::delete_fdb(entry),
        (Action::Delete, Object::Route(route)) => Request::delete_route(route.table, route.destination, PROTOCOL),
        (_, Object::Neighbour(neighbour)) => Request::set_neighbour(neighbour),
        (_, Object::Fdb(entry)) => Request::set_fdb(entry),
        (Action::Add, Object::Route(route)) => Request::add_route(route, PROTOCOL),
        (Action::Replace, Object::Route(route)) => Request::replace_route(route, PROTOCOL),
    })
}

/// Whether a route was refused because there may be another in its place (see [`Netlink::replace_route`]).
fn is_taken(result: &Result<(), NetlinkError>) -> bool {
    result.as_ref().is_err_and(|error| matches!(error.errno(), Some(libc::EEXIST | libc::EINVAL)))
}

/// Makes one change. Deleting what is gone is success.
pub(super) fn apply(netlink: &mut Netlink, action: Action, object: &Object) -> Result<(), NetlinkError> {
    let result = match (action, object) {
        (Action::Delete, Object::Address(address)) => netlink.delete_address(address),
        (Action::Delete, Object::Rule(rule)) => netlink.delete_rule(rule, PROTOCOL),
        (_, Object::Address(address)) => netlink.add_address(address),
        (_, Object::Rule(rule)) => netlink.add_rule(rule, PROTOCOL),
        // Some that the kernel refuses take a detour.
        (Action::Replace, Object::Route(route)) => netlink.replace_route(route, PROTOCOL),
        _ => request_of(action, object).map_or(Ok(()), |request| netlink.make(request)),
    };
    if action == Action::Delete { unless_missing(result) } else { result }
}

/// Removes a device; it may be gone already.
pub(super) fn delete_link(netlink: &mut Netlink, index: IfIndex) -> Result<(), NetlinkError> {
    unless_missing(netlink.delete_link(index))
}

/// Names what was asked of the kernel when it refuses.
pub(super) fn request(what: impl Into<String>) -> impl FnOnce(NetlinkError) -> KernelError {
    let what = what.into();
    move |source| KernelError::Request { what, source }
}
