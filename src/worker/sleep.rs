use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// What wakes a worker: any of a set of descriptors becoming readable.
#[derive(Debug)]
pub struct Sleep {
    epoll: Epoll,
}

/// The longest sleep in milliseconds. A frame that was lost after the steering program had called the worker wakes
/// nobody, and the call would stay unanswered, which reads as a hang.
const LONGEST_MS: u16 = 1000;

impl Sleep {
    pub fn new<'a>(wakers: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for waker in wakers {
            epoll.add(waker, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Self { epoll })
    }

    /// Blocks until something is readable, or the longest sleep is over.
    pub fn until_woken(&self) {
        let mut events = [EpollEvent::empty()];
        // Interrupted or in error, the worker polls, and sleeps again if there is nothing.
        let _events = self.epoll.wait(&mut events, EpollTimeout::from(LONGEST_MS));
    }
}
