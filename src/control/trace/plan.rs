use std::net::IpAddr;

use ipnet::IpNet;

use super::super::api::trace::{Ask, Direction, Protocol};
use super::super::api::{Refusal, RefusalKind};
use super::super::wiring::Pod;
use crate::config::{Config, Peer};
use crate::counters::DropReason;
use crate::ids::IfIndex;
use crate::trace::{self, Fates, Filter, Party, Prefix, SNAP};
use crate::wire;

/// The label of what a worker does not drop.
pub const FORWARDED: &str = "forwarded";

/// What the data plane is to look for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub filter: Filter,
    /// Of so many packets one is taken.
    pub sample: u32,
    /// Bytes of each frame that are kept.
    pub snap: usize,
}

impl Plan {
    /// Understands a request, or says which part of it makes no sense on this node.
    pub fn new(ask: &Ask, config: &Config, pods: &[Pod]) -> Result<Self, Refusal> {
        let filter = Filter {
            vxlan_port: config.vxlan.port,
            fates: fates(ask)?,
            direction: ask.direction.map(Into::into),
            parties: parties(ask, config, pods)?,
            port: ask.port,
            protocols: ask.protocol.map_or(&[], numbers),
        };
        if ask.sample == 0 || !(1..=SNAP).contains(&usize::from(ask.snap)) {
            return Err(Refusal::invalid(format!("a sample is one of 1 packet or more, of 1 to {SNAP} bytes each")));
        }
        Ok(Self { filter, sample: ask.sample, snap: ask.snap.into() })
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
    peer.prefixes().chain([IpNet::from(peer.underlay)]).collect()
}

fn missing(kind: &str, name: &str, verb: &str) -> Refusal {
    Refusal::new(RefusalKind::NotFound, format!("no {kind} is called `{name}`; see `podwire {verb}`"))
}

/// What workers may do with a packet that is wanted.
fn fates(ask: &Ask) -> Result<Fates, Refusal> {
    let mut named = if ask.verdicts.is_empty() { Fates::FORWARDED.or(Fates::all_dropped()) } else { Fates::NONE };
    for label in &ask.verdicts {
        named = named.or(fates_called(label)?);
    }
    Ok(if ask.dropped { named.and(Fates::all_dropped()) } else { named })
}

fn fates_called(label: &str) -> Result<Fates, Refusal> {
    if label == FORWARDED {
        return Ok(Fates::FORWARDED);
    }
    let reason = DropReason::ALL.iter().find(|reason| reason.label() == label);
    reason.map(|&reason| Fates::dropped(reason)).ok_or_else(|| {
        let labels: Vec<_> = DropReason::ALL.iter().map(|reason| reason.label()).collect();
        Refusal::invalid(format!("no verdict is called `{label}`; there are {FORWARDED}, {}", labels.join(", ")))
    })
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
