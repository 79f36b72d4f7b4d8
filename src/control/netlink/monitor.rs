use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{NLMSG_ERROR, NLMSG_NOOP, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::neighbour::{address, mac};
use crate::wire::Mac;

/// Room for what the kernel packs into one message.
const BUFFER: usize = 64 << 10;

/// Multicast groups (`include/uapi/linux/rtnetlink.h`): link, neigh, tc, IPv4 address, route and rule, IPv6
/// address, route and rule, and the sysctls of devices that the kernel tells of (netconf).
const GROUPS: [u32; 11] = [1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25];

/// The most that one call of [`Monitor::drain`] reads: a flood must not keep its reader from its work.
const DRAUGHT: usize = 4096;

/// The length of `struct nlmsghdr` (`include/uapi/linux/netlink.h`), and where in it the number of the socket is that
/// asked for what is told.
const HEADER: usize = 16;
const PORT_AT: usize = 12;

/// `RTM_NEWROUTE`, `RTM_DELROUTE`, and the same of neighbours (`include/uapi/linux/rtnetlink.h`).
const ROUTES: [u16; 2] = [24, 25];
const NEIGHBOURS: [u16; 2] = [28, 29];

/// Notifications of the kernel: something that a plan looks at may have changed.
///
/// It says only *that*, never what: whoever hears it takes a fresh dump, so a lost or a spurious
/// notification does no harm. Routes and neighbours that our own socket has asked for are no news: in a large cluster
/// each of its changes would cost a dump of everything.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    /// The number of our socket for requests.
    own: u32,
    /// What will be told of changes that were asked for by it.
    echoes: HashSet<Echo>,
}

/// What is told of a change without saying who asked for it: the VXLAN device never does (`vxlan_fdb_notify` in
/// `drivers/net/vxlan/vxlan_core.c`), and the end of a neighbour is the kernel's own (`neigh_cleanup_and_release` in
/// `net/core/neighbour.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Echo {
    FdbSet(Mac),
    FdbDeleted(Mac),
    NeighbourDeleted(IpAddr),
}

/// What [`Monitor::drain`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Nothing,
    Changed,
    /// Notifications were lost; the state may have changed in any way.
    Overflow,
}

impl Monitor {
    /// Listens in the network namespace of the calling thread to what others than the socket `own` have asked for. The
    /// descriptor becomes readable on news, for `epoll` or tokio's `AsyncFd`.
    pub fn open(own: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), own, echoes: HashSet::new() })
    }

    /// Notes what our own socket has asked for and will be told of once.
    pub fn expect(&mut self, echoes: impl IntoIterator<Item = Echo>) {
        self.echoes.extend(echoes);
    }

    /// Reads what is waiting, in a flood as if some were lost. Never blocks.
    pub fn drain(&mut self) -> io::Result<News> {
        let mut news = News::Nothing;
        for _ in 0..DRAUGHT {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) if self.is_news() => news = if news == News::Overflow { news } else { News::Changed },
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(news),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    // What was expected may be among what was lost.
                    self.echoes.clear();
                    news = News::Overflow;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(News::Overflow)
    }

    fn is_news(&mut self) -> bool {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return false };
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let is_ours = header.get(PORT_AT..).is_some_and(|port| port == self.own.to_ne_bytes());
        match kind {
            NLMSG_NOOP | NLMSG_ERROR => false,
            kind if ROUTES.contains(&kind) => !is_ours,
            kind if NEIGHBOURS.contains(&kind) => !is_ours && !self.is_echo(),
            _ => true,
        }
    }

    /// Whether it is a change that was expected; it is not any more.
    fn is_echo(&mut self) -> bool {
        if self.echoes.is_empty() {
            return false;
        }
        let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) =
            NetlinkMessage::deserialize(&self.buffer)
        else {
            return false;
        };
        let echo = match &message {
            RouteNetlinkMessage::NewNeighbour(entry) if entry.header.family == AddressFamily::Bridge => {
                mac(entry).map(Echo::FdbSet)
            }
            RouteNetlinkMessage::DelNeighbour(entry) if entry.header.family == AddressFamily::Bridge => {
                mac(entry).map(Echo::FdbDeleted)
            }
            RouteNetlinkMessage::DelNeighbour(entry) => address(entry).map(Echo::NeighbourDeleted),
            _ => None,
        };
        echo.is_some_and(|echo| self.echoes.remove(&echo))
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
