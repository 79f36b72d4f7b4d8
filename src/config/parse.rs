//! From a document to a [`Config`], key by key; what spans keys is in `check`.

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::check;
use super::range::{self, AddressRange};
use super::reader::{At, Document, Section};
use super::{
    Bulk, BusyPoll, Cluster, Config, ConfigError, Dataplane, Ipam, Kubernetes, Metrics, Mode, Node, Peer, Probe, Vxlan,
    Xdp, ZeroCopy, derive_vtep_mac,
};
use crate::wire::{Mac, TunnelEnd, Vni};

/// Why a key cannot stand beside `[kubernetes]`.
const FROM_NODES: &str = "comes from the Kubernetes API's nodes with [kubernetes]; remove one of them";
const FROM_NET_CONF: &str = "comes from net-conf.json with [kubernetes]; remove one of them";

/// A node as the file gives it, ours or a peer.
pub(super) struct NodeKeys {
    pub name: Option<At<String>>,
    pub underlay: Option<At<IpAddr>>,
    pub vtep_mac: Option<At<Mac>>,
    pub underlay6: Option<At<IpAddr>>,
    pub vtep_mac6: Option<At<Mac>>,
    pub pod_cidrs: Vec<At<IpNet>>,
    /// Of a peer only.
    pub addresses: Vec<At<IpAddr>>,
}

/// The end of one of a node's tunnels as the file gives it.
#[derive(Clone, Copy)]
pub(super) struct EndKeys<'n> {
    pub underlay: Option<&'n At<IpAddr>>,
    pub mac: Option<&'n At<Mac>>,
}

/// Validates `text` for a machine whose CPUs `online` are.
pub(super) fn document(text: &str, online: &[usize]) -> Result<Config, ConfigError> {
    let doc = Document::new(text);
    match read(&doc, online) {
        Some(config) if doc.is_clean() => Ok(config),
        _ => Err(ConfigError::Invalid(doc.into_problems())),
    }
}

fn read(doc: &Document<'_>, online: &[usize]) -> Option<Config> {
    let mut root = Section::root(doc);
    if !doc.is_clean() {
        return None;
    }
    let kubernetes = root.has("kubernetes").then(|| kubernetes(root.section("kubernetes")));
    let mut node = root.section("node");
    let uplink = node.required::<String>("uplink");
    let own = if kubernetes.is_some() { kubernetes_node(&mut node) } else { node_keys(&mut node, false) };
    node.finish();
    let mut cluster = root.section("cluster");
    let mut vxlan_section = root.section("vxlan");
    let cluster_cidrs = if kubernetes.is_some() {
        root.forbid("peers", FROM_NODES);
        cluster.forbid("pod_cidrs", FROM_NET_CONF);
        vxlan_section.forbid("vni", FROM_NET_CONF);
        vxlan_section.forbid("port", FROM_NET_CONF);
        vxlan_section.forbid("direct_routing", FROM_NET_CONF);
        vxlan_section.forbid("gbp", FROM_NET_CONF);
        Vec::new()
    } else {
        cluster.required_list("pod_cidrs").map_or_else(Vec::new, |list| list.value)
    };
    let masquerade = cluster.or("masquerade", false, |_| Ok(()));
    cluster.finish();
    let (vxlan, device) = vxlan(doc, vxlan_section);
    let dataplane = dataplane(doc, root.section("dataplane"), online);
    let metrics = metrics(doc, root.section("metrics"));
    let ipam = ipam(doc, root.section("ipam"), kubernetes.is_none().then_some(&own.pod_cidrs));
    let probe = probe(root.section("probe"));
    let peers: Vec<NodeKeys> = root.sections("peers").into_iter().map(peer).collect();
    root.finish();

    check::devices(doc, uplink.as_ref(), device.as_ref());
    check::nodes(doc, &own, &peers, &cluster_cidrs);
    Some(Config {
        node: Node {
            name: own.name?.value,
            uplink: uplink?.value,
            underlay: own.underlay.map(|underlay| underlay.value),
            vtep_mac: own.vtep_mac.map(|mac| mac.value),
            underlay6: own.underlay6.map(|underlay| underlay.value),
            vtep_mac6: own.vtep_mac6.map(|mac| mac.value),
            pod_cidrs: values(own.pod_cidrs),
        },
        cluster: Cluster { pod_cidrs: values(cluster_cidrs), masquerade, underlay_is_ipv6: None },
        vxlan: vxlan?,
        dataplane,
        metrics,
        ipam,
        probe,
        peers: peers.into_iter().map(|keys| keys.into_peer().map(Arc::new)).collect::<Option<_>>()?,
        kubernetes,
        warnings: doc.take_warnings(),
    })
}

fn node_keys(section: &mut Section<'_, '_>, is_peer: bool) -> NodeKeys {
    NodeKeys {
        name: section.required("name"),
        underlay: if is_peer { section.required("underlay") } else { section.optional("underlay") },
        vtep_mac: section.optional("vtep_mac"),
        underlay6: section.optional("underlay6"),
        vtep_mac6: section.optional("vtep_mac6"),
        pod_cidrs: section.required_list("pod_cidrs").map_or_else(Vec::new, |list| list.value),
        addresses: if is_peer {
            section.list("addresses").map_or_else(Vec::new, |list| list.value)
        } else {
            Vec::new()
        },
    }
}

/// This node, whose name the environment may tell.
fn kubernetes_node(section: &mut Section<'_, '_>) -> NodeKeys {
    section.forbid("pod_cidrs", FROM_NODES);
    let name = if section.has("name") { section.optional("name") } else { Some(section.implied("name", node_name())) };
    NodeKeys {
        name,
        underlay: section.optional("underlay"),
        vtep_mac: section.optional("vtep_mac"),
        underlay6: section.optional("underlay6"),
        vtep_mac6: section.optional("vtep_mac6"),
        pod_cidrs: Vec::new(),
        addresses: Vec::new(),
    }
}

/// What the manifest says by the downward API, else the host's name as the kubelet makes a node's of it.
fn node_name() -> String {
    let host = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_lowercase();
    env::var("NODE_NAME").ok().filter(|name| !name.is_empty()).unwrap_or_else(host)
}

fn kubernetes(mut section: Section<'_, '_>) -> Kubernetes {
    let kubeconfig = section.optional("kubeconfig");
    let net_conf = section.optional("net_conf");
    let subnet_env = section.optional("subnet_env");
    let cache = section.optional("cache");
    section.finish();
    let [kubeconfig, net_conf, subnet_env, cache] =
        [kubeconfig, net_conf, subnet_env, cache].map(|path| path.map(|path| path.value));
    Kubernetes { kubeconfig, net_conf, subnet_env, cache }
}

fn peer(mut section: Section<'_, '_>) -> NodeKeys {
    let keys = node_keys(&mut section, true);
    section.finish();
    keys
}

impl EndKeys<'_> {
    /// The MAC, when the file settles it.
    pub fn mac(self) -> Option<Mac> {
        self.mac.map(|mac| mac.value).or_else(|| self.underlay.map(|underlay| derive_vtep_mac(underlay.value)))
    }

    fn end(self) -> Option<TunnelEnd> {
        Some(TunnelEnd { underlay: self.underlay?.value, mac: self.mac()? })
    }
}

impl NodeKeys {
    pub fn first(&self) -> EndKeys<'_> {
        EndKeys { underlay: self.underlay.as_ref(), mac: self.vtep_mac.as_ref() }
    }

    pub fn second(&self) -> EndKeys<'_> {
        EndKeys { underlay: self.underlay6.as_ref(), mac: self.vtep_mac6.as_ref() }
    }

    fn into_peer(self) -> Option<Peer> {
        let (TunnelEnd { underlay, mac: vtep_mac }, second) = (self.first().end()?, self.second().end());
        Some(Peer {
            name: self.name?.value,
            underlay,
            vtep_mac,
            second,
            pod_cidrs: values(self.pod_cidrs),
            addresses: values(self.addresses),
        })
    }
}

fn vxlan(doc: &Document<'_>, mut section: Section<'_, '_>) -> (Option<Vxlan>, Option<At<String>>) {
    let number = section.or("vni", 1_u32, |vni| match vni {
        0 => Err("is reserved; choose 1 to 16777215".to_owned()),
        vni if *vni > Vni::MAX => Err("does not fit 24 bits; choose 1 to 16777215".to_owned()),
        _ => Ok(()),
    });
    let port = section.or("port", 8472, |port| match port {
        0 => Err("is not a UDP port".to_owned()),
        _ => Ok(()),
    });
    let device = section.optional::<String>("device");
    let udp_checksum = section.or("udp_checksum", false, |_| Ok(()));
    let direct_routing = section.or("direct_routing", false, |_| Ok(()));
    let gbp = section.or("gbp", false, |_| Ok(()));
    section.finish();
    let name = device.as_ref().map_or_else(|| format!("podwire.{number}"), |device| device.value.clone());
    if let Some(device) = &device {
        check::device_name(doc, device);
    }
    let vxlan = Vni::new(number).map(|vni| Vxlan {
        vni,
        port,
        device: name,
        udp_checksum,
        direct_routing,
        gbp,
        underlay_mtu: None,
    });
    (vxlan, device)
}

fn dataplane(doc: &Document<'_>, mut section: Section<'_, '_>, online: &[usize]) -> Dataplane {
    let mode = section.or("mode", Mode::Adaptive, |_| Ok(()));
    let cores = match mode {
        Mode::Kernel => section.list("cores"),
        Mode::Busy | Mode::Adaptive => section.required_list("cores"),
    };
    if let (Some(cores), Mode::Busy | Mode::Adaptive) = (&cores, mode) {
        check::cores(doc, cores, online);
    }
    let xdp = section.optional::<Xdp>("xdp");
    let dataplane = Dataplane {
        mode,
        cores: cores.map_or_else(Vec::new, |cores| values(cores.value)),
        xdp: xdp.as_ref().map_or(Xdp::Auto, |xdp| xdp.value),
        zero_copy: section.or("zero_copy", ZeroCopy::Auto, |_| Ok(())),
        busy_poll: section.or("busy_poll", BusyPoll::Auto, |_| Ok(())),
        frames: section.or("frames", 8192, |frames: &u32| within(512, 1 << 20)(u64::from(*frames))),
        hub_slots: section.or("hub_slots", 4096, |slots: &u32| within(8, 16384)(u64::from(*slots))),
        pod_trains: section.or("pod_trains", true, |_| Ok(())),
        stale_ms: section.or("stale_ms", 20, |ms: &u64| within(10, 10_000)(*ms)),
        known_vteps_only: section.or("known_vteps_only", true, |_| Ok(())),
        wake_pps: section.or("wake_pps", 20_000, |pps: &u32| within(0, 10_000_000)(u64::from(*pps))),
        bulk: section.or("bulk", Bulk::Auto, |_| Ok(())),
        bypass: section.or("bypass", true, |_| Ok(())),
    };
    if let Some(off) = xdp.filter(|xdp| xdp.value == Xdp::Off) {
        if dataplane.zero_copy == ZeroCopy::Require {
            doc.refuse(
                &off.place,
                "is \"off\", without which there is no zero-copy: have dataplane.zero_copy \"auto\"",
            );
        }
        if dataplane.bulk == Bulk::Workers {
            doc.refuse(&off.place, "is \"off\", and the kernel carries all TCP then: have dataplane.bulk \"auto\"");
        }
    }
    section.finish();
    dataplane
}

fn metrics(doc: &Document<'_>, mut section: Section<'_, '_>) -> Metrics {
    let listen = section.optional::<SocketAddr>("listen");
    if let Some(listen) = listen.as_ref().filter(|listen| listen.value.port() == 0) {
        doc.refuse(&listen.place, "has no port");
    }
    let metrics = Metrics {
        listen: listen.map(|listen| listen.value),
        socket: section.or("socket", false, |_| Ok(())),
        per_pod: section.or("per_pod", true, |_| Ok(())),
        per_peer: section.or("per_peer", true, |_| Ok(())),
    };
    section.finish();
    metrics
}

fn ipam(doc: &Document<'_>, mut section: Section<'_, '_>, pod_cidrs: Option<&Vec<At<IpNet>>>) -> Ipam {
    let exclude = section.list::<AddressRange>("exclude").map_or_else(Vec::new, |list| list.value);
    let seconds = section.or("quarantine_s", 30, |seconds: &u64| within(0, 86_400)(*seconds));
    section.finish();
    if let Some(pod_cidrs) = pod_cidrs {
        check::excluded(doc, &exclude, pod_cidrs);
    }
    Ipam { exclude: range::merge(values(exclude)), quarantine: Duration::from_secs(seconds) }
}

fn probe(mut section: Section<'_, '_>) -> Probe {
    let seconds = section.or("interval_s", 5, |seconds: &u64| within(0, 3600)(*seconds));
    section.finish();
    Probe { interval: Duration::from_secs(seconds) }
}

/// The check that a number is between two others.
fn within(low: u64, high: u64) -> impl Fn(u64) -> Result<(), String> {
    move |value| if (low..=high).contains(&value) { Ok(()) } else { Err(format!("is not between {low} and {high}")) }
}

fn values<T>(list: Vec<At<T>>) -> Vec<T> {
    list.into_iter().map(|item| item.value).collect()
}
