//! Probes of the peers: echo requests through the overlay, by the kernel path, from our VXLAN device's address to the
//! peer's; or without the tunnel, to a peer that is reached so. A node that is not podwire answers too.
//!
//! ```text
//!              small, and sometimes of full size        UDP 8472
//!   our VTEP ────────────────────────────────▶ podwire.1 ═══════▶ peer's VTEP
//!     │        small, when the tunnel fails
//!     └───────────────────────────────────────────────────────▶ peer's underlay address
//! ```
//!
//! One small packet a peer and interval, one peer after the other, and no more than [`RATE`] peers a second: with many
//! peers the interval grows. Nothing wakes the control thread between two turns: replies wait in their sockets, with the
//! kernel's time of arrival. What a reply must bear is in [`Echo`]; what else arrives is not received at all. What the
//! kernel drops of a peer's tunnel packets, and why, is seen by a [`Witness`] at the uplink while one does not answer;
//! [`diagnose`] puts all of it in words.

mod diagnosis;
mod echo;
mod record;
mod socket;
mod witness;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use super::api;
use super::vtep::Vtep;
use crate::config::{self, Config};
use crate::ids::IfIndex;
use crate::packet;
use diagnosis::{Scene, Target, diagnose};
use echo::Echo;
use record::{Kind, Record};
use socket::EchoSocket;
use witness::{Own, Witness};

#[cfg(fuzzing)]
pub use witness::fuzz;

/// Bytes of a small request, its IP header included: that of `ping`.
const SMALL: usize = 84;

/// The most peers that are probed in a second.
const RATE: u32 = 200;

/// The least time between two turns.
const TICK: Duration = Duration::from_millis(100);

/// Packets that are taken from a socket at once, so that a flood is not followed.
const DRAUGHT: usize = 1024;

/// What was seen this many intervals ago is still evidence.
const MEMORY: u32 = 4;

/// Why peers are not probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("cannot open a socket for probes from {0}: {1}")]
    Socket(IpAddr, #[source] io::Error),
    #[error("cannot look at tunnel packets: {0}")]
    Witness(#[from] packet::Error),
}

/// What is probed from where: by the first tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ground {
    own: Own,
    uplink: String,
    device: String,
    /// Which device has that name now.
    index: IfIndex,
    /// Answers may come by the uplink: without the tunnel.
    direct_routing: bool,
    mtu: u16,
}

/// The sockets of one [`Ground`].
#[derive(Debug)]
struct Sockets {
    /// Through the overlay, one for each family.
    overlay: Vec<(bool, EchoSocket)>,
    underlay: EchoSocket,
    /// Only while a peer does not answer: with it the kernel clones each IP packet that the uplink hands to its stack,
    /// before the filter is asked (`__netif_receive_skb_core` in `net/core/dev.c`, `ip_rcv_core`).
    witness: Option<Witness>,
}

/// Probes all peers in turn.
#[derive(Debug)]
pub struct Prober {
    peers: Vec<(Target, Record)>,
    by_address: HashMap<IpAddr, usize>,
    by_underlay: HashMap<IpAddr, usize>,
    ground: Option<(Ground, Sockets)>,
    problem: Option<ProbeError>,
    /// Zero: nothing is probed.
    interval: Duration,
    due: Option<Instant>,
    /// The next peer to probe.
    next: usize,
    /// Requests so far.
    count: u64,
    /// What nobody else knows.
    secret: RandomState,
}

impl Prober {
    /// Probes nobody yet.
    pub fn new() -> Self {
        Self {
            peers: Vec::new(),
            by_address: HashMap::new(),
            by_underlay: HashMap::new(),
            ground: None,
            problem: None,
            interval: Duration::ZERO,
            due: None,
            next: 0,
            count: 0,
            secret: RandomState::new(),
        }
    }

    /// Brings it to what is configured and there: `vtep`, and the VXLAN device. What is known of a peer that stays as
    /// it is, stays.
    pub fn follow(&mut self, config: &Config, vtep: Option<&Vtep>, device: Option<IfIndex>, now: Instant) {
        self.interval = config.probe.interval;
        let ground = vtep.zip(device).map(|(vtep, index)| ground(config, vtep, index));
        let ground = ground.filter(|_| !self.interval.is_zero() && !config.peers.is_empty());
        self.settle_on(ground);
        let addresses = self.ground.as_ref().map_or(&[][..], |(ground, _)| &ground.own.addresses);
        let targets: Vec<_> = config.peers.iter().filter_map(|peer| target(peer, vtep?, addresses)).collect();
        if !targets.iter().eq(self.peers.iter().map(|(target, _)| target)) {
            self.take(targets);
        }
        self.due = match (&self.ground, self.due) {
            (Some(_), None) if !self.peers.is_empty() => Some(now),
            (Some(_), due) if !self.peers.is_empty() => due,
            _ => None,
        };
    }

    /// When the next turn is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Why peers are not probed, though they should be.
    pub fn problem(&self) -> Option<&ProbeError> {
        self.problem.as_ref()
    }

    /// Judges the last requests to the peers whose turn it is, and sends new ones; returns those peers' names and underlay
    /// addresses.
    pub fn turn(&mut self, now: Instant) -> Vec<(String, IpAddr)> {
        self.look(now);
        let (pause, peers) = self.pace();
        self.due = Some(now + pause);
        let turn: Vec<usize> = (0..peers).map(|n| (self.next + n) % self.peers.len()).collect();
        self.next = (self.next + peers) % self.peers.len().max(1);
        for &index in &turn {
            self.peers[index].1.settle();
        }
        self.watch();
        for &index in &turn {
            self.probe(index);
        }
        let turn = turn.into_iter().map(|index| &self.peers[index].0);
        turn.map(|target| (target.name.clone(), target.underlay)).collect()
    }

    /// Takes what has arrived.
    pub fn look(&mut self, now: Instant) {
        let Some((_, sockets)) = &self.ground else { return };
        // First: whoever is seen here and not there is dropped in between.
        for _ in 0..DRAUGHT {
            let Some(Ok(Some(sighting))) = sockets.witness.as_ref().map(Witness::take) else { break };
            if let Some((target, record)) = find(&mut self.peers, &self.by_underlay, sighting.from) {
                record.see(sighting.what, target.mac, target.address, now);
            }
        }
        let overlay = sockets.overlay.iter().map(|(_, socket)| (socket, &self.by_address, false));
        for (socket, whose, is_underlay) in overlay.chain([(&sockets.underlay, &self.by_underlay, true)]) {
            for _ in 0..DRAUGHT {
                let Ok(Some(arrival)) = socket.take() else { break };
                if let Some((_, record)) = find(&mut self.peers, whose, arrival.from) {
                    record.answer(is_underlay, arrival.echo, arrival.at, now);
                }
            }
        }
    }

    /// What is known of the peer at an underlay address; `no_hop` says why there is no way to it.
    pub fn report(&self, underlay: IpAddr, up: bool, no_hop: Option<&str>, now: Instant) -> Option<api::Probe> {
        let (ground, _) = self.ground.as_ref()?;
        let (target, record) = self.peers.get(*self.by_underlay.get(&underlay)?)?;
        let scene = Scene {
            own: &ground.own,
            uplink: &ground.uplink,
            uplink_is_up: up,
            device: &ground.device,
            mtu: ground.mtu,
            no_hop,
            now,
            memory: self.sweep() * MEMORY,
        };
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (recent, recent_lost) = record.recent();
        Some(api::Probe {
            address: target.address,
            state: record.state(),
            rtt_ns: record.rtt.map(ns),
            smoothed_rtt_ns: record.smoothed_rtt.map(ns),
            sent: record.answered + record.lost,
            lost: record.lost,
            recent,
            recent_lost,
            answered_ms_ago: record.small.answered_at.map(|at| ms(now.saturating_duration_since(at))),
            diagnosis: diagnose(target, record, &scene),
        })
    }

    /// Opens sockets for another ground than before.
    fn settle_on(&mut self, ground: Option<Ground>) {
        if self.ground.as_ref().map(|(ground, _)| ground) == ground.as_ref() && self.problem.is_none() {
            return;
        }
        // Those of the old one first: both would get the replies.
        self.ground = None;
        let id = self.id();
        let opened = ground.map(|ground| Sockets::open(&ground, id).map(|sockets| (ground, sockets))).transpose();
        (self.ground, self.problem) = match opened {
            Ok(ground) => (ground, None),
            Err(error) => (None, Some(error)),
        };
    }

    /// Probes these peers from now on, beginning with the one whose turn it was.
    fn take(&mut self, targets: Vec<Target>) {
        let turn = self.peers.get(self.next).map(|(target, _)| target.underlay);
        let mut known: Vec<_> = self.peers.drain(..).map(Some).collect();
        let mut record_of = |target: &Target| {
            let (before, record) = known.get_mut(*self.by_underlay.get(&target.underlay)?)?.take()?;
            ((&before.name, before.address) == (&target.name, target.address)).then_some(record)
        };
        let with_record = |target: Target| {
            let record = record_of(&target).unwrap_or_default();
            (target, record)
        };
        self.peers = targets.into_iter().map(with_record).collect();
        let index = |of: fn(&Target) -> IpAddr| {
            self.peers.iter().enumerate().map(move |(index, (target, _))| (of(target), index)).collect()
        };
        (self.by_address, self.by_underlay) = (index(|target| target.address), index(|target| target.underlay));
        let place = turn.and_then(|underlay| self.by_underlay.get(&underlay)).copied();
        self.next = place.unwrap_or(self.next) % self.peers.len().max(1);
    }

    /// How long it takes until each peer has had its turn.
    fn sweep(&self) -> Duration {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX);
        self.interval.max(Duration::from_secs(1) * peers / RATE)
    }

    /// The time between two turns, and how many peers each is for.
    fn pace(&self) -> (Duration, usize) {
        let peers = u32::try_from(self.peers.len()).unwrap_or(u32::MAX).max(1);
        let one = self.sweep() / peers;
        let together = TICK.div_duration_f64(one.max(Duration::from_nanos(1))).ceil().clamp(1.0, f64::from(peers));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the number of peers"
        )]
        let together = together as u32;
        (one * together, (together as usize).min(self.peers.len()))
    }

    /// Looks at what arrives of tunnels from the first request that is lost, until all are answered again.
    fn watch(&mut self) {
        let is_wanted = self.peers.iter().any(|(_, record)| record.small.lost_in_a_row > 0);
        let Some((ground, sockets)) = &mut self.ground else { return };
        if is_wanted == sockets.witness.is_some() {
            return;
        }
        match is_wanted.then(|| Witness::open(ground.own.clone())).transpose() {
            Ok(witness) => sockets.witness = witness,
            Err(error) => self.problem = Some(error.into()),
        }
    }

    fn probe(&mut self, index: usize) {
        let id = self.id();
        let (Some((ground, sockets)), Some((target, record))) = (&self.ground, self.peers.get_mut(index)) else {
            return;
        };
        for kind in record.wanted() {
            self.count += 1;
            #[expect(clippy::cast_possible_truncation, reason = "a sequence number begins again")]
            let echo = Echo { id, sequence: self.count as u16, token: self.secret.hash_one(self.count) };
            let overlay = || sockets.overlay.iter().find(|(is_ipv6, _)| *is_ipv6 == target.address.is_ipv6());
            let (socket, to, bytes) = match kind {
                Kind::Underlay => (Some(&sockets.underlay), target.underlay, SMALL),
                Kind::Small => (overlay().map(|(_, socket)| socket), target.address, SMALL),
                Kind::Full => (overlay().map(|(_, socket)| socket), target.address, ground.mtu.into()),
            };
            let sent = SystemTime::now();
            let result = socket.map_or(Ok(()), |socket| socket.send(to, echo, bytes));
            record.asked(kind, echo, sent, result.err().map(|error| error.to_string()));
        }
    }

    /// The identifier of our requests.
    fn id(&self) -> u16 {
        let [.., a, b] = self.secret.hash_one("identifier").to_be_bytes();
        u16::from_be_bytes([a, b])
    }
}

impl Sockets {
    fn open(ground: &Ground, id: u16) -> Result<Self, ProbeError> {
        let open =
            |from: IpAddr, device| EchoSocket::open(from, device, id).map_err(|error| ProbeError::Socket(from, error));
        let device = (!ground.direct_routing).then_some(ground.device.as_str());
        let overlay = |address: &IpAddr| Ok((address.is_ipv6(), open(*address, device)?));
        Ok(Self {
            overlay: ground.own.addresses.iter().map(overlay).collect::<Result<_, ProbeError>>()?,
            underlay: open(ground.own.underlay, None)?,
            witness: None,
        })
    }
}

/// The peer that `whose` has under an address.
fn find<'p>(
    peers: &'p mut [(Target, Record)],
    whose: &HashMap<IpAddr, usize>,
    address: IpAddr,
) -> Option<&'p mut (Target, Record)> {
    peers.get_mut(*whose.get(&address)?)
}

fn ground(config: &Config, vtep: &Vtep, index: IfIndex) -> Ground {
    Ground {
        own: Own {
            uplink: vtep.uplink.index,
            underlay: vtep.underlay,
            port: config.vxlan.port,
            vni: config.vxlan.vni.get(),
            mac: vtep.mac,
            addresses: vtep.addresses_on(false).collect(),
        },
        uplink: vtep.uplink.name.clone(),
        device: config.vxlan.device.clone(),
        index,
        direct_routing: config.vxlan.direct_routing,
        mtu: vtep.mtu,
    }
}

/// Where to probe a peer from one of our `addresses`: IPv4 if both have it. None where they have no family in common.
fn target(peer: &config::Peer, vtep: &Vtep, addresses: &[IpAddr]) -> Option<Target> {
    let has_family = |is_ipv6| addresses.iter().any(|ours| ours.is_ipv6() == is_ipv6);
    let common = peer.pod_cidrs.iter().filter(|theirs| has_family(theirs.addr().is_ipv6()));
    let range = common.min_by_key(|theirs| theirs.addr().is_ipv6())?;
    Some(Target {
        name: peer.name.clone(),
        underlay: peer.underlay,
        mac: peer.vtep_mac,
        address: range.network(),
        is_direct: vtep.is_direct(peer, range),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::wire::Mac;

    fn prober(peers: u16, interval: Duration) -> Prober {
        let target = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let [underlay, address] = [[172, 16, high, low], [10, high, low, 0]].map(IpAddr::from);
            Target { name: format!("peer-{n}"), underlay, mac: Mac([2; 6]), address, is_direct: false }
        };
        let mut prober = Prober { interval, ..Prober::new() };
        prober.take((0..peers).map(target).collect());
        prober
    }

    #[test]
    fn turns_are_spread_over_the_interval_and_many_peers_stretch_it() {
        let (tick, five) = (TICK, Duration::from_secs(5));
        for (peers, pause, together) in [
            (1, five, 1),
            (2, five / 2, 1),
            (50, tick, 1),
            (100, tick, 2),
            (1000, tick, 20),
            (5000, tick, 20),
            (50_000, tick, 20),
        ] {
            assert_eq!(prober(peers, five).pace(), (pause, together), "{peers}");
        }
    }

    #[test]
    fn each_peer_has_its_turn_once_in_a_sweep() {
        let (mut prober, now) = (prober(7, Duration::from_millis(200)), Instant::now());
        let (_, together) = prober.pace();
        let turns: Vec<_> = (0..7).flat_map(|_| prober.turn(now)).map(|(name, _)| name).collect();
        assert_eq!((together, turns.len()), (4, 28));
        for n in 0..7 {
            assert_eq!(turns.iter().filter(|name| **name == format!("peer-{n}")).count(), 4);
        }
    }

    #[test]
    fn each_peer_has_its_turn_however_often_others_come_and_go() {
        let (mut prober, now) = (prober(7, Duration::from_millis(200)), Instant::now());
        let targets: Vec<_> = prober.peers.iter().map(|(target, _)| target.clone()).collect();
        let mut seen = HashSet::new();
        // Of six, or of the last five of them: the place of the one whose turn it is changes.
        for first in [0, 1] {
            prober.take(targets[first..6].to_vec());
            seen.extend(prober.turn(now).into_iter().map(|(name, _)| name));
        }
        assert!((0..6).all(|n| seen.contains(&format!("peer-{n}"))), "{seen:?}");
    }

    #[test]
    fn what_is_known_of_a_peer_lasts_as_long_as_it_stays_the_same() {
        let mut prober = prober(3, TICK);
        prober.peers[1].1.lost = 7;
        prober.peers[2].1.lost = 9;
        let mut targets: Vec<_> = prober.peers.iter().map(|(target, _)| target.clone()).rev().collect();
        targets[0].address = IpAddr::from([10, 9, 9, 0]);
        targets[1].mac = Mac([4; 6]);
        prober.take(targets);
        let lost: Vec<_> = prober.peers.iter().map(|(_, record)| record.lost).collect();
        assert_eq!(lost, [0, 7, 0], "another MAC of a peer is the same peer, another range is not");
        assert_eq!(prober.by_underlay.len(), 3);
    }
}
