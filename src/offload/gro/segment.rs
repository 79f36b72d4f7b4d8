use crate::offload::tcp;
use crate::wire::{Ethernet, Ipv4, Ipv6, Protocol, Sum, flow_hash_v4, flow_hash_v6, pseudo_v4, pseudo_v6};

/// What merging needs to know of a TCP segment. One whose header is broken has no payload: it neither leads nor joins,
/// but it keeps its place in its flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Equal for all segments of a flow; almost never for those of different ones.
    pub flow: u64,
    pub v6: bool,
    /// The IPv4 identification.
    pub ip_id: u16,
    pub sequence: u32,
    pub flags: u8,
    pub tcp_header_len: u8,
    pub payload_len: u16,
    /// Over the pseudo header without length.
    pseudo: Sum,
}

impl Segment {
    /// Reads the segment of a parsed packet; `None` when that is not TCP.
    #[inline]
    pub fn read_v4(ip: Ipv4<'_>, packet: &[u8]) -> Option<Self> {
        if ip.protocol() != Protocol::TCP {
            return None;
        }
        let tcp = packet.get(Ipv4::LEN..ip.total_len())?;
        let pseudo = pseudo_v4(ip.src(), ip.dst(), Protocol::TCP, 0);
        let network = Self { flow: flow_hash_v4(ip, packet), ip_id: ip.id(), pseudo, ..Self::default() };
        Some(network.with_header(tcp).unwrap_or(network))
    }

    /// [`Segment::read_v4`] for IPv6.
    #[inline]
    pub fn read_v6(ip: Ipv6<'_>, packet: &[u8]) -> Option<Self> {
        if ip.protocol() != Protocol::TCP {
            return None;
        }
        let tcp = packet.get(Ipv6::LEN..ip.total_len())?;
        let pseudo = pseudo_v6(ip.src(), ip.dst(), Protocol::TCP, 0);
        let network = Self { flow: flow_hash_v6(ip, packet), v6: true, pseudo, ..Self::default() };
        Some(network.with_header(tcp).unwrap_or(network))
    }

    #[inline]
    fn with_header(self, segment: &[u8]) -> Option<Self> {
        let &[_, _, _, _, s0, s1, s2, s3, _, _, _, _, data_offset, flags, _, _, _, _, _, _] =
            segment.first_chunk::<{ tcp::LEN }>()?;
        let tcp_header_len = (data_offset >> 4) * 4;
        if usize::from(tcp_header_len) < tcp::LEN {
            return None;
        }
        let payload_len = u16::try_from(segment.len().checked_sub(tcp_header_len.into())?).ok()?;
        let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
        Some(Self { sequence, flags, tcp_header_len, payload_len, ..self })
    }

    /// Where the TCP header starts in the Ethernet frame.
    #[inline]
    pub fn l4(&self) -> usize {
        Ethernet::LEN + if self.v6 { Ipv6::LEN } else { Ipv4::LEN }
    }

    /// Bytes of all headers, that of Ethernet included.
    #[inline]
    pub fn headers_len(&self) -> usize {
        self.l4() + usize::from(self.tcp_header_len)
    }

    /// The sequence number that continues it.
    #[inline]
    pub fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(self.payload_len.into())
    }

    /// Whether others may join it: it has payload, and nothing that the receiver should learn at once. Not with CWR, which
    /// a super-packet cannot say to be on which of its segments: with accurate ECN (RFC 9768) each counts.
    #[inline]
    pub fn may_lead(&self) -> bool {
        const ALONE: u8 = tcp::FIN | tcp::SYN | tcp::RST | tcp::PSH | tcp::URG | tcp::CWR;
        self.payload_len > 0 && self.flags & ALONE == 0
    }

    /// The sum over the pseudo header of a segment of `l4_len` bytes with the same addresses.
    #[inline]
    pub fn pseudo(&self, l4_len: usize) -> Sum {
        self.pseudo + Sum::from(u32::try_from(l4_len).unwrap_or(0))
    }

    /// Whether the TCP checksum of its Ethernet frame is right. Reads all of it.
    #[inline]
    pub fn is_intact(&self, frame: &[u8]) -> bool {
        frame.get(self.l4()..).is_some_and(|segment| (self.pseudo(segment.len()) + Sum::of(segment)).is_valid())
    }
}
