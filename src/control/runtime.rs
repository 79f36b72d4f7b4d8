//! What one daemon has for itself: its network namespace, and the runtime directory with its lock,
//! its control socket and its state.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

use super::durable;
use super::netns::{Netns, NetnsId};
use super::notes;

/// The runtime directory of a daemon that was told none.
pub const DEFAULT_DIR: &str = "/run/podwire";

/// The abstract socket that a daemon holds; each network namespace has its own names (unix(7)).
const NAMESPACE_LOCK: &[u8] = b"podwire";

/// Where the control socket is in a runtime directory.
pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join(SOCKET)
}

/// Where the attached pods are remembered in a runtime directory.
pub fn pods_path(dir: &Path) -> PathBuf {
    dir.join(PODS)
}

/// Why a network namespace or a runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("runtime directory {path}: {source}; choose another one with --runtime-dir", path = .0.display(), source = .1)]
    Io(PathBuf, #[source] io::Error),
    #[error("runtime directory {path} is not a directory", path = .0.display())]
    NotADirectory(PathBuf),
    #[error("runtime directory {path} can be written by others (mode {mode:o}); give the daemon one of its own with --runtime-dir", path = .0.display(), mode = .1)]
    Shared(PathBuf, u32),
    #[error("runtime directory {path} is in use by another podwire; stop it, or choose another one with --runtime-dir", path = .0.display())]
    Busy(PathBuf),
    #[error(
        "this network namespace is in use by another podwire, which holds the socket @{0} (`ss -xlp` names it); stop it, or start this one in another network namespace"
    )]
    BusyNamespace(String),
    #[error("cannot take the socket @{0}, by which a podwire claims its network namespace: {1}")]
    Namespace(String, #[source] io::Error),
}

/// The network namespace of the thread that claimed it: no second daemon changes its routes and
/// devices until the value is dropped.
#[derive(Debug)]
pub struct Namespace {
    _lock: UnixListener,
}

impl Namespace {
    /// Locks it against a second daemon, whatever its runtime directory is. The kernel releases
    /// the lock however this process ends.
    pub fn claim() -> Result<Self, RuntimeError> {
        Self::hold(NAMESPACE_LOCK)
    }

    fn hold(name: &[u8]) -> Result<Self, RuntimeError> {
        let shown = String::from_utf8_lossy(name).into_owned();
        match SocketAddr::from_abstract_name(name).and_then(|address| UnixListener::bind_addr(&address)) {
            Ok(lock) => Ok(Self { _lock: lock }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(RuntimeError::BusyNamespace(shown)),
            Err(error) => Err(RuntimeError::Namespace(shown, error)),
        }
    }
}

/// A runtime directory that this process owns until the value is dropped.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    lock: File,
}

/// What a daemon keeps in its runtime directory.
const LOCK: &str = "daemon.lock";
const SOCKET: &str = "control.sock";
const METRICS: &str = "metrics.sock";
const PODS: &str = "pods.json";
const PODS_TORN: &str = "pods.json.torn";
const SYSCTLS: &str = "sysctls.json";

impl RuntimeDir {
    /// Makes the directory if it is missing, closes it to others (0700), and locks it against a
    /// second daemon. The kernel releases the lock however this process ends.
    pub fn claim(path: &Path) -> Result<Self, RuntimeError> {
        let io = |error| RuntimeError::Io(path.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        let meta = fs::metadata(path).map_err(io)?;
        if !meta.is_dir() {
            return Err(RuntimeError::NotADirectory(path.to_owned()));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(RuntimeError::Shared(path.to_owned(), meta.mode() & 0o7777));
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io)?;
        let lock = lock_options().open(path.join(LOCK)).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RuntimeError::Busy(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        Ok(Self { path: path.to_owned(), lock })
    }

    /// Whether a daemon ever had this directory for itself.
    pub fn was_used(path: &Path) -> bool {
        path.join(LOCK).exists()
    }

    /// Writes down to which network namespace the contents of the directory belong: the caller's.
    pub fn dedicate(&self) -> Result<(), RuntimeError> {
        let write = || {
            let owner = Netns::current()?.id()?;
            self.lock.set_len(0)?;
            self.lock.write_all_at(&serde_json::to_vec(&owner)?, 0)
        };
        write().map_err(|error| RuntimeError::Io(self.path.clone(), error))
    }

    /// Whether the contents belong to the caller's network namespace, as far as it was written down.
    pub fn is_of_this_namespace(&self) -> Result<bool, RuntimeError> {
        let io = |error| RuntimeError::Io(self.path.clone(), error);
        let owner = fs::read(self.path.join(LOCK)).map_err(io)?;
        let own = Netns::current().and_then(|current| current.id()).map_err(io)?;
        Ok(serde_json::from_slice::<NetnsId>(&owner).map_or(true, |owner| owner == own))
    }

    /// Removes what daemons keep here, and the directory when nothing else is in it; says whether it is gone.
    pub fn remove(self) -> io::Result<bool> {
        notes::clear(&self.path)?;
        let files = [SOCKET, METRICS, PODS, PODS_TORN, SYSCTLS, LOCK].map(|name| self.path.join(name));
        let cut_short = [PODS, SYSCTLS].map(|name| durable::aside(&self.path.join(name)));
        // The lock goes last.
        for file in cut_short.iter().chain(&files) {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the control socket is.
    pub fn socket(&self) -> PathBuf {
        socket_path(&self.path)
    }

    /// Where metrics are served, if they are to be served here.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Where the attached pods are remembered.
    pub fn pods(&self) -> PathBuf {
        pods_path(&self.path)
    }

    /// Where the node's settings are remembered as they were.
    pub fn sysctls(&self) -> PathBuf {
        self.path.join(SYSCTLS)
    }
}

fn lock_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_held_by_one_daemon_at_a_time() {
        let name = format!("podwire-test-{}", std::process::id());
        let first = Namespace::hold(name.as_bytes()).unwrap();
        assert!(matches!(Namespace::hold(name.as_bytes()), Err(RuntimeError::BusyNamespace(busy)) if busy == name));
        drop(first);
        Namespace::hold(name.as_bytes()).unwrap();
    }

    #[test]
    fn a_directory_is_made_closed_and_held_by_one_daemon_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let first = RuntimeDir::claim(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert!(matches!(RuntimeDir::claim(&path), Err(RuntimeError::Busy(p)) if p == path));
        drop(first);
        RuntimeDir::claim(&path).unwrap();
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_and_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(RuntimeDir::claim(root.path()), Err(RuntimeError::Shared(_, 0o1777))));
        assert_eq!(fs::metadata(root.path()).unwrap().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RuntimeDir::claim(file.path()).unwrap_err().to_string();
        assert!(error.contains(&file.path().display().to_string()), "{error}");
    }
}
