use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::{Netlink, NetlinkError};
use crate::control::netns::Netns;

/// Multicast groups (`include/uapi/linux/rtnetlink.h`): link, neigh, IPv4 address and route, IPv6 address and route.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// The most that one call of [`NamespaceMonitor::drain`] reads: a flood must not keep its reader from its work.
const DRAUGHT: usize = 4096;

/// A name that a [`NamespaceMonitor`] has for a network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceId(i32);

/// Notifications of the kernel about other network namespaces, by one socket.
///
/// ```text
///   private, empty namespace                    │ namespaces of pods
///   socket, NETLINK_LISTEN_ALL_NSID ◀───────────┼── 0: link, route, address, neighbour
///   names: 0, 1, 2 …                            │   1: …
/// ```
///
/// A socket that listens to all namespaces hears those that have a name in its own (`do_one_broadcast` in
/// `net/netlink/af_netlink.c`); its own is one that nobody else gives names in. A name holds no reference: watching
/// does not keep a namespace alive.
#[derive(Debug)]
pub struct NamespaceMonitor {
    socket: Socket,
    requests: Netlink,
}

/// What [`NamespaceMonitor::drain`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// These namespaces may have changed.
    In(BTreeSet<NamespaceId>),
    /// Notifications were lost; any may have changed.
    Overflow,
}

impl NamespaceMonitor {
    /// Needs `CAP_SYS_ADMIN` to make its namespace, and `CAP_NET_BROADCAST` to hear others.
    pub fn open() -> Result<Self, NetlinkError> {
        Netns::within_new(|| {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.bind(&SocketAddr::new(0, 0))?;
            socket.set_listen_all_namespaces(true)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            Ok(Self { socket, requests: Netlink::open()? })
        })?
    }

    /// Listens to a namespace from now until it ends. The name is the same when it is watched already.
    pub fn watch(&mut self, netns: &Netns) -> Result<NamespaceId, NetlinkError> {
        let descriptor = u32::try_from(netns.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mut message = NsidMessage::default();
        message.attributes = vec![NsidAttribute::Fd(descriptor)];
        let mut assign = message.clone();
        assign.attributes.push(NsidAttribute::Id(-1));
        match self.requests.change(RouteNetlinkMessage::NewNsId(assign), 0) {
            Err(error) if error.errno() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
        let Some(RouteNetlinkMessage::NewNsId(answer)) = self.requests.query(RouteNetlinkMessage::GetNsId(message))?
        else {
            return Err(NetlinkError::Malformed("no name of a namespace".to_owned()));
        };
        let name = answer.attributes.iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(name) if *name >= 0 => Some(NamespaceId(*name)),
            _ => None,
        });
        name.ok_or_else(|| NetlinkError::Malformed("a namespace without a name".to_owned()))
    }

    /// Reads what is waiting, in a flood as if some were lost. Never blocks.
    pub fn drain(&mut self) -> io::Result<Heard> {
        let mut heard = BTreeSet::new();
        let mut overflow = false;
        for _ in 0..DRAUGHT {
            match self.sender() {
                Ok(name) => heard.extend(name),
                Err(Errno::EAGAIN) if overflow => return Ok(Heard::Overflow),
                Err(Errno::EAGAIN) => return Ok(Heard::In(heard)),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => overflow = true,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Heard::Overflow)
    }

    /// Takes one notification and says where it comes from.
    fn sender(&self) -> nix::Result<Option<NamespaceId>> {
        // What it says is not read: only where something may have changed.
        let (mut contents, mut control) = ([0; 16], nix::cmsg_space!(i32));
        let mut parts = [IoSliceMut::new(&mut contents)];
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
        let name = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Unknown(part)
                if (part.cmsg_header.cmsg_level, part.cmsg_header.cmsg_type)
                    == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) =>
            {
                part.data_bytes.as_slice().try_into().ok().map(i32::from_ne_bytes).map(NamespaceId)
            }
            _ => None,
        });
        Ok(name)
    }
}

impl AsRawFd for NamespaceMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_lo_up() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        let settings = super::super::LinkSettings { up: Some(true), ..Default::default() };
        netlink.set_link(lo.index, settings).unwrap();
    }

    #[test]
    fn hears_of_watched_namespaces_and_of_no_others() {
        let Ok(mut monitor) = NamespaceMonitor::open() else { return println!("skipped: needs root") };
        let [watched, other] = [(); 2].map(|()| Netns::within_new(|| Netns::current().unwrap()).unwrap());
        let name = monitor.watch(&watched).unwrap();
        assert_eq!(monitor.watch(&watched).unwrap(), name);
        other.within(set_lo_up).unwrap();
        assert_eq!(monitor.drain().unwrap(), Heard::In(BTreeSet::new()));
        watched.within(set_lo_up).unwrap();
        assert_eq!(monitor.drain().unwrap(), Heard::In(BTreeSet::from([name])));
        assert_eq!(monitor.drain().unwrap(), Heard::In(BTreeSet::new()));
    }
}
