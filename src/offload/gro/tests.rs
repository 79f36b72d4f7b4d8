use proptest::prelude::*;

use super::*;
use crate::frame::{Pool, Region};
use crate::ids::{IfIndex, PodId};
use crate::offload::{Segmenter, complete, tcp};
use crate::wire::sample::{self, L4, Sample};
use crate::wire::{Ipv4, Ipv6, Mac};

const FRAMES: u32 = 512;

/// A merger with packet memory, and what it handed over.
struct Lab {
    pool: Pool,
    gro: Gro,
    delivered: Vec<(VirtioNetHdr, Vec<u8>)>,
}

fn pod() -> LocalPod {
    LocalPod { id: PodId::new(3).unwrap(), ifindex: IfIndex(7), mac: Mac([2; 6]), gateway_mac: Mac([4; 6]) }
}

fn take(packet: &mut Delivery, pool: &mut Pool, delivered: &mut Vec<(VirtioNetHdr, Vec<u8>)>) {
    assert_eq!(packet.to, pod());
    delivered.push((packet.virtio, packet.frames.iter().flat_map(|frame| frame.to_vec()).collect()));
    packet.frames.drain(..).for_each(|frame| pool.put(frame));
}

impl Lab {
    fn new() -> Self {
        Self { pool: Region::map(FRAMES).unwrap().1, gro: Gro::default(), delivered: Vec::new() }
    }

    fn push(&mut self, bytes: &[u8]) {
        let mut frame = self.pool.take().unwrap();
        assert!(frame.set_len(bytes.len()));
        frame.copy_from_slice(bytes);
        let Self { pool, gro, delivered } = self;
        gro.push(frame, segment(bytes).as_ref(), &pod(), |packet| take(packet, pool, delivered));
    }

    /// Ends the burst: every frame is back, and what was handed over is returned.
    fn flush(&mut self) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        let Self { pool, gro, delivered } = self;
        gro.flush(|packet| take(packet, pool, delivered));
        assert_eq!(self.pool.len(), FRAMES as usize);
        std::mem::take(&mut self.delivered)
    }

    /// What a burst of these frames becomes.
    fn burst(frames: &[Vec<u8>]) -> Vec<(VirtioNetHdr, Vec<u8>)> {
        let mut lab = Self::new();
        for frame in frames {
            lab.push(frame);
        }
        lab.flush()
    }
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = &frame[14..];
    match Ipv4::parse(packet) {
        Ok(ip) => Segment::read_v4(ip, packet),
        Err(_) => Segment::read_v6(Ipv6::parse(packet).ok()?, packet),
    }
}

/// A super-packet as a pod sends it.
fn super_packet(sample: &Sample, gso_size: u16) -> (Vec<u8>, VirtioNetHdr) {
    let (frame, csum_start, csum_offset) = sample.build_partial();
    let kind = if sample.v6 { VirtioNetHdr::GSO_TCPV6 } else { VirtioNetHdr::GSO_TCPV4 };
    let hdr_len = csum_start + u16::from(frame[usize::from(csum_start) + 12] >> 4) * 4;
    let flags = VirtioNetHdr::NEEDS_CSUM;
    (frame, VirtioNetHdr { flags, gso_type: kind, hdr_len, gso_size, csum_start, csum_offset })
}

/// The frames that a packet stands for: itself, or the segments of a super-packet.
fn frames_of(virtio: &VirtioNetHdr, frame: &[u8]) -> Vec<Vec<u8>> {
    if !virtio.is_gso() {
        assert_eq!(*virtio, VirtioNetHdr::default());
        return vec![frame.to_vec()];
    }
    let (mut segments, mut segmenter) = (Vec::new(), Segmenter::new(frame, virtio).unwrap());
    while let Some(len) = segmenter.next_len() {
        let mut segment = [&frame[..14], &vec![0; len]].concat();
        segmenter.write_next(&mut segment[14..]).unwrap();
        segments.push(segment);
    }
    segments
}

fn cut(sample: &Sample, gso_size: u16) -> Vec<Vec<u8>> {
    let (frame, virtio) = super_packet(sample, gso_size);
    frames_of(&virtio, &frame)
}

fn stream(v6: bool, payload_len: usize) -> Sample {
    let l4 = L4::Tcp { sequence: u32::MAX - 1500, flags: 0x10, options: vec![1; 12] };
    let payload = sample::noise(payload_len, 7);
    Sample { v6, l4, src: 1, dst: 2, tos: 2, ttl: 64, id: 0xffff, df: true, ports: (1, 2), payload }
}

/// The sample as the wire carries it, changed by `change` in its TCP header.
fn with_tcp(sample: &Sample, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let (mut frame, start, offset) = sample.build_partial();
    change(&mut frame[start.into()..]);
    assert!(complete(&mut frame, start.into(), offset.into()));
    frame
}

fn tcp_of(sample: &mut Sample) -> (&mut u32, &mut u8, &mut Vec<u8>) {
    match &mut sample.l4 {
        L4::Tcp { sequence, flags, options } => (sequence, flags, options),
        other => panic!("{other:?} is not TCP"),
    }
}

/// A segment of 100 bytes and the one that continues it.
fn pair(v6: bool) -> (Sample, Sample) {
    let first = Sample { id: 5, ..stream(v6, 100) };
    let mut second = Sample { id: if v6 { 5 } else { 6 }, ..first.clone() };
    *tcp_of(&mut second).0 += 100;
    (first, second)
}

fn whole(sample: &Sample) -> Vec<u8> {
    with_tcp(sample, |_| ())
}

fn sizes(delivered: &[(VirtioNetHdr, Vec<u8>)]) -> Vec<usize> {
    delivered.iter().map(|(virtio, frame)| frames_of(virtio, frame).len()).collect()
}

#[test]
fn neighbours_that_differ_go_alone() {
    type Change = fn(&mut Sample);
    let table: [(&str, Change); 13] = [
        ("time to live", |s| s.ttl -= 1),
        ("congestion experienced", |s| s.tos = 3),
        ("traffic class", |s| s.tos = 0x2a),
        ("a gap", |s| *tcp_of(s).0 += 1),
        ("an overlap", |s| *tcp_of(s).0 -= 1),
        ("a repetition", |s| *tcp_of(s).0 -= 100),
        ("a longer segment", |s| s.payload.push(0)),
        ("no payload", |s| s.payload.clear()),
        ("SYN", |s| *tcp_of(s).1 |= tcp::SYN),
        ("RST", |s| *tcp_of(s).1 |= tcp::RST),
        ("congestion window reduced", |s| *tcp_of(s).1 |= tcp::CWR),
        ("congestion echoed", |s| *tcp_of(s).1 |= 0x40),
        ("other options", |s| tcp_of(s).2[11] = 0),
    ];
    for (name, change) in table {
        for v6 in [false, true] {
            let (first, mut second) = pair(v6);
            assert_eq!(sizes(&Lab::burst(&[whole(&first), whole(&second)])), [2]);
            change(&mut second);
            let frames = [whole(&first), whole(&second)];
            let delivered: Vec<_> = Lab::burst(&frames).into_iter().map(|(_, frame)| frame).collect();
            assert_eq!(delivered, frames, "{name}");
        }
    }
}

#[test]
fn neighbours_of_one_ip_version_that_differ_go_alone() {
    let (first, second) = pair(false);
    for second in [Sample { df: false, ..second.clone() }, Sample { id: 7, ..second.clone() }] {
        assert_eq!(sizes(&Lab::burst(&[whole(&first), whole(&second)])), [1, 1]);
    }
    // The flow label follows the sample's id.
    let (first, second) = pair(true);
    let second = Sample { id: 6, ..second };
    assert_eq!(sizes(&Lab::burst(&[whole(&first), whole(&second)])), [1, 1]);
}

#[test]
fn neighbours_whose_tcp_headers_differ_go_alone() {
    let table = [("acknowledgement", 11), ("window", 15), ("urgent pointer", 19), ("a reserved bit", 12)];
    for (name, at) in table {
        let (first, second) = pair(false);
        let frames = [whole(&first), with_tcp(&second, |tcp| tcp[at] ^= 1)];
        assert_eq!(sizes(&Lab::burst(&frames)), [1, 1], "{name}");
    }
}

#[test]
fn a_segment_that_says_that_the_congestion_window_was_reduced_goes_alone() {
    for (first_flags, second_flags) in [(tcp::CWR, 0), (0, tcp::CWR), (tcp::CWR, tcp::CWR)] {
        let (mut first, mut second) = pair(false);
        *tcp_of(&mut first).1 |= first_flags;
        *tcp_of(&mut second).1 |= second_flags;
        assert_eq!(sizes(&Lab::burst(&[whole(&first), whole(&second)])), [1, 1]);
    }
}

#[test]
fn equal_identifications_need_dont_fragment() {
    for df in [true, false] {
        let (first, second) = pair(false);
        let mut third = Sample { df, id: 5, ..second.clone() };
        *tcp_of(&mut third).0 += 100;
        let (first, second) = (Sample { df, ..first }, Sample { df, id: 5, ..second });
        let delivered = Lab::burst(&[whole(&first), whole(&second), whole(&third)]);
        assert_eq!(delivered.len(), if df { 1 } else { 3 });
        let counting = Sample { id: 7, ..third };
        let delivered = Lab::burst(&[whole(&first), whole(&second), whole(&counting)]);
        assert_eq!(delivered.len(), if df { 2 } else { 3 }, "a row that begins equal does not count on");
    }
}

#[test]
fn a_wrong_checksum_is_never_merged() {
    for v6 in [false, true] {
        let (first, second) = pair(v6);
        let good = [whole(&first), whole(&second)];
        for bad in 0..2 {
            let at = good[bad].len() - 1;
            for at in [at, at - 100] {
                let mut frames = good.clone();
                frames[bad][at] ^= 1;
                let delivered: Vec<_> = Lab::burst(&frames).into_iter().map(|(_, frame)| frame).collect();
                assert_eq!(delivered, frames);
            }
        }
    }
}

#[test]
fn the_end_of_a_message_is_not_waited_for() {
    for flag in [tcp::PSH, tcp::FIN] {
        let (first, mut second) = pair(false);
        *tcp_of(&mut second).1 |= flag;
        let mut lab = Lab::new();
        lab.push(&whole(&first));
        assert_eq!(lab.delivered.len(), 0);
        lab.push(&whole(&second));
        assert_eq!(sizes(&lab.delivered), [2]);
        assert_eq!(lab.delivered[0].1[34 + tcp::FLAGS_AT], 0x10 | flag);
        lab.push(&whole(&second));
        assert_eq!(sizes(&lab.flush()), [2, 1], "with the flag on it a segment goes at once");
    }
    let (first, mut second) = pair(false);
    second.payload.pop();
    let mut lab = Lab::new();
    lab.push(&whole(&first));
    lab.push(&whole(&second));
    assert_eq!(sizes(&lab.delivered), [2], "a short segment ends the row");
    lab.flush();
}

#[test]
fn what_does_not_join_never_overtakes() {
    let (first, second) = pair(true);
    let mut acknowledgement = Sample { payload: Vec::new(), ..second.clone() };
    *tcp_of(&mut acknowledgement).0 += 100;
    let datagram = Sample { l4: L4::Udp, ..second.clone() };
    let frames = [&first, &second, &acknowledgement].map(whole);
    let mut lab = Lab::new();
    for frame in &frames {
        lab.push(frame);
    }
    assert_eq!(sizes(&lab.delivered), [2, 1], "the acknowledgement goes at once, behind the data");
    lab.push(&whole(&datagram));
    assert_eq!(sizes(&lab.flush()), [2, 1, 1]);
}

#[test]
fn the_oldest_merge_makes_room() {
    let mut lab = Lab::new();
    let flow = |port| Sample { ports: (port, 1), ..stream(false, 10) };
    for port in 0..20 {
        lab.push(&whole(&flow(port)));
    }
    assert_eq!(lab.delivered.len(), 20 - FLOWS);
    let delivered: Vec<_> = lab.flush().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(delivered, (0..20).map(|port| whole(&flow(port))).collect::<Vec<_>>());
}

#[test]
fn a_super_packet_is_at_most_as_long_as_its_header_can_say() {
    for v6 in [false, true] {
        let longest = stream(v6, 65535 - if v6 { 72 } else { 52 });
        let mut frames = cut(&longest, 1400);
        assert_eq!(sizes(&Lab::burst(&frames)), [47]);

        let sent = 46 * 1400;
        let mut last = Sample { payload: sample::noise(longest.payload.len() - sent + 1, 1), ..longest };
        *tcp_of(&mut last).0 = tcp_of(&mut last).0.wrapping_add(u32::try_from(sent).unwrap());
        last.id = last.id.wrapping_add(if v6 { 0 } else { 46 });
        frames[46] = whole(&last);
        assert_eq!(sizes(&Lab::burst(&frames)), [46, 1]);
    }
}

/// The frame with its TCP checksum in the one of its two forms that is not 0xffff, and without the identification that
/// a super-packet does not carry for each of its segments when all are equal.
fn canonical(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(segment) = segment(&frame) {
        let at = segment.l4() + tcp::CHECKSUM_AT;
        if frame[at..at + 2] == [0xff, 0xff] {
            frame[at..at + 2].fill(0);
        }
        if !segment.v6 && frame[20] & 0x40 != 0 {
            frame[18..20].fill(0);
            frame[24..26].fill(0);
        }
    }
    frame
}

/// A step of one of some flows.
#[derive(Clone, Debug)]
struct Step {
    flow: u16,
    len: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// The flow goes on. With these flags.
    Next(u8),
    /// A byte of it is damaged.
    Damaged(usize, u8),
    /// What came before comes again.
    Again,
    /// Some bytes were lost before it.
    Gap,
    /// The flow's headers change from here on.
    Change(u8),
    /// The burst ends.
    Flush,
}

fn any_step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![8 => Just(0x10u8), 1 => Just(0x18), 1 => Just(0x11), 1 => any::<u8>()];
    let kind = prop_oneof![
        20 => flags.prop_map(Kind::Next),
        2 => (0usize..1500, 1u8..).prop_map(|(at, bits)| Kind::Damaged(at, bits)),
        1 => Just(Kind::Again),
        1 => Just(Kind::Gap),
        1 => any::<u8>().prop_map(Kind::Change),
        1 => Just(Kind::Flush),
    ];
    let len = prop_oneof![6 => Just(1000usize), 1 => 0usize..1400];
    (0u16..4, len, kind).prop_map(|(flow, len, kind)| Step { flow, len, kind })
}

/// One of four flows: two over each IP version, two with counting and two with fixed identifications.
fn flow(number: u16) -> Sample {
    Sample { ports: (number, 80), id: 0xfffe, payload: Vec::new(), ..stream(number % 2 == 1, 0) }
}

/// The frames of the steps, by flow, and the whole with the burst ends as `None`.
fn run(steps: &[Step]) -> Vec<Option<(u16, Vec<u8>)>> {
    let mut flows: Vec<_> = (0..4).map(flow).collect();
    let mut last: Vec<Option<Vec<u8>>> = vec![None; 4];
    let mut frames = Vec::new();
    for Step { flow: number, len, kind } in steps {
        let (flow, last) = (&mut flows[usize::from(*number)], &mut last[usize::from(*number)]);
        flow.payload = sample::noise(*len, u64::from(*number));
        *tcp_of(flow).1 = if let Kind::Next(flags) = kind { *flags } else { 0x10 };
        let mut frame = whole(flow);
        match kind {
            Kind::Next(_) => {}
            Kind::Damaged(at, bits) => {
                // Behind the ports: it stays in its flow.
                let from = 14 + if flow.v6 { 40 } else { 20 } + 4;
                let at = from + at % (frame.len() - from);
                frame[at] ^= bits;
            }
            Kind::Again => frame = last.clone().unwrap_or(frame),
            Kind::Gap => *tcp_of(flow).0 = tcp_of(flow).0.wrapping_add(1),
            Kind::Change(to) => (flow.ttl, flow.tos) = (flow.ttl ^ to | 1, flow.tos ^ to),
            Kind::Flush => frames.push(None),
        }
        let sequence = tcp_of(flow).0;
        *sequence = sequence.wrapping_add(u32::try_from(*len).unwrap());
        // Flow 0 counts its identifications, flow 2 does not; in IPv6 the sample's id is the flow label.
        flow.id = flow.id.wrapping_add(u16::from(*number == 0));
        *last = Some(frame.clone());
        frames.push(Some((*number, frame)));
    }
    frames
}

fn ports(frame: &[u8]) -> u16 {
    let at = if frame[12] == 8 { 34 } else { 54 };
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

proptest! {
    /// What a pod's super-packet was cut into becomes that super-packet again, byte for byte.
    #[test]
    fn segments_become_what_they_were_cut_from(
        mut sample in Sample::carrying(Sample::any_tcp(), 60_000),
        gso_size in 500u16..3500,
    ) {
        *tcp_of(&mut sample).1 &= !tcp::CWR;
        let (frame, virtio) = super_packet(&sample, gso_size);
        let segments = frames_of(&virtio, &frame);
        let delivered = Lab::burst(&segments);
        let L4::Tcp { flags, .. } = sample.l4 else { unreachable!("TCP") };
        if flags & (tcp::SYN | tcp::RST | tcp::URG) != 0 || segments.len() == 1 {
            let alone: Vec<_> = segments.into_iter().map(|frame| (VirtioNetHdr::default(), frame)).collect();
            prop_assert_eq!(delivered, alone);
        } else {
            prop_assert_eq!(delivered.len(), 1);
            prop_assert_eq!(delivered[0].0, virtio);
            prop_assert!(delivered[0].1 == frame);
            let mut packet = frame;
            prop_assert!(complete(&mut packet, virtio.csum_start.into(), virtio.csum_offset.into()));
            sample::judge(&packet[14..]);
        }
    }

    /// Whatever comes, in whatever order: each flow's packets come out as they came, complete and in order, and what was
    /// damaged is in no super-packet.
    #[test]
    fn every_flow_gets_what_was_sent_in_order(steps in proptest::collection::vec(any_step(), 0..120)) {
        let mut lab = Lab::new();
        let (mut sent, mut received) = (vec![Vec::new(); 4], vec![Vec::new(); 4]);
        let mut collect = |delivered: Vec<(VirtioNetHdr, Vec<u8>)>| {
            for (virtio, frame) in delivered {
                if virtio.is_gso() {
                    let mut packet = frame.clone();
                    assert!(complete(&mut packet, virtio.csum_start.into(), virtio.csum_offset.into()));
                    sample::judge(&packet[14..]);
                }
                for frame in frames_of(&virtio, &frame) {
                    received[usize::from(ports(&frame))].push(canonical(&frame));
                }
            }
        };
        for event in run(&steps) {
            match event {
                Some((flow, frame)) => {
                    sent[usize::from(flow)].push(canonical(&frame));
                    lab.push(&frame);
                }
                None => collect(lab.flush()),
            }
        }
        collect(lab.flush());
        for (sent, received) in sent.iter().zip(&received) {
            prop_assert!(sent == received);
        }
    }

    #[test]
    fn noise_goes_as_it_came(bytes in proptest::collection::vec(any::<u8>(), 14..200)) {
        prop_assert_eq!(Lab::burst(std::slice::from_ref(&bytes)), [(VirtioNetHdr::default(), bytes)]);
    }
}
