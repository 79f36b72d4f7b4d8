//! Attaching a program to a device's ingress by what the kernel has for it: a tcx link, or a clsact filter.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::SteerError;
use super::clsact::Filter;
use super::link::{self, Hook};
use crate::ids::IfIndex;

/// How to attach to the ingress of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcChoice {
    /// A link, from Linux 6.6 on.
    Tcx,
    /// A filter of the clsact qdisc.
    Clsact,
    /// tcx, or clsact where the kernel has no tcx.
    #[default]
    Auto,
}

/// An attached program, detached when this is dropped.
#[derive(Debug)]
pub(super) enum Attachment {
    Tcx { _link: OwnedFd },
    Clsact { _filter: Filter },
}

impl Attachment {
    fn hook(&self) -> &'static str {
        match self {
            Self::Tcx { .. } => "tcx",
            Self::Clsact { .. } => "clsact",
        }
    }
}

/// Attaches `program`, whose name is `name`.
pub(super) fn attach(
    name: &'static str,
    program: &OwnedFd,
    ifindex: IfIndex,
    choice: TcChoice,
) -> Result<Attachment, SteerError> {
    let tcx = || link::attach(program.as_fd(), ifindex, Hook::TcxIngress).map(|link| Attachment::Tcx { _link: link });
    let clsact = || Filter::attach(name, program.as_fd(), ifindex).map(|filter| Attachment::Clsact { _filter: filter });
    let failed = |mode| move |source| SteerError::Attach { program: name, ifindex, mode, source };
    let attached = match choice {
        TcChoice::Tcx => tcx().map_err(failed("tcx")),
        TcChoice::Clsact => clsact().map_err(failed("clsact")),
        TcChoice::Auto => match tcx() {
            Err(tcx) if is_missing(&tcx) => {
                clsact().map_err(|clsact| SteerError::Ingress { program: name, ifindex, tcx, clsact })
            }
            other => other.map_err(failed("tcx")),
        },
    }?;
    tracing::debug!(program = name, %ifindex, hook = attached.hook(), "attached");
    Ok(attached)
}

/// Whether the kernel says that it has no tcx: it does not know the attach type (before Linux 6.6), or was built
/// without `CONFIG_NET_XGRESS`.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}
