//! `podwire doctor`: what is wrong with this node, what it means, what to do.
//!
//! [`gather::evidence`] looks at the machine, and asks the daemon where one runs. [`CHECKS`] judge what was seen: each
//! is a pure function under a stable name. Nothing is changed; what must be tried out to be known is tried in a network
//! namespace made for it.
//!
//! ```text
//!   machine ─┐
//!            ├─▶ gather ─▶ Evidence ─▶ CHECKS ─▶ Findings ─▶ text, JSON, or a script of fixes
//!   daemon ──┘
//! ```

mod addresses;
mod cpus;
mod daemon;
mod evidence;
mod finding;
mod gather;
mod kernel;
mod memory;
mod mtu;
mod network;
mod peers;
mod place;
mod privileges;
mod trials;
mod uplink;

#[cfg(test)]
mod sample;

pub use evidence::Evidence;
pub use finding::{Finding, Fix, Opinion, Profile, Severity};
pub use gather::{Subject, evidence};

/// A check: its stable name, and what it says of the evidence; nothing where it does not apply.
type Check = (&'static str, fn(&Evidence) -> Vec<Opinion>);

/// All checks, in the order of the report.
const CHECKS: &[Check] = &[
    ("config", daemon::config),
    ("daemon", daemon::daemon),
    ("data-plane", daemon::data_plane),
    ("peer-path", daemon::peer_path),
    ("peer-probe", peers::probe),
    ("addresses", addresses::ranges),
    ("worker-health", daemon::worker_health),
    ("node-problem", daemon::node_problem),
    ("kernel-version", kernel::version),
    ("kernel-btf", kernel::btf),
    ("bpf-jit", kernel::jit),
    ("conntrack-lookup", kernel::conntrack_lookup),
    ("network-namespaces", trials::namespaces),
    ("veth", trials::veth),
    ("vxlan", trials::vxlan),
    ("bpf-programs", trials::programs),
    ("xdp", trials::xdp),
    ("tcx", trials::tcx),
    ("packet-socket", trials::packet_socket),
    ("af-xdp", trials::af_xdp),
    ("capabilities", privileges::capabilities),
    ("locked-memory", privileges::locked_memory),
    ("bpffs", privileges::bpffs),
    ("uplink", uplink::present),
    ("uplink-xdp", uplink::foreign_xdp),
    ("uplink-driver", uplink::driver),
    ("uplink-queues", uplink::queues),
    ("uplink-hash", uplink::hash),
    ("uplink-rings", uplink::rings),
    ("uplink-interrupts", uplink::interrupts),
    ("uplink-busy-poll", uplink::busy_poll),
    ("numa", cpus::numa),
    ("worker-cores", cpus::worker_cores),
    ("isolated-cores", cpus::isolated),
    ("shared-cores", cpus::shared),
    ("governor", cpus::governor),
    ("idle-states", cpus::idle_states),
    ("hugepages", memory::hugepages),
    ("mtu-uplink", mtu::uplink),
    ("mtu-vxlan", mtu::vxlan),
    ("mtu-pods", mtu::pods),
    ("rp-filter", network::rp_filter),
    ("forwarding", network::forwarding),
    ("conntrack", network::conntrack),
    ("firewall", network::firewall),
    ("vxlan-clash", network::vxlan_clash),
    ("pod-programs", network::pod_programs),
    ("runtime-dir", place::runtime_dir),
    ("cni-order", place::cni_order),
];

/// The names of all checks, in the order of the report.
pub fn checks() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|(id, _)| *id)
}

/// What all checks say.
pub fn examine(evidence: &Evidence) -> Vec<Finding> {
    CHECKS.iter().flat_map(|(id, look)| look(evidence).into_iter().map(|opinion| Finding { id, opinion })).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_in_kebab_case() {
        let names: BTreeSet<_> = CHECKS.iter().map(|(id, _)| *id).collect();
        assert_eq!(names.len(), CHECKS.len());
        assert!(names.iter().all(|id| id.chars().all(|c| c.is_ascii_lowercase() || c == '-')), "{names:?}");
    }

    #[test]
    fn a_node_in_good_order_has_nothing_to_complain_of_and_each_check_looked_at_it() {
        let findings = examine(&sample::healthy());
        let bad: Vec<_> = findings.iter().filter(|finding| finding.opinion.severity != Severity::Ok).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        let said: BTreeSet<_> = findings.iter().map(|finding| finding.id).collect();
        let silent: Vec<_> = CHECKS.iter().map(|(id, _)| *id).filter(|id| !said.contains(id)).collect();
        assert_eq!(silent, ["node-problem"], "a problem of the daemon is all that this check tells of");
    }

    #[test]
    fn what_is_wrong_comes_with_its_meaning_and_a_way_out() {
        for finding in examine(&sample::ill()) {
            let Finding { id, opinion } = finding;
            if opinion.severity > Severity::Note {
                assert!(!opinion.meaning.is_empty() && opinion.fix.is_some(), "{id}: {opinion:?}");
            }
        }
    }
}
