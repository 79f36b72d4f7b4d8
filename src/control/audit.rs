//! Whether what is remembered of pods and addresses is what is there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::api::Refusal;
use super::api::ipam::{Audit, Finding, FindingKind};
use super::host_side::Stranger;
use super::node::Node;
use super::pods::PodError;

impl Node {
    /// Compares the file, the kernel and the pods' namespaces with what is remembered. Changes nothing.
    pub(super) fn audit(&mut self) -> Result<Audit, Refusal> {
        let vtep = self.observed.vtep.as_ref().ok_or_else(|| PodError::NotReady(self.obstacles()))?;
        let pods = self.store.pods();
        let seen = self.kernel.host_side();
        let seen = seen.map_err(|error| Refusal::internal(format!("cannot list devices and routes: {error}")))?;
        let mut findings = Findings::default();
        findings.extend(FindingKind::Store, self.store.difference());
        findings.extend(FindingKind::Duplicate, self.duplicates());
        findings.extend(FindingKind::Outside, self.strays());
        let wiring = pods.iter().filter_map(|pod| seen.check(vtep, pod).and_then(|()| pod.verify_inside(vtep)).err());
        findings.extend(FindingKind::Wiring, wiring.map(|error| error.to_string()));
        findings.extend(FindingKind::UnknownDevice, seen.strangers(pods).iter().map(Stranger::advice));
        let leaks = seen.leaks(vtep, pods).into_iter().map(|leak| format!("{leak}: no pod asks for it"));
        findings.extend(FindingKind::Leak, leaks);
        Ok(Audit { pods: pods.len(), findings: findings.0 })
    }

    /// Addresses that more than one has.
    fn duplicates(&self) -> impl Iterator<Item = String> {
        let pods = self.store.pods().iter();
        let given = pods.flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.name.clone())));
        let held = self.store.held().iter().map(|held| (held.address, held.name()));
        let mut owners: BTreeMap<IpAddr, Vec<String>> = BTreeMap::new();
        for (address, name) in given.chain(held) {
            owners.entry(address).or_default().push(name);
        }
        let shared = owners.into_iter().filter(|(_, names)| names.len() > 1);
        shared.map(|(address, names)| format!("{address} is of {}; detach all but one", names.join(" and of ")))
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn extend(&mut self, kind: FindingKind, texts: impl IntoIterator<Item = String>) {
        self.0.extend(texts.into_iter().map(|text| Finding { kind, text }));
    }
}
