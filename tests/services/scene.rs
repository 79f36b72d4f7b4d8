//! The cluster with a machine outside of it, and what its counters say of the paths taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use podwire::control::api::NatCheck;

use super::harness::{Cluster, Host, Options, Pod, PodwireNode, Prefix, Wire, is_root, wait_until};
use super::peers::Server;

/// How long the daemon may take to notice.
pub const NOTICE: Duration = Duration::from_secs(5);

/// The port that all servers listen to.
pub const PORT: u16 = 8080;

pub struct Scene {
    pub cluster: Cluster,
    /// A machine on the underlay that is no node.
    pub outside: Host,
}

/// The scene, or `None` (and a line that says so) where it cannot be built.
pub fn scene(options: Options) -> Option<Scene> {
    is_root().then(|| {
        let cluster = Cluster::start(Prefix::fresh(), Wire::default(), options);
        let outside = cluster.switch.host(&cluster.prefix, 'o', 99);
        Scene { cluster, outside }
    })
}

/// A host's own address on the underlay.
pub fn underlay(host: &Host, is_ipv6: bool) -> IpAddr {
    host.addresses()[usize::from(is_ipv6)]
}

/// A pod's endpoint.
pub fn endpoint(pod: &Pod, is_ipv6: bool) -> SocketAddr {
    SocketAddr::new(address(pod, is_ipv6), PORT)
}

pub fn address(pod: &Pod, is_ipv6: bool) -> IpAddr {
    if is_ipv6 { pod.v6.into() } else { pod.v4.into() }
}

/// The address of a service, which is nobody's.
pub fn virtual_address(is_ipv6: bool, n: u8) -> SocketAddr {
    let ip: IpAddr = if is_ipv6 {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 0, n).into()
    };
    SocketAddr::new(ip, 80)
}

impl Scene {
    /// A server in each of the pods.
    pub fn servers(&self) -> Vec<Server> {
        self.cluster.pods().iter().map(|pod| Server::start(&pod.netns, &pod.name, PORT)).collect()
    }
}

/// Frames by the verdict of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub nic_claimed: u64,
    pub nic_nated: u64,
    pub pod_claimed: u64,
    pub pod_local: u64,
    pub pod_nated: u64,
}

impl Counts {
    pub fn of(node: &PodwireNode) -> Self {
        let verdicts = node.stats().verdicts;
        let count = |program: &str, verdict: &str| {
            let rows = verdicts.iter().filter(|row| row.program == program && row.verdict == verdict);
            rows.map(|row| row.packets).sum()
        };
        Self {
            nic_claimed: count("nic_steer", "claimed"),
            nic_nated: count("nic_steer", "nated"),
            pod_claimed: count("pod_steer", "claimed"),
            pod_local: count("pod_steer", "local"),
            pod_nated: count("pod_steer", "nated"),
        }
    }

    /// What was counted at `node` since this.
    pub fn since(self, node: &PodwireNode) -> Self {
        let now = Self::of(node);
        Self {
            nic_claimed: now.nic_claimed - self.nic_claimed,
            nic_nated: now.nic_nated - self.nic_nated,
            pod_claimed: now.pod_claimed - self.pod_claimed,
            pod_local: now.pod_local - self.pod_local,
            pod_nated: now.pod_nated - self.pod_nated,
        }
    }
}

/// Waits until the node's programs check as they should.
#[track_caller]
pub fn wait_for_check(node: &PodwireNode, check: NatCheck) {
    assert!(wait_until(NOTICE, || node.status().nat.check == check), "{:?}, not {check:?}", node.status().nat);
}
