//! The maps by name, with errors that say what could not be done to which entry.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, MapImpl};

use super::SteerError;

/// An error of libbpf with all its causes in its text, and of the kind that the kernel's refusal is.
pub(super) fn os_error(error: &libbpf_rs::Error) -> io::Error {
    let kind = match error.kind() {
        ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
        ErrorKind::Unsupported => io::ErrorKind::Unsupported,
        ErrorKind::OutOfMemory => io::ErrorKind::OutOfMemory,
        ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("{error:#}"))
}

/// One map of the programs, kept alive by its own descriptor.
#[derive(Debug)]
pub(super) struct Map {
    name: &'static str,
    handle: MapHandle,
}

impl Map {
    pub(super) fn of<T>(name: &'static str, map: &MapImpl<'_, T>) -> Result<Self, SteerError>
    where
        MapHandle: for<'a, 'b> TryFrom<&'a MapImpl<'b, T>, Error = libbpf_rs::Error>,
    {
        let handle = MapHandle::try_from(map).map_err(|e| SteerError::Load(os_error(&e)))?;
        Ok(Self { name, handle })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    pub(super) fn handle(&self) -> &MapHandle {
        &self.handle
    }

    pub(super) fn max_entries(&self) -> u32 {
        self.handle.max_entries()
    }

    /// Adds or replaces an entry; `what` names it for people.
    pub(super) fn set(&self, key: &[u8], value: &[u8], what: &impl ToString) -> Result<(), SteerError> {
        self.handle.update(key, value, MapFlags::ANY).map_err(|e| self.error("set", what, &e))
    }

    /// Puts a socket at `index`.
    pub(super) fn set_socket(&self, index: u32, socket: BorrowedFd<'_>) -> Result<(), SteerError> {
        self.set(&index.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes(), &format!("the socket of queue {index}"))
    }

    /// Removes an entry, if there is one.
    pub(super) fn remove(&self, key: &[u8], what: &impl ToString) -> Result<(), SteerError> {
        match self.handle.delete(key) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.error("remove", what, &e)),
            _ => Ok(()),
        }
    }

    /// The value of a per-CPU array at `index`, on each CPU.
    pub(super) fn per_cpu(&self, index: u32) -> Result<Vec<Vec<u8>>, SteerError> {
        let values = self.handle.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY);
        Ok(values.map_err(|e| self.error("read", &index, &e))?.unwrap_or_default())
    }

    pub(super) fn error(&self, act: &'static str, what: &impl ToString, error: &libbpf_rs::Error) -> SteerError {
        SteerError::Map { act, map: self.name, key: what.to_string(), source: os_error(error) }
    }
}
