//! Packets between nodes that need no tunnel, and to and from those that use one.

use crate::journey::{assert_checksums, assert_merged, deliver, routed};
use crate::world::*;

/// What node 1 puts on the wire for a frame of its pod.
fn on_wire(frame: &[u8], underlay: Underlay) -> Vec<u8> {
    let mut sender = direct_worker(1, underlay);
    from_pod(&mut sender, frame);
    sender.poll_once();
    assert_conserved(&sender);
    sent(&mut sender).pop().expect("the frame is carried")
}

/// A pod's frame as the node's own kernel would forward it on the link.
fn forwarded(frame: &[u8]) -> Vec<u8> {
    let mut frame = routed(frame, 1);
    frame[..6].copy_from_slice(&uplink_mac(2).0);
    frame[6..12].copy_from_slice(&uplink_mac(1).0);
    frame
}

#[test]
fn every_kind_of_packet_leaves_as_a_router_would_forward_it_and_arrives() {
    for underlay in Underlay::ALL {
        for (name, frame) in samples() {
            let bare = on_wire(&frame, underlay);
            assert_eq!(bare, forwarded(&frame), "{name}");
            // The receiver need not do the same.
            for mut receiver in [direct_worker(2, underlay), worker(2, underlay)] {
                let delivered = deliver(&mut receiver, std::slice::from_ref(&bare));
                assert_eq!(delivered.len(), 1, "{name}: {:?}", receiver.tally);
                assert_eq!(delivered[0].frame, routed(&frame, 2), "{name}");
            }
        }
    }
}

#[test]
fn a_node_that_needs_no_tunnel_takes_what_comes_through_one() {
    for (name, frame) in samples() {
        let mut receiver = direct_worker(2, Underlay::V4);
        let delivered = deliver(&mut receiver, &[encapsulated(&frame, Underlay::V4)]);
        assert_eq!(delivered[0].frame, routed(&frame, 2), "{name}");
    }
}

#[test]
fn a_super_packet_is_cut_to_the_wires_size_and_merged_again() {
    let payload: Vec<u8> = (0..10_000u32).map(|n| n.to_be_bytes()[3]).collect();
    for (frame, kind, start) in [(tcp_v4(&payload), 1, 34u8), (tcp_v6(&payload), 4, 54)] {
        let [low, high] = 1360u16.to_le_bytes();
        let mut sender = direct_worker(1, Underlay::V4);
        with_request(&mut sender, &frame, [1, kind, 0, 0, low, high, start, 0, 16, 0]);
        sender.poll_once();
        assert_conserved(&sender);
        let segments = sent(&mut sender);
        assert_eq!(segments.len(), payload.len().div_ceil(1360));
        for segment in &segments {
            assert_checksums(segment);
            assert_eq!(segment[..12], forwarded(&frame)[..12]);
        }
        let request = [1, kind, start + 20, 0, low, high, start, 0, 16, 0];
        assert_merged(Underlay::V4, &segments, &routed(&frame, 2), &request);
    }
}

#[test]
fn padding_of_short_frames_does_not_reach_the_pod() {
    let frame = udp_v4(&[], 64);
    let padded = [on_wire(&frame, Underlay::V4), vec![0xee; 18]].concat();
    let mut receiver = worker(2, Underlay::V4);
    assert_eq!(deliver(&mut receiver, &[padded])[0].frame, routed(&frame, 2));
}
