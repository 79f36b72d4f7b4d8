//! Malformed input: whatever comes, a packet is carried or dropped for a reason, and no frame is lost.

use podwire::counters::Count::{PodRxPackets, PodTxMerged, PodTxPackets, PodTxSuper, WireRxPackets, WireTxPackets};
use proptest::prelude::RngCore;
use proptest::test_runner::{RngAlgorithm, TestRng};

use crate::world::*;

const NOISE: usize = 1_000_000;

/// Everything offered is accounted for.
fn assert_accounted(worker: &mut MemoryWorker, offered: u64) {
    let carried = (delivered(worker).len() + sent(worker).len()) as u64;
    assert!(carried + worker.tally.dropped() >= offered, "{offered} offered, {carried} carried: {:?}", worker.tally);
    assert_conserved(worker);
}

#[test]
fn frames_cut_at_every_byte_are_dropped() {
    for underlay in Underlay::ALL {
        for (name, frame) in samples() {
            let on_wire = encapsulated(&frame, underlay);
            let mut receiver = worker(2, underlay);
            for len in 0..on_wire.len() {
                assert!(receiver.wire.offer(&on_wire[..len], &mut receiver.pool));
                receiver.poll_once();
            }
            assert_eq!(receiver.tally.dropped(), on_wire.len() as u64, "{name}");
            assert_accounted(&mut receiver, on_wire.len() as u64);

            let mut sender = worker(1, underlay);
            for len in 0..frame.len() {
                from_pod(&mut sender, &frame[..len]);
            }
            while sender.poll_once() > 0 {}
            assert_eq!(sender.tally.dropped(), frame.len() as u64, "{name}");
        }
    }
}

#[test]
fn an_empty_and_a_jumbo_frame_do_no_harm() {
    let mut receiver = worker(2, Underlay::V4);
    for len in [0, 1, 13, 14, 3840] {
        assert!(receiver.wire.offer(&vec![0xff; len], &mut receiver.pool));
    }
    receiver.poll_once();
    assert_accounted(&mut receiver, 5);
    let mut sender = worker(1, Underlay::V4);
    for len in [0, 1, 13, 14, 65_550] {
        from_pod(&mut sender, &vec![0x45; len]);
    }
    sender.poll_once();
    assert_accounted(&mut sender, 5);
}

#[test]
fn a_tunnel_in_the_tunnel_is_carried_like_any_packet() {
    let inner = encapsulated(&udp_v4(b"deep", 64), Underlay::V4);
    let outer = encapsulated(&udp_v4(&inner, 64), Underlay::V4);
    let mut receiver = worker(2, Underlay::V4);
    assert!(receiver.wire.offer(&outer, &mut receiver.pool));
    receiver.poll_once();
    assert!(delivered(&mut receiver).remove(0).ends_with(&inner));
}

#[test]
fn a_million_random_and_mutated_frames_are_carried_or_dropped() {
    let mut rng = TestRng::from_seed(RngAlgorithm::XorShift, &[7; 16]);
    let originals: Vec<_> = samples().into_iter().map(|(_, frame)| frame).collect();
    let wires: Vec<_> = originals.iter().map(|frame| encapsulated(frame, Underlay::V4)).collect();
    let (mut receiver, mut sender) = (worker(2, Underlay::V4), worker(1, Underlay::V4));
    receiver.pods.delivered = None;
    sender.wire.sent = None;
    let mut offered = 0;
    while offered < NOISE {
        sender.pods.incoming.clear();
        sender.pods.rewind();
        for _ in 0..64 {
            let wire = mutate(&wires, &mut rng);
            assert!(receiver.wire.offer(&wire, &mut receiver.pool));
            let mut virtio = [0; 10];
            if rng.next_u32().is_multiple_of(2) {
                rng.fill_bytes(&mut virtio);
            }
            with_request(&mut sender, &mutate(&originals, &mut rng), virtio);
            offered += 2;
        }
        receiver.poll_once();
        sender.poll_once();
    }
    let (got, lost) = (receiver.tally.count(WireRxPackets), receiver.tally.dropped());
    let handed = receiver.tally.count(PodTxPackets) - receiver.tally.count(PodTxSuper);
    assert_eq!(handed + receiver.tally.count(PodTxMerged) + lost, got, "{:?}", receiver.tally);
    assert!(receiver.tally.count(PodTxPackets) > 0 && lost > got / 2);
    let lost = sender.tally.dropped();
    // A super-packet that fails halfway is both sent and dropped.
    assert!(sender.tally.count(WireTxPackets) + lost >= sender.tally.count(PodRxPackets), "{:?}", sender.tally);
    assert_conserved(&receiver);
    assert_conserved(&sender);
}

/// Random bytes, or one of the originals with some bytes changed and perhaps cut.
fn mutate(originals: &[Vec<u8>], rng: &mut TestRng) -> Vec<u8> {
    if below(rng, 4) == 0 {
        let mut noise = vec![0; below(rng, 200)];
        rng.fill_bytes(&mut noise);
        return noise;
    }
    let mut frame = originals[below(rng, originals.len())].clone();
    for _ in 0..=below(rng, 3) {
        let at = below(rng, frame.len().min(110));
        frame[at] = rng.next_u32().to_le_bytes()[0];
    }
    if below(rng, 8) == 0 {
        frame.truncate(below(rng, frame.len()));
    }
    frame
}

fn below(rng: &mut TestRng, n: usize) -> usize {
    rng.next_u32() as usize % n
}
