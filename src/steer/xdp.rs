//! XDP on the uplink, by a pinned link.

use std::os::fd::BorrowedFd;
use std::path::Path;

use libbpf_rs::{Xdp, XdpFlags};

use super::SteerError;
use super::link::{Hook, PinnedLink};
use crate::ids::IfIndex;

const PROGRAM: &str = "nic_steer";

/// Which kind of XDP to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpChoice {
    Native,
    Generic,
    /// Native, or generic where the driver refuses. What is attached already stays.
    Auto,
}

/// Which kind of XDP runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver, before there is an skb.
    Native,
    /// In the stack, on skbs.
    Generic,
}

impl XdpChoice {
    fn takes(self, mode: XdpMode) -> bool {
        match self {
            Self::Native => mode == XdpMode::Native,
            Self::Generic => mode == XdpMode::Generic,
            Self::Auto => true,
        }
    }
}

/// `nic_steer` on the uplink.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) link: PinnedLink,
    pub(super) ifindex: IfIndex,
    pub(super) choice: XdpChoice,
    pub(super) mode: XdpMode,
}

/// Attaches `program` to the uplink: by the link that is pinned at `pin` if that is on this device in a mode that
/// `choice` takes, else by a new one; never in the place of another's program.
pub(super) fn attach(
    pin: &Path,
    program: BorrowedFd<'_>,
    ifindex: IfIndex,
    choice: XdpChoice,
) -> Result<Uplink, SteerError> {
    let native = || create(pin, program, ifindex, XdpMode::Native);
    let generic = || create(pin, program, ifindex, XdpMode::Generic);
    let (link, mode) = match take_over(pin, program, ifindex, choice)? {
        Some(taken) => taken,
        None => match choice {
            XdpChoice::Native => native()?,
            XdpChoice::Generic => generic()?,
            XdpChoice::Auto => match native() {
                Err(SteerError::Attach { source, .. }) => {
                    tracing::info!(%ifindex, %source, "no native XDP, taking generic");
                    generic()?
                }
                other => other?,
            },
        },
    };
    Ok(Uplink { link, ifindex, choice, mode })
}

/// Gives the pinned link the new program, or removes it when it is not what is wanted.
fn take_over(
    pin: &Path,
    program: BorrowedFd<'_>,
    ifindex: IfIndex,
    choice: XdpChoice,
) -> Result<Option<(PinnedLink, XdpMode)>, SteerError> {
    let failed = |source| SteerError::Pins { act: "take over", path: pin.to_owned(), source };
    let Some(link) = PinnedLink::open(pin).map_err(failed)? else { return Ok(None) };
    match mode_of(&link, program, ifindex) {
        Some(mode) if choice.takes(mode) && link.run(program).is_ok() => Ok(Some((link, mode))),
        _ => link.remove().map(|()| None).map_err(failed),
    }
}

/// How a link is attached to the device, if it is.
fn mode_of(link: &PinnedLink, any: BorrowedFd<'_>, ifindex: IfIndex) -> Option<XdpMode> {
    let (on, program) = link.place()?;
    let runs = |flags| query(any, ifindex, flags) == Some(program);
    match on == ifindex {
        true if runs(XdpFlags::DRV_MODE) => Some(XdpMode::Native),
        true if runs(XdpFlags::SKB_MODE) => Some(XdpMode::Generic),
        _ => None,
    }
}

fn create(
    pin: &Path,
    program: BorrowedFd<'_>,
    ifindex: IfIndex,
    mode: XdpMode,
) -> Result<(PinnedLink, XdpMode), SteerError> {
    let (hook, name) = match mode {
        XdpMode::Native => (Hook::XdpNative, "native XDP"),
        XdpMode::Generic => (Hook::XdpGeneric, "generic XDP"),
    };
    match PinnedLink::create(pin, program, ifindex, hook) {
        Ok(link) => Ok((link, mode)),
        // a program in the same mode, or in the other one (net/core/dev.c, dev_xdp_attach)
        Err(source) if matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) => {
            Err(SteerError::UplinkTaken { ifindex, program: foreign(program, ifindex) })
        }
        Err(source) => Err(SteerError::Attach { program: PROGRAM, ifindex, mode: name, source }),
    }
}

/// The id of the XDP program that runs on a device, or 0 if that cannot be told.
fn foreign(any: BorrowedFd<'_>, ifindex: IfIndex) -> u32 {
    let id = |flags| query(any, ifindex, flags);
    [XdpFlags::DRV_MODE, XdpFlags::SKB_MODE].into_iter().filter_map(id).find(|&id| id != 0).unwrap_or(0)
}

/// The id of the program that runs in one mode, 0 for none. `any` program is a handle for asking.
fn query(any: BorrowedFd<'_>, ifindex: IfIndex, flags: XdpFlags) -> Option<u32> {
    Xdp::new(any).query_id(i32::try_from(ifindex.0).ok()?, flags).ok()
}
