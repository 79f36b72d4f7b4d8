//! Attaching a program to a device's ingress by what the kernel has for it: a pinned tcx link, or a clsact filter.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::SteerError;
use super::clsact::Filter;
use super::link::{Hook, PinnedLink};
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

/// An attached program. It stays attached when this is dropped.
#[derive(Debug)]
pub(super) enum Attachment {
    Tcx(PinnedLink),
    Clsact(Filter),
}

impl Attachment {
    fn hook(&self) -> &'static str {
        match self {
            Self::Tcx(_) => "tcx",
            Self::Clsact(_) => "clsact",
        }
    }

    /// Whether it is still attached to the device.
    pub(super) fn is_on(&self, ifindex: IfIndex) -> bool {
        match self {
            Self::Tcx(link) => link.is_on(ifindex),
            Self::Clsact(filter) => filter.is_attached(),
        }
    }

    /// The link, where it is one.
    pub(super) fn link(&self) -> Option<&PinnedLink> {
        match self {
            Self::Tcx(link) => Some(link),
            Self::Clsact(_) => None,
        }
    }

    pub(super) fn detach(self) -> io::Result<()> {
        match self {
            Self::Tcx(link) => link.remove(),
            Self::Clsact(filter) => filter.detach(),
        }
    }
}

/// Attaches `program`, whose name is `name`, or puts it in the place of what an earlier call has attached there; a link
/// is pinned at `pin`.
pub(super) fn attach(
    name: &'static str,
    program: &OwnedFd,
    ifindex: IfIndex,
    pin: &Path,
    choice: TcChoice,
) -> Result<Attachment, SteerError> {
    let tcx = || PinnedLink::attach(pin, program.as_fd(), ifindex, Hook::TcxIngress).map(Attachment::Tcx);
    let clsact = || Filter::attach(name, program.as_fd(), ifindex).map(Attachment::Clsact);
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
