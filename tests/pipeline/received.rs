//! Frames from the wire that the kernel has received, and the workers get among those of pods.

use podwire::counters::{Count, DropReason};
use podwire::offload::VirtioNetHdr;

use crate::journey::assert_checksums;
use crate::world::*;

/// Asks for a checksum.
fn needs_csum(start: usize, offset: u16) -> [u8; 10] {
    let [s0, s1] = u16::try_from(start).unwrap().to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    [VirtioNetHdr::NEEDS_CSUM, 0, 0, 0, 0, 0, s0, s1, o0, o1]
}

#[test]
fn they_are_delivered_as_those_of_af_xdp_are() {
    for underlay in Underlay::ALL {
        let frames: Vec<_> =
            (0..80_u8).map(|n| encapsulated(&udp_v4(&vec![n; usize::from(n) * 16], 64), underlay)).collect();
        let (mut by_xdp, mut by_kernel) = (worker(2, underlay), worker(2, underlay));
        for frame in &frames {
            assert!(by_xdp.wire.offer(frame, &mut by_xdp.pool));
            received(&mut by_kernel, Some(frame.clone()), [0; 10]);
        }
        // What pods send goes on in between.
        from_pod(&mut by_kernel, &udp_v4(b"from a pod", 64));
        while by_xdp.poll_once() > 0 {}
        while by_kernel.poll_once() > 0 {}
        let got = delivered(&mut by_kernel);
        assert_eq!(got.len(), frames.len());
        assert!(got == delivered(&mut by_xdp), "the same packets in the same order");
        let counts = |worker: &MemoryWorker| {
            [Count::WireRxPackets, Count::WireRxBytes, Count::PodTxPackets].map(|count| worker.tally.count(count))
        };
        assert_eq!(counts(&by_kernel), counts(&by_xdp));
        assert_eq!(by_kernel.tally.count(Count::PodRxPackets), 1, "the pod's own");
        assert_conserved(&by_kernel);
    }
}

/// On a wire inside the machine nobody has completed the inner checksum.
#[test]
fn a_checksum_that_the_sender_left_to_a_device_is_completed() {
    for underlay in Underlay::ALL {
        let whole = encapsulated(&udp_v4(b"to be summed", 64), underlay);
        let start = underlay.outer_len() + 20;
        let mut partial = whole.clone();
        let pseudo = {
            let ip = etherparse::Ipv4Header::from_slice(&whole[start - 20..]).unwrap().0;
            let length = u16::try_from(whole.len() - start).unwrap();
            let words = [ip.source, ip.destination].concat();
            let words = words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
            let sum: u32 = words.sum::<u32>() + 17 + u32::from(length);
            u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
        };
        partial[start + 6..start + 8].copy_from_slice(&pseudo.to_be_bytes());
        let mut receiver = worker(2, underlay);
        received(&mut receiver, Some(partial), needs_csum(start, 6));
        receiver.poll_once();
        let got = delivered(&mut receiver);
        assert_eq!(got.len(), 1, "{:?}", receiver.tally);
        assert_checksums(&got[0]);
    }
}

#[test]
fn each_that_cannot_go_on_is_counted_and_costs_no_frame() {
    let frame = || encapsulated(&udp_v4(b"x", 64), Underlay::V4);
    let super_packet = [0, VirtioNetHdr::GSO_UDP_L4, 0, 0, 1, 0, 0, 0, 0, 0];
    let rows = [
        (None, [0; 10], DropReason::SlotTruncated),
        (Some(frame()), super_packet, DropReason::VirtioHeader),
        (Some(frame()), needs_csum(4000, 0), DropReason::VirtioHeader),
        (Some(frame()), needs_csum(0, u16::MAX), DropReason::VirtioHeader),
        // It may change neither header nor address that the frame was let through for.
        (Some(frame()), needs_csum(14 + 12, 0), DropReason::VirtioHeader),
        (Some(frame()), needs_csum(64 + 12, 0), DropReason::VirtioHeader),
        (Some(frame()), needs_csum(34, 30 + 12), DropReason::VirtioHeader),
        (Some(vec![0; 5000]), [0; 10], DropReason::TooBig),
        (Some(vec![0; 20]), [0; 10], DropReason::WireNotVxlan),
    ];
    for (frame, virtio, reason) in rows {
        let mut receiver = worker(2, Underlay::V4);
        received(&mut receiver, frame, virtio);
        receiver.poll_once();
        assert_eq!(receiver.tally.drops(reason), 1, "{reason:?}: {:?}", receiver.tally);
        assert_eq!(receiver.tally.count(Count::WireRxPackets), 1);
        assert_conserved(&receiver);
    }
    let mut receiver = worker(2, Underlay::V4);
    let kept: Vec<_> = std::iter::from_fn(|| receiver.pool.take()).collect();
    received(&mut receiver, Some(frame()), [0; 10]);
    receiver.poll_once();
    assert_eq!(receiver.tally.drops(DropReason::NoFrame), 1);
    for frame in kept {
        receiver.pool.put(frame);
    }
    assert_conserved(&receiver);
}
