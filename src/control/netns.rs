//! Work inside another network namespace.
//!
//! A namespace belongs to a thread, so the work runs on a thread of its own that enters the
//! namespace and ends there: the caller's thread never changes, and nothing has to be undone.
//!
//! Invariant 1: the descriptor given to `setns` is open for the whole call.
#![allow(unsafe_code, reason = "setns(2) has no safe face in std or libc")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// Opens the namespace that is mounted at `path`, such as `/run/netns/NAME` or
    /// `/proc/PID/ns/net`. Entering it later fails when the file is no network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> io::Result<bool> {
        let (ours, theirs) = (self.0.metadata()?, other.0.metadata()?);
        Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
    }

    /// Runs `work` inside and returns what it returns. A panic in `work` is passed on.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
                enter(self.0.as_raw_fd())?;
                Ok(work())
            })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Moves the calling thread into the namespace behind `fd`.
fn enter(fd: RawFd) -> io::Result<()> {
    // SAFETY: invariant 1; setns touches no memory of ours.
    match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_namespace_and_refuses_other_files() {
        let current = Netns::current().unwrap();
        assert!(current.is(&Netns::open(Path::new("/proc/self/ns/net")).unwrap()).unwrap());
        assert!(Netns::open(Path::new("/nonexistent/netns")).is_err());
        let file = Netns::open(Path::new("/proc/self/status")).unwrap();
        assert!(file.within(|| ()).is_err());
    }
}
