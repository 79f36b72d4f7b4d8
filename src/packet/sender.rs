use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use super::ring::set;
use super::{Error, VIRTIO_HEADER};
use crate::frame::Frame;
use crate::ids::IfIndex;
use crate::xsk::sys;

/// Messages of one `sendmmsg`: as many as there are bits in a word.
const BATCH: usize = u64::BITS as usize;

/// Bytes of socket buffer that frames on their way to pods may occupy.
const SEND_BUFFER: libc::c_int = 64 << 20;

#[expect(clippy::cast_possible_truncation, reason = "20")]
const ADDRESS_BYTES: u32 = mem::size_of::<libc::sockaddr_ll>() as u32;

/// One frame to send.
#[derive(Debug)]
struct Message {
    frame: Frame,
    virtio: [u8; VIRTIO_HEADER],
    to: IfIndex,
}

/// Sends frames to devices, a batch per system call.
#[derive(Debug)]
pub struct Sender {
    messages: Vec<Message>,
    headers: Box<Headers>,
    fd: OwnedFd,
}

/// What `sendmmsg` reads, rebuilt for every batch.
struct Headers {
    messages: [libc::mmsghdr; BATCH],
    parts: [[libc::iovec; 2]; BATCH],
    addresses: [libc::sockaddr_ll; BATCH],
}

// SAFETY: the pointers inside are only followed during `flush`, which sets them first (invariant 4).
unsafe impl Send for Headers {}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Headers")
    }
}

impl Sender {
    pub fn open() -> Result<Self, Error> {
        // Protocol 0: the socket receives nothing.
        let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(Error::Open)?;
        set(fd.as_fd(), "PACKET_VNET_HDR", libc::PACKET_VNET_HDR, &1)?;
        // Best effort: without the privilege a burst may find the socket's buffer full, which is counted.
        let _unprivileged = sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
        // SAFETY: all-zero bytes are valid integers and null pointers.
        let headers = Box::new(unsafe { mem::zeroed::<Headers>() });
        Ok(Self { messages: Vec::with_capacity(BATCH), headers, fd })
    }

    /// Whether [`Sender::push`] would find no room; then [`Sender::flush`] first.
    pub fn is_full(&self) -> bool {
        self.messages.len() == BATCH
    }

    /// Adds a frame for the device `to`; it comes back when the batch is full.
    pub fn push(&mut self, frame: Frame, virtio: [u8; VIRTIO_HEADER], to: IfIndex) -> Result<(), Frame> {
        if self.is_full() {
            return Err(frame);
        }
        self.messages.push(Message { frame, virtio, to });
        Ok(())
    }

    /// Sends the batch. Each frame is handed to `done` with whether the kernel took it; the kernel has
    /// copied it by then.
    pub fn flush(&mut self, mut done: impl FnMut(Frame, bool)) {
        let total = self.messages.len();
        self.fill_headers();
        // One bit a message: the headers point into `self.messages`, which therefore stays as it is
        // until the last call is over.
        let mut refused = 0u64;
        let mut next = 0;
        while next < total {
            next += self.send(next, total);
            if next < total {
                refused |= 1 << next;
                next += 1;
            }
        }
        for (index, message) in self.messages.drain(..).enumerate() {
            done(message.frame, refused & 1 << index == 0);
        }
    }

    fn fill_headers(&mut self) {
        let Headers { messages, parts, addresses } = &mut *self.headers;
        let headers = messages.iter_mut().zip(parts).zip(addresses);
        for (message, ((header, parts), to)) in self.messages.iter_mut().zip(headers) {
            *to = address(message.to, 0);
            *parts = [part(&mut message.virtio), part(&mut message.frame)];
            header.msg_hdr.msg_name = ptr::from_mut(to).cast();
            header.msg_hdr.msg_namelen = ADDRESS_BYTES;
            header.msg_hdr.msg_iov = parts.as_mut_ptr();
            header.msg_hdr.msg_iovlen = parts.len();
        }
    }

    /// Sends messages `first..total`; returns how many the kernel took: it stops at the first that it refuses.
    fn send(&mut self, first: usize, total: usize) -> usize {
        let Some(batch) = self.headers.messages.get_mut(first..total) else { return 0 };
        let (fd, len) = (self.fd.as_raw_fd(), u32::try_from(batch.len()).unwrap_or(0));
        // SAFETY: every header of the batch was filled for this flush and points into `self.headers` and
        // `self.messages`, which both stay in place during the call (invariant 4).
        let taken = unsafe { libc::sendmmsg(fd, batch.as_mut_ptr(), len, libc::MSG_DONTWAIT) };
        usize::try_from(taken).unwrap_or(0)
    }
}

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// The link-layer address of a device.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "constants and interface indexes fit the structure's narrower types"
)]
pub(super) fn address(ifindex: IfIndex, protocol: libc::c_int) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: ifindex.0 as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    }
}
