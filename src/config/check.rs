//! Checks that need more than one key, or more than its type.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::MAX_WORKERS;
use super::parse::{EndKeys, NodeKeys};
use super::range::AddressRange;
use super::reader::{At, Document};

/// The longest prefixes of a node's range: the first address is the VXLAN device's, and a pod
/// needs one too.
const LONGEST_V4: u8 = 30;
const LONGEST_V6: u8 = 126;

/// Where no pod can be, and what is there (RFC 6890 section 2.2, RFC 5771 and RFC 4291 section 2.4 for multicast).
const RESERVED: [(IpNet, &str); 8] = [
    (v4([0, 0, 0, 0], 8), "unspecified"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v6(Ipv6Addr::UNSPECIFIED, 128), "unspecified"),
    (v6(Ipv6Addr::LOCALHOST, 128), "loopback"),
    (v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), "link-local"),
    (v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "multicast"),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(address: Ipv6Addr, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// IFNAMSIZ without the terminating zero (`include/uapi/linux/if.h`).
pub(super) const DEVICE_NAME_MAX: usize = 15;

/// A name that the kernel takes for a device (`dev_valid_name` in `net/core/dev.c`).
pub(super) fn device_name(doc: &Document<'_>, device: &At<String>) {
    let name = device.value.as_str();
    let unfit = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name == "." || name == ".." || name.contains(unfit) {
        doc.refuse(&device.place, "is not a device name");
    } else if name.len() > DEVICE_NAME_MAX {
        doc.refuse(&device.place, format!("is longer than the {DEVICE_NAME_MAX} bytes of a device name"));
    }
}

/// The uplink has a possible name and is not the VXLAN device.
pub(super) fn devices(doc: &Document<'_>, uplink: Option<&At<String>>, vxlan: Option<&At<String>>) {
    let Some(uplink) = uplink else { return };
    device_name(doc, uplink);
    if let Some(vxlan) = vxlan.filter(|vxlan| vxlan.value == uplink.value) {
        doc.refuse(&vxlan.place, "is the uplink; the VXLAN device is a device of its own");
    }
}

/// Worker cores: some, distinct, online.
pub(super) fn cores(doc: &Document<'_>, cores: &At<Vec<At<usize>>>, online: &[usize]) {
    if cores.value.is_empty() {
        doc.refuse(&cores.place, "names no CPU; a worker needs one (or set mode = \"kernel\")");
    }
    if cores.value.len() > MAX_WORKERS {
        doc.refuse(&cores.place, format!("asks for more than {MAX_WORKERS} workers"));
    }
    let mut seen = HashSet::new();
    for core in &cores.value {
        if !seen.insert(core.value) {
            doc.refuse(&core.place, "is named twice");
        } else if !online.is_empty() && !online.contains(&core.value) {
            doc.refuse(&core.place, "is not a CPU that is online");
        }
    }
}

/// All that nodes must agree on or may not share.
pub(super) fn nodes(doc: &Document<'_>, own: &NodeKeys, peers: &[NodeKeys], cluster: &[At<IpNet>]) {
    for cidr in cluster {
        range(doc, cidr);
    }
    let all = || std::iter::once(own).chain(peers);
    unique_names(doc, all());
    for mac in peers.iter().filter(|peer| peer.underlay6.is_none()).filter_map(|peer| peer.vtep_mac6.as_ref()) {
        doc.refuse(&mac.place, "has no underlay6 beside it");
    }
    let pods: Vec<IpNet> =
        cluster.iter().chain(all().flat_map(|node| &node.pod_cidrs)).map(|cidr| cidr.value).collect();
    underlay_family(doc, all());
    addresses(doc, all(), &pods);
    macs(doc, all().map(NodeKeys::first));
    macs(doc, all().map(NodeKeys::second));
    for node in all() {
        ranges(doc, node, cluster);
    }
    overlaps(doc, all());
}

fn unique_names<'n>(doc: &Document<'_>, nodes: impl Iterator<Item = &'n NodeKeys>) {
    let mut first = HashMap::new();
    for name in nodes.filter_map(|node| node.name.as_ref()) {
        if !is_dns_name(&name.value) {
            doc.refuse(&name.place, "is not a node name: lower-case letters, digits, `-` and `.`, as in DNS");
        }
        if let Some(other) = first.insert(name.value.as_str(), &name.place.key) {
            doc.refuse(&name.place, format!("is taken by {other}"));
        }
    }
}

/// An RFC 1123 subdomain in lower case, as Kubernetes asks of a node name.
pub(super) fn is_dns_name(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.first().is_some_and(alphanumeric)
            && bytes.last().is_some_and(alphanumeric)
            && bytes.iter().all(|byte| alphanumeric(byte) || *byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn underlay_family<'n>(doc: &Document<'_>, nodes: impl Iterator<Item = &'n NodeKeys> + Clone) {
    let mut family = None;
    for underlay in nodes.clone().filter_map(|node| node.underlay.as_ref()) {
        let (is_ipv6, other) = *family.get_or_insert((underlay.value.is_ipv6(), &underlay.place.key));
        if is_ipv6 != underlay.value.is_ipv6() {
            let reason = format!("is not of the family of {other}; all underlay addresses are of one");
            doc.refuse(&underlay.place, reason);
        }
    }
    for underlay6 in nodes.filter_map(|node| node.underlay6.as_ref()) {
        if underlay6.value.is_ipv4() {
            doc.refuse(&underlay6.place, "is not an IPv6 address");
        } else if let Some((true, other)) = family {
            let reason = format!("is a second IPv6 address of a tunnel's end: by {other} all families go over IPv6");
            doc.refuse(&underlay6.place, reason);
        }
    }
}

/// The addresses of the nodes themselves: each of one node, none a pod's.
fn addresses<'n>(doc: &Document<'_>, nodes: impl Iterator<Item = &'n NodeKeys>, pods: &[IpNet]) {
    let mut taken = HashMap::new();
    for node in nodes {
        for address in node.underlay.iter().chain(&node.underlay6).chain(&node.addresses) {
            let refuse = |reason: String| doc.refuse(&address.place, reason);
            if let Some(reason) = unreachable_address(address.value) {
                refuse(reason.to_owned());
            }
            if let Some(range) = pods.iter().find(|range| range.contains(&address.value)) {
                refuse(format!("lies inside the pod range {range}; a node cannot have it"));
            }
            if let Some(other) = taken.insert(address.value, &address.place.key) {
                refuse(format!("is also {other}"));
            }
        }
        let families: Vec<bool> = node.pod_cidrs.iter().map(|cidr| cidr.value.addr().is_ipv6()).collect();
        for address in node.addresses.iter().filter(|address| !families.contains(&address.value.is_ipv6())) {
            doc.refuse(&address.place, "is of a family that the node has no pod range of; no tunnel leads there");
        }
    }
}

/// Why a node cannot have this address.
pub(super) fn unreachable_address(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.to_ipv4_mapped().is_some(),
    };
    if address.is_unspecified() {
        Some("is the unspecified address")
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if address.is_multicast() {
        Some("is a multicast address; list the nodes one by one")
    } else if link_local {
        Some("is not an address that other nodes can reach")
    } else {
        None
    }
}

/// The MACs of the ends of one tunnel.
fn macs<'n>(doc: &Document<'_>, ends: impl Iterator<Item = EndKeys<'n>>) {
    let mut taken = HashMap::new();
    for end in ends {
        let place = end.mac.map(|mac| &mac.place).or(end.underlay.map(|ip| &ip.place));
        let (Some(mac), Some(place)) = (end.mac(), place) else { continue };
        if !mac.is_unicast() {
            doc.refuse(place, "is not a unicast address");
        }
        if let Some(other) = taken.insert(mac, &place.key) {
            doc.refuse(place, format!("gives the VTEP MAC {mac}, which {other} has; set vtep_mac"));
        }
    }
}

fn ranges(doc: &Document<'_>, node: &NodeKeys, cluster: &[At<IpNet>]) {
    let mut families = HashMap::new();
    for cidr in &node.pod_cidrs {
        range(doc, cidr);
        if let Some(reason) = too_small(&cidr.value) {
            doc.refuse(&cidr.place, reason);
        }
        if !cluster.iter().any(|range| range.value.contains(&cidr.value)) {
            doc.warn(&cidr.place, "is not inside cluster.pod_cidrs, which should cover all nodes");
        }
        if let Some(other) = families.insert(cidr.value.addr().is_ipv6(), &cidr.place.key) {
            doc.refuse(&cidr.place, format!("is a second range of the family of {other}; a node has one of each"));
        }
    }
}

/// A range that pods can be in.
fn range(doc: &Document<'_>, cidr: &At<IpNet>) {
    if cidr.value.addr() != cidr.value.network() {
        doc.refuse(&cidr.place, format!("has host bits set; the range is {}", cidr.value.trunc()));
    }
    if let Some(reason) = podless(&cidr.value) {
        doc.refuse(&cidr.place, reason);
    }
}

/// Why no pod can be in a range.
pub(super) fn podless(cidr: &IpNet) -> Option<String> {
    if cidr.prefix_len() == 0 {
        return Some("is every address of its family".to_owned());
    }
    let overlaps = |reserved: &IpNet| reserved.contains(cidr) || cidr.contains(reserved);
    let (reserved, what) = RESERVED.iter().find(|(reserved, _)| overlaps(reserved))?;
    Some(format!("overlaps {reserved}, which is {what}; no pod can be there"))
}

/// Why a range has no room for a node.
pub(super) fn too_small(cidr: &IpNet) -> Option<String> {
    let longest = if cidr.addr().is_ipv6() { LONGEST_V6 } else { LONGEST_V4 };
    (cidr.prefix_len() > longest).then(|| format!("is too small; the longest prefix of a node is /{longest}"))
}

/// Addresses that pods are not to have lie where pods could have them.
pub(super) fn excluded(doc: &Document<'_>, excluded: &[At<AddressRange>], pod_cidrs: &[At<IpNet>]) {
    for range in excluded {
        let holds =
            |cidr: &At<IpNet>| cidr.value.contains(&range.value.first()) && cidr.value.contains(&range.value.last());
        if !pod_cidrs.iter().any(holds) {
            doc.refuse(&range.place, "is not inside one of node.pod_cidrs; only there addresses are given out");
        }
    }
}

/// Ranges nest or are apart, so after sorting by first address each need only be held against
/// the last one that reaches furthest.
fn overlaps<'n>(doc: &Document<'_>, nodes: impl Iterator<Item = &'n NodeKeys>) {
    let mut ranges: Vec<(IpNet, &NodeKeys, &At<IpNet>)> =
        nodes.flat_map(|node| node.pod_cidrs.iter().map(move |cidr| (cidr.value.trunc(), node, cidr))).collect();
    ranges.sort_by_key(|(range, ..)| (range.network(), range.prefix_len()));
    let mut widest: Option<(IpNet, &NodeKeys)> = None;
    for (range, node, cidr) in ranges {
        match widest {
            Some((wide, owner)) if wide.contains(&range) => {
                let name = |node: &NodeKeys| node.name.as_ref().map_or("?".to_owned(), |name| name.value.clone());
                let reason = format!("of {} overlaps {wide} of {}", name(node), name(owner));
                doc.refuse(&cidr.place, reason);
            }
            _ => widest = Some((range, node)),
        }
    }
}
