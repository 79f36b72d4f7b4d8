//! The node's network namespace.

use super::evidence::Evidence;
use super::finding::Opinion;
use crate::control::netlink::{Link, LinkKind};
use crate::control::plan::ALIAS;

/// Of the entries of conntrack, in per cent.
const NEARLY_FULL: u64 = 80;

pub(super) fn rp_filter(evidence: &Evidence) -> Vec<Opinion> {
    let device = evidence.config.valid().and_then(|config| evidence.link(&config.vxlan.device));
    let Some((name, own)) = device.and_then(|link| Some((&link.name, link.conf.rp_filter?))) else {
        return Vec::new();
    };
    // The larger of the two counts (Documentation/networking/ip-sysctl.rst): 1 is strict, 2 is loose.
    let all = evidence.network.rp_filter_all.map_or(0, i32::from);
    vec![if all.max(own) == 1 {
        Opinion::warning(
            format!("rp_filter is strict on {name} (its own {own}, all {all})"),
            "what a peer itself sends to pods is dropped, because the way back to it is not by this device",
        )
        .command(format!("echo 2 >/proc/sys/net/ipv4/conf/{name}/rp_filter"))
    } else {
        Opinion::ok(format!("rp_filter on {name} is {}", all.max(own)))
    }]
}

pub(super) fn forwarding(evidence: &Evidence) -> Vec<Opinion> {
    vec![match evidence.network.forwarding {
        Some(0) => {
            let seen = "net.ipv4.ip_forward is 0";
            let meaning =
                "the kernel path carries nothing between pods and other nodes; a daemon sets it when it starts";
            match evidence.daemon.status() {
                Some(_) => Opinion::error(seen, meaning),
                None => Opinion::note(seen, meaning),
            }
            .command("sysctl -w net.ipv4.ip_forward=1")
        }
        Some(value) => Opinion::ok(format!("net.ipv4.ip_forward is {value}")),
        None => Opinion::unseen("net.ipv4.ip_forward", "there is no such setting"),
    }]
}

pub(super) fn conntrack(evidence: &Evidence) -> Vec<Opinion> {
    let Some((used, most)) = evidence.network.conntrack else { return vec![Opinion::ok("not in use")] };
    let seen = format!("{used} of {most} entries are used");
    vec![if used * 100 >= most * NEARLY_FULL {
        Opinion::warning(seen, "when it is full, the kernel path drops packets of new connections")
            .command(format!("sysctl -w net.netfilter.nf_conntrack_max={}", most.saturating_mul(2)))
    } else {
        Opinion::ok(seen)
    }]
}

/// Rules are not understood here: that is for people.
pub(super) fn firewall(evidence: &Evidence) -> Vec<Opinion> {
    let port = evidence.config.valid().map_or(8472, |config| config.vxlan.port);
    vec![match &evidence.network.filters {
        Ok(tables) if tables.is_empty() => Opinion::ok("no table of nftables filters here"),
        Ok(tables) => Opinion::ok(format!(
            "these tables filter: {}; UDP port {port} must be accepted on the uplink (nft list ruleset)",
            tables.join(", ")
        )),
        Err(why) => Opinion::unseen("the packet filter", why),
    }]
}

pub(super) fn vxlan_clash(evidence: &Evidence) -> Vec<Opinion> {
    let links = match &evidence.network.links {
        Ok(links) => links,
        Err(why) => return vec![Opinion::unseen("the devices", why)],
    };
    let Some(config) = evidence.config.valid() else { return Vec::new() };
    let ours = [config.vxlan.device.clone(), config.vxlan.second_device()];
    let foreign = |link: &&Link| match link.kind {
        LinkKind::Vxlan(vxlan) => {
            let same = vxlan.vni == config.vxlan.vni && vxlan.port == config.vxlan.port;
            same && !(ours.contains(&link.name) && link.alias == ALIAS)
        }
        // Flannel's learns nothing too, but not all versions said so.
        LinkKind::OtherVxlan => {
            let vni = config.vxlan.vni.get();
            [format!("flannel.{vni}"), format!("flannel-v6.{vni}")].contains(&link.name)
        }
        _ => false,
    };
    let opinion = |link: &Link| {
        Opinion::error(
            format!(
                "{} is a VXLAN device of VNI {} and port {} too",
                link.name,
                config.vxlan.vni.get(),
                config.vxlan.port
            ),
            "the kernel has one device of a VNI and a port: podwire's cannot be made, or gets no packets",
        )
        .advice(format!(
            "if it is Flannel's, take it over with its pods (podwire migrate from-flannel); else end what made it and remove it (ip link del {}), or choose another vxlan.vni",
            link.name
        ))
    };
    let clashes: Vec<_> = links.iter().filter(foreign).map(opinion).collect();
    if clashes.is_empty() { vec![Opinion::ok("no other VXLAN device is in the way")] } else { clashes }
}

pub(super) fn pod_programs(evidence: &Evidence) -> Vec<Opinion> {
    let bad: Vec<_> = evidence
        .network
        .pods
        .iter()
        .filter_map(|pod| match &pod.foreign {
            Err(why) => Some(Opinion::unseen(&format!("what runs on {}", pod.host_ifname), why)),
            Ok(programs) if programs.is_empty() => None,
            Ok(programs) => {
                let named: Vec<_> = programs.iter().map(|found| format!("{} ({})", found.id, found.name)).collect();
                Some(
                    Opinion::warning(
                        format!("pod {}: program {} runs on {}", pod.name, named.join(", "), pod.host_ifname),
                        "it may take or change the pod's packets, so podwire leaves the pod to the kernel path",
                    )
                    .advice(format!(
                        "`bpftool net show dev {}` tells how it is attached: ask its owner",
                        pod.host_ifname
                    )),
                )
            }
        })
        .collect();
    if bad.is_empty() { vec![Opinion::ok("only podwire's programs run on the pods' devices")] } else { bad }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::{assert_says, link};
    use crate::steer::AttachedProgram;

    #[test]
    fn the_larger_of_two_reverse_path_filters_counts() {
        for (all, own, severity) in [
            (0, 0, Severity::Ok),
            (0, 1, Severity::Warning),
            (1, 0, Severity::Warning),
            (1, 2, Severity::Ok),
            (2, 1, Severity::Ok),
        ] {
            let change = |e: &mut Evidence| {
                e.network.rp_filter_all = Some(all);
                link(e, "podwire.1").conf.rp_filter = Some(own);
            };
            assert_says(rp_filter, change, severity, "podwire.1");
        }
    }

    #[test]
    fn forwarding_and_conntrack_are_looked_at() {
        assert_says(forwarding, |e| e.network.forwarding = Some(0), Severity::Error, "ip_forward is 0");
        assert_says(conntrack, |e| e.network.conntrack = Some((800, 1000)), Severity::Warning, "800 of 1000");
        assert_says(conntrack, |e| e.network.conntrack = Some((799, 1000)), Severity::Ok, "799");
        assert_says(conntrack, |e| e.network.conntrack = None, Severity::Ok, "not in use");
        assert_says(firewall, |e| e.network.filters = Ok(vec!["ufw".into()]), Severity::Ok, "ufw; UDP port 8472");
    }

    #[test]
    fn another_vxlan_device_of_the_same_numbers_is_in_the_way() {
        assert_says(vxlan_clash, |e| link(e, "podwire.1").alias.clear(), Severity::Error, "podwire.1");
        assert_says(vxlan_clash, |e| link(e, "podwire.1").name = "flannel.1".into(), Severity::Error, "flannel.1");
        let old = |e: &mut Evidence| {
            link(e, "podwire.1").kind = LinkKind::OtherVxlan;
            link(e, "podwire.1").name = "flannel.1".into();
        };
        assert_says(vxlan_clash, old, Severity::Error, "flannel.1");
    }

    #[test]
    fn foreign_programs_on_pods_are_named() {
        let put = |e: &mut Evidence| {
            e.network.pods[0].foreign = Ok(vec![AttachedProgram { id: 7, name: "spy".into() }]);
        };
        assert_says(pod_programs, put, Severity::Warning, "program 7 (spy) runs on pw1");
    }
}
