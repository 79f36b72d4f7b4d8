//! Pods that send by sockets of their own: each datagram takes the way through its pod's stack that a program's does.

use std::hint;
use std::io::{self, ErrorKind};
use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::alone::HEADERS;
use crate::harness::Netns;

/// How far a sender that was kept from running may catch up: further would be a burst.
const GRACE: Duration = Duration::from_micros(20);

/// What is sent, of any length.
const ZEROS: [u8; 1500] = [0; 1500];

/// The sockets of all pods.
#[derive(Default)]
pub struct Senders {
    /// In turn, with the bytes of each one's frames.
    flows: Vec<(usize, UdpSocket, usize)>,
    /// Whose turn it is.
    next: usize,
}

impl Senders {
    /// Adds a pod's flows, each with its turn, its ends and the bytes of its frames.
    pub fn add(
        &mut self,
        netns: &Netns,
        flows: impl Iterator<Item = (usize, [SocketAddrV4; 2], usize)> + Send,
    ) -> io::Result<()> {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
        let open = |(turn, [from, to], size): (usize, [SocketAddrV4; 2], usize)| {
            let socket = UdpSocket::bind(from)?;
            socket.connect(to)?;
            Ok((turn, socket, size))
        };
        let opened: io::Result<Vec<_>> = netns.within(|| flows.map(open).collect());
        self.flows.extend(opened?);
        self.flows.sort_unstable_by_key(|(turn, ..)| *turn);
        Ok(())
    }

    /// Has all send in turn for `time`, so many packets a second together or as fast as it goes. Returns how many were sent,
    /// within which time.
    pub fn send(&mut self, rate: Option<f64>, time: Duration) -> (u64, Duration) {
        let interval = rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let (mut sent, start) = (0, Instant::now());
        let mut due = start;
        loop {
            let now = Instant::now();
            if now - start >= time {
                return (sent, now - start);
            }
            if let Some(interval) = interval {
                if now < due {
                    hint::spin_loop();
                    continue;
                }
                due = due.max(now.checked_sub(GRACE).unwrap_or(now)) + interval;
            }
            let (_, socket, size) = &self.flows[self.next];
            self.next = (self.next + 1) % self.flows.len();
            match socket.send(&ZEROS[..size - HEADERS]) {
                Ok(_) => sent += 1,
                // The device's queue is full, or who forwards says that it has no way at the moment.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::HostUnreachable) => {}
                Err(error) => panic!("a pod cannot send: {error}"),
            }
        }
    }
}
