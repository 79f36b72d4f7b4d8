use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

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

    /// Blocks until something is readable, or for `limit`, or for the longest sleep; true unless time was up.
    pub fn until_woken(&self, limit: Duration) -> bool {
        let limit_ms = u16::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(LONGEST_MS).min(LONGEST_MS);
        let mut events = [EpollEvent::empty()];
        // Interrupted or in error, the worker polls, and sleeps again if there is nothing.
        !matches!(self.epoll.wait(&mut events, EpollTimeout::from(limit_ms)), Ok(0))
    }
}
