//! The kernel path.
use super::plan::Change;
use super::underlay::{Hop, NoHop};
use super::wiring::{Attach, Pod, WiringError};
use crate::config::Config;
use crate::ids::IfIndex;
use crate::wire::Mac;
use std::net::IpAddr;

/// The device that carries the outer frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    pub index: IfIndex,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    /// Global addresses only.
    pub addresses: Vec<IpAddr>,
    pub up: bool,
    pub rx_queues: u32,
}

/// Our end of the tunnel, as the configuration and the uplink settle it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vtep {
    pub uplink: Uplink,
    /// The outer source address.
    pub underlay: IpAddr,
    pub mac: Mac,
    /// The MTU of the VXLAN device and of pods, in bytes of an inner IP packet.
    pub mtu: u16,
    /// The addresses of the VXLAN device: the first of each of the node's pod ranges.
    pub addresses: Vec<IpAddr>,
}

/// What [`Kernel::reconcile`] did.
#[derive(Debug)]
pub struct Reconciled {
    pub vtep: Vtep,
    /// What was changed, each printable for the log. Empty when all was in place.
    pub changes: Vec<Change>,
    /// What could not be changed; the rest was.
    pub failures: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(String);

#[derive(Debug)]
pub struct Kernel;

#[allow(unused_variables, clippy::unused_self, clippy::needless_pass_by_value, reason = "interface first")]
impl Kernel {
    /// For the network namespace of the calling thread.
    pub fn new() -> Result<Self, KernelError> {
        unimplemented!()
    }
    /// Our end of the tunnel as it should be now. Changes nothing.
    pub fn vtep(&mut self, config: &Config) -> Result<Vtep, KernelError> {
        unimplemented!()
    }
    /// Brings sysctls, VXLAN device, routes, neighbours, FDB and the pods' host side to what is desired.
    pub fn reconcile(&mut self, config: &Config, pods: &[Pod]) -> Result<Reconciled, KernelError> {
        unimplemented!()
    }
    /// The underlay next hop of each peer, in order. Peers not resolved are asked for; a notification follows.
    pub fn next_hops(&mut self, uplink: &Uplink, peers: &[IpAddr]) -> Result<Vec<Result<Hop, NoHop>>, KernelError> {
        unimplemented!()
    }
    /// The hub's ingress side `pwhub0`, made when missing.
    pub fn ensure_hub(&mut self) -> Result<IfIndex, KernelError> {
        unimplemented!()
    }
    pub fn remove_hub(&mut self) -> Result<(), KernelError> {
        unimplemented!()
    }
    /// Wires a pod, all or nothing. Call [`Kernel::reconcile`] before: routes need the VXLAN device's addresses.
    pub fn attach(&mut self, vtep: &Vtep, request: &Attach) -> Result<Pod, WiringError> {
        unimplemented!()
    }
    /// Takes the wiring away; nothing to do is success.
    pub fn detach(&mut self, pod: &Pod) -> Result<(), WiringError> {
        unimplemented!()
    }
    /// Whether the wiring is as attach left it; the error says what is not.
    pub fn verify(&mut self, vtep: &Vtep, pod: &Pod) -> Result<(), WiringError> {
        unimplemented!()
    }
}
