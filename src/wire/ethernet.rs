use super::Mac;

/// What an Ethernet frame carries (IEEE 802 Numbers, IANA).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EtherType(pub u16);

impl EtherType {
    pub const IPV4: Self = Self(0x0800);
    pub const ARP: Self = Self(0x0806);
    pub const VLAN: Self = Self(0x8100);
    pub const IPV6: Self = Self(0x86dd);
}

/// An Ethernet II header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: EtherType,
}

impl Ethernet {
    /// The header's length in bytes.
    pub const LEN: usize = 14;

    /// Reads the header at the head of `frame`; `None` when the frame is shorter.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        frame.first_chunk().map(Self::from_bytes)
    }

    /// Writes the header at the head of `frame`; false, and nothing written, when the frame is shorter.
    #[inline]
    #[must_use]
    pub fn write(&self, frame: &mut [u8]) -> bool {
        let Some(head) = frame.first_chunk_mut() else { return false };
        *head = self.to_bytes();
        true
    }

    /// The header in `bytes`.
    #[inline]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *bytes;
        Self {
            dst: Mac([d0, d1, d2, d3, d4, d5]),
            src: Mac([s0, s1, s2, s3, s4, s5]),
            ethertype: EtherType(u16::from_be_bytes([t0, t1])),
        }
    }

    /// The header as it travels.
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (Mac([d0, d1, d2, d3, d4, d5]), Mac([s0, s1, s2, s3, s4, s5])) = (self.dst, self.src);
        let [t0, t1] = self.ethertype.0.to_be_bytes();
        [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_below_14_bytes_has_no_header() {
        let header = Ethernet { dst: Mac([1; 6]), src: Mac([2; 6]), ethertype: EtherType::ARP };
        let mut short = [0; 13];
        assert!(!header.write(&mut short));
        assert_eq!(short, [0; 13]);
        assert_eq!(Ethernet::parse(&short), None);
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(bytes: [u8; 20]) {
            let header = Ethernet::parse(&bytes).unwrap();
            let mut copy = [0; 20];
            copy[14..].copy_from_slice(&bytes[14..]);
            prop_assert!(header.write(&mut copy));
            prop_assert_eq!(copy, bytes);
        }
    }
}
