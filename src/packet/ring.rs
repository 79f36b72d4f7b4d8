use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Error, VIRTIO_HEADER};
use crate::ids::IfIndex;
use crate::xsk::{Mapping, sys};

/// Bytes of a slot: the largest super-packet (64 KiB of IP) with its headers.
const SLOT: usize = 66 << 10;

/// Slots in a block, which the kernel allocates in one piece: 495 pages, little less than a power of two.
const SLOTS_PER_BLOCK: u32 = 30;

const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;

/// Which frames of the device this ring gets, when several share them.
#[derive(Clone, Copy, Debug)]
pub struct Fanout<'a> {
    /// The group, equal for all rings that share and unique in the network namespace.
    pub group: u16,
    /// A socket-filter program that returns the ring's index in the order of joining.
    pub program: BorrowedFd<'a>,
}

/// A received frame, still in its slot.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// The `struct virtio_net_hdr`: what the frame's sender left to the device.
    pub virtio: &'a [u8; VIRTIO_HEADER],
    /// The VLAN id that the steering program pushed.
    pub vlan: u16,
    /// The frame from its Ethernet header on; `None` if the slot could not hold all of it.
    pub frame: Option<&'a [u8]>,
}

/// A TPACKET_V2 receive ring with virtio headers.
#[derive(Debug)]
pub struct Ring {
    mapping: Mapping,
    slots: u32,
    /// The first slot not yet released.
    next: u32,
    lost: u64,
    ifindex: IfIndex,
    down: bool,
    fd: OwnedFd,
}

impl Ring {
    /// Opens a ring of at least `slots` slots on a device.
    pub fn open(ifindex: IfIndex, slots: u32, fanout: Option<Fanout<'_>>) -> Result<Self, Error> {
        // Protocol 0 receives nothing until bound: an unbound tap would see every device.
        let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(Error::Open)?;
        // The order matters to the kernel: version and virtio header before the ring.
        set(fd.as_fd(), "PACKET_VERSION", libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V2)?;
        set(fd.as_fd(), "PACKET_VNET_HDR", libc::PACKET_VNET_HDR, &1)?;
        set(fd.as_fd(), "PACKET_IGNORE_OUTGOING", libc::PACKET_IGNORE_OUTGOING, &1)?;
        let blocks = slots.div_ceil(SLOTS_PER_BLOCK).max(1);
        let slots = blocks * SLOTS_PER_BLOCK;
        let failed = |source| Error::Map { slots, source };
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_RX_RING, &request(blocks)).map_err(failed)?;
        let mapping = Mapping::new(fd.as_fd(), slots as usize * SLOT, 0).map_err(failed)?;
        bind(fd.as_fd(), ifindex)?;
        if let Some(fanout) = fanout {
            join(fd.as_fd(), fanout)?;
        }
        Ok(Self { mapping, slots, next: 0, lost: 0, ifindex, down: false, fd })
    }

    /// The descriptor, for epoll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How many slots there are.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// How many slots are ours to read, counted up to `limit`.
    pub fn ready(&self, limit: u32) -> u32 {
        let limit = limit.min(self.slots);
        let mut ready = 0;
        while ready < limit && self.is_ours(ready) {
            ready += 1;
        }
        ready
    }

    /// The `index`th slot of those that are ready; `None` beyond them, or if its header makes no sense.
    pub fn slot(&self, index: u32) -> Option<Slot<'_>> {
        if !self.is_ours(index) {
            return None;
        }
        let base = self.base(index)?;
        // SAFETY: the header lies at the start of the slot, aligned to 16 bytes, and is ours (invariant 2).
        let header: libc::tpacket2_hdr = unsafe { base.cast::<libc::tpacket2_hdr>().read() };
        let (start, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        let least = mem::size_of::<libc::tpacket2_hdr>() + VIRTIO_HEADER;
        if start < least || start.checked_add(len)? > SLOT {
            return None;
        }
        // SAFETY: the offset is inside the slot, as just checked (invariant 3).
        let virtio = unsafe { base.add(start - VIRTIO_HEADER) };
        // SAFETY: ten bytes that end where the frame starts (invariant 3), ours while `self` is borrowed,
        // because `release` needs `&mut self` (invariants 1 and 2).
        let virtio = unsafe { virtio.cast::<[u8; VIRTIO_HEADER]>().as_ref() };
        // SAFETY: the offset is inside the slot, as just checked (invariant 3).
        let data = unsafe { base.add(start) };
        // SAFETY: the length is inside the slot (invariant 3); ours while `self` is borrowed.
        let frame = unsafe { slice::from_raw_parts(data.as_ptr(), len) };
        let tagged = header.tp_status & TP_STATUS_VLAN_VALID != 0;
        Some(Slot {
            virtio,
            vlan: if tagged { header.tp_vlan_tci & 0xfff } else { 0 },
            frame: (header.tp_snaplen == header.tp_len).then_some(frame),
        })
    }

    /// Gives the first `n` ready slots back to the kernel.
    pub fn release(&mut self, n: u32) {
        for _ in 0..n {
            if let Some(status) = self.status(0) {
                // Pairs with the kernel's acquire: the slot is read before it changes hands.
                status.store(TP_STATUS_KERNEL, Ordering::Release);
            }
            self.next = (self.next + 1) % self.slots;
        }
    }

    /// Whether the device is down or gone, so that nothing is received. A ring whose device is up again goes on by itself.
    /// A system call.
    ///
    /// Takes the error that the kernel leaves on the socket when the device goes down (`packet_notifier` in
    /// net/packet/af_packet.c), which would wake a sleeper for ever.
    pub fn is_dead(&mut self) -> bool {
        // SAFETY: the error is a plain integer.
        let error: io::Result<libc::c_int> =
            unsafe { sys::get_option(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_ERROR) };
        self.down |= !matches!(error, Ok(0));
        self.down = self.down && !self.device_is_up().unwrap_or(false);
        self.down
    }

    fn device_is_up(&self) -> io::Result<bool> {
        // SAFETY: all-zero bytes are a valid request.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        request.ifr_ifru.ifru_ifindex = self.ifindex.0.cast_signed();
        // SAFETY: the request points at nothing.
        unsafe { sys::device_request(self.fd.as_fd(), libc::SIOCGIFNAME, &mut request) }?;
        // SAFETY: as above; it has the name now.
        unsafe { sys::device_request(self.fd.as_fd(), libc::SIOCGIFFLAGS, &mut request) }?;
        // SAFETY: the answer is the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
    }

    /// Frames that found no free slot, since the ring was opened.
    pub fn lost(&mut self) -> u64 {
        // SAFETY: the statistics are plain integers. Reading resets them in the kernel.
        let statistics: io::Result<libc::tpacket_stats> =
            unsafe { sys::get_option(self.fd.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS) };
        self.lost += statistics.map_or(0, |s| u64::from(s.tp_drops));
        self.lost
    }

    fn is_ours(&self, index: u32) -> bool {
        // Pairs with the kernel's release: the slot is written before its status.
        self.status(index).is_some_and(|status| status.load(Ordering::Acquire) & TP_STATUS_USER != 0)
    }

    fn status(&self, index: u32) -> Option<&AtomicU32> {
        // SAFETY: the status is the first word of the slot, inside the live mapping (invariant 1).
        Some(unsafe { self.base(index)?.cast::<AtomicU32>().as_ref() })
    }

    fn base(&self, index: u32) -> Option<NonNull<u8>> {
        self.mapping.at((self.next + index) as usize % self.slots as usize * SLOT, SLOT)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a slot and a block are far below 4 GiB")]
fn request(blocks: u32) -> libc::tpacket_req {
    libc::tpacket_req {
        tp_block_size: SLOT as u32 * SLOTS_PER_BLOCK,
        tp_block_nr: blocks,
        tp_frame_size: SLOT as u32,
        tp_frame_nr: blocks * SLOTS_PER_BLOCK,
    }
}

fn bind(fd: BorrowedFd<'_>, ifindex: IfIndex) -> Result<(), Error> {
    let address = super::sender::address(ifindex, libc::ETH_P_ALL);
    sys::bind(fd, &address).map_err(|source| Error::Bind { ifindex, source })
}

fn join(fd: BorrowedFd<'_>, fanout: Fanout<'_>) -> Result<(), Error> {
    // Fanout does not look at the sockets' own PACKET_IGNORE_OUTGOING.
    let kind = libc::PACKET_FANOUT_EBPF | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    set(fd, "PACKET_FANOUT", libc::PACKET_FANOUT, &(u32::from(fanout.group) | kind << 16))?;
    set(fd, "PACKET_FANOUT_DATA", libc::PACKET_FANOUT_DATA, &fanout.program.as_raw_fd())
}

pub(super) fn set<T: Copy>(
    fd: BorrowedFd<'_>,
    option: &'static str,
    name: libc::c_int,
    value: &T,
) -> Result<(), Error> {
    sys::set_option(fd, libc::SOL_PACKET, name, value).map_err(|source| Error::Option { option, source })
}
