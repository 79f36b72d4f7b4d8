//! Links, which hold programs on devices, pinned so that they outlive this process; a link never replaces a program
//! that another one holds there. What a pinned link runs is exchanged in one step. When the kernel does not answer what
//! a pin is, that is an error: what may be at work is not removed.
//!
//! Invariants, cited by the SAFETY comments:
//! 1. The calls of libbpf read their arguments during the call only, as many bytes of the options as their `sz` says.
//! 2. What `bpf_link_create` returns, unless negative, is a new descriptor that belongs to the caller.
#![allow(
    unsafe_code,
    reason = "libbpf-rs has no call that makes an XDP link of a given mode, or works without its Program"
)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

use libbpf_rs::query::{LinkInfo, LinkTypeInfo};
use libbpf_rs::{ErrorKind, Link, libbpf_sys};

use super::SteerError;
use super::maps::os_error;
use super::xdp::XdpMode;
use crate::ids::IfIndex;

/// Where a link attaches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    XdpNative,
    XdpGeneric,
    TcxIngress,
}

/// A pinned link. It stays when this is dropped.
#[derive(Debug)]
pub(super) struct PinnedLink {
    link: Link,
    pin: PathBuf,
}

impl PinnedLink {
    /// Attaches `program` by a new link, pinned at `pin`, where there is none.
    pub(super) fn create(pin: &Path, program: BorrowedFd<'_>, ifindex: IfIndex, hook: Hook) -> io::Result<Self> {
        let link = create(program, ifindex, hook)?;
        pin_object(link.as_fd(), pin)?;
        Ok(Self { link: Link::open(pin).map_err(|e| os_error(&e))?, pin: pin.to_owned() })
    }

    /// What is pinned at `pin`, as a link; if it is no link, it has no [`PinnedLink::place`] and can be removed.
    pub(super) fn open(pin: &Path) -> io::Result<Option<Self>> {
        // asked first, because libbpf warns of each that is missing
        if !pin.try_exists()? {
            return Ok(None);
        }
        match Link::open(pin) {
            Ok(link) => Ok(Some(Self { link, pin: pin.to_owned() })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(os_error(&error)),
        }
    }

    /// Attaches `program` to a device: by the link that is pinned at `pin` if it is on that device, else by a new one.
    pub(super) fn attach(pin: &Path, program: BorrowedFd<'_>, ifindex: IfIndex, hook: Hook) -> io::Result<Self> {
        if let Some(link) = Self::open(pin)? {
            if link.place()?.is_some_and(|(on, _)| on == ifindex) && link.run(program)? {
                return Ok(link);
            }
            link.remove()?;
        }
        Self::create(pin, program, ifindex, hook)
    }

    /// Exchanges the program; false when the link is detached or holds a program of another type, and so must be made
    /// anew.
    pub(super) fn run(&self, program: BorrowedFd<'_>) -> io::Result<bool> {
        let (link, program) = (self.link.as_fd().as_raw_fd(), program.as_raw_fd());
        // SAFETY: invariant 1.
        match unsafe { libbpf_sys::bpf_link_update(link, program, ptr::null()) } {
            0 => Ok(true),
            error if matches!(-error, libc::EINVAL | libc::ENOLINK | libc::ENODEV) => Ok(false),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Whether it is attached to the device, as far as the kernel says. It is not once somebody has detached it, or the
    /// device has gone.
    pub(super) fn is_on(&self, ifindex: IfIndex) -> bool {
        matches!(self.place(), Ok(Some((on, _))) if on == ifindex)
    }

    /// The device that it is attached to, and the id of its program; `None` if it is no link to a device.
    pub(super) fn place(&self) -> io::Result<Option<(IfIndex, u32)>> {
        match self.link.info() {
            Ok(LinkInfo { info: LinkTypeInfo::Xdp(xdp), prog_id, .. }) => Ok(Some((IfIndex(xdp.ifindex), prog_id))),
            Ok(LinkInfo { info: LinkTypeInfo::Tcx(tcx), prog_id, .. }) => Ok(Some((IfIndex(tcx.ifindex), prog_id))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(os_error(&error)),
        }
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.pin.exists()
    }

    /// Pins it again where it was.
    pub(super) fn pin(&self) -> Result<(), SteerError> {
        let failed = |source| SteerError::Pins { act: "pin a link at", path: self.pin.clone(), source };
        pin_object(self.link.as_fd(), &self.pin).map_err(failed)
    }

    /// Detaches the program, whoever else holds the link, and removes the pin.
    pub(super) fn remove(self) -> io::Result<()> {
        if let Err(error) = self.link.detach() {
            // its device has gone, and the program with it
            tracing::debug!(pin = %self.pin.display(), %error, "the link holds nothing");
        }
        remove_pin(&self.pin)
    }
}

/// Pins a program, map or link where nothing is.
pub(super) fn pin_object(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // SAFETY: invariant 1.
    match unsafe { libbpf_sys::bpf_obj_pin(object.as_raw_fd(), path.as_ptr()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The id of the XDP program that runs on a device in one mode, 0 for none.
pub(super) fn xdp_program(ifindex: IfIndex, mode: XdpMode) -> io::Result<u32> {
    let ifindex = libc::c_int::try_from(ifindex.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let flags = match mode {
        XdpMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
    };
    let mut program = 0;
    // SAFETY: invariant 1; the id is written during the call.
    match unsafe { libbpf_sys::bpf_xdp_query_id(ifindex, flags.cast_signed(), &raw mut program) } {
        0 => Ok(program),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// What runs at a device's XDP hook and what its driver can do.
pub(super) fn xdp_query(ifindex: IfIndex) -> io::Result<libbpf_sys::bpf_xdp_query_opts> {
    let ifindex = libc::c_int::try_from(ifindex.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let sz = size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t;
    let mut options = libbpf_sys::bpf_xdp_query_opts { sz, ..Default::default() };
    // SAFETY: invariant 1; the options are written during the call, as many bytes as they say.
    match unsafe { libbpf_sys::bpf_xdp_query(ifindex, 0, &raw mut options) } {
        0 => Ok(options),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// The ids of the programs that are attached to a device by tcx, those before it and those after, by links or without;
/// none where the kernel has no tcx, or the device has gone.
pub(super) fn tcx_programs(ifindex: IfIndex) -> io::Result<Vec<u32>> {
    let mut programs = Vec::new();
    for hook in [libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_TCX_EGRESS] {
        match query(ifindex, hook) {
            Ok(found) => programs.extend(found),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENODEV)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(programs)
}

/// Whether the kernel has tcx, as far as it says of a device.
pub(super) fn has_tcx(ifindex: IfIndex) -> bool {
    let known = query(ifindex, libbpf_sys::BPF_TCX_INGRESS).map(drop);
    !known.is_err_and(|error| matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)))
}

fn query(ifindex: IfIndex, hook: libbpf_sys::bpf_attach_type) -> io::Result<impl Iterator<Item = u32>> {
    // BPF_MPROG_MAX in include/linux/bpf_mprog.h
    let mut ids = [0; 64];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        prog_ids: ids.as_mut_ptr(),
        __bindgen_anon_1: libbpf_sys::bpf_prog_query_opts__bindgen_ty_1 { count: 64 },
        ..Default::default()
    };
    let ifindex = libc::c_int::try_from(ifindex.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: invariant 1; as many ids as `count` says are written during the call, into memory of that length.
    match unsafe { libbpf_sys::bpf_prog_query_opts(ifindex, hook, &raw mut options) } {
        // ids begin with 1
        0 => Ok(ids.into_iter().take_while(|id| *id != 0)),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// Removes a pin, if there is one.
pub(super) fn remove_pin(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Attaches `program` until the returned descriptor, and each pin of it, is gone.
pub(super) fn create(program: BorrowedFd<'_>, ifindex: IfIndex, hook: Hook) -> io::Result<OwnedFd> {
    let (kind, flags) = match hook {
        Hook::XdpNative => (libbpf_sys::BPF_XDP, libbpf_sys::XDP_FLAGS_DRV_MODE),
        Hook::XdpGeneric => (libbpf_sys::BPF_XDP, libbpf_sys::XDP_FLAGS_SKB_MODE),
        Hook::TcxIngress => (libbpf_sys::BPF_TCX_INGRESS, 0),
    };
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    let ifindex = libc::c_int::try_from(ifindex.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    // SAFETY: invariant 1; `options` lives through the call and states its own size.
    let link = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, kind, &raw const options) };
    if link < 0 {
        return Err(io::Error::from_raw_os_error(-link));
    }
    // SAFETY: invariant 2.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}
