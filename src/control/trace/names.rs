use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use super::super::node::Node;
use crate::ids::{IfIndex, PodId};
use crate::trace::{Flow, Hop};

/// What the node calls the things that packets pass; replaced while they are read.
#[derive(Debug)]
pub struct Names(RwLock<NameTable>);

#[derive(Debug, Default)]
pub struct NameTable {
    uplink: String,
    /// Where frames come from whose pod is not known.
    hub: &'static str,
    tunnels: Vec<(IfIndex, String)>,
    pods: Vec<PodName>,
    by_address: HashMap<IpAddr, usize>,
    /// By VTEP address.
    peers: HashMap<IpAddr, String>,
}

#[derive(Clone, Debug)]
pub struct PodName {
    id: PodId,
    pub name: String,
    /// The host end of its veth pair.
    pub device: String,
    ifindex: IfIndex,
}

impl Names {
    pub fn new(table: NameTable) -> Self {
        Self(RwLock::new(table))
    }

    pub fn replace(&self, table: NameTable) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = table;
    }

    /// Reads the names as they are now.
    pub fn read<T>(&self, read: impl FnOnce(&NameTable) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl NameTable {
    pub fn uplink(&self) -> &str {
        &self.uplink
    }

    pub fn hub(&self) -> &str {
        self.hub
    }

    /// A VXLAN device, unless it has gone.
    pub fn tunnel(&self, device: IfIndex) -> Option<&str> {
        self.tunnels.iter().find(|(index, _)| *index == device).map(|(_, name)| name.as_str())
    }

    /// The pod of this node that a packet comes from, or else the one that it goes to.
    pub fn pod_of(&self, flow: &Flow) -> Option<&PodName> {
        self.pod_with(flow.source).or_else(|| self.pod_with(flow.destination))
    }

    /// The pod of this node with an address.
    pub fn pod_with(&self, address: IpAddr) -> Option<&PodName> {
        self.by_address.get(&address).and_then(|&at| self.pods.get(at))
    }

    /// The pod behind a device.
    pub fn pod_at(&self, device: IfIndex) -> Option<&PodName> {
        self.pods.iter().find(|pod| pod.ifindex == device)
    }

    /// A next hop for people.
    pub fn hop(&self, hop: Hop) -> String {
        match hop {
            Hop::Vtep(address) => match self.peers.get(&address) {
                Some(peer) => format!("{peer} ({address})"),
                None => address.to_string(),
            },
            Hop::Pod(id) => match self.pods.iter().find(|pod| pod.id == id) {
                Some(pod) => format!("pod {}", pod.name),
                None => format!("pod {id}"),
            },
        }
    }
}

impl Node {
    pub(super) fn name_table(&self) -> NameTable {
        let known = self.store.pods();
        let named = known.iter().map(|pod| PodName {
            id: pod.id,
            name: pod.name.clone(),
            device: pod.host_ifname.clone(),
            ifindex: pod.host_ifindex,
        });
        let addresses =
            known.iter().enumerate().flat_map(|(at, pod)| pod.addresses.iter().map(move |address| (*address, at)));
        let peers = self.config.peers.iter();
        let tunnels = self.observed.tunnels.into_iter().flat_map(|tunnels| {
            tunnels.devices().filter_map(move |device| Some((device, tunnels.name(&self.config, device)?)))
        });
        NameTable {
            uplink: self.config.node.uplink.clone(),
            hub: super::super::hub::NEAR,
            tunnels: tunnels.collect(),
            pods: named.collect(),
            by_address: addresses.collect(),
            peers: peers.flat_map(|peer| peer.ends().map(|end| (end.underlay, peer.name.clone()))).collect(),
        }
    }
}
