//! Packets that go all the way, from a pod of one node to a pod of the other.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use podwire::counters::{Count, DropReason};
use podwire::fib::{Fib, Publisher};
use podwire::frame::Region;
use podwire::offload::complete;
use podwire::pipeline::Pipeline;
use podwire::port::memory::{MemoryPods, MemoryWire, ToPod};
use podwire::wire::{Ecn, Entropy, Ipv4, Ipv6};
use podwire::worker::Worker;

use crate::drops::{INNER_IP, patch};
use crate::world::*;

/// Carries a frame from the pod of node 1 to the one of node 2.
fn carry(frame: &[u8], underlay: Underlay) -> Vec<u8> {
    let mut receiver = worker(2, underlay);
    let on_wire = encapsulated(frame, underlay);
    assert!(receiver.wire.offer(&on_wire, &mut receiver.pool));
    assert_eq!(receiver.poll_once(), 1);
    assert_conserved(&receiver);
    let mut frames = delivered(&mut receiver);
    assert_eq!(frames.len(), 1, "{:?}", receiver.tally);
    frames.remove(0)
}

/// What a router with that many hops makes of a frame from pod 1 to pod 2.
pub fn routed(frame: &[u8], hops: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&pod(2).mac.0);
    frame[6..12].copy_from_slice(&pod(2).gateway_mac.0);
    for _ in 0..hops {
        match frame[12] {
            0x08 => Ipv4::decrement_ttl(&mut frame[14..]),
            _ => Ipv6::decrement_hop_limit(&mut frame[14..]),
        };
    }
    frame
}

/// Whether an independent parser finds every checksum of an Ethernet frame right.
pub fn assert_checksums(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let net = packet.net.unwrap();
    match (&net, packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), transport) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            match transport {
                TransportSlice::Udp(udp) => {
                    let wanted = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                    assert!(udp.checksum() == wanted, "UDP checksum {:#x}, should be {wanted:#x}", udp.checksum());
                }
                TransportSlice::Tcp(tcp) => {
                    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap());
                }
                TransportSlice::Icmpv4(icmp) => {
                    assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
                }
                other => unreachable!("{other:?} in IPv4"),
            }
        }
        (NetSlice::Ipv6(ip), transport) => {
            let (src, dst) = (ip.header().source(), ip.header().destination());
            match transport {
                TransportSlice::Udp(udp) => {
                    let wanted = udp.to_header().calc_checksum_ipv6_raw(src, dst, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), wanted);
                }
                TransportSlice::Tcp(tcp) => {
                    let wanted = tcp.to_header().calc_checksum_ipv6_raw(src, dst, tcp.payload()).unwrap();
                    assert_eq!(tcp.checksum(), wanted);
                }
                TransportSlice::Icmpv6(icmp) => assert!(icmp.is_checksum_valid(src, dst)),
                other => unreachable!("{other:?} in IPv6"),
            }
        }
        (NetSlice::Arp(_), _) => unreachable!("not IP"),
    }
}

#[test]
fn every_kind_of_packet_arrives_two_hops_older_and_otherwise_unchanged() {
    for underlay in Underlay::ALL {
        for (name, frame) in samples() {
            assert_eq!(carry(&frame, underlay), routed(&frame, 2), "{name} over {underlay:?}");
        }
    }
}

#[test]
fn outer_headers_are_those_of_a_vxlan_peer() {
    for underlay in Underlay::ALL {
        for (name, frame) in samples() {
            let outer = encapsulated(&frame, underlay);
            assert_eq!(outer.len(), frame.len() - 14 + underlay.outer_len(), "{name}");
            assert_eq!((&outer[..6], &outer[6..12]), (&uplink_mac(2).0[..], &uplink_mac(1).0[..]));
            assert_checksums(&outer);
            let packet = SlicedPacket::from_ethernet(&outer).unwrap();
            let TransportSlice::Udp(udp) = packet.transport.unwrap() else { panic!("{name}: not UDP") };
            assert_eq!(udp.destination_port(), PORT);
            assert!(udp.source_port() >= 49152);
            assert_eq!(udp.payload()[..8], [8, 0, 0, 0, 0, 0, 1, 0], "flags and VNI 1");
            assert_eq!((&udp.payload()[8..14], &udp.payload()[14..20]), (&vtep_mac(2).0[..], &vtep_mac(1).0[..]));
        }
    }
}

#[test]
fn flows_differ_in_source_port_and_a_flow_keeps_its_own() {
    let port = |frame: &[u8]| {
        let outer = encapsulated(frame, Underlay::V4);
        u16::from_be_bytes([outer[34], outer[35]])
    };
    assert_eq!(port(&udp_v4(&[1], 64)), port(&udp_v4(&[2, 3], 64)));
    let ports: std::collections::HashSet<_> = samples().iter().map(|(_, frame)| port(frame)).collect();
    assert!(ports.len() >= 5, "{ports:?}");
}

#[test]
fn a_partial_checksum_is_completed() {
    let frame = udp_v4(b"partial", 64);
    let mut partial = frame.clone();
    let length = u16::try_from(frame.len() - 34).unwrap();
    let pseudo: u32 = frame[26..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = pseudo + 17 + u32::from(length);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    partial[40..42].copy_from_slice(&folded.to_be_bytes());
    let mut sender = worker(1, Underlay::V4);
    with_request(&mut sender, &partial, [1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
    sender.poll_once();
    assert_eq!(sent(&mut sender)[0][64 + 20..], frame[34..]);
}

#[test]
fn a_super_packet_becomes_segments_that_add_up_to_it() {
    let payload: Vec<u8> = (0..10_000u32).map(|n| n.to_be_bytes()[3]).collect();
    for (underlay, frame, kind) in [(Underlay::V4, tcp_v4(&payload), 1), (Underlay::V6, tcp_v6(&payload), 4)] {
        let start = if kind == 1 { 34u8 } else { 54 };
        let gso: u16 = 1360;
        let [low, high] = gso.to_le_bytes();
        let mut sender = worker(1, underlay);
        with_request(&mut sender, &frame, [1, kind, 0, 0, low, high, start, 0, 16, 0]);
        sender.poll_once();
        let segments = sent(&mut sender);
        assert_eq!(segments.len(), payload.len().div_ceil(usize::from(gso)));
        assert_eq!(sender.tally.count(Count::PodRxSuper), 1);
        assert_conserved(&sender);

        for segment in &segments {
            assert_checksums(segment);
        }
        let [headers, _] = u16::from(start + 20).to_le_bytes();
        let request = [1, kind, headers, 0, low, high, start, 0, 16, 0];
        assert_merged(underlay, &segments, &routed(&frame, 2), &request);
        // In the row the third is missing, and comes last.
        let mut late = segments.clone();
        let third = late.remove(2);
        late.push(third);
        let mut receiver = worker(2, underlay);
        assert_eq!(deliver(&mut receiver, &late).len(), 3);
        assert_eq!((receiver.tally.count(Count::PodTxSuper), receiver.tally.count(Count::PodTxMerged)), (2, 7));
    }
}

#[test]
fn segments_are_merged_among_lost_ones_and_other_packets() {
    let frame = tcp_v4(&vec![7; 5 * 1360]);
    let [low, high] = 1360u16.to_le_bytes();
    let mut sender = worker(1, Underlay::V4);
    with_request(&mut sender, &frame, [1, 1, 0, 0, low, high, 34, 0, 16, 0]);
    sender.poll_once();
    let mut burst = sent(&mut sender);
    let datagram = udp_v4(b"between", 64);
    let mut lost = burst[4].clone();
    patch(&mut lost, INNER_IP, 19, &[6]);
    burst.insert(2, encapsulated(&datagram, Underlay::V4));
    burst.insert(0, lost);
    let mut receiver = worker(2, Underlay::V4);
    let [between, merged] = &deliver(&mut receiver, &burst)[..] else { panic!("not two packets") };
    assert_eq!(receiver.tally.drops(DropReason::NoPod), 1);
    assert_eq!(between.frame, routed(&datagram, 2));
    let mut completed = merged.frame.clone();
    assert!(complete(&mut completed, merged.virtio.csum_start.into(), merged.virtio.csum_offset.into()));
    assert!(completed == routed(&frame, 2), "the packet differs");
}

/// What the pod gets when all these frames come in one burst.
pub fn deliver(receiver: &mut MemoryWorker, frames: &[Vec<u8>]) -> Vec<ToPod> {
    for frame in frames {
        assert!(receiver.wire.offer(frame, &mut receiver.pool));
    }
    receiver.poll_once();
    assert_conserved(receiver);
    receiver.pods.delivered.as_mut().map(std::mem::take).unwrap()
}

/// Asserts that a burst of `segments` reaches the pod as one packet: `whole`, but for the checksum that `request` leaves
/// to the pod's kernel.
pub fn assert_merged(underlay: Underlay, segments: &[Vec<u8>], whole: &[u8], request: &[u8; 10]) {
    let mut receiver = worker(2, underlay);
    let [ToPod { virtio, frame, .. }] = &deliver(&mut receiver, segments)[..] else { panic!("several packets") };
    assert_eq!(virtio.to_bytes(), *request);
    let mut completed = frame.clone();
    assert!(complete(&mut completed, virtio.csum_start.into(), virtio.csum_offset.into()));
    assert!(completed == whole, "the packet differs");
    let merged = [Count::PodTxPackets, Count::PodTxSuper, Count::PodTxMerged].map(|count| receiver.tally.count(count));
    assert_eq!(merged, [1, 1, segments.len() as u64]);
}

#[test]
fn congestion_that_the_underlay_signals_reaches_the_pod() {
    let mut frame = udp_v4(b"ecn", 64);
    Ipv4::set_ecn(&mut frame[14..], Ecn::Ect0);
    let mut on_wire = encapsulated(&frame, Underlay::V4);
    assert_eq!(on_wire[15] & 3, Ecn::Ect0 as u8, "the codepoint is copied to the outer header");
    Ipv4::set_ecn(&mut on_wire[14..], Ecn::Ce);
    let mut receiver = worker(2, Underlay::V4);
    receiver.wire.offer(&on_wire, &mut receiver.pool);
    receiver.poll_once();
    let frame = delivered(&mut receiver).remove(0);
    assert_eq!(frame[15] & 3, Ecn::Ce as u8);
    assert_checksums(&frame);
}

#[test]
fn padding_of_short_frames_does_not_reach_the_pod() {
    let frame = udp_v4(&[], 64);
    let mut on_wire = encapsulated(&frame, Underlay::V4);
    on_wire.extend_from_slice(&[0xee; 30]);
    let mut receiver = worker(2, Underlay::V4);
    receiver.wire.offer(&on_wire, &mut receiver.pool);
    receiver.poll_once();
    assert_eq!(delivered(&mut receiver).remove(0), routed(&frame, 2));
}

#[test]
fn a_burst_of_many_packets_keeps_their_order() {
    let (mut sender, mut receiver) = (worker(1, Underlay::V4), worker(2, Underlay::V4));
    for n in 0..200u8 {
        from_pod(&mut sender, &if n % 2 == 0 { udp_v4(&[n], 64) } else { udp_v6(&[n], 64) });
    }
    while sender.poll_once() > 0 {}
    for frame in sent(&mut sender) {
        assert!(receiver.wire.offer(&frame, &mut receiver.pool));
    }
    while receiver.poll_once() > 0 {}
    let order: Vec<_> = delivered(&mut receiver).iter().map(|frame| *frame.last().unwrap()).collect();
    assert_eq!(order, (0..200).collect::<Vec<_>>());
    assert_conserved(&receiver);
}

#[test]
fn a_wire_that_wants_few_outer_flows_gets_each_in_one_piece_and_in_order() {
    let mut sender = worker(1, Underlay::V4);
    sender.wire.entropy = Entropy::Few;
    let mut flow = udp_v4(&[0], 64);
    let mut burst = |n: u8| {
        flow[34] = n % 30;
        *flow.last_mut().unwrap() = n;
        flow.clone()
    };
    for n in 0..64 {
        from_pod(&mut sender, &burst(n));
    }
    sender.poll_once();
    let sent: Vec<_> = sent(&mut sender);
    // Outer source port, flow, and number, which grows within a flow.
    let seen: Vec<_> = sent.iter().map(|f| ([f[34], f[35]], *f.last().unwrap() % 30, *f.last().unwrap())).collect();
    let mut ports: Vec<_> = seen.iter().map(|(port, ..)| port).collect();
    ports.dedup();
    let pieces = ports.len();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!((seen.len(), pieces), (64, ports.len()), "{seen:?}");
    assert!((8..=16).contains(&pieces), "30 flows over {pieces} ports");
    for flow in 0..30 {
        let own: Vec<_> = seen.iter().filter(|(_, of, _)| *of == flow).collect();
        assert!(own.is_sorted() && own.windows(2).all(|pair| pair[0].0 == pair[1].0), "{own:?}");
    }
}

#[test]
fn a_full_send_ring_is_flushed_and_used_again() {
    let mut sender = worker(1, Underlay::V4);
    sender.wire.room = 3;
    for n in 0..10 {
        from_pod(&mut sender, &udp_v4(&[n], 64));
    }
    sender.poll_once();
    assert_eq!((sent(&mut sender).len(), sender.tally.dropped()), (10, 0));
}

#[test]
fn a_published_table_counts_from_the_next_burst_on() {
    let (_region, pool) = Region::map(FRAMES).unwrap();
    let mut publisher = Publisher::new(Fib::default());
    let node = this(1, Underlay::V4);
    let (wire, pods) = (MemoryWire::recording(), MemoryPods::recording());
    let mut sender = Worker::new(wire, pods, pool, Pipeline::new(node), publisher.reader());
    from_pod(&mut sender, &udp_v4(&[1], 64));
    sender.poll_once();
    assert_eq!(sent(&mut sender).len(), 0);
    publisher.publish(table(1, Underlay::V4));
    sender.pods.rewind();
    sender.poll_once();
    assert_eq!(sent(&mut sender).len(), 1);
}
