use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{MsgFlags, recv};

use super::{Error, VIRTIO_HEADER};
use crate::ids::IfIndex;
use crate::xsk::{Mapping, sys};

/// In the tag of a frame from the wire: `TAG_FROM_WIRE` of `bpf/claim.h`.
const FROM_WIRE: u16 = 0x2000;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Slots in a block, which the kernel allocates in one piece: as many pages as a slot has lines.
const SLOTS_PER_BLOCK: u32 = 64;

/// What precedes a packet in its slot: its header and address, the virtio header, and the Ethernet header (`tpacket_rcv`
/// in net/packet/af_packet.c).
const BEFORE_PACKET: usize = 90;

/// Packets that do not fit their slots, of one burst at most,
const LARGE: usize = 8;
/// and the bytes of each: the largest super-packet (64 KiB of IP) with its headers.
const LARGE_BYTES: usize = 66 << 10;

/// Half of what the kernel's buffer for such a packet takes: it makes twice as much of what a socket asks for.
const LARGE_BUFFER: u32 = 34 << 10;

const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;
const TP_STATUS_COPY: u32 = 1 << 1;
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
    /// It says that the frame is one from the wire, for the pod instead of from it.
    pub from_wire: bool,
    /// The frame from its Ethernet header on; `None` if the slot could not hold all of it.
    pub frame: Option<&'a [u8]>,
}

/// A TPACKET_V2 receive ring with virtio headers.
///
/// Its slots hold what fits a wire, densely. Of a packet that exceeds them, a super-packet, the kernel queues the buffer
/// besides (`PACKET_COPY_THRESH`), to be read by a system call.
#[derive(Debug)]
pub struct Ring {
    mapping: Mapping,
    slots: u32,
    slot_bytes: usize,
    /// The first slot not yet released.
    next: u32,
    /// How many slots from there on have been fetched.
    fetched: u32,
    /// Of those whose packets exceed them: which, and where the packet is, behind its virtio header.
    large: Vec<(u32, Range<usize>)>,
    buffer: Box<[u8]>,
    lost: u64,
    ifindex: IfIndex,
    down: bool,
    fd: OwnedFd,
}

impl Ring {
    /// Opens a ring of at least `slots` slots on a device, each for a packet of up to `mtu` bytes.
    pub fn open(ifindex: IfIndex, slots: u32, mtu: u16, fanout: Option<Fanout<'_>>) -> Result<Self, Error> {
        // Protocol 0 receives nothing until bound: an unbound tap would see every device.
        let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map_err(Error::Open)?;
        // The order matters to the kernel: version and virtio header before the ring.
        set(fd.as_fd(), "PACKET_VERSION", libc::PACKET_VERSION, &libc::tpacket_versions::TPACKET_V2)?;
        set(fd.as_fd(), "PACKET_VNET_HDR", libc::PACKET_VNET_HDR, &1)?;
        set(fd.as_fd(), "PACKET_IGNORE_OUTGOING", libc::PACKET_IGNORE_OUTGOING, &1)?;
        set(fd.as_fd(), "PACKET_COPY_THRESH", libc::PACKET_COPY_THRESH, &1)?;
        // An odd number of lines, so that the headers of all slots do not share a few sets of the cache.
        let lines = (BEFORE_PACKET + usize::from(mtu)).div_ceil(LINE) | 1;
        let blocks = slots.div_ceil(SLOTS_PER_BLOCK).max(1);
        let (slots, slot_bytes) = (blocks * SLOTS_PER_BLOCK, lines * LINE);
        // As many as there are slots: whoever finds a slot finds room. Without the privilege fewer may wait, and what exceeds
        // them is counted.
        let buffer = slots.saturating_mul(LARGE_BUFFER);
        if let Err(error) = sys::set_option(fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer) {
            tracing::warn!(%error, "few super-packets of pods may wait for a worker");
        }
        let failed = |source| Error::Map { slots, source };
        let request = request(blocks, slot_bytes);
        sys::set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_RX_RING, &request).map_err(failed)?;
        let mapping = Mapping::new(fd.as_fd(), slots as usize * slot_bytes, 0).map_err(failed)?;
        bind(fd.as_fd(), ifindex)?;
        if let Some(fanout) = fanout {
            join(fd.as_fd(), fanout)?;
        }
        let (large, buffer) = (Vec::with_capacity(LARGE), vec![0; LARGE * LARGE_BYTES].into());
        Ok(Self { mapping, slots, slot_bytes, next: 0, fetched: 0, large, buffer, lost: 0, ifindex, down: false, fd })
    }

    /// The descriptor, for poll(2).
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

    /// Makes up to `limit` slots that are ours readable, and returns how many are until they are released. A system call
    /// for each packet that exceeds its slot.
    pub fn fetch(&mut self, limit: u32) -> u32 {
        if self.fetched > 0 {
            return self.fetched;
        }
        for index in 0..self.ready(limit) {
            let status = self.status(index).map_or(TP_STATUS_KERNEL, |status| status.load(Ordering::Relaxed));
            if status & TP_STATUS_COPY != 0 {
                let start = self.large.len() * LARGE_BYTES;
                let Some(buffer) = self.buffer.get_mut(start..start + LARGE_BYTES) else { break };
                let fd = self.fd.as_raw_fd();
                let read = recv(fd, buffer, MsgFlags::MSG_DONTWAIT).or_else(|_| {
                    // The error that a device leaves that went down, told once and before any packet.
                    self.down = true;
                    recv(fd, buffer, MsgFlags::MSG_DONTWAIT)
                });
                self.large.push((index, start..start + read.unwrap_or(0)));
            }
            self.fetched += 1;
        }
        self.fetched
    }

    /// The `index`th of the slots that were fetched; `None` beyond them, or if its header makes no sense.
    pub fn slot(&self, index: u32) -> Option<Slot<'_>> {
        if index >= self.fetched {
            return None;
        }
        let base = self.base(index)?;
        // SAFETY: the header lies at the start of the slot, aligned to 16 bytes, and is ours (invariant 2).
        let header: libc::tpacket2_hdr = unsafe { base.cast::<libc::tpacket2_hdr>().read() };
        let (start, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        let least = mem::size_of::<libc::tpacket2_hdr>() + VIRTIO_HEADER;
        if start < least || start.checked_add(len)? > self.slot_bytes {
            return None;
        }
        let tag = if header.tp_status & TP_STATUS_VLAN_VALID != 0 { header.tp_vlan_tci } else { 0 };
        let (vlan, from_wire) = (tag & 0xfff, tag & FROM_WIRE != 0);
        if header.tp_status & TP_STATUS_COPY != 0 {
            let (virtio, frame) = self.large(index).and_then(<[u8]>::split_first_chunk).unwrap_or((&[0; _], &[]));
            let frame = (frame.len() == header.tp_len as usize).then_some(frame);
            return Some(Slot { virtio, vlan, from_wire, frame });
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
        Some(Slot { virtio, vlan, from_wire, frame: (header.tp_snaplen == header.tp_len).then_some(frame) })
    }

    /// Gives the first `n` fetched slots back to the kernel.
    pub fn release(&mut self, n: u32) {
        let n = n.min(self.fetched);
        for _ in 0..n {
            if let Some(status) = self.status(0) {
                // Pairs with the kernel's acquire: the slot is read before it changes hands.
                status.store(TP_STATUS_KERNEL, Ordering::Release);
            }
            self.next = (self.next + 1) % self.slots;
        }
        self.fetched -= n;
        self.large.retain_mut(|(index, _)| {
            let kept = *index >= n;
            *index = index.saturating_sub(n);
            kept
        });
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

    /// A packet that exceeds its slot, behind its virtio header.
    fn large(&self, index: u32) -> Option<&[u8]> {
        let (_, place) = self.large.iter().find(|(of, _)| *of == index)?;
        self.buffer.get(place.clone())
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
        self.mapping.at((self.next + index) as usize % self.slots as usize * self.slot_bytes, self.slot_bytes)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a slot and a block are far below 4 GiB")]
fn request(blocks: u32, slot_bytes: usize) -> libc::tpacket_req {
    libc::tpacket_req {
        tp_block_size: slot_bytes as u32 * SLOTS_PER_BLOCK,
        tp_block_nr: blocks,
        tp_frame_size: slot_bytes as u32,
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
