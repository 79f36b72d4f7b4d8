use std::net::IpAddr;

use ipnet::IpNet;

use super::super::api::trace::{Ask, Direction, Outcome, Protocol};
use super::super::api::{Refusal, RefusalKind};
use super::super::wiring::Pod;
use crate::config::{Config, Peer};
use crate::counters::DropReason;
use crate::ids::IfIndex;
use crate::steer::{self, Program, Verdict, Verdicts};
use crate::trace::{self, Fates, Filter, Party, Prefix, SNAP};
use crate::wire;

/// The label of what a worker does not drop.
pub const FORWARDED: &str = "forwarded";

/// What the data plane is to look for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub filter: Filter,
    /// What the programs are to tell of.
    pub verdicts: Verdicts,
    /// Of so many packets one is taken.
    pub sample: u32,
    /// Bytes of each frame that are kept.
    pub snap: usize,
}

impl Plan {
    /// Understands a request, or says which part of it makes no sense on this node.
    pub fn new(ask: &Ask, config: &Config, pods: &[Pod]) -> Result<Self, Refusal> {
        let (fates, verdicts) = wanted(ask)?;
        let filter = Filter {
            vxlan_port: config.vxlan.port,
            fates,
            direction: ask.direction.map(Into::into),
            parties: parties(ask, config, pods)?,
            port: ask.port,
            protocols: ask.protocol.map_or(&[], numbers),
        };
        if ask.sample == 0 || !(1..=SNAP).contains(&usize::from(ask.snap)) {
            return Err(Refusal::invalid(format!("a sample is one of 1 packet or more, of 1 to {SNAP} bytes each")));
        }
        Ok(Self { filter, verdicts, sample: ask.sample, snap: ask.snap.into() })
    }
}

fn parties(ask: &Ask, config: &Config, pods: &[Pod]) -> Result<Vec<Party>, Refusal> {
    let of = |nets: Vec<IpNet>| Party { device: IfIndex::NONE, prefixes: nets.into_iter().map(Prefix::from).collect() };
    let hosts = |addresses: &[IpAddr]| addresses.iter().copied().map(IpNet::from).collect();
    let mut parties = Vec::new();
    if let Some(name) = &ask.pod {
        let pod = pods.iter().find(|pod| pod.name == *name).ok_or_else(|| missing("pod", name, "pods list"))?;
        parties.push(Party { device: pod.host_ifindex, ..of(hosts(&pod.addresses)) });
    }
    if let Some(name) = &ask.peer {
        let peer = config.peers.iter().find(|peer| peer.name == *name);
        parties.push(of(nets(peer.ok_or_else(|| missing("peer", name, "status"))?)));
    }
    parties.extend(ask.host.map(|host| of(hosts(&[host]))));
    parties.extend(ask.net.map(|net| of(vec![net])));
    Ok(parties)
}

/// All that packets from or to a peer may bear.
fn nets(peer: &Peer) -> Vec<IpNet> {
    peer.prefixes().chain(peer.ends().map(|end| IpNet::from(end.underlay))).collect()
}

fn missing(kind: &str, name: &str, verb: &str) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("no {kind} is called `{name}`; see `podwire {verb}`"))
}

/// What workers and programs may decide on a packet that is wanted.
fn wanted(ask: &Ask) -> Result<(Fates, Verdicts), Refusal> {
    if let Some(unknown) = ask.verdicts.iter().find(|label| !labels().any(|known| known == *label)) {
        let known: Vec<_> = labels().collect();
        return Err(Refusal::invalid(format!("no verdict is called `{unknown}`; there are {}", known.join(", "))));
    }
    let by_name = !ask.verdicts.is_empty();
    let is_wanted = |label: &str, outcome: Outcome| {
        let is_asked = if ask.outcomes.is_empty() {
            by_name || outcome != Outcome::Kernel
        } else {
            ask.outcomes.contains(&outcome)
        };
        is_asked && (!by_name || ask.verdicts.iter().any(|name| name == label))
    };
    let dropped = DropReason::ALL.iter().filter(|reason| is_wanted(reason.label(), Outcome::Dropped));
    let forwarded = if is_wanted(FORWARDED, Outcome::Fast) { Fates::FORWARDED } else { Fates::NONE };
    let fates = dropped.fold(forwarded, |fates, &reason| fates.or(Fates::dropped(reason)));
    let verdicts = Verdicts::such_as(|program, verdict| {
        is_wanted(verdict.label(), verdict.outcome().into()) && (by_name || !is_for_name_only(program, verdict))
    });
    if fates == Fates::NONE && verdicts == Verdicts::default() {
        return Err(Refusal::invalid(format!("{} never ends in the way that is asked for", ask.verdicts.join(", "))));
    }
    Ok((fates, verdicts))
}

/// What workers and programs may say, each label once.
fn labels() -> impl Iterator<Item = &'static str> {
    let by_workers = [FORWARDED].into_iter().chain(DropReason::ALL.iter().map(|reason| reason.label()));
    let is_new = |label: &&str| DropReason::ALL.iter().all(|reason| reason.label() != *label);
    by_workers.chain(Verdict::ALL.iter().map(|verdict| verdict.label()).filter(is_new))
}

/// What is traced only when its label is asked for: what a worker tells of too, what of the uplink is no tunnel's, and what
/// of a tunnel was told of at the uplink.
fn is_for_name_only(program: Program, verdict: Verdict) -> bool {
    let is_of_node = matches!(verdict, Verdict::NotVxlan | Verdict::NotIp | Verdict::Vlan);
    let is_known = match program {
        Program::Nic => is_of_node,
        Program::Pod => false,
        Program::Tunnel => verdict.outcome() == steer::Outcome::Kernel,
    };
    is_known || verdict == Verdict::Claimed
}

fn numbers(protocol: Protocol) -> &'static [wire::Protocol] {
    match protocol {
        Protocol::Tcp => &[wire::Protocol::TCP],
        Protocol::Udp => &[wire::Protocol::UDP],
        Protocol::Icmp => &[wire::Protocol::ICMP, wire::Protocol::ICMPV6],
    }
}

impl From<Direction> for trace::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::FromPod => Self::FromPod,
            Direction::ToPod => Self::ToPod,
            Direction::Local => Self::Local,
        }
    }
}

impl From<trace::Direction> for Direction {
    fn from(direction: trace::Direction) -> Self {
        match direction {
            trace::Direction::FromPod => Self::FromPod,
            trace::Direction::ToPod => Self::ToPod,
            trace::Direction::Local => Self::Local,
        }
    }
}

impl From<steer::Outcome> for Outcome {
    fn from(outcome: steer::Outcome) -> Self {
        match outcome {
            steer::Outcome::Fast => Self::Fast,
            steer::Outcome::Kernel => Self::Kernel,
            steer::Outcome::Dropped => Self::Dropped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(verdicts: &[&str], outcomes: &[Outcome]) -> Result<(Fates, Verdicts), Refusal> {
        let verdicts = verdicts.iter().map(|&label| label.to_owned()).collect();
        wanted(&Ask { verdicts, outcomes: outcomes.to_vec(), ..Ask::default() })
    }

    #[test]
    fn what_is_wanted_goes_by_label_and_outcome() {
        let (fates, verdicts) = ask(&[], &[]).unwrap();
        assert_eq!(fates, Fates::FORWARDED.or(Fates::all_dropped()));
        let usual = |_, verdict: Verdict| {
            matches!(verdict, Verdict::Local | Verdict::Bypass) || verdict.outcome() == steer::Outcome::Dropped
        };
        assert_eq!(verdicts, Verdicts::such_as(usual));

        let dropped = Verdicts::such_as(|_, verdict| verdict.outcome() == steer::Outcome::Dropped);
        assert_eq!(ask(&[], &[Outcome::Dropped]).unwrap(), (Fates::all_dropped(), dropped));
        let (fates, verdicts) = ask(&[], &[Outcome::Kernel]).unwrap();
        let left = |program, verdict: Verdict| {
            verdict.outcome() == steer::Outcome::Kernel && (program != Program::Nic || verdict != Verdict::NotVxlan)
        };
        let left = |program, verdict| left(program, verdict) && !is_for_name_only(program, verdict);
        assert_eq!((fates, verdicts), (Fates::NONE, Verdicts::such_as(left)));

        let both = ask(&["too_big", "not_vxlan"], &[]).unwrap();
        let named = |_, verdict| matches!(verdict, Verdict::TooBig | Verdict::NotVxlan);
        assert_eq!(both, (Fates::dropped(DropReason::TooBig), Verdicts::such_as(named)));
        assert_eq!(
            ask(&["too_big"], &[Outcome::Dropped]).unwrap(),
            (Fates::dropped(DropReason::TooBig), Verdicts::default())
        );
    }

    #[test]
    fn labels_that_are_none_are_refused_and_the_known_ones_are_told_once() {
        let refusal = ask(&["lost"], &[]).unwrap_err().to_string();
        for label in ["forwarded", "ecn_illegal", "spoof_ip", "stale"] {
            assert_eq!(refusal.matches(&format!(" {label},")).count(), 1, "{refusal}");
        }
        assert_eq!(labels().filter(|&label| label == "too_big").count(), 1);
        assert!(ask(&["claimed"], &[Outcome::Dropped]).unwrap_err().to_string().contains("claimed never ends"));
    }
}
