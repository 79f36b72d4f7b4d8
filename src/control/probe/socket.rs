//! The socket of echo requests from one of our addresses, and of their replies.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use super::echo::{self, Echo};
use crate::packet::{Filter, Step, Then};
use crate::xsk::sys::set_option;

/// What waits to be taken takes at most this much kernel memory, in bytes: some hundred replies.
const ROOM: usize = 256 * 1024;

/// As much of a packet as is looked at: the longest IPv4 header, and an echo.
const SNAP: usize = 60 + echo::LEN;

/// A raw ICMP or ICMPv6 socket (raw(7)), which gets the replies to requests with its identifier and nothing else.
#[derive(Debug)]
pub struct EchoSocket {
    socket: Socket,
    is_ipv6: bool,
}

/// A reply, and when the kernel received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub from: IpAddr,
    pub echo: Echo,
    pub at: Option<SystemTime>,
}

impl EchoSocket {
    /// For requests with the identifier `id` that leave from an address, and by `device` if it is given.
    pub fn open(from: IpAddr, device: Option<&str>, id: u16) -> io::Result<Self> {
        let is_ipv6 = from.is_ipv6();
        let (domain, protocol) =
            if is_ipv6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        replies_to(is_ipv6, id).attach(socket.as_fd(), u32::try_from(SNAP).unwrap_or(u32::MAX))?;
        socket.set_nonblocking(true)?;
        socket.set_recv_buffer_size(ROOM)?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        // Whole or not at all, whatever the kernel believes of the way's MTU (ip(7), ipv6(7)).
        let (level, option, probe) = if is_ipv6 {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
        } else {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        };
        set_option(socket.as_fd(), level, option, &probe)?;
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.bind(&SocketAddr::new(from, 0).into())?;
        Ok(Self { socket, is_ipv6 })
    }

    /// Sends a request of `bytes` bytes, its IP header included.
    pub fn send(&self, to: IpAddr, echo: Echo, bytes: usize) -> io::Result<()> {
        let header = if self.is_ipv6 { 40 } else { 20 };
        let message = echo.request(self.is_ipv6, bytes.saturating_sub(header));
        self.socket.send_to(&message, &SocketAddr::new(to, 0).into()).map(drop)
    }

    /// The next reply that waits, if any does. An error concerns an earlier request, not the replies.
    pub fn take(&self) -> io::Result<Option<Arrival>> {
        loop {
            match self.receive() {
                Ok(Some(arrival)) => return Ok(Some(arrival)),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes one packet; `None` if it is no reply after all.
    fn receive(&self) -> nix::Result<Option<Arrival>> {
        let (mut packet, mut control) = ([0; SNAP], nix::cmsg_space!(TimeSpec));
        let mut parts = [IoSliceMut::new(&mut packet)];
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let from = message.address.as_ref().and_then(address);
        let at = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
            _ => None,
        });
        let len = message.bytes;
        let echo = packet.get(..len).and_then(|packet| self.read(packet));
        Ok(from.zip(echo).map(|(from, echo)| Arrival { from, echo, at }))
    }

    /// Finds the echo in what a raw socket receives: IPv4 with its header, IPv6 without.
    fn read(&self, packet: &[u8]) -> Option<Echo> {
        let header = if self.is_ipv6 { 0 } else { usize::from(packet.first()? & 0xf) * 4 };
        Echo::of_reply(self.is_ipv6, packet.get(header..)?)
    }
}

fn address(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| from.ip().into());
    v4.or_else(|| from.as_sockaddr_in6().map(|from| from.ip().into()))
}

/// Accepts replies to requests with the identifier `id`.
fn replies_to(is_ipv6: bool, id: u16) -> Filter {
    let begin = if is_ipv6 { Step::Index(0) } else { Step::IndexIpv4(0) };
    Filter(vec![
        begin,
        Step::ByteAt(0),
        Step::Equal(echo::types(is_ipv6).1.into(), Then::Next, Then::Reject),
        Step::HalfAt(4),
        Step::Equal(id.into(), Then::Accept, Then::Reject),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::netns::Netns;

    #[test]
    fn our_own_loopback_answers_and_other_identifiers_are_not_heard() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        Netns::within_new(|| {
            let netlink = &mut crate::control::netlink::Netlink::open().unwrap();
            let lo = netlink.link("lo").unwrap().unwrap().index;
            let up = crate::control::netlink::LinkSettings { up: Some(true), ..Default::default() };
            netlink.set_link(lo, up).unwrap();
            for lo in ["127.0.0.1", "::1"].map(|address| address.parse::<IpAddr>().unwrap()) {
                let [ours, other] = [7, 8].map(|id| EchoSocket::open(lo, Some("lo"), id).unwrap());
                let echo = Echo { id: 7, sequence: 3, token: 99 };
                let before = SystemTime::now();
                ours.send(lo, echo, 1450).unwrap();
                let arrival = ours.take().unwrap().expect("loopback answers at once");
                assert_eq!((arrival.from, arrival.echo), (lo, echo));
                let took = arrival.at.unwrap().duration_since(before).unwrap();
                assert!(took < Duration::from_secs(60), "{took:?}");
                assert_eq!((ours.take().unwrap(), other.take().unwrap()), (None, None));
            }
        })
        .unwrap();
    }
}
