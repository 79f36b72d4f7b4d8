//! Packets for pods as one UDP super-datagram: each is a datagram of it.
//!
//! What is handed to a pod's device costs a system call's share, a walk through the stack and a softirq for each packet.
//! Sent into the hub, a whole train pays for these once: the kernel cuts it there (UDP_L4, `__udp_gso_segment` in
//! net/ipv4/udp_offload.c), and all its packets are received in one softirq, in which `hub_deliver` (`bpf/deliver.h`) takes
//! the headers off and redirects each into its pod. There are no addresses: the headers are for the cutting alone.
//!
//! ```text
//!   Ethernet | IP | UDP | pod's MAC | gateway's MAC | pod's id | packet | ...       | pod's MAC | ... | packet
//!                       └────────────── as long as the longest ───────────┘ padding └─ the last: no padding
//! ```
//!
//! The packets keep the IP version in the Ethernet header of the train, so all of a train have the same.

use std::mem;

use super::train::{MAX_FRAMES, MAX_PACKET, UDP_LEN, make_super};
use super::{Delivery, VirtioNetHdr};
use crate::frame::Frame;
use crate::ids::{IfIndex, PodId};
use crate::wire::{EtherType, Ethernet, Ipv4, Ipv6};

/// Bytes of a packet's frame at most: with longer ones, of which few make a train, there is little to save.
const LONGEST: usize = 2048;

const V4_HEADERS: [u8; Ethernet::LEN + Ipv4::LEN + UDP_LEN] = {
    let mut headers = [0; _];
    // Ethernet: IPv4. IP: version and header length, time to live, UDP, and the checksum of these.
    [headers[12], headers[13], headers[14]] = [0x08, 0x00, 0x45];
    [headers[22], headers[23], headers[24], headers[25]] = [1, 17, 0xb9, 0xee];
    headers
};

const V6_HEADERS: [u8; Ethernet::LEN + Ipv6::LEN + UDP_LEN] = {
    let mut headers = [0; _];
    // Ethernet: IPv6. IP: version, UDP, hop limit.
    [headers[12], headers[13], headers[14]] = [0x86, 0xdd, 0x60];
    [headers[20], headers[21]] = [17, 1];
    headers
};

/// Consecutive packets for any pods.
#[derive(Debug)]
pub struct PodTrain {
    frames: Vec<Frame>,
    /// Of each frame, whose it is.
    pods: Vec<(PodId, IfIndex)>,
    ethertype: EtherType,
    /// The longest frame, in bytes.
    longest: usize,
    bytes: u64,
    headers: [u8; V6_HEADERS.len()],
}

impl Default for PodTrain {
    fn default() -> Self {
        Self {
            frames: Vec::with_capacity(MAX_FRAMES),
            pods: Vec::with_capacity(MAX_FRAMES),
            ethertype: EtherType::IPV4,
            longest: 0,
            bytes: 0,
            headers: [0; _],
        }
    }
}

/// A train, ready to be sent into the hub. Whoever sends it drains the frames.
#[derive(Debug)]
pub struct Departing<'a> {
    pub virtio: VirtioNetHdr,
    /// What goes before the frames.
    pub headers: &'a [u8],
    pub frames: &'a mut Vec<Frame>,
    /// Of the packets, in bytes.
    pub bytes: u64,
}

impl PodTrain {
    /// The packets that wait.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes the next packet's frame; false, and nothing taken, if it cannot join those that are there.
    #[inline]
    pub fn join(&mut self, packet: &mut Delivery) -> bool {
        let [frame] = packet.frames.as_mut_slice() else { return false };
        let Some(ethertype) = Ethernet::parse(frame).map(|ethernet| ethernet.ethertype) else { return false };
        let (len, packets) = (frame.len(), self.len() + 1);
        let longest = if self.is_empty() { len } else { self.longest.max(len) };
        let joins = packet.virtio == VirtioNetHdr::default()
            && (self.is_empty() || ethertype == self.ethertype)
            && matches!(ethertype, EtherType::IPV4 | EtherType::IPV6)
            && packets <= MAX_FRAMES
            && packets * longest <= MAX_PACKET - V6_HEADERS.len()
            && has_room(frame);
        if joins {
            (self.ethertype, self.longest) = (ethertype, longest);
            self.bytes += len as u64;
            self.frames.append(&mut packet.frames);
            self.pods.push((packet.to.id, packet.to.ifindex));
        }
        joins
    }

    /// Makes one packet of those that wait; whoever sends it drains its frames, and the train is empty then.
    pub fn depart(&mut self) -> Option<Departing<'_>> {
        let last = self.frames.last()?.len();
        for (frame, (pod, _)) in self.frames.iter_mut().zip(self.pods.drain(..)) {
            frame.get_mut(12..)?.first_chunk_mut::<2>()?.copy_from_slice(&pod.get().to_be_bytes());
        }
        let packets = self.len();
        for frame in self.frames.iter_mut().take(packets - 1) {
            // What other packets have left there is cut off before anybody sees it.
            frame.set_len(self.longest).then_some(())?;
        }
        let template: &[u8] = if self.ethertype == EtherType::IPV4 { &V4_HEADERS } else { &V6_HEADERS };
        let headers = self.headers.get_mut(..template.len())?;
        headers.copy_from_slice(template);
        let packet_len = headers.len() - Ethernet::LEN + (packets - 1) * self.longest + last;
        let frame_len = headers.len() + if packets > 1 { self.longest } else { last };
        let virtio = make_super(headers, headers.len() - UDP_LEN, frame_len, packet_len)?;
        Some(Departing { virtio, headers, frames: &mut self.frames, bytes: mem::take(&mut self.bytes) })
    }

    /// Takes the packets apart again: each frame with the device that it is for.
    pub fn disband(&mut self) -> impl Iterator<Item = (Frame, IfIndex)> {
        self.bytes = 0;
        self.frames.drain(..).zip(self.pods.drain(..).map(|(_, device)| device))
    }
}

/// Whether a frame can be as long as any in a train.
fn has_room(frame: &mut Frame) -> bool {
    let len = frame.len();
    len <= LONGEST && frame.set_len(LONGEST) && frame.set_len(len)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fib::LocalPod;
    use crate::frame::{HEADROOM, Pool, Region};
    use crate::offload::Segmenter;
    use crate::wire::Mac;
    use crate::wire::sample;

    /// A frame for a pod: its IP version, id and bytes.
    #[derive(Clone, Debug)]
    struct Given {
        v6: bool,
        pod: u16,
        len: usize,
    }

    impl Given {
        fn bytes(&self) -> Vec<u8> {
            let ethertype = if self.v6 { EtherType::IPV6 } else { EtherType::IPV4 };
            let mut bytes = sample::noise(self.len, u64::from(self.pod));
            assert!(Ethernet { dst: Mac([2; 6]), src: Mac([4; 6]), ethertype }.write(&mut bytes));
            bytes
        }

        fn packet(&self, pool: &mut Pool) -> Delivery {
            let mut frame = pool.take().unwrap();
            frame.reset(HEADROOM + 70);
            assert!(frame.set_len(self.len));
            frame.copy_from_slice(&self.bytes());
            let to = LocalPod {
                id: PodId::new(self.pod).unwrap(),
                ifindex: IfIndex(u32::from(self.pod) + 1),
                mac: Mac([2; 6]),
                gateway_mac: Mac([4; 6]),
            };
            Delivery { to, virtio: VirtioNetHdr::default(), frames: vec![frame] }
        }
    }

    fn given() -> impl Strategy<Value = Given> {
        (any::<bool>(), 1..=PodId::MAX, prop_oneof![Just(74_usize), 34..2049_usize]).prop_map(|(v6, pod, len)| Given {
            v6,
            pod,
            len,
        })
    }

    /// What the kernel makes of a train: its frames, as they come out of the hub.
    fn cut(train: &mut PodTrain, pool: &mut Pool) -> Vec<Vec<u8>> {
        let Departing { virtio, headers, frames, bytes } = train.depart().unwrap();
        let packet = [headers].into_iter().chain(frames.iter().map(|frame| &**frame)).collect::<Vec<_>>().concat();
        assert!(packet.len() <= MAX_PACKET + Ethernet::LEN && bytes > 0);
        frames.drain(..).for_each(|frame| pool.put(frame));
        let mut segmenter = Segmenter::new(&packet, &virtio).unwrap();
        let mut cut = Vec::new();
        while let Some(len) = segmenter.next_len() {
            let mut frame = [&packet[..Ethernet::LEN], &vec![0; len]].concat();
            segmenter.write_next(&mut frame[Ethernet::LEN..]).unwrap();
            sample::judge(&frame[Ethernet::LEN..]);
            cut.push(frame);
        }
        cut
    }

    /// Checks that a frame of the hub has what `given` says, and only zeros or what others left behind it.
    fn check(frame: &[u8], given: &Given) {
        let bytes = given.bytes();
        assert_eq!(frame[12..14], bytes[12..14], "the version of IP");
        let datagram = &frame[if given.v6 { V6_HEADERS.len() } else { V4_HEADERS.len() }..];
        assert_eq!(datagram[..12], bytes[..12], "the pod's Ethernet header");
        assert_eq!(datagram[12..14], given.pod.to_be_bytes());
        assert_eq!(datagram[14..bytes.len()], bytes[14..]);
    }

    proptest! {
        #[test]
        fn trains_are_cut_into_what_joined(all in proptest::collection::vec(given(), 2..150), of_one in any::<bool>()) {
            let (_region, mut pool) = Region::map(200).unwrap();
            let (mut train, mut waiting, mut trains) = (PodTrain::default(), Vec::new(), 0);
            let mut arrive = |train: &mut PodTrain, waiting: &mut Vec<Given>, pool: &mut Pool| {
                // One alone is no super-packet.
                if waiting.len() == 1 {
                    let [(frame, device)] = train.disband().collect::<Vec<_>>().try_into().unwrap();
                    assert_eq!((&frame[..], device.0), (&waiting[0].bytes()[..], u32::from(waiting[0].pod) + 1));
                    pool.put(frame);
                } else {
                    trains += 1;
                    let frames = cut(train, pool);
                    assert_eq!(frames.len(), waiting.len());
                    frames.iter().zip(waiting.iter()).for_each(|(frame, given)| check(frame, given));
                }
                waiting.clear();
                assert!(train.is_empty());
            };
            for mut given in all {
                given.v6 &= !of_one;
                let mut packet = given.packet(&mut pool);
                if !train.join(&mut packet) {
                    arrive(&mut train, &mut waiting, &mut pool);
                    prop_assert!(train.join(&mut packet));
                }
                prop_assert!(packet.frames.is_empty());
                waiting.push(given);
            }
            arrive(&mut train, &mut waiting, &mut pool);
            prop_assert_eq!(pool.len(), 200);
        }
    }

    #[test]
    fn what_is_no_plain_packet_of_one_short_frame_does_not_join() {
        let (_region, mut pool) = Region::map(8).unwrap();
        let given = Given { v6: false, pod: 1, len: LONGEST };
        let mut train = PodTrain::default();
        let mut put_back = |mut packet: Delivery, pool: &mut Pool| {
            assert!(!train.join(&mut packet));
            packet.frames.drain(..).for_each(|frame| pool.put(frame));
        };
        put_back(Given { len: LONGEST + 1, ..given.clone() }.packet(&mut pool), &mut pool);
        let mut two = given.packet(&mut pool);
        two.frames.append(&mut given.packet(&mut pool).frames);
        put_back(two, &mut pool);
        let virtio = VirtioNetHdr { flags: VirtioNetHdr::DATA_VALID, ..VirtioNetHdr::default() };
        put_back(Delivery { virtio, ..given.packet(&mut pool) }, &mut pool);
        let mut arp = given.packet(&mut pool);
        arp.frames[0][13] = 6;
        put_back(arp, &mut pool);
        let mut late = given.packet(&mut pool);
        late.frames[0].reset(crate::frame::CHUNK_SIZE - 100);
        assert!(late.frames[0].set_len(100));
        late.frames[0][..14].copy_from_slice(&given.bytes()[..14]);
        put_back(late, &mut pool);
        put_back(Delivery { frames: Vec::new(), ..given.packet(&mut pool) }, &mut pool);
    }

    #[test]
    fn a_train_is_bounded_in_packets_and_bytes() {
        let (_region, mut pool) = Region::map(200).unwrap();
        let mut most = |lengths: &[usize]| {
            let mut train = PodTrain::default();
            let joined = lengths.iter().take_while(|&&len| {
                let mut packet = Given { v6: true, pod: 7, len }.packet(&mut pool);
                let joined = train.join(&mut packet);
                packet.frames.drain(..).for_each(|frame| pool.put(frame));
                joined
            });
            let joined = joined.count();
            train.disband().for_each(|(frame, _)| pool.put(frame));
            joined
        };
        assert_eq!(most(&[60; 100]), MAX_FRAMES);
        assert_eq!(most(&[1464; 100]), 44);
        // All become as long as the longest.
        assert_eq!(most(&[[60; 50].as_slice(), &[1464; 50]].concat()), 50);
    }
}
