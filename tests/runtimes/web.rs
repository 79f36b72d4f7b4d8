//! What pods serve: a page that names the pod.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::harness::Netns;
use super::image::BUSYBOX;

pub const PORT: u16 = 8080;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the pod's `/etc`, of which the runtime fills in the host name.
pub fn server() -> Vec<String> {
    [BUSYBOX, "httpd", "-f", "-p", &PORT.to_string(), "-h", "/etc"].map(str::to_owned).into()
}

/// Asks the server behind `address` for its pod's name, from within `client`.
pub fn ask(client: &Netns, address: SocketAddr) -> io::Result<String> {
    let mut stream = client.within(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(answer.clone()))?;
    if head.contains(" 200 ") { Ok(body.trim_end().to_owned()) } else { Err(io::Error::other(head)) }
}
