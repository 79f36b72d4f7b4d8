//! Asks the daemon, blocking: what the command line uses.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::api::trace::Ask;
use super::api::{self, Refusal, Reply, ReplyLine, Request, RequestLine, Versioned};
use super::runtime::socket_path;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest reply, in bytes: far above a node full of pods.
const MAX_REPLY: u64 = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no daemon answers at {path} ({source}); start it with `podwire run`, or name its directory with --runtime-dir", path = .0.display(), source = .1)]
    NoDaemon(PathBuf, #[source] io::Error),
    #[error("the daemon at {path} did not answer: {source}; see its log", path = .0.display(), source = .1)]
    Broken(PathBuf, #[source] io::Error),
    #[error("the daemon at {path} (process {pid}) has not answered for {} s; if it hangs, kill it (kill -9 {pid}) and run this again", .patience.as_secs(), path = .path.display())]
    Silent { path: PathBuf, pid: i32, patience: Duration },
    #[error("the daemon at {path} speaks protocol {1}, this podwire {ours}; use the same version for both", path = .0.display(), ours = api::VERSION)]
    Version(PathBuf, u32),
    #[error("the daemon answered something else than was asked: {0:?}")]
    Unexpected(Box<Reply>),
    #[error(transparent)]
    Refused(Refusal),
}

/// Sends one request to the daemon that owns `dir` and waits for its reply.
pub fn call(dir: &Path, request: Request) -> Result<Reply, ClientError> {
    call_within(PATIENCE, dir, request)
}

/// Begins a trace: the daemon's events, a line each, until the trace ends or the other value has closed the stream for
/// writing.
pub fn trace(dir: &Path, ask: Ask) -> Result<(BufReader<UnixStream>, UnixStream), ClientError> {
    let (reply, lines) = converse(PATIENCE, dir, Request::Trace(Box::new(ask)))?;
    if reply != Reply::Tracing {
        return Err(ClientError::Unexpected(Box::new(reply)));
    }
    let broken = |error| ClientError::Broken(socket_path(dir), error);
    let stream = lines.get_ref();
    stream.set_read_timeout(None).map_err(broken)?;
    let other = stream.try_clone().map_err(broken)?;
    Ok((lines, other))
}

fn call_within(patience: Duration, dir: &Path, request: Request) -> Result<Reply, ClientError> {
    converse(patience, dir, request).map(|(reply, _)| reply)
}

/// Asks, and returns the reply with what the daemon may say after it.
fn converse(patience: Duration, dir: &Path, request: Request) -> Result<(Reply, BufReader<UnixStream>), ClientError> {
    let path = socket_path(dir);
    let stream = UnixStream::connect(&path).map_err(|error| ClientError::NoDaemon(path.clone(), error))?;
    let broken = |error| ClientError::Broken(path.clone(), error);
    let mut lines = BufReader::new(stream.try_clone().map_err(broken)?);
    let text = match exchange(&stream, &mut lines, patience, request) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let pid = getsockopt(&stream, PeerCredentials).map_err(|error| broken(error.into()))?.pid();
            return Err(ClientError::Silent { path, pid, patience });
        }
        outcome => outcome.map_err(broken)?,
    };
    let Versioned { version } = serde_json::from_str(&text).map_err(|error| broken(error.into()))?;
    if version != api::VERSION {
        return Err(ClientError::Version(path, version));
    }
    let ReplyLine { reply, .. } = serde_json::from_str(&text).map_err(|error| broken(error.into()))?;
    match reply {
        Reply::Error(refusal) => Err(ClientError::Refused(refusal)),
        reply => Ok((reply, lines)),
    }
}

fn exchange(
    mut stream: &UnixStream,
    lines: &mut BufReader<UnixStream>,
    patience: Duration,
    request: Request,
) -> io::Result<String> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut line = serde_json::to_vec(&RequestLine { version: api::VERSION, request })?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    lines.take(MAX_REPLY).read_line(&mut reply)?;
    if reply.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_daemon_that_does_not_answer_is_named_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let _hung = UnixListener::bind(socket_path(dir.path())).unwrap();
        let error = call_within(Duration::from_millis(50), dir.path(), Request::Status).unwrap_err();
        let kill = format!("kill it (kill -9 {}) and run this again", std::process::id());
        assert!(error.to_string().contains(&kill), "{error}");
    }
}
