//! Merging received TCP segments into super-packets for pods (generic receive offload).
//!
//! Owned by a pipeline, which gives it every frame for a pod, in order, and ends each burst with [`Gro::flush`]: nothing
//! waits longer than its burst. What may be merged is what the kernel merges ([`Merge::accepts`]), and the pod's kernel
//! can cut the super-packet into the same segments again.
//!
//! ```text
//!            a segment that may lead             one that accepts it
//!   frame ─────────────────────────▶ open merge ◀──────────────────── frame
//!     │                                   │ PSH, FIN, a short segment; one of its flow that does not fit;
//!     │ anything else                     ▼ no room for another flow; the end of the burst
//!     └──────────────────────────────▶ delivery
//! ```
//!
//! The frames of one flow never overtake each other: a frame whose flow has an open merge joins it or closes it.
//!
//! UDP datagrams are not merged. A kernel that gets a UDP super-packet cuts it again for every socket that did not ask
//! for UDP_GRO (`udp_unexpected_gso` and `udp_rcv_segment` in include/linux/udp.h and net/udp.h), so that it would be
//! correct; but which sockets ask cannot be seen from here, for all others it is work done twice, and the kernel merges
//! for those that ask only.
//!
//! Source: `tcp_gro_receive` in net/ipv4/tcp_offload.c, `inet_gro_flush` and `ipv6_gro_flush` in include/net/gro.h.

mod merge;
mod segment;
#[cfg(test)]
mod tests;

use super::VirtioNetHdr;
use crate::fib::LocalPod;
use crate::frame::Frame;
use merge::{
    Merge,
    Progress::{Continues, Ends},
};

pub use segment::Segment;

/// Flows that can have an open merge at a time. A burst of more flows than this has little to merge.
const FLOWS: usize = 16;

/// Frames of one delivery at most, since no more are pushed between two flushes.
pub const MAX_FRAMES: usize = 128;

/// A packet for a pod.
#[derive(Debug)]
pub struct Delivery {
    pub to: LocalPod,
    /// What is left to the pod's kernel: nothing, or to take a super-packet for its segments.
    pub virtio: VirtioNetHdr,
    /// The frames whose bytes, one after another, are the packet. Whoever takes the packet drains them.
    pub frames: Vec<Frame>,
}

/// The merges of one burst.
#[derive(Debug)]
pub struct Gro {
    /// The oldest first, at most [`FLOWS`].
    open: Vec<Merge>,
    /// Room for the frames of as many merges, and of a frame that goes alone.
    spare: Vec<Vec<Frame>>,
}

impl Default for Gro {
    fn default() -> Self {
        let spare = (0..=FLOWS).map(|_| Vec::with_capacity(MAX_FRAMES)).collect();
        Self { open: Vec::with_capacity(FLOWS), spare }
    }
}

impl Gro {
    /// Takes the next frame for a pod, with its TCP segment if it has one, and hands over what is finished by it: an
    /// earlier merge, the frame itself, both, or nothing yet. At most [`MAX_FRAMES`] between two flushes.
    #[inline]
    pub fn push(
        &mut self,
        frame: Frame,
        segment: Option<&Segment>,
        to: &LocalPod,
        mut hand_over: impl FnMut(&mut Delivery),
    ) {
        let Some(segment) = segment else { return self.deliver(frame, to, hand_over) };
        let mut frame = frame;
        if let Some(at) = self.open.iter().position(|merge| merge.flow() == segment.flow)
            && let Some(merge) = self.open.get_mut(at)
        {
            match merge.join(segment, frame) {
                Ok(Continues) => return,
                Ok(Ends) => return self.close(at, hand_over),
                Err(refused) => frame = refused,
            }
            self.close(at, &mut hand_over);
        }
        if !segment.may_lead() {
            return self.deliver(frame, to, hand_over);
        }
        if self.open.len() == FLOWS {
            self.close(0, hand_over);
        }
        let frames = self.spare.pop().unwrap_or_default();
        self.open.push(Merge::new(*segment, frame, to, frames));
    }

    /// Hands over all that is open, the oldest first.
    pub fn flush(&mut self, mut hand_over: impl FnMut(&mut Delivery)) {
        for merge in self.open.drain(..) {
            finish(merge.close(), &mut self.spare, &mut hand_over);
        }
    }

    fn close(&mut self, at: usize, mut hand_over: impl FnMut(&mut Delivery)) {
        finish(self.open.remove(at).close(), &mut self.spare, &mut hand_over);
    }

    /// Hands over a frame alone.
    fn deliver(&mut self, frame: Frame, to: &LocalPod, mut hand_over: impl FnMut(&mut Delivery)) {
        let mut frames = self.spare.pop().unwrap_or_default();
        frames.push(frame);
        finish(Delivery { to: *to, virtio: VirtioNetHdr::default(), frames }, &mut self.spare, &mut hand_over);
    }
}

fn finish(mut delivery: Delivery, spare: &mut Vec<Vec<Frame>>, hand_over: &mut impl FnMut(&mut Delivery)) {
    hand_over(&mut delivery);
    debug_assert!(delivery.frames.is_empty(), "frames of a delivery were lost");
    spare.push(delivery.frames);
}
