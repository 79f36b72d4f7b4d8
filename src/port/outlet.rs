use std::net::IpAddr;

use crate::counters::{DropReason, Tally};
use crate::frame::{Frame, Pool};
use crate::ids::IfIndex;
use crate::offload::Train;
use crate::packet::{Outgoing, Sender};

/// So many frames are handed to the kernel at once: those of a burst, still in the cache when it copies them.
const BATCH: usize = 128;

/// The way out of a device through the kernel's stack, in trains of frames.
///
/// Where AF_XDP has to copy, its sending copies each frame into a buffer of its own and walks it to the driver alone
/// (`__xsk_generic_xmit` in net/xdp/xsk.c). This way copies too, but walks once for a train. Frames of one flow must not
/// leave both ways: they would overtake each other.
#[derive(Debug)]
pub struct Outlet {
    device: IfIndex,
    sender: Sender,
    train: Train,
    /// The kernel does not cut UDP for packet sockets (before Linux 6.2): each frame goes alone.
    no_trains: bool,
    dead: bool,
}

impl Outlet {
    /// One of `device`, for tunnel packets from `vteps` and others.
    pub fn new(device: IfIndex, sender: Sender, vteps: Vec<IpAddr>) -> Self {
        Self { device, sender, train: Train::new(vteps), no_trains: false, dead: false }
    }

    /// Whether the device went away or down.
    pub fn is_dead(&self) -> bool {
        self.dead
    }

    /// Whether frames of one outer flow leave together, as far as is known.
    pub fn sends_trains(&self) -> bool {
        !self.no_trains
    }

    /// System calls made to send.
    pub fn calls(&self) -> u64 {
        self.sender.calls()
    }

    /// Queues a frame; it comes back when there is no room, and [`Outlet::flush`] makes some.
    pub fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        let alone = self.no_trains && !self.train.is_empty();
        let joined = if alone { Err(frame) } else { self.train.join(frame) };
        joined.or_else(|frame| if self.depart() { self.train.join(frame) } else { Err(frame) })
    }

    /// Sends what is queued and takes the frames back.
    pub fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        let mut departed = self.train.is_empty() || self.depart();
        loop {
            let Self { sender, no_trains, dead, .. } = self;
            sender.flush(pool, |sent, taken| {
                if let Err(errno) = taken {
                    tally.drop_all(DropReason::UplinkRefused, sent.frames);
                    *no_trains |= sent.frames > 1 && errno == libc::EINVAL;
                    *dead |= matches!(errno, libc::ENETDOWN | libc::ENXIO | libc::ENODEV);
                }
            });
            if departed {
                return;
            }
            departed = self.depart();
        }
    }

    /// Moves the train to the sender; false when that has enough.
    fn depart(&mut self) -> bool {
        if self.sender.queued() >= BATCH || !self.sender.has_room(1, self.train.len()) {
            return false;
        }
        let (virtio, frames) = self.train.finish();
        self.sender.push(Outgoing::packet(frames, virtio, self.device))
    }
}
