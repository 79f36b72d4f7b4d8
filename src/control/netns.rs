//! Work inside another network namespace.
//!
//! A namespace belongs to a thread, so the work runs on a thread of its own that enters the
//! namespace and ends there: the caller's thread never changes, and nothing has to be undone.
//!
//! Invariants, cited by the SAFETY comments:
//! 1. The descriptor given to a call is open for the whole call.
//! 2. The option is read into memory of the length that is given with it.
//! 3. `unshare` of a network namespace touches the calling thread's namespace and no memory.
#![allow(unsafe_code, reason = "setns(2), unshare(2) and SO_NETNS_COOKIE have no safe face in std or libc")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The type of the file system that namespaces live in (`include/uapi/linux/magic.h`).
const NSFS_MAGIC: u32 = 0x6e73_6673;

/// A network namespace, held open.
#[derive(Debug)]
pub struct Netns(File);

/// Which namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl Netns {
    /// Opens the namespace that is mounted at `path`, such as `/run/netns/NAME` or
    /// `/proc/PID/ns/net`. Never waits, not even for the writer of a FIFO. Any file that is no
    /// namespace is refused; a namespace of another kind is refused when it is entered.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let kind = rustix::fs::fstatfs(&file)?.f_type;
        if u32::try_from(kind) != Ok(NSFS_MAGIC) {
            let advice = "not a network namespace; give one such as /run/netns/NAME or /proc/PID/ns/net";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, advice));
        }
        Ok(Self(file))
    }

    /// The namespace of the calling thread.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Whether both are the same namespace.
    pub fn is(&self, other: &Self) -> io::Result<bool> {
        Ok(self.id()? == other.id()?)
    }

    /// What tells it from all others that exist now (namespaces(7)).
    pub fn id(&self) -> io::Result<NetnsId> {
        let file = self.0.metadata()?;
        Ok(NetnsId { device: file.dev(), inode: file.ino() })
    }

    /// Runs `work` inside and returns what it returns. A panic in `work` is passed on.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(|| enter(self.0.as_raw_fd()), work)
    }

    /// Runs `work` in a new namespace, which lives as long as something refers to it, such as a socket that `work`
    /// returns.
    pub fn within_new<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_a_thread(leave, work)
    }
}

/// Whether [`Netns::open`] failed because its path names no namespace: nothing is there, or a file that is none.
pub fn names_none(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput)
}

/// Runs `work` on a thread of its own after `step`, which moves it to another namespace.
fn on_a_thread<T: Send>(
    step: impl FnOnce() -> io::Result<()> + Send,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            step()?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// The number of the calling thread's namespace, which no other one has until the machine is booted again
/// (`net_cookie` in `include/net/net_namespace.h`; Linux 5.14).
pub fn cookie() -> io::Result<u64> {
    // include/uapi/asm-generic/socket.h
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // Of any family: each belongs to a network namespace.
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap_or_default();
    let (fd, value) = (socket.as_raw_fd(), (&raw mut cookie).cast());
    // SAFETY: invariants 1 and 2.
    match unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, value, &raw mut length) } {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
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

/// Moves the calling thread into a new namespace.
fn leave() -> io::Result<()> {
    // SAFETY: invariant 3.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
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
        let other_kind = Netns::open(Path::new("/proc/self/ns/uts")).unwrap();
        assert!(other_kind.within(|| ()).is_err());
        for path in ["/proc/self/status", "/etc/passwd", "/dev/null", "/proc/self/ns"] {
            let error = Netns::open(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains("not a network namespace"), "{path}: {error}");
        }
    }

    #[test]
    fn a_namespace_has_one_cookie() {
        let inside = Netns::current().unwrap().within(cookie).unwrap();
        assert_eq!(inside.unwrap(), cookie().unwrap());
        assert_ne!(cookie().unwrap(), 0);
    }

    #[test]
    fn a_fifo_without_a_writer_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(Netns::open(&path).map_err(|error| error.to_string())));
        let answer = told.recv_timeout(std::time::Duration::from_secs(10)).expect("opening it does not wait");
        assert!(answer.unwrap_err().contains("not a network namespace"));
    }
}
