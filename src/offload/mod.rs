//! What devices do for hosts. From pods: checksums and segmentation that they leave to the device, requests in a
//! `virtio_net_hdr` that are checked against the frame and carried out while the packet is copied. To pods: segments
//! merged into super-packets ([`Gro`]).
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod checksum;
mod gro;
mod pod_train;
mod segment;
mod tcp;
mod train;
mod virtio;

pub use checksum::{complete, copy_plain};
pub use gro::{Delivery, Gro, MAX_FRAMES, Segment};
pub use pod_train::PodTrain;
pub use segment::Segmenter;
pub use train::Train;
pub use virtio::{Checksum, GsoType, OffloadError, VirtioNetHdr};
