#[cfg(not(loom))]
use std::os::fd::{AsFd, BorrowedFd};

#[cfg(not(loom))]
use crossbeam::queue::ArrayQueue;
#[cfg(not(loom))]
use nix::sys::eventfd::{EfdFlags, EventFd};

#[cfg(loom)]
use crate::stand_ins::{ArrayQueue, EfdFlags, EventFd};

use super::Fault;
use crate::trace::Tap;

/// What control tells a worker.
#[derive(Debug)]
pub enum Message {
    /// Finish what is in the rings and return.
    Stop,
    /// Suffer, for a test.
    Fault(Fault),
    /// Tell this tap of packets, or nobody.
    Trace(Option<Tap>),
}

/// A worker's inbox: lock-free, read between bursts, with a descriptor that wakes a sleeper.
#[derive(Debug)]
pub struct Inbox {
    messages: ArrayQueue<Message>,
    bell: EventFd,
}

impl Inbox {
    /// An empty inbox; an error when the process may open no more descriptors.
    pub fn new() -> std::io::Result<Self> {
        let bell = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { messages: ArrayQueue::new(16), bell })
    }

    /// Puts a message in and wakes the worker; the message comes back when the inbox is full.
    pub fn put(&self, message: Message) -> Result<(), Message> {
        self.messages.push(message)?;
        // The bell only fails to ring when it has rung 2^64 - 2 times unheard: then it rings still.
        let _rings = self.bell.write(1);
        Ok(())
    }

    /// Takes the oldest message out.
    pub fn take(&self) -> Option<Message> {
        self.messages.pop()
    }

    /// Silences the bell. Whether there is nothing to take: then the worker may sleep, and the next message wakes it. A
    /// bell may ring for a message that was taken before it rang, and would let nobody sleep.
    pub fn is_quiet(&self) -> bool {
        // First the bell: a message that is not seen below has yet to ring it.
        let _silenced = self.bell.read();
        self.messages.is_empty()
    }

    /// The bell's descriptor, readable from a message on until [`Inbox::is_quiet`] is asked.
    #[cfg(not(loom))]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Sleeps until the bell rings, as poll(2) on its descriptor does.
    #[cfg(loom)]
    pub fn listen(&self) {
        self.bell.poll();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(inbox: &Inbox) -> bool {
        poll(&mut [PollFd::new(inbox.fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn a_message_rings_until_the_worker_looks() {
        let inbox = Inbox::new().unwrap();
        assert!(inbox.is_quiet() && !rings(&inbox));
        inbox.put(Message::Stop).unwrap();
        assert!(rings(&inbox) && !inbox.is_quiet());
        assert!(matches!(inbox.take(), Some(Message::Stop)));
        assert!(inbox.is_quiet() && !rings(&inbox));
    }

    #[test]
    fn a_bell_that_rings_after_its_message_was_taken_lets_the_worker_sleep() {
        let inbox = Inbox::new().unwrap();
        inbox.messages.push(Message::Stop).unwrap();
        assert!(inbox.take().is_some());
        inbox.bell.write(1).unwrap();
        assert!(inbox.take().is_none() && inbox.is_quiet());
        assert!(!rings(&inbox));
    }
}
