use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::message::make_reply;

/// How long the end may go unseen.
const GLANCE: Duration = Duration::from_millis(100);

/// Answers requests, and nothing else, until `end` or until `stop` is set; returns how many.
pub fn reflect(socket: &UdpSocket, end: Instant, stop: &AtomicBool) -> io::Result<u64> {
    socket.set_read_timeout(Some(GLANCE))?;
    let mut bytes = vec![0; 1 << 16];
    let mut answered = 0;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) => {
                let Some(message) = bytes.get_mut(..length) else { continue };
                // A sender that has gone or cannot be reached is no concern of the others.
                if make_reply(message) && socket.send_to(message, from).is_ok() {
                    answered += 1;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // That an earlier answer was refused.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answered)
}
