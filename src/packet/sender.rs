use std::io;
use std::iter;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use arrayvec::ArrayVec;

use super::ring::set;
use super::{Error, VIRTIO_HEADER};
use crate::frame::{Frame, Pool};
use crate::ids::IfIndex;
use crate::offload::{MAX_FRAMES, VirtioNetHdr};
use crate::xsk::sys;

/// Messages of one `sendmmsg`: those of a burst whose packets all go alone.
const BATCH: usize = 128;

/// Frames of all messages of a batch.
const FRAMES: usize = 4 * MAX_FRAMES;

/// Bytes of socket buffer, of which the kernel makes twice as many, that frames may occupy until their receiver takes them.
/// A pod whose queueing discipline is slow keeps them for as long (veth leaves them to their socket), and when all are
/// used up no other pod gets any: so much that a pod has to hoard as much of the kernel's memory first.
const SEND_BUFFER: libc::c_int = 512 << 20;

#[expect(clippy::cast_possible_truncation, reason = "20")]
const ADDRESS_BYTES: u32 = mem::size_of::<libc::sockaddr_ll>() as u32;

/// Bytes that may go before a packet's frames.
const HEADERS: usize = 64;

/// What to send as one packet.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Its bytes, one frame after another; taken.
    pub frames: &'a mut Vec<Frame>,
    pub virtio: VirtioNetHdr,
    /// Bytes before those of the frames, 64 at most.
    pub headers: &'a [u8],
    pub to: IfIndex,
    /// What to count it as.
    pub sent: Sent,
}

/// What was sent as one packet.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// Packets that its receivers get.
    pub packets: usize,
    pub frames: usize,
    pub bytes: u64,
}

impl<'a> Outgoing<'a> {
    /// Frames that are one packet to its receiver.
    pub fn packet(frames: &'a mut Vec<Frame>, virtio: VirtioNetHdr, to: IfIndex) -> Self {
        let bytes = frames.iter().map(|frame| frame.len() as u64).sum();
        let sent = Sent { packets: 1, frames: frames.len(), bytes };
        Self { frames, virtio, headers: &[], to, sent }
    }
}

/// A packet that waits: its head, and the next so many frames.
#[derive(Debug)]
struct Message {
    sent: Sent,
    /// The virtio header, and what goes before the frames.
    head: [u8; VIRTIO_HEADER + HEADERS],
    head_len: usize,
    to: IfIndex,
}

/// Sends packets to devices, a batch per system call.
#[derive(Debug)]
pub struct Sender {
    messages: Vec<Message>,
    /// Those of all messages, in order.
    frames: Vec<Frame>,
    headers: Box<Headers>,
    calls: u64,
    fd: OwnedFd,
}

/// What `sendmmsg` reads, rebuilt for every batch.
struct Headers {
    messages: [libc::mmsghdr; BATCH],
    /// For each message its head and its frames.
    parts: [libc::iovec; BATCH + FRAMES],
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
        let (messages, frames) = (Vec::with_capacity(BATCH), Vec::with_capacity(FRAMES));
        Ok(Self { messages, frames, headers, calls: 0, fd })
    }

    /// System calls made.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// How many frames wait to be sent.
    pub fn queued(&self) -> usize {
        self.frames.len()
    }

    /// Whether so many packets can be added, of so many frames together.
    pub fn has_room(&self, packets: usize, frames: usize) -> bool {
        self.messages.len() + packets <= BATCH && self.frames.len() + frames <= FRAMES
    }

    /// Adds a packet and takes its frames; false, and nothing taken, when the batch is full ([`Sender::flush`] first), or
    /// its headers are too long.
    #[must_use]
    pub fn push(&mut self, packet: Outgoing<'_>) -> bool {
        let Outgoing { frames, virtio, headers, to, sent } = packet;
        let (mut head, head_len) = ([0; VIRTIO_HEADER + HEADERS], VIRTIO_HEADER + headers.len());
        if !self.has_room(1, frames.len()) || head_len > head.len() {
            return false;
        }
        for (place, byte) in head.iter_mut().zip(virtio.to_bytes().iter().chain(headers)) {
            *place = *byte;
        }
        self.messages.push(Message { sent, head, head_len, to });
        self.frames.append(frames);
        true
    }

    /// Sends the batch and puts its frames into the pool: the kernel has copied them by then. `done` hears of each
    /// packet, and whether the kernel took it, or its error number.
    pub fn flush(&mut self, pool: &mut Pool, mut done: impl FnMut(Sent, Result<(), i32>)) {
        let total = self.messages.len();
        if total == 0 {
            return;
        }
        self.fill_headers();
        // The headers point into `self.messages` and the frames, which therefore stay as they are until the last call
        // is over.
        let mut refused = ArrayVec::<_, BATCH>::new();
        let mut next = 0;
        while next < total {
            let (taken, error) = self.send(next, total);
            next += taken;
            if next < total {
                let recorded = refused.try_push((next, error));
                debug_assert!(recorded.is_ok(), "no more are refused than sent");
                next += 1;
            }
        }
        let mut refused = refused.into_iter().peekable();
        for (number, message) in self.messages.drain(..).enumerate() {
            let error = refused.next_if(|(refused, _)| *refused == number);
            done(message.sent, error.map_or(Ok(()), |(_, error)| Err(error)));
        }
        for frame in self.frames.drain(..) {
            pool.put(frame);
        }
    }

    fn fill_headers(&mut self) {
        let Headers { messages, parts, addresses } = &mut *self.headers;
        let (mut parts, mut frames) = (parts.as_mut_slice(), self.frames.as_mut_slice());
        for (message, (header, to)) in self.messages.iter_mut().zip(messages.iter_mut().zip(addresses)) {
            let Some((own, rest)) = mem::take(&mut parts).split_at_mut_checked(1 + message.sent.frames) else { return };
            let Some((own_frames, rest_frames)) = mem::take(&mut frames).split_at_mut_checked(message.sent.frames)
            else {
                return;
            };
            let head = message.head.get_mut(..message.head_len).unwrap_or_default();
            let bytes = iter::once(head).chain(own_frames.iter_mut().map(|frame| &mut **frame));
            for (part, bytes) in own.iter_mut().zip(bytes) {
                *part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            }
            *to = address(message.to, 0);
            header.msg_hdr.msg_name = ptr::from_mut(to).cast();
            header.msg_hdr.msg_namelen = ADDRESS_BYTES;
            header.msg_hdr.msg_iov = own.as_mut_ptr();
            header.msg_hdr.msg_iovlen = own.len();
            (parts, frames) = (rest, rest_frames);
        }
    }

    /// Sends messages `first..total`. Returns how many the kernel took, and why it refused the next, if it did: a call
    /// that takes some says nothing of the first that it does not.
    fn send(&mut self, first: usize, total: usize) -> (usize, i32) {
        let mut next = first;
        loop {
            let Some(batch) = self.headers.messages.get_mut(next..total).filter(|batch| !batch.is_empty()) else {
                return (next - first, 0);
            };
            let (fd, len) = (self.fd.as_raw_fd(), u32::try_from(batch.len()).unwrap_or(0));
            self.calls += 1;
            // SAFETY: every header of the batch was filled for this flush and points into `self.headers`,
            // `self.messages` and the frames, which all stay in place during the call (invariant 4).
            let taken = unsafe { libc::sendmmsg(fd, batch.as_mut_ptr(), len, libc::MSG_DONTWAIT) };
            match usize::try_from(taken) {
                Ok(taken) if taken > 0 => next += taken,
                _ => return (next - first, io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            }
        }
    }
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
