//! Moves a node with its pods from Flannel to podwire, and back.
//!
//! ```text
//!             Flannel                               podwire
//!   pod       eth0 A/24, default via the bridge     eth0 A/32, default via 169.254.1.1
//!   node      veth ── cni0, which has the gateway   pwN, route A/32
//!   tunnel    flannel.1                             podwire.1: the same device with the same MAC, VNI and port
//!   memory    host-local, libcni's results          pods.json
//! ```
//!
//! Neither daemon runs meanwhile. The kernel carries the pods, as they were, as they will be, and after each step between,
//! so that a migration that is cut short leaves no pod alone; run again it goes on. The other nodes notice nothing.
//!
//! What is to be done is found out by looking at the node, not by notes: the same code tells it (a plan) or does it.

mod adopt;
mod cache;
mod candidates;
mod files;
mod inside;
mod network;
mod release;
mod seen;
mod steps;
mod subnet;
mod tunnel;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kernel::KernelError;
use super::netlink::NetlinkError;
use super::netns::Netns;
use super::runtime::{Namespace, RuntimeDir, RuntimeError};
use super::store::StoreError;
use super::uninstall::{self, PATIENCE, UninstallError};
use crate::config::Config;

/// What holds of the files that others write: `subnet.env`, what libcni remembers, a network configuration.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    subnet::fuzz(text);
    cache::fuzz(text);
    network::fuzz(text);
}

pub use adopt::from_flannel;
pub use release::to_flannel;

/// The marks of routes that the kernel makes for a device's addresses, and of those that Flannel and the bridge plugin
/// make (`include/uapi/linux/rtnetlink.h`).
const PROTOCOL_KERNEL: u8 = 2;
const PROTOCOL_BOOT: u8 = 3;

/// Flannel's daemon, as the kernel calls it.
const FLANNELD: &str = "flanneld";

/// What is migrated.
#[derive(Clone, Debug)]
pub struct Task<'c> {
    pub config: &'c Config,
    /// Where podwire's daemon keeps its state.
    pub runtime_dir: PathBuf,
    /// Where CNI's plugins and libcni keep theirs.
    pub cni_state: PathBuf,
    /// Where runtimes look for network configurations.
    pub conf_dir: PathBuf,
    /// Flannel's file about the node's range.
    pub subnet_env: PathBuf,
    /// Whether to do it, and not only to plan it.
    pub acts: bool,
}

/// What a migration does, or would do.
#[derive(Debug, Default, Serialize)]
pub struct Migration {
    /// Whether it was done.
    pub done: bool,
    /// What must change before it can be done.
    pub obstacles: Vec<String>,
    /// Each change of the node, in order, for people.
    pub changes: Vec<String>,
    pub pods: Vec<PodFate>,
    /// What could not be done, and why; the rest was.
    pub failures: Vec<String>,
    /// What stays as it is, and why.
    pub left: Vec<String>,
    /// What is to be done next, and by whom.
    pub next: Vec<String>,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodFate {
    /// `CONTAINER:IFNAME`.
    pub name: String,
    /// `namespace/pod` of Kubernetes, where that is known.
    pub workload: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// Why it cannot go on as it is; `None` when it can.
    pub must_restart: Option<String>,
}

impl PodFate {
    /// What people call the pod.
    pub fn label(&self) -> &str {
        self.workload.as_deref().unwrap_or(&self.name)
    }
}

/// Why nothing is migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error("only root can see and change devices and pods; run it as root")]
    NotRoot,
    #[error("nothing was changed, because:\n  {}", .0.join("\n  "))]
    Obstacles(Vec<String>),
    #[error("cannot read {path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, #[source] io::Error),
    #[error("{path}: {why}", path = .0.display(), why = .1)]
    Malformed(PathBuf, String),
    #[error("cannot look at the node: {0}")]
    Look(#[from] NetlinkError),
    #[error(transparent)]
    Uninstall(#[from] UninstallError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What keeps podwire's daemons away while it is held.
#[derive(Debug)]
struct Locks {
    _namespace: Namespace,
    dir: RuntimeDir,
}

impl Locks {
    /// Has a daemon that runs leave, and takes its place.
    fn take(runtime_dir: &Path) -> Result<Self, MigrateError> {
        uninstall::ask_to_leave(runtime_dir)?;
        let namespace = uninstall::within(PATIENCE, Namespace::claim)?;
        let dir = uninstall::within(PATIENCE, || RuntimeDir::claim(runtime_dir))?;
        if !dir.is_of_this_namespace()? {
            return Err(UninstallError::OtherNamespace(runtime_dir.to_owned()).into());
        }
        Ok(Self { _namespace: namespace, dir })
    }
}

fn check_root() -> Result<(), MigrateError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(MigrateError::NotRoot) }
}

/// The process of a flanneld in the calling thread's network namespace, as far as processes can be seen from here.
fn flanneld() -> Option<u32> {
    let own = Netns::current().ok()?;
    let is_flanneld = |dir: &Path| {
        let named = fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim_end() == FLANNELD);
        named && Netns::open(&dir.join("ns/net")).and_then(|netns| netns.is(&own)).unwrap_or(false)
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let numbered = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    numbered.filter(|(_, dir)| is_flanneld(dir)).map(|(pid, _)| pid).next()
}

/// What keeps a node from being migrated as long as flanneld runs on it.
fn flanneld_obstacle() -> Option<String> {
    flanneld().map(|pid| {
        format!(
            "flanneld runs here (process {pid}): stop it, or in Kubernetes keep its DaemonSet off this node, and run this again"
        )
    })
}
