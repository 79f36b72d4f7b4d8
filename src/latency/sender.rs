use std::io;
use std::net::UdpSocket;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::thread::set_current_timer_slack;

use super::message::Message;
use super::{Load, histogram, nanoseconds};

/// The end of each wait is spent awake: to wake a thread takes the kernel about this long on an idle core.
const AWAKE: Duration = Duration::from_micros(30);

/// How long a wish to stop may go unseen.
const GLANCE: Duration = Duration::from_millis(100);

/// What was sent.
pub(super) struct Sent {
    pub count: u64,
    pub unsent: u64,
    pub refused: u64,
    pub lateness: Histogram<u64>,
}

/// Sends each request when it is due, on the calling thread, whose timers become exact.
pub(super) fn send(socket: &UdpSocket, load: Load, run: u64, start: Instant, stop: &AtomicBool) -> io::Result<Sent> {
    // By default the kernel may wake a sleeper 50 µs late (PR_SET_TIMERSLACK in prctl(2)).
    set_current_timer_slack(NonZeroU64::new(1))?;
    let mut sent = Sent { count: 0, unsent: 0, refused: 0, lateness: histogram() };
    for sequence in 0..load.requests {
        let due = start + load.due(sequence);
        if !wait_until(due, stop) {
            break;
        }
        let request = Message { run, sequence }.request(load.bytes);
        sent.lateness.saturating_record(nanoseconds(due.elapsed()));
        let outcome = match socket.send(&request) {
            // The error of an earlier one, which is told in the place of sending.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                sent.refused += 1;
                socket.send(&request)
            }
            outcome => outcome,
        };
        match outcome {
            Ok(_) => sent.count += 1,
            Err(error) if may_pass(&error) => sent.unsent += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Whether the next request may do better.
fn may_pass(error: &io::Error) -> bool {
    let full = error.raw_os_error() == Some(libc::ENOBUFS);
    full || matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock)
}

/// False when it was told to stop before.
fn wait_until(due: Instant, stop: &AtomicBool) -> bool {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        if left.is_zero() {
            return true;
        }
        match left.checked_sub(AWAKE) {
            Some(sleep) => thread::sleep(sleep.min(GLANCE)),
            None => std::hint::spin_loop(),
        }
    }
}
