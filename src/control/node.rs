//! This node: the configuration in force, the kernel path, the pods, and the data plane above
//! them. Every method runs on the control thread and leaves the node consistent, whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::IpAddr;
use std::sync::Weak;
use std::time::Instant;

use super::api::{Cause, Diagnosis};
use super::config_file::{ConfigFile, ReloadError, log_warnings};
use super::host_side::Stranger;
use super::journal::Journal;
use super::kernel::{Kernel, Reconciled};
use super::lifecycle::{Lifecycle, Starter};
use super::membership::Membership;
use super::nat::Nat;
use super::netlink::{Echo, RulesetNews};
use super::newcomers::Newcomers;
use super::notes::Notes;
use super::plan::{Change, Tunnels};
use super::pod_news::Pods;
use super::probe::Prober;
use super::reclaim::Ended;
use super::ruleset::Ruleset;
use super::shaping::Shaped;
use super::store::Store;
use super::sysctl;
use super::trace::Names;
use super::underlay::{Hop, NoHop};
use super::uninstall::remove_programs;
use super::vtep::Vtep;
use super::wiring::Pod;
use crate::config::{Config, Mode, Vxlan};
use crate::ids::{HubEnds, PodId};

/// The state of one node.
pub struct Node {
    pub(super) started: Instant,
    pub(super) file: ConfigFile,
    /// That of the file, and what the Kubernetes API adds.
    pub(super) config: Config,
    pub(super) membership: Membership,
    pub(super) kernel: Kernel,
    pub(super) store: Store,
    pub(super) notes: Notes,
    pub(super) lifecycle: Lifecycle,
    pub(super) observed: Observed,
    pub(super) nat: Nat,
    pub(super) rules: Ruleset,
    pub(super) newcomers: Newcomers,
    /// What [`Node::mend_pods`] last found wrong with a pod and could not mend.
    pub(super) faults: BTreeMap<PodId, String>,
    /// Pods that were forgotten, as last seen.
    pub(super) strangers: Vec<Stranger>,
    pub(super) journal: Journal,
    pub(super) ended: Ended,
    pub(super) prober: Prober,
    /// What the log knows of peers, by name.
    ill_peers: BTreeMap<String, Cause>,
    /// The failures that the log knows of and that still are.
    told: BTreeSet<String>,
    /// What went wrong at start and stays so.
    notices: Vec<String>,
    /// Why metrics are not served.
    pub(super) unexported: Option<String>,
    /// What a trace calls things, while there is one.
    pub(super) names: Weak<Names>,
    /// What the kernel will tell of our own changes without saying that they are.
    pub(super) echoes: Vec<Echo>,
}

/// What the last [`Node::reconcile`] found.
#[derive(Debug, Default)]
pub struct Observed {
    pub vtep: Option<Vtep>,
    pub hub: Option<HubEnds>,
    /// The VXLAN devices, as the last look has left them.
    pub tunnels: Option<Tunnels>,
    /// This node's own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// The way to each peer's end of a tunnel, by its underlay address.
    pub hops: BTreeMap<IpAddr, Result<Hop, NoHop>>,
    /// The uplink's reverse path filter lets pods' packets in that come without the tunnel.
    pub takes_bare: bool,
    /// Pods that the data plane cannot serve: their devices are not there, or are about to go.
    pub gone: BTreeSet<PodId>,
    /// Pods' devices that have something of others on them which only the kernel path passes.
    pub shaped: Shaped,
    /// What keeps the node from being as wanted.
    pub problems: Vec<String>,
    /// What could not be put right. It may be a change that came between the look and the repair, which the next look
    /// finds: only what that fails at too is told of.
    pub failures: BTreeSet<String>,
}

impl Observed {
    /// Our end of the tunnel, once it is there with all its addresses.
    pub fn tunnel_end(&self) -> Option<&Vtep> {
        self.vtep.as_ref().filter(|vtep| vtep.addresses.iter().all(|own| self.addresses.contains(own)))
    }
}

impl Node {
    /// A node that is not yet as its configuration wants it: see [`Node::reconcile`].
    pub fn new(
        (file, config): (ConfigFile, Config),
        kernel: Kernel,
        store: Store,
        notes: Notes,
        start: Starter,
    ) -> Self {
        let node = Self {
            started: Instant::now(),
            file,
            membership: Membership::new(config.clone()),
            config,
            kernel,
            store,
            notes,
            lifecycle: Lifecycle::new(start),
            observed: Observed::default(),
            nat: Nat::new(),
            rules: Ruleset::default(),
            newcomers: Newcomers::new(Instant::now()),
            faults: BTreeMap::new(),
            strangers: Vec::new(),
            journal: Journal::default(),
            ended: Ended::new(),
            prober: Prober::new(),
            ill_peers: BTreeMap::new(),
            told: BTreeSet::new(),
            notices: Vec::new(),
            unexported: None,
            names: Weak::new(),
            echoes: Vec::new(),
        };
        node.strays().for_each(|stray| tracing::error!("{stray}"));
        node
    }

    /// By which the kernel names the socket that changes are asked for by.
    pub fn netlink_port(&self) -> u32 {
        self.kernel.netlink.port()
    }

    /// What the kernel will tell of our own changes since the last call.
    pub fn take_echoes(&mut self) -> Vec<Echo> {
        std::mem::take(&mut self.echoes)
    }

    /// Adds what `status` is to show among the problems from now on.
    pub fn notice(&mut self, text: String) {
        self.notices.push(text);
    }

    /// Takes the configuration file as it is now: whole, or not at all; says whether it is another one than before.
    pub fn reload(&mut self, now: Instant) -> bool {
        let error = match self.take_config(now) {
            Ok(is_new) => return is_new,
            Err(error) => error.to_string(),
        };
        let is_new = self.file.last_error.as_ref() != Some(&error);
        if is_new {
            tracing::error!("the configuration was refused, the old one stays: {error}");
            self.file.last_error = Some(error);
        }
        is_new
    }

    fn take_config(&mut self, now: Instant) -> Result<bool, ReloadError> {
        let Some(file) = self.file.read()? else { return Ok(false) };
        let config = self.joined(&file);
        // The ranges that the API gives a node are looked at as they come.
        if config.kubernetes.is_none() {
            self.check_pods(&config)?;
        }
        self.file.last_error = None;
        self.membership.set_file(file);
        if config == self.config {
            return Ok(true);
        }
        log_warnings(&config);
        self.put_in_force(config, now);
        Ok(true)
    }

    /// Has another configuration in force from now on.
    pub(super) fn put_in_force(&mut self, config: Config, now: Instant) {
        let old = std::mem::replace(&mut self.config, config);
        self.file.generation += 1;
        tracing::info!(generation = self.file.generation, "the configuration has changed");
        // The VXLAN device is made anew; all else that takes a new data plane is in its settings.
        let direct_routing = self.config.vxlan.direct_routing;
        if (Vxlan { direct_routing, ..old.vxlan }) != self.config.vxlan {
            self.lifecycle.stop();
        }
        // It was observed for the old one.
        (self.observed.vtep, self.observed.hops) = (None, BTreeMap::new());
        self.reconcile(now);
        self.watch_translation(RulesetNews::default(), now);
    }

    fn check_pods(&self, config: &Config) -> Result<(), ReloadError> {
        match self.outside(config).next() {
            Some((pod, address)) => Err(ReloadError::PodOutside(pod.name.clone(), address)),
            None => Ok(()),
        }
    }

    /// The addresses of pods that a configuration's ranges do not hold.
    pub(super) fn outside<'n>(&'n self, config: &'n Config) -> impl Iterator<Item = (&'n Pod, IpAddr)> {
        let held = |address: &IpAddr| {
            config.awaits_members() || config.node.pod_cidrs.iter().any(|cidr| cidr.contains(address))
        };
        let addresses =
            self.store.pods().iter().flat_map(|pod| pod.addresses.iter().map(move |address| (pod, *address)));
        addresses.filter(move |(_, address)| !held(address))
    }

    /// What is wrong with pods outside of the ranges in force. A reload leaves none; the file may have changed while
    /// no daemon ran.
    pub(super) fn strays(&self) -> impl Iterator<Item = String> {
        let outside = self.outside(&self.config);
        outside.map(|(pod, address)| {
            format!("pod {} has the address {address}, which is outside of node.pod_cidrs; detach it", pod.name)
        })
    }

    /// Brings kernel and data plane to the desired state. What fails is kept as a problem, and the
    /// rest is done.
    pub fn reconcile(&mut self, now: Instant) {
        // What an earlier daemon has left carries the pods until the ranges are known.
        if self.config.awaits_members() {
            self.follow_peers(now);
            return self.drive(now);
        }
        self.membership.note_look();
        self.meet_strangers();
        let mut observed = Observed::default();
        let mut changes = Vec::new();
        let pods = self.store.pods();
        let kept = match self.kernel.reconcile(&self.config, pods) {
            Ok(Reconciled { vtep, tunnels, done }) => {
                observed.vtep = Some(vtep);
                observed.tunnels = tunnels;
                Ok(done)
            }
            Err(error) => {
                observed.problems.push(error.to_string());
                if error.says_nothing() {
                    observed.vtep.clone_from(&self.observed.vtep);
                    observed.tunnels = self.observed.tunnels;
                }
                self.kernel.keep_pods(&self.config, pods)
            }
        };
        match kept {
            Ok(done) => {
                changes = done.changes;
                observed.failures = done.failures.into_iter().collect();
                observed.gone = done.gone;
            }
            Err(error) => {
                observed.problems.push(error.to_string());
                observed.gone.clone_from(&self.observed.gone);
            }
        }
        let uplink = &self.config.node.uplink;
        observed.takes_bare = sysctl::has_strict_rp_filter(uplink).is_ok_and(|is_strict| !is_strict);
        if let Some(vtep) = &observed.vtep {
            let underlays = vtep.ends_used(&self.config.peers);
            match self.kernel.next_hops(&vtep.uplink, &underlays) {
                Ok(hops) => observed.hops = underlays.into_iter().zip(hops).collect(),
                Err(error) => {
                    observed.problems.push(error.to_string());
                    if error.says_nothing() {
                        observed.hops.clone_from(&self.observed.hops);
                    }
                }
            }
        }
        match self.kernel.netlink.own_addresses() {
            Ok(own) => observed.addresses = own,
            Err(error) => observed.problems.push(format!("cannot list the node's addresses: {error}")),
        }
        observed.problems.extend(taken_addresses(&self.config, &observed.addresses));
        match self.hub(&mut changes) {
            Ok(hub) => observed.hub = hub,
            Err(error) => observed.problems.push(error.to_string()),
        }
        self.observe_shaping(&mut observed, now);
        self.journal.tell_changes(&changes, now);
        self.note(observed, now);
        self.follow_peers(now);
        self.drive(now);
        self.write_subnet_env();
    }

    /// Has the prober know the peers and our end of the tunnel as they are.
    pub(super) fn follow_peers(&mut self, now: Instant) {
        self.prober.follow(&self.config, self.observed.tunnel_end(), self.kernel.known.tunnel, now);
    }

    /// Probes the peers whose turn it is, and tells the log what is new of them.
    pub fn probe(&mut self, now: Instant) {
        for (name, underlay) in self.prober.turn(now) {
            let diagnosis = self.probed(underlay, now).and_then(|probe| probe.diagnosis);
            let Some(diagnosis) = diagnosis else {
                if self.ill_peers.remove(&name).is_some() {
                    self.journal.tell_cure(&format!("peer {name} answers as it should again"), now);
                }
                continue;
            };
            let Diagnosis { cause, summary, .. } = &diagnosis;
            if self.ill_peers.get(&name) != Some(cause) {
                self.journal.tell_problem(&format!("peer {name}: {summary}"), now);
                self.ill_peers.insert(name, *cause);
            }
        }
    }

    /// Looks at the own ends of pods, puts them right, and says what cannot be.
    pub fn mend_pods(&mut self, pods: &Pods, now: Instant) {
        let mtu = self.observed.vtep.as_ref().map(|vtep| u32::from(vtep.mtu));
        let mut changes = Vec::new();
        let gone = &self.observed.gone;
        self.faults.retain(|id, _| !gone.contains(id));
        for pod in self.store.pods().iter().filter(|pod| pods.contains(pod.id) && !gone.contains(&pod.id)) {
            let fault = match pod.mend(mtu) {
                Ok(mended) => {
                    changes.extend(mended.changes);
                    mended.failures.first().map(ToString::to_string)
                }
                Err(error) => Some(error.to_string()),
            };
            let Some(fault) = fault else {
                self.faults.remove(&pod.id);
                continue;
            };
            if self.faults.get(&pod.id) != Some(&fault) {
                self.journal.tell_problem(&fault, now);
                self.faults.insert(pod.id, fault);
            }
        }
        self.journal.tell_changes(&changes, now);
    }

    /// Whether something has changed of which nothing is heard.
    pub fn has_drifted(&mut self) -> bool {
        // What cannot be looked at is told by the look that follows.
        self.kernel.has_drifted(&self.config, self.store.pods()).unwrap_or(true)
    }

    /// Looks at what may translate addresses, and keeps our own rules; to be called every second or so, and at once
    /// when `news` came.
    pub fn watch_translation(&mut self, news: RulesetNews, now: Instant) {
        let look = self.nat.look(news.chains, now);
        if look.has_conntrack {
            self.lifecycle.renew();
        }
        if (look.has_conntrack || look.has_new_check) && self.observed.vtep.is_some() {
            self.drive(now);
        }
        if self.config.awaits_members() {
            return;
        }
        self.rules.ensure(&self.config, news.table || look.is_full);
    }

    /// Brings the data plane to what was last observed and the pods as they are now.
    pub(super) fn drive(&mut self, now: Instant) {
        self.tell_names();
        let view = self.view();
        self.lifecycle.drive(&self.wanted(), &view, now);
    }

    /// Whether all is as wanted. If not, it may become so without a notification.
    pub fn is_settled(&self) -> bool {
        let Observed { problems, failures, hops, .. } = &self.observed;
        problems.is_empty()
            && failures.is_empty()
            && hops.values().all(Result::is_ok)
            && !self.lifecycle.has_fault()
            && self.prober.problem().is_none()
    }

    /// All that is wrong now.
    pub(super) fn problems(&self) -> Vec<String> {
        let Observed { problems, failures, .. } = &self.observed;
        let seen = self
            .notices
            .iter()
            .chain(self.membership.problems())
            .chain(problems)
            .chain(failures)
            .chain(self.faults.values());
        let rules = self.rules.problem().map(ToString::to_string);
        let strangers = self.strangers.iter().map(Stranger::advice);
        let probes = self.prober.problem().map(ToString::to_string);
        let told = seen.cloned().chain(self.strays()).chain(strangers).chain(rules).chain(probes);
        told.chain(self.unexported.clone()).collect()
    }

    /// Hands over to the kernel path. Programs, hub and kernel path stay as they are, for the next daemon.
    pub fn shut_down(&mut self) {
        self.lifecycle.stop();
        tracing::info!("stopped; the wiring of {} pod(s) stays", self.store.pods().len());
    }

    /// Keeps what was observed, and logs the problems that are new and the failures that are not.
    fn note(&mut self, observed: Observed, now: Instant) {
        let news = observed.problems.iter().filter(|problem| !self.observed.problems.contains(problem));
        let repeated = observed.failures.intersection(&self.observed.failures);
        let untold = repeated.filter(|failure| !self.told.contains(*failure));
        for problem in news.chain(untold) {
            self.journal.tell_problem(problem, now);
        }
        self.told = observed.failures.intersection(&self.observed.failures).cloned().collect();
        self.observed = observed;
    }

    /// The hub as the mode wants it: there, or gone, and with it all that any data plane has attached.
    fn hub(&mut self, changes: &mut Vec<Change>) -> Result<Option<HubEnds>, Box<dyn Error>> {
        if self.config.dataplane.mode != Mode::Kernel {
            return Ok(Some(self.kernel.ensure_hub(changes)?));
        }
        self.lifecycle.close();
        remove_programs(&mut self.kernel)?;
        self.kernel.remove_hub()?;
        Ok(None)
    }
}

/// What is wrong with `config` on a node that has the addresses `own`.
fn taken_addresses(config: &Config, own: &BTreeSet<IpAddr>) -> Vec<String> {
    let listed = config.peers.iter().flat_map(|peer| peer.addresses.iter().map(move |address| (peer, address)));
    let taken = listed.filter(|(_, address)| own.contains(address));
    taken
        .map(|(peer, address)| {
            format!("{address} is an address of this node, and in the addresses of peer {}", peer.name)
        })
        .collect()
}
