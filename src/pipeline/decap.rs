//! From the wire: the outer headers are read, judged and taken off, and the inner packet is addressed to its pod.

use super::Node;
pub use super::destinations::Destination;
use crate::counters::{DropReason, Tally};
use crate::fib::LocalPod;
use crate::frame::{Frame, Pool};
use crate::offload::{Delivery, Segment};
use crate::port::PodPort;
use crate::trace::Trace;
use crate::wire::{Ecn, Encapsulated, EtherType, Ethernet, IpError, Ipv4, Ipv6, OuterError};

/// A frame from the wire that is a whole packet of our overlay.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub destination: Destination,
    /// Where the inner Ethernet header starts, in bytes.
    start: usize,
    /// Where the inner packet ends, in bytes.
    end: usize,
    ethertype: EtherType,
    /// The codepoint to set, when it is not the packet's own.
    ecn: Option<Ecn>,
    /// What it carries, if that is TCP.
    pub segment: Option<Segment>,
}

impl Arrival {
    /// Reads and judges the outer headers, and the inner one as far as delivery needs.
    pub fn parse(frame: &[u8], node: &Node) -> Result<Self, DropReason> {
        let outer = Encapsulated::parse(frame).map_err(|error| match error {
            OuterError::Truncated => DropReason::WireTruncated,
            OuterError::NotVxlan => DropReason::WireNotVxlan,
            OuterError::BadFlags => DropReason::VxlanFlags,
        })?;
        if outer.outer_dst != node.vtep || outer.dst_port != node.port {
            return Err(DropReason::WireNotVxlan);
        }
        if outer.vni != node.vni {
            return Err(DropReason::VxlanVni);
        }
        if outer.inner_dst != node.vtep_mac {
            return Err(DropReason::InnerMac);
        }
        if outer.inner_src == node.vtep_mac || !outer.inner_src.is_unicast() {
            return Err(DropReason::InnerLoop);
        }
        let start = outer.inner_l3_offset;
        let packet = frame.get(start..outer.inner_end).ok_or(DropReason::WireTruncated)?;
        let (destination, ttl, ecn, len, segment) = match outer.inner_ethertype {
            EtherType::IPV4 => {
                let ip = Ipv4::parse(packet).map_err(inner_error)?;
                (Destination::V4(ip.dst), ip.ttl, ip.ecn(), ip.total_len, Segment::read_v4(&ip, packet))
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(packet).map_err(inner_error)?;
                (Destination::V6(ip.dst), ip.hop_limit, ip.ecn(), ip.total_len, Segment::read_v6(&ip, packet))
            }
            _ => return Err(DropReason::InnerNotIp),
        };
        if ttl <= 1 {
            return Err(DropReason::TtlExpired);
        }
        let delivered = Ecn::decapsulate(outer.outer_ecn, ecn).map_err(|_| DropReason::EcnIllegal)?;
        Ok(Self {
            destination,
            start: start - Ethernet::LEN,
            end: start + len,
            ethertype: outer.inner_ethertype,
            ecn: (delivered != ecn).then_some(delivered),
            segment,
        })
    }

    /// Takes the outer headers off and makes the inner frame one from the pod's gateway to the pod, a hop further.
    pub fn deliver(&self, frame: &mut Frame, pod: &LocalPod) -> Result<(), DropReason> {
        let ethernet = Ethernet { dst: pod.mac, src: pod.gateway_mac, ethertype: self.ethertype };
        if !frame.set_len(self.end) || !frame.trim_front(self.start) || !ethernet.write(frame) {
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
