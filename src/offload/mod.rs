//! Checksums and segmentation that pods leave to the device: requests in a `virtio_net_hdr` are
//! checked against the frame and carried out while the packet is copied.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod checksum;
mod segment;
mod virtio;

pub use checksum::{complete, copy_plain};
pub use segment::Segmenter;
pub use virtio::{Checksum, GsoType, OffloadError, VirtioNetHdr};
