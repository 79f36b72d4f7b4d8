//! Servers that say who they are and whom they see, and clients that ask them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::harness::Netns;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a server waits before it looks whether it is to end.
const TICK: Duration = Duration::from_millis(20);

/// What a server writes after its line, so that a connection carries full segments both ways.
const BULK: usize = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client as the server sees it.
    pub client: SocketAddr,
}

impl Answer {
    fn parse(line: &str) -> io::Result<Self> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {line:?}"));
        let (server, client) = line.trim_end().split_once(' ').ok_or_else(bad)?;
        Ok(Self { server: server.to_owned(), client: client.parse().map_err(|_| bad())? })
    }
}

/// A server on one port, for TCP and UDP, IPv4 and IPv6. Ends when dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub fn start(netns: &Netns, name: &str, port: u16) -> Self {
        let any = SocketAddr::new("::".parse().expect("an address"), port);
        let (tcp, udp) = netns.within(|| (TcpListener::bind(any), UdpSocket::bind(any)));
        let (tcp, udp) = (tcp.expect("bind TCP"), udp.expect("bind UDP"));
        tcp.set_nonblocking(true).expect("a socket");
        udp.set_read_timeout(Some(TICK)).expect("a socket");
        let stop = Arc::new(AtomicBool::new(false));
        let (name, for_tcp, for_udp) = (name.to_owned(), Arc::clone(&stop), Arc::clone(&stop));
        let tcp_name = name.clone();
        let threads = vec![
            thread::spawn(move || accept(&tcp, &tcp_name, &for_tcp)),
            thread::spawn(move || answer_datagrams(&udp, &name, &for_udp)),
        ];
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, client)) => {
                    scope.spawn(move || serve(&stream, name, client).ok());
                }
                Err(_) => thread::sleep(TICK),
            }
        }
    });
}

/// Answers each line that comes with one and [`BULK`], until the client goes or is silent.
fn serve(stream: &TcpStream, name: &str, client: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let client = plain(client);
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        line.clear();
        let answer = format!("{name} {client}\n{}", ".".repeat(BULK));
        (&*stream).write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, client)) = socket.recv_from(&mut buffer) {
            socket.send_to(format!("{name} {}", plain(client)).as_bytes(), client).ok();
        }
    }
}

/// An IPv4 client as such.
fn plain(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

/// A client with a connection, or a connected socket, that can ask again and again.
pub enum Client {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Client {
    /// Connects from inside `netns` to `to`. Answers from any other address do not count.
    pub fn connect(netns: &Netns, protocol: Protocol, to: SocketAddr) -> io::Result<Self> {
        netns.within(|| match protocol {
            Protocol::Tcp => {
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Ok(Self::Tcp(BufReader::new(stream)))
            }
            Protocol::Udp => Self::datagrams(to, 0),
        })
    }

    /// The same by UDP, from the port `from`.
    pub fn from_port(netns: &Netns, from: u16, to: SocketAddr) -> io::Result<Self> {
        netns.within(|| Self::datagrams(to, from))
    }

    fn datagrams(to: SocketAddr, from: u16) -> io::Result<Self> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, from))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::Udp(socket))
    }

    /// Asks once and waits for the answer.
    pub fn ask(&mut self) -> io::Result<Answer> {
        match self {
            Self::Tcp(stream) => {
                stream.get_ref().write_all(b"who?\n")?;
                let mut line = String::new();
                stream.read_line(&mut line)?;
                stream.read_exact(&mut vec![0; BULK])?;
                Answer::parse(&line)
            }
            Self::Udp(socket) => {
                socket.send(b"who?")?;
                let mut buffer = [0; 2048];
                let length = socket.recv(&mut buffer)?;
                Answer::parse(&String::from_utf8_lossy(&buffer[..length]))
            }
        }
    }
}

/// Asks `to` a few times over one connection; all answers must be the same.
#[track_caller]
pub fn ask(netns: &Netns, protocol: Protocol, to: SocketAddr) -> Answer {
    let what = format!("{protocol:?} to {to}");
    let mut client = Client::connect(netns, protocol, to).unwrap_or_else(|e| panic!("{what}: {e}"));
    let answers: Vec<_> = (0..5).map(|_| client.ask().unwrap_or_else(|e| panic!("{what}: {e}"))).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{what}: {answers:?}");
    answers[0].clone()
}
