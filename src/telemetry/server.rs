//! Answers HTTP, one request a connection: `/metrics`, and `/healthz` and `/readyz` for probes.
//!
//! Clients are not trusted to be well-behaved: connections are bounded in number, in time and in what is read of them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::collect::collect;
use super::page::TEXT_FORMAT;
use super::process;
use super::snapshot::{NoSnapshot, Source};
use crate::config;

/// How long a connection may last.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many connections there may be at once; further ones are closed.
const MAX_CONNECTIONS: usize = 64;

/// The longest head of a request, in bytes: the least that hyper can be given.
const MAX_HEAD: usize = 8 * 1024;

/// The pause after a connection could not be accepted, for want of descriptors as a rule.
const REST: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// What there is to be told, and to how many at once.
#[derive(Debug)]
pub struct Site {
    source: Source,
    config: config::Metrics,
    slots: Arc<Semaphore>,
}

impl Site {
    pub fn new(source: Source, config: config::Metrics) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { source, config, slots }
    }

    /// Serves whoever connects, for ever.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => refused(&error).await,
            }
        }
    }

    /// As [`Site::serve_tcp`].
    pub async fn serve_unix(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.admit(stream),
                Err(error) => refused(&error).await,
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else { return };
        let site = Arc::clone(self);
        tokio::spawn(async move {
            let service = service_fn(|request| site.answer(request));
            let mut http = http1::Builder::new();
            http.keep_alive(false).max_buf_size(MAX_HEAD).header_read_timeout(None);
            // What a client does wrong is its own concern.
            let _ = timeout(DEADLINE, http.serve_connection(TokioIo::new(stream), service)).await;
            drop(slot);
        });
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        if ![Method::GET, Method::HEAD].contains(request.method()) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Ok(answer);
        }
        Ok(match request.uri().path() {
            "/metrics" => self.metrics().await.unwrap_or_else(|error| unavailable(error.to_string())),
            "/healthz" => self.health().await.unwrap_or_else(|error| unavailable(error.to_string())),
            "/readyz" => self.readiness().await.unwrap_or_else(|error| unavailable(error.to_string())),
            _ => text(StatusCode::NOT_FOUND, "try /metrics, /healthz or /readyz\n"),
        })
    }

    async fn metrics(&self) -> Result<Answer, NoSnapshot> {
        let mut page = collect(&*self.source.snapshot().await?, self.config);
        process::put(&mut page);
        Ok(match page.write() {
            Ok(page) => of_type(TEXT_FORMAT, StatusCode::OK, page),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        })
    }

    /// Whether the control loop answers.
    async fn health(&self) -> Result<Answer, NoSnapshot> {
        self.source.snapshot().await?;
        Ok(text(StatusCode::OK, "ok\n"))
    }

    /// Whether a pod can be attached.
    async fn readiness(&self) -> Result<Answer, NoSnapshot> {
        let problem = self.source.snapshot().await?.ready.problem.clone();
        Ok(problem.map_or_else(|| text(StatusCode::OK, "ok\n"), unavailable))
    }
}

async fn refused(error: &std::io::Error) {
    tracing::debug!(%error, "a client of the metrics was not accepted");
    sleep(REST).await;
}

fn unavailable(why: String) -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, why + "\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    of_type(TEXT, status, body)
}

fn of_type(kind: &'static str, status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
