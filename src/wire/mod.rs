//! What travels on the wire: views of headers that check once, and the outer headers that
//! encapsulation writes. Imports nothing of ours, allocates nothing, never panics on input.

mod mac;

pub use mac::Mac;

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

/// (being written)
#[derive(Clone, Debug)]
pub struct OuterTemplate;
