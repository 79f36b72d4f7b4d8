use std::ffi::CString;
use std::io;
use std::mem;
use std::os::fd::AsFd;

use super::sys;

/// `ETHTOOL_GCHANNELS` of include/uapi/linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;

/// `struct ethtool_channels`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// How many queues a device uses now, which may be fewer than it was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    pub receive: u32,
    /// A socket on a queue beyond these can receive but not send.
    pub send: u32,
}

impl Queues {
    /// The queues of a device in the calling thread's network namespace; one each where the driver does not say.
    pub fn of(device: &str) -> io::Result<Self> {
        let channels = channels(device)?;
        let [receive, send] = [channels.rx, channels.tx].map(|own| (own + channels.combined).max(1));
        Ok(Self { receive, send })
    }
}

fn channels(device: &str) -> io::Result<Channels> {
    let name = CString::new(device).map_err(|_| io::ErrorKind::InvalidInput)?;
    let name = name.as_bytes_with_nul();
    let mut channels = Channels { cmd: GET_CHANNELS, ..Channels::default() };
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() > request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    let socket = sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    // SAFETY: the request points at the structure that `GET_CHANNELS` fills.
    match unsafe { sys::device_request(socket.as_fd(), libc::SIOCETHTOOL, &mut request) } {
        Ok(()) => Ok(channels),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Channels::default()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_channels_has_one_queue_and_a_missing_one_is_an_error() {
        assert_eq!(Queues::of("lo").unwrap(), Queues { receive: 1, send: 1 });
        assert_eq!(Queues::of("pw-no-such").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(Queues::of("a-name-too-long-for-a-device").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
