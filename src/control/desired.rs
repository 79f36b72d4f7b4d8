//! What the data plane should be, from the configuration and what was last observed.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::dataplane::largest_inner;
use super::lifecycle::Wanted;
use super::node::Node;
use super::plan::Tunnels;
use super::view::{PodView, RemoteView, Settings, View};
use super::vtep::{Uplink, Vtep};
use super::wiring::Pod;
use crate::config::{Config, Dataplane, Mode, Peer};
use crate::fib::LocalPod;
use crate::ids::{HubEnds, IfIndex};
use crate::steer::{NatCheck, PodPath};
use crate::wire::TunnelEnd;

impl Node {
    /// What the data plane should be, as things were last observed.
    pub(super) fn wanted(&self) -> Wanted {
        if self.config.dataplane.mode == Mode::Kernel {
            return Wanted::Off;
        }
        let Some(vtep) = &self.observed.vtep else {
            let awaits = self.config.awaits_members();
            let reason = if awaits { self.obstacles() } else { self.observed.problems.join("; ") };
            return Wanted::Impossible { reason, settings: None };
        };
        let settings = Box::new(settings(&self.config, vtep, self.observed.hub.unwrap_or(HubEnds::NONE)));
        match self.obstacle(vtep) {
            Some(reason) => Wanted::Impossible { reason, settings: Some(settings) },
            None => Wanted::Running(settings),
        }
    }

    /// Why no worker can run.
    fn obstacle(&self, vtep: &Vtep) -> Option<String> {
        if self.observed.hub.is_none() {
            return Some(self.observed.problems.join("; "));
        }
        if !vtep.uplink.up {
            return Some(format!("the uplink {} is down; set it up", vtep.uplink.name));
        }
        let largest = largest_inner(vtep.ends().map(|end| end.underlay));
        let Dataplane { xdp, zero_copy, bulk, .. } = self.config.dataplane;
        // A socket of AF_XDP takes frames that fit a chunk, and drops others.
        if vtep.mtu > largest && xdp.is_needed(zero_copy, bulk) {
            let Uplink { name, mtu, .. } = &vtep.uplink;
            let lower = u32::from(largest) + mtu - u32::from(vtep.mtu);
            return Some(format!(
                "the MTU {mtu} of {name} makes frames larger than AF_XDP takes here; set it to {lower} or less on all nodes, or do without XDP: dataplane.xdp = \"off\""
            ));
        }
        None
    }

    /// The desired state of the data plane: wired pods, and peers whose next hop is resolved.
    pub(super) fn view(&self) -> View {
        let wired = |pod: &&Pod| !self.observed.gone.contains(&pod.id) && !self.newcomers.contains(pod.id);
        let pods = self.store.pods().iter().filter(wired).map(|pod| self.pod_view(pod)).collect();
        let peers = || self.config.peers.iter();
        let vtep = self.observed.vtep.as_ref();
        let remotes = vtep.into_iter().flat_map(|vtep| peers().flat_map(|peer| self.remotes(peer, vtep)));
        View {
            pods,
            remotes: remotes.collect(),
            tunnels: self.tunnels(),
            vteps: Arc::new(peers().flat_map(|peer| peer.ends()).map(|end| end.underlay).collect()),
            known_vteps_only: self.config.dataplane.known_vteps_only,
            takes_bare: self.observed.takes_bare,
            nat: self.nat.check(),
        }
    }

    fn tunnels(&self) -> BTreeMap<IfIndex, bool> {
        let may_bypass = self.bypass().is_some();
        self.observed.tunnels.into_iter().flat_map(Tunnels::devices).map(|device| (device, may_bypass)).collect()
    }

    /// The tunnels by which packets may go past the node's stack. None with group policies, which the stack sets and judges,
    /// and where programs or filters of others may let it have what comes.
    fn bypass(&self) -> Option<Tunnels> {
        let may_bypass = self.config.dataplane.bypass && !self.config.vxlan.gbp;
        let is_ours = |tunnels: &Tunnels| tunnels.devices().all(|device| !self.observed.shaped.contains_key(&device));
        self.observed.tunnels.filter(|_| may_bypass).filter(is_ours)
    }

    /// What the workers reach of a peer, by the ways to it.
    fn remotes(&self, peer: &Peer, vtep: &Vtep) -> Vec<RemoteView> {
        peer.ends().flat_map(|end| self.remotes_at(peer, end, vtep)).collect()
    }

    /// What they reach of it by one end of its tunnels.
    fn remotes_at(&self, peer: &Peer, end: TunnelEnd, vtep: &Vtep) -> Vec<RemoteView> {
        let Some(Ok(hop)) = self.observed.hops.get(&end.underlay) else { return Vec::new() };
        let is_its = |prefix: &IpNet| vtep.end_for(peer, prefix) == end && self.exception(peer, prefix).is_none();
        let is_on_link = hop.via == end.underlay;
        let (direct, tunnelled): (Vec<_>, Vec<_>) =
            peer.prefixes().filter(is_its).partition(|prefix| is_on_link && vtep.is_direct(peer, prefix));
        let ways = [(direct, None), (tunnelled, Some(end.mac))].into_iter();
        let tunnel = self.bypass().map(|tunnels| tunnels.to(end, peer, vtep));
        ways.filter(|(prefixes, _)| !prefixes.is_empty())
            .map(|(prefixes, vtep_mac)| RemoteView {
                name: peer.name.clone(),
                prefixes,
                underlay: end.underlay,
                vtep_mac,
                dst_mac: hop.dst_mac,
                mtu: vtep.mtu,
                tunnel: tunnel.filter(|_| vtep_mac.is_some()),
            })
            .collect()
    }

    /// Why the workers do not carry what pods send to `prefix`, one of the peer's, even when they reach the peer. A
    /// node's address may be a service's too (a load balancer's, or an external one): then the kernel's conntrack has
    /// to see a flow's first packet to translate it.
    pub(super) fn exception(&self, peer: &Peer, prefix: &IpNet) -> Option<&'static str> {
        if peer.pod_cidrs.contains(prefix) {
            return None;
        }
        if self.observed.addresses.contains(&prefix.addr()) {
            return Some("it is an address of this node");
        }
        (self.nat.check() != NatCheck::None).then_some("the node's kernel may translate it")
    }

    fn pod_view(&self, pod: &Pod) -> PodView {
        let local = LocalPod { id: pod.id, ifindex: pod.host_ifindex, mac: pod.mac, gateway_mac: pod.host_mac };
        let is_shaped = self.observed.shaped.contains_key(&pod.host_ifindex);
        let path = if is_shaped { PodPath::Kernel } else { PodPath::Fast };
        PodView { pod: local, addresses: pod.addresses.clone(), path }
    }
}

fn settings(config: &Config, vtep: &Vtep, hub: HubEnds) -> Settings {
    let (vxlan, dataplane) = (&config.vxlan, &config.dataplane);
    Settings {
        uplink: vtep.uplink.index,
        uplink_name: vtep.uplink.name.clone(),
        uplink_mac: vtep.uplink.mac,
        queues: vtep.uplink.queues,
        hub,
        vtep: vtep.underlay,
        vtep_mac: vtep.mac,
        second: vtep.second,
        vni: vxlan.vni,
        port: vxlan.port,
        udp_checksum: vxlan.udp_checksum,
        mtu: vtep.mtu,
        mode: dataplane.mode,
        cores: dataplane.cores.clone(),
        xdp: dataplane.xdp,
        zero_copy: dataplane.zero_copy,
        busy_poll: dataplane.busy_poll,
        bulk: dataplane.bulk,
        frames: dataplane.frames,
        hub_slots: dataplane.hub_slots,
        pod_trains: dataplane.pod_trains,
        stale_ms: dataplane.stale_ms,
        wake_pps: dataplane.wake_pps,
        pod_cidrs: config.node.pod_cidrs.clone(),
    }
}
