//! The Kubernetes API as the source of the desired state: what its Node objects say becomes the node's configuration, and
//! the node's own object says how others reach it. Nothing above this module sees a type of Kubernetes.
//!
//! ```text
//!   API server ──▶ follow: list, watch ──▶ roster ──▶ View ──▶ control loop ──▶ Config::join
//!        ▲                                                         │
//!        └───────────── publish: one patch ◀── Announcement ◀──────┘
//! ```
//!
//! When the server is away, what it said last stays; a daemon that starts meanwhile begins with what [`cache`] has of it. The tasks of a [`Source`] end with it.

mod announce;
mod cache;
mod connect;
mod error;
mod flannel;
mod follow;
#[cfg(fuzzing)]
mod fuzz;
mod go_json;
mod net_conf;
mod object;
mod publish;
mod roster;

pub mod subnet_env;

use std::future::pending;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use announce::Announcement;
#[cfg(fuzzing)]
pub use fuzz::fuzz;
pub use roster::Cluster;

use self::follow::Follower;
use super::api::KubernetesState;
use crate::config::Kubernetes;

/// What is known of the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub state: KubernetesState,
    /// Why the server is away.
    pub why: Option<String>,
    /// Its address.
    pub server: Option<String>,
    /// As of the last sign of life; none before the first list.
    pub cluster: Option<Arc<Cluster>>,
    /// When an earlier daemon kept `cluster`, in RFC 3339, if this one has not heard of it.
    pub as_of: Option<String>,
}

/// When the server last showed that it is alive.
#[derive(Debug, Default)]
struct LastSign(Mutex<Option<Instant>>);

impl LastSign {
    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        at.map(|at| now.saturating_duration_since(at))
    }
}

/// What a follower notes of time, for its source.
#[derive(Debug)]
struct Signs {
    last: Arc<LastSign>,
    heard: Arc<Heard>,
}

/// When the oldest news were heard that nobody has taken yet.
#[derive(Debug, Default)]
struct Heard(Mutex<Option<Instant>>);

impl Heard {
    fn note(&self, at: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(at);
    }

    fn take(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A running source; ends when dropped.
#[derive(Debug)]
pub struct Source {
    settings: Kubernetes,
    own_name: String,
    /// What the file of that name said at the start.
    net_conf: Option<Vec<u8>>,
    view: watch::Receiver<View>,
    last_sign: Arc<LastSign>,
    heard: Arc<Heard>,
    announce: watch::Sender<Option<Announcement>>,
    task: JoinHandle<()>,
}

impl Source {
    /// Starts one for the node of that name. Needs a tokio runtime.
    pub fn start(settings: Kubernetes, own_name: &str) -> Self {
        let (send, view) = watch::channel(View {
            state: KubernetesState::Connecting,
            why: None,
            server: None,
            cluster: None,
            as_of: None,
        });
        let (announce, announced) = watch::channel(None);
        let last_sign = Arc::new(LastSign::default());
        let heard = Arc::new(Heard::default());
        let signs = Signs { last: Arc::clone(&last_sign), heard: Arc::clone(&heard) };
        let follower = Follower::new(settings.clone(), own_name.to_owned(), send, signs, announced);
        let task = tokio::spawn(follower.run());
        let net_conf = net_conf_file(&settings);
        Self { settings, own_name: own_name.to_owned(), net_conf, view, last_sign, heard, announce, task }
    }

    /// Whether this is the source that the settings ask for, and the file of net-conf.json is as it was.
    pub fn is_for(&self, settings: &Kubernetes, own_name: &str) -> bool {
        self.settings == *settings && self.own_name == own_name && self.net_conf == net_conf_file(settings)
    }

    /// Waits until something has changed since the last call of [`Source::view`].
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            pending::<()>().await;
        }
    }

    /// What is known now.
    pub fn view(&mut self) -> View {
        self.view.borrow_and_update().clone()
    }

    /// When the oldest change was heard that [`Source::view`] tells of since the last call.
    pub fn take_heard(&self) -> Option<Instant> {
        self.heard.take()
    }

    /// How long ago the server last showed that it is alive.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        self.last_sign.age(now)
    }

    /// Has the node's own object say this from now on.
    pub fn announce(&self, announcement: Announcement) {
        self.announce.send_if_modified(|announced| announced.replace(announcement) != Some(announcement));
    }
}

fn net_conf_file(settings: &Kubernetes) -> Option<Vec<u8>> {
    std::fs::read(settings.net_conf.as_ref()?).ok()
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}
