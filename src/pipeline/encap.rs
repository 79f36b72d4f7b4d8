//! From a pod: the packet is copied out of the ring, cut to the wire's size if it is a super-packet, its checksum
//! completed, and the outer headers put on.

use super::decap::{hop, inner_error};
use super::destinations::Destination;
use crate::counters::{Count, DropReason, Tally};
use crate::fib::Remote;
use crate::frame::{Frame, HEADROOM, MAX_FRAME, Pool};
use crate::offload::{OffloadError, Segmenter, VirtioNetHdr, copy_plain};
use crate::port::{Slot, WirePort};
use crate::trace::Trace;
use crate::wire::{Ecn, Entropy, EtherType, Ethernet, Inner, Ipv4, Ipv6, flow_hash_v4, flow_hash_v6, inner_sum};

/// A packet that a pod sent, still in its slot.
#[derive(Clone, Copy, Debug)]
pub struct Departure<'a> {
    pub destination: Destination,
    /// The frame up to where its IP header says that the packet ends.
    pub frame: &'a [u8],
    virtio: VirtioNetHdr,
    ethertype: EtherType,
    ecn: Ecn,
    /// Of the outer UDP header.
    pub source_port: u16,
}

impl<'a> Departure<'a> {
    /// Reads and judges the headers as far as forwarding needs, and chooses the outer flow.
    pub fn parse(slot: Option<&Slot<'a>>, entropy: Entropy) -> Result<Self, DropReason> {
        let slot = slot.ok_or(DropReason::InnerMalformed)?;
        let frame = slot.frame.ok_or(DropReason::SlotTruncated)?;
        let virtio = VirtioNetHdr::parse(slot.virtio).ok_or(DropReason::VirtioHeader)?;
        let ethernet = Ethernet::parse(frame).ok_or(DropReason::InnerMalformed)?;
        let packet = frame.get(Ethernet::LEN..).ok_or(DropReason::InnerMalformed)?;
        let (destination, ttl, ecn, hash, len) = match ethernet.ethertype {
            EtherType::IPV4 => {
                let ip = Ipv4::parse(packet).map_err(inner_error)?;
                (Destination::V4(ip.dst()), ip.ttl(), ip.ecn(), flow_hash_v4(ip, packet), ip.total_len())
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(packet).map_err(inner_error)?;
                (Destination::V6(ip.dst()), ip.hop_limit(), ip.ecn(), flow_hash_v6(ip, packet), ip.total_len())
            }
            _ => return Err(DropReason::InnerNotIp),
        };
        if ttl <= 1 {
            return Err(DropReason::TtlExpired);
        }
        let frame = frame.get(..Ethernet::LEN + len).ok_or(DropReason::InnerMalformed)?;
        let (ethertype, source_port) = (ethernet.ethertype, entropy.port(hash));
        Ok(Self { destination, frame, virtio, ethertype, ecn, source_port })
    }

    /// Bytes of the pod's frame.
    #[expect(clippy::len_without_is_empty, reason = "a packet with headers is never empty")]
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// Whether it is to be cut into several packets.
    pub fn is_super(&self) -> bool {
        self.virtio.is_gso()
    }
}

/// Where encapsulated packets go, with what that takes.
pub struct Sink<'a, W, T> {
    pub wire: &'a mut W,
    pub pool: &'a mut Pool,
    pub tally: &'a mut Tally,
    pub trace: &'a mut T,
    /// The outer IPv4 identification of the next packet.
    pub next_ip_id: &'a mut u16,
}

impl<W: WirePort, T: Trace> Sink<'_, W, T> {
    /// Sends a pod's packet to a remote node, as one frame or several. What is not sent is counted.
    pub fn send(&mut self, departure: &Departure<'_>, remote: &Remote) {
        self.trace.pod_rx(departure.frame, Ok(remote));
        if let Err(reason) = self.try_send(departure, remote) {
            self.lose(departure.frame, reason);
        }
    }

    /// Counts a pod's packet that does not go on.
    pub fn lose(&mut self, frame: &[u8], reason: DropReason) {
        self.trace.pod_rx(frame, Err(reason));
        self.tally.drop(reason);
    }

    /// Counts a frame from the wire that came the pods' way and does not go on.
    pub fn lose_arrival(&mut self, frame: &[u8], reason: DropReason) {
        self.tally.add(Count::WireRxPackets, 1);
        self.tally.add(Count::WireRxBytes, frame.len() as u64);
        self.trace.wire_rx(frame, Err(reason));
        self.tally.drop(reason);
    }

    fn try_send(&mut self, departure: &Departure<'_>, remote: &Remote) -> Result<(), DropReason> {
        if !departure.is_super() {
            let len = departure.len() - Ethernet::LEN;
            return self.emit(departure, remote, len, |out| copy_plain(departure.frame, &departure.virtio, out));
        }
        let mut segments = Segmenter::new(departure.frame, &departure.virtio).map_err(offload_error)?;
        while let Some(len) = segments.next_len() {
            self.emit(departure, remote, len, |out| segments.write_next(out).ok_or(OffloadError::NoSpace))?;
        }
        Ok(())
    }

    /// Sends one frame whose inner packet of `len` bytes `write` writes.
    fn emit(
        &mut self,
        departure: &Departure<'_>,
        remote: &Remote,
        len: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, OffloadError>,
    ) -> Result<(), DropReason> {
        let outer_len = remote.outer.len();
        if len > usize::from(remote.mtu) || outer_len + len > MAX_FRAME {
            return Err(DropReason::TooBig);
        }
        let mut frame = self.take_frame().ok_or(DropReason::NoFrame)?;
        frame.reset(HEADROOM);
        let written = if frame.set_len(outer_len + len) {
            self.encapsulate(&mut frame, departure, remote, write)
        } else {
            Err(DropReason::TooBig)
        };
        match written {
            Ok(()) => {
                self.trace.wire_tx(&frame, remote);
                self.transmit(frame)
            }
            Err(reason) => {
                self.pool.put(frame);
                Err(reason)
            }
        }
    }

    fn encapsulate(
        &mut self,
        frame: &mut Frame,
        departure: &Departure<'_>,
        remote: &Remote,
        write: impl FnOnce(&mut [u8]) -> Result<usize, OffloadError>,
    ) -> Result<(), DropReason> {
        let packet = frame.get_mut(remote.outer.len()..).ok_or(DropReason::TooBig)?;
        let l3_len = write(packet).map_err(offload_error)?;
        hop(packet, departure.ethertype);
        let inner = Inner {
            ethertype: departure.ethertype,
            l3_len,
            ecn: departure.ecn,
            source_port: departure.source_port,
            ip_id: *self.next_ip_id,
            sum: remote.outer.needs_sum().then(|| inner_sum(packet)),
        };
        *self.next_ip_id = self.next_ip_id.wrapping_add(1);
        if remote.outer.write(frame, &inner) { Ok(()) } else { Err(DropReason::TooBig) }
    }

    /// A frame from the pool; when it is empty, one that the wire has finished with.
    fn take_frame(&mut self) -> Option<Frame> {
        self.pool.take().or_else(|| {
            self.wire.flush(self.pool, self.tally);
            self.pool.take()
        })
    }

    fn transmit(&mut self, frame: Frame) -> Result<(), DropReason> {
        let bytes = frame.len() as u64;
        let sent = self.wire.send(frame).or_else(|frame| {
            self.wire.flush(self.pool, self.tally);
            self.wire.send(frame)
        });
        match sent {
            Ok(()) => {
                self.tally.add(Count::WireTxPackets, 1);
                self.tally.add(Count::WireTxBytes, bytes);
                Ok(())
            }
            Err(frame) => {
                self.pool.put(frame);
                Err(DropReason::TxRingFull)
            }
        }
    }
}

/// Why a request for an offload is not met.
pub(super) fn offload_error(error: OffloadError) -> DropReason {
    match error {
        OffloadError::NoSpace => DropReason::TooBig,
        OffloadError::NotIp
        | OffloadError::Truncated
        | OffloadError::BadGsoType
        | OffloadError::ZeroGsoSize
        | OffloadError::TooManySegments
        | OffloadError::BadChecksumField => DropReason::VirtioHeader,
    }
}
