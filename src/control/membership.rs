//! The node as a member of a cluster whose registry is the Kubernetes API: what the API says goes into the configuration
//! in force, and how the node is reached goes back. While the API is away, or says of this node what cannot be, what was
//! in force stays.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::api;
use super::durable;
use super::kubernetes::{Announcement, Source, View, subnet_env};
use super::node::Node;
use crate::config::{Config, Joined, OwnNode};

/// What the node knows of its cluster.
#[derive(Debug)]
pub struct Membership {
    /// The configuration of the file alone.
    file: Config,
    source: Option<Source>,
    view: Option<View>,
    /// This node as it is in force.
    own: Option<OwnNode>,
    /// The API gives this node other ranges than those that its pods live in.
    defers_ranges: bool,
    /// What is wrong with nodes, this one or others.
    problems: Vec<String>,
    /// Why `subnet.env` is not written.
    unwritten: Option<String>,
    /// How often the kernel was looked at as a whole.
    looks: u64,
    /// How long changes of the cluster have taken.
    times: Times,
}

/// From a change's arrival at this machine until tables, programs and kernel were as it asks.
#[derive(Debug)]
struct Times(Histogram<u64>);

impl Times {
    /// The longest that is told apart, in microseconds.
    const LONGEST_US: u64 = 60_000_000;

    fn new() -> Self {
        Self(Histogram::new_with_max(Self::LONGEST_US, 3).expect("bounds and digits are what the library takes"))
    }

    fn note(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn status(&self) -> api::ChangeTimes {
        let at = |quantile| self.0.value_at_quantile(quantile);
        api::ChangeTimes { changes: self.0.len(), median_us: at(0.5), p99_us: at(0.99), longest_us: self.0.max() }
    }
}

impl Membership {
    /// Of a node that has heard nothing yet.
    pub fn new(file: Config) -> Self {
        Self {
            file,
            source: None,
            view: None,
            own: None,
            defers_ranges: false,
            problems: Vec::new(),
            unwritten: None,
            looks: 0,
            times: Times::new(),
        }
    }

    /// Takes another file's configuration, which is not yet in force.
    pub fn set_file(&mut self, file: Config) {
        if file.kubernetes.is_none() {
            (self.view, self.own, self.problems, self.unwritten) = (None, None, Vec::new(), None);
        }
        self.file = file;
    }

    /// Whether the node is to take the ranges of its own as soon as its pods allow it.
    pub fn defers_ranges(&self) -> bool {
        self.defers_ranges
    }

    /// Notes a look at the kernel as a whole.
    pub fn note_look(&mut self) {
        self.looks += 1;
    }

    /// What is wrong, for `status`.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.problems.iter().chain(&self.unwritten)
    }

    /// What `status` says of the API.
    pub fn status(&self, now: Instant) -> Option<api::Kubernetes> {
        let source = self.source.as_ref()?;
        let view = self.view.as_ref();
        Some(api::Kubernetes {
            state: view.map_or(api::KubernetesState::Connecting, |view| view.state),
            why: view.and_then(|view| view.why.clone()),
            server: view.and_then(|view| view.server.clone()),
            age_ms: source.age(now).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            nodes: view.and_then(|view| view.cluster.as_ref()).map_or(0, |cluster| cluster.nodes),
            joined: self.own.is_some(),
            as_of: view.and_then(|view| view.as_of.clone()),
            looks: self.looks,
            changes: self.times.status(),
        })
    }
}

impl Node {
    /// Where news of the cluster come from.
    pub fn source(&mut self) -> Option<&mut Source> {
        self.membership.source.as_mut()
    }

    /// Starts or ends the source as the file says. Needs a tokio runtime.
    pub fn ensure_source(&mut self) {
        let Membership { file, source, problems, .. } = &mut self.membership;
        let Some(settings) = &file.kubernetes else { return *source = None };
        if !source.as_ref().is_some_and(|source| source.is_for(settings, &file.node.name)) {
            *source = Some(Source::start(settings.clone(), &file.node.name));
            *problems = vec!["waiting for the Kubernetes API".to_owned()];
        }
    }

    /// Takes what the source tells now; true when another configuration is in force and a look at the kernel is to follow.
    pub fn heed_cluster(&mut self, now: Instant) -> bool {
        let Some(source) = &mut self.membership.source else { return false };
        self.membership.view = Some(source.view());
        let heard = source.take_heard();
        let file = self.membership.file.clone();
        let old = std::mem::take(&mut self.membership.problems);
        let config = self.joined(&file);
        for problem in self.membership.problems.iter().filter(|problem| !old.contains(problem)) {
            tracing::warn!("{problem}");
        }
        if config == self.config {
            return false;
        }
        let is_as_wanted = self.put_peers_in_force(&config, now).unwrap_or_else(|| {
            self.put_in_force(config, now);
            false
        });
        if let Some(heard) = heard {
            self.membership.times.note(heard.elapsed());
        }
        // No packet waits for probes.
        self.follow_peers(now);
        !is_as_wanted
    }

    /// A file's configuration with what is known of the cluster. What is wrong with that is kept.
    pub(super) fn joined(&mut self, file: &Config) -> Config {
        if file.kubernetes.is_none() {
            return file.clone();
        }
        let Some(view) = self.membership.view.clone() else { return file.clone() };
        let mut problems: Vec<String> = view.why.iter().cloned().collect();
        let Some(cluster) = &view.cluster else {
            problems.push("waiting for the Kubernetes API".to_owned());
            self.membership.problems = problems;
            return self.in_force_with(file);
        };
        problems.extend_from_slice(&cluster.problems);
        self.membership.defers_ranges = false;
        let own = match &cluster.own {
            Ok(own) => Some(self.keeping_pods(own, &mut problems)),
            Err(reason) => {
                problems.push(reason.clone());
                self.membership.own.clone()
            }
        };
        // What cannot be listed is found out when the tunnel is set up.
        let addresses = self.kernel.netlink.own_addresses().unwrap_or_default();
        let joined = own.as_ref().map(|own| file.join(own, &cluster.members, &addresses));
        let config = match joined {
            Some(Ok(Joined { config, left_out })) => {
                problems.extend(left_out);
                self.membership.own = own;
                config
            }
            Some(Err(reason)) => {
                problems.push(reason);
                self.in_force_with(file)
            }
            None => self.in_force_with(file),
        };
        self.membership.problems = problems;
        config
    }

    /// The file's configuration as long as the cluster's part is not known, or cannot be: then that stays as it was.
    fn in_force_with(&self, file: &Config) -> Config {
        if self.config.kubernetes.is_some() && *file == self.membership.file {
            self.config.clone()
        } else {
            file.clone()
        }
    }

    /// This node as the API has it, but for its ranges as long as pods live in others.
    fn keeping_pods(&mut self, own: &OwnNode, problems: &mut Vec<String>) -> OwnNode {
        let Some(before) = self.membership.own.as_ref().filter(|before| before.pod_cidrs != own.pod_cidrs) else {
            return own.clone();
        };
        let outside = |address: &&IpAddr| !own.pod_cidrs.iter().any(|range| range.contains(*address));
        let mut pods = self.store.pods().iter().filter(|pod| pod.addresses.iter().any(|address| outside(&address)));
        let Some(pod) = pods.next() else { return own.clone() };
        self.membership.defers_ranges = true;
        let [was, is] = [&before.pod_cidrs, &own.pod_cidrs]
            .map(|ranges| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        problems.push(format!(
            "spec.podCIDRs of this node is {is} now, but pods such as {} have addresses of {was}, which stays until they \
             are gone: drain the node",
            pod.name
        ));
        OwnNode { pod_cidrs: before.pod_cidrs.clone(), ..own.clone() }
    }

    /// Tells the API how this node is reached, as soon as it is.
    pub fn announce(&self) {
        let Some(source) = &self.membership.source else { return };
        if let Some(announcement) = self.announcement() {
            source.announce(announcement);
        }
    }

    fn announcement(&self) -> Option<Announcement> {
        let vtep = self.observed.vtep.as_ref()?;
        if self.config.awaits_members() || self.not_ready().is_some() {
            return None;
        }
        Some(Announcement {
            vni: self.config.vxlan.vni,
            v4: vtep.ends().find(|end| end.underlay.is_ipv4()),
            v6: vtep.ends().find(|end| end.underlay.is_ipv6()),
            mode: self.config.dataplane.mode,
        })
    }

    /// Keeps Flannel's `subnet.env` as it should be, if it is asked for and the node can be reached.
    pub(super) fn write_subnet_env(&mut self) {
        let path = self.config.kubernetes.as_ref().and_then(|kubernetes| kubernetes.subnet_env.as_ref());
        let (Some(path), Some(vtep), None) = (path, &self.observed.vtep, self.not_ready()) else { return };
        let text = subnet_env::text(&self.config, vtep.mtu);
        if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
            self.membership.unwritten = None;
            return;
        }
        let made = path.parent().map_or(Ok(()), fs::create_dir_all);
        let written = made.and_then(|()| durable::replace(path, text.as_bytes(), 0o644));
        self.membership.unwritten = written.err().map(|error| format!("cannot write {}: {error}", path.display()));
    }
}
