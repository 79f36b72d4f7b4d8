use std::os::fd::{AsFd, BorrowedFd};

use crossbeam::queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

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
        if self.messages.is_empty() {
            return None;
        }
        let _silenced = self.bell.read();
        self.messages.pop()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The bell's descriptor, readable while a message waits.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
