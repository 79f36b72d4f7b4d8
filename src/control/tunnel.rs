//! The VXLAN devices of the kernel path.

use super::kernel::{Done, Kernel, KernelError, request};
use super::netlink::{Link, LinkKind, LinkSettings, Vxlan};
use super::plan::{self, ALIAS, Change, DevicePlan, Tunnels, VxlanDevice};
use super::sysctl;
use super::vtep::Vtep;
use super::wiring::host_sysctls;
use crate::config::Config;
use crate::ids::IfIndex;
use crate::wire::TunnelEnd;

impl Kernel {
    /// Makes, corrects or re-creates the VXLAN devices. Where the second one cannot be had, `vtep` has none any more.
    pub(super) fn ensure_tunnels(
        &mut self,
        config: &Config,
        vtep: &mut Vtep,
        links: &[Link],
        done: &mut Done,
    ) -> Result<Tunnels, KernelError> {
        let second = vtep.second.map(|end| device(config, vtep, config.vxlan.second_device(), end));
        let first = device(config, vtep, config.vxlan.device.clone(), vtep.first());
        self.delete_strays(&[Some(&first), second.as_ref()], links, done)?;
        let first = self.ensure_tunnel(&first, self.known.tunnel, vtep, links, done)?;
        self.known.tunnel = Some(first);
        let known = self.known.second_tunnel;
        let second = second.map(|desired| self.ensure_tunnel(&desired, known, vtep, links, done)).transpose();
        let second = second.unwrap_or_else(|error| {
            (vtep.second, vtep.no_second) = (None, Some(error.to_string()));
            None
        });
        self.known.second_tunnel = second.or(known);
        done.failures.extend(vtep.no_second.clone());
        Ok(Tunnels { first, second })
    }

    /// One of them, which was `known` to be ours.
    fn ensure_tunnel(
        &mut self,
        desired: &VxlanDevice,
        known: Option<IfIndex>,
        vtep: &Vtep,
        links: &[Link],
        done: &mut Done,
    ) -> Result<IfIndex, KernelError> {
        let name = &desired.name;
        let observed = links.iter().find(|link| link.name == *name);
        match (plan::plan_device(desired, observed, known), observed) {
            (DevicePlan::Foreign, _) => Err(KernelError::ForeignDevice(name.clone())),
            (DevicePlan::Keep(settings), Some(link)) => {
                ensure_sysctls(name, vtep, done)?;
                if settings != LinkSettings::default() {
                    self.set(name, link.index, settings)?;
                    done.changes.push(Change::SetDevice { name: name.clone(), settings });
                }
                Ok(link.index)
            }
            (DevicePlan::Recreate, Some(link)) => {
                self.delete(name, link.index, done)?;
                self.create(desired, vtep, done)
            }
            _ => self.create(desired, vtep, done),
        }
    }

    /// Removes VXLAN devices of ours that are none of the desired: the configuration changed, or the uplink's addresses.
    fn delete_strays(
        &mut self,
        desired: &[Option<&VxlanDevice>],
        links: &[Link],
        done: &mut Done,
    ) -> Result<(), KernelError> {
        for link in links {
            let is_desired = desired.iter().flatten().any(|device| device.name == link.name);
            if link.alias == ALIAS && !is_desired && matches!(link.kind, LinkKind::Vxlan(_)) {
                self.delete(&link.name, link.index, done)?;
            }
        }
        Ok(())
    }

    fn create(&mut self, desired: &VxlanDevice, vtep: &Vtep, done: &mut Done) -> Result<IfIndex, KernelError> {
        let VxlanDevice { name, mac, mtu, vxlan } = desired;
        let what = format!("create the VXLAN device {name}");
        self.netlink.add_vxlan(name, *mac, *mtu, vxlan).map_err(request(what))?;
        done.changes.push(Change::CreateDevice { name: name.clone() });
        ensure_sysctls(name, vtep, done)?;
        let link = self.link(name)?.ok_or_else(|| KernelError::Vanished(name.clone()))?;
        self.set(name, link.index, LinkSettings { up: Some(true), alias: Some(ALIAS), ..LinkSettings::default() })?;
        Ok(link.index)
    }

    fn set(&mut self, name: &str, index: IfIndex, settings: LinkSettings) -> Result<(), KernelError> {
        self.netlink.set_link(index, settings).map_err(request(format!("set {name}")))
    }

    fn delete(&mut self, name: &str, index: IfIndex, done: &mut Done) -> Result<(), KernelError> {
        self.netlink.delete_link(index).map_err(request(format!("delete {name}")))?;
        done.changes.push(Change::DeleteDevice { name: name.to_owned() });
        Ok(())
    }
}

/// The device of our end of a tunnel.
fn device(config: &Config, vtep: &Vtep, name: String, end: TunnelEnd) -> VxlanDevice {
    let vxlan = Vxlan {
        vni: config.vxlan.vni,
        port: config.vxlan.port,
        local: end.underlay,
        uplink: vtep.uplink.index,
        udp_checksum: config.vxlan.udp_checksum,
        gbp: config.vxlan.gbp,
    };
    VxlanDevice { name, mac: end.mac, mtu: u32::from(vtep.mtu), vxlan }
}

/// No address but ours on the VXLAN device, and no strict reverse path filter: what a peer itself
/// sends need not come from its pod range.
fn ensure_sysctls(name: &str, vtep: &Vtep, done: &mut Done) -> Result<(), KernelError> {
    for (key, value) in host_sysctls(name, &vtep.addresses) {
        done.ensure_sysctl(&key, value);
    }
    if sysctl::has_strict_rp_filter(name)? {
        done.ensure_sysctl(&sysctl::rp_filter(name), "2");
    }
    Ok(())
}
