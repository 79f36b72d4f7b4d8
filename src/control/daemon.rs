//! The daemon: one thread, one event loop over netlink notifications, the configuration file, the
//! control socket, signals and timers. It ends on SIGTERM, SIGINT or [`Request::Leave`] and for no other reason.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};

use super::api::{Reply, Request};
use super::config_file::{ConfigFile, ReloadError};
use super::kernel::{Kernel, KernelError};
use super::kubernetes::Source;
use super::lifecycle::Starter;
use super::netlink::{Monitor, RulesetMonitor, RulesetNews};
use super::nft;
use super::node::Node;
use super::notes::{self, Notes};
use super::originals::{Originals, OriginalsError};
use super::pace::Pace;
use super::pod_news::{PodNews, Pods};
use super::runtime::{Namespace, RuntimeDir, RuntimeError};
use super::server::{Answer, Call, Server, ServerError};
use super::store::{Store, StoreError};
use super::waits::{news, pod_news, readiness, ruleset_news, told, touched};
use super::watch::DirWatch;
use crate::confine::{self, ConfineError};
use crate::telemetry::Exporter;

/// Notifications come in swarms: one look at the kernel serves all that arrive within this time.
const NEWS_DEBOUNCE: Duration = Duration::from_millis(50);

/// An editor may write a file in several steps.
const FILE_DEBOUNCE: Duration = Duration::from_millis(200);

/// A look at the kernel is taken this often even when nothing was heard,
const RESYNC: Duration = Duration::from_secs(30);
/// and this soon when something has gone wrong, then rarer and rarer: a peer may be down for days.
const RESYNC_UNSETTLED: Duration = Duration::from_secs(2);

/// How often devices are looked at for what the kernel tells nobody of.
const PATROL: Duration = Duration::from_secs(1);

/// How often the own ends of all pods are looked at even when nothing was heard of them.
const AUDIT: Duration = Duration::from_secs(30);

/// How often what translates addresses is looked at, of which not all is heard.
const WATCH: Duration = Duration::from_secs(1);

/// How often a data plane repairs its attachments and frees what its workers no longer read.
const MAINTAIN: Duration = Duration::from_millis(100);

/// How long clients have to take their last replies.
const LAST_REPLIES: Duration = Duration::from_secs(1);

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ReloadError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Originals(#[from] OriginalsError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("cannot listen to the kernel: {0}")]
    Loop(#[from] io::Error),
}

/// Runs the daemon in the calling thread's network namespace until it is told to stop, confined to what it needs; its
/// system calls are filtered if `filters` says so.
pub fn run(config: &Path, runtime_dir: &Path, filters: bool, start: Starter) -> Result<(), DaemonError> {
    confine::daemon(filters)?;
    let path = std::path::absolute(config)?;
    let config = ConfigFile::open(&path)?;
    raise_descriptor_limit();
    let _namespace = Namespace::claim()?;
    let dir = RuntimeDir::claim(runtime_dir)?;
    dir.dedicate()?;
    let (store, torn) = Store::open(&dir.pods())?;
    let mut kernel = Kernel::new()?;
    kernel.remember(Originals::open(&dir.sysctls())?);
    let mut node = Node::new(config, kernel, store, Notes::open(dir.path())?, start);
    if let Some(error) = torn {
        tracing::error!("{error}");
        node.notice(error.to_string());
    }
    node.remove_orphans();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = Server::bind(&dir.socket())?;
        let (send, calls) = mpsc::channel(1);
        let exporter = Exporter::new(dir.metrics(), send.clone());
        let events = Events::new(&path, dir.path(), tokio::spawn(server.serve(send)), calls, node.netlink_port())?;
        tracing::info!(config = %path.display(), runtime_dir = %runtime_dir.display(), "podwire starts");
        Daemon::new(node, exporter).run(events).await;
        Ok(())
    })
}

/// Takes as many descriptors as may be had: each pod needs one of its own, and the soft limit is low by custom, for
/// programs that use `select`.
fn raise_descriptor_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}

/// Where events come from.
struct Events {
    news: AsyncFd<Monitor>,
    /// `None` when pods cannot be listened to.
    pod_news: Option<AsyncFd<PodNews>>,
    /// `None` where the kernel has no nftables.
    rulesets: Option<AsyncFd<RulesetMonitor>>,
    config: Option<DirWatch>,
    notes: Option<DirWatch>,
    server: JoinHandle<()>,
    calls: mpsc::Receiver<Call>,
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

enum Event {
    News,
    PodNews,
    Rulesets(RulesetNews),
    ConfigTouched,
    NotesTouched,
    /// The Kubernetes API has told something.
    Cluster,
    Call(Box<Call>),
    Reload,
    Timer,
    Stop,
}

impl Events {
    fn new(
        config: &Path,
        runtime_dir: &Path,
        server: JoinHandle<()>,
        calls: mpsc::Receiver<Call>,
        own: u32,
    ) -> Result<Self, DaemonError> {
        let config = DirWatch::around(config).map_err(|error| {
            tracing::warn!("{error}; send SIGHUP after a change of the configuration");
        });
        let notes = DirWatch::new(&notes::dir(runtime_dir)).map_err(|error| {
            tracing::warn!("{error}; it is looked at every {} s", AUDIT.as_secs());
        });
        let pod_news = PodNews::open().map_err(|error| {
            tracing::warn!(%error, "cannot listen to pods; they are looked at every {} s", AUDIT.as_secs());
        });
        let rulesets = RulesetMonitor::open(nft::TABLE).map_err(|error| {
            tracing::info!(%error, "no notifications of nftables");
        });
        Ok(Self {
            news: readiness(Monitor::open(own)?)?,
            pod_news: pod_news.ok().map(readiness).transpose()?,
            rulesets: rulesets.ok().map(readiness).transpose()?,
            config: config.ok(),
            notes: notes.ok(),
            server,
            calls,
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits, for a bounded time, until the clients that are being served have their replies.
    async fn finish(mut self) {
        self.server.abort();
        let served = async { while self.calls.recv().await.is_some() {} };
        let _ = timeout(LAST_REPLIES, served).await;
    }

    /// The next event, or [`Event::Timer`] at `deadline`. What is not listened to waits, or is lost: a look finds it.
    async fn next(&mut self, deadline: Instant, listen: Listen, source: Option<&mut Source>) -> Event {
        tokio::select! {
            _ = self.terminate.recv() => Event::Stop,
            _ = self.interrupt.recv() => Event::Stop,
            _ = self.reload.recv() => Event::Reload,
            () = touched(self.config.as_ref()) => Event::ConfigTouched,
            () = touched(self.notes.as_ref()) => Event::NotesTouched,
            () = told(source) => Event::Cluster,
            call = self.calls.recv() => call.map_or(Event::Stop, |call| Event::Call(Box::new(call))),
            () = news(&mut self.news), if listen.to_node => Event::News,
            () = pod_news(self.pod_news.as_mut()), if listen.to_pods => Event::PodNews,
            news = ruleset_news(self.rulesets.as_mut()), if listen.to_rulesets => Event::Rulesets(news),
            () = sleep_until(deadline.into()) => Event::Timer,
        }
    }
}

/// Which notifications of the kernel are waited for: none of what is to be looked at anyway, so that a flood of them
/// takes no time.
#[derive(Clone, Copy)]
struct Listen {
    to_node: bool,
    to_pods: bool,
    to_rulesets: bool,
}

/// What is to be done when.
struct Daemon {
    node: Node,
    exporter: Exporter,
    reload_at: Option<Instant>,
    maintain_at: Instant,
    reconcile: Pace,
    /// A look is due soon, because something has changed.
    is_called: bool,
    patrol: Pace,
    /// Due when something was heard of pods.
    mend: Pace,
    audit_at: Instant,
    watch: Pace,
    /// What was heard since the last watch.
    rulesets: RulesetNews,
    /// Due when the Kubernetes API has told something.
    cluster: Pace,
    /// How long until the next look, when nothing is heard.
    resync: Duration,
    was_settled: bool,
}

impl Daemon {
    fn new(node: Node, exporter: Exporter) -> Self {
        let now = Instant::now();
        Self {
            node,
            exporter,
            reload_at: None,
            maintain_at: now,
            reconcile: Pace::new(Some(now), now),
            is_called: true,
            patrol: Pace::new(Some(now), now),
            mend: Pace::new(None, now),
            audit_at: now,
            watch: Pace::new(Some(now), now),
            rulesets: RulesetNews::ALL,
            cluster: Pace::urgent(now),
            resync: RESYNC,
            was_settled: true,
        }
    }

    async fn run(mut self, mut events: Events) {
        self.node.ensure_source();
        loop {
            self.do_what_is_due(&mut events);
            let listen = Listen {
                to_node: !self.is_called,
                to_pods: self.mend.due().is_none(),
                to_rulesets: self.rulesets != RulesetNews::ALL,
            };
            let awaits_cluster = self.cluster.due().is_none();
            match events.next(self.deadline(), listen, self.node.source().filter(|_| awaits_cluster)).await {
                Event::Stop => break,
                Event::News => self.reconcile_by(NEWS_DEBOUNCE),
                Event::PodNews => self.mend_by(NEWS_DEBOUNCE),
                Event::Rulesets(news) => self.hear(news),
                Event::ConfigTouched => {
                    self.reload_at.get_or_insert(Instant::now() + FILE_DEBOUNCE);
                }
                Event::NotesTouched => self.heed_notes(),
                Event::Cluster => self.cluster.ask(Instant::now()),
                Event::Reload => {
                    self.node.reload(Instant::now());
                    self.follow_config();
                }
                Event::Call(call) => {
                    if self.answer(*call) {
                        break;
                    }
                }
                Event::Timer => {}
            }
        }
        self.node.shut_down();
        drop(self.exporter);
        events.finish().await;
    }

    /// When the next timed work is due.
    fn deadline(&self) -> Instant {
        let maintain = self.node.lifecycle.is_open().then_some(self.maintain_at);
        let looks = [&self.reconcile, &self.patrol, &self.mend, &self.watch, &self.cluster].map(Pace::due);
        let (newcomers, probes) = (self.node.newcomers.due(), self.node.prober.due());
        let others = [self.reload_at, maintain, self.node.lifecycle.next_try(), newcomers, probes];
        looks.into_iter().chain(others).flatten().fold(self.audit_at, Instant::min)
    }

    fn do_what_is_due(&mut self, events: &mut Events) {
        let now = Instant::now();
        if self.reload_at.take_if(|at| *at <= now).is_some() && self.node.reload(now) {
            self.follow_config();
        }
        if self.cluster.is_due(now) {
            self.heed_cluster(events);
        }
        // Before the kernel path at start: what is translated must be known when steering begins.
        if self.watch.is_due(now) {
            self.watch();
        }
        if now >= self.maintain_at {
            self.maintain_at = now + MAINTAIN;
            self.node.lifecycle.maintain(now);
        }
        if self.patrol.is_due(now) {
            self.patrol();
        }
        if self.node.newcomers.due().is_some_and(|at| at <= now) {
            self.node.welcome(now);
        }
        let retry = self.node.lifecycle.next_try().is_some_and(|at| at <= now);
        if retry || self.reconcile.is_due(now) {
            self.reconcile(events);
        }
        if self.node.prober.due().is_some_and(|due| due <= now) {
            self.node.probe(now);
        }
        let audits = now >= self.audit_at;
        if audits || self.mend.is_due(now) {
            let heard = events.pod_news.as_mut().map(|news| news.get_mut().take());
            self.mend(&heard.filter(|_| !audits).unwrap_or(Pods::All));
        }
        if audits {
            self.audit_at = now + AUDIT;
            self.heed_notes();
        }
    }

    fn heed_notes(&mut self) {
        if self.node.heed_notes(Instant::now()) {
            self.reconcile_by(NEWS_DEBOUNCE);
        }
    }

    /// Takes what the Kubernetes API has told.
    fn heed_cluster(&mut self, events: &mut Events) {
        let begin = Instant::now();
        if self.node.heed_cluster(begin) {
            self.was_settled = true;
            self.reconcile_by(NEWS_DEBOUNCE);
        }
        // Our rules know the peers too. To run `nft` takes longer than all else.
        self.watch.ask(Instant::now());
        events.news.get_mut().expect(self.node.take_echoes());
        self.cluster.looked(begin, Instant::now(), None);
    }

    /// Takes note of news and looks at once, but for the share of time that it may take.
    fn hear(&mut self, news: RulesetNews) {
        self.rulesets |= news;
        self.watch.ask(Instant::now());
    }

    fn watch(&mut self) {
        let begin = Instant::now();
        self.node.watch_translation(std::mem::take(&mut self.rulesets), begin);
        self.watch.looked(begin, Instant::now(), Some(WATCH));
    }

    fn follow_config(&mut self) {
        self.node.ensure_source();
        self.was_settled = true;
        self.reconcile_by(NEWS_DEBOUNCE);
    }

    /// Answers a call; true when the daemon is to end.
    fn answer(&mut self, (request, tell): Call) -> bool {
        let changes =
            matches!(request, Request::PodsAttach(_) | Request::PodsDetach { .. } | Request::PodsCollect { .. });
        let answer = self.node.answer(request, Instant::now());
        let leaves = matches!(answer, Answer::Reply(Reply::Leaving));
        // A client that has gone away needs no answer.
        let _ = tell.send(answer);
        if changes {
            self.node.newcomers.hear(Instant::now());
            self.reconcile_by(NEWS_DEBOUNCE);
        }
        leaves
    }

    /// Looks at the kernel within `delay`, or as soon as it has its rest.
    fn reconcile_by(&mut self, delay: Duration) {
        self.reconcile.ask(Instant::now() + delay);
        self.is_called = true;
    }

    fn reconcile(&mut self, events: &mut Events) {
        let begin = Instant::now();
        // What was told until now is what this look finds.
        let _ = events.news.get_mut().drain();
        self.is_called = false;
        if self.node.membership.defers_ranges() {
            self.node.heed_cluster(begin);
        }
        self.node.reconcile(begin);
        self.node.announce();
        self.export();
        if events.pod_news.as_mut().is_some_and(|news| news.get_mut().follow(self.node.store.pods())) {
            self.mend_by(Duration::ZERO);
        }
        self.resync = match (self.node.is_settled(), self.was_settled) {
            (true, _) => RESYNC,
            (false, true) => RESYNC_UNSETTLED,
            (false, false) => (self.resync * 2).min(RESYNC),
        };
        self.was_settled = self.node.is_settled();
        self.reconcile.looked(begin, Instant::now(), Some(self.resync));
    }

    /// Serves the metrics as the configuration says, and keeps why that fails.
    fn export(&mut self) {
        let problem = self.exporter.ensure(self.node.config.metrics).err().map(|error| error.to_string());
        if let Some(text) = problem.as_ref().filter(|_| problem != self.node.unexported) {
            tracing::error!("{text}");
        }
        self.node.unexported = problem;
    }

    /// Looks at the kernel soon when something has changed that it told nobody of, and detaches pods that have ended.
    fn patrol(&mut self) {
        let begin = Instant::now();
        if self.node.has_drifted() {
            self.reconcile_by(Duration::ZERO);
        }
        self.node.reclaim(begin);
        self.patrol.looked(begin, Instant::now(), Some(PATROL));
    }

    /// Looks into pods within `delay`, or as soon as it has its rest.
    fn mend_by(&mut self, delay: Duration) {
        self.mend.ask(Instant::now() + delay);
    }

    fn mend(&mut self, pods: &Pods) {
        let begin = Instant::now();
        self.node.mend_pods(pods, begin);
        self.mend.looked(begin, Instant::now(), None);
    }
}
