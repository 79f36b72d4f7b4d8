//! What there is of Flannel on a node.

use std::net::IpAddr;

use ipnet::IpNet;

use super::network::Network;
use super::{MigrateError, Task, flanneld_obstacle};
use crate::control::host_local::{self, HostLocal};
use crate::control::kernel::Kernel;
use crate::control::netlink::{Link, LinkKind, Vxlan, name_of};
use crate::control::plan::ALIAS;
use crate::ids::IfIndex;

/// Flannel's part of a node.
#[derive(Debug)]
pub struct Seen {
    pub network: Network,
    pub links: Vec<Link>,
    pub bridge: Option<Link>,
    /// The bridge's addresses: the pods' gateways, each with the length of the node's range.
    pub gateways: Vec<IpNet>,
    /// What host-local has given away.
    pub given: HostLocal,
}

impl Seen {
    /// Looks at the node. Changes nothing.
    pub fn look(kernel: &mut Kernel, task: &Task<'_>) -> Result<Self, MigrateError> {
        let network = Network::find(&task.conf_dir);
        let links = kernel.netlink.links()?;
        let is_bridge = |link: &&Link| link.kind == LinkKind::Bridge && link.name == network.bridge;
        let bridge = links.iter().find(is_bridge).cloned();
        let gateways = match &bridge {
            Some(bridge) => kernel.netlink.addresses(Some(bridge.index))?.into_iter().map(|own| own.address).collect(),
            None => Vec::new(),
        };
        let dir = task.cni_state.join("networks").join(&network.name);
        let none = HostLocal { network: network.name.clone(), entries: Vec::new(), skipped: Vec::new() };
        let given =
            if dir.exists() { host_local::read(&dir).map_err(|error| MigrateError::Read(dir, error))? } else { none };
        Ok(Self { network, links, bridge, gateways, given })
    }

    /// Flannel's VXLAN devices: one of each family.
    pub fn tunnels(&self) -> impl Iterator<Item = (&Link, Option<Vxlan>)> {
        self.links.iter().filter_map(|link| match &link.kind {
            LinkKind::Vxlan(vxlan) if link.name == flannel_device(vxlan) => Some((link, Some(*vxlan))),
            LinkKind::OtherVxlan if ["flannel.", "flannel-v6."].iter().any(|name| link.name.starts_with(name)) => {
                Some((link, None))
            }
            _ => None,
        })
    }

    /// podwire's VXLAN devices.
    pub fn own_tunnels(&self) -> impl Iterator<Item = (&Link, Vxlan)> {
        self.links.iter().filter_map(|link| match link.kind {
            LinkKind::Vxlan(vxlan) if link.alias == ALIAS => Some((link, vxlan)),
            _ => None,
        })
    }

    /// Whether this is one of two tunnels, and the IPv6 one; the other may have changed hands already.
    pub fn is_second(&self, vxlan: &Vxlan) -> bool {
        let flannels = self.tunnels().filter_map(|(_, other)| other);
        let mut others = flannels.chain(self.own_tunnels().map(|(_, other)| other));
        vxlan.local.is_ipv6() && others.any(|other| other.local.is_ipv4())
    }

    /// The ports of the bridge.
    pub fn ports(&self) -> impl Iterator<Item = &Link> {
        let bridge = self.bridge.as_ref().map(|bridge| bridge.index);
        self.links.iter().filter(move |link| link.master.is_some() && link.master == bridge)
    }

    pub fn link(&self, index: IfIndex) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The addresses of the bridge.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateways.iter().any(|gateway| gateway.addr() == address)
    }

    /// What keeps the node from being taken over.
    pub fn obstacles(&self, task: &Task<'_>) -> Vec<String> {
        let mut obstacles: Vec<String> = flanneld_obstacle().into_iter().collect();
        for (link, vxlan) in self.tunnels() {
            match vxlan {
                Some(vxlan) => obstacles.extend(self.differences(task, link, &vxlan)),
                None => obstacles.push(format!(
                    "{} learns, has a group policy or a default destination, which podwire's VXLAN device has not: change \
                     Backend in net-conf.json on all nodes",
                    link.name
                )),
            }
        }
        if self.bridge.is_some() && self.tunnels().next().is_none() && self.own_tunnels().next().is_none() {
            obstacles.push(
                "there is no VXLAN device flannel.VNI: Flannel's backend here is another one, and podwire speaks vxlan only"
                    .to_owned(),
            );
        }
        obstacles
    }

    /// How a tunnel of Flannel's differs from what the configuration asks for, which the other nodes would notice.
    fn differences(&self, task: &Task<'_>, link: &Link, vxlan: &Vxlan) -> Vec<String> {
        let (config, name) = (task.config, &link.name);
        let mut found = Vec::new();
        let mut differ = |is_same: bool, text: String| found.extend((!is_same).then_some(text));
        let uplink = name_of(&self.links, vxlan.uplink);
        differ(uplink == config.node.uplink, format!("{name} uses {uplink}: set node.uplink = \"{uplink}\""));
        let (node, local, is_second) = (&config.node, vxlan.local, self.is_second(vxlan));
        let (underlay, vtep_mac, digit) =
            if is_second { (node.underlay6, node.vtep_mac6, "6") } else { (node.underlay, node.vtep_mac, "") };
        // A file that does not ask for a second tunnel gets none.
        let is_left_open = underlay.is_none() && (!is_second || config.kubernetes.is_some());
        differ(
            is_left_open || underlay == Some(local),
            format!("{name} has the address {local}: set node.underlay{digit} = \"{local}\""),
        );
        // With the API as the source, it says the rest.
        if config.kubernetes.is_some() {
            return found;
        }
        let (vni, port) = (vxlan.vni, vxlan.port);
        differ(config.vxlan.vni == vni, format!("{name} has VNI {}: set vxlan.vni to it", vni.get()));
        differ(config.vxlan.port == port, format!("{name} uses UDP port {port}: set vxlan.port to it"));
        if let Some(mac) = link.mac {
            let text =
                format!("the other nodes know this one by the MAC of {name}: set node.vtep_mac{digit} = \"{mac}\"");
            differ(vtep_mac == Some(mac), text);
        }
        if is_second {
            return found;
        }
        for gateway in &self.gateways {
            let range = gateway.trunc();
            differ(
                config.node.pod_cidrs.contains(&range),
                format!("Flannel's pods are in {range}: it must be in node.pod_cidrs"),
            );
        }
        found
    }
}

/// What Flannel calls a VXLAN device.
pub fn flannel_device(vxlan: &Vxlan) -> String {
    let family = if vxlan.local.is_ipv6() { "-v6" } else { "" };
    format!("flannel{family}.{}", vxlan.vni.get())
}
