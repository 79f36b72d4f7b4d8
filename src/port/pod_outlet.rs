use super::count_sent;
use crate::counters::{DropReason, Tally};
use crate::frame::{Frame, Pool};
use crate::ids::IfIndex;
use crate::offload::{Delivery, PodTrain, VirtioNetHdr};
use crate::packet::{Outgoing, Sender, Sent};

/// Packets of a train at least: fewer are sent to their devices at less cost, and sooner.
const LEAST: usize = 4;

/// The way to the pods: super-packets, and what comes alone, to the host ends of their veth pairs; what comes in numbers
/// in trains through the hub. Both end in the same queue of the worker's CPU, so neither overtakes the other; but for pods
/// whose own end has queues of its own (NAPI, by XDP or GRO there), or with receive packet steering.
#[derive(Debug)]
pub struct PodOutlet {
    sender: Sender,
    train: PodTrain,
    /// Where trains enter the hub; `None`: there are none.
    hub: Option<IfIndex>,
    /// Room for a frame that goes alone.
    alone: Vec<Frame>,
}

impl PodOutlet {
    /// One that sends trains into the hub's end `hub`, if any.
    pub fn new(sender: Sender, hub: Option<IfIndex>) -> Self {
        Self { sender, train: PodTrain::default(), hub, alone: Vec::with_capacity(1) }
    }

    /// Queues a packet, whose frames it takes; false, and none taken, when there is no room, and [`PodOutlet::flush`]
    /// makes some.
    #[must_use]
    pub fn send(&mut self, packet: &mut Delivery) -> bool {
        if self.join(packet) {
            return true;
        }
        self.depart()
            && (self.join(packet)
                || self.sender.push(Outgoing::packet(&mut packet.frames, packet.virtio, packet.to.ifindex)))
    }

    /// Hands over what is queued and takes the frames back into the pool.
    pub fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        let mut departed = self.depart();
        loop {
            let Self { sender, hub, .. } = self;
            sender.flush(pool, |sent, taken| match taken {
                Ok(()) => count_sent(tally, sent),
                Err(errno) => {
                    tally.drop_all(DropReason::PodRefused, sent.frames);
                    // The kernel does not cut UDP for packet sockets (before Linux 6.2).
                    if sent.packets > 1 && errno == libc::EINVAL {
                        *hub = None;
                    }
                }
            });
            if departed {
                return;
            }
            departed = self.depart();
        }
    }

    fn join(&mut self, packet: &mut Delivery) -> bool {
        self.hub.is_some() && self.train.join(packet)
    }

    /// Moves the train to the sender; false when that has no room.
    fn depart(&mut self) -> bool {
        let packets = self.train.len();
        match self.hub.filter(|_| packets >= LEAST) {
            Some(_) if !self.sender.has_room(1, packets) => false,
            Some(to) => self.train.depart().is_none_or(|train| {
                let sent = Sent { packets, frames: packets, bytes: train.bytes };
                let (virtio, headers, frames) = (train.virtio, train.headers, train.frames);
                self.sender.push(Outgoing { frames, virtio, headers, to, sent })
            }),
            None if !self.sender.has_room(packets, packets) => false,
            None => {
                for (frame, device) in self.train.disband() {
                    self.alone.push(frame);
                    let pushed = self.sender.push(Outgoing::packet(&mut self.alone, VirtioNetHdr::default(), device));
                    debug_assert!(pushed, "there was room");
                }
                true
            }
        }
    }
}
