//! Frames of one outer flow as one UDP super-datagram: each frame's VXLAN packet is a segment of it.
//!
//! What leaves through the kernel's stack costs a system call's share, a buffer and a walk through the stack for each
//! packet, but one that the kernel cuts (UDP_L4, `__udp_gso_segment` in net/ipv4/udp_offload.c) pays all that once for
//! the whole train, and only in the driver or right before it becomes the frames that were given.
//!
//! What pods send without the tunnel goes alone: checksums and identifications are theirs.
//!
//! The kernel puts a UDP checksum into every datagram that it cuts, also where the frames had none over IPv4.

use std::net::IpAddr;

use super::VirtioNetHdr;
use crate::frame::Frame;
use crate::wire::{EtherType, Ethernet, Ipv4, Ipv6, Protocol, pseudo_v4, pseudo_v6};

/// Frames of a train at most: `UDP_MAX_SEGMENTS` of kernels before 6.9.
pub(super) const MAX_FRAMES: usize = 64;

/// Bytes from the IP header on at most: what an IPv4 header can say.
pub(super) const MAX_PACKET: usize = u16::MAX as usize;

pub(super) const UDP_LEN: usize = 8;

/// Consecutive frames that differ only in what cutting makes different.
#[derive(Debug)]
pub struct Train {
    frames: Vec<Frame>,
    /// Our VTEP addresses: the sources of what can join.
    vteps: Vec<IpAddr>,
    /// Where the UDP header starts in each frame.
    l4: usize,
    /// Of the first frame, and of all but perhaps the last.
    frame_len: usize,
    packet_len: usize,
    /// Nothing can join any more.
    complete: bool,
}

impl Train {
    /// An empty one, of tunnel packets from one of `vteps`.
    pub fn new(vteps: Vec<IpAddr>) -> Self {
        Self { frames: Vec::with_capacity(MAX_FRAMES), vteps, l4: 0, frame_len: 0, packet_len: 0, complete: false }
    }

    /// How many frames are in it.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes the next frame, complete with all checksums; it comes back if it cannot join those that are there.
    #[inline]
    pub fn join(&mut self, mut frame: Frame) -> Result<(), Frame> {
        if self.is_empty() {
            let l4 = self.vteps.iter().find_map(|vtep| l4_of(&frame, *vtep));
            (self.l4, self.complete) = (l4.unwrap_or(0), l4.is_none());
            self.frame_len = frame.len();
            self.packet_len = frame.len().saturating_sub(Ethernet::LEN);
        } else {
            if !self.accepts(&frame) || !frame.trim_front(self.l4 + UDP_LEN) {
                return Err(frame);
            }
            self.complete = frame.len() + self.l4 + UDP_LEN < self.frame_len;
            self.packet_len += frame.len();
        }
        self.frames.push(frame);
        Ok(())
    }

    fn accepts(&self, frame: &[u8]) -> bool {
        const IP: usize = Ethernet::LEN;
        let Some(first) = self.frames.first() else { return false };
        let (l4, payload) = (self.l4, self.l4 + UDP_LEN);
        let same = |from: usize, to: usize| first.get(from..to) == frame.get(from..to);
        !self.complete
            && self.frames.len() < MAX_FRAMES
            && (payload + 1..=self.frame_len).contains(&frame.len())
            && self.packet_len + frame.len() - payload <= MAX_PACKET
            && same(l4, l4 + 4)
            && if l4 == IP + Ipv4::LEN {
                let distance = identification(frame).wrapping_sub(identification(first));
                same(0, IP + 2)
                    && same(IP + 6, IP + 10)
                    && same(IP + 12, IP + Ipv4::LEN)
                    && usize::from(distance) == self.frames.len()
            } else {
                same(0, IP + 4) && same(IP + 6, IP + Ipv6::LEN)
            }
    }

    /// Makes one packet of the frames; whoever sends it drains them, and the train is empty then.
    pub fn finish(&mut self) -> (VirtioNetHdr, &mut Vec<Frame>) {
        let virtio = match self.frames.as_mut_slice() {
            [first, _, ..] => make_super(first, self.l4, self.frame_len, self.packet_len),
            _ => None,
        };
        (virtio.unwrap_or_default(), &mut self.frames)
    }
}

/// Where the UDP header of a plain Ethernet frame from `source` starts.
fn l4_of(frame: &[u8], source: IpAddr) -> Option<usize> {
    let packet = frame.get(Ethernet::LEN..)?;
    let (protocol, len) = match (Ethernet::parse(frame)?.ethertype, source) {
        (EtherType::IPV4, IpAddr::V4(source)) if packet.get(12..16)? == source.octets() => (packet.get(9)?, Ipv4::LEN),
        (EtherType::IPV6, IpAddr::V6(source)) if packet.get(8..24)? == source.octets() => (packet.get(6)?, Ipv6::LEN),
        _ => return None,
    };
    (Protocol(*protocol) == Protocol::UDP && packet.len() > len + UDP_LEN).then_some(Ethernet::LEN + len)
}

fn identification(frame: &[u8]) -> u16 {
    let bytes = frame.get(Ethernet::LEN + 4..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u16::from_be_bytes(*bytes))
}

/// Turns the headers at the head of a frame into those of a packet of `packet_len` bytes, whose UDP checksum is left to
/// whoever cuts it.
pub(super) fn make_super(first: &mut [u8], l4: usize, frame_len: usize, packet_len: usize) -> Option<VirtioNetHdr> {
    let (headers, datagram) = first.split_at_mut_checked(l4)?;
    let packet = headers.get_mut(Ethernet::LEN..)?;
    let l4_len = u16::try_from(Ethernet::LEN + packet_len - l4).ok()?;
    let pseudo = if packet.len() == Ipv4::LEN {
        Ipv4::set_total_len(packet, packet_len)?;
        let (addresses, _) = packet.get(12..)?.as_chunks();
        let [src, dst] = addresses.first_chunk()?;
        pseudo_v4(u32::from_be_bytes(*src), u32::from_be_bytes(*dst), Protocol::UDP, l4_len)
    } else {
        Ipv6::set_total_len(packet, packet_len)?;
        let (addresses, _) = packet.get(8..)?.as_chunks();
        let [src, dst] = addresses.first_chunk()?;
        pseudo_v6(u128::from_be_bytes(*src), u128::from_be_bytes(*dst), Protocol::UDP, l4_len.into())
    };
    let udp = datagram.first_chunk_mut::<UDP_LEN>()?;
    [udp[4], udp[5]] = l4_len.to_be_bytes();
    [udp[6], udp[7]] = pseudo.fold().to_be_bytes();
    Some(VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM,
        gso_type: VirtioNetHdr::GSO_UDP_L4,
        hdr_len: u16::try_from(l4 + UDP_LEN).ok()?,
        gso_size: u16::try_from(frame_len - l4 - UDP_LEN).ok()?,
        csum_start: u16::try_from(l4).ok()?,
        csum_offset: 6,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::{Pool, Region};
    use crate::offload::Segmenter;
    use crate::wire::sample::{self, L4, Sample, encapsulate, outer_params};

    /// VXLAN frames of one inner flow, over IPv6 or IPv4, with these payloads.
    fn frames(v6: bool, checksum: bool, sizes: &[usize]) -> Vec<Vec<u8>> {
        let params = outer_params(v6, checksum);
        let frame = |(n, &size): (u16, &usize)| {
            let payload = sample::noise(size, n.into());
            let l4 = L4::Tcp { sequence: n.into(), flags: 0x10, options: Vec::new() };
            let inner =
                Sample { v6: false, l4, src: 1, dst: 2, tos: 0, ttl: 9, id: n, df: true, ports: (1, 2), payload };
            let (mut frame, _) = encapsulate(&params, &inner);
            // The source port that tests derive from the inner identification is one flow's.
            let l4 = if v6 { 54 } else { 34 };
            frame[l4..l4 + 2].copy_from_slice(&0xc001u16.to_be_bytes());
            if v6 || checksum {
                frame[l4 + 6..l4 + 8].fill(0);
                let sum = pseudo(&frame, l4) + crate::wire::Sum::of(&frame[l4..]);
                frame[l4 + 6..l4 + 8].copy_from_slice(&sum.udp_checksum().to_be_bytes());
            }
            frame
        };
        (0..).zip(sizes).map(frame).collect()
    }

    fn pseudo(frame: &[u8], l4: usize) -> crate::wire::Sum {
        let len = u16::try_from(frame.len() - l4).unwrap();
        match (Ipv4::parse(&frame[14..]), Ipv6::parse(&frame[14..])) {
            (Ok(ip), _) => pseudo_v4(ip.src(), ip.dst(), Protocol::UDP, len),
            (_, Ok(ip)) => pseudo_v6(ip.src(), ip.dst(), Protocol::UDP, len.into()),
            _ => panic!("not IP"),
        }
    }

    fn load(bytes: &[u8], pool: &mut Pool) -> Frame {
        let mut frame = pool.take().unwrap();
        assert!(frame.set_len(bytes.len()));
        frame.copy_from_slice(bytes);
        frame
    }

    /// The source of the first frame, which all in a test have.
    fn vtep_of(frames: &[Vec<u8>]) -> IpAddr {
        outer_params(frames[0][12] == 0x86, false).local
    }

    /// The packets that a row of frames leaves as, each as the frames that it is cut into.
    fn trains(frames: &[Vec<u8>]) -> Vec<Vec<Vec<u8>>> {
        let (_region, mut pool) = Region::map(200).unwrap();
        let (mut train, mut departed) = (Train::new(vec![vtep_of(frames)]), Vec::new());
        let mut depart = |train: &mut Train, pool: &mut Pool| {
            let (virtio, frames) = train.finish();
            let packet: Vec<u8> = frames.iter().flat_map(|frame| frame.to_vec()).collect();
            for frame in frames.drain(..) {
                pool.put(frame);
            }
            departed.push(cut(&virtio, packet));
        };
        for bytes in frames {
            if let Err(frame) = train.join(load(bytes, &mut pool)) {
                depart(&mut train, &mut pool);
                train.join(frame).unwrap();
            }
        }
        depart(&mut train, &mut pool);
        assert_eq!((pool.len(), train.is_empty()), (200, true));
        departed
    }

    fn cut(virtio: &VirtioNetHdr, packet: Vec<u8>) -> Vec<Vec<u8>> {
        if !virtio.is_gso() {
            return vec![packet];
        }
        let mut segmenter = Segmenter::new(&packet, virtio).unwrap();
        assert!(segmenter.segments_left() > 1);
        let mut frames = Vec::new();
        while let Some(len) = segmenter.next_len() {
            let mut frame = [&packet[..14], &vec![0; len]].concat();
            segmenter.write_next(&mut frame[14..]).unwrap();
            frames.push(frame);
        }
        frames
    }

    /// A frame without its outer UDP checksum, which the cutting adds where there was none.
    fn bare(frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        if let Some(l4) = l4_of(&frame, vtep_of(std::slice::from_ref(&frame))) {
            frame[l4 + 6..l4 + 8].fill(0);
        }
        frame
    }

    fn lengths(frames: &[Vec<u8>]) -> Vec<usize> {
        trains(frames).iter().map(Vec::len).collect()
    }

    #[test]
    fn a_short_frame_is_the_last_and_a_longer_one_the_next() {
        assert_eq!(lengths(&frames(false, false, &[100, 100, 60, 100, 101])), [3, 1, 1]);
    }

    #[test]
    fn a_train_is_bounded_in_frames_and_bytes() {
        assert_eq!(lengths(&frames(false, false, &[8; 70])), [64, 6]);
        let long = frames(true, true, &[1400; 50]);
        assert_eq!(lengths(&long), [44, 6]);
        assert!(44 * (long[0].len() - 62) + 48 <= MAX_PACKET && 45 * (long[0].len() - 62) + 48 > MAX_PACKET);
    }

    #[test]
    fn any_other_difference_in_the_outer_headers_parts_trains() {
        for v6 in [false, true] {
            let same = frames(v6, false, &[50, 50]);
            assert_eq!(lengths(&same), [2]);
            let l4 = if v6 { 54 } else { 34 };
            // Lengths, checksums and the identification are the cutting's; the protocol is what makes it a train.
            let free = if v6 { 18..20 } else { 24..26 };
            for at in
                (0..l4 + 4).filter(|at| !free.contains(at) && !(16..18).contains(at) || v6 && (14..18).contains(at))
            {
                let mut other = same.clone();
                other[1][at] ^= 0x10;
                assert_eq!(lengths(&other), [1, 1], "byte {at}, v6 {v6}");
            }
        }
    }

    #[test]
    fn what_is_not_udp_goes_alone() {
        let mut row = frames(false, false, &[50, 50]);
        for frame in &mut row {
            frame[23] = 6;
        }
        assert_eq!(lengths(&row), [1, 1]);
        assert_eq!(lengths(&[vec![0; 14], vec![0; 14], vec![7; 60], vec![7; 60]]), [1, 1, 1, 1]);
    }

    #[test]
    fn what_pods_send_without_the_tunnel_goes_alone() {
        for v6 in [false, true] {
            let same = frames(v6, false, &[50, 50]);
            let (_region, mut pool) = Region::map(4).unwrap();
            let mut train = Train::new(vec!["192.0.2.1".parse().unwrap()]);
            train.join(load(&same[0], &mut pool)).unwrap();
            let second = train.join(load(&same[1], &mut pool)).unwrap_err();
            pool.put(second);
            train.finish().1.drain(..).for_each(|frame| pool.put(frame));
        }
    }

    proptest! {
        /// What the kernel makes of trains are the frames that were given, with valid outer checksums.
        #[test]
        fn trains_are_cut_into_the_frames_that_joined(
            v6: bool,
            checksum: bool,
            sizes in proptest::collection::vec(prop_oneof![4 => Just(1300usize), 1 => 0usize..1400], 1..100),
        ) {
            let given = frames(v6, checksum, &sizes);
            let trains = trains(&given);
            for frame in trains.iter().filter(|train| v6 || checksum || train.len() > 1).flatten() {
                sample::judge(&frame[14..]);
            }
            let cut = trains.concat();
            prop_assert!(cut.iter().map(|frame| bare(frame)).eq(given.iter().map(|frame| bare(frame))));
        }
    }
}
