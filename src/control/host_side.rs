//! What the kernel has of pods on the node's side, read once for all of them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::inside::check_link;
use super::kernel::Kernel;
use super::netlink::{Link, MAIN_TABLE, NetlinkError};
use super::plan::{self, Object, PROTOCOL};
use super::vtep::Vtep;
use super::wiring::{Pod, WiringError, has_host_end_sysctls, host_end_id, is_of_stranger};
use crate::ids::PodId;

/// Devices, and the objects that pods have on them.
#[derive(Debug)]
pub struct HostSide {
    links: Vec<Link>,
    objects: Vec<Object>,
}

/// A pod that the kernel knows and nothing else remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    pub id: PodId,
    /// Its host end.
    pub device: String,
    pub addresses: Vec<IpAddr>,
}

impl Stranger {
    /// What to do about it.
    pub fn advice(&self) -> String {
        let device = &self.device;
        format!(
            "{device} is of a pod that is not remembered; attach the pod anew, or remove the device: ip link del {device}"
        )
    }
}

impl Kernel {
    /// Reads it. Changes nothing.
    pub fn host_side(&mut self) -> Result<HostSide, NetlinkError> {
        let links = self.netlink.links()?;
        let mut objects: Vec<Object> =
            self.netlink.permanent_neighbours()?.into_iter().map(Object::Neighbour).collect();
        objects.extend(self.netlink.routes(MAIN_TABLE, PROTOCOL)?.into_iter().map(Object::Route));
        Ok(HostSide { links, objects })
    }
}

impl HostSide {
    /// Whether a pod has what attach gave it.
    pub fn check(&self, vtep: &Vtep, pod: &Pod) -> Result<(), WiringError> {
        let is_end = |link: &&Link| link.name == pod.host_ifname && link.index == pod.host_ifindex;
        let link = self.links.iter().find(is_end);
        let link = link.ok_or_else(|| pod.broken(format!("its device {} is gone", pod.host_ifname)))?;
        check_link(pod, link, pod.host_mac, u32::from(vtep.mtu))?;
        if !link.running {
            return Err(pod.broken(format!("{} has no carrier", pod.host_ifname)));
        }
        if !has_host_end_sysctls(&link.conf, &pod.addresses) {
            return Err(pod.broken(format!("the settings of {} do not let its packets through", pod.host_ifname)));
        }
        let objects = plan::pod_objects(&vtep.addresses, pod);
        match objects.iter().find(|object| !self.objects.contains(object)) {
            Some(missing) => Err(pod.broken(format!("the node lacks {missing} dev {}", pod.host_ifname))),
            None => Ok(()),
        }
    }

    /// The pods that are not among `pods`.
    pub fn strangers(&self, pods: &[Pod]) -> Vec<Stranger> {
        let strangers = self.links.iter().filter(|link| is_of_stranger(link, pods));
        let stranger = |link: &Link| {
            let on_it = self.objects.iter().filter(|object| object.device() == Some(link.index));
            let mut addresses: Vec<IpAddr> = on_it.filter_map(pod_address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            Some(Stranger { id: host_end_id(&link.name)?, device: link.name.clone(), addresses })
        };
        strangers.filter_map(stranger).collect()
    }

    /// Routes and neighbours on the devices of `pods` that none of them asks for, each with its device.
    pub fn leaks(&self, vtep: &Vtep, pods: &[Pod]) -> Vec<String> {
        let of_pod = |pod: &Pod| {
            let wanted = plan::pod_objects(&vtep.addresses, pod);
            let on_it = self.objects.iter().filter(|object| object.device() == Some(pod.host_ifindex));
            let leaks = on_it.filter(|object| !wanted.contains(object));
            leaks.map(|object| format!("{object} dev {}", pod.host_ifname)).collect::<Vec<_>>()
        };
        pods.iter().flat_map(of_pod).collect()
    }
}

/// The address for which an object on a host end is there.
fn pod_address(object: &Object) -> Option<IpAddr> {
    match object {
        Object::Neighbour(neighbour) => Some(neighbour.address),
        Object::Route(route) => {
            (route.destination == IpNet::from(route.destination.addr())).then(|| route.destination.addr())
        }
        _ => None,
    }
}
