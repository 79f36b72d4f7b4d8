//! What it means when the kernel refuses what the data plane asks for, in words. The daemon's reports and the doctor
//! use the same.

use std::io;

use super::dataplane::DataplaneError;
use crate::packet;
use crate::steer::SteerError;
use crate::xsk;

/// What is asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A network namespace of its own.
    Namespace,
    /// Devices, addresses, routes.
    Devices,
    /// Loaded BPF programs and maps.
    Programs,
    /// Pins in a BPF file system.
    Pins,
    /// A program at the uplink's XDP hook.
    Xdp,
    /// A program at a device's tc ingress.
    Ingress,
    /// A packet socket.
    PacketSocket,
    /// An AF_XDP socket.
    XdpSocket,
    /// Packet memory that AF_XDP may use.
    PacketMemory,
    /// An AF_XDP socket on a queue of the uplink.
    Queue,
    /// The same without copying.
    ZeroCopy,
}

/// How it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `EPERM`, `EACCES`, and `ENOBUFS` for memory beyond the limit of what may be locked.
    NotPermitted,
    /// `EBUSY`, `EEXIST`.
    Busy,
    /// `EOPNOTSUPP`, and for sockets and types that the kernel was built without, `EAFNOSUPPORT` and its like.
    Unsupported,
}

impl Refusal {
    /// What kind of refusal an error is, if it is one of these.
    pub fn of(error: &io::Error) -> Option<Self> {
        match (error.raw_os_error(), error.kind()) {
            (Some(libc::ENOBUFS), _) | (_, io::ErrorKind::PermissionDenied) => Some(Self::NotPermitted),
            (_, io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists) => Some(Self::Busy),
            (Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT), _)
            | (_, io::ErrorKind::Unsupported) => Some(Self::Unsupported),
            _ => None,
        }
    }
}

/// What a refusal means and what to do about it, where more can be said than the error itself says.
pub fn explain(need: Need, refusal: Refusal) -> Option<&'static str> {
    use Need::{
        Devices, Ingress, Namespace, PacketMemory, PacketSocket, Pins, Programs, Queue, Xdp, XdpSocket, ZeroCopy,
    };
    use Refusal::{Busy, NotPermitted, Unsupported};
    Some(match (need, refusal) {
        (Namespace, NotPermitted) => "network namespaces need CAP_SYS_ADMIN",
        (Devices, NotPermitted) => "devices and routes need CAP_NET_ADMIN",
        (Programs, NotPermitted) => {
            "BPF programs need CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and a kernel that is not locked down \
             (/sys/kernel/security/lockdown)"
        }
        (Pins, NotPermitted) => "pins need a BPF file system that this user can write, and to mount one CAP_SYS_ADMIN",
        (Xdp | Ingress, NotPermitted) => "attaching programs to devices needs CAP_NET_ADMIN and CAP_BPF",
        (PacketSocket | XdpSocket, NotPermitted) => "packet sockets and AF_XDP sockets need CAP_NET_RAW",
        (PacketMemory, NotPermitted) => {
            "packet memory is locked: it needs CAP_IPC_LOCK, or a limit of locked memory (ulimit -l, LimitMEMLOCK=) \
             above `dataplane.frames` x 4 KiB for each worker"
        }
        (Queue | ZeroCopy, NotPermitted) => "binding to a queue needs CAP_NET_RAW and CAP_NET_ADMIN",
        (Xdp, Busy) => {
            "another XDP program or the driver itself holds the uplink: `bpftool net` and `ip -d link` show which"
        }
        (Queue | ZeroCopy, Busy) => {
            "another AF_XDP socket holds the queue: a second podwire, or a worker that was left behind; \
             `ss --xdp -ap` shows whose it is"
        }
        (Xdp, Unsupported) => {
            "the uplink's driver has no native XDP, or not with its present MTU, queues and offloads (LRO); \
             `dataplane.xdp` \"auto\" does without"
        }
        (ZeroCopy, Unsupported) => {
            "the uplink's driver cannot share packet memory with AF_XDP; `dataplane.zero_copy` \"auto\" or \"off\" copies"
        }
        (XdpSocket | PacketMemory | Queue, Unsupported) => {
            "the kernel has no AF_XDP: it must be built with CONFIG_XDP_SOCKETS"
        }
        (PacketSocket, Unsupported) => "the kernel has no packet sockets: it must be built with CONFIG_PACKET",
        (Ingress, Unsupported) => {
            "the kernel has no tcx (Linux 6.6): clsact filters take its place, by CONFIG_NET_SCH_INGRESS and \
             CONFIG_NET_CLS_BPF"
        }
        (Programs, Unsupported) => "the kernel lacks what the steering programs use: they need Linux 6.1 or later",
        (Devices, Unsupported) => "the kernel was built without this type of device",
        (Namespace | Devices | Programs | Pins | Ingress | PacketSocket | XdpSocket | PacketMemory, Busy)
        | (Namespace | Pins, Unsupported) => return None,
    })
}

impl DataplaneError {
    /// The error, and what a refusal of the kernel in it means.
    pub fn explained(&self) -> String {
        match self.refusal().and_then(|(need, refusal)| explain(need, refusal)) {
            Some(meaning) => format!("{self}; {meaning}"),
            None => self.to_string(),
        }
    }

    fn refusal(&self) -> Option<(Need, Refusal)> {
        let (need, error) = match self {
            Self::Steer(error) => refused_steering(error)?,
            Self::Socket(xsk::Error::Taken { .. }) => return Some((Need::Queue, Refusal::Busy)),
            Self::Socket(xsk::Error::Open(error)) => (Need::XdpSocket, error),
            Self::Socket(xsk::Error::Register(error)) => (Need::PacketMemory, error),
            Self::Socket(xsk::Error::NoZeroCopy { source, .. }) => (Need::ZeroCopy, source),
            Self::Socket(xsk::Error::Bind { source, .. }) => (Need::Queue, source),
            Self::Packet(packet::Error::Open(error)) => (Need::PacketSocket, error),
            _ => return None,
        };
        Some((need, Refusal::of(error)?))
    }
}

fn refused_steering(error: &SteerError) -> Option<(Need, &io::Error)> {
    Some(match error {
        SteerError::Load(source) => (Need::Programs, source),
        SteerError::Pins { source, .. } => (Need::Pins, source),
        SteerError::Attach { program: "nic_steer", source, .. } => (Need::Xdp, source),
        SteerError::Attach { source, .. } => (Need::Ingress, source),
        SteerError::Ingress { clsact, .. } => (Need::Ingress, clsact),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::IfIndex;

    #[test]
    fn refusals_of_the_kernel_are_told_apart() {
        for (errno, refusal) in [
            (libc::EPERM, Some(Refusal::NotPermitted)),
            (libc::EACCES, Some(Refusal::NotPermitted)),
            (libc::ENOBUFS, Some(Refusal::NotPermitted)),
            (libc::EBUSY, Some(Refusal::Busy)),
            (libc::EEXIST, Some(Refusal::Busy)),
            (libc::EOPNOTSUPP, Some(Refusal::Unsupported)),
            (libc::EAFNOSUPPORT, Some(Refusal::Unsupported)),
            (libc::ENOENT, None),
        ] {
            assert_eq!(Refusal::of(&io::Error::from_raw_os_error(errno)), refusal, "{errno}");
        }
    }

    #[test]
    fn a_failed_start_says_what_to_do() {
        let os = io::Error::from_raw_os_error;
        let xdp = |errno| SteerError::Attach {
            program: "nic_steer",
            ifindex: IfIndex(2),
            mode: "native XDP",
            source: os(errno),
        };
        let cases: [(DataplaneError, &str); 9] = [
            (SteerError::Load(os(libc::EPERM)).into(), "CAP_BPF"),
            (SteerError::Load(io::Error::new(io::ErrorKind::PermissionDenied, "libbpf says no")).into(), "CAP_BPF"),
            (xdp(libc::EOPNOTSUPP).into(), "no native XDP"),
            (xdp(libc::EBUSY).into(), "bpftool net"),
            (xsk::Error::Open(os(libc::EPERM)).into(), "CAP_NET_RAW"),
            (xsk::Error::Register(os(libc::ENOBUFS)).into(), "LimitMEMLOCK="),
            (xsk::Error::Taken { ifindex: IfIndex(2), queue: 0 }.into(), "ss --xdp -ap"),
            (
                xsk::Error::NoZeroCopy { ifindex: IfIndex(2), queue: 0, source: os(libc::EOPNOTSUPP) }.into(),
                "dataplane.zero_copy",
            ),
            (packet::Error::Open(os(libc::EPERM)).into(), "CAP_NET_RAW"),
        ];
        for (error, said) in cases {
            let text = error.explained();
            assert!(text.starts_with(&error.to_string()) && text.contains(said), "{text}");
        }
        let other: DataplaneError = xdp(libc::ENODEV).into();
        assert_eq!(other.explained(), other.to_string());
    }
}
