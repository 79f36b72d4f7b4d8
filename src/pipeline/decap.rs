//! From the wire: the outer headers are read, judged and taken off, and the inner packet is addressed to its pod. What
//! a node on the same link sends without a tunnel has none to take off.

use std::net::IpAddr;

use super::Node;
pub use super::destinations::Destination;
use super::encap::offload_error;
use crate::counters::{DropReason, Tally};
use crate::fib::LocalPod;
use crate::frame::{Frame, HEADROOM, Pool};
use crate::offload::{Delivery, Segment, VirtioNetHdr, copy_plain};
use crate::port::{PodPort, Slot};
use crate::trace::Trace;
use crate::wire::{Ecn, Encapsulated, EtherType, Ethernet, IpError, Ipv4, Ipv6, Mac, OuterError};

/// Copies a frame that the kernel has received for a pod, and completes the checksum that it may still owe.
pub fn copy(slot: &Slot<'_>, pool: &mut Pool) -> Result<Frame, DropReason> {
    let bytes = slot.frame.ok_or(DropReason::SlotTruncated)?;
    let virtio = VirtioNetHdr::parse(slot.virtio).filter(|virtio| !virtio.is_gso()).ok_or(DropReason::VirtioHeader)?;
    if !is_harmless(bytes, &virtio) {
        return Err(DropReason::VirtioHeader);
    }
    let mut frame = pool.take().ok_or(DropReason::NoFrame)?;
    frame.reset(HEADROOM);
    let copied =
        if frame.set_len(bytes.len()) { copy_whole(bytes, &virtio, &mut frame) } else { Err(DropReason::TooBig) };
    match copied {
        Ok(()) => Ok(frame),
        Err(reason) => {
            pool.put(frame);
            Err(reason)
        }
    }
}

/// The same into memory of its length.
fn copy_whole(bytes: &[u8], virtio: &VirtioNetHdr, out: &mut [u8]) -> Result<(), DropReason> {
    let (Some((to, packet)), Some(from)) = (out.split_at_mut_checked(Ethernet::LEN), bytes.get(..Ethernet::LEN)) else {
        return Err(DropReason::WireTruncated);
    };
    to.copy_from_slice(from);
    copy_plain(bytes, virtio, packet).map(drop).map_err(offload_error)
}

/// Whether a checksum that is to be completed cannot change what the frame was let through for. In a tunnel that is the
/// outer UDP header's, or lies behind the inner IP header.
fn is_harmless(frame: &[u8], virtio: &VirtioNetHdr) -> bool {
    let (sum, tunnel) = match virtio.checksum(frame) {
        Ok(Some(sum)) => (sum, Encapsulated::parse(frame)),
        Ok(None) => return true,
        Err(_) => return false,
    };
    let Ok(tunnel) = tunnel else { return true };
    let udp = tunnel.udp_offset();
    let ip = if tunnel.inner_ethertype == EtherType::IPV6 { Ipv6::LEN } else { Ipv4::LEN };
    (sum.start, sum.field) == (udp, udp + 6) || sum.start >= tunnel.inner_l3_offset + ip
}

/// What delivery needs to know of a frame from the wire that holds a whole packet for a pod.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Where the Ethernet header before the packet starts, in bytes.
    start: u16,
    /// Where the inner packet ends, in bytes.
    end: u16,
    ethertype: EtherType,
    /// The codepoint to set, when it is not the packet's own.
    ecn: Option<Ecn>,
}

/// An [`Arrival`], where the packet is to go, and what it carries if that is TCP.
pub type Parsed = (Arrival, Destination, Option<Segment>);

impl Arrival {
    /// Reads and judges the headers as far as delivery needs. Inlined with all that it calls: what was found goes to
    /// several places, and on the way there through memory took a twentieth of a frame's instructions.
    #[expect(clippy::inline_always, reason = "measured by `scripts/bench stages`")]
    #[inline(always)]
    pub fn parse(frame: &[u8], node: &Node) -> Result<Parsed, DropReason> {
        let ethernet = Ethernet::parse(frame).ok_or(DropReason::WireTruncated)?;
        if let Some(vtep_mac) = vtep_of(frame, ethernet.ethertype, node) {
            Self::parse_tunnelled(frame, node, vtep_mac)
        } else if ethernet.dst == node.uplink_mac {
            Self::parse_bare(frame, ethernet.ethertype)
        } else {
            Err(DropReason::WireNotVxlan)
        }
    }

    /// A VXLAN packet to the VTEP of ours that has this MAC.
    #[expect(clippy::inline_always, reason = "see `Arrival::parse`")]
    #[inline(always)]
    fn parse_tunnelled(frame: &[u8], node: &Node, vtep_mac: Mac) -> Result<Parsed, DropReason> {
        let outer = Encapsulated::parse(frame).map_err(|error| match error {
            OuterError::Truncated => DropReason::WireTruncated,
            OuterError::NotVxlan => DropReason::WireNotVxlan,
            OuterError::BadFlags => DropReason::VxlanFlags,
        })?;
        if outer.dst_port != node.port {
            return Err(DropReason::WireNotVxlan);
        }
        if outer.vni != node.vni {
            return Err(DropReason::VxlanVni);
        }
        if outer.inner_dst != vtep_mac {
            return Err(DropReason::InnerMac);
        }
        if outer.inner_src == vtep_mac || !outer.inner_src.is_unicast() {
            return Err(DropReason::InnerLoop);
        }
        Self::read(frame, outer.inner_l3_offset, outer.inner_end, outer.inner_ethertype, outer.outer_ecn)
    }

    /// A packet without a tunnel, addressed to our uplink.
    fn parse_bare(frame: &[u8], ethertype: EtherType) -> Result<Parsed, DropReason> {
        if !matches!(ethertype, EtherType::IPV4 | EtherType::IPV6) {
            return Err(DropReason::WireNotVxlan);
        }
        // A tunnel without a word on congestion changes nothing.
        Self::read(frame, Ethernet::LEN, frame.len(), ethertype, Ecn::NotEct)
    }

    /// Reads the packet between two places of a frame, which came in a tunnel with a codepoint.
    #[expect(clippy::inline_always, reason = "see `Arrival::parse`")]
    #[inline(always)]
    fn read(frame: &[u8], start: usize, end: usize, ethertype: EtherType, outer: Ecn) -> Result<Parsed, DropReason> {
        let packet = frame.get(start..end).ok_or(DropReason::WireTruncated)?;
        let (destination, ttl, ecn, len, segment) = match ethertype {
            EtherType::IPV4 => {
                let ip = Ipv4::parse(packet).map_err(inner_error)?;
                (Destination::V4(ip.dst()), ip.ttl(), ip.ecn(), ip.total_len(), Segment::read_v4(ip, packet))
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(packet).map_err(inner_error)?;
                (Destination::V6(ip.dst()), ip.hop_limit(), ip.ecn(), ip.total_len(), Segment::read_v6(ip, packet))
            }
            _ => return Err(DropReason::InnerNotIp),
        };
        if ttl <= 1 {
            return Err(DropReason::TtlExpired);
        }
        let delivered = Ecn::decapsulate(outer, ecn).map_err(|_| DropReason::EcnIllegal)?;
        let place = |at: usize| u16::try_from(at).map_err(|_| DropReason::TooBig);
        let ecn = (delivered != ecn).then_some(delivered);
        let arrival = Self { start: place(start - Ethernet::LEN)?, end: place(start + len)?, ethertype, ecn };
        Ok((arrival, destination, segment))
    }

    /// Takes the outer headers off, if there are any, and makes the frame one from the pod's gateway to the pod, a hop
    /// further.
    pub fn deliver(&self, frame: &mut Frame, pod: &LocalPod) -> Result<(), DropReason> {
        let ethernet = Ethernet { dst: pod.mac, src: pod.gateway_mac, ethertype: self.ethertype };
        if !frame.set_len(self.end.into()) || !frame.trim_front(self.start.into()) || !ethernet.write(frame) {
            return Err(DropReason::WireTruncated);
        }
        let packet = frame.get_mut(Ethernet::LEN..).ok_or(DropReason::WireTruncated)?;
        hop(packet, self.ethertype);
        match (self.ecn, self.ethertype) {
            (Some(ecn), EtherType::IPV4) => Ipv4::set_ecn(packet, ecn),
            (Some(ecn), _) => Ipv6::set_ecn(packet, ecn),
            (None, _) => {}
        }
        Ok(())
    }
}

/// Where packets for pods go, with what that takes.
pub struct Sink<'a, P, T> {
    pub pods: &'a mut P,
    pub pool: &'a mut Pool,
    pub tally: &'a mut Tally,
    pub trace: &'a mut T,
}

impl<P: PodPort, T: Trace> Sink<'_, P, T> {
    /// Hands over a packet, whose frames it takes. What is not sent is counted.
    pub fn send(&mut self, packet: &mut Delivery) {
        if self.pods.send(packet) {
            return;
        }
        self.pods.flush(self.pool, self.tally);
        if !self.pods.send(packet) {
            self.refuse(packet, DropReason::PodRefused);
        }
    }

    /// Counts a frame from the wire that does not go on.
    pub fn discard(&mut self, frame: Frame, reason: DropReason) {
        self.trace.wire_rx(&frame, Err(reason));
        self.tally.drop(reason);
        self.pool.put(frame);
    }

    /// Counts the frames of a packet that its pod does not get.
    fn refuse(&mut self, packet: &mut Delivery, reason: DropReason) {
        // Only the first of merged frames has headers.
        if let Some(first) = packet.frames.first() {
            self.trace.pod_tx(first, Err(reason));
        }
        self.tally.drop_all(reason, packet.frames.len());
        packet.frames.drain(..).for_each(|frame| self.pool.put(frame));
    }
}

/// The MAC of the VTEP of ours that an IP packet is addressed to, if it is.
fn vtep_of(frame: &[u8], ethertype: EtherType, node: &Node) -> Option<Mac> {
    let second = || node.second.filter(|end| is_to(frame, ethertype, end.underlay)).map(|end| end.mac);
    if is_to(frame, ethertype, node.vtep) { Some(node.vtep_mac) } else { second() }
}

/// Whether an IP packet's destination is an address, without a look at anything else.
fn is_to(frame: &[u8], ethertype: EtherType, address: IpAddr) -> bool {
    match (ethertype, address) {
        (EtherType::IPV4, IpAddr::V4(address)) => {
            frame.get(Ethernet::LEN + 16..).and_then(<[u8]>::first_chunk) == Some(&address.octets())
        }
        (EtherType::IPV6, IpAddr::V6(address)) => {
            frame.get(Ethernet::LEN + 24..).and_then(<[u8]>::first_chunk) == Some(&address.octets())
        }
        _ => false,
    }
}

/// Counts the TTL or hop limit of an IP packet down by one.
pub(super) fn hop(packet: &mut [u8], ethertype: EtherType) {
    // It was seen to be above 1 when the packet was parsed.
    let left = match ethertype {
        EtherType::IPV4 => Ipv4::decrement_ttl(packet),
        _ => Ipv6::decrement_hop_limit(packet),
    };
    debug_assert!(left.is_some());
}

/// Why an inner packet is not one that workers carry.
pub(super) fn inner_error(error: IpError) -> DropReason {
    match error {
        IpError::Truncated | IpError::BadVersion | IpError::BadLength => DropReason::InnerMalformed,
        IpError::BadChecksum => DropReason::InnerChecksum,
        IpError::Options | IpError::Fragment | IpError::ExtensionHeader => DropReason::InnerUnsupported,
    }
}
