//! What kernel and driver offer to the steering programs, tried out or asked; nothing of it stays.

use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};

use super::link::{self, Hook};
use super::maps::os_error;
use super::{Programs, XdpMode, log_to_tracing, skeleton};
use crate::ids::IfIndex;

/// `enum netdev_xdp_act` (include/uapi/linux/netdev.h).
const ACT_BASIC: u64 = 1;
const ACT_REDIRECT: u64 = 2;
const ACT_XSK_ZEROCOPY: u64 = 8;

/// The steering programs, loaded for a trial: with maps of their own, and no pins.
#[derive(Debug)]
pub struct Trial(Programs);

impl Trial {
    /// Has the kernel verify and load all programs.
    pub fn load() -> io::Result<Self> {
        log_to_tracing();
        let mut storage = MaybeUninit::uninit();
        let open = skeleton::SteerSkelBuilder::default().open(&mut storage).map_err(|error| os_error(&error))?;
        Programs::of(&open.load().map_err(|error| os_error(&error))?).map(Self)
    }

    /// Attaches the uplink's program to a device, until the returned link is dropped.
    pub fn attach_xdp(&self, ifindex: IfIndex, mode: XdpMode) -> io::Result<OwnedFd> {
        let hook = match mode {
            XdpMode::Native => Hook::XdpNative,
            XdpMode::Generic => Hook::XdpGeneric,
        };
        link::create(self.0.nic_steer.as_fd(), ifindex, hook)
    }

    /// Attaches the pods' program to a device by tcx, until the returned link is dropped.
    pub fn attach_tcx(&self, ifindex: IfIndex) -> io::Result<OwnedFd> {
        link::create(self.0.pod_steer.as_fd(), ifindex, Hook::TcxIngress)
    }
}

/// A program that runs on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    pub id: u32,
    /// Empty where it has none, or may not be read.
    pub name: String,
}

impl AttachedProgram {
    /// The programs that are attached to a device by tcx, in both directions.
    pub fn at_tcx(ifindex: IfIndex) -> io::Result<Vec<Self>> {
        Ok(link::tcx_programs(ifindex)?.into_iter().map(Self::of).collect())
    }

    /// Whether it is one of the steering programs, as its name says.
    pub fn is_ours(&self) -> bool {
        ["nic_steer", "nic_steer_tc", "pod_steer", "hub_drop", "hub_deliver"].contains(&self.name.as_str())
    }

    fn of(id: u32) -> Self {
        let named = ProgInfoIter::default().find(|program| program.id == id).map(|program| program.name);
        Self { id, name: named.map(OsString::into_string).and_then(Result::ok).unwrap_or_default() }
    }
}

/// A device's XDP hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct XdpDevice {
    pub native: Option<AttachedProgram>,
    pub generic: Option<AttachedProgram>,
    pub offloaded: Option<AttachedProgram>,
    /// What the driver says of itself (Linux 6.3).
    pub driver: Option<XdpDriver>,
}

/// What a driver can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpDriver {
    /// It runs programs, and takes their redirects.
    pub native: bool,
    /// AF_XDP without copying.
    pub zero_copy: bool,
}

impl XdpDevice {
    /// Asks for a device of the calling thread's network namespace.
    pub fn of(ifindex: IfIndex) -> io::Result<Self> {
        let found = link::xdp_query(ifindex)?;
        let program = |id: u32| (id != 0).then(|| AttachedProgram::of(id));
        let has = |flags: u64| found.feature_flags & flags == flags;
        // A driver that says nothing may be older than the question.
        let driver = (found.feature_flags != 0)
            .then(|| XdpDriver { native: has(ACT_BASIC | ACT_REDIRECT), zero_copy: has(ACT_XSK_ZEROCOPY) });
        Ok(Self {
            native: program(found.drv_prog_id),
            generic: program(found.skb_prog_id),
            offloaded: program(found.hw_prog_id),
            driver,
        })
    }

    /// All programs at the hook.
    pub fn programs(&self) -> impl Iterator<Item = &AttachedProgram> {
        [&self.native, &self.generic, &self.offloaded].into_iter().flatten()
    }
}
