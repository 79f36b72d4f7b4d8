//! The rings of an AF_XDP socket, which the library keeps to itself, between two ends of ours over plain memory.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "what uses the rest of it stands in the library")]

#[path = "../../src/xsk/mapping.rs"]
mod mapping;
#[path = "../../src/xsk/ring.rs"]
mod ring;
#[path = "../../src/xsk/sys.rs"]
mod sys;

pub use mapping::Mapping;
pub use ring::{Consumer, Producer};

use ring::Layout;

const LAYOUT: Layout = Layout { producer: 0, consumer: 64, flags: 128, slots: 192 };

/// Both ends of one ring of descriptors; what one writes the other reads, as the kernel would.
pub struct Ring {
    pub producer: Producer<libc::xdp_desc>,
    pub consumer: Consumer<libc::xdp_desc>,
    /// What the ends point into: to be kept for as long as they are.
    pub mapping: Mapping,
}

impl Ring {
    /// An empty ring of so many slots, a power of two.
    pub fn new(slots: u32) -> Self {
        let mapping = Mapping::anonymous(LAYOUT.slots + slots as usize * size_of::<libc::xdp_desc>());
        let mapping = mapping.expect("memory");
        let producer = Producer::new(&mapping, LAYOUT, slots).expect("a power of two");
        let consumer = Consumer::new(&mapping, LAYOUT, slots).expect("a power of two");
        Self { producer, consumer, mapping }
    }
}
