use super::Delivery;
use super::segment::Segment;
use crate::fib::LocalPod;
use crate::frame::Frame;
use crate::offload::{VirtioNetHdr, tcp};
use crate::wire::{Ethernet, Ipv4, Ipv6};

/// Bytes of a super-packet from its IP header on at most: what an IPv4 header can say.
const MAX_PACKET: usize = u16::MAX as usize;

/// A TCP segment and those that continue it.
#[derive(Debug)]
pub struct Merge {
    delivery: Delivery,
    first: Segment,
    /// The sequence number that continues the last one.
    next_sequence: u32,
    packet_len: usize,
    /// FIN and PSH of those that joined.
    ending: u8,
    ids: Ids,
}

/// How the IPv4 identifications go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    /// There is one, or none.
    Unknown,
    /// All equal, as with DF set they may be (RFC 6864 section 4.1).
    Fixed,
    Counting,
}

/// What becomes of a merge that a frame has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Continues,
    /// It is complete: close it.
    Ends,
}

impl Merge {
    /// Begins with a segment that [may lead](Segment::may_lead). `frames` is empty room.
    #[inline]
    pub fn new(first: Segment, frame: Frame, to: &LocalPod, mut frames: Vec<Frame>) -> Self {
        let packet_len = frame.len() - Ethernet::LEN;
        frames.push(frame);
        let delivery = Delivery { to: *to, virtio: VirtioNetHdr::default(), frames };
        Self { delivery, first, next_sequence: first.next_sequence(), packet_len, ending: 0, ids: Ids::Unknown }
    }

    pub fn flow(&self) -> u64 {
        self.first.flow
    }

    /// Takes the flow's next frame, or gives it back if it cannot join.
    #[inline]
    pub fn join(&mut self, segment: &Segment, mut frame: Frame) -> Result<Progress, Frame> {
        if !self.accepts(segment, &frame) {
            return Err(frame);
        }
        if !frame.trim_front(segment.headers_len()) {
            return Err(frame);
        }
        self.ids = self.ids_with(segment);
        self.next_sequence = segment.next_sequence();
        self.packet_len += frame.len();
        self.ending |= segment.flags & (tcp::FIN | tcp::PSH);
        self.delivery.frames.push(frame);
        let ends = self.ending != 0 || segment.payload_len < self.first.payload_len;
        Ok(if ends { Progress::Ends } else { Progress::Continues })
    }

    /// Whether a frame may join: it continues the last one, its headers are those of the first but for what cutting
    /// would change, it has payload, not more than the first, and the checksums of both are right.
    #[inline]
    fn accepts(&self, segment: &Segment, frame: &[u8]) -> bool {
        let (Some(first), joined) = (self.delivery.frames.first(), self.delivery.frames.len()) else { return false };
        segment.sequence == self.next_sequence
            && (1..=self.first.payload_len).contains(&segment.payload_len)
            && (segment.flags ^ self.first.flags) & !(tcp::FIN | tcp::PSH) == 0
            && self.packet_len + usize::from(segment.payload_len) <= MAX_PACKET
            && self.continues_ids(segment, first)
            && same_headers(segment, first, frame)
            && segment.is_intact(frame)
            && (joined > 1 || self.first.is_intact(first))
    }

    /// The packet that has come of it.
    pub fn close(mut self) -> Delivery {
        if self.delivery.frames.len() > 1
            && let Some(first) = self.delivery.frames.first_mut()
            && let Some(virtio) = make_super(first, &self.first, self.packet_len, self.ending)
        {
            self.delivery.virtio = virtio;
        }
        self.delivery
    }

    /// Whether the identification of `segment` continues the row (`inet_gro_flush`).
    fn continues_ids(&self, segment: &Segment, first: &[u8]) -> bool {
        if segment.v6 {
            return true;
        }
        let distance = segment.ip_id.wrapping_sub(self.first.ip_id);
        let counted = usize::from(distance) == self.delivery.frames.len();
        match self.ids {
            Ids::Unknown => counted || distance == 0 && has_df(first),
            Ids::Fixed => distance == 0,
            Ids::Counting => counted,
        }
    }

    /// How identifications go on when `segment` has joined.
    fn ids_with(&self, segment: &Segment) -> Ids {
        if segment.ip_id == self.first.ip_id { Ids::Fixed } else { Ids::Counting }
    }
}

/// Whether the don't-fragment bit is set in an Ethernet frame of IPv4.
fn has_df(frame: &[u8]) -> bool {
    frame.get(Ethernet::LEN + 6).is_some_and(|flags| flags & 0x40 != 0)
}

/// Whether the headers of two frames with the same sort of addresses are equal, but for lengths, checksums,
/// identifications, sequence numbers and TCP flags, which are judged apart.
fn same_headers(segment: &Segment, first: &[u8], frame: &[u8]) -> bool {
    const IP: usize = Ethernet::LEN;
    let l4 = segment.l4();
    let same = |from: usize, to: usize| first.get(from..to) == frame.get(from..to);
    let network = if segment.v6 {
        same(0, IP + 4) && same(IP + 6, IP + Ipv6::LEN)
    } else {
        same(0, IP + 2) && same(IP + 6, IP + 10) && same(IP + 12, IP + Ipv4::LEN)
    };
    network
        && same(l4, l4 + 4)
        && same(l4 + 8, l4 + tcp::FLAGS_AT)
        && same(l4 + tcp::FLAGS_AT + 1, l4 + tcp::CHECKSUM_AT)
        && same(l4 + tcp::CHECKSUM_AT + 2, segment.headers_len())
}

/// Turns the headers of the first frame into those of a packet of `packet_len` bytes, its TCP checksum left to whoever
/// cuts it or takes it as a whole (`tcp4_gro_complete`, `tcp_gro_complete`).
fn make_super(first: &mut [u8], segment: &Segment, packet_len: usize, ending: u8) -> Option<VirtioNetHdr> {
    let l4 = segment.l4();
    let pseudo = segment.pseudo(Ethernet::LEN + packet_len - l4);
    let (headers, l4_header) = first.split_at_mut_checked(l4)?;
    let packet = headers.get_mut(Ethernet::LEN..)?;
    let gso_type = if segment.v6 {
        Ipv6::set_total_len(packet, packet_len)?;
        VirtioNetHdr::GSO_TCPV6
    } else {
        Ipv4::set_total_len(packet, packet_len)?;
        VirtioNetHdr::GSO_TCPV4
    };
    let tcp = l4_header.first_chunk_mut::<{ tcp::LEN }>()?;
    tcp[tcp::FLAGS_AT] |= ending;
    [tcp[tcp::CHECKSUM_AT], tcp[tcp::CHECKSUM_AT + 1]] = pseudo.fold().to_be_bytes();
    Some(VirtioNetHdr {
        flags: VirtioNetHdr::NEEDS_CSUM,
        gso_type,
        hdr_len: u16::try_from(segment.headers_len()).ok()?,
        gso_size: segment.payload_len,
        csum_start: u16::try_from(l4).ok()?,
        csum_offset: u16::try_from(tcp::CHECKSUM_AT).ok()?,
    })
}
