use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Outlet, WirePort};
use crate::counters::{Count, DropReason, Tally, Traffic};
use crate::frame::{Frame, Pool};
use crate::wire::Entropy;
use crate::xsk::Socket;

/// The uplink's queues that one worker serves, an AF_XDP socket each.
///
/// Everything is sent on the first of them: frames of one flow on several queues would overtake each other.
#[derive(Debug)]
pub struct Uplink {
    queues: Vec<Queue>,
    /// Where the next burst begins to receive.
    first: usize,
    /// What frames leave by instead, where AF_XDP would copy them.
    outlet: Option<Outlet>,
}

#[derive(Debug)]
struct Queue {
    socket: Socket,
    traffic: Arc<Traffic>,
}

impl Uplink {
    /// A port of these sockets, the first of which can send; each counts on its page.
    pub fn new(sockets: Vec<(Socket, Arc<Traffic>)>, outlet: Option<Outlet>) -> Self {
        let queues = sockets.into_iter().map(|(socket, traffic)| Queue { socket, traffic }).collect();
        Self { queues, first: 0, outlet }
    }

    fn sockets(&self) -> impl Iterator<Item = &Socket> {
        self.queues.iter().map(|queue| &queue.socket)
    }

    /// The descriptors, for poll(2).
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().map(Socket::fd)
    }

    /// Whether frames wait to be received or to be sent.
    pub fn has_work(&self) -> bool {
        self.sockets().any(Socket::has_work)
    }

    /// Whether a socket lost its device and the data plane must be built again.
    pub fn is_dead(&self) -> bool {
        self.sockets().any(Socket::is_dead) || self.outlet.as_ref().is_some_and(Outlet::is_dead)
    }

    /// The chunks that the kernel holds: (to receive into, to send).
    pub fn lent(&self) -> (u64, u64) {
        self.sockets().fold((0, 0), |(fill, send), socket| {
            let (filled, sent) = socket.lent();
            (fill + u64::from(filled), send + u64::from(sent))
        })
    }

    /// Adds what only the kernel counts. A system call per queue: not for every pass.
    pub fn count_lost(&self, tally: &mut Tally) {
        let mut lost = 0;
        for queue in &self.queues {
            queue.traffic.lost.store(queue.socket.lost(), Ordering::Relaxed);
            lost += queue.traffic.lost.load(Ordering::Relaxed);
        }
        tally.set(Count::UplinkLost, lost);
    }

    /// Finds out which queues have a NAPI for the worker to run, and tells how it does. Not for every pass.
    pub fn look_at_napi(&mut self) {
        for queue in &mut self.queues {
            queue.socket.look_at_napi();
        }
    }

    /// Closes the sockets and returns every frame that the kernel held.
    pub fn close(self) -> Pool {
        let mut pool = Pool::default();
        for queue in self.queues {
            pool.absorb(queue.socket.close());
        }
        pool
    }
}

impl WirePort for Uplink {
    fn entropy(&self) -> Entropy {
        if self.outlet.as_ref().is_some_and(Outlet::sends_trains) { Entropy::Few } else { Entropy::Full }
    }

    fn receive(&mut self, burst: &mut Vec<Frame>) {
        // Each burst begins with another queue, so that a full one cannot starve the rest.
        self.first = (self.first + 1) % self.queues.len().max(1);
        let (before, after) = self.queues.split_at_mut(self.first);
        for Queue { socket, traffic } in after.iter_mut().chain(before) {
            let start = burst.len();
            socket.receive(burst);
            if let Some(received) = burst.get(start..).filter(|received| !received.is_empty()) {
                traffic.count_rx(received.len() as u64, received.iter().map(|frame| frame.len() as u64).sum());
            }
        }
    }

    fn send(&mut self, frame: Frame) -> Result<(), Frame> {
        let Some(Queue { socket, traffic }) = self.queues.first_mut() else { return Err(frame) };
        let bytes = frame.len() as u64;
        match &mut self.outlet {
            Some(outlet) => outlet.send(frame)?,
            None => socket.send(frame)?,
        }
        traffic.count_tx(1, bytes);
        Ok(())
    }

    fn flush(&mut self, pool: &mut Pool, tally: &mut Tally) {
        let (mut wakeups, mut bogus, mut refused) = (0, 0, 0);
        for Queue { socket, .. } in &mut self.queues {
            socket.flush();
            socket.complete(pool);
            socket.fill(pool);
            wakeups += socket.wakeups();
            bogus += socket.bogus();
            refused += socket.refused();
        }
        if let Some(outlet) = &mut self.outlet {
            outlet.flush(pool, tally);
            wakeups += outlet.calls();
        }
        tally.set(Count::Wakeups, wakeups);
        tally.set(Count::KernelBogus, bogus);
        if self.outlet.is_none() {
            tally.set_drops(DropReason::UplinkRefused, refused);
        }
    }
}
