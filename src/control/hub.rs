//! The hub: a veth pair of our own through which the steering programs hand pods' frames to the
//! workers' packet rings. It carries nothing else, and the kernel sends nothing on it.

use super::kernel::{ETH_MAX_MTU, Kernel, KernelError, delete_link, request};
use super::netlink::{LinkKind, LinkSettings, Veth, VethEnd};
use super::sysctl;
use crate::ids::IfIndex;

/// Its ends: frames from pods arrive at the near one.
const NEAR: &str = "pwhub0";
const FAR: &str = "pwhub1";

impl Kernel {
    /// The hub's near end; the pair is made when missing and set right when not. Super-packets
    /// pass it whole.
    pub fn ensure_hub(&mut self) -> Result<IfIndex, KernelError> {
        if self.link(NEAR)?.is_none() {
            let end = |name: &str| VethEnd { name: name.to_owned(), mac: None };
            let veth = Veth { near: end(NEAR), far: end(FAR), far_netns: None, mtu: ETH_MAX_MTU };
            self.netlink.add_veth(&veth).map_err(request(format!("create the hub {NEAR}, {FAR}")))?;
        }
        self.set_up_hub_end(FAR)?;
        self.set_up_hub_end(NEAR)
    }

    /// Removes the hub; nothing to do is success.
    pub fn remove_hub(&mut self) -> Result<(), KernelError> {
        match self.link(NEAR)? {
            Some(link) => delete_link(&mut self.netlink, link.index).map_err(request(format!("delete the hub {NEAR}"))),
            None => Ok(()),
        }
    }

    fn set_up_hub_end(&mut self, name: &str) -> Result<IfIndex, KernelError> {
        sysctl::ensure(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        let link = self.link(name)?.filter(|link| link.kind == LinkKind::Veth);
        let link = link.ok_or_else(|| KernelError::ForeignHub(name.to_owned()))?;
        if !link.up || link.mtu != ETH_MAX_MTU {
            let settings = LinkSettings { up: Some(true), mtu: Some(ETH_MAX_MTU), ..LinkSettings::default() };
            self.netlink.set_link(link.index, settings).map_err(request(format!("set up {name}")))?;
        }
        Ok(link.index)
    }
}
