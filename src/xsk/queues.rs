use std::io;

use super::ethtool::{Channels, channels};

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
        let channels = match channels(device) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Channels::default(),
            channels => channels?,
        };
        let [receive, send] = [channels.rx, channels.tx].map(|own| (own + channels.combined).max(1));
        Ok(Self { receive, send })
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
