//! Round trips from a pod to a reflector, measured by an open loop: requests leave when they are due, whatever became
//! of earlier ones, and a round trip counts from when its request was due. A stall on the way is felt by every request
//! that was due meanwhile, and so are late wake-ups of the sender itself (no coordinated omission).
//!
//! ```text
//!   pod                                      reflector
//!   sender ──▶ requests at start + n/rate ──▶ ┐
//!   receiver ◀── replies ◀────────────────────┘ [`reflect`], or any UDP echo service (RFC 862)
//! ```

mod hgrm;
mod message;
mod picture;
mod reflector;
mod sender;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;

use crate::control::netns::Netns;
use message::Message;
use sender::Sent;

pub use hgrm::hgrm;
pub use message::MIN_BYTES;
pub use picture::svg;
pub use reflector::reflect;

/// How long after the last request an answer may come; later ones are lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the receiver may be blind to the end.
const GLANCE: Duration = Duration::from_millis(20);

/// The time for both threads to be ready before the first request is due.
const RUN_UP: Duration = Duration::from_millis(50);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests a second, at least 1.
    pub rate: u32,
    pub requests: u64,
    /// Of UDP payload, at least [`MIN_BYTES`].
    pub bytes: usize,
}

impl Load {
    /// When a request is due, from the start on.
    fn due(&self, sequence: u64) -> Duration {
        let rate = u64::from(self.rate);
        Duration::from_secs(sequence / rate) + Duration::from_nanos(sequence % rate * 1_000_000_000 / rate)
    }
}

/// What came of it. Times are in nanoseconds.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub sent: u64,
    /// Requests that the pod's own stack did not take.
    pub unsent: u64,
    pub received: u64,
    /// Answers that came after an answer to a later request.
    pub reordered: u64,
    /// Answers to a request that was answered already.
    pub doubled: u64,
    /// How often somebody said that nobody listens there.
    pub refused: u64,
    /// Round trips, from when each request was due.
    pub round_trips: Histogram<u64>,
    /// How much later than due requests were sent: that part of the round trips is the sender's own.
    pub lateness: Histogram<u64>,
}

impl Outcome {
    pub fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }
}

/// Opens a UDP socket inside of a pod.
pub fn socket_in(netns: &Netns, address: IpAddr, port: u16) -> io::Result<UdpSocket> {
    netns.within(|| UdpSocket::bind((address, port)))?
}

/// Sends `load` from `socket` to `target` until all is sent or `stop` is set, and waits for answers.
pub fn measure(socket: &UdpSocket, target: SocketAddr, load: Load, stop: &AtomicBool) -> io::Result<Outcome> {
    socket.connect(target)?;
    socket.set_read_timeout(Some(GLANCE))?;
    let run = run_id();
    let start = Instant::now() + RUN_UP;
    let ended = OnceLock::new();
    let (sent, answers) = thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(socket, load, run, start, &ended));
        let sent = sender::send(socket, load, run, start, stop);
        let count = sent.as_ref().map_or(0, |sent| sent.count);
        let _ = ended.set((count, Instant::now()));
        let answers = receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (sent, answers)
    });
    let (Sent { count, unsent, refused, lateness }, answers) = (sent?, answers?);
    Ok(Outcome {
        sent: count,
        unsent,
        received: answers.round_trips.len(),
        reordered: answers.reordered,
        doubled: answers.doubled,
        refused: refused + answers.refused,
        round_trips: answers.round_trips,
        lateness,
    })
}

/// Three significant digits over any range.
fn histogram() -> Histogram<u64> {
    let mut histogram =
        Histogram::new_with_bounds(1, u64::from(u32::MAX), 3).expect("valid by the crate's documentation");
    histogram.auto(true);
    histogram
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Tells this measurement's answers from those of an earlier one.
fn run_id() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    nanoseconds(since) ^ u64::from(std::process::id()) << 40
}

struct Answers {
    round_trips: Histogram<u64>,
    reordered: u64,
    doubled: u64,
    refused: u64,
}

fn receive(
    socket: &UdpSocket,
    load: Load,
    run: u64,
    start: Instant,
    ended: &OnceLock<(u64, Instant)>,
) -> io::Result<Answers> {
    let mut answers = Answers { round_trips: histogram(), reordered: 0, doubled: 0, refused: 0 };
    let (mut seen, mut highest) = (HashSet::new(), 0);
    let mut bytes = vec![0; 1 << 16];
    loop {
        match socket.recv(&mut bytes) {
            Ok(length) => {
                let now = Instant::now();
                let Some(answer) = bytes.get(..length).and_then(Message::read) else { continue };
                if answer.run != run || answer.sequence >= load.requests {
                    continue;
                }
                if !seen.insert(answer.sequence) {
                    answers.doubled += 1;
                    continue;
                }
                answers.reordered += u64::from(answer.sequence < highest);
                highest = highest.max(answer.sequence);
                let trip = now.saturating_duration_since(start + load.due(answer.sequence));
                answers.round_trips.saturating_record(nanoseconds(trip));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => answers.refused += 1,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if let Some((sent, at)) = ended.get()
            && (answers.round_trips.len() >= *sent || at.elapsed() > PATIENCE)
        {
            return Ok(answers);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::Ordering;

    use super::*;

    fn local() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
    }

    /// Measures against a reflector that does as told with what comes.
    fn measured(load: Load, reflect: impl Fn(&UdpSocket, &AtomicBool) + Sync) -> Outcome {
        let (reflector, stop) = (local(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| reflect(&reflector, &stop));
            let outcome = measure(&local(), reflector.local_addr().unwrap(), load, &AtomicBool::new(false));
            stop.store(true, Ordering::Relaxed);
            outcome.unwrap()
        })
    }

    fn until(stop: &AtomicBool, reflector: &UdpSocket, mut answer: impl FnMut(&[u8], SocketAddr)) {
        reflector.set_read_timeout(Some(GLANCE)).unwrap();
        let mut bytes = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((length, from)) = reflector.recv_from(&mut bytes) {
                answer(&bytes[..length], from);
            }
        }
    }

    #[test]
    fn a_stall_of_the_reflector_is_felt_by_every_request_that_was_due_meanwhile() {
        let load = Load { rate: 500, requests: 300, bytes: 64 };
        let outcome = measured(load, |socket, stop| {
            let mut count = 0;
            until(stop, socket, |bytes, from| {
                count += 1;
                if count == 100 {
                    thread::sleep(Duration::from_millis(200));
                }
                socket.send_to(bytes, from).unwrap();
            });
        });
        assert_eq!((outcome.sent, outcome.lost()), (300, 0));
        let late = outcome.round_trips.count_between(50_000_000, u64::MAX);
        // Those that were due in the first 150 of the 200 ms; a closed loop would have seen one.
        assert!(late >= 70, "{late} answers came more than 50 ms after their request was due");
        assert!(outcome.round_trips.max() >= 190_000_000, "{}", outcome.round_trips.max());
    }

    #[test]
    fn losses_duplicates_and_overtaking_are_counted_apart() {
        let load = Load { rate: 2000, requests: 100, bytes: MIN_BYTES };
        let outcome = measured(load, |socket, stop| {
            let (mut count, mut held) = (0, None);
            until(stop, socket, |bytes, from| {
                count += 1;
                match count {
                    10 => {}
                    20 => (0..2).for_each(|_| _ = socket.send_to(bytes, from).unwrap()),
                    30 => held = Some(bytes.to_vec()),
                    _ => _ = socket.send_to(bytes, from).unwrap(),
                }
                if count == 31
                    && let Some(bytes) = held.take()
                {
                    socket.send_to(&bytes, from).unwrap();
                }
            });
        });
        assert_eq!((outcome.sent, outcome.lost(), outcome.doubled, outcome.reordered), (100, 1, 1, 1));
    }

    #[test]
    fn answers_of_other_runs_and_noise_do_not_count() {
        let load = Load { rate: 1000, requests: 20, bytes: MIN_BYTES };
        let outcome = measured(load, |socket, stop| {
            until(stop, socket, |bytes, from| {
                let mut other = bytes.to_vec();
                other[9] ^= 1;
                for noise in [&other[..], &bytes[..10], b"", &[0xff; 40]] {
                    socket.send_to(noise, from).unwrap();
                }
            });
        });
        assert_eq!((outcome.received, outcome.lost(), outcome.doubled), (0, 20, 0));
    }

    #[test]
    fn requests_are_due_evenly() {
        let load = Load { rate: 3, requests: 9, bytes: MIN_BYTES };
        assert_eq!([0, 1, 3, 7].map(|n| load.due(n).as_millis()), [0, 333, 1000, 2333]);
    }
}
