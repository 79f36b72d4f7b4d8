//! What a device says of itself by ethtool ioctls (include/uapi/linux/ethtool.h).

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::ptr;

use super::sys;

/// `ETHTOOL_GDRVINFO`, `ETHTOOL_GRINGPARAM`, `ETHTOOL_GRXFH`, `ETHTOOL_GCHANNELS`.
const GET_DRIVER: u32 = 0x03;
const GET_RINGS: u32 = 0x10;
const GET_HASH: u32 = 0x29;
const GET_CHANNELS: u32 = 0x3c;

/// `ETHTOOL_GTXCSUM`, `ETHTOOL_STXCSUM`.
const GET_CHECKSUMS: u32 = 0x16;
const SET_CHECKSUMS: u32 = 0x17;

/// `UDP_V4_FLOW`, `UDP_V6_FLOW`.
const UDP_V4: u32 = 0x02;
const UDP_V6: u32 = 0x06;

/// `RXH_L4_B_0_1 | RXH_L4_B_2_3`: both ports.
const HASHED_PORTS: u64 = 1 << 6 | 1 << 7;

/// `struct ethtool_channels`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Channels {
    cmd: u32,
    max: [u32; 4],
    pub rx: u32,
    pub tx: u32,
    other: u32,
    pub combined: u32,
}

/// `struct ethtool_ringparam`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct RingParam {
    cmd: u32,
    rx_max: u32,
    mini_jumbo_max: [u32; 2],
    tx_max: u32,
    rx: u32,
    mini_jumbo: [u32; 2],
    tx: u32,
}

/// `struct ethtool_drvinfo`.
#[derive(Clone, Copy)]
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    versions: [u8; 64],
    bus: [u8; 32],
    more: [u8; 64],
}

/// The head of `struct ethtool_rxnfc`, and more room than its rest takes.
#[derive(Clone, Copy)]
#[repr(C)]
struct FlowHash {
    cmd: u32,
    flow: u32,
    fields: u64,
    rest: [u64; 30],
}

/// `struct ethtool_value`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Value {
    cmd: u32,
    data: u32,
}

/// The descriptors of each queue of a device, as they are and as they can be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    pub rx: u32,
    pub rx_max: u32,
    pub tx: u32,
    pub tx_max: u32,
}

/// Whose device it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    pub name: String,
    /// The device's name on its bus, such as a PCI address; empty for a virtual one.
    pub bus: String,
}

/// How many queues of each kind a device uses.
pub(super) fn channels(device: &str) -> io::Result<Channels> {
    let mut channels = Channels { cmd: GET_CHANNELS, ..Channels::default() };
    // SAFETY: this is the structure of `GET_CHANNELS`.
    unsafe { ask(device, &mut channels) }?;
    Ok(channels)
}

impl Rings {
    /// Of a device in the calling thread's network namespace; an error where the driver does not say.
    pub fn of(device: &str) -> io::Result<Self> {
        let mut rings = RingParam { cmd: GET_RINGS, ..RingParam::default() };
        // SAFETY: this is the structure of `GET_RINGS`.
        unsafe { ask(device, &mut rings) }?;
        let RingParam { rx, rx_max, tx, tx_max, .. } = rings;
        Ok(Self { rx, rx_max, tx, tx_max })
    }
}

impl Driver {
    /// Of a device in the calling thread's network namespace; an error where there is none.
    pub fn of(device: &str) -> io::Result<Self> {
        let mut info = DriverInfo { cmd: GET_DRIVER, driver: [0; 32], versions: [0; 64], bus: [0; 32], more: [0; 64] };
        // SAFETY: this is the structure of `GET_DRIVER`.
        unsafe { ask(device, &mut info) }?;
        Ok(Self { name: text(&info.driver), bus: text(&info.bus) })
    }

    /// Whether XDP has the driver copy each frame that a sender of this machine made (`veth_convert_skb_to_xdp_buff` in
    /// drivers/net/veth.c).
    pub fn copies_for_xdp(&self) -> bool {
        self.name == "veth"
    }

    /// Whether its NAPIs run on the cores of who sends, at once, so that nobody else needs to (`__veth_xdp_flush`
    /// there).
    pub fn has_no_interrupts(&self) -> bool {
        self.name == "veth"
    }
}

/// Whether a device hashes the ports of UDP packets, so that one pair of hosts uses all queues; an error where the
/// driver does not say.
pub fn hashes_udp_ports(device: &str, ipv6: bool) -> io::Result<bool> {
    let flow = if ipv6 { UDP_V6 } else { UDP_V4 };
    let mut hash = FlowHash { cmd: GET_HASH, flow, fields: 0, rest: [0; 30] };
    // SAFETY: the structure is no smaller than that of `GET_HASH`.
    unsafe { ask(device, &mut hash) }?;
    Ok(hash.fields & HASHED_PORTS == HASHED_PORTS)
}

/// Has the kernel complete checksums before a device sees them, and says whether it did not before.
pub fn complete_checksums(device: &str) -> io::Result<bool> {
    let mut value = Value { cmd: GET_CHECKSUMS, data: 0 };
    // SAFETY: this is the structure of `GET_CHECKSUMS`.
    unsafe { ask(device, &mut value) }?;
    if value.data == 0 {
        return Ok(false);
    }
    let mut value = Value { cmd: SET_CHECKSUMS, data: 0 };
    // SAFETY: this is the structure of `SET_CHECKSUMS`.
    unsafe { ask(device, &mut value) }?;
    Ok(true)
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Asks about a device in the calling thread's network namespace.
///
/// # Safety
///
/// `request` begins with a command, and is no smaller than the structure of that command; any bytes are a `T`.
unsafe fn ask<T: Copy>(device: &str, request: &mut T) -> io::Result<()> {
    let name = CString::new(device).map_err(|_| io::ErrorKind::InvalidInput)?;
    let name = name.as_bytes_with_nul();
    // SAFETY: all-zero bytes are a valid request.
    let mut outer: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() > outer.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in outer.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    outer.ifr_ifru.ifru_data = ptr::from_mut(request).cast();
    let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: the request points at a structure that is large enough, by the caller's promise.
    unsafe { sys::device_request(socket.as_fd(), libc::SIOCETHTOOL, &mut outer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_hardware_has_no_rings_and_a_missing_one_is_named_by_the_error() {
        assert_eq!(Rings::of("lo").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(hashes_udp_ports("lo", false).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert_eq!(Driver::of("pw-no-such").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(Driver::of("a-name-too-long-for-a-device").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
