//! Cutting a super-packet into packets of the wire, each complete and valid, while copying it.

use super::virtio::Checksum;
use super::{GsoType, OffloadError, VirtioNetHdr};
use crate::wire::{EtherType, Ethernet, Ipv4, Ipv6, Protocol, Sum, copy_and_sum, pseudo_v4, pseudo_v6};

/// Cuts the IP packet of one Ethernet frame. Each segment repeats the IP header and the TCP or UDP
/// header with all options, as the kernel does (`tcp_gso_segment` in net/ipv4/tcp_offload.c, `__udp_gso_segment` in
/// net/ipv4/udp_offload.c, `inet_gso_segment` in net/ipv4/af_inet.c):
///
/// - IPv4 identifications count up from that of the super-packet;
/// - TCP sequence numbers advance, FIN and PSH stay on the last segment, CWR on the first;
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
    Tcp { next_sequence: u32, flags: u8, first: bool },
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

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

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
        let l4 = L4::parse(header, source.protocol).ok_or(OffloadError::Truncated)?;
        let start = Ethernet::LEN + source.l4_offset;
        let wanted = Checksum { start, field: start + l4.checksum_offset };
        if hdr.checksum(frame.len())? != Some(wanted) {
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
                let pseudo = pseudo_v4(ip.src, ip.dst, ip.protocol, 0);
                (IpState::V4 { next_id: ip.id }, ip.protocol, pseudo, Ipv4::LEN, ip.total_len)
            }
            EtherType::IPV6 => {
                let ip = Ipv6::parse(bytes).map_err(|_| OffloadError::NotIp)?;
                let pseudo = pseudo_v6(ip.src, ip.dst, ip.protocol, 0);
                (IpState::V6, ip.protocol, pseudo, Ipv6::LEN, ip.total_len)
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
    fn parse(segment: &[u8], protocol: Protocol) -> Option<Self> {
        if protocol == Protocol::TCP { Self::tcp(segment) } else { Self::udp(segment) }
    }

    fn tcp(segment: &[u8]) -> Option<Self> {
        let &[_, _, _, _, s0, s1, s2, s3, _, _, _, _, data_offset, flags, _, _, c0, c1, _, _] =
            segment.first_chunk::<20>()?;
        let header_len = usize::from(data_offset >> 4) * 4;
        let header = segment.get(..header_len).filter(|header| header.len() >= 20)?;
        let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
        let varying = Sum::from(sequence) + Sum::from(u16::from(flags)) + Sum::from(u16::from_be_bytes([c0, c1]));
        Some(Self {
            state: L4State::Tcp { next_sequence: sequence, flags, first: true },
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
            Self::Tcp { next_sequence, flags, first } => {
                let kept = *flags & !(if last { 0 } else { FIN | PSH }) & !(if *first { 0 } else { CWR });
                let sum = sum + Sum::from(l4_len) + Sum::from(*next_sequence) + Sum::from(u16::from(kept));
                let tcp = header.first_chunk_mut::<20>()?;
                [tcp[4], tcp[5], tcp[6], tcp[7]] = next_sequence.to_be_bytes();
                tcp[13] = kept;
                [tcp[16], tcp[17]] = sum.checksum().to_be_bytes();
                *next_sequence = next_sequence.wrapping_add(u32::try_from(payload_len).ok()?);
                *first = false;
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
