//! The chain of MTUs: what a pod sends, the overlay's header around it, the uplink, the peers.

use std::cmp::Ordering;

use super::evidence::Evidence;
use super::finding::Opinion;
use crate::control::vtep::{OVERHEAD_V4, OVERHEAD_V6};

/// What Ethernet carries everywhere: what peers send unless their uplinks carry less.
const ETHERNET: u32 = 1500;

/// Bytes of an inner packet that the uplink has room for, by whichever tunnel.
fn room(evidence: &Evidence) -> Option<u32> {
    let config = evidence.config.valid()?;
    let has_second = || evidence.daemon.status().is_some_and(|status| status.vxlan.second.is_some());
    let is_ipv6 = config.underlay_is_ipv6()? || config.wants_second() || has_second();
    let overhead = if is_ipv6 { OVERHEAD_V6 } else { OVERHEAD_V4 };
    Some(evidence.uplink()?.link.mtu.saturating_sub(overhead))
}

pub(super) fn uplink(evidence: &Evidence) -> Vec<Opinion> {
    let Some(link) = evidence.uplink().map(|uplink| &uplink.link) else { return Vec::new() };
    let seen = format!("{} has MTU {}", link.name, link.mtu);
    vec![if link.mtu >= ETHERNET {
        Opinion::ok(seen)
    } else {
        Opinion::note(
            format!("{seen}, less than {ETHERNET}"),
            "what a peer sends with an MTU of 1500 is lost here: large packets vanish while small ones pass. All nodes \
             and the wires between them must have the same",
        )
        .advice(format!(
            "if the wire carries it: ip link set dev {} mtu {ETHERNET}; else give all nodes the same",
            link.name
        ))
    }]
}

pub(super) fn vxlan(evidence: &Evidence) -> Vec<Opinion> {
    let device = evidence.config.valid().and_then(|config| evidence.link(&config.vxlan.device));
    let (Some(device), Some(room)) = (device, room(evidence)) else { return Vec::new() };
    let seen = format!("{} has MTU {}, the uplink has room for {room}", device.name, device.mtu);
    let fit = format!("ip link set dev {} mtu {room}", device.name);
    vec![match device.mtu.cmp(&room) {
        Ordering::Greater => {
            Opinion::error(seen, "what pods send at full size does not fit the uplink, and is lost or cut to pieces")
                .command(fit)
        }
        Ordering::Less => Opinion::note(seen, "packets are smaller than they could be").command(fit),
        Ordering::Equal => Opinion::ok(seen),
    }]
}

pub(super) fn pods(evidence: &Evidence) -> Vec<Opinion> {
    let Some(room) = room(evidence) else { return Vec::new() };
    let bad: Vec<_> = evidence
        .network
        .pods
        .iter()
        .flat_map(|pod| {
            let host = pod.host_mtu.map(|mtu| (format!("its device {}", pod.host_ifname), mtu));
            let inside = pod.pod_mtu.map(|mtu| ("its own end".to_owned(), mtu));
            let large = [host, inside].into_iter().flatten().filter(|(_, mtu)| *mtu > room);
            large.map(|(end, mtu)| {
                Opinion::warning(
                    format!("pod {}: {end} has MTU {mtu}, the uplink has room for {room}", pod.name),
                    "its large packets to other nodes are answered by \"too big\" or lost",
                )
                .advice("the daemon sets it when it looks next; a pod that set it itself must be started anew")
            })
        })
        .collect();
    if bad.is_empty() { vec![Opinion::ok(format!("{} pod(s) fit", evidence.network.pods.len()))] } else { bad }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::evidence::Uplink;
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::{assert_says, link, uplink as the_uplink};

    #[test]
    fn each_link_of_the_chain_is_compared_with_the_uplink() {
        let shrink = |e: &mut Evidence| the_uplink(e).link.mtu = 1400;
        assert_says(uplink, shrink, Severity::Note, "eth0 has MTU 1400");
        assert_says(vxlan, shrink, Severity::Error, "podwire.1 has MTU 1450, the uplink has room for 1350");
        assert_says(pods, shrink, Severity::Warning, "pod web: its device pw1 has MTU 1450");
        let grow = |e: &mut Evidence| the_uplink(e).link.mtu = 9000;
        assert_says(uplink, grow, Severity::Ok, "9000");
        assert_says(vxlan, grow, Severity::Note, "room for 8950");
        assert_says(pods, grow, Severity::Ok, "1 pod(s)");
        assert_says(pods, |e| e.network.pods[0].pod_mtu = Some(1500), Severity::Warning, "its own end has MTU 1500");
        assert_says(vxlan, |e| link(e, "podwire.1").mtu = 1500, Severity::Error, "1500");
        let gone = |e: &mut Evidence| e.uplink = None::<Result<Uplink, String>>;
        let mut evidence = crate::doctor::sample::healthy();
        gone(&mut evidence);
        assert!(uplink(&evidence).is_empty() && vxlan(&evidence).is_empty() && pods(&evidence).is_empty());
    }
}
