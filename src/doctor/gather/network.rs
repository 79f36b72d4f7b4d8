use super::super::evidence::{Network, PodDevices, Seen};
use super::{number, seen};
use crate::control::api::Pod;
use crate::control::netlink::{Link, Netfilter, Netlink, NetlinkError};
use crate::control::netns::Netns;
use crate::control::sysctl;
use crate::ids::IfIndex;
use crate::steer::{AttachedProgram, XdpDevice};

/// Of the calling thread's network namespace; `pods` are the daemon's.
pub fn look(pods: &[Pod]) -> Network {
    let links = seen(Netlink::open().and_then(|mut netlink| netlink.links()));
    let all = links.as_deref().unwrap_or_default();
    let setting = |key: &str| sysctl::read(key).ok().flatten()?.parse().ok();
    let [used, most] = ["count", "max"].map(|what| number(format!("/proc/sys/net/netfilter/nf_conntrack_{what}")));
    Network {
        rp_filter_all: setting("ipv4/conf/all/rp_filter"),
        forwarding: setting("ipv4/ip_forward"),
        conntrack: used.zip(most),
        filters: seen(filters()),
        pods: pods.iter().map(|pod| devices(pod, all)).collect(),
        links,
    }
}

/// The tables that filter; podwire's own does not.
fn filters() -> Result<Vec<String>, NetlinkError> {
    let Some(mut netfilter) = Netfilter::open()? else { return Ok(Vec::new()) };
    let chains = netfilter.base_chains()?.into_iter();
    let mut tables: Vec<_> = chains.filter(|chain| chain.kind == "filter").map(|chain| chain.table).collect();
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

fn devices(pod: &Pod, links: &[Link]) -> PodDevices {
    let host = links.iter().find(|link| link.name == pod.host_ifname);
    let inside = || {
        let netns = Netns::open(&pod.netns).ok()?;
        let link = netns.within(|| Netlink::open().and_then(|mut netlink| netlink.link(&pod.ifname))).ok()?;
        Some(link.ok()??.mtu)
    };
    PodDevices {
        name: pod.name.clone(),
        host_ifname: pod.host_ifname.clone(),
        host_mtu: host.map(|link| link.mtu),
        pod_mtu: inside(),
        foreign: host.map_or_else(|| Ok(Vec::new()), |link| foreign(link.index)),
    }
}

/// Programs at the XDP hook and at those of tcx that are not podwire's.
fn foreign(ifindex: IfIndex) -> Seen<Vec<AttachedProgram>> {
    let mut programs: Vec<_> = seen(XdpDevice::of(ifindex))?.programs().cloned().collect();
    programs.extend(seen(AttachedProgram::at_tcx(ifindex))?);
    programs.retain(|program| !program.is_ours());
    Ok(programs)
}
