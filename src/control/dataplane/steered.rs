use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::control::view::{PodView, RemoteView, View};
use crate::fib::LocalPod;
use crate::ids::IfIndex;
use crate::steer::{Steer, SteerError};

/// What the steering programs were told, step by step: after a failed update it is still true, and the next one does
/// what is missing.
#[derive(Debug, Default)]
pub struct Steered {
    locals: BTreeMap<IpAddr, LocalPod>,
    remotes: BTreeMap<IpNet, u16>,
    devices: BTreeSet<IfIndex>,
}

impl Steered {
    /// Stops steering what is gone or changed. Goes on after an error and returns the first.
    pub fn withdraw(&mut self, steer: &mut Steer, view: &View) -> Result<(), SteerError> {
        let (locals, remotes, devices) = (addresses(&view.pods), prefixes(&view.remotes), devices(&view.pods));
        let mut result = Ok(());
        self.locals.retain(|address, pod| {
            locals.get(address) == Some(pod) || !note(&mut result, steer.remove_local(*address))
        });
        self.devices.retain(|device| devices.contains(device) || !note(&mut result, steer.detach_pod(*device)));
        self.remotes
            .retain(|prefix, _| remotes.contains_key(prefix) || !note(&mut result, steer.remove_remote(*prefix)));
        result
    }

    /// Steers what is new or changed: a pod's addresses are known before its frames are judged by them. Goes on after an
    /// error and returns the first.
    pub fn extend(&mut self, steer: &mut Steer, view: &View) -> Result<(), SteerError> {
        let mut result = Ok(());
        for (address, pod) in addresses(&view.pods) {
            if self.locals.get(&address) != Some(&pod) && note(&mut result, steer.add_local(address, &pod)) {
                self.locals.insert(address, pod);
            }
        }
        for device in devices(&view.pods) {
            if !self.devices.contains(&device) && note(&mut result, steer.attach_pod(device)) {
                self.devices.insert(device);
            }
        }
        for (prefix, mtu) in prefixes(&view.remotes) {
            if self.remotes.get(&prefix) != Some(&mtu) && note(&mut result, steer.add_remote(prefix, mtu)) {
                self.remotes.insert(prefix, mtu);
            }
        }
        result
    }
}

/// Whether a step was done; keeps the first error.
fn note(result: &mut Result<(), SteerError>, step: Result<(), SteerError>) -> bool {
    let done = step.is_ok();
    if result.is_ok() {
        *result = step;
    }
    done
}

/// The pods of a node by address.
pub fn addresses(pods: &[PodView]) -> BTreeMap<IpAddr, LocalPod> {
    pods.iter().flat_map(|pod| pod.addresses.iter().map(|address| (*address, pod.pod))).collect()
}

fn devices(pods: &[PodView]) -> BTreeSet<IfIndex> {
    pods.iter().map(|pod| pod.pod.ifindex).collect()
}

fn prefixes(remotes: &[RemoteView]) -> BTreeMap<IpNet, u16> {
    remotes.iter().flat_map(|remote| remote.prefixes.iter().map(|prefix| (*prefix, remote.mtu))).collect()
}
