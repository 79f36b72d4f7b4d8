//! A program as a direct-action filter of a device's clsact qdisc, for kernels without tcx (before Linux 6.6).
//!
//! A filter outlives its process as a pinned link does, and goes with the device. The next process knows it by the
//! place and the program's name, and puts its own program there in one step. Any other filter stays, and so does the
//! qdisc: that nobody has begun to use it cannot be told without a race.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{ErrorKind, Program, TC_INGRESS, TcHook, TcHookBuilder};

use super::maps::os_error;
use crate::ids::IfIndex;

/// Our place among a device's filters: both the priority and the handle. Filters of lower priorities come first.
pub(super) const PLACE: u32 = 240;

/// A filter of ours. It stays when this is dropped.
#[derive(Debug)]
pub(super) struct Filter {
    name: String,
    program: OwnedFd,
    ifindex: i32,
}

impl Filter {
    /// Attaches `program`, whose name is `name`, to a device's ingress.
    pub(super) fn attach(name: &str, program: BorrowedFd<'_>, ifindex: IfIndex) -> io::Result<Self> {
        let ifindex = i32::try_from(ifindex.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let filter = Self { name: name.to_owned(), program: program.try_clone_to_owned()?, ifindex };
        let mut hook = filter.hook();
        hook.create().map_err(|e| os_error(&e))?;
        match hook.attach() {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let there = hook.query().map_err(|e| os_error(&e))?;
                if !is_named(there, &[name]) {
                    return Err(taken(there));
                }
                hook.replace(true).attach()
            }
            attached => attached,
        }
        .map_err(|e| os_error(&e))?;
        Ok(filter)
    }

    /// Whether our program is in its place.
    pub(super) fn is_attached(&self) -> bool {
        let ours = Program::id_from_fd(self.program.as_fd()).ok();
        ours.is_some() && self.hook().query().ok() == ours
    }

    /// Detaches it, unless its place has been taken by another.
    pub(super) fn detach(self) -> io::Result<()> {
        detach_named(&mut self.hook(), &[&self.name]).map(drop)
    }

    fn hook(&self) -> TcHook {
        hook(self.program.as_fd(), self.ifindex)
    }
}

/// Detaches the filter in our place on a device if its program bears one of `names`, and says whether one does. `any`
/// program is a handle for asking.
pub(super) fn detach(any: BorrowedFd<'_>, ifindex: IfIndex, names: &[&str]) -> io::Result<bool> {
    let Ok(ifindex) = i32::try_from(ifindex.0) else { return Ok(false) };
    detach_named(&mut hook(any, ifindex), names)
}

fn hook(program: BorrowedFd<'_>, ifindex: i32) -> TcHook {
    TcHookBuilder::new(program).ifindex(ifindex).priority(PLACE).handle(PLACE).hook(TC_INGRESS)
}

fn detach_named(hook: &mut TcHook, names: &[&str]) -> io::Result<bool> {
    // without an answer there is no filter, or the device has gone and the filter with it
    match hook.query() {
        Ok(there) if is_named(there, names) => hook.detach().map(|()| true).map_err(|e| os_error(&e)),
        _ => Ok(false),
    }
}

/// Whether the loaded program `id` bears one of `names`.
pub(super) fn is_named(id: u32, names: &[&str]) -> bool {
    ProgInfoIter::default().any(|program| program.id == id && names.iter().any(|name| program.name == *name))
}

fn taken(program: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        format!(
            "its ingress filter with priority {PLACE} and handle {PLACE} runs program {program}, which is not ours and \
             stays; `bpftool prog show id {program}` tells whose it is: remove it"
        ),
    )
}
