/// The number of what an IP packet carries (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const ICMPV6: Self = Self(58);

    /// Whether the first four bytes after the IP header are a source and a destination port.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP)
    }
}

/// Why a packet is not a plain IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpError {
    /// Fewer bytes than a header.
    Truncated,
    /// The version is not that of the header asked for.
    BadVersion,
    /// The length in the header is below a header or beyond the bytes that came.
    BadLength,
    /// The IPv4 header checksum is wrong.
    BadChecksum,
    /// IPv4 options.
    Options,
    /// A part of an IPv4 packet.
    Fragment,
    /// What follows the IPv6 header is neither TCP, UDP nor ICMPv6.
    ExtensionHeader,
}
