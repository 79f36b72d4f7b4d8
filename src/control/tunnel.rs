//! The VXLAN device of the kernel path.

use super::kernel::{Done, Kernel, KernelError, Vtep, request};
use super::netlink::{Link, LinkKind, LinkSettings, Vxlan};
use super::plan::{self, ALIAS, Change, DevicePlan, VxlanDevice};
use super::sysctl;
use super::wiring::host_sysctls;
use crate::config::Config;
use crate::ids::IfIndex;

impl Kernel {
    /// Makes, corrects or re-creates the VXLAN device.
    pub(super) fn ensure_tunnel(
        &mut self,
        config: &Config,
        vtep: &Vtep,
        links: &[Link],
        done: &mut Done,
    ) -> Result<IfIndex, KernelError> {
        let desired = VxlanDevice {
            name: config.vxlan.device.clone(),
            mac: vtep.mac,
            mtu: u32::from(vtep.mtu),
            vxlan: Vxlan {
                vni: config.vxlan.vni,
                port: config.vxlan.port,
                local: vtep.underlay,
                uplink: vtep.uplink.index,
                udp_checksum: config.vxlan.udp_checksum,
                gbp: config.vxlan.gbp,
            },
        };
        let name = &desired.name;
        self.delete_strays(name, links, done)?;
        let observed = links.iter().find(|link| link.name == *name);
        let index = match (plan::plan_device(&desired, observed, self.known.tunnel), observed) {
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
                self.create(&desired, vtep, done)
            }
            _ => self.create(&desired, vtep, done),
        }?;
        self.known.tunnel = Some(index);
        Ok(index)
    }

    /// Removes VXLAN devices of ours that go by another name: the configuration changed it.
    fn delete_strays(&mut self, name: &str, links: &[Link], done: &mut Done) -> Result<(), KernelError> {
        for link in links {
            if link.alias == ALIAS && link.name != name && matches!(link.kind, LinkKind::Vxlan(_)) {
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
