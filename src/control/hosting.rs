//! The node's side of its pods: the host ends of their veth pairs, and a route and a neighbour for each address.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::kernel::{Done, Kernel, KernelError, request};
use super::netlink::{Link, LinkSettings, MAIN_TABLE, NetlinkError, name_of};
use super::plan::{self, Change, Object, PROTOCOL};
use super::wiring::{Pod, has_host_end_sysctls, host_end_sysctls};
use crate::config::Config;
use crate::ids::IfIndex;

impl Kernel {
    /// What pods need of the node itself, for as long as [`Kernel::reconcile`] fails: without an uplink there is no
    /// tunnel, but the pods of one node and the node still talk. Nothing is deleted.
    pub fn keep_pods(&mut self, config: &Config, pods: &[Pod]) -> Result<Done, KernelError> {
        let mut done = Done::default();
        self.ensure_forwarding(config, &mut done)?;
        let links = self.links()?;
        let present = self.ensure_pods(pods, &links, None, &mut done);
        self.ensure_pod_objects(config, &present, &links, &mut done)?;
        Ok(done)
    }

    /// Adds or corrects the routes and neighbours of `pods`, for as long as there is no tunnel. Nothing is deleted.
    pub(super) fn ensure_pod_objects(
        &mut self,
        config: &Config,
        pods: &[Pod],
        links: &[Link],
        done: &mut Done,
    ) -> Result<(), KernelError> {
        let listed = request("list addresses, routes and neighbours");
        let (desired, observed) = self.compare_pods(config, pods).map_err(listed)?;
        self.apply_plan(&plan::plan(desired, observed, |index| name_of(links, index)), done);
        Ok(())
    }

    /// Corrects the host ends of the pods and returns the pods that have one. Without an MTU each keeps its own.
    pub(super) fn ensure_pods(&mut self, pods: &[Pod], links: &[Link], mtu: Option<u32>, done: &mut Done) -> Vec<Pod> {
        let links: HashMap<IfIndex, &Link> = links.iter().map(|link| (link.index, link)).collect();
        // A device that was renamed, as udev does, still carries the pod.
        let is_end = |pod: &Pod, link: &Link| link.name == pod.host_ifname || link.mac == Some(pod.host_mac);
        let end = |pod: &&Pod| links.get(&pod.host_ifindex).filter(|link| is_end(pod, link)).copied();
        let (present, gone): (Vec<_>, Vec<_>) = pods.iter().partition(|pod| end(pod).is_some());
        for pod in gone {
            // One that has ended is detached without anybody's doing.
            if !pod.has_ended() {
                done.failures.push(format!("pod {}: its device {} is gone; detach it", pod.name, pod.host_ifname));
            }
            done.gone.insert(pod.id);
        }
        for (pod, link) in present.iter().filter_map(|pod| Some((pod, end(pod)?))) {
            self.ensure_host_end(pod, link, mtu, done);
        }
        present.into_iter().cloned().collect()
    }

    fn ensure_host_end(&mut self, pod: &Pod, link: &Link, mtu: Option<u32>, done: &mut Done) {
        if link.name != pod.host_ifname {
            let change = Change::RenameDevice { from: link.name.clone(), to: pod.host_ifname.clone() };
            if let Err(error) = self.netlink.rename_link(link.index, &pod.host_ifname) {
                return done.failures.push(format!("pod {}: cannot {change}: {error}", pod.name));
            }
            done.changes.push(change);
        }
        if !has_host_end_sysctls(&link.conf, &pod.addresses) {
            for (key, value) in host_end_sysctls(&pod.host_ifname, &pod.addresses) {
                done.ensure_sysctl(&key, value);
            }
        }
        let settings = LinkSettings {
            up: (!link.up).then_some(true),
            mtu: mtu.filter(|mtu| link.mtu != *mtu),
            mac: (link.mac != Some(pod.host_mac)).then_some(pod.host_mac),
            alias: None,
        };
        if settings == LinkSettings::default() {
            return;
        }
        let name = pod.host_ifname.clone();
        match self.netlink.set_link(link.index, settings) {
            Ok(()) => done.changes.push(Change::SetDevice { name, settings }),
            Err(error) => done.failures.push(format!("cannot set {name}: {error}")),
        }
        // A new MTU is for both ends.
        if settings.mtu.is_some() {
            match pod.mend(mtu) {
                Ok(mended) => {
                    done.changes.extend(mended.changes);
                    done.failures.extend(mended.failures.iter().map(ToString::to_string));
                }
                Err(error) => done.failures.push(error.to_string()),
            }
        }
    }

    /// What is desired for `pods`, and what of that is there.
    fn compare_pods(&mut self, config: &Config, pods: &[Pod]) -> Result<(Vec<Object>, Vec<Object>), NetlinkError> {
        // The tunnel's addresses, which are the sources of these routes, may be gone with it; IPv6 keeps such a source.
        let here: HashSet<IpAddr> = self.netlink.addresses(None)?.iter().map(|own| own.address.addr()).collect();
        let mut sources: Vec<IpAddr> = config.node.pod_cidrs.iter().map(IpNet::network).collect();
        sources.retain(|source| here.contains(source));
        let desired: Vec<Object> = pods.iter().flat_map(|pod| plan::pod_objects(&sources, pod)).collect();
        let neighbours = self.netlink.permanent_neighbours()?.into_iter().map(Object::Neighbour);
        let routes = self.netlink.routes(MAIN_TABLE, PROTOCOL)?.into_iter().map(Object::Route);
        let keys: BTreeSet<_> = desired.iter().map(Object::key).collect();
        let observed = neighbours.chain(routes).filter(|object| keys.contains(&object.key())).collect();
        Ok((desired, observed))
    }
}
