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
//! what is IPv6 goes by the second tunnel to peers that have one too. [`Kernel::reconcile`] lists, compares and changes only
//! what differs; it can be called at any time and as often as one likes.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::{Link, MAIN_TABLE, Netlink, NetlinkError, Request, Route, name_of, unless_missing};
use super::originals::Originals;
use super::plan::{self, Action, Change, NODES_TABLE, Object, ObjectChange, PROTOCOL, Tunnels};
use super::shaping::Shaped;
use super::sysctl::{self, SysctlError};
use super::underlay::{self, Hop, NoHop};
use super::wiring::{Pod, is_of_stranger};
use crate::config::{Config, Peer, derive_vtep_mac};
use crate::ids::{IfIndex, PodId};
use crate::wire::{Mac, TunnelEnd};
use crate::xsk::Queues;

/// The largest MTU of an Ethernet device (`include/uapi/linux/if_ether.h`).
pub(super) const ETH_MAX_MTU: u32 = 65_535;

/// Outer Ethernet is not counted: inner Ethernet 14, VXLAN 8, UDP 8, and IPv4 20 or IPv6 40.
pub const OVERHEAD_V4: u32 = 50;
pub const OVERHEAD_V6: u32 = 70;

/// The least MTU of a link that carries IPv6 (RFC 8200 section 5), asked of IPv4 too: below it
/// something is wrong.
const MTU_MIN: u32 = 1280;

/// The device that carries the outer frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub index: IfIndex,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Global addresses only.
    pub addresses: Vec<IpAddr>,
    pub up: bool,
    pub queues: Queues,
}

/// Our end of the tunnel, as the configuration and the uplink settle it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    pub uplink: Uplink,
    /// The outer source address.
    pub underlay: IpAddr,
    pub mac: Mac,
    /// Our end of the IPv6 tunnel beside the IPv4 one.
    pub second: Option<TunnelEnd>,
    /// Why there is none although one is wanted.
    pub no_second: Option<String>,
    /// The MTU of the VXLAN devices and of pods, in bytes of an inner IP packet.
    pub mtu: u16,
    /// The addresses of the VXLAN devices: the first of each of the node's pod ranges.
    pub addresses: Vec<IpAddr>,
    /// The ends of peers' tunnels, by underlay address, that are reached without the tunnel.
    pub direct: BTreeSet<IpAddr>,
}

/// What [`Kernel::reconcile`] found and did.
#[derive(Debug)]
pub struct Reconciled {
    pub vtep: Vtep,
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

impl Vtep {
    /// The VXLAN device's address of the family of `address`: where packets of the node itself to
    /// `address` come from.
    pub fn source_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|source| source.is_ipv6() == address.is_ipv6())
    }

    /// The ends of our tunnels, the first one first.
    pub fn ends(&self) -> impl Iterator<Item = TunnelEnd> {
        std::iter::once(TunnelEnd { underlay: self.underlay, mac: self.mac }).chain(self.second)
    }

    /// The peer's end of the tunnel by which packets for its `prefix` go: the second one takes what is IPv6 if both nodes
    /// have one, the first one all else.
    pub fn end_for(&self, peer: &Peer, prefix: &IpNet) -> TunnelEnd {
        let first = TunnelEnd { underlay: peer.underlay, mac: peer.vtep_mac };
        let second = self.second.and(peer.second).filter(|_| prefix.addr().is_ipv6());
        second.unwrap_or(first)
    }

    /// The underlay addresses of the peers' ends of tunnels that we have an end of too.
    pub fn ends_used(&self, peers: &[Peer]) -> Vec<IpAddr> {
        let tunnels = 1 + usize::from(self.second.is_some());
        peers.iter().flat_map(|peer| peer.ends().take(tunnels)).map(|end| end.underlay).collect()
    }

    /// Whether packets for a peer's `prefix` do without the tunnel: its underlay address is then their gateway, which
    /// must be of their family.
    pub fn is_direct(&self, peer: &Peer, prefix: &IpNet) -> bool {
        let TunnelEnd { underlay, .. } = self.end_for(peer, prefix);
        prefix.addr().is_ipv6() == underlay.is_ipv6() && self.direct.contains(&underlay)
    }

    /// The addresses of the first VXLAN device, or of the second.
    pub fn addresses_on(&self, is_second: bool) -> impl Iterator<Item = IpAddr> {
        let has_two = self.second.is_some();
        self.addresses.iter().copied().filter(move |address| (has_two && address.is_ipv6()) == is_second)
    }
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
    #[error(
        "the underlay {0} is not an address of this node; give it to a device or set another one (node.underlay, node.underlay6)"
    )]
    ForeignUnderlay(IpAddr),
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

    /// Our end of the tunnel as it should be now. Changes nothing.
    pub fn vtep(&mut self, config: &Config) -> Result<Vtep, KernelError> {
        let uplink = self.uplink(&config.node.uplink)?;
        let wanted = |address: &&IpAddr| config.underlay_is_ipv6().is_none_or(|ipv6| address.is_ipv6() == ipv6);
        let underlay = config.node.underlay.or_else(|| uplink.addresses.iter().find(wanted).copied());
        let underlay = underlay.ok_or_else(|| KernelError::NoAddress(uplink.name.clone()))?;
        self.check_underlay(config, underlay)?;
        let mac = config.node.vtep_mac.unwrap_or_else(|| derive_vtep_mac(underlay));
        let peers = config.peers.iter().map(|peer| (peer, TunnelEnd { underlay: peer.underlay, mac: peer.vtep_mac }));
        check_peers(TunnelEnd { underlay, mac }, peers)?;
        let (second, no_second) = match self.second(config, &uplink) {
            Ok(second) => (second, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let overhead = if underlay.is_ipv6() || second.is_some() { OVERHEAD_V6 } else { OVERHEAD_V4 };
        let most = config.vxlan.underlay_mtu.unwrap_or(ETH_MAX_MTU).min(ETH_MAX_MTU);
        let mtu = uplink.mtu.min(most).saturating_sub(overhead);
        let mtu = u16::try_from(mtu).ok().filter(|mtu| u32::from(*mtu) >= MTU_MIN);
        let mtu = mtu.ok_or_else(|| KernelError::SmallMtu { uplink: uplink.name.clone(), mtu: uplink.mtu })?;
        let addresses = config.node.pod_cidrs.iter().map(IpNet::network).collect();
        let direct = self.direct(config, &uplink)?;
        Ok(Vtep { uplink, underlay, mac, second, no_second, mtu, addresses, direct })
    }

    /// Our end of the second tunnel, if one is wanted. In a cluster of Kubernetes' it is wanted wherever it can be.
    fn second(&mut self, config: &Config, uplink: &Uplink) -> Result<Option<TunnelEnd>, KernelError> {
        if !config.wants_second() {
            return Ok(None);
        }
        let own = || uplink.addresses.iter().copied().find(IpAddr::is_ipv6);
        let Some(underlay) = config.node.underlay6.or_else(own) else {
            let missing = || KernelError::NoSecondAddress(uplink.name.clone());
            return if config.kubernetes.is_some() { Ok(None) } else { Err(missing()) };
        };
        self.check_underlay(config, underlay)?;
        let mac = config.node.vtep_mac6.unwrap_or_else(|| derive_vtep_mac(underlay));
        let end = TunnelEnd { underlay, mac };
        check_peers(end, config.peers.iter().filter_map(|peer| Some((peer, peer.second?))))?;
        Ok(Some(end))
    }

    /// The peers' ends of tunnels that are to be reached without one, by underlay address.
    fn direct(&mut self, config: &Config, uplink: &Uplink) -> Result<BTreeSet<IpAddr>, KernelError> {
        let peers = config.peers.iter().filter(|_| config.vxlan.direct_routing);
        let underlays = peers.flat_map(Peer::ends).map(|end| end.underlay);
        underlay::on_link(&mut self.netlink, uplink, underlays).map_err(request("look up the ways to the peers"))
    }

    /// Brings sysctls, VXLAN device, addresses, routes, neighbours, forwarding entries and the
    /// host side of `pods` to what is desired. What fails is reported and does not stop the rest; an error says that
    /// our end of the tunnel is not known, and nothing was done.
    pub fn reconcile(&mut self, config: &Config, pods: &[Pod]) -> Result<Reconciled, KernelError> {
        let mut vtep = self.vtep(config)?;
        let mut done = Done::default();
        if let Err(error) = self.ensure_path(config, &mut vtep, pods, &mut done) {
            done.failures.push(error.to_string());
        }
        Ok(Reconciled { vtep, done })
    }

    fn ensure_path(
        &mut self,
        config: &Config,
        vtep: &mut Vtep,
        pods: &[Pod],
        done: &mut Done,
    ) -> Result<(), KernelError> {
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
        Ok(())
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

    /// What the file alone does not show of the outer source address.
    fn check_underlay(&mut self, config: &Config, underlay: IpAddr) -> Result<(), KernelError> {
        let addresses = self.netlink.addresses(None).map_err(request("list addresses"))?;
        if !addresses.iter().any(|local| local.address.addr() == underlay) {
            return Err(KernelError::ForeignUnderlay(underlay));
        }
        match config.pod_ranges().find(|range| range.contains(&underlay)) {
            Some(range) => Err(KernelError::UnderlayOfPods { underlay, range }),
            None => Ok(()),
        }
    }

    fn uplink(&mut self, name: &str) -> Result<Uplink, KernelError> {
        let link = self.link(name)?;
        let link = link.ok_or_else(|| KernelError::NoUplink(name.to_owned()))?;
        let addresses = self.netlink.addresses(Some(link.index)).map_err(request("list addresses"))?;
        Ok(Uplink {
            index: link.index,
            mac: link.mac.filter(|mac| mac.is_unicast()).ok_or_else(|| KernelError::NotEthernet(name.to_owned()))?,
            name: link.name,
            mtu: link.mtu,
            addresses: addresses.into_iter().map(|address| address.address.addr()).collect(),
            up: link.up,
            queues: Queues::of(name).map_err(|source| KernelError::Queues(name.to_owned(), source))?,
        })
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

/// Fails if the end of one of our tunnels is also that of a peer's.
fn check_peers<'p>(own: TunnelEnd, peers: impl Iterator<Item = (&'p Peer, TunnelEnd)>) -> Result<(), KernelError> {
    for (peer, end) in peers {
        let same = |what: String| KernelError::SameAsPeer { what, peer: peer.name.clone() };
        if end.underlay == own.underlay {
            return Err(same(format!("address {}", own.underlay)));
        }
        if end.mac == own.mac {
            return Err(same(format!("MAC {}", own.mac)));
        }
    }
    Ok(())
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
