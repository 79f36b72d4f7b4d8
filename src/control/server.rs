//! The control socket: hands each request to the control loop and its reply back to the client.
//!
//! Clients are not trusted to be well-behaved: a line is bounded in length and time, and so is
//! the number of clients at once. A client of another user is turned away.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::api::{self, MAX_REQUEST, Refusal, RefusalKind, Reply, ReplyLine, Request, RequestLine, Versioned};
use super::trace::Session;

/// How long a client may take to send its line, and to take the reply.
const DEADLINE: Duration = Duration::from_secs(5);

/// How many clients are served at once; more wait in the socket's backlog.
const MAX_CLIENTS: usize = 16;

/// A request on its way to the control loop, with the way back.
pub type Call = (Request, oneshot::Sender<Answer>);

/// What the control loop gives back.
#[derive(Debug)]
pub enum Answer {
    Reply(Reply),
    /// It replies, and goes on to tell the client of packets.
    Trace(Session),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {path}: {source}; is the runtime directory writable and its path shorter than 90 bytes?", path = .path.display())]
pub struct ServerError {
    path: PathBuf,
    source: io::Error,
}

/// The listening control socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl Server {
    /// Listens at `path`, mode 0600, in place of what a killed daemon left there. The caller holds
    /// the lock of the runtime directory, and nobody else can enter the directory.
    pub fn bind(path: &Path) -> Result<Self, ServerError> {
        let attempt = || {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            Ok(Self { listener, path: path.to_owned(), owner: fs::metadata(path)?.uid() })
        };
        attempt().map_err(|source| ServerError { path: path.to_owned(), source })
    }

    /// Serves clients until the control loop is gone.
    pub async fn serve(self, calls: mpsc::Sender<Call>) {
        let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
        while let Ok(slot) = Arc::clone(&slots).acquire_owned().await {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (calls, owner) = (calls.clone(), self.owner);
                    tokio::spawn(async move {
                        converse(stream, owner, &calls).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket refused a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// One client: one request, one reply, and if that is a trace what follows.
async fn converse(mut stream: UnixStream, owner: u32, calls: &mpsc::Sender<Call>) {
    let answer = match request(&mut stream, owner).await {
        Ok(request) => ask(request, calls).await,
        Err(text) => Answer::Reply(Reply::Error(Refusal::new(RefusalKind::NotReady, text))),
    };
    match answer {
        Answer::Reply(reply) => {
            let line = ReplyLine { version: api::VERSION, reply };
            let Ok(mut bytes) = serde_json::to_vec(&line) else { return };
            bytes.push(b'\n');
            let _ = timeout(DEADLINE, stream.write_all(&bytes)).await;
        }
        Answer::Trace(session) => {
            let Ok(stream) = stream.into_std() else { return };
            // The call is kept until then, so that a daemon that stops lets the trace say so.
            let _ = spawn_blocking(move || session.run(stream)).await;
        }
    }
}

/// Reads and checks one request line, or says why not.
async fn request(stream: &mut UnixStream, owner: u32) -> Result<Request, String> {
    let user = stream.peer_cred().map_err(|error| format!("cannot tell who asks: {error}"))?.uid();
    if user != owner && user != 0 {
        return Err(format!("user {user} may not control the podwire of user {owner}"));
    }
    let mut line = Vec::new();
    let limit = u64::try_from(MAX_REQUEST).unwrap_or(u64::MAX);
    let mut stream = BufReader::new(stream.take(limit));
    match timeout(DEADLINE, stream.read_until(b'\n', &mut line)).await {
        Err(_) => return Err(format!("no whole request within {} seconds", DEADLINE.as_secs())),
        Ok(Err(error)) => return Err(format!("cannot read the request: {error}")),
        Ok(Ok(_)) if line.last() != Some(&b'\n') && line.len() >= MAX_REQUEST => {
            return Err(format!("a request is at most {MAX_REQUEST} bytes"));
        }
        Ok(Ok(_)) => {}
    }
    parse(&line)
}

/// Understands one request line; the version is judged first, so that other versions get a clear answer.
fn parse(line: &[u8]) -> Result<Request, String> {
    let Versioned { version } = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if version != api::VERSION {
        return Err(format!("protocol {version} is not spoken here, only {}", api::VERSION));
    }
    let line: RequestLine = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    Ok(line.request)
}

/// What holds of any line: it is refused with a reason, or reads back as what was understood of it.
#[cfg(fuzzing)]
pub fn fuzz(line: &[u8]) {
    match parse(line) {
        Ok(request) => {
            let again = RequestLine { version: api::VERSION, request: request.clone() };
            assert_eq!(parse(&serde_json::to_vec(&again).expect("JSON")), Ok(request));
        }
        Err(why) => assert!(!why.is_empty()),
    }
}

async fn ask(request: Request, calls: &mpsc::Sender<Call>) -> Answer {
    let (tell, told) = oneshot::channel();
    let gone = || Answer::Reply(Reply::Error(Refusal::new(RefusalKind::NotReady, "the daemon is stopping")));
    if calls.send((request, tell)).await.is_err() {
        return gone();
    }
    told.await.unwrap_or_else(|_| gone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_is_understood_or_refused_with_the_reason() {
        assert_eq!(parse(br#"{"version":2,"request":"status"}"#), Ok(Request::Status));
        for (line, reason) in [
            (&b""[..], "not a request"),
            (b"\xff\xfe", "not a request"),
            (b"[[[[", "not a request"),
            (br#"{"version":9,"request":"something new"}"#, "protocol 9"),
            (br#"{"version":2,"request":"reboot"}"#, "reboot"),
            (br#"{"version":2,"request":"status"} trailing"#, "trailing"),
        ] {
            let refusal = parse(line).unwrap_err();
            assert!(refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let line = [br#"{"version":2,"request":"#.to_vec(), vec![b'['; 60_000]].concat();
        assert!(parse(&line).unwrap_err().contains("not a request"));
    }
}
