//! Follows the API: the whole list of nodes in pages, then what changes, for as long as the daemon runs. What is lost is
//! begun again where it was, or from a new list when the server no longer knows that place.
//!
//! ```text
//!        ┌──── 410, or a refusal ─────────────────┐
//!        ▼                                        │
//!   connect ──▶ net-conf, list ──▶ watch from version ──▶ published view
//!        ▲                             ▲          │
//!        └── after a rest, at most 30 s ┴── cut ──┘
//! ```

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use kube::Client;
use kube::core::params::{ListParams, WatchParams};
use kube::core::{Request, WatchEvent};
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use super::announce::Announcement;
use super::connect::{ANSWER, connect, net_conf, request};
use super::error::{SourceError, chain};
use super::object::{Object, Page};
use super::publish::Publisher;
use super::roster::Roster;
use super::{LastSign, View};
use crate::config::Kubernetes;
use crate::control::api::KubernetesState;

const NODES: &str = "/api/v1/nodes";

/// Nodes on a page of a list, as `client-go` has it.
const PAGE: u32 = 500;

/// The server ends a watch after this many seconds, so that a connection is known to live;
const WATCH_SECS: u32 = 120;
/// when nothing at all is heard for longer, it is dead.
const SILENCE: Duration = Duration::from_secs(150);

/// A watch that ends sooner than this was none.
const BRIEF: Duration = Duration::from_secs(2);

/// Rests between tries: with jitter, since all nodes lose a server at once.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);

type Events = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Object>>> + Send>>;

/// The task that follows.
pub struct Follower {
    settings: Kubernetes,
    own_name: String,
    view: watch::Sender<View>,
    last_sign: Arc<LastSign>,
    announced: watch::Receiver<Option<Announcement>>,
    publisher: Publisher,
    rests: ExponentialBackoff,
    /// None before the first list, and again when a list is due.
    version: Option<String>,
    /// Survives a loss of the server.
    roster: Option<Roster>,
}

fn rests() -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(FIRST_REST).with_max_delay(LONGEST_REST);
    builder.with_jitter().without_max_times().build()
}

impl Follower {
    pub fn new(
        settings: Kubernetes,
        own_name: String,
        view: watch::Sender<View>,
        last_sign: Arc<LastSign>,
        announced: watch::Receiver<Option<Announcement>>,
    ) -> Self {
        let publisher = Publisher::new(own_name.clone());
        Self { settings, own_name, view, last_sign, announced, publisher, rests: rests(), version: None, roster: None }
    }

    pub async fn run(mut self) {
        loop {
            let Err(error) = self.follow().await;
            if !error.is_of_the_way() {
                self.version = None;
            }
            self.tell_state(KubernetesState::Away, Some(error.to_string()));
            let rest = self.rests.next().unwrap_or(LONGEST_REST);
            sleep(rest.min(LONGEST_REST)).await;
        }
    }

    async fn follow(&mut self) -> Result<Infallible, SourceError> {
        let (client, server) = connect(&self.settings).await?;
        self.view.send_if_modified(|view| {
            let is_new = view.server.as_ref() != Some(&server);
            view.server = Some(server);
            is_new
        });
        loop {
            let version = match self.version.clone() {
                Some(version) => version,
                None => self.list(&client).await?,
            };
            self.watch(&client, &version).await?;
        }
    }

    /// Takes the whole list, and with it what net-conf.json says now; returns its version.
    async fn list(&mut self, client: &Client) -> Result<String, SourceError> {
        let net_conf = net_conf(client, self.settings.net_conf.as_deref()).await?;
        self.last_sign.note();
        let mut roster = Roster::new(&self.own_name, net_conf);
        let mut params = ListParams::default().limit(PAGE);
        let version = loop {
            let list = Request::new(NODES).list(&params).map_err(|error| SourceError::Client(chain(&error)))?;
            let page: Page = request(client, "list nodes", list).await?;
            self.last_sign.note();
            page.items.into_iter().flatten().for_each(|node| {
                roster.apply(node);
            });
            match page.metadata.continue_token.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break page.metadata.resource_version,
            }
        };
        if version.is_empty() {
            return Err(SourceError::NoList);
        }
        self.roster = Some(roster);
        self.version = Some(version.clone());
        self.tell_cluster();
        Ok(version)
    }

    /// Follows what changes after `version`, until the server ends the watch in good order.
    async fn watch(&mut self, client: &Client, version: &str) -> Result<(), SourceError> {
        const WHAT: &str = "watch nodes";
        let params = WatchParams { bookmarks: true, timeout: Some(WATCH_SECS), ..WatchParams::default() };
        let watch = Request::new(NODES).watch(&params, version).map_err(|error| SourceError::Client(chain(&error)))?;
        let begun = Instant::now();
        let events = timeout(ANSWER, client.request_events::<Object>(watch)).await;
        let events = events.map_err(|_| SourceError::Late { what: WHAT, limit: ANSWER })?;
        let mut events: Events = Box::pin(events.map_err(|error| SourceError::of_answer(WHAT, &error))?.fuse());
        self.tell_state(KubernetesState::Following, None);
        let mut heard = Instant::now();
        loop {
            let due = self.publisher.due(self.announced.borrow().as_ref(), self.roster.as_ref().and_then(Roster::own));
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { break };
                    heard = Instant::now();
                    // What went wrong with a patch may be over.
                    if self.take_all(event, &mut events)? || self.publisher.problem().is_some() {
                        self.tell_cluster();
                    }
                    self.rests = rests();
                }
                changed = self.announced.changed() => if changed.is_err() { return Err(SourceError::Closed) },
                () = sleep_until(due.unwrap_or(heard + SILENCE).into()), if due.is_some() => self.publish(client).await,
                () = sleep_until((heard + SILENCE).into()) => return Err(SourceError::Silent(SILENCE)),
            }
        }
        if begun.elapsed() < BRIEF { Err(SourceError::Closed) } else { Ok(()) }
    }

    /// Takes an event and all that are there after it; says whether the cluster has changed.
    fn take_all(&mut self, event: kube::Result<WatchEvent<Object>>, events: &mut Events) -> Result<bool, SourceError> {
        let mut has_changed = false;
        let mut next = Some(event);
        while let Some(event) = next {
            let event = event.map_err(|error| SourceError::of_answer("read the watch of nodes", &error))?;
            self.last_sign.note();
            has_changed |= self.take(event)?;
            next = events.next().now_or_never().flatten();
        }
        Ok(has_changed)
    }

    fn take(&mut self, event: WatchEvent<Object>) -> Result<bool, SourceError> {
        let Some(roster) = &mut self.roster else { return Err(SourceError::NoList) };
        match event {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                self.version = Some(node.version.clone());
                Ok(roster.apply(node))
            }
            WatchEvent::Deleted(node) => {
                self.version = Some(node.version);
                Ok(roster.remove(&node.name))
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                Ok(false)
            }
            WatchEvent::Error(status) => Err(SourceError::of_status("follow nodes", &status)),
        }
    }

    async fn publish(&mut self, client: &Client) {
        let announced = *self.announced.borrow();
        let Some((announcement, own)) = announced.zip(self.roster.as_ref().and_then(Roster::own)) else { return };
        // A failure is the publisher's to tell of and to try again.
        if let Ok(Some(own)) = self.publisher.publish(client, &announcement, own).await {
            self.last_sign.note();
            self.roster.as_mut().map(|roster| roster.apply(own));
        }
        self.tell_cluster();
    }

    fn tell_cluster(&mut self) {
        let Some(roster) = &self.roster else { return };
        let announced = self.announced.borrow().map(|announcement| announcement.vtep_mac);
        let mut cluster = roster.cluster(announced);
        cluster.problems.extend(self.publisher.problem());
        let cluster = Some(Arc::new(cluster));
        self.view.send_if_modified(|view| {
            let has_changed = view.cluster != cluster;
            view.cluster = cluster;
            has_changed
        });
    }

    fn tell_state(&self, state: KubernetesState, why: Option<String>) {
        if state == KubernetesState::Following && self.view.borrow().state != state {
            tracing::info!("Kubernetes: following the nodes");
        }
        self.view.send_if_modified(|view| {
            let has_changed = (view.state, &view.why) != (state, &why);
            (view.state, view.why) = (state, why);
            has_changed
        });
    }
}
