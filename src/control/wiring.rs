//! Pods' veth pairs.
use crate::ids::{IfIndex, PodId};
use crate::wire::Mac;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// A pod to wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    pub id: PodId,
    pub name: String,
    pub netns: PathBuf,
    pub ifname: String,
    /// At most one of each family, inside the node's pod ranges.
    pub addresses: Vec<IpAddr>,
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
}

/// Why a pod is not wired as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WiringError(String);
