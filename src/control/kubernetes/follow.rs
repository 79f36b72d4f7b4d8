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
use super::cache::{Cache, Recalled};
use super::connect::{ANSWER, connect, net_conf, request};
use super::error::{SourceError, chain};
use super::object::{Object, Page};
use super::publish::Publisher;
use super::roster::Roster;
use super::{Signs, View};
use crate::config::Kubernetes;
use crate::control::api::KubernetesState;
use crate::control::pace::Pace;

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
    signs: Signs,
    announced: watch::Receiver<Option<Announcement>>,
    publisher: Publisher,
    rests: ExponentialBackoff,
    /// None before the first list, and again when a list is due.
    version: Option<String>,
    /// Survives a loss of the server.
    roster: Option<Roster>,
    /// When the oldest change of it was heard that is not told of yet, and when it is to be: what a roster comes to takes
    /// time in proportion to the nodes.
    arrived: Option<Instant>,
    telling: Pace,
    /// The text of `net-conf.json` that the roster was made with.
    net_conf: String,
    server: String,
    cache: Option<Cache>,
    /// When the roster was kept by an earlier daemon, unless this one has listed the nodes.
    as_of: Option<String>,
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
        signs: Signs,
        announced: watch::Receiver<Option<Announcement>>,
    ) -> Self {
        let cache = settings.cache.clone().map(|path| Cache::new(path, own_name.clone()));
        Self {
            publisher: Publisher::new(own_name.clone()),
            settings,
            own_name,
            view,
            signs,
            announced,
            rests: rests(),
            version: None,
            roster: None,
            arrived: None,
            telling: Pace::urgent(Instant::now()),
            net_conf: String::new(),
            server: String::new(),
            cache,
            as_of: None,
        }
    }

    pub async fn run(mut self) {
        loop {
            let Err(error) = self.follow().await;
            if self.telling.due().is_some() {
                self.tell_cluster();
            }
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
            view.server = Some(server.clone());
            is_new
        });
        self.server = server;
        if self.roster.is_none() {
            self.recall();
        }
        loop {
            let version = match self.version.clone() {
                Some(version) => version,
                None => self.list(&client).await?,
            };
            self.watch(&client, &version).await?;
        }
    }

    /// Begins with what an earlier daemon has kept, until the server answers.
    fn recall(&mut self) {
        let Some(cache) = &self.cache else { return };
        match cache.recall(&self.server) {
            Ok(Some(Recalled { roster, net_conf, saved_at })) => {
                let as_of = saved_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                tracing::info!(as_of, "Kubernetes: beginning with the nodes of {}", cache.path().display());
                (self.roster, self.net_conf, self.as_of) = (Some(roster), net_conf, Some(as_of));
                self.tell_cluster();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "Kubernetes: {} is of no use", cache.path().display()),
        }
    }

    /// Takes the whole list, and with it what net-conf.json says now; returns its version.
    async fn list(&mut self, client: &Client) -> Result<String, SourceError> {
        let (net_conf, text) = net_conf(client, self.settings.net_conf.as_deref()).await?;
        self.signs.last.note();
        let mut roster = Roster::new(&self.own_name, net_conf);
        let mut params = ListParams::default().limit(PAGE);
        let version = loop {
            let list = Request::new(NODES).list(&params).map_err(|error| SourceError::Client(chain(&error)))?;
            let page: Page = request(client, "list nodes", list).await?;
            self.signs.last.note();
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
        (self.roster, self.net_conf, self.as_of) = (Some(roster), text, None);
        self.version = Some(version.clone());
        self.touch_cache();
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
            let cached = self.cache.as_ref().and_then(Cache::due);
            let telling = self.telling.due();
            tokio::select! {
                event = events.next() => {
                    let Some(event) = event else { break };
                    heard = Instant::now();
                    self.take_all(event, &mut events, heard)?;
                    // What went wrong with a patch may be over.
                    if self.publisher.problem().is_some() {
                        self.telling.ask(heard);
                    }
                    self.rests = rests();
                }
                changed = self.announced.changed() => if changed.is_err() { return Err(SourceError::Closed) },
                () = sleep_until(due.unwrap_or(heard + SILENCE).into()), if due.is_some() => self.publish(client).await,
                () = sleep_until(telling.unwrap_or(heard).into()), if telling.is_some() => self.tell_cluster(),
                () = sleep_until(cached.unwrap_or(heard + SILENCE).into()), if cached.is_some() => self.write_cache(),
                () = sleep_until((heard + SILENCE).into()) => return Err(SourceError::Silent(SILENCE)),
            }
        }
        if begun.elapsed() < BRIEF { Err(SourceError::Closed) } else { Ok(()) }
    }

    fn touch_cache(&mut self) {
        if let Some(cache) = &mut self.cache {
            cache.touch();
        }
    }

    fn write_cache(&mut self) {
        if let (Some(cache), Some(roster)) = (&mut self.cache, &self.roster) {
            cache.write(&self.server, &self.net_conf, roster);
        }
    }

    /// Takes an event, which was heard at `heard`, and all that are there after it; what has changed is to be told.
    fn take_all(
        &mut self,
        event: kube::Result<WatchEvent<Object>>,
        events: &mut Events,
        heard: Instant,
    ) -> Result<(), SourceError> {
        let mut next = Some(event);
        while let Some(event) = next {
            let event = event.map_err(|error| SourceError::of_answer("read the watch of nodes", &error))?;
            self.signs.last.note();
            if self.take(event)? {
                self.arrived.get_or_insert(heard);
                self.telling.ask(heard);
                self.touch_cache();
            }
            next = events.next().now_or_never().flatten();
        }
        Ok(())
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
                if node.name == self.own_name {
                    // If it comes back nobody has changed it.
                    self.publisher = Publisher::new(self.own_name.clone());
                }
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
            self.signs.last.note();
            self.roster.as_mut().map(|roster| roster.apply(own));
        }
        self.tell_cluster();
    }

    /// Publishes what the nodes come to.
    fn tell_cluster(&mut self) {
        let begin = Instant::now();
        let arrived = self.arrived.take();
        let Some(roster) = &self.roster else { return };
        let mut cluster = roster.cluster(self.announced.borrow().as_ref());
        cluster.problems.extend(self.publisher.problem());
        cluster.problems.extend(self.as_of.as_ref().map(|as_of| {
            format!(
                "the nodes are as an earlier podwire knew them at {as_of}; the API has not answered since the start"
            )
        }));
        let as_of = self.as_of.clone();
        let cluster = Some(Arc::new(cluster));
        self.view.send_if_modified(|view| {
            let has_changed = (&view.cluster, &view.as_of) != (&cluster, &as_of);
            (view.cluster, view.as_of) = (cluster, as_of);
            if let Some(arrived) = arrived.filter(|_| has_changed) {
                self.signs.heard.note(arrived);
            }
            has_changed
        });
        self.telling.looked(begin, Instant::now(), None);
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
