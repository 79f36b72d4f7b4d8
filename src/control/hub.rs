//! The hub: a veth pair of our own. At its near end the steering programs hand pods' frames to the workers' packet rings;
//! through it the workers send trains of packets for pods to the far end. It carries nothing else, and the kernel sends
//! nothing on it.

use super::kernel::{Kernel, KernelError, delete_link, request};
use super::netlink::{Link, LinkKind, LinkSettings, Veth, VethEnd};
use super::plan::{ALIAS, Change};
use super::sysctl;
use super::vtep::ETH_MAX_MTU;
use crate::ids::{HubEnds, IfIndex};
use crate::xsk;

/// Its ends: frames from pods arrive at the near one.
pub(super) const NEAR: &str = "pwhub0";
const FAR: &str = "pwhub1";

impl Kernel {
    /// The hub's ends; the pair is made when missing and set right when not. Super-packets that enter at the near end
    /// pass whole; those that leave by it are taken apart. A device of either name that is not ours is left as it is.
    pub fn ensure_hub(&mut self, changes: &mut Vec<Change>) -> Result<HubEnds, KernelError> {
        let (near, far) = (self.hub_end(NEAR)?, self.hub_end(FAR)?);
        if near.is_none() || far.is_none() {
            if let Some(alone) = near.or(far) {
                self.delete_hub_end(&alone)?;
            }
            let end = |name: &str| VethEnd { name: name.to_owned(), mac: None };
            let veth = Veth { near: end(NEAR), far: end(FAR), far_netns: None, mtu: ETH_MAX_MTU };
            self.netlink.add_veth(&veth).map_err(request(format!("create the hub {NEAR}, {FAR}")))?;
            changes.push(Change::CreateDevice { name: NEAR.to_owned() });
        }
        let far = self.set_up_hub_end(FAR, changes)?;
        let near = self.set_up_hub_end(NEAR, changes)?;
        // The kernel cuts what a device could not complete. Datagrams with checksums to complete, in place of the pods'
        // own, would pass theirs unseen.
        if xsk::complete_checksums(NEAR).map_err(|source| KernelError::Checksums { device: NEAR.to_owned(), source })? {
            changes.push(Change::CompleteChecksums { name: NEAR.to_owned() });
        }
        Ok(HubEnds { near, far })
    }

    /// Removes the hub and says whether there was one; a device of its name that is not ours is none.
    pub fn remove_hub(&mut self) -> Result<bool, KernelError> {
        match self.link(NEAR)?.filter(|link| self.is_hub_end(link)) {
            Some(link) => self.delete_hub_end(&link).map(|()| true),
            None => Ok(false),
        }
    }

    fn delete_hub_end(&mut self, link: &Link) -> Result<(), KernelError> {
        delete_link(&mut self.netlink, link.index).map_err(request(format!("delete the hub {}", link.name)))
    }

    /// The end called `name`, if there is one.
    fn hub_end(&mut self, name: &str) -> Result<Option<Link>, KernelError> {
        match self.link(name)? {
            Some(link) if !self.is_hub_end(&link) => Err(KernelError::ForeignHub(name.to_owned())),
            link => Ok(link),
        }
    }

    fn set_up_hub_end(&mut self, name: &str, changes: &mut Vec<Change>) -> Result<IfIndex, KernelError> {
        let link = self.hub_end(name)?.ok_or_else(|| KernelError::Vanished(name.to_owned()))?;
        let quieted = sysctl::ensure(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
        changes.extend(quieted.map(Change::Sysctl));
        let settings = LinkSettings {
            up: (!link.up).then_some(true),
            mtu: (link.mtu != ETH_MAX_MTU).then_some(ETH_MAX_MTU),
            mac: None,
            alias: (link.alias != ALIAS).then_some(ALIAS),
        };
        if settings != LinkSettings::default() {
            self.netlink.set_link(link.index, settings).map_err(request(format!("set up {name}")))?;
            changes.push(Change::SetDevice { name: name.to_owned(), settings });
        }
        self.known.hub.insert(link.index);
        Ok(link.index)
    }

    /// Whether it bears our mark, is known to be ours, or is just as we make it: a daemon may have ended before marking
    /// it.
    fn is_hub_end(&self, link: &Link) -> bool {
        let unmarked = link.alias.is_empty() && !link.up && link.mtu == ETH_MAX_MTU;
        let ours = link.alias == ALIAS || self.known.hub.contains(&link.index);
        link.kind == LinkKind::Veth && (ours || unmarked)
    }
}
