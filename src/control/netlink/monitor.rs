use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{NLMSG_ERROR, NLMSG_NOOP};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// Room for what the kernel packs into one message.
const BUFFER: usize = 64 << 10;

/// Multicast groups (`include/uapi/linux/rtnetlink.h`): link, neigh, tc, IPv4 address, route and rule, IPv6
/// address, route and rule, and the sysctls of devices that the kernel tells of (netconf).
const GROUPS: [u32; 11] = [1, 3, 4, 5, 7, 8, 9, 11, 19, 24, 25];

/// The most that one call of [`Monitor::drain`] reads: a flood must not keep its reader from its work.
const DRAUGHT: usize = 4096;

/// Notifications of the kernel: something that a plan looks at may have changed.
///
/// It says only *that*, never what: whoever hears it takes a fresh dump, so a lost or a spurious
/// notification does no harm.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
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
    /// Listens in the network namespace of the calling thread. The descriptor becomes readable
    /// on news, for `epoll` or tokio's `AsyncFd`.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
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
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => news = News::Overflow,
                Err(error) => return Err(error),
            }
        }
        Ok(News::Overflow)
    }

    fn is_news(&self) -> bool {
        let kind = self.buffer.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
        kind.is_some_and(|kind| kind != NLMSG_NOOP && kind != NLMSG_ERROR)
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
