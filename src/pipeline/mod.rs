//! Everything that happens to a packet, in order. No system call, allocation, lock, clock or log: packets come
//! from a port and leave through one, or are dropped for a counted reason.
//!
//! ```text
//!   wire_to_pods     parse ──▶ look up ──▶ decapsulate ──▶ merge ──▶ pod port
//!   pods_to_wire     parse ──▶ look up ──▶ copy or cut ──▶ encapsulate ──▶ wire port
//! ```
//!
//! Between nodes on one link packets may go without a tunnel: then encapsulation is an Ethernet header.
//!
//! A burst goes through each stage whole, so that a stage's code and tables stay in the cache and its
//! memory accesses overlap. Where the wire carries packets of one outer flow together, a burst leaves ordered by them.
//! The steering programs have judged every packet before; all is judged again
//! here, because what they saw may have changed since. A [`Trace`] is told of each packet and what becomes of it.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod decap;
mod destinations;
pub mod encap;
mod turns;

use std::net::IpAddr;

use arrayvec::ArrayVec;

use crate::counters::{Count, DropReason, Tally};
use crate::fib::{Fib, NextHop};
use crate::frame::{Frame, Pool};
use crate::offload::{Gro, MAX_FRAMES, Segment};
use crate::port::{PodPort, WirePort};
use crate::trace::Trace;
use crate::wire::{Entropy, Mac, TunnelEnd, Vni};
use decap::Arrival;
use destinations::Destinations;
use encap::Departure;
use turns::Turns;

/// Packets of one burst: so many that those to one node make trains of eight in each of the sixteen outer flows. With 64
/// a worker sends a seventh less; more gain nothing, and keep others waiting for longer.
pub const BURST: usize = BURST_SLOTS as usize;

/// The same, as rings count.
const BURST_SLOTS: u32 = 128;

const _: () = assert!(BURST <= MAX_FRAMES, "the frames of a burst may all become one delivery");

/// What this node is to the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Our VTEP address on the underlay.
    pub vtep: IpAddr,
    /// Our VTEP's MAC: the destination of inner frames to us.
    pub vtep_mac: Mac,
    /// The same of our second VTEP.
    pub second: Option<TunnelEnd>,
    /// The uplink's MAC: the destination of frames to us that come without a tunnel.
    pub uplink_mac: Mac,
    /// The UDP port of VXLAN.
    pub port: u16,
    pub vni: Vni,
}

/// One worker's pipeline: what it is told, and the scratch memory that bursts go through.
#[derive(Debug)]
pub struct Pipeline {
    node: Node,
    received: Vec<Frame>,
    /// Each with whether it is TCP.
    arrivals: Vec<(Frame, Arrival, bool)>,
    /// Of the arrivals that are TCP, in their order. Kept apart, so that the others carry no room for one.
    segments: Vec<Segment>,
    destinations: Destinations,
    gro: Gro,
    /// The outer IPv4 identification of the next packet.
    next_ip_id: u16,
}

impl Pipeline {
    pub fn new(node: Node) -> Self {
        Self {
            node,
            received: Vec::with_capacity(BURST),
            arrivals: Vec::with_capacity(BURST),
            segments: Vec::with_capacity(BURST),
            destinations: Destinations::default(),
            gro: Gro::default(),
            next_ip_id: 0,
        }
    }

    /// Takes a burst from the underlay to the pods, and what [`Pipeline::pods_to_wire`] found for them. Returns how many
    /// frames were received.
    pub fn wire_to_pods(
        &mut self,
        wire: &mut impl WirePort,
        pods: &mut impl PodPort,
        fib: &Fib,
        pool: &mut Pool,
        tally: &mut Tally,
        trace: &mut impl Trace,
    ) -> usize {
        wire.receive(&mut self.received);
        let received = self.received.len();
        if received == 0 {
            return 0;
        }
        tally.add(Count::WireRxPackets, received as u64);
        let mut sink = decap::Sink { pods, pool, tally, trace };
        for frame in self.received.drain(..) {
            sink.tally.add(Count::WireRxBytes, frame.len() as u64);
            match Arrival::parse(&frame, &self.node) {
                Ok((arrival, destination, segment)) => {
                    self.destinations.push(destination);
                    self.arrivals.push((frame, arrival, segment.is_some()));
                    self.segments.extend(segment);
                }
                Err(reason) => sink.discard(frame, reason),
            }
        }
        let hops = self.destinations.resolve(fib);
        let mut segments = self.segments.drain(..);
        for ((mut frame, arrival, is_tcp), hop) in self.arrivals.drain(..).zip(hops) {
            let segment = if is_tcp { segments.next() } else { None };
            let Some(NextHop::Local(pod)) = fib.next_hop(*hop) else {
                sink.discard(frame, DropReason::NoPod);
                continue;
            };
            sink.trace.wire_rx(&frame, Ok(pod));
            match arrival.deliver(&mut frame, pod) {
                Ok(()) => {
                    sink.trace.pod_tx(&frame, Ok(pod));
                    self.gro.push(frame, segment.as_ref(), pod, |packet| sink.send(packet));
                }
                Err(reason) => sink.discard(frame, reason),
            }
        }
        self.gro.flush(|packet| sink.send(packet));
        pods.flush(pool, tally);
        received
    }

    /// Takes a burst from the pods to the underlay, and copies what came their way from the underlay, for
    /// [`Pipeline::wire_to_pods`], which is to follow. Returns how many frames the pods sent, a super-packet counting
    /// once.
    pub fn pods_to_wire(
        &mut self,
        pods: &mut impl PodPort,
        wire: &mut impl WirePort,
        fib: &Fib,
        pool: &mut Pool,
        tally: &mut Tally,
        trace: &mut impl Trace,
    ) -> usize {
        let fetched = pods.fetch(BURST_SLOTS);
        if fetched == 0 {
            return 0;
        }
        let entropy = wire.entropy();
        let mut sink = encap::Sink { wire, pool, tally, trace, next_ip_id: &mut self.next_ip_id };
        let mut departures = ArrayVec::<_, BURST>::new();
        let mut arrivals = 0;
        for index in 0..fetched {
            let slot = pods.slot(index);
            if let Some(slot) = slot.filter(|slot| slot.from_wire) {
                match decap::copy(&slot, sink.pool) {
                    Ok(frame) => self.received.push(frame),
                    Err(reason) => sink.lose_arrival(slot.frame.unwrap_or_default(), reason),
                }
                arrivals += 1;
                continue;
            }
            match Departure::parse(slot.as_ref(), entropy) {
                Ok(departure) => {
                    sink.tally.add(Count::PodRxBytes, departure.len() as u64);
                    sink.tally.add(Count::PodRxSuper, u64::from(departure.is_super()));
                    let destination = departure.destination;
                    // There is room for all that was asked for.
                    match departures.try_push(departure) {
                        Ok(()) => self.destinations.push(destination),
                        Err(_) => debug_assert!(false, "more were fetched than asked for"),
                    }
                }
                Err(reason) => sink.lose(slot.and_then(|slot| slot.frame).unwrap_or_default(), reason),
            }
        }
        let hops = self.destinations.resolve(fib);
        let leave = |place: usize| {
            let (Some(departure), Some(hop)) = (departures.get(place), hops.get(place)) else { return };
            match fib.next_hop(*hop) {
                Some(NextHop::Remote(remote)) => sink.send(departure, remote),
                _ => sink.lose(departure.frame, DropReason::NoRoute),
            }
        };
        match entropy {
            Entropy::Full => (0..hops.len()).for_each(leave),
            Entropy::Few => {
                let flows = departures.iter().zip(hops).map(|(departure, hop)| (*hop, departure.source_port));
                Turns::new(flows).places().for_each(leave);
            }
        }
        // It borrows what is to be released.
        drop(departures);
        let departed = fetched - arrivals;
        tally.add(Count::PodRxPackets, departed.into());
        pods.release(fetched);
        wire.flush(pool, tally);
        departed as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_that_of_the_programs() {
        let header = include_str!("../../bpf/worker.h");
        assert!(header.contains(&format!("#define WORKER_BURST {BURST}\n")));
    }
}
