//! The socket calls, each a thin safe face over one system call.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

pub use libc::XDP_RING_NEED_WAKEUP;

/// Lifts how many frames one `sendto` of a copy-mode socket sends (Linux 6.17; unknown to older kernels).
pub const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;

/// Opens a socket, closed on exec.
pub fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nobody else owns the descriptor just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an option whose value is plain data and refers to no memory.
pub fn set_option<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value refers to no memory.
    unsafe { set_referring_option(fd, level, name, value) }
}

/// Sets an option whose value refers to memory.
///
/// # Safety
///
/// The kernel may use that memory as the option has it do, for as long as it does.
pub unsafe fn set_referring_option<T: Copy>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call; what it refers to is the kernel's to
    // use by the caller's promise.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), length::<T>()) };
    check(result)
}

/// Reads an option into plain data for which all bits zero is a value.
///
/// # Safety
///
/// Any bytes are a valid `T`.
pub unsafe fn get_option<T: Copy>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<T> {
    let mut value = mem::MaybeUninit::<T>::zeroed();
    let mut len = length::<T>();
    // SAFETY: the pointer and the length describe `value`.
    let result = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    check(result)?;
    // SAFETY: zeroed, then perhaps overwritten; any bytes are a `T` by the caller's promise.
    Ok(unsafe { value.assume_init() })
}

/// Makes a request about a device (netdevice(7)).
///
/// # Safety
///
/// What the request points at is as large as the request named so reads and writes.
pub unsafe fn device_request(fd: BorrowedFd<'_>, name: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the request outlives the call; what it points at is right by the caller's promise.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), name, ptr::from_mut(request)) })
}

/// Binds to an address of the family that the socket has.
pub fn bind<T: Copy>(fd: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `address`, which outlives the call.
    let result = unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(address).cast(), length::<T>()) };
    check(result)
}

/// Asks the kernel to send what the send ring holds.
pub fn kick_send(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message: no pointer is followed.
    let result = unsafe { libc::sendto(fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to go on receiving after its fill ring was empty, or to run the NAPI that the socket names.
pub fn kick_receive(fd: BorrowedFd<'_>) {
    // SAFETY: an empty buffer: no pointer is followed. The result does not matter: the ring tells.
    unsafe { libc::recvfrom(fd.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_DONTWAIT, ptr::null_mut(), ptr::null_mut()) };
}

fn length<T>() -> libc::socklen_t {
    const { assert!(mem::size_of::<T>() < 4096, "option and address structures are small") };
    #[expect(clippy::cast_possible_truncation, reason = "checked above")]
    let length = mem::size_of::<T>() as libc::socklen_t;
    length
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
