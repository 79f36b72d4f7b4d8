//! Two nodes over memory ports: whatever a pod or the wire sends, frames are conserved, what leaves node 1 is a right
//! packet that node 2 delivers, and what a pod gets is whole.
#![no_main]

use std::cell::RefCell;

use etherparse::{SlicedPacket, TransportSlice};
use libfuzzer_sys::fuzz_target;
use podwire::counters::{Count, DropReason};
use podwire::frame::MAX_FRAME;
use podwire::offload::{Segmenter, VirtioNetHdr};
use podwire::pipeline::BURST;
use podwire::wire::{Ipv4, Ipv6};
use podwire_fuzz::{ETHERNET, Sums, aim, assert_whole, l4_checksum, mend};

#[allow(dead_code, reason = "the tests of the pipeline use more of it")]
#[path = "../../pipeline/world.rs"]
mod world;

use world::{MemoryWorker, PORT, Underlay, assert_conserved, direct_worker, pod, sent, with_request, worker};

/// Packets of one input at most.
const PACKETS: usize = 8;

/// The two ends of one way through the underlay.
struct Nodes {
    sender: MemoryWorker,
    receiver: MemoryWorker,
    /// Bytes of a frame on the wire before the pods' packet.
    outer_len: usize,
}

thread_local! {
    static NODES: RefCell<Vec<Nodes>> = RefCell::new(Nodes::all());
}

/// One packet of an input: what is done to it, its length, a virtio header, its bytes.
struct Record<'i> {
    /// From a pod of node 1, else from the wire to node 2.
    is_from_pod: bool,
    is_mended: bool,
    is_aimed: bool,
    virtio: [u8; 10],
    bytes: &'i [u8],
}

// The way, then records.
fuzz_target!(|input: &[u8]| {
    let Some((&way, mut rest)) = input.split_first() else { return };
    NODES.with_borrow_mut(|all| {
        let nodes = &mut all[usize::from(way) % 4];
        for _ in 0..PACKETS {
            let Some(record) = Record::take(&mut rest) else { break };
            if record.is_from_pod { nodes.send(&record) } else { nodes.offer(&record) }
        }
        nodes.deliver();
    });
});

impl<'i> Record<'i> {
    fn take(input: &mut &'i [u8]) -> Option<Self> {
        let (&[how, l0, l1], rest) = input.split_first_chunk()?;
        let (virtio, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at(rest.len().min(u16::from_le_bytes([l0, l1]).into()));
        *input = rest;
        let has = |bit: u8| how & bit != 0;
        Some(Self { is_from_pod: has(1), is_mended: has(2), is_aimed: has(4), virtio: *virtio, bytes })
    }
}

impl Nodes {
    fn all() -> Vec<Self> {
        let tunnel = Underlay::ALL.map(|underlay| Self {
            sender: worker(1, underlay),
            receiver: worker(2, underlay),
            outer_len: underlay.outer_len(),
        });
        let direct = Underlay::ALL.map(|underlay| Self {
            sender: direct_worker(1, underlay),
            receiver: direct_worker(2, underlay),
            outer_len: ETHERNET,
        });
        tunnel.into_iter().chain(direct).collect()
    }

    /// A frame from the wire to node 2.
    fn offer(&mut self, record: &Record<'_>) {
        let mut frame = record.bytes.to_vec();
        for at in [self.outer_len, ETHERNET] {
            if let Some(packet) = frame.get_mut(at..).filter(|_| record.is_mended) {
                mend(packet);
            }
        }
        if frame.len() <= MAX_FRAME {
            assert!(self.receiver.wire.offer(&frame, &mut self.receiver.pool));
        }
        self.deliver();
    }

    /// A frame from the pod of node 1, on to node 2.
    fn send(&mut self, record: &Record<'_>) {
        let mut frame = record.bytes.to_vec();
        let mut hdr = VirtioNetHdr::parse(&record.virtio).expect("ten bytes");
        if let Some(packet) = frame.get_mut(ETHERNET..).filter(|_| record.is_mended) {
            mend(packet);
        }
        if record.is_aimed {
            aim(&mut hdr, &frame);
        }
        with_request(&mut self.sender, &frame, hdr.to_bytes());
        assert_eq!(self.sender.poll_once(), 1);
        self.sender.pods.incoming.clear();
        self.sender.pods.rewind();
        assert_conserved(&self.sender);
        let frames = sent(&mut self.sender);
        if hdr == VirtioNetHdr::default()
            && let Some(sent) = frames.first()
        {
            assert_eq!((frames.len(), &sent[self.outer_len..]), (1, &routed(&frame)[..]));
        }
        for frame in &frames {
            self.judge(frame);
        }
        self.arrive(&frames);
    }

    /// Whether a frame on the wire is a whole packet, and a tunnel's is right around a packet that is right.
    fn judge(&self, frame: &[u8]) {
        assert_whole(&frame[ETHERNET..]);
        let inner = &frame[self.outer_len..];
        assert_whole(inner);
        if self.outer_len == ETHERNET {
            return;
        }
        let Ok(SlicedPacket { transport: Some(TransportSlice::Udp(udp)), .. }) = SlicedPacket::from_ethernet(frame)
        else {
            panic!("no UDP: {frame:02x?}");
        };
        assert_eq!((udp.destination_port(), &udp.payload()[..8]), (PORT, &[8, 0, 0, 0, 0, 0, 1, 0][..]));
        if l4_checksum(inner) == Sums::Right {
            assert_eq!(l4_checksum(&frame[ETHERNET..]), Sums::Right, "the outer checksum of {frame:02x?}");
        }
    }

    /// Node 2 delivers what node 1 sent, but for what no pod has asked for and what has come its last hop.
    fn arrive(&mut self, frames: &[Vec<u8>]) {
        let may_lose = [DropReason::NoPod, DropReason::TtlExpired];
        let others = |worker: &MemoryWorker| {
            let lost = may_lose.iter().map(|reason| worker.tally.drops(*reason)).sum::<u64>();
            worker.tally.dropped() - lost
        };
        let before = others(&self.receiver);
        for burst in frames.chunks(BURST) {
            for frame in burst {
                assert!(self.receiver.wire.offer(frame, &mut self.receiver.pool));
            }
            self.deliver();
        }
        assert_eq!(others(&self.receiver), before, "{:?}", self.receiver.tally);
    }

    /// What waits for node 2 reaches its pod or is dropped for a reason.
    fn deliver(&mut self) {
        while self.receiver.poll_once() > 0 {}
        assert_conserved(&self.receiver);
        let tally = &self.receiver.tally;
        let handed = tally.count(Count::PodTxPackets) - tally.count(Count::PodTxSuper);
        let merged = tally.count(Count::PodTxMerged);
        assert_eq!(handed + merged + tally.dropped(), tally.count(Count::WireRxPackets), "{tally:?}");
        for packet in self.receiver.pods.delivered.as_mut().map(std::mem::take).unwrap_or_default() {
            assert_eq!((&packet.frame[..6], packet.pod), (&pod(2).mac.0[..], pod(2).id));
            assert_whole(&packet.frame[ETHERNET..]);
            if packet.virtio.is_gso() {
                let segmenter = Segmenter::new(&packet.frame, &packet.virtio).expect("a super-packet");
                assert!(segmenter.segments_left() > 1);
            }
        }
    }
}

/// The IP packet of a frame, cut at its length, a hop further.
fn routed(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[ETHERNET..].to_vec();
    let total_len =
        Ipv4::parse(&packet).map(|ip| ip.total_len()).or_else(|_| Ipv6::parse(&packet).map(|ip| ip.total_len()));
    packet.truncate(total_len.expect("an IP packet"));
    let left =
        if packet[0] >> 4 == 4 { Ipv4::decrement_ttl(&mut packet) } else { Ipv6::decrement_hop_limit(&mut packet) };
    assert!(left.is_some());
    packet
}
