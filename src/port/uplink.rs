use std::os::fd::BorrowedFd;

use super::WirePort;
use crate::counters::{Count, Tally};
use crate::frame::{Frame, Pool};
use crate::ids::QueueId;
use crate::xsk::Socket;

/// The uplink's queues that one worker serves, an AF_XDP socket each.
#[derive(Debug)]
pub struct Uplink {
    sockets: Vec<(QueueId, Socket)>,
}

impl Uplink {
    pub fn new(sockets: Vec<(QueueId, Socket)>) -> Self {
        Self { sockets }
    }

    /// The descriptors, for epoll.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|(_, socket)| socket.fd())
    }

    /// Whether frames wait to be received or to be sent.
    pub fn has_work(&self) -> bool {
        self.sockets.iter().any(|(_, socket)| socket.has_work())
    }

    /// Whether a socket lost its device and the data plane must be built again.
    pub fn is_dead(&self) -> bool {
        self.sockets.iter().any(|(_, socket)| socket.is_dead())
    }

    /// The chunks that the kernel holds: (to receive into, to send).
    pub fn lent(&self) -> (u64, u64) {
        self.sockets.iter().fold((0, 0), |(fill, send), (_, socket)| {
            let (filled, sent) = socket.lent();
            (fill + u64::from(filled), send + u64::from(sent))
        })
    }

    /// Adds what only the kernel counts. A system call per queue: not for every pass.
    pub fn count_lost(&self, tally: &mut Tally) {
        tally.set(Count::UplinkLost, self.sockets.iter().map(|(_, socket)| socket.lost()).sum());
    }

    /// Closes the sockets and returns every frame that the kernel held.
    pub fn close(self) -> Pool {
        let mut pool = Pool::default();
        for (_, socket) in self.sockets {
            pool.absorb(socket.close());
        }
        pool
    }
}

impl WirePort for Uplink {
    fn receive(&mut self, burst: &mut Vec<Frame>) {
        for (_, socket) in &mut self.sockets {
            socket.receive(burst);
        }
        // The next burst starts with another queue, so that a full one cannot starve the rest.
        if self.sockets.len() > 1 {
            self.sockets.rotate_left(1);
        }
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        let mut frame = frame;
        for (_, socket) in &mut self.sockets {
            match socket.send(frame) {
                Ok(()) => return Ok(()),
                Err(refused) => frame = refused,
            }
        }
        Err(frame)
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        let (mut wakeups, mut bogus) = (0, 0);
        for (_, socket) in &mut self.sockets {
            socket.flush();
            socket.complete(pool);
            socket.fill(pool);
            wakeups += socket.wakeups();
            bogus += socket.bogus();
        }
        tally.set(Count::Wakeups, wakeups);
        tally.set(Count::KernelBogus, bogus);
    }
}
