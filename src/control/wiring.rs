//! A pod's veth pair, from its namespace to the host's routes.
//!
//! ```text
//!   pod namespace                              │ host
//!   eth0  ADDR/32, ADDR/128      ──────────────┼── pwID  MAC GATEWAY_MAC, no address
//!         default via 169.254.1.1, fe80::1     │   ADDR/32 dev pwID, neighbour ADDR = pod's MAC
//!         both = GATEWAY_MAC, permanent        │
//! ```
//!
//! No address is ever resolved between the two: neither ARP nor neighbour discovery is needed,
//! and the first packet passes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::api::Owner;
use super::boottime;
use super::kernel::{Kernel, apply, delete_link};
use super::netlink::{Link, LinkConf, LinkKind, LinkSettings, NetlinkError, Veth, VethEnd};
use super::netns::{self, Netns};
use super::plan::{self, Action};
use super::sysctl::{self, SysctlError};
use super::vtep::Vtep;
use crate::config::derive_vtep_mac;
use crate::ids::{IfIndex, PodId};
use crate::wire::Mac;

/// The pods' gateways: link-local, the same for all, owned by no device.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The MAC of every host end, which pods know as their gateway's.
pub const GATEWAY_MAC: Mac = Mac([0x0a, 0x58, 169, 254, 1, 1]);

/// What the names of host ends begin with; the pod's id follows.
pub(super) const HOST_END: &str = "pw";

/// How long a new pair may take to run, which is a matter of a millisecond on an idle machine,
const CARRIER_WAIT: Duration = Duration::from_secs(2);
/// and how often to look.
const CARRIER_POLL: Duration = Duration::from_micros(200);

/// A pod to wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    pub id: PodId,
    pub name: String,
    pub netns: PathBuf,
    pub ifname: String,
    /// At most one of each family, inside the node's pod ranges.
    pub addresses: Vec<IpAddr>,
    /// A unicast address that is not [`GATEWAY_MAC`], or one that follows from `addresses`.
    pub mac: Option<Mac>,
    pub owner: Option<Owner>,
}

/// A wired pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub id: PodId,
    pub name: String,
    pub netns: PathBuf,
    pub ifname: String,
    pub host_ifname: String,
    pub host_ifindex: IfIndex,
    pub mac: Mac,
    /// The host end's, which the pod knows as its gateway.
    pub host_mac: Mac,
    pub addresses: Vec<IpAddr>,
    #[serde(default)]
    pub owner: Option<Owner>,
    /// Which network namespace it was attached in, for its path may come to name another one: the namespace's number,
    /// where the kernel has one.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
    /// When it was attached ([`super::boottime`]), where that is remembered.
    #[serde(default)]
    pub since_ms: Option<u64>,
}

/// Why a pod is not wired as it should be.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    #[error("pod {pod}: cannot enter its network namespace {}: {source}", path.display())]
    Netns { pod: String, path: PathBuf, source: io::Error },
    #[error("pod {pod}: {} is the network namespace of the node itself", path.display())]
    HostNetns { pod: String, path: PathBuf },
    #[error("pod {pod}: the node has no pod range of the family of {address}")]
    Family { pod: String, address: IpAddr },
    #[error("pod {pod}: {device} exists and is not of podwire's making; remove or rename it")]
    Taken { pod: String, device: String },
    #[error("pod {pod}: cannot {what}: {source}")]
    Request { pod: String, what: String, source: NetlinkError },
    #[error("pod {pod}: {source}")]
    Sysctl { pod: String, source: SysctlError },
    /// [`Kernel::verify`] found something that is not as attach left it.
    #[error("pod {pod}: {what}")]
    Broken { pod: String, what: String },
}

impl Kernel {
    /// Wires a pod, all or nothing: after an error nothing of it is left. Needs the VXLAN device,
    /// whose addresses its routes name: call [`Kernel::reconcile`] before.
    pub fn attach(&mut self, vtep: &Vtep, request: &Attach) -> Result<Pod, WiringError> {
        let home = enterable(&request.name, &request.netns)?;
        let mut pod = Pod::new(request);
        pod.netns_cookie = home.within(netns::cookie).ok().and_then(Result::ok);
        if let Some(address) = pod.addresses.iter().find(|address| vtep.source_for(**address).is_none()) {
            return Err(WiringError::Family { pod: pod.name, address: *address });
        }
        self.remove_leftover(&pod)?;
        let end = |name: &str, mac| VethEnd { name: name.to_owned(), mac: Some(mac) };
        let veth = Veth {
            near: end(&pod.host_ifname, pod.host_mac),
            far: end(&pod.ifname, pod.mac),
            far_netns: Some(home.as_raw_fd()),
            mtu: u32::from(vtep.mtu),
        };
        let what = format!("create {} with {} in {}", pod.host_ifname, pod.ifname, pod.netns.display());
        self.netlink.add_veth(&veth).map_err(pod.request(what))?;
        match self.finish(vtep, &home, &mut pod) {
            Ok(()) => Ok(pod),
            Err(error) => {
                // The first error is the one to tell; a leftover is removed by the next attach.
                let _ = self.detach(&pod);
                Err(error)
            }
        }
    }

    /// Takes the wiring away, both ends; nothing to do is success, also when the pod's namespace
    /// is gone. Routes and neighbours go with the device.
    pub fn detach(&mut self, pod: &Pod) -> Result<(), WiringError> {
        match self.host_end(pod)? {
            Some(link) if is_ours(&link) => {
                let what = format!("delete {}", pod.host_ifname);
                delete_link(&mut self.netlink, link.index).map_err(pod.request(what))
            }
            _ => Ok(()),
        }
    }

    /// The host ends of all pods, whether anything remembers them or not.
    pub(super) fn host_ends(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links = self.netlink.links()?;
        links.retain(|link| is_of_stranger(link, &[]));
        Ok(links)
    }

    /// Whether the wiring is as attach left it, on both sides. Changes nothing.
    pub fn verify(&mut self, vtep: &Vtep, pod: &Pod) -> Result<(), WiringError> {
        self.host_side().map_err(pod.request("list devices, routes and neighbours".to_owned()))?.check(vtep, pod)?;
        pod.verify_inside(vtep)
    }

    /// The rest of attach, once the pair exists.
    fn finish(&mut self, vtep: &Vtep, netns: &Netns, pod: &mut Pod) -> Result<(), WiringError> {
        let link = self.host_end(pod)?.ok_or_else(|| pod.broken(format!("{} vanished", pod.host_ifname)))?;
        pod.host_ifindex = link.index;
        for (key, value) in host_end_sysctls(&pod.host_ifname, &pod.addresses) {
            sysctl::ensure(&key, value).map_err(pod.sysctl())?;
        }
        let up = LinkSettings { up: Some(true), ..LinkSettings::default() };
        self.netlink.set_link(link.index, up).map_err(pod.request(format!("set {} up", pod.host_ifname)))?;
        if let Some(error) = pod.mend_in(netns, Some(u32::from(vtep.mtu)))?.failures.into_iter().next() {
            return Err(error);
        }
        self.wait_until_running(pod)?;
        for object in plan::pod_objects(&vtep.addresses, pod) {
            let what = format!("add {object} dev {}", pod.host_ifname);
            apply(&mut self.netlink, Action::Add, &object).map_err(pod.request(what))?;
        }
        Ok(())
    }

    /// The end that was set up first got its carrier later, and until the kernel's link watch has
    /// seen that, it drops what it is given (`dev_activate` in `net/sched/sch_generic.c`).
    fn wait_until_running(&mut self, pod: &Pod) -> Result<(), WiringError> {
        let start = Instant::now();
        while !self.host_end(pod)?.is_some_and(|link| link.running) {
            if start.elapsed() > CARRIER_WAIT {
                return Err(pod.broken(format!("{} gets no carrier", pod.host_ifname)));
            }
            thread::sleep(CARRIER_POLL);
        }
        Ok(())
    }

    /// Makes room for a pair of the name: what an interrupted attach left is removed, anything
    /// else is an error.
    fn remove_leftover(&mut self, pod: &Pod) -> Result<(), WiringError> {
        match self.host_end(pod)? {
            Some(link) if !is_ours(&link) => {
                Err(WiringError::Taken { pod: pod.name.clone(), device: pod.host_ifname.clone() })
            }
            Some(_) => self.detach(pod),
            None => Ok(()),
        }
    }

    fn host_end(&mut self, pod: &Pod) -> Result<Option<Link>, WiringError> {
        self.netlink.link(&pod.host_ifname).map_err(pod.request(format!("look for {}", pod.host_ifname)))
    }
}

impl Pod {
    /// As it will be; the kernel gives the index.
    fn new(request: &Attach) -> Self {
        Self {
            id: request.id,
            name: request.name.clone(),
            netns: request.netns.clone(),
            ifname: request.ifname.clone(),
            host_ifname: host_end(request.id),
            host_ifindex: IfIndex(0),
            mac: request.mac.unwrap_or_else(|| pod_mac(&request.addresses)),
            host_mac: GATEWAY_MAC,
            addresses: request.addresses.clone(),
            owner: request.owner.clone(),
            netns_cookie: None,
            since_ms: Some(boottime::now_ms()),
        }
    }

    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    pub(super) fn request(&self, what: String) -> impl FnOnce(NetlinkError) -> WiringError + use<> {
        let pod = self.name.clone();
        move |source| WiringError::Request { pod, what, source }
    }

    pub(super) fn sysctl(&self) -> impl FnOnce(SysctlError) -> WiringError + use<> {
        let pod = self.name.clone();
        move |source| WiringError::Sysctl { pod, source }
    }

    pub(super) fn broken(&self, what: String) -> WiringError {
        WiringError::Broken { pod: self.name.clone(), what }
    }
}

pub(super) fn host_end(id: PodId) -> String {
    format!("{HOST_END}{id}")
}

/// What a pod's host end needs besides [`host_sysctls`]. ARP is not answered, so that who asks in the name of many does not
/// fill the neighbour table, which all namespaces share (`arp_process` in `net/ipv4/arp.c`). [`has_host_end_sysctls`] is
/// its mirror.
pub(super) fn host_end_sysctls(device: &str, addresses: &[IpAddr]) -> Vec<(String, &'static str)> {
    let mut sysctls = host_sysctls(device, addresses);
    sysctls.push((format!("ipv4/conf/{device}/arp_ignore"), "8"));
    sysctls
}

/// What a host-side device of ours needs for packets of the families of `addresses`, before it is set up: no addresses
/// but those we give it.
pub(super) fn host_sysctls(device: &str, addresses: &[IpAddr]) -> Vec<(String, &'static str)> {
    let ipv6 = |name: &str| format!("ipv6/conf/{device}/{name}");
    let mut sysctls = vec![(ipv6("accept_ra"), "0"), (ipv6("addr_gen_mode"), "1")];
    if addresses.iter().any(IpAddr::is_ipv6) {
        sysctls.push((ipv6("disable_ipv6"), "0"));
    }
    if addresses.iter().any(IpAddr::is_ipv4) {
        sysctls.push((format!("ipv4/conf/{device}/forwarding"), "1"));
    }
    sysctls
}

/// Whether a pod's host end has all of them, without reading a file.
pub(super) fn has_host_end_sysctls(conf: &LinkConf, addresses: &[IpAddr]) -> bool {
    let is = |value: Option<i32>, wanted| value.is_none_or(|value| value == wanted);
    is(conf.accept_ra, 0)
        && is(conf.arp_ignore, 8)
        && is(conf.addr_gen_mode, 1)
        && (is(conf.disable_ipv6, 0) || !addresses.iter().any(IpAddr::is_ipv6))
        && (is(conf.forwarding, 1) || !addresses.iter().any(IpAddr::is_ipv4))
}

/// Opens a pod's namespace, which must not be our own.
pub(super) fn enterable(pod: &str, path: &Path) -> Result<Netns, WiringError> {
    let error = |source| WiringError::Netns { pod: pod.to_owned(), path: path.to_owned(), source };
    let netns = Netns::open(path).map_err(error)?;
    if Netns::current().and_then(|current| current.is(&netns)).map_err(error)? {
        return Err(WiringError::HostNetns { pod: pod.to_owned(), path: path.to_owned() });
    }
    Ok(netns)
}

/// The pod whose host end a device of this name can be.
pub(super) fn host_end_id(name: &str) -> Option<PodId> {
    let id = name.strip_prefix(HOST_END).and_then(|id| id.parse().ok()).and_then(PodId::new);
    id.filter(|id| name == host_end(*id))
}

/// Whether a device is the host end of a pod that is not among `pods`.
pub(super) fn is_of_stranger(link: &Link, pods: &[Pod]) -> bool {
    let is_known = || pods.iter().any(|pod| pod.host_ifindex == link.index || pod.host_ifname == link.name);
    is_ours(link) && host_end_id(&link.name).is_some() && !is_known()
}

/// Whether `link` is a host end that attach made.
fn is_ours(link: &Link) -> bool {
    link.kind == LinkKind::Veth && link.mac == Some(GATEWAY_MAC)
}

/// A pod's MAC, the same for the same address: `0a:58` and the IPv4 address, as the CNI bridge
/// plugin does; without one, a hash of the IPv6 address.
fn pod_mac(addresses: &[IpAddr]) -> Mac {
    let v4 = addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => Some(address.octets()),
        IpAddr::V6(_) => None,
    });
    match (v4, addresses.first()) {
        (Some([a, b, c, d]), _) => Mac([0x0a, 0x58, a, b, c, d]),
        (None, first) => derive_vtep_mac(first.copied().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED))),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pod that was attached in the namespace at `path`.
    pub fn pod_at(path: &Path, netns_cookie: Option<u64>) -> Pod {
        let request = Attach {
            id: PodId::new(1).unwrap(),
            name: "pod".into(),
            netns: path.to_owned(),
            ifname: "eth0".into(),
            addresses: vec!["10.244.1.1".parse().unwrap()],
            mac: None,
            owner: None,
        };
        Pod { netns_cookie, ..Pod::new(&request) }
    }

    #[test]
    fn macs_follow_the_address_and_are_unicast() {
        let mac = |text: &[&str]| pod_mac(&text.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<_>>());
        assert_eq!(mac(&["fd00::5", "10.244.1.5"]).to_string(), "0a:58:0a:f4:01:05");
        assert_eq!(mac(&["fd00::5"]), mac(&["fd00::5"]));
        assert_ne!(mac(&["fd00::5"]), mac(&["fd00::6"]));
        assert!(mac(&["fd00::5"]).is_unicast() && GATEWAY_MAC.is_unicast());
    }
}
