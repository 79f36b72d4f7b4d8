//! Each reason for a drop, produced. The table must name them all.

use std::collections::HashSet;

use podwire::counters::DropReason::{self, *};
use podwire::wire::{Ecn, Ipv4};

use crate::world::*;

/// A way to lose a packet.
struct Loss {
    reason: DropReason,
    name: &'static str,
    lose: fn(&mut MemoryWorker),
}

/// Offers node 1 the frame of a peer's pod, as `change` leaves it.
fn from_wire(worker: &mut MemoryWorker, change: impl FnOnce(&mut Vec<u8>)) {
    // Seen from node 2 the sender is node 1: the same worlds, mirrored.
    let mut frame = mirrored();
    change(&mut frame);
    assert!(worker.wire.offer(&frame, &mut worker.pool));
}

/// A frame from the pod of node 2 to the one of node 1, on the wire.
fn mirrored() -> Vec<u8> {
    let mut frame = udp_v4(b"mirrored", 64);
    let (mut src, mut dst) = ([0; 4], [0; 4]);
    src.copy_from_slice(&frame[26..30]);
    dst.copy_from_slice(&frame[30..34]);
    frame[26..30].copy_from_slice(&dst);
    frame[30..34].copy_from_slice(&src);
    let mut sender = worker(2, Underlay::V4);
    from_pod(&mut sender, &frame);
    sender.poll_once();
    sent(&mut sender).remove(0)
}

/// Sends a pod's frame, as `change` leaves it.
fn from_own_pod(worker: &mut MemoryWorker, change: impl FnOnce(&mut Vec<u8>)) {
    let mut frame = udp_v4(b"own", 64);
    change(&mut frame);
    from_pod(worker, &frame);
}

/// Writes `bytes` into an IPv4 header that starts at `at`, and makes its checksum right again.
pub fn patch(frame: &mut [u8], at: usize, offset: usize, bytes: &[u8]) {
    frame[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
    frame[at + 10..at + 12].fill(0);
    let sum: u32 = frame[at..at + 20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let check = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    frame[at + 10..at + 12].copy_from_slice(&check.to_be_bytes());
}

const OUTER_IP: usize = 14;
const VXLAN: usize = 42;
const INNER_ETHERNET: usize = 50;
pub const INNER_IP: usize = 64;

fn losses() -> Vec<Loss> {
    macro_rules! losses {
        ($($reason:ident, $name:literal, $lose:expr;)+) => { vec![$(Loss { reason: $reason, name: $name, lose: $lose },)+] };
    }
    losses! {
        WireTruncated, "a frame of no bytes", |w| from_wire(w, Vec::clear);
        WireTruncated, "ends in the VXLAN header", |w| from_wire(w, |f| {
            f.truncate(VXLAN + 4);
            patch(f, OUTER_IP, 2, &32u16.to_be_bytes());
            f[38..40].copy_from_slice(&12u16.to_be_bytes());
        });
        WireNotVxlan, "ARP", |w| from_wire(w, |f| f[12..14].copy_from_slice(&[8, 6]));
        WireNotVxlan, "another address and MAC", |w| from_wire(w, |f| {
            patch(f, OUTER_IP, 19, &[99]);
            f[5] ^= 8;
        });
        WireNotVxlan, "another port", |w| from_wire(w, |f| f[36..38].copy_from_slice(&4789u16.to_be_bytes()));
        WireNotVxlan, "an outer fragment", |w| from_wire(w, |f| patch(f, OUTER_IP, 6, &[0x20, 0]));
        WireNotVxlan, "a wrong outer checksum", |w| from_wire(w, |f| f[OUTER_IP + 10] ^= 1);
        VxlanFlags, "no I flag", |w| from_wire(w, |f| f[VXLAN] = 0);
        VxlanFlags, "a reserved bit", |w| from_wire(w, |f| f[VXLAN + 7] = 1);
        VxlanVni, "another network", |w| from_wire(w, |f| f[VXLAN + 6] = 2);
        InnerMac, "for another VTEP", |w| from_wire(w, |f| f[INNER_ETHERNET + 5] ^= 8);
        InnerLoop, "our own MAC", |w| from_wire(w, |f| f[INNER_ETHERNET + 6..INNER_ETHERNET + 12].copy_from_slice(&vtep_mac(1).0));
        InnerLoop, "a multicast source", |w| from_wire(w, |f| f[INNER_ETHERNET + 6] |= 1);
        InnerNotIp, "an inner ARP", |w| from_wire(w, |f| f[INNER_IP - 1] = 6);
        InnerNotIp, "VXLAN in VXLAN whose inner type is VLAN", |w| from_wire(w, |f| f[INNER_IP - 2..INNER_IP].copy_from_slice(&[0x81, 0]));
        InnerMalformed, "longer than its frame", |w| from_wire(w, |f| patch(f, INNER_IP, 2, &[4, 0]));
        InnerMalformed, "a pod's frame of ten bytes", |w| from_own_pod(w, |f| f.truncate(10));
        InnerChecksum, "a wrong inner checksum", |w| from_wire(w, |f| f[INNER_IP + 10] ^= 1);
        InnerUnsupported, "an inner fragment", |w| from_wire(w, |f| patch(f, INNER_IP, 6, &[0x20, 0]));
        InnerUnsupported, "a pod's fragment", |w| from_own_pod(w, |f| patch(f, OUTER_IP, 6, &[0, 1]));
        EcnIllegal, "CE on a packet without ECN", |w| from_wire(w, |f| Ipv4::set_ecn(&mut f[OUTER_IP..], Ecn::Ce));
        TtlExpired, "the last hop, from the wire", |w| from_wire(w, |f| patch(f, INNER_IP, 8, &[1]));
        TtlExpired, "the last hop, from a pod", |w| from_own_pod(w, |f| patch(f, OUTER_IP, 8, &[1]));
        NoPod, "no such pod, without a tunnel", |w| from_wire(w, |f| patch(f, OUTER_IP, 19, &[99]));
        NoPod, "no such pod", |w| from_wire(w, |f| patch(f, INNER_IP, 19, &[6]));
        NoPod, "a pod of another node", |w| from_wire(w, |f| patch(f, INNER_IP, 18, &[2]));
        NoRoute, "no such node", |w| from_own_pod(w, |f| patch(f, OUTER_IP, 18, &[77]));
        NoRoute, "our own range", |w| from_own_pod(w, |f| patch(f, OUTER_IP, 18, &[1, 9]));
        TooBig, "a byte more than the MTU", |w| from_pod(w, &udp_v4(&vec![0; usize::from(MTU) - 27], 64));
        VirtioHeader, "a checksum outside the frame", |w| with_request(w, &udp_v4(b"", 64), [1, 0, 0, 0, 0, 0, 34, 0, 0xff, 0]);
        VirtioHeader, "an unknown segmentation", |w| with_request(w, &tcp_v4(&[0; 3000]), [1, 3, 0, 0, 0, 5, 34, 0, 16, 0]);
        VirtioHeader, "segments of no bytes", |w| with_request(w, &tcp_v4(&[0; 3000]), [1, 1, 0, 0, 0, 0, 34, 0, 16, 0]);
        SlotTruncated, "larger than a slot", |w| {
            from_own_pod(w, |_| ());
            w.pods.incoming[0].frame = None;
        };
        NoFrame, "no packet memory", |w| {
            while let Some(frame) = w.pool.take() { w.wire.incoming.push_front(frame) }
            from_own_pod(w, |_| ());
            w.wire.incoming.clear();
        };
        TxRingFull, "a send ring that stays full", |w| {
            w.wire.stuck = true;
            from_own_pod(w, |_| ());
        };
        UplinkRefused, "a device that drops what it took", |w| {
            w.wire.lossy = true;
            from_own_pod(w, |_| ());
        };
        PodRefused, "the pod's device is gone", |w| {
            w.pods.closed = true;
            from_wire(w, |_| ());
        };
    }
}

#[test]
fn a_mirrored_frame_is_delivered_so_that_each_loss_has_its_own_cause() {
    let mut worker = worker(1, Underlay::V4);
    from_wire(&mut worker, |_| ());
    from_own_pod(&mut worker, |_| ());
    worker.poll_once();
    assert_eq!((delivered(&mut worker).len(), sent(&mut worker).len(), worker.tally.dropped()), (1, 1, 0));
}

#[test]
fn every_reason_is_produced_and_counted_once() {
    let mut seen = HashSet::new();
    for Loss { reason, name, lose } in losses() {
        let mut worker = worker(1, Underlay::V4);
        lose(&mut worker);
        worker.poll_once();
        assert_eq!(worker.tally.drops(reason), 1, "{name}: {:?}", worker.tally);
        assert_eq!(worker.tally.dropped(), 1, "{name}: {:?}", worker.tally);
        assert_eq!((delivered(&mut worker).len(), sent(&mut worker).len()), (0, 0), "{name}");
        if reason != NoFrame {
            assert_conserved(&worker);
        }
        seen.insert(reason);
    }
    let missing: Vec<_> = DropReason::ALL.iter().filter(|reason| !seen.contains(reason)).collect();
    assert!(missing.is_empty(), "no test produces {missing:?}");
}
