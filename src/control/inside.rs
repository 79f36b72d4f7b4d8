//! A pod's own end: what attach put there, how it is checked, and how it is put right.
//!
//! A pod may have the right to change its own network (`NET_ADMIN`), and often uses it: for a mesh's proxy, for a
//! tunnel. So what a pod adds is left alone, and so is a route that it put in the place of its default route, which is
//! only reported. Put right is what the node has promised to others and nothing in the pod replaces: the addresses,
//! the MAC, the MTU, the gateways' neighbours, a default route where there is none, and that the device is up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::kernel::apply;
use super::netlink::{Address, Link, LinkSettings, MAIN_TABLE, Neighbour, Netlink, Route, RouteKind, Rule};
use super::netns::{self, Netns};
use super::plan::{self, Action, Change, Object, ObjectChange, PROTOCOL};
use super::sysctl;
use super::vtep::Vtep;
use super::wiring::{GATEWAY_V4, GATEWAY_V6, Pod, WiringError, enterable};
use crate::ids::IfIndex;
use crate::wire::Mac;

/// How long a new address may take to work, which is a matter of a millisecond on an idle machine,
const LOCAL_WAIT: Duration = Duration::from_secs(2);
/// and how often to look.
const LOCAL_POLL: Duration = Duration::from_micros(200);

/// The routing tables, in the pod, of all but one of its interfaces,
const FURTHER_TABLES: RangeInclusive<u8> = 100..=199;
/// and the rules that lead there, before the main table's.
const FURTHER_PRIORITY: u32 = 240;

/// What [`Pod::mend`] did in a pod.
#[derive(Debug, Default)]
pub struct Mended {
    /// What was changed, each printable for the log. Empty when all was in place.
    pub changes: Vec<Change>,
    /// What could not be changed, and why; the rest was.
    pub failures: Vec<WiringError>,
}

impl Pod {
    /// Whether the pod's own end is as attach left it. Changes nothing. The node's side is cheaper
    /// to see for all pods at once: [`super::kernel::Kernel::reconcile`].
    pub fn verify_inside(&self, vtep: &Vtep) -> Result<(), WiringError> {
        let netns = enterable(&self.name, &self.netns)?;
        self.within(&netns, || verify(self, u32::from(vtep.mtu)))
    }

    /// Puts the pod's own end right, as far as it is the node's to do. Without an MTU it keeps its own.
    pub fn mend(&self, mtu: Option<u32>) -> Result<Mended, WiringError> {
        let netns = enterable(&self.name, &self.netns)?;
        self.mend_in(&netns, mtu)
    }

    /// The same, for a namespace that is open already.
    pub(super) fn mend_in(&self, netns: &Netns, mtu: Option<u32>) -> Result<Mended, WiringError> {
        self.within(netns, || mend(self, mtu))
    }

    /// Runs `work` in the pod's namespace.
    fn within<T: Send>(
        &self,
        netns: &Netns,
        work: impl FnOnce() -> Result<T, WiringError> + Send,
    ) -> Result<T, WiringError> {
        let error = |source| WiringError::Netns { pod: self.name.clone(), path: self.netns.clone(), source };
        netns.within(|| self.check_home().and_then(|()| work())).map_err(error)?
    }

    /// Whether the calling thread's network namespace may be the one that the pod was attached in.
    fn check_home(&self) -> Result<(), WiringError> {
        match (self.netns_cookie, netns::cookie()) {
            (Some(own), Ok(here)) if own != here => {
                Err(self.broken(format!("another network namespace is at {} now", self.netns.display())))
            }
            _ => Ok(()),
        }
    }
}

impl Mended {
    fn note(&mut self, pod: &Pod, result: Result<Option<Change>, WiringError>) {
        match result {
            Ok(Some(change)) => self.changes.push(Change::InPod { pod: pod.name.clone(), change: Box::new(change) }),
            Ok(None) => {}
            Err(error) => self.failures.push(error),
        }
    }
}

/// Runs in the pod's namespace.
fn mend(pod: &Pod, mtu: Option<u32>) -> Result<Mended, WiringError> {
    let mut netlink = open(pod)?;
    let mut mended = Mended::default();
    let link = end(&mut netlink, pod)?;
    for (key, value) in sysctls(pod) {
        mended.note(pod, sysctl::ensure(&key, value).map(|changed| changed.map(Change::Sysctl)).map_err(pod.sysctl()));
    }
    let settings = LinkSettings {
        up: (!link.up).then_some(true),
        mtu: mtu.filter(|mtu| link.mtu != *mtu),
        mac: (link.mac != Some(pod.mac)).then_some(pod.mac),
        alias: None,
    };
    if settings != LinkSettings::default() {
        let change = Change::SetDevice { name: pod.ifname.clone(), settings };
        let what = format!("{change} inside");
        mended.note(pod, netlink.set_link(link.index, settings).map(|()| Some(change)).map_err(pod.request(what)));
    }
    // Setting it up has brought some objects back and taken none.
    let missing = missing(&mut netlink, pod, link.index)?;
    let has_news = !missing.is_empty();
    for change in missing {
        let what = format!("{change} inside");
        let result = apply(&mut netlink, change.action, &change.object);
        mended.note(pod, result.map(|()| Some(Change::Object(change))).map_err(pod.request(what)));
    }
    if has_news && let Err(error) = wait_until_local(&mut netlink, pod) {
        mended.failures.push(error);
    }
    Ok(mended)
}

/// Waits until the pod takes packets to its addresses. The kernel makes the local route of an IPv6 address on a work
/// queue, after it has acknowledged the address (`addrconf_dad_start` in `net/ipv6/addrconf.c`).
fn wait_until_local(netlink: &mut Netlink, pod: &Pod) -> Result<(), WiringError> {
    let start = Instant::now();
    for address in &pod.addresses {
        let what = || format!("look up {address} inside");
        while !netlink.is_local(*address).map_err(|error| pod.request(what())(error))? {
            if start.elapsed() > LOCAL_WAIT {
                return Err(pod.broken(format!("it does not take packets to {address}")));
            }
            thread::sleep(LOCAL_POLL);
        }
    }
    Ok(())
}

/// Runs in the pod's namespace.
fn verify(pod: &Pod, mtu: u32) -> Result<(), WiringError> {
    let mut netlink = open(pod)?;
    let link = end(&mut netlink, pod)?;
    check_link(pod, &link, pod.mac, mtu)?;
    match missing(&mut netlink, pod, link.index)?.first() {
        Some(ObjectChange { object, .. }) => Err(pod.broken(format!("it lacks {object} dev {}", pod.ifname))),
        None => Ok(()),
    }
}

/// What a device is not as it should be.
pub(super) fn check_link(pod: &Pod, link: &Link, mac: Mac, mtu: u32) -> Result<(), WiringError> {
    let fault = if !link.up {
        "is down".to_owned()
    } else if link.mac != Some(mac) {
        format!("has not the MAC {mac}")
    } else if link.mtu != mtu {
        format!("has the MTU {} instead of {mtu}", link.mtu)
    } else {
        return Ok(());
    };
    Err(pod.broken(format!("{} {fault}", link.name)))
}

fn open(pod: &Pod) -> Result<Netlink, WiringError> {
    Netlink::open().map_err(pod.request("open a netlink socket".to_owned()))
}

fn end(netlink: &mut Netlink, pod: &Pod) -> Result<Link, WiringError> {
    let link = netlink.link(&pod.ifname).map_err(pod.request(format!("look for {}", pod.ifname)))?;
    link.ok_or_else(|| pod.broken(format!("there is no {} in its network namespace", pod.ifname)))
}

/// No address but those we give it, and those at once.
fn sysctls(pod: &Pod) -> Vec<(String, &'static str)> {
    let key = |name: &str| format!("ipv6/conf/{}/{name}", pod.ifname);
    let ipv6 = pod.has_ipv6().then(|| (key("disable_ipv6"), "0"));
    ipv6.into_iter().chain([(key("accept_ra"), "0"), (key("accept_dad"), "0")]).collect()
}

/// What is to be added or replaced. What else is there is the pod's own affair.
fn missing(netlink: &mut Netlink, pod: &Pod, index: IfIndex) -> Result<Vec<ObjectChange>, WiringError> {
    let read = |source| pod.request(format!("list what {} has", pod.ifname))(source);
    let mut observed: Vec<Object> =
        netlink.addresses(Some(index)).map_err(read)?.into_iter().map(Object::Address).collect();
    let mut routes = netlink.routes(MAIN_TABLE, PROTOCOL).map_err(read)?;
    let mut desired = objects(pod, index);
    if routes.iter().any(|route| is_default_elsewhere(route, index)) {
        let rules = netlink.rules(PROTOCOL).map_err(read)?;
        let table = own_table(pod, &rules).ok_or_else(|| pod.broken("it has no routing table to spare".to_owned()))?;
        route_apart(&mut desired, pod, table);
        routes = netlink.routes(table, PROTOCOL).map_err(read)?;
        observed.extend(rules.into_iter().map(Object::Rule));
    }
    // Not by a list, which the pod can make as long as it likes.
    for object in &desired {
        if let Object::Neighbour(Neighbour { index, address, .. }) = object {
            observed.extend(netlink.permanent_neighbour(*index, *address).map_err(read)?.map(Object::Neighbour));
        }
    }
    observed.extend(routes.into_iter().map(Object::Route));
    let mut changes = plan::plan(desired, observed, |_| pod.ifname.clone());
    changes.retain(|change| change.action != Action::Delete);
    Ok(changes)
}

/// Whether a route of ours is a default route by another device than `index`: the container has several interfaces.
fn is_default_elsewhere(route: &Route, index: IfIndex) -> bool {
    let elsewhere = matches!(route.kind, RouteKind::Via { device, .. } if device != index);
    elsewhere && route.destination.prefix_len() == 0
}

/// The table for the default routes of a further interface: the one that its rules name, or one that no rule does.
fn own_table(pod: &Pod, rules: &[Rule]) -> Option<u8> {
    let own = rules.iter().find(|rule| pod.addresses.contains(&rule.source.addr()));
    let is_free = |table: &u8| rules.iter().all(|rule| rule.table != *table);
    own.map(|rule| rule.table).or_else(|| FURTHER_TABLES.clone().find(is_free))
}

/// Has a further interface take what is sent from its addresses, and nothing else: answers must leave by the interface
/// that the question came by, because the node takes of each only packets from its own addresses.
fn route_apart(desired: &mut Vec<Object>, pod: &Pod, table: u8) {
    for object in desired.iter_mut() {
        if let Object::Route(route) = object {
            route.table = table;
        }
    }
    let rule = |address: &IpAddr| Rule { priority: FURTHER_PRIORITY, source: IpNet::from(*address), table };
    desired.extend(pod.addresses.iter().map(|address| Object::Rule(rule(address))));
}

/// What the pod's end has: addresses, then gateways, then default routes through them.
pub(super) fn objects(pod: &Pod, index: IfIndex) -> Vec<Object> {
    let objects = |address: &IpAddr| {
        let (gateway, any): (IpAddr, IpAddr) = match address {
            IpAddr::V4(_) => (GATEWAY_V4.into(), Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(_) => (GATEWAY_V6.into(), Ipv6Addr::UNSPECIFIED.into()),
        };
        let destination = IpNet::new_assert(any, 0);
        let kind = RouteKind::Via { device: index, gateway: Some(gateway) };
        [
            Object::Address(Address { index, address: IpNet::from(*address) }),
            Object::Neighbour(Neighbour { index, address: gateway, mac: pod.host_mac }),
            Object::Route(Route { table: MAIN_TABLE, destination, kind, source: None }),
        ]
    };
    pod.addresses.iter().flat_map(objects).collect()
}
