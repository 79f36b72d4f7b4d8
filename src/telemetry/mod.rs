//! What operators' tools see: the node's figures as Prometheus metrics over HTTP, on a thread of its own.
//!
//! ```text
//!   scraper ──HTTP──▶ metrics thread ──Status, Stats, …──▶ control loop
//!                     (server, page)  ◀──snapshot───────   (answers as it answers the command line)
//! ```
//!
//! The thread keeps no figures of its own, and asks at most a few times a second: whatever scrapers do, the control
//! loop has as little to do, and a control loop that hangs is told by an answer, not by silence.

mod collect;
mod metric;
mod page;
mod process;
mod server;
mod snapshot;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::{fs, net, os};

use tokio::net::{TcpListener, UnixListener};
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use crate::config;
use crate::confine;
use crate::control::server::Call;
use server::Site;
use snapshot::Source;

pub use metric::Metric;

/// Why metrics are not served.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot serve metrics on {0}: {1}; free the address, or change metrics.listen")]
    Tcp(SocketAddr, #[source] io::Error),
    #[error("cannot serve metrics on {path}: {source}", path = .0.display(), source = .1)]
    Unix(PathBuf, #[source] io::Error),
    #[error("cannot start the thread that serves metrics: {0}")]
    Thread(#[source] io::Error),
}

/// Serves the metrics where the configuration says.
#[derive(Debug)]
pub struct Exporter {
    socket: PathBuf,
    calls: mpsc::Sender<Call>,
    serving: Option<Serving>,
}

/// A thread that serves until this is dropped.
#[derive(Debug)]
struct Serving {
    config: config::Metrics,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Serves nothing yet. `socket` is where the Unix socket would be, in a directory that is closed to others.
    pub fn new(socket: PathBuf, calls: mpsc::Sender<Call>) -> Self {
        Self { socket, calls, serving: None }
    }

    /// Brings it to what `config` says, if it is not so already.
    pub fn ensure(&mut self, config: config::Metrics) -> Result<(), ExportError> {
        if self.serving.as_ref().is_some_and(|serving| serving.config == config) {
            return Ok(());
        }
        self.stop();
        if config.listen.is_none() && !config.socket {
            return Ok(());
        }
        let tcp = config.listen.map(|at| bind_tcp(at).map_err(|error| ExportError::Tcp(at, error))).transpose()?;
        let unix = config.socket.then(|| self.bind_unix()).transpose()?;
        let site = Arc::new(Site::new(Source::new(self.calls.clone()), config));
        let serving = Serving::start(config, site, tcp, unix).map_err(ExportError::Thread)?;
        self.serving = Some(serving);
        Ok(())
    }

    fn stop(&mut self) {
        if self.serving.take().is_some_and(|serving| serving.config.socket) {
            let _ = fs::remove_file(&self.socket);
        }
    }

    fn bind_unix(&self) -> Result<os::unix::net::UnixListener, ExportError> {
        let attempt = || {
            match fs::remove_file(&self.socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = os::unix::net::UnixListener::bind(&self.socket)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        attempt().map_err(|error| ExportError::Unix(self.socket.clone(), error))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bind_tcp(at: SocketAddr) -> io::Result<net::TcpListener> {
    let listener = net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Serving {
    fn start(
        config: config::Metrics,
        site: Arc<Site>,
        tcp: Option<net::TcpListener>,
        unix: Option<os::unix::net::UnixListener>,
    ) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let tcp = tcp.map(TcpListener::from_std).transpose()?;
        let unix = unix.map(UnixListener::from_std).transpose()?;
        drop(guard);
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            if let Err(error) = confine::thread(confine::Thread::Metrics) {
                return tracing::error!(%error, "no metrics");
            }
            if let Some(listener) = tcp {
                runtime.spawn(Arc::clone(&site).serve_tcp(listener));
            }
            if let Some(listener) = unix {
                runtime.spawn(site.serve_unix(listener));
            }
            // Told by the channel's end.
            let _ = runtime.block_on(stopped);
        };
        let thread = thread::Builder::new().name("podwire-metrics".to_owned()).spawn(serve)?;
        if let Some(at) = config.listen {
            tracing::info!(%at, "serving metrics");
        }
        Ok(Self { config, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
