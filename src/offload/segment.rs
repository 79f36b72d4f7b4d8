//! Cutting a super-packet into packets of the wire, each complete and valid, while copying it.

use super::tcp::{CWR, FIN, PSH};
use super::virtio::Checksum;
use super::{GsoType, OffloadError, VirtioNetHdr};
use crate::wire::{EtherType, Ethernet, Ipv4, Ipv6, Protocol, Sum, copy_and_sum, pseudo_v4, pseudo_v6};

/// Cuts the IP packet of one Ethernet frame. Each segment repeats the IP header and the TCP or UDP
/// header with all options, as the kernel does (`tcp_gso_segment` in net/ipv4/tcp_offload.c, `__udp_gso_segment` in
/// net/ipv4/udp_offload.c, `inet_gso_segment` in net/ipv4/af_inet.c):
///
/// - IPv4 identifications count up from that of the super-packet;
/// - TCP sequence numbers advance, FIN and PSH stay on the last segment;
/// - CWR stays on the first if [`VirtioNetHdr::GSO_ECN`] asks for it, and is repeated otherwise: with accurate ECN
///   (RFC 9768) it is a bit of a counter;
/// - lengths and checksums are the segment's own.
///
/// TTL and hop limit are copied as they are: decrement them in the source or in each segment.
#[derive(Clone, Debug)]
pub struct Segmenter<'a> {
    /// IP and TCP or UDP header.
    headers: &'a [u8],
    ip: IpState,
    l4: L4State,
    /// What is still to be sent.
    payload: &'a [u8],
    gso_size: usize,
    segments_left: usize,
    /// Over the pseudo header without length and the fields of the TCP or UDP header that do not change.
    base: Sum,
}

#[derive(Clone, Copy, Debug)]
enum IpState {
    V4 { next_id: u16 },
    V6,
}

#[derive(Clone, Copy, Debug)]
enum L4State {
    /// Without the flags in `passing` after the first segment.
    Tcp {
        next_sequence: u32,
        flags: u8,
        passing: u8,
    },
    Udp,
}

/// The headers of a super-packet, checked.
struct Super<'a> {
    ip: IpState,
    protocol: Protocol,
    /// Over the pseudo header without length.
    pseudo: Sum,
    l4_offset: usize,
    /// The IP packet, cut at its total length.
    packet: &'a [u8],
}

/// A TCP or UDP header, read once.
struct L4 {
    state: L4State,
    header_len: usize,
    checksum_offset: usize,
    /// Over the fields that do not change.
    base: Sum,
}

impl<'a> Segmenter<'a> {
    /// The most segments that one super-packet may become: a pod must not buy unbounded work with one
    /// frame. A sender reaches it with segments of less than 64 bytes only.
    pub const MAX_SEGMENTS: usize = 1024;

    /// Prepares to cut the IP packet in the Ethernet `frame` as `hdr` asks. What follows the IP packet's own
    /// length is ignored.
    pub fn new(frame: &'a [u8], hdr: &VirtioNetHdr) -> Result<Self, OffloadError> {
        let source = Super::parse(frame)?;
        let gso = hdr.gso().ok_or(OffloadError::BadGsoType)?;
        let fits = match gso {
            GsoType::TcpV4 => source.protocol == Protocol::TCP && matches!(source.ip, IpState::V4 { .. }),
            GsoType::TcpV6 => source.protocol == Protocol::TCP && matches!(source.ip, IpState::V6),
            GsoType::UdpL4 => source.protocol == Protocol::UDP,
        };
        if !fits {
            return Err(OffloadError::BadGsoType);
        }
        let header = source.packet.get(source.l4_offset..).ok_or(OffloadError::Truncated)?;
        let l4 = L4::parse(header, source.protocol, hdr).ok_or(OffloadError::Truncated)?;
        let start = Ethernet::LEN + source.l4_offset;
        let wanted = Checksum { start, field: start + l4.checksum_offset };
        if hdr.checksum(frame)? != Some(wanted) {
            return Err(OffloadError::BadChecksumField);
        }
        let (headers, payload) =
            source.packet.split_at_checked(source.l4_offset + l4.header_len).ok_or(OffloadError::Truncated)?;
        let gso_size = usize::from(hdr.gso_size);
        if gso_size == 0 {
            return Err(OffloadError::ZeroGsoSize);
        }
        let segments_left = payload.len().div_ceil(gso_size).max(1);
        if segments_left > Self::MAX_SEGMENTS {
            return Err(OffloadError::TooManySegments);
        }
        let base = source.pseudo + l4.base;
        Ok(Self { headers, ip: source.ip, l4: l4.state, payload, gso_size, segments_left, base })
    }

    /// The segments that are still to be written.
    #[inline]
    pub fn segments_left(&self) -> usize {
        self.segments_left
    }

    /// The next segment's IP packet in bytes; `None` when all are written. The first is the longest.
    #[inline]
    pub fn next_len(&self) -> Option<usize> {
        (self.segments_left > 0).then(|| self.headers.len() + self.payload.len().min(self.gso_size))
    }

    /// Writes the next segment's IP packet to the head of `out` and returns its length; `None`, with nothing
    /// consumed, when all are written or `out` is shorter.
    #[inline]
    pub fn write_next(&mut self, out: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let (head, body) = out.get_mut(..len)?.split_at_mut_checked(self.headers.len())?;
        let (payload, rest) = self.payload.split_at_checked(body.len())?;
        let sum = self.base + copy_and_sum(body, payload)?;
        head.copy_from_slice(self.headers);
        let l4 = self.ip.fix(head, len)?;
        let last = self.segments_left == 1;
        self.l4.fix(l4, payload.len(), last, sum)?;
        self.payload = rest;
        self.segments_left -= 1;
        Some(len)
    }
}

impl<'a> Super<'a> {
    fn parse(frame: &'a [u8]) -> Result<Self, OffloadError> {
        let ethernet = Ethernet::parse(frame).ok_or(OffloadError::NotIp)?;
        let bytes = frame.get(Ethernet::LEN..).ok_or(OffloadError::NotIp)?;
        let (ip, protocol, pseudo, l4_offset, total_len) = match ethernet.ethertype {
            EtherType::IPV4 => {
                let ip = Ipv4::parse(bytes).map_err(|_| OffloadError::NotIp)?;
                let pseudo = pseudo_v4(ip.src(), ip.dst(), ip.protocol(), 0);
                (IpState::V4 { next_id: ip.id() }, ip.protocol(), pseudo, Ipv4::LEN, ip.total_len())
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(bytes).map_err(|_| OffloadError::NotIp)?;
                let pseudo = pseudo_v6(ip.src(), ip.dst(), ip.protocol(), 0);
                (IpState::V6, ip.protocol(), pseudo, Ipv6::LEN, ip.total_len())
            }
            _ => return Err(OffloadError::NotIp),
        };
        let packet = bytes.get(..total_len).ok_or(OffloadError::NotIp)?;
        Ok(Self { ip, protocol, pseudo, l4_offset, packet })
    }
}

impl IpState {
    /// Gives the copied IP header its segment's values; returns the TCP or UDP header behind it.
    #[inline]
    fn fix<'h>(&mut self, headers: &'h mut [u8], total_len: usize) -> Option<&'h mut [u8]> {
        match self {
            Self::V4 { next_id } => {
                let (ip, l4) = headers.split_first_chunk_mut::<{ Ipv4::LEN }>()?;
                [ip[2], ip[3]] = u16::try_from(total_len).ok()?.to_be_bytes();
                [ip[4], ip[5]] = next_id.to_be_bytes();
                [ip[10], ip[11]] = [0, 0];
                [ip[10], ip[11]] = Sum::of_array(ip).checksum().to_be_bytes();
                *next_id = next_id.wrapping_add(1);
                Some(l4)
            }
            Self::V6 => {
                let (ip, l4) = headers.split_first_chunk_mut::<{ Ipv6::LEN }>()?;
                [ip[4], ip[5]] = u16::try_from(total_len.checked_sub(Ipv6::LEN)?).ok()?.to_be_bytes();
                Some(l4)
            }
        }
    }
}

impl L4 {
    /// Reads the TCP or UDP header at the head of `segment`; `None` when it is shorter than its header.
    fn parse(segment: &[u8], protocol: Protocol, hdr: &VirtioNetHdr) -> Option<Self> {
        let passing = if hdr.gso_type & VirtioNetHdr::GSO_ECN != 0 { CWR } else { 0 };
        if protocol == Protocol::TCP { Self::tcp(segment, passing) } else { Self::udp(segment) }
    }

    fn tcp(segment: &[u8], passing: u8) -> Option<Self> {
        let &[_, _, _, _, s0, s1, s2, s3, _, _, _, _, data_offset, flags, _, _, c0, c1, _, _] =
            segment.first_chunk::<20>()?;
        let header_len = usize::from(data_offset >> 4) * 4;
        let header = segment.get(..header_len).filter(|header| header.len() >= 20)?;
        let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
        let varying = Sum::from(sequence) + Sum::from(u16::from(flags)) + Sum::from(u16::from_be_bytes([c0, c1]));
        Some(Self {
            state: L4State::Tcp { next_sequence: sequence, flags, passing },
            header_len,
            checksum_offset: 16,
            base: Sum::of(header) + -varying,
        })
    }

    fn udp(segment: &[u8]) -> Option<Self> {
        let ports = segment.first_chunk::<8>()?.first_chunk::<4>()?;
        Some(Self { state: L4State::Udp, header_len: 8, checksum_offset: 6, base: Sum::of_array(ports) })
    }
}

impl L4State {
    /// Gives the copied `header` its segment's values; `sum` covers the pseudo header without length,
    /// the fields that do not change, and the payload.
    #[inline]
    fn fix(&mut self, header: &mut [u8], payload_len: usize, last: bool, sum: Sum) -> Option<()> {
        let l4_len = u16::try_from(header.len() + payload_len).ok()?;
        match self {
            Self::Tcp { next_sequence, flags, passing } => {
                let kept = *flags & !(if last { 0 } else { FIN | PSH });
                let sum = sum + Sum::from(l4_len) + Sum::from(*next_sequence) + Sum::from(u16::from(kept));
                let tcp = header.first_chunk_mut::<20>()?;
                [tcp[4], tcp[5], tcp[6], tcp[7]] = next_sequence.to_be_bytes();
                tcp[13] = kept;
                [tcp[16], tcp[17]] = sum.checksum().to_be_bytes();
                *next_sequence = next_sequence.wrapping_add(u32::try_from(payload_len).ok()?);
                *flags &= !*passing;
            }
            Self::Udp => {
                // The length counts twice: in the pseudo header and in the UDP header.
                let sum = sum + Sum::from(l4_len) + Sum::from(l4_len);
                let udp = header.first_chunk_mut::<8>()?;
                [udp[4], udp[5]] = l4_len.to_be_bytes();
                [udp[6], udp[7]] = sum.udp_checksum().to_be_bytes();
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{self, Sample};

    /// A super-packet and the size of its segments, which are at most [`Segmenter::MAX_SEGMENTS`].
    fn any_super() -> impl Strategy<Value = (Sample, u16)> {
        let l4 = prop_oneof![Sample::any_tcp(), Just(sample::L4::Udp)];
        (Sample::carrying(l4, 65_000), prop_oneof![1u16..100, 500u16..9000]).prop_map(|(sample, gso_size)| {
            let least = sample.payload.len().div_ceil(Segmenter::MAX_SEGMENTS);
            let gso_size = gso_size.max(u16::try_from(least).unwrap());
            (sample, gso_size)
        })
    }

    fn frame_of(sample: &Sample, gso_size: u16) -> (Vec<u8>, VirtioNetHdr) {
        let (frame, csum_start, csum_offset) = sample.build_partial();
        let gso_type = match sample.l4 {
            sample::L4::Udp => VirtioNetHdr::GSO_UDP_L4,
            _ if sample.v6 => VirtioNetHdr::GSO_TCPV6,
            _ => VirtioNetHdr::GSO_TCPV4,
        };
        let flags = VirtioNetHdr::NEEDS_CSUM;
        (frame, VirtioNetHdr { flags, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset })
    }

    fn tcp(v6: bool, payload_len: usize) -> Sample {
        let l4 = sample::L4::Tcp { sequence: u32::MAX - 1500, flags: 0xff, options: vec![1; 12] };
        let payload = sample::noise(payload_len, 7);
        Sample { v6, l4, src: 1, dst: 2, tos: 2, ttl: 64, id: 0xffff, df: true, ports: (1, 2), payload }
    }

    fn cut(segmenter: &mut Segmenter<'_>) -> Vec<Vec<u8>> {
        let mut segments = Vec::new();
        while let Some(len) = segmenter.next_len() {
            let mut out = vec![0xaa; len + 8];
            let left = segmenter.segments_left();
            assert_eq!(segmenter.write_next(&mut out), Some(len));
            assert_eq!(out.split_off(len), [0xaa; 8]);
            assert_eq!(segmenter.segments_left(), left - 1);
            segments.push(out);
        }
        assert_eq!((segmenter.write_next(&mut [0; 2000]), segmenter.segments_left()), (None, 0));
        segments
    }

    /// Asserts that `segment` differs from the `whole` packet only as segment number `i` must; returns its payload.
    fn compare<'s>(
        whole: &SlicedPacket<'_>,
        segment: &SlicedPacket<'s>,
        (i, last): (u16, bool),
        sent: usize,
        ecn: bool,
    ) -> &'s [u8] {
        match (whole.net.as_ref().unwrap(), segment.net.as_ref().unwrap()) {
            (NetSlice::Ipv4(whole), NetSlice::Ipv4(segment)) => {
                let (mut wanted, is) = (whole.header().to_header(), segment.header().to_header());
                wanted.identification = wanted.identification.wrapping_add(i);
                (wanted.total_len, wanted.header_checksum) = (is.total_len, is.header_checksum);
                assert_eq!(is, wanted);
            }
            (NetSlice::Ipv6(whole), NetSlice::Ipv6(segment)) => {
                let (mut wanted, is) = (whole.header().to_header(), segment.header().to_header());
                wanted.payload_length = is.payload_length;
                assert_eq!(is, wanted);
            }
            _ => panic!("the IP version changed"),
        }
        match (whole.transport.as_ref().unwrap(), segment.transport.as_ref().unwrap()) {
            (TransportSlice::Tcp(whole), TransportSlice::Tcp(segment)) => {
                let (mut wanted, is) = (whole.to_header(), segment.to_header());
                wanted.sequence_number = wanted.sequence_number.wrapping_add(u32::try_from(sent).unwrap());
                wanted.fin &= last;
                wanted.psh &= last;
                wanted.cwr &= i == 0 || !ecn;
                wanted.checksum = is.checksum;
                assert_eq!(is, wanted);
                segment.payload()
            }
            (TransportSlice::Udp(whole), TransportSlice::Udp(segment)) => {
                let ports = |udp: &etherparse::UdpSlice<'_>| (udp.source_port(), udp.destination_port());
                assert_eq!(ports(segment), ports(whole));
                segment.payload()
            }
            _ => panic!("the protocol changed"),
        }
    }

    #[test]
    fn a_request_that_does_not_fit_is_refused() {
        use OffloadError::{BadChecksumField, BadGsoType, NotIp, TooManySegments, ZeroGsoSize};
        let (frame, good) = frame_of(&tcp(false, 3000), 1000);
        let table: [(&str, VirtioNetHdr, OffloadError); 12] = [
            ("no segmentation", VirtioNetHdr { gso_type: 0, ..good }, BadGsoType),
            ("an unknown type", VirtioNetHdr { gso_type: 3, ..good }, BadGsoType),
            ("TCP over the other IP version", VirtioNetHdr { gso_type: 4, ..good }, BadGsoType),
            ("UDP", VirtioNetHdr { gso_type: 5, ..good }, BadGsoType),
            ("no checksum", VirtioNetHdr { flags: 0, ..good }, BadChecksumField),
            ("a checksum from elsewhere on", VirtioNetHdr { csum_start: 36, ..good }, BadChecksumField),
            ("a checksum to elsewhere", VirtioNetHdr { csum_offset: 6, ..good }, BadChecksumField),
            ("a checksum in the IP header", VirtioNetHdr { csum_start: 14, ..good }, BadChecksumField),
            ("a checksum beyond the frame", VirtioNetHdr { csum_offset: u16::MAX, ..good }, BadChecksumField),
            ("no size", VirtioNetHdr { gso_size: 0, ..good }, ZeroGsoSize),
            ("segments of two bytes", VirtioNetHdr { gso_size: 2, ..good }, TooManySegments),
            ("all fields set", VirtioNetHdr::parse(&[0xff; 10]).unwrap(), BadGsoType),
        ];
        for (name, hdr, error) in table {
            assert_eq!(Segmenter::new(&frame, &hdr).err(), Some(error), "{name}");
        }
        let arp = [&[0; 12][..], &[8, 6], &frame[14..]].concat();
        assert_eq!(Segmenter::new(&arp, &good).err(), Some(NotIp));
    }

    #[test]
    fn a_tcp_header_longer_than_the_packet_is_refused() {
        for (at, value) in [(46, 0x40), (46, 0xf0)] {
            let (mut frame, hdr) = frame_of(&tcp(false, 0), 1000);
            frame[at] = value;
            assert_eq!(Segmenter::new(&frame, &hdr).err(), Some(OffloadError::Truncated), "{value:#x}");
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_refused() {
        for v6 in [false, true] {
            let (frame, hdr) = frame_of(&tcp(v6, 50), 20);
            for len in 0..frame.len() {
                assert!(Segmenter::new(&frame[..len], &hdr).is_err(), "{len} of {}", frame.len());
            }
        }
    }

    #[test]
    fn too_little_space_consumes_nothing() {
        let (frame, hdr) = frame_of(&tcp(true, 2500), 1000);
        let mut segmenter = Segmenter::new(&frame, &hdr).unwrap();
        let len = segmenter.next_len().unwrap();
        assert_eq!(segmenter.write_next(&mut vec![0; len - 1]), None);
        assert_eq!(cut(&mut segmenter), cut(&mut Segmenter::new(&frame, &hdr).unwrap()));
    }

    #[test]
    fn a_super_packet_without_payload_is_one_segment() {
        let sample = tcp(false, 0);
        let (frame, hdr) = frame_of(&sample, 1000);
        let segments = cut(&mut Segmenter::new(&frame, &hdr).unwrap());
        assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [sample.build().len()]);
        sample::judge(&segments[0]);
    }

    #[test]
    fn padding_behind_the_packet_is_not_sent() {
        let (mut frame, hdr) = frame_of(&tcp(false, 100), 60);
        let expected = cut(&mut Segmenter::new(&frame, &hdr).unwrap());
        frame.extend([0xee; 7]);
        assert_eq!(cut(&mut Segmenter::new(&frame, &hdr).unwrap()), expected);
    }

    proptest! {
        #[test]
        fn segments_are_valid_and_give_back_the_payload((sample, gso_size) in any_super(), ecn: bool) {
            let (frame, mut hdr) = frame_of(&sample, gso_size);
            if ecn && hdr.gso_type != VirtioNetHdr::GSO_UDP_L4 {
                hdr.gso_type |= VirtioNetHdr::GSO_ECN;
            }
            let mut segmenter = Segmenter::new(&frame, &hdr).unwrap();
            let segments = cut(&mut segmenter);
            prop_assert_eq!(segments.len(), sample.payload.len().div_ceil(gso_size.into()).max(1));

            let packet = sample.build();
            let whole = SlicedPacket::from_ip(&packet).unwrap();
            let mut payload = Vec::new();
            for (i, segment) in (0..).zip(&segments) {
                let last = usize::from(i) + 1 == segments.len();
                let part = compare(&whole, &sample::judge(segment), (i, last), payload.len(), ecn);
                prop_assert!(last || part.len() == usize::from(gso_size));
                payload.extend_from_slice(part);
            }
            prop_assert_eq!(payload, sample.payload);
        }

        #[test]
        fn any_request_on_any_frame_ends(
            (sample, gso_size) in any_super(),
            changes in proptest::collection::vec((0usize..100, any::<u8>()), 0..4),
            hdr_change in (0usize..10, any::<u8>()),
        ) {
            let (mut frame, hdr) = frame_of(&sample, gso_size);
            for (at, value) in changes {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            let mut hdr = hdr.to_bytes();
            hdr[hdr_change.0] = hdr_change.1;
            if let Ok(mut segmenter) = Segmenter::new(&frame, &VirtioNetHdr::parse(&hdr).unwrap()) {
                prop_assert!(cut(&mut segmenter).len() <= Segmenter::MAX_SEGMENTS);
            }
        }

        #[test]
        fn noise_is_refused(bytes: Vec<u8>, hdr: [u8; 10]) {
            prop_assert!(Segmenter::new(&bytes, &VirtioNetHdr::parse(&hdr).unwrap()).is_err());
        }
    }
}
