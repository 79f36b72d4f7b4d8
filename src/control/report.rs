//! What the node answers when it is asked how it is.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;

use super::api::{
    ConfigStatus, Hub, Masquerade, Nat, NatCheck, Path, Peer, Pod, PodStats, Probe, Ready, Route, Second, SlowPod,
    Stats, Status, Tallies, Uplink, Vxlan, Way, WorkerStats,
};
use super::devices;
use super::node::Node;
use super::vtep;
use super::wiring;
use crate::config::{self, Config};
use crate::steer::{self, PodPath};

/// The ends of peers' tunnels that the workers reach, each with the peer's name.
pub(super) type Served<'n> = HashSet<(&'n str, IpAddr)>;

/// Why something takes the kernel path.
const NO_DATA_PLANE: &str = "no data plane runs";
const NOT_TAKEN_OVER: &str = "the data plane has not taken it over yet";

impl Node {
    /// `podwire status`.
    pub fn status(&self, now: Instant) -> Status {
        let vtep = self.observed.vtep.as_ref();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.config.node.name.clone(),
            mode: self.config.dataplane.mode.to_string(),
            uptime_secs: now.saturating_duration_since(self.started).as_secs(),
            config: ConfigStatus {
                file: self.file.path.clone(),
                generation: self.file.generation,
                last_error: self.file.last_error.clone(),
            },
            dataplane: self.lifecycle.report(now),
            uplink: vtep.map(|vtep| uplink(&vtep.uplink)),
            vxlan: Vxlan {
                device: self.config.vxlan.device.clone(),
                vni: self.config.vxlan.vni.get(),
                port: self.config.vxlan.port,
                vtep: vtep.map(|vtep| vtep.underlay),
                vtep_mac: vtep.map(|vtep| vtep.mac.to_string()),
                second: vtep.and_then(|vtep| vtep.second).map(|end| Second {
                    device: self.config.vxlan.second_device(),
                    underlay: end.underlay,
                    vtep_mac: end.mac.to_string(),
                }),
                mtu: vtep.map(|vtep| vtep.mtu),
            },
            hub: self.observed.hub.map(|hub| Hub { ifindex: hub.near.0 }),
            nat: Nat {
                check: match self.nat.check() {
                    steer::NatCheck::None => NatCheck::None,
                    steer::NatCheck::Lookup => NatCheck::Lookup,
                    steer::NatCheck::Kernel => NatCheck::Kernel,
                },
                why: self.nat.why(),
            },
            masquerade: Masquerade {
                on: self.config.cluster.masquerade,
                problem: self.rules.problem().filter(|_| self.config.cluster.masquerade).map(ToString::to_string),
            },
            kubernetes: self.membership.status(now),
            peers: self.peers(now),
            pods: self.store.pods().len(),
            slow_pods: self.slow_pods(),
            problems: self.problems(),
        }
    }

    /// Whether a pod can be attached now, and how many more.
    pub fn ready(&self) -> Ready {
        let mtu = self.observed.vtep.as_ref().map(|vtep| vtep.mtu);
        Ready { problem: self.not_ready(), mtu, ranges: self.ranges() }
    }

    /// Why no pod can be attached now, if none can: that takes our end of the tunnel, whose addresses are the source of
    /// the pods' routes.
    pub(super) fn not_ready(&self) -> Option<String> {
        self.observed.tunnel_end().is_none().then(|| self.obstacles())
    }

    /// Why no pod can be attached, when none can.
    pub(super) fn obstacles(&self) -> String {
        let problems = self.problems();
        if problems.is_empty() { "the kernel path is not set up yet".to_owned() } else { problems.join("; ") }
    }

    /// `podwire stats`.
    pub fn stats(&self) -> Stats {
        let figures = self.lifecycle.figures().unwrap_or_default();
        let workers = figures.workers.into_iter().map(|worker| WorkerStats {
            worker: worker.worker,
            tallies: Tallies { counts: worker.counts, drops: worker.drops },
        });
        let name = |id: u16| self.store.pods().iter().find(|pod| pod.id.get() == id).map(|pod| pod.name.clone());
        let pods = figures.pods.into_iter().filter_map(|credit| Some(PodStats { name: name(credit.pod)?, credit }));
        let Config { vxlan, node, .. } = &self.config;
        let second = self.observed.vtep.as_ref().and_then(|vtep| vtep.second).map(|_| vxlan.second_device());
        let names: Vec<&str> = [&vxlan.device, &node.uplink].into_iter().chain(&second).map(String::as_str).collect();
        let kernel = devices::read(&names).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read the counters of devices");
            Vec::new()
        });
        Stats {
            workers: workers.collect(),
            retired: self.lifecycle.retired().tallies.clone(),
            pods: pods.collect(),
            queues: figures.queues,
            verdicts: self.lifecycle.retired().with(figures.verdicts),
            kernel,
        }
    }

    /// `podwire routes`.
    pub fn routes(&self) -> Vec<Route> {
        let (peers, served) = (self.config.peers.iter(), self.served());
        let route = |peer, prefix| self.route(peer, prefix, served.as_ref());
        peers.flat_map(|peer| peer.prefixes().map(move |prefix| route(peer, prefix))).collect()
    }

    /// `podwire pods list`.
    pub fn pods(&self) -> Vec<Pod> {
        self.store.pods().iter().map(|pod| self.describe(pod)).collect()
    }

    /// A pod as clients see it.
    pub(super) fn describe(&self, pod: &wiring::Pod) -> Pod {
        let gone = self.observed.gone.contains(&pod.id).then(|| format!("its device {} is gone", pod.host_ifname));
        let (path, reason) = self.pod_path(pod);
        Pod {
            id: pod.id.get(),
            name: pod.name.clone(),
            addresses: pod.addresses.clone(),
            mac: pod.mac.to_string(),
            netns: pod.netns.clone(),
            ifname: pod.ifname.clone(),
            host_ifname: pod.host_ifname.clone(),
            host_mac: pod.host_mac.to_string(),
            mtu: self.observed.vtep.as_ref().map(|vtep| vtep.mtu),
            owner: pod.owner.clone(),
            path,
            reason,
            problem: gone.or_else(|| self.faults.get(&pod.id).cloned()),
        }
    }

    /// The path of a pod's packets as the programs were last told, and why it is not the fast one.
    fn pod_path(&self, pod: &wiring::Pod) -> (Path, Option<String>) {
        let slow = |why: &str| (Path::Kernel, Some(why.to_owned()));
        let Some(view) = self.lifecycle.view() else { return slow(NO_DATA_PLANE) };
        match view.pods.iter().find(|known| known.pod.ifindex == pod.host_ifindex) {
            Some(known) if known.path == PodPath::Fast => (Path::Fast, None),
            Some(_) => slow(self.observed.shaped.get(&pod.host_ifindex).map_or(NOT_TAKEN_OVER, String::as_str)),
            None => slow(NOT_TAKEN_OVER),
        }
    }

    fn slow_pods(&self) -> Vec<SlowPod> {
        let shaped = &self.observed.shaped;
        let slow = |pod: &wiring::Pod| {
            Some(SlowPod { name: pod.name.clone(), reason: shaped.get(&pod.host_ifindex)?.clone() })
        };
        self.store.pods().iter().filter_map(slow).collect()
    }

    /// One row of it.
    pub(super) fn route(&self, peer: &config::Peer, prefix: IpNet, served: Option<&Served<'_>>) -> Route {
        let underlay = self.observed.vtep.as_ref().map_or(peer.underlay, |vtep| vtep.end_for(peer, &prefix).underlay);
        let (path, reason) = match (self.path(&peer.name, [underlay], served), self.exception(peer, &prefix)) {
            ((Path::Fast, _), Some(why)) => (Path::Kernel, Some(why.to_owned())),
            (path, _) => path,
        };
        let hop = self.observed.hops.get(&underlay).and_then(|hop| hop.as_ref().ok());
        let next_hop = hop.map(|hop| hop.dst_mac.to_string());
        let way = self.way(peer, &prefix);
        Route { prefix, peer: peer.name.clone(), underlay, next_hop, way, path, reason }
    }

    fn way(&self, peer: &config::Peer, prefix: &IpNet) -> Way {
        let vtep = self.observed.vtep.as_ref();
        if vtep.is_some_and(|vtep| vtep.is_direct(peer, prefix)) { Way::Direct } else { Way::Vxlan }
    }

    fn peers(&self, now: Instant) -> Vec<Peer> {
        let served = self.served();
        self.config.peers.iter().map(|peer| self.peer(peer, served.as_ref(), now)).collect()
    }

    fn peer(&self, peer: &config::Peer, served: Option<&Served<'_>>, now: Instant) -> Peer {
        let vtep = self.observed.vtep.as_ref();
        let end = |range: &IpNet| vtep.map_or(peer.underlay, |vtep| vtep.end_for(peer, range).underlay);
        let (path, reason) = self.path(&peer.name, peer.pod_cidrs.iter().map(end), served);
        let (vtep_mac, underlay6) = (peer.vtep_mac.to_string(), peer.second.map(|end| end.underlay));
        let vtep_mac6 = peer.second.map(|end| end.mac.to_string());
        let probe = self.probed(peer.underlay, now);
        let ways: BTreeSet<Way> = peer.pod_cidrs.iter().map(|range| self.way(peer, range)).collect();
        let ways = ways.into_iter().collect();
        let (name, underlay) = (peer.name.clone(), peer.underlay);
        Peer { name, underlay, vtep_mac, underlay6, vtep_mac6, ways, path, reason, probe }
    }

    /// What the probes of a peer have shown.
    pub(super) fn probed(&self, underlay: IpAddr, now: Instant) -> Option<Probe> {
        let uplink_is_up = self.observed.vtep.as_ref().is_some_and(|vtep| vtep.uplink.up);
        let hop = self.observed.hops.get(&underlay).and_then(|hop| hop.as_ref().err());
        self.prober.report(underlay, uplink_is_up, hop.map(ToString::to_string).as_deref(), now)
    }

    /// How packets for a peer leave to these ends of its tunnels, and why not by the workers, all of them.
    fn path(
        &self,
        peer: &str,
        underlays: impl IntoIterator<Item = IpAddr>,
        served: Option<&Served<'_>>,
    ) -> (Path, Option<String>) {
        let ends: BTreeSet<IpAddr> = underlays.into_iter().collect();
        if let Some(Err(why)) = ends.iter().filter_map(|end| self.observed.hops.get(end)).find(|hop| hop.is_err()) {
            return (Path::Kernel, Some(why.to_string()));
        }
        match served {
            None => (Path::Kernel, Some(NO_DATA_PLANE.to_owned())),
            Some(served) if ends.iter().all(|end| served.contains(&(peer, *end))) => (Path::Fast, None),
            Some(_) => (Path::Kernel, Some(NOT_TAKEN_OVER.to_owned())),
        }
    }

    /// What the workers reach; `None` without them.
    pub(super) fn served(&self) -> Option<Served<'_>> {
        let remotes = self.lifecycle.view()?.remotes.iter();
        Some(remotes.map(|remote| (remote.name.as_str(), remote.underlay)).collect())
    }
}

fn uplink(uplink: &vtep::Uplink) -> Uplink {
    Uplink {
        name: uplink.name.clone(),
        ifindex: uplink.index.0,
        mac: uplink.mac.to_string(),
        mtu: uplink.mtu,
        up: uplink.up,
        rx_queues: uplink.queues.receive,
        addresses: uplink.addresses.clone(),
    }
}
