//! A program as a direct-action filter of a device's clsact qdisc, for kernels without tcx (before Linux 6.6).
//!
//! Unlike a link, a filter outlives its process: one that was killed leaves it, with maps that nobody writes and a
//! heartbeat that goes stale. The next process knows it by the place and the program's name, and replaces it.
//! Any other filter stays, and so does the qdisc: that nobody has begun to use it cannot be told without a race.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{ErrorKind, Program, TC_INGRESS, TcHook, TcHookBuilder};

use super::maps::os_error;
use crate::ids::IfIndex;

/// Our place among a device's filters: both the priority and the handle. Filters of lower priorities come first.
const PLACE: u32 = 240;

/// A filter that is detached when dropped, unless its place has been taken by another. To be dropped in the network
/// namespace where it was attached.
#[derive(Debug)]
pub(super) struct Filter {
    program: OwnedFd,
    ifindex: i32,
}

impl Filter {
    /// Attaches `program`, whose name is `name`, to a device's ingress.
    pub(super) fn attach(name: &str, program: BorrowedFd<'_>, ifindex: IfIndex) -> io::Result<Self> {
        let ifindex = i32::try_from(ifindex.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
        let filter = Self { program: program.try_clone_to_owned()?, ifindex };
        let mut hook = filter.hook();
        hook.create().map_err(|e| os_error(&e))?;
        match hook.attach() {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                let there = hook.query().map_err(|e| os_error(&e))?;
                if !is_named(there, name) {
                    return Err(taken(there));
                }
                hook.replace(true).attach()
            }
            attached => attached,
        }
        .map_err(|e| os_error(&e))?;
        Ok(filter)
    }

    fn hook(&self) -> TcHook {
        TcHookBuilder::new(self.program.as_fd()).ifindex(self.ifindex).priority(PLACE).handle(PLACE).hook(TC_INGRESS)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let mut hook = self.hook();
        let ours = Program::id_from_fd(self.program.as_fd()).ok();
        // without an answer the device has gone, and the filter with it
        let Ok(there) = hook.query() else { return };
        if ours == Some(there)
            && let Err(error) = hook.detach()
        {
            tracing::warn!(ifindex = self.ifindex, %error, "cannot detach the clsact filter");
        }
    }
}

/// Whether the loaded program `id` is called `name`.
fn is_named(id: u32, name: &str) -> bool {
    ProgInfoIter::default().any(|program| program.id == id && program.name == name)
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
