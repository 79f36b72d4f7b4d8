use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::filter::Filter;
use super::{Error, sender};
use crate::ids::IfIndex;
use crate::xsk::sys;

/// Sees packets that come in by a device, before the kernel's protocols and packet filters do.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Sees what `filter` accepts of one EtherType, from the network header on and cut to `snap` bytes. What waits to
    /// be taken takes at most `room` bytes of kernel memory.
    pub fn open(ifindex: IfIndex, ethertype: u16, filter: &Filter, snap: u32, room: i32) -> Result<Self, Error> {
        // Of no protocol: nothing is received before the filter is in place.
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
        let fd = sys::socket(libc::AF_PACKET, kind, 0).map_err(Error::Open)?;
        let option = |option| move |source| Error::Option { option, source };
        filter.attach(fd.as_fd(), snap).map_err(option("SO_ATTACH_FILTER"))?;
        sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &room).map_err(option("SO_RCVBUF"))?;
        let address = sender::address(ifindex, ethertype.into());
        sys::bind(fd.as_fd(), &address).map_err(|source| Error::Bind { ifindex, source })?;
        Ok(Self(fd))
    }

    /// The next packet, in front of `buffer`; `None` when there is none.
    pub fn take<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(len) => Ok(buffer.get(..len)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
