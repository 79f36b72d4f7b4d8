//! Attaching a program to a device by a BPF link: it goes when its file descriptor is closed, also by a crash,
//! and it never replaces a program that is there.
//!
//! Invariants, cited by the SAFETY comments:
//! 1. `bpf_link_create` reads its options during the call only, as many bytes of them as their `sz` says.
//! 2. What it returns, unless negative, is a new descriptor that belongs to the caller.
#![allow(unsafe_code, reason = "libbpf-rs has no call that makes an XDP link of a given mode, or a tcx link")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

use crate::ids::IfIndex;

/// Where a link attaches.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    XdpNative,
    XdpGeneric,
    TcxIngress,
}

/// Attaches `program` until the returned descriptor is closed.
pub(super) fn attach(program: BorrowedFd<'_>, ifindex: IfIndex, hook: Hook) -> io::Result<OwnedFd> {
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
