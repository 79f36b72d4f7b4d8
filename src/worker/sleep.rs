use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest sleep. A frame that was lost after the steering program had called the worker wakes nobody, and the call
/// would stay unanswered, which reads as a hang.
const LONGEST: Duration = Duration::from_secs(1);

/// Blocks until something is readable, or for `limit`, or for the longest sleep; true unless time was up.
///
/// By poll(2), for which the kernel puts the caller on the wakers' lists while it sleeps. In an epoll set it would stay
/// there, and each frame that comes while it polls its rings would take a lock and call it in vain.
pub fn until_woken<'a>(wakers: impl IntoIterator<Item = BorrowedFd<'a>>, limit: Duration) -> bool {
    let mut wakers: Vec<_> = wakers.into_iter().map(|waker| PollFd::from_borrowed_fd(waker, PollFlags::IN)).collect();
    let limit = Timespec::try_from(limit.min(LONGEST)).ok();
    // Interrupted or in error, the worker polls, and sleeps again if there is nothing.
    !matches!(poll(&mut wakers, limit.as_ref()), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_sleeper_wakes_when_one_of_its_wakers_is_readable_and_else_when_time_is_up() {
        let [(first, _keep), (second, mut waker)] = [pipe().unwrap(), pipe().unwrap()];
        let wakers = || [first.as_fd(), second.as_fd()];
        assert!(!until_woken(wakers(), Duration::from_millis(1)));
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                waker.write_all(b"x").unwrap();
            });
            assert!(until_woken(wakers(), Duration::MAX));
        });
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(until_woken(wakers(), Duration::MAX), "it is still readable");
    }
}
