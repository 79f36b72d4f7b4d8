//! Established TCP connections that carry a little now and then, to see whether they outlive what happens.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::stream::Flow;

/// How long a connection may be stuck before it is taken for lost. TCP tries again after 0.2 s, and then after twice as
/// long each time (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two round trips.
const PAUSE: Duration = Duration::from_millis(10);

const MESSAGE: [u8; 64] = *b"a message of sixty-four bytes, which goes to and fro unchanged.\n";

/// Connections that were established before something happens.
pub struct Connections {
    running: Arc<AtomicBool>,
    clients: Vec<JoinHandle<io::Result<Duration>>>,
    servers: Vec<JoinHandle<io::Result<()>>>,
}

/// How connections fared.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Fared {
    pub connections: usize,
    pub lost: usize,
    /// The longest round trip of those that were not lost.
    pub longest_round_trip_ms: u64,
    /// Why connections were lost.
    pub errors: Vec<String>,
}

impl Connections {
    /// Establishes one for each flow.
    pub fn open(flows: &[Flow<'_>]) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let mut all = Self { running: Arc::clone(&running), clients: Vec::new(), servers: Vec::new() };
        for flow in flows {
            let listener = flow.to.netns.within(|| TcpListener::bind((flow.address, 0))).expect("listen in the pod");
            let server: SocketAddr = listener.local_addr().expect("bound");
            let client =
                flow.from.netns.within(|| TcpStream::connect_timeout(&server, PATIENCE)).expect("a connection");
            let (accepted, _) = listener.accept().expect("the connection");
            let running = Arc::clone(&running);
            all.servers.push(thread::spawn(move || echo(accepted)));
            all.clients.push(thread::spawn(move || talk(client, &running)));
        }
        all
    }

    /// Ends them after a last round trip each.
    pub fn close(self) -> Fared {
        self.running.store(false, Ordering::Relaxed);
        let mut fared = Fared { connections: self.clients.len(), ..Fared::default() };
        for client in self.clients {
            match client.join().expect("a client") {
                Ok(longest) => {
                    let longest = u64::try_from(longest.as_millis()).expect("a short time");
                    fared.longest_round_trip_ms = fared.longest_round_trip_ms.max(longest);
                }
                Err(error) => {
                    fared.lost += 1;
                    fared.errors.push(error.to_string());
                }
            }
        }
        for server in self.servers {
            if let Err(error) = server.join().expect("a server") {
                fared.errors.push(format!("server: {error}"));
            }
        }
        fared
    }
}

/// Makes round trips until told to stop; returns the longest.
fn talk(mut stream: TcpStream, running: &AtomicBool) -> io::Result<Duration> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut longest, mut last) = (Duration::ZERO, false);
    while !last {
        last = !running.load(Ordering::Relaxed);
        let start = Instant::now();
        stream.write_all(&MESSAGE)?;
        let mut answer = [0; MESSAGE.len()];
        stream.read_exact(&mut answer)?;
        if answer != MESSAGE {
            return Err(io::Error::other("the message came back changed"));
        }
        longest = longest.max(start.elapsed());
        thread::sleep(PAUSE);
    }
    Ok(longest)
}

/// Sends back what comes, until the other end closes.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(2 * PATIENCE))?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => stream.write_all(&buffer[..len])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
