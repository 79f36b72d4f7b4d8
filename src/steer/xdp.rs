//! XDP on the uplink, by a pinned link.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::SteerError;
use super::link::{Hook, PinnedLink, xdp_program};
use crate::ids::IfIndex;

const PROGRAM: &str = "nic_steer";

/// How to attach to the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkChoice {
    Native,
    Generic,
    /// Without XDP, by what the kernel has for tc.
    Tc,
    /// Native, or generic where the driver refuses.
    AnyXdp,
    /// Native, or without XDP where the driver refuses or another's program is there.
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

/// `nic_steer` on the uplink.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) link: PinnedLink,
    pub(super) ifindex: IfIndex,
    pub(super) mode: XdpMode,
}

/// Attaches `program` to the uplink in a mode: by the link that is pinned at `pin` if that is on this device so, else by
/// a new one; never in the place of another's program.
pub(super) fn attach(
    pin: &Path,
    program: BorrowedFd<'_>,
    ifindex: IfIndex,
    mode: XdpMode,
) -> Result<Uplink, SteerError> {
    let link = match take_over(pin, program, ifindex, mode)? {
        Some(taken) => taken,
        None => create(pin, program, ifindex, mode)?,
    };
    Ok(Uplink { link, ifindex, mode })
}

/// Removes the link that is pinned at `pin`, if there is one.
pub(super) fn detach(pin: &Path) -> Result<(), SteerError> {
    let detached = PinnedLink::open(pin).and_then(|link| link.map_or(Ok(()), PinnedLink::remove));
    detached.map_err(|source| SteerError::Pins { act: "remove", path: pin.to_owned(), source })
}

/// Gives the pinned link the new program, or removes it when it is not what is wanted.
fn take_over(
    pin: &Path,
    program: BorrowedFd<'_>,
    ifindex: IfIndex,
    mode: XdpMode,
) -> Result<Option<PinnedLink>, SteerError> {
    let taken = || {
        let Some(link) = PinnedLink::open(pin)? else { return Ok(None) };
        if mode_of(&link, ifindex)? == Some(mode) && link.run(program)? {
            return Ok(Some(link));
        }
        link.remove().map(|()| None)
    };
    taken().map_err(|source| SteerError::Pins { act: "take over", path: pin.to_owned(), source })
}

/// How a link is attached to the device, if it is.
fn mode_of(link: &PinnedLink, ifindex: IfIndex) -> io::Result<Option<XdpMode>> {
    let Some((on, program)) = link.place()? else { return Ok(None) };
    Ok(match on == ifindex {
        true if xdp_program(ifindex, XdpMode::Native)? == program => Some(XdpMode::Native),
        true if xdp_program(ifindex, XdpMode::Generic)? == program => Some(XdpMode::Generic),
        _ => None,
    })
}

fn create(pin: &Path, program: BorrowedFd<'_>, ifindex: IfIndex, mode: XdpMode) -> Result<PinnedLink, SteerError> {
    let (hook, name) = match mode {
        XdpMode::Native => (Hook::XdpNative, "native XDP"),
        XdpMode::Generic => (Hook::XdpGeneric, "generic XDP"),
    };
    match PinnedLink::create(pin, program, ifindex, hook) {
        Ok(link) => Ok(link),
        Err(source) => match (source.raw_os_error(), foreign(ifindex)) {
            // in the same mode, or in the other one (net/core/dev.c, dev_xdp_attach); drivers say so too when they are
            // busy themselves
            (Some(libc::EBUSY | libc::EEXIST), Some(program)) => Err(SteerError::UplinkTaken { ifindex, program }),
            _ => Err(SteerError::Attach { program: PROGRAM, ifindex, mode: name, source }),
        },
    }
}

/// The id of an XDP program that runs on a device.
fn foreign(ifindex: IfIndex) -> Option<u32> {
    let id = |mode| xdp_program(ifindex, mode).ok();
    [XdpMode::Native, XdpMode::Generic].into_iter().filter_map(id).find(|&id| id != 0)
}
