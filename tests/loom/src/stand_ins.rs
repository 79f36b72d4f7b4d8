//! What the inbox takes from crates and from the kernel that loom does not see into: each call is one step.

use std::collections::VecDeque;
use std::io;
use std::ops::BitOr;

use loom::sync::{Condvar, Mutex};

/// `crossbeam::queue::ArrayQueue`.
#[derive(Debug)]
pub struct ArrayQueue<T> {
    items: Mutex<VecDeque<T>>,
    capacity: usize,
}

impl<T> ArrayQueue<T> {
    pub fn new(capacity: usize) -> Self {
        Self { items: Mutex::new(VecDeque::new()), capacity }
    }

    pub fn push(&self, item: T) -> Result<(), T> {
        let mut items = self.items.lock().unwrap();
        if items.len() == self.capacity {
            return Err(item);
        }
        items.push_back(item);
        Ok(())
    }

    pub fn pop(&self) -> Option<T> {
        self.items.lock().unwrap().pop_front()
    }

    pub fn is_empty(&self) -> bool {
        self.items.lock().unwrap().is_empty()
    }
}

/// `nix::sys::eventfd::EfdFlags`.
#[derive(Clone, Copy, Debug)]
pub struct EfdFlags;

impl EfdFlags {
    pub const EFD_NONBLOCK: Self = Self;
    pub const EFD_CLOEXEC: Self = Self;
}

impl BitOr for EfdFlags {
    type Output = Self;

    fn bitor(self, _: Self) -> Self {
        self
    }
}

/// `nix::sys::eventfd::EventFd`, which does not block (eventfd(2)).
#[derive(Debug)]
pub struct EventFd {
    count: Mutex<u64>,
    written: Condvar,
}

impl EventFd {
    pub fn from_value_and_flags(value: u32, _: EfdFlags) -> io::Result<Self> {
        Ok(Self { count: Mutex::new(value.into()), written: Condvar::new() })
    }

    pub fn write(&self, value: u64) -> io::Result<usize> {
        *self.count.lock().unwrap() += value;
        self.written.notify_all();
        Ok(size_of::<u64>())
    }

    pub fn read(&self) -> io::Result<u64> {
        match std::mem::take(&mut *self.count.lock().unwrap()) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// Blocks until it can be read.
    pub fn poll(&self) {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.written.wait(count).unwrap();
        }
    }
}
