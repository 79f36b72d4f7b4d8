use std::fmt::Display;
use std::io;

use super::Migration;
use crate::control::netlink::{Link, LinkSettings, Netlink, NetlinkError};
use crate::control::store::StoreError;
use crate::control::sysctl::SysctlError;
use crate::control::wiring::WiringError;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Wiring(#[from] WiringError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Collects what is to be done, and does it unless it is only to be planned.
#[derive(Debug, Default)]
pub struct Steps {
    pub migration: Migration,
    pub acts: bool,
}

impl Steps {
    /// Does something, called by an infinitive; says whether it was done, or would be. What fails is told and does not
    /// stop the rest.
    pub fn step<E: Display>(&mut self, what: &str, act: impl FnOnce() -> Result<(), E>) -> bool {
        match if self.acts { act() } else { Ok(()) } {
            Ok(()) => {
                self.migration.changes.push(what.to_owned());
                true
            }
            Err(error) => {
                self.migration.failures.push(format!("cannot {what}: {error}"));
                false
            }
        }
    }

    /// The result, once all is said.
    pub fn finish(mut self) -> Migration {
        self.migration.done = self.acts;
        self.migration
    }
}

/// Gives a device another name; one that is up goes down for it where the kernel wants that (before 6.2).
pub fn rename_device(netlink: &mut Netlink, link: &Link, name: &str) -> Result<(), NetlinkError> {
    if link.name == name {
        return Ok(());
    }
    match netlink.rename_link(link.index, name) {
        Err(error) if error.errno() == Some(libc::EBUSY) => {
            let up = |up| LinkSettings { up: Some(up), ..LinkSettings::default() };
            netlink.set_link(link.index, up(false))?;
            let renamed = netlink.rename_link(link.index, name);
            netlink.set_link(link.index, up(true))?;
            renamed
        }
        renamed => renamed,
    }
}
