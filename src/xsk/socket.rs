use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use libc::{
    SOL_XDP, XDP_MMAP_OFFSETS, XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_RX_RING,
    XDP_STATISTICS, XDP_TX_RING, XDP_UMEM_COMPLETION_RING, XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_COMPLETION_RING,
    XDP_UMEM_PGOFF_FILL_RING, XDP_UMEM_REG, XDP_USE_NEED_WAKEUP, XDP_ZEROCOPY, xdp_desc, xdp_ring_offset,
};

use super::ledger::Ledger;
use super::mapping::Mapping;
use super::napi::{Napi, NapiPage};
use super::ring::{Consumer, Layout, Producer};
use super::sys;
use crate::frame::{CHUNK_SIZE, Frame, Pool, Region};
use crate::ids::{IfIndex, QueueId};

/// How frames cross between the driver and packet memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Whatever the driver offers, zero-copy first.
    Auto,
    ZeroCopy,
    Copy,
}

/// What to open.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub ifindex: IfIndex,
    pub queue: QueueId,
    pub binding: Binding,
    /// Slots of the receive and of the send ring, a power of two. The fill and the completion ring have
    /// twice as many, so that a full receive ring can be refilled before it is read.
    pub ring_size: u32,
    /// How many chunks to keep on the fill side, at most twice `ring_size`.
    pub fill: u32,
}

/// Why a socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open an AF_XDP socket: {0}")]
    Open(io::Error),
    #[error("cannot register packet memory with AF_XDP: {0}")]
    Register(io::Error),
    #[error("cannot set up the AF_XDP rings: {0}")]
    Rings(io::Error),
    #[error("queue {queue} of device {ifindex} stays taken by another AF_XDP socket")]
    Taken { ifindex: IfIndex, queue: u32 },
    #[error("the driver of device {ifindex} has no zero-copy AF_XDP on queue {queue}: {source}")]
    NoZeroCopy { ifindex: IfIndex, queue: u32, source: io::Error },
    #[error("cannot bind to queue {queue} of device {ifindex}: {source}")]
    Bind { ifindex: IfIndex, queue: u32, source: io::Error },
}

/// An AF_XDP socket bound to one queue of a device.
#[derive(Debug)]
pub struct Socket {
    fill: Producer<u64>,
    completion: Consumer<u64>,
    receive: Consumer<xdp_desc>,
    send: Producer<xdp_desc>,
    napi: Napi,
    ledger: Ledger,
    /// How many chunks to keep on the fill side.
    fill_target: u32,
    zero_copy: bool,
    dead: bool,
    bogus: u64,
    refused: u64,
    wakeups: u64,
    fd: OwnedFd,
    _mappings: [Mapping; 4],
}

/// The address family, in the width that the address structure wants.
#[expect(clippy::cast_possible_truncation, reason = "a small positive constant")]
const AF_XDP: u16 = libc::AF_XDP as u16;

/// `sendto` calls of one flush at most: a copy-mode socket sends a bounded number of frames a call.
const MAX_KICKS: usize = 16;

/// How long a queue may stay taken after its last socket was closed,
const RELEASE_LIMIT: Duration = Duration::from_millis(200);
/// and how often to try.
const RELEASE_POLL: Duration = Duration::from_millis(2);

/// Bytes of socket buffer that sent frames may occupy: the default lets only about 90 be in flight.
const SEND_BUFFER: libc::c_int = 64 << 20;

impl Socket {
    /// Opens the socket, registers `region` with it, fills its fill ring from `pool`, and binds.
    ///
    /// On an error all frames are back in `pool`.
    pub fn open(region: Region, pool: &mut Pool, options: &Options) -> Result<Self, Error> {
        let fd = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0).map_err(Error::Open)?;
        register(fd.as_fd(), &region).map_err(Error::Register)?;
        let mut socket = Self::with_rings(fd, region, options.ring_size).map_err(Error::Rings)?;
        socket.fill_target = options.fill.min(socket.fill_target);
        socket.fill(pool);
        if let Err(error) = socket.bind(options) {
            pool.absorb(socket.close());
            return Err(error);
        }
        socket.raise_limits(options.ring_size);
        Ok(socket)
    }

    fn with_rings(fd: OwnedFd, region: Region, size: u32) -> io::Result<Self> {
        let double = size.checked_mul(2).ok_or(io::ErrorKind::InvalidInput)?;
        let rings = [
            (XDP_UMEM_FILL_RING, double),
            (XDP_UMEM_COMPLETION_RING, double),
            (XDP_RX_RING, size),
            (XDP_TX_RING, size),
        ];
        for (name, slots) in rings {
            sys::set_option(fd.as_fd(), SOL_XDP, name, &slots)?;
        }
        // SAFETY: the offsets are plain integers.
        let offsets: libc::xdp_mmap_offsets = unsafe { sys::get_option(fd.as_fd(), SOL_XDP, XDP_MMAP_OFFSETS) }?;
        let map = |offset: &xdp_ring_offset, slots: u32, slot_bytes: usize, page: i64| {
            let layout = Layout::try_from(offset)?;
            let mapping = Mapping::new(fd.as_fd(), layout.slots + slots as usize * slot_bytes, page)?;
            io::Result::Ok((mapping, layout))
        };
        let page = |offset: libc::c_ulonglong| i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidData);
        let (fill_map, fill) = map(&offsets.fr, double, size_of::<u64>(), page(XDP_UMEM_PGOFF_FILL_RING)?)?;
        let (completion_map, completion) =
            map(&offsets.cr, double, size_of::<u64>(), page(XDP_UMEM_PGOFF_COMPLETION_RING)?)?;
        let (receive_map, receive) = map(&offsets.rx, size, size_of::<xdp_desc>(), XDP_PGOFF_RX_RING)?;
        let (send_map, send) = map(&offsets.tx, size, size_of::<xdp_desc>(), XDP_PGOFF_TX_RING)?;
        let misfit = || io::Error::from(io::ErrorKind::InvalidData);
        Ok(Self {
            fill: Producer::new(&fill_map, fill, double).ok_or_else(misfit)?,
            completion: Consumer::new(&completion_map, completion, double).ok_or_else(misfit)?,
            receive: Consumer::new(&receive_map, receive, size).ok_or_else(misfit)?,
            send: Producer::new(&send_map, send, size).ok_or_else(misfit)?,
            napi: Napi::default(),
            ledger: Ledger::new(region),
            fill_target: double,
            zero_copy: false,
            dead: false,
            bogus: 0,
            refused: 0,
            wakeups: 0,
            fd,
            _mappings: [fill_map, completion_map, receive_map, send_map],
        })
    }

    fn bind(&mut self, options: &Options) -> Result<(), Error> {
        let (ifindex, queue) = (options.ifindex, options.queue.0);
        let mode = match options.binding {
            Binding::Auto => 0,
            Binding::ZeroCopy => XDP_ZEROCOPY,
            Binding::Copy => libc::XDP_COPY,
        };
        let address = libc::sockaddr_xdp {
            sxdp_family: AF_XDP,
            sxdp_flags: XDP_USE_NEED_WAKEUP | mode,
            sxdp_ifindex: ifindex.0,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        bind_when_free(self.fd.as_fd(), &address).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => Error::Taken { ifindex, queue },
            Some(libc::EOPNOTSUPP) if options.binding == Binding::ZeroCopy => {
                Error::NoZeroCopy { ifindex, queue, source }
            }
            _ => Error::Bind { ifindex, queue, source },
        })?;
        // SAFETY: the options are a plain integer.
        let got: io::Result<libc::xdp_options> = unsafe { sys::get_option(self.fd.as_fd(), SOL_XDP, XDP_OPTIONS) };
        self.zero_copy = got.is_ok_and(|got| got.flags & XDP_OPTIONS_ZEROCOPY != 0);
        Ok(())
    }

    /// Best effort: an older kernel or fewer privileges only mean more system calls.
    fn raise_limits(&self, ring_size: u32) {
        let fd = self.fd.as_fd();
        let _older_kernel = sys::set_option(fd, SOL_XDP, sys::XDP_MAX_TX_SKB_BUDGET, &ring_size);
        let _unprivileged = sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &SEND_BUFFER);
    }

    /// The descriptor, for the XSKMAP and for poll(2).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the kernel gave zero-copy, as read back after binding.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Whether the device went away or down: the socket must be opened again.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// The chunks that the kernel holds: (to receive into, to send).
    pub fn lent(&self) -> (u32, u32) {
        (self.ledger.filled(), self.ledger.sent())
    }

    /// Addresses that the kernel returned though they were not lent.
    pub fn bogus(&self) -> u64 {
        self.bogus
    }

    /// Frames that the device dropped instead of sending.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// System calls made to start sending.
    pub fn wakeups(&self) -> u64 {
        self.wakeups
    }

    /// Frames that the kernel could not deliver: no chunk in the fill ring, or the receive ring full.
    pub fn lost(&self) -> u64 {
        // SAFETY: the statistics are plain integers.
        let statistics: io::Result<libc::xdp_statistics> =
            unsafe { sys::get_option(self.fd.as_fd(), SOL_XDP, XDP_STATISTICS) };
        statistics.map_or(0, |s| s.rx_dropped + s.rx_ring_full)
    }

    /// From now on the reader of the ring runs the queue's NAPI, where the kernel knows it. An error when the kernel has
    /// no busy-polling, or does not allow it.
    pub fn run_napi(&mut self) -> io::Result<()> {
        self.napi.ask(self.fd.as_fd())
    }

    /// What others may know of the runs of the queue's NAPI.
    pub fn napi(&self) -> Arc<NapiPage> {
        Arc::clone(self.napi.page())
    }

    /// Brings that up to date; a system call while there is none to run. Not for every pass.
    pub fn look_at_napi(&mut self) {
        self.napi.look(self.fd.as_fd());
    }

    /// Whether frames wait in the receive ring, or the kernel has not yet taken all that is to be sent.
    pub fn has_work(&self) -> bool {
        self.receive.is_ready() || (self.send.has_unread() && !self.dead)
    }

    /// Tops the fill ring up from the pool. Call once a burst.
    pub fn fill(&mut self, pool: &mut Pool) {
        let wanted = self.fill_target.saturating_sub(self.ledger.filled());
        let room = self.fill.room(wanted).min(wanted);
        for _ in 0..room {
            let Some(frame) = pool.take() else { break };
            let pushed = self.fill.push(self.ledger.lend_fill(frame));
            debug_assert!(pushed.is_ok());
        }
        if room > 0 {
            self.fill.publish();
        }
        // Looked at even when nothing was added: a driver may have found the ring empty, and asked for the call,
        // just after the last look.
        if self.fill.needs_wakeup() {
            sys::kick_receive(self.fd.as_fd());
        }
    }

    /// Moves received frames to the end of `burst`, at most as many as it has capacity left. If there are none it runs
    /// the queue's NAPI, where it has one to run, and looks again.
    pub fn receive(&mut self, burst: &mut Vec<Frame>) {
        let Self { receive, ledger, bogus, napi, fd, .. } = self;
        let take = |burst: &mut Vec<Frame>| {
            let before = burst.len();
            while burst.len() < burst.capacity() {
                let Some(desc) = receive.pop() else { break };
                match ledger.take_received(desc.addr, desc.len) {
                    Some(frame) => burst.push(frame),
                    None => *bogus += 1,
                }
            }
            if burst.len() != before {
                receive.release();
            }
        };
        napi.receive(burst, take, || sys::kick_receive(fd.as_fd()));
    }

    /// Puts a frame on the send ring; it comes back when the ring is full. [`Socket::flush`] starts it.
    pub fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.dead || self.send.room(1) == 0 {
            return Err(frame);
        }
        let desc = xdp_desc { addr: frame.address(), len: u32::try_from(frame.len()).unwrap_or(0), options: 0 };
        self.ledger.lend_send(frame);
        let pushed = self.send.push(desc);
        debug_assert!(pushed.is_ok());
        Ok(())
    }

    /// Starts the sending of all frames on the send ring: the only place that decides on a wake-up.
    pub fn flush(&mut self) {
        self.send.publish();
        for _ in 0..MAX_KICKS {
            if self.dead || !self.send.has_unread() || !self.send.needs_wakeup() {
                return;
            }
            self.wakeups += 1;
            let Err(error) = sys::kick_send(self.fd.as_fd()) else { continue };
            match error.raw_os_error() {
                // More frames than one call sends.
                Some(libc::EAGAIN | libc::EINTR) => {}
                // The device dropped one frame; the ones behind it can go (net/xdp/xsk.c, __xsk_generic_xmit).
                Some(libc::EBUSY) => self.refused += 1,
                // No memory for a buffer: the next flush tries again.
                Some(libc::ENOBUFS) => return,
                _ => self.dead = true,
            }
        }
    }

    /// Takes frames whose sending is over back into the pool.
    pub fn complete(&mut self, pool: &mut Pool) {
        let mut any = false;
        while let Some(address) = self.completion.pop() {
            any = true;
            match self.ledger.take_sent(address) {
                Some(frame) => pool.put(frame),
                None => self.bogus += 1,
            }
        }
        if any {
            self.completion.release();
        }
    }

    /// Closes the socket and returns every chunk that the kernel held, for the region to be unmapped: a zero-copy
    /// driver lets go of its chunks only when the kernel releases the queue, a moment later
    /// (`xp_release_deferred` in net/xdp/xsk_buff_pool.c), and until then what it writes there is nobody's.
    pub fn close(self) -> Pool {
        let Self { ledger, fd, _mappings, .. } = self;
        drop(fd);
        // SAFETY: the socket is closed. The kernel has unhooked it before `close` returned: copies neither go to
        // its chunks nor come from them any more. It holds the pages until the driver has let go of them.
        unsafe { ledger.recover() }
    }
}

/// Binds a socket, and waits while the queue is taken: it stays so until the kernel has released the pool of the socket
/// that was closed last, on a work queue after a grace period (`xp_put_pool` in net/xdp/xsk_buff_pool.c).
fn bind_when_free(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let end = Instant::now() + RELEASE_LIMIT;
    loop {
        match sys::bind(fd, address) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                thread::sleep(RELEASE_POLL);
            }
            bound => return bound,
        }
    }
}

impl TryFrom<&xdp_ring_offset> for Layout {
    type Error = io::Error;

    fn try_from(offset: &xdp_ring_offset) -> io::Result<Self> {
        let to_usize = |n: u64| usize::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        Ok(Self {
            producer: to_usize(offset.producer)?,
            consumer: to_usize(offset.consumer)?,
            flags: to_usize(offset.flags)?,
            slots: to_usize(offset.desc)?,
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a page")]
const CHUNK_BYTES: u32 = CHUNK_SIZE as u32;

fn register(fd: BorrowedFd<'_>, region: &Region) -> io::Result<()> {
    let (base, bytes) = region.as_raw();
    let registration = libc::xdp_umem_reg {
        addr: base.as_ptr() as u64,
        len: bytes as u64,
        chunk_size: CHUNK_BYTES,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    // SAFETY: it refers to packet memory, which stays mapped while a chunk is lent (invariant 1 of `frame`). The kernel
    // touches no chunk but those that it is lent, which have no frame (invariant 4).
    unsafe { sys::set_referring_option(fd, SOL_XDP, XDP_UMEM_REG, &registration) }
}
