//! What others have put on the host ends of pods to shape, police or watch packets: queueing disciplines, as CNI's
//! `bandwidth` plugin does, filters, and programs. The kernel's stack passes it; the fast path would go round it. The same
//! on the VXLAN devices: it might have the stack get what comes, while the pods' answers go past.

use std::collections::BTreeMap;
use std::time::Instant;

use super::kernel::{Kernel, KernelError, request};
use super::netlink::{Filter, Hook, Place, Qdisc};
use super::netns;
use super::node::{Node, Observed};
use super::wiring::Pod;
use crate::config::Mode;
use crate::ids::IfIndex;
use crate::steer::{Pins, SteerError, foreign_programs, is_our_filter};

/// The devices with something of others on them, and what it is, for people.
pub type Shaped = BTreeMap<IfIndex, String>;

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub enum ShapingError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Steer(#[from] SteerError),
    #[error("cannot tell which network namespace this is: {0}")]
    Namespace(#[from] std::io::Error),
}

impl Node {
    /// Looks at the host ends of pods, and logs which pods change their path. Without an answer what was seen before is
    /// as true as it was. Without a data plane it does not matter.
    pub(super) fn observe_shaping(&mut self, observed: &mut Observed, now: Instant) {
        if self.config.dataplane.mode == Mode::Kernel {
            return;
        }
        let pods = self.store.pods();
        match self.kernel.shaped(pods) {
            Ok(shaped) => observed.shaped = shaped,
            Err(error) => {
                observed.shaped.clone_from(&self.observed.shaped);
                return observed.problems.push(error.to_string());
            }
        }
        for pod in pods {
            let [before, after] = [&self.observed.shaped, &observed.shaped].map(|seen| seen.get(&pod.host_ifindex));
            match (before, after) {
                (None, Some(what)) => {
                    let path = format!("takes the kernel path in both directions: {what}");
                    self.journal.tell_path(&pod.name, &path, now);
                }
                (Some(_), None) => self.journal.tell_path(&pod.name, "may take the fast path again", now),
                _ => {}
            }
        }
    }
}

impl Kernel {
    /// Looks at the host ends of `pods`, and at the tunnels by which they talk: one list of qdiscs, one of filters for each
    /// that can have some, and the programs of each.
    pub fn shaped(&mut self, pods: &[Pod]) -> Result<Shaped, ShapingError> {
        let mut shaped = Shaped::new();
        if pods.is_empty() {
            return Ok(shaped);
        }
        let tunnels = [self.known.tunnel, self.known.second_tunnel].into_iter().flatten();
        let tunnels = tunnels.map(|device| (device, "the VXLAN device"));
        let ends: BTreeMap<IfIndex, &str> =
            pods.iter().map(|pod| (pod.host_ifindex, &*pod.host_ifname)).chain(tunnels).collect();
        let qdiscs = self.netlink.qdiscs().map_err(request("list queueing disciplines"))?;
        for qdisc in qdiscs.into_iter().filter(|qdisc| ends.contains_key(&qdisc.device)) {
            if let Some(what) = self.foreign(&qdisc)? {
                shaped.entry(qdisc.device).or_insert(what);
            }
        }
        let pins = Pins::find(netns::cookie()?);
        for end in ends.keys() {
            if let Some(program) = foreign_programs(pins.as_ref(), *end)?.first() {
                shaped.entry(*end).or_insert_with(|| format!("a tcx program of others (id {program})"));
            }
        }
        for (end, what) in &mut shaped {
            *what = format!("{} has {what}", ends[end]);
        }
        Ok(shaped)
    }

    /// What of others a qdisc is or holds.
    fn foreign(&mut self, qdisc: &Qdisc) -> Result<Option<String>, KernelError> {
        let Qdisc { device, kind, place } = qdisc;
        match place {
            Place::Root { is_default: true } => Ok(None),
            // It queues nothing and has no classes and no filters.
            Place::Root { .. } if kind == "noqueue" => Ok(None),
            Place::Root { .. } => Ok(Some(format!("the qdisc {kind}"))),
            Place::Filters => {
                for (hook, name) in [(Hook::Ingress, "ingress"), (Hook::Egress, "egress")] {
                    let filters = self.netlink.filters(*device, hook).map_err(request("list filters"))?;
                    if let Some(filter) = filters.iter().find(|filter| !is_ours(filter, hook)) {
                        return Ok(Some(format!("a filter {} at its {name}", filter.kind)));
                    }
                }
                Ok(None)
            }
        }
    }
}

fn is_ours(filter: &Filter, hook: Hook) -> bool {
    hook == Hook::Ingress && is_our_filter(&filter.kind, filter.priority, filter.handle)
}
