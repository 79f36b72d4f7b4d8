//! What workers do in place of a device: checksums against etherparse; super-packets cut into packets that are whole and
//! right, and merged and cut again into the same.
#![no_main]

use std::cell::RefCell;

use etherparse::{SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use podwire::fib::LocalPod;
use podwire::frame::{Frame, MAX_FRAME, Pool, Region};
use podwire::ids::{IfIndex, PodId};
use podwire::offload::{Checksum, Gro, MAX_FRAMES, Segment, Segmenter, VirtioNetHdr, complete, copy_plain};
use podwire::wire::{Ipv4, Ipv6, Mac};
use podwire_fuzz::{ETHERNET, Sums, aim, assert_whole, checksum, l4_checksum, mend};

struct Merger {
    pool: Pool,
    gro: Gro,
    pod: LocalPod,
}

thread_local! {
    static MERGER: RefCell<Merger> = RefCell::new(Merger {
        pool: Region::map(u32::try_from(MAX_FRAMES).expect("few")).expect("packet memory").1,
        gro: Gro::default(),
        pod: LocalPod {
            id: PodId::new(1).expect("an id"),
            ifindex: IfIndex(1),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            gateway_mac: Mac([2, 0, 0, 0, 0, 2]),
        },
    });
}

// How much is mended, a virtio header, a pod's frame.
fuzz_target!(|input: &[u8]| {
    let Some((&[how, virtio @ ..], frame)) = input.split_first_chunk::<11>() else { return };
    let mut frame = frame.to_vec();
    let mut hdr = VirtioNetHdr::parse(&virtio).expect("ten bytes");
    assert_eq!(hdr.to_bytes(), virtio);
    if how & 1 != 0 && frame.len() > ETHERNET {
        mend(&mut frame[ETHERNET..]);
    }
    if how & 2 != 0 {
        aim(&mut hdr, &frame);
    }
    copies(&frame, &hdr);
    let Ok(mut segmenter) = Segmenter::new(&frame, &hdr) else { return };
    let segments = cut(&mut segmenter);
    assert_parts(&frame, &segments);
    let of_wire = |segment: &Vec<u8>| segment.len() + ETHERNET <= MAX_FRAME;
    if segments.iter().all(of_wire) {
        MERGER.with_borrow_mut(|merger| merger.assert_cut_again(&segments));
    }
});

fn copies(frame: &[u8], hdr: &VirtioNetHdr) {
    let mut out = vec![0xaa; frame.len()];
    let Ok(len) = copy_plain(frame, hdr, &mut out) else { return };
    let mut wanted = frame[ETHERNET..].to_vec();
    if let Ok(Some(Checksum { start, field })) = hdr.checksum(frame) {
        let sum = match checksum(&frame[start..]) {
            0 => u16::MAX,
            sum => sum,
        };
        wanted[field - ETHERNET..][..2].copy_from_slice(&sum.to_be_bytes());
        let mut in_place = frame[ETHERNET..].to_vec();
        assert!(complete(&mut in_place, start - ETHERNET, field - start));
        assert_eq!(in_place, wanted);
    }
    assert_eq!(out[..len], wanted);
}

fn cut(segmenter: &mut Segmenter<'_>) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    while let Some(len) = segmenter.next_len() {
        let mut segment = vec![0; len];
        assert_eq!(segmenter.write_next(&mut segment), Some(len));
        segments.push(segment);
    }
    assert_eq!(segmenter.segments_left(), 0);
    segments
}

/// Each segment is a right packet, and all payloads together are that of the super-packet.
fn assert_parts(frame: &[u8], segments: &[Vec<u8>]) {
    let mut payload = Vec::new();
    for segment in segments {
        assert_whole(segment);
        assert_eq!(l4_checksum(segment), Sums::Right, "{segment:02x?}");
        let part = match SlicedPacket::from_ip(segment).ok().and_then(|packet| packet.transport) {
            Some(TransportSlice::Tcp(tcp)) => tcp.payload(),
            Some(TransportSlice::Udp(udp)) => udp.payload(),
            other => panic!("{other:?}"),
        };
        payload.extend_from_slice(part);
    }
    let packet = &frame[ETHERNET..];
    let total_len =
        Ipv4::parse(packet).map(|ip| ip.total_len()).or_else(|_| Ipv6::parse(packet).map(|ip| ip.total_len()));
    let packet = &packet[..total_len.expect("an IP packet")];
    assert!(segments.len() <= Segmenter::MAX_SEGMENTS && packet.ends_with(&payload));
}

impl Merger {
    /// What segments are merged to is cut into the same segments.
    fn assert_cut_again(&mut self, segments: &[Vec<u8>]) {
        let mut again = Vec::new();
        for burst in segments.chunks(MAX_FRAMES) {
            for packet in self.merge(burst) {
                let (hdr, frame) = packet;
                if hdr.is_gso() {
                    again.extend(cut(&mut Segmenter::new(&frame, &hdr).expect("a super-packet")));
                } else {
                    again.push(frame[ETHERNET..].to_vec());
                }
            }
        }
        assert_eq!(again, segments);
        assert_eq!(self.pool.len(), MAX_FRAMES, "a frame is lost");
    }

    /// The packets of a burst, each with its virtio header.
    fn merge(&mut self, burst: &[Vec<u8>]) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        let Self { pool, gro, pod } = self;
        let frames: Vec<Frame> = burst.iter().map(|segment| load(pool, segment)).collect();
        let mut packets = Vec::new();
        let mut hand_over = |delivery: &mut podwire::offload::Delivery| {
            packets.push((delivery.virtio, delivery.frames.iter().flat_map(|frame| frame.to_vec()).collect()));
            delivery.frames.drain(..).for_each(|frame| pool.put(frame));
        };
        for (frame, packet) in frames.into_iter().zip(burst) {
            let segment = match (Ipv4::parse(packet), Ipv6::parse(packet)) {
                (Ok(ip), _) => Segment::read_v4(ip, packet),
                (_, Ok(ip)) => Segment::read_v6(ip, packet),
                _ => None,
            };
            gro.push(frame, segment.as_ref(), pod, &mut hand_over);
        }
        gro.flush(&mut hand_over);
        packets
    }
}

fn load(pool: &mut Pool, packet: &[u8]) -> Frame {
    let mut frame = pool.take().expect("a free frame");
    frame.reset(podwire::frame::HEADROOM);
    assert!(frame.set_len(ETHERNET + packet.len()));
    frame[..12].fill(2);
    frame[12..ETHERNET].copy_from_slice(if packet[0] >> 4 == 4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    frame[ETHERNET..].copy_from_slice(packet);
    frame
}
