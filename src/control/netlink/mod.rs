//! Netlink, synchronously: the kernel's devices, addresses, routes, rules and neighbours as plain values, and
//! what its packet filter translates.
//!
//! A socket belongs to the network namespace of the thread that opened it. Requests wait for the
//! kernel's acknowledgement; dumps are whole or fail.

mod address;
mod channel;
mod link;
mod monitor;
mod namespaces;
mod neighbour;
mod netfilter;
mod raw;
mod request;
mod route;
mod rule;
mod ruleset;
mod tc;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use channel::Channel;

/// What holds of any message of netfilter, and any datagram of its notifications.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    netfilter::fuzz(bytes);
    ruleset::fuzz(bytes);
}

pub use address::Address;
pub use channel::NetlinkError;
pub use link::{Link, LinkConf, LinkKind, LinkSettings, Veth, VethEnd, Vxlan, name_of};
pub use monitor::{Echo, Monitor, News};
pub use namespaces::{Heard, NamespaceId, NamespaceMonitor};
pub use neighbour::{FdbEntry, KnownNeighbour, Neighbour};
pub use netfilter::{BaseChain, Netfilter};
pub use request::Request;
pub use route::{Lookup, MAIN_TABLE, Route, RouteKind};
pub use rule::Rule;
pub use ruleset::{RulesetMonitor, RulesetNews};
pub use tc::{Filter, Hook, Place, Qdisc};

/// A socket for requests about devices, addresses, routes and neighbours.
#[derive(Debug)]
pub struct Netlink {
    channel: Channel,
}

/// What was asked to be removed may be gone already.
pub fn unless_missing(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.is_missing() => Ok(()),
        result => result,
    }
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { channel: Channel::open(NETLINK_ROUTE)? })
    }

    /// The number by which the kernel names this socket where it tells of changes that it was asked for.
    pub fn port(&self) -> u32 {
        self.channel.port()
    }

    /// Asks for changes, many at a time; the kernel makes them in order, whatever becomes of those before. Returns what
    /// became of each.
    pub fn change_all(&mut self, requests: Vec<Request>) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let requests = requests.into_iter().map(|request| (request.message, NLM_F_ACK | request.flags));
        let answers = self.channel.ask_all(requests)?;
        Ok(answers.into_iter().map(|answer| answer.map(drop)).collect())
    }

    /// Has one change made, and waits until it is.
    pub fn make(&mut self, Request { message, flags }: Request) -> Result<(), NetlinkError> {
        self.change(message, flags)
    }

    /// Asks for a change and waits until it is done.
    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), NetlinkError> {
        self.channel.ask(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object; `None` when the kernel acknowledges without one.
    fn query(&mut self, message: RouteNetlinkMessage) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        self.channel.ask(message, 0)
    }

    /// Asks for all objects, again when they changed meanwhile. Those that do not decode are
    /// foreign (ours do) and left out.
    fn dump(&mut self, message: &RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.channel.dump(message)
    }
}

/// The family of an address, for a header.
fn family(is_ipv6: bool) -> AddressFamily {
    if is_ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_errno_and_name_of_the_missing() {
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(netlink.link("no-such-device").unwrap(), None);
        let error = netlink.delete_link(crate::ids::IfIndex(0x7fff_fff0)).unwrap_err();
        assert!(error.is_missing(), "{error}");
    }

    #[test]
    fn finds_the_loopback_device_and_its_address() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        assert_eq!((lo.name.as_str(), lo.kind.clone()), ("lo", LinkKind::Other));
        assert!(netlink.links().unwrap().contains(&lo));
    }
}
