/// A VXLAN network identifier, 24 bits (RFC 7348 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The largest identifier.
    pub const MAX: u32 = (1 << 24) - 1;

    /// The identifier, or `None` above 24 bits.
    pub fn new(vni: u32) -> Option<Self> {
        (vni <= Self::MAX).then_some(Self(vni))
    }

    /// The identifier as a plain number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// The I flag is unset, or another flag or a reserved bit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFlags;

/// A VXLAN header (RFC 7348 section 5), without extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanHeader {
    pub vni: Vni,
}

impl VxlanHeader {
    /// The header's length in bytes.
    pub const LEN: usize = 8;
    const FLAG_VNI: u64 = 0x08 << 56;

    /// Reads the header. Like the kernel's receiver (`vxlan_rcv` in drivers/net/vxlan/vxlan_core.c)
    /// and stricter than the RFC, it refuses unknown flags and reserved bits.
    #[inline]
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Result<Self, BadFlags> {
        let [_, _, _, _, second @ ..] = *bytes;
        let header = Self { vni: Vni(u32::from_be_bytes(second) >> 8) };
        // One comparison for all bytes.
        if *bytes == header.to_bytes() { Ok(header) } else { Err(BadFlags) }
    }

    /// The header as it travels.
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        (Self::FLAG_VNI | u64::from(self.vni.0) << 8).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_other_flag_or_reserved_bit_is_refused() {
        let header = VxlanHeader { vni: Vni::new(0x0012_3456).unwrap() };
        assert_eq!(VxlanHeader::from_bytes(&header.to_bytes()), Ok(header));
        for bit in (0..32).chain(56..64) {
            let mut bytes = header.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(VxlanHeader::from_bytes(&bytes), Err(BadFlags), "bit {bit}");
        }
    }

    #[test]
    fn an_identifier_has_24_bits() {
        assert_eq!(Vni::new(Vni::MAX).map(Vni::get), Some(Vni::MAX));
        assert_eq!(Vni::new(Vni::MAX + 1), None);
    }
}
