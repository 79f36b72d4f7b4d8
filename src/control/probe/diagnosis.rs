//! From what was seen of a peer to a cause in words. Nothing is claimed that the evidence does not force: where several
//! causes look the same from here, all of them are named.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::record::{Record, SILENCE};
use super::witness::Own;
use crate::control::api::{Cause, Diagnosis, ProbeState};
use crate::control::vtep::{OVERHEAD_V4, OVERHEAD_V6};
use crate::wire::Mac;

/// What is known besides the peer's record.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    pub own: &'a Own,
    pub uplink: &'a str,
    pub uplink_is_up: bool,
    /// Our VXLAN device.
    pub device: &'a str,
    /// The overlay's MTU, in bytes of an inner IP packet.
    pub mtu: u16,
    /// Why there is no next hop to the peer, if there is none.
    pub no_hop: Option<&'a str>,
    pub now: Instant,
    /// What was seen longer ago does not count.
    pub memory: Duration,
}

/// The peer as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: String,
    pub underlay: IpAddr,
    pub mac: Mac,
    /// Of its VXLAN device.
    pub address: IpAddr,
    /// It is reached without the tunnel.
    pub is_direct: bool,
}

/// What is wrong with a peer; `None` when nothing is, or when too little was seen.
pub fn diagnose(target: &Target, record: &Record, scene: &Scene<'_>) -> Option<Diagnosis> {
    match record.state() {
        ProbeState::Silent => Some(silent(target, record, scene)),
        ProbeState::Answers if record.full.lost_in_a_row >= SILENCE => Some(narrow(target, record, scene)),
        ProbeState::Answers | ProbeState::Unknown => None,
    }
}

/// Large packets vanish.
fn narrow(target: &Target, record: &Record, scene: &Scene<'_>) -> Diagnosis {
    let Target { name, underlay, .. } = target;
    let Scene { uplink, mtu, own, .. } = scene;
    let outer = u32::from(*mtu)
        + match own.underlay {
            _ if target.is_direct => 0,
            IpAddr::V4(_) => OVERHEAD_V4,
            IpAddr::V6(_) => OVERHEAD_V6,
        };
    let refused = record.full.refused.as_ref().map(|error| format!("; the kernel says: {error}"));
    Diagnosis {
        cause: Cause::MtuTooSmall,
        summary: format!("the MTU is too small on the way to {underlay}"),
        evidence: format!(
            "small packets pass, the last {} of {mtu} bytes did not{}",
            record.full.lost_in_a_row,
            refused.unwrap_or_default()
        ),
        advice: format!(
            "let the network carry IP packets of {outer} bytes between {} and {underlay}, or lower the MTU of {uplink} \
             here and of the uplink of {name}: podwire follows it",
            own.underlay
        ),
    }
}

/// Nothing is answered. What is forced comes first.
fn silent(target: &Target, record: &Record, scene: &Scene<'_>) -> Diagnosis {
    let local = || here(target, record, scene);
    if target.is_direct {
        return local().unwrap_or_else(|| direct(target, record, scene));
    }
    let settled = || seen(target, record, scene);
    local()
        .or_else(|| dropped(target, record, scene))
        .or_else(settled)
        .unwrap_or_else(|| unsettled(target, record, scene))
}

/// Causes on this node.
fn here(target: &Target, record: &Record, scene: &Scene<'_>) -> Option<Diagnosis> {
    let Scene { uplink, device, .. } = scene;
    let address = target.address;
    let device = if target.is_direct { uplink } else { device };
    if !scene.uplink_is_up {
        return Some(Diagnosis {
            cause: Cause::UplinkDown,
            summary: format!("our uplink {uplink} is down"),
            evidence: format!("{} requests to {address} in a row were lost", record.small.lost_in_a_row),
            advice: format!("ip link set {uplink} up; if it is up, look at its carrier"),
        });
    }
    if let Some(error) = &record.small.refused {
        return Some(Diagnosis {
            cause: Cause::CannotSend,
            summary: "this node cannot send to it".to_owned(),
            evidence: format!("sending from {device} to {address}: {error}"),
            advice: format!(
                "`ip route get {address} oif {device}` and `nft list ruleset` tell what is in the way here"
            ),
        });
    }
    None
}

/// What arrives by the tunnel, and is lost on this node.
fn dropped(target: &Target, record: &Record, scene: &Scene<'_>) -> Option<Diagnosis> {
    let Scene { uplink, device, own, .. } = scene;
    let Target { name, underlay, address, .. } = target;
    scene.recent(record.seen.answer)?;
    Some(Diagnosis {
        cause: Cause::DroppedHere,
        summary: format!("this node drops the tunnel packets of {name}"),
        evidence: format!("answers of {address} from {underlay} reach {uplink}, and do not come out of {device}"),
        advice: format!(
            "look for a rule here that drops UDP port {} or ICMP on {device} (nft list ruleset, iptables-save), and for a \
             strict rp_filter",
            own.port
        ),
    })
}

/// Causes that the peer's own tunnel packets give away.
fn seen(target: &Target, record: &Record, scene: &Scene<'_>) -> Option<Diagnosis> {
    let Scene { own, .. } = scene;
    let Target { name, underlay, mac, address, .. } = target;
    let seen = &record.seen;
    let (cause, summary, evidence, advice) = if let Some(vni) = scene.recent_value(seen.vni) {
        (
            Cause::OtherVni,
            format!("{name} sends VNI {vni}, we have {}", own.vni),
            format!("tunnel packets of VNI {vni} arrive from {underlay}"),
            "give all nodes the same vxlan.vni".to_owned(),
        )
    } else if let Some(to) = scene.recent_value(seen.to_mac) {
        (
            Cause::WrongMacThere,
            format!("{name} has a wrong VTEP MAC of us: {to}, ours is {}", own.mac),
            format!("tunnel packets from {underlay} arrive for {to}, which the kernel drops"),
            format!("on {name}, set our vtep_mac to {}, or leave it out on podwire nodes", own.mac),
        )
    } else if let Some(from) = scene.recent_value(seen.from_mac) {
        (
            Cause::WrongMacHere,
            format!("we have a wrong VTEP MAC of {name}: {mac}, it sends from {from}"),
            format!("tunnel packets from {underlay} bear {from}; what we send to {mac} is dropped there"),
            format!("set the vtep_mac of peer {name} to {from} in the configuration of this node"),
        )
    } else if let Some(from) = scene.recent_value(seen.from_address) {
        let whose = if own.addresses.contains(&from) { "our own" } else { "another" };
        (
            Cause::OtherRange,
            format!("{name} uses {whose} pod range: its VXLAN device is {from}, not {address}"),
            format!("tunnel packets from {underlay} come from {from}"),
            format!(
                "give {name} and this node the same node.pod_cidrs and peers' pod_cidrs, each range to one node only"
            ),
        )
    } else {
        return None;
    };
    Some(Diagnosis { cause, summary, evidence, advice })
}

/// What looks the same from here, without the tunnel.
fn direct(target: &Target, record: &Record, scene: &Scene<'_>) -> Diagnosis {
    let Target { name, underlay, address, .. } = target;
    if !node_answers(record, scene) {
        return unreachable(target, record, scene);
    }
    Diagnosis {
        cause: Cause::DirectSilent,
        summary: format!("packets without the tunnel seem to be lost between {} and {underlay}", scene.own.underlay),
        evidence: format!(
            "{underlay} itself answers; {address} has not answered {} requests",
            record.small.lost_in_a_row
        ),
        advice: format!(
            "one of: the network drops addresses that it has not given out (source/destination checks, port security); a \
             rule or a strict rp_filter on {name} does, or here; {name} has no VXLAN device or it is down. Without \
             vxlan.direct_routing (DirectRouting of net-conf.json) the tunnel is used"
        ),
    }
}

/// Whether the node itself answers.
fn node_answers(record: &Record, scene: &Scene<'_>) -> bool {
    record.underlay.lost_in_a_row == 0 && scene.recent(record.underlay.answered_at).is_some()
}

fn unreachable(target: &Target, record: &Record, scene: &Scene<'_>) -> Diagnosis {
    let Target { name, underlay, address, .. } = target;
    let hop = scene.no_hop.map(|why| format!("; {why}")).unwrap_or_default();
    let overlay = if target.is_direct { address.to_string() } else { "its tunnel".to_owned() };
    Diagnosis {
        cause: Cause::NodeUnreachable,
        summary: format!("{name} is unreachable: neither {underlay} nor {overlay} answers"),
        evidence: format!(
            "{address} has not answered {} requests, nor {underlay} {} by the underlay{hop}",
            record.small.lost_in_a_row, record.underlay.lost_in_a_row
        ),
        advice: format!(
            "one of: {name} is down; {underlay} is not its address; the way to it is cut, or lets neither pings nor \
             packets of pods (UDP port {} with the tunnel) through",
            scene.own.port
        ),
    }
}

/// What looks the same from here.
fn unsettled(target: &Target, record: &Record, scene: &Scene<'_>) -> Diagnosis {
    let Scene { own, .. } = scene;
    let Target { name, underlay, address, .. } = target;
    let port = own.port;
    let lost = format!("{address} has not answered {} requests through the tunnel", record.small.lost_in_a_row);
    let (cause, summary, evidence, advice) = if scene.recent(record.seen.well).is_some() {
        (
            Cause::OneWay,
            format!("tunnel packets of {name} arrive here, ours are not answered"),
            format!("{lost}, and sends sound packets itself"),
            format!(
                "one of: UDP port {port} to {underlay} is blocked on the way or there (`podwire peers` on {name} tells); \
                 {name} does not answer pings"
            ),
        )
    } else if node_answers(record, scene) {
        (
            Cause::TunnelSilent,
            format!(
                "UDP port {port} seems blocked between {} and {underlay}, or its tunnel is not as ours",
                own.underlay
            ),
            format!("{underlay} itself answers; {lost}, and no tunnel packet comes from it"),
            format!(
                "one of: a firewall drops UDP port {port} (nft list ruleset here and there, security groups); {name} has \
                 no VXLAN device of this port or it is down; its VNI is not {}; one has a wrong VTEP MAC of the other: \
                 `podwire peers` on {name} may tell",
                own.vni
            ),
        )
    } else {
        return unreachable(target, record, scene);
    };
    Diagnosis { cause, summary, evidence, advice }
}

impl Scene<'_> {
    fn recent(&self, at: Option<Instant>) -> Option<Instant> {
        at.filter(|at| self.now.saturating_duration_since(*at) <= self.memory)
    }

    fn recent_value<T>(&self, seen: Option<(Instant, T)>) -> Option<T> {
        seen.filter(|(at, _)| self.recent(Some(*at)).is_some()).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Kind;
    use super::super::record::tests::{MAC, address, turn};
    use super::*;
    use crate::ids::IfIndex;

    const MEMORY: Duration = Duration::from_secs(20);

    fn own() -> Own {
        Own {
            uplink: IfIndex(1),
            underlay: "192.168.1.2".parse().unwrap(),
            port: 8472,
            vni: 1,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: vec!["10.244.1.0".parse().unwrap()],
        }
    }

    fn target() -> Target {
        let underlay = "192.168.1.3".parse().unwrap();
        Target { name: "node-b".into(), underlay, mac: MAC, address: address(), is_direct: false }
    }

    /// A record after some turns in which these kinds are answered.
    fn after(turns: u32, now: Instant, answered: &[Kind]) -> Record {
        let mut record = Record::default();
        turn(&mut record, now, |_| true);
        for _ in 0..=turns {
            turn(&mut record, now, |kind| answered.contains(&kind));
        }
        record
    }

    fn scene(own: &Own, now: Instant) -> Scene<'_> {
        Scene {
            own,
            uplink: "eth0",
            uplink_is_up: true,
            device: "podwire.1",
            mtu: 1450,
            no_hop: None,
            now,
            memory: MEMORY,
        }
    }

    /// What is said of a silent peer after a change; `MEMORY` and less is recent.
    fn says(change: impl Fn(&mut Record, &mut Scene<'_>, Instant), age: Duration) -> Diagnosis {
        says_of(&target(), change, age)
    }

    fn says_of(target: &Target, change: impl Fn(&mut Record, &mut Scene<'_>, Instant), age: Duration) -> Diagnosis {
        let (own, then) = (own(), Instant::now());
        let mut record = after(SILENCE, then, &[Kind::Underlay]);
        let mut scene = scene(&own, then + age);
        change(&mut record, &mut scene, then);
        diagnose(target, &record, &scene).expect("it is silent")
    }

    #[test]
    fn no_tunnel_is_suspected_where_none_is_used() {
        type Change = fn(&mut Record, &mut Scene<'_>, Instant);
        let direct = Target { is_direct: true, ..target() };
        let rows: &[(Cause, &str, Change)] = &[
            (Cause::UplinkDown, "eth0 is down", |_, scene, _| scene.uplink_is_up = false),
            (Cause::CannotSend, "cannot send", |record, _, _| record.small.refused = Some("EPERM".into())),
            (Cause::DirectSilent, "without the tunnel", |_, _, _| {}),
            (Cause::DirectSilent, "without the tunnel", |record, _, at| record.seen.vni = Some((at, 2))),
            (Cause::NodeUnreachable, "neither 192.168.1.3 nor 10.244.2.0", |record, _, _| {
                record.underlay.lost_in_a_row = 1;
            }),
        ];
        for (cause, words, change) in rows {
            let told = says_of(&direct, change, MEMORY);
            assert!(told.cause == *cause && told.summary.contains(words), "{told:?}");
        }
    }

    #[test]
    fn each_cause_is_told_from_the_others_while_its_evidence_is_fresh() {
        type Change = fn(&mut Record, &mut Scene<'_>, Instant);
        let rows: &[(Cause, &str, Change)] = &[
            (Cause::UplinkDown, "eth0 is down", |_, scene, _| scene.uplink_is_up = false),
            (Cause::CannotSend, "cannot send", |record, _, _| record.small.refused = Some("EPERM".into())),
            (Cause::DroppedHere, "this node drops", |record, _, at| record.seen.answer = Some(at)),
            (Cause::OtherVni, "node-b sends VNI 2, we have 1", |record, _, at| record.seen.vni = Some((at, 2))),
            (Cause::WrongMacThere, "wrong VTEP MAC of us: 04:", |record, _, at| {
                record.seen.to_mac = Some((at, Mac([4; 6])));
            }),
            (Cause::WrongMacHere, "wrong VTEP MAC of node-b", |record, _, at| {
                record.seen.from_mac = Some((at, Mac([4; 6])));
            }),
            (Cause::OtherRange, "our own pod range", |record, _, at| {
                record.seen.from_address = Some((at, "10.244.1.0".parse().unwrap()));
            }),
            (Cause::OneWay, "ours are not answered", |record, _, at| record.seen.well = Some(at)),
            (Cause::TunnelSilent, "UDP port 8472 seems blocked", |_, _, _| {}),
            (Cause::NodeUnreachable, "unreachable", |record, scene, _| {
                (record.underlay.lost_in_a_row, scene.no_hop) = (1, Some("no route"));
            }),
        ];
        for (cause, words, change) in rows {
            let told = says(change, MEMORY);
            assert_eq!(told.cause, *cause, "{told:?}");
            assert!(told.summary.contains(words) && !told.evidence.is_empty() && !told.advice.is_empty(), "{told:?}");
            let late = says(change, MEMORY * 2).cause;
            let lasts = [Cause::UplinkDown, Cause::CannotSend].contains(cause);
            assert_eq!(
                late,
                if lasts { *cause } else { Cause::NodeUnreachable },
                "{cause:?}: what is old is no evidence"
            );
        }
    }

    #[test]
    fn a_narrow_way_is_told_only_while_small_packets_pass() {
        let (own, now) = (own(), Instant::now());
        let scene = scene(&own, now);
        let told = |record: &Record| diagnose(&target(), record, &scene);
        assert_eq!(told(&Record::default()), None);
        let mut record = after(6, now, &[Kind::Small, Kind::Full]);
        assert_eq!(told(&record), None);
        for _ in 0..10 {
            turn(&mut record, now, |kind| kind == Kind::Small);
        }
        let narrow = told(&record).expect("large packets are lost");
        assert_eq!(narrow.cause, Cause::MtuTooSmall);
        assert!(narrow.advice.contains("1500 bytes") && narrow.evidence.contains("1450 bytes"), "{narrow:?}");
        turn(&mut record, now, |_| true);
        assert_eq!(told(&record), None, "one answer is enough");
    }
}
