//! What Flannel's nodes tell each other by annotations of their Node objects (flannel `pkg/subnet/kube/annotations.go`,
//! `kube.go`, `pkg/backend/vxlan/vxlan.go`), and what podwire adds.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::go_json::field;
use super::net_conf::NetConf;
use super::object::Object;
use crate::config::Peer;
use crate::wire::{Mac, TunnelEnd, Vni};

/// Before the keys of Flannel's annotations.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// Before ours.
pub const OWN_PREFIX: &str = "podwire.io/";

/// `"true"` on nodes that take part.
pub const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
pub const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
pub const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
pub const BACKEND_V6_DATA: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// The underlay address of the VTEP.
pub const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
pub const PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/public-ipv6";
/// What an operator wants to be published instead.
pub const PUBLIC_IP_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ip-overwrite";
pub const PUBLIC_IPV6_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ipv6-overwrite";
/// What an operator wants to be used, and published.
pub const NODE_PUBLIC_IP: &str = "flannel.alpha.coreos.com/node-public-ip";
pub const NODE_PUBLIC_IPV6: &str = "flannel.alpha.coreos.com/node-public-ipv6";
/// Which podwire runs the node.
pub const VERSION: &str = "podwire.io/version";
/// `"true"` on podwire nodes that take IPv6 at the VTEP of [`BACKEND_V6_DATA`]: earlier ones published one that they did
/// not have.
pub const IPV6_VTEP: &str = "podwire.io/ipv6-vtep";
/// How its workers poll.
pub const MODE: &str = "podwire.io/mode";

/// The only backend that podwire speaks.
pub const VXLAN: &str = "vxlan";

/// The keys of one underlay family.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    pub data: &'static str,
    pub address: &'static str,
    pub address_overwrite: &'static str,
    pub node_address: &'static str,
}

pub const V4: Keys = Keys {
    data: BACKEND_DATA,
    address: PUBLIC_IP,
    address_overwrite: PUBLIC_IP_OVERWRITE,
    node_address: NODE_PUBLIC_IP,
};
pub const V6: Keys = Keys {
    data: BACKEND_V6_DATA,
    address: PUBLIC_IPV6,
    address_overwrite: PUBLIC_IPV6_OVERWRITE,
    node_address: NODE_PUBLIC_IPV6,
};

/// The keys of the family in which nodes reach each other.
pub fn keys(net_conf: &NetConf) -> Keys {
    if net_conf.underlay_is_ipv6() { V6 } else { V4 }
}

/// The data of a VTEP in the one form that Flannel's naive reader of its own MAC understands: compact, the MAC last.
pub fn backend_data(vni: Vni, mac: Mac) -> String {
    format!(r#"{{"VNI":{},"VtepMAC":"{mac}"}}"#, vni.get())
}

/// The MAC of the VTEP that a node has published.
pub fn vtep_mac(node: &Object, keys: Keys) -> Option<Mac> {
    let data: Value = serde_json::from_str(node.annotation(keys.data)?).ok()?;
    field(&data, "VtepMAC")?.as_str()?.parse().ok()
}

/// Whether podwire runs the node.
pub fn is_podwire(node: &Object) -> bool {
    node.annotation(VERSION).is_some()
}

/// A node's pod ranges of the families that are on.
pub fn pod_cidrs(node: &Object, net_conf: &NetConf) -> Result<Vec<IpNet>, String> {
    let mut ranges = Vec::new();
    for text in &node.pod_cidrs {
        let range: IpNet = text.parse().map_err(|_| format!("spec.podCIDRs has {text:?}, which is not a range"))?;
        let cluster = if range.addr().is_ipv6() { net_conf.v6 } else { net_conf.v4 };
        ranges.extend(cluster.map(|_| range));
    }
    Ok(ranges)
}

/// The keys of the second tunnel where there are two: Flannel has one of each family, and the first is IPv4's.
pub fn second_keys(net_conf: &NetConf) -> Option<Keys> {
    net_conf.v4.and(net_conf.v6).map(|_| V6)
}

/// The end of a tunnel that a node has published.
fn end(node: &Object, keys: Keys) -> Result<TunnelEnd, String> {
    let missing = |key: &str, value: Option<&str>| match value {
        Some(value) => format!("its annotation {key} is {value:?}, which cannot be understood"),
        None => format!("it has no annotation {key}"),
    };
    let mac = vtep_mac(node, keys).ok_or_else(|| missing(keys.data, node.annotation(keys.data)))?;
    let address = node.annotation(keys.address);
    let underlay = address.and_then(|text| text.parse().ok()).ok_or_else(|| missing(keys.address, address))?;
    Ok(TunnelEnd { underlay, mac })
}

/// The second VTEP that another node has; `None` when it says nothing that can be understood.
fn second(node: &Object, net_conf: &NetConf) -> Option<TunnelEnd> {
    let is_there = !is_podwire(node) || node.annotation(IPV6_VTEP) == Some("true");
    second_keys(net_conf).filter(|_| is_there).and_then(|keys| end(node, keys).ok())
}

/// Another node as a peer; `None` while it does not take part.
pub fn peer(node: &Object, net_conf: &NetConf) -> Result<Option<Peer>, String> {
    if node.annotation(MANAGED) != Some("true") {
        return Ok(None);
    }
    match node.annotation(BACKEND_TYPE) {
        Some(VXLAN) => {}
        other => return Err(format!("its backend is {:?}; podwire speaks vxlan only", other.unwrap_or_default())),
    }
    let TunnelEnd { underlay, mac } = end(node, keys(net_conf))?;
    let second = second(node, net_conf);
    let mut ranges = pod_cidrs(node, net_conf)?;
    if !is_podwire(node) && second.is_none() {
        // Flannel has a tunnel of its own for each family.
        ranges.retain(|range| range.addr().is_ipv6() == net_conf.underlay_is_ipv6());
    }
    let name = node.name.clone();
    Ok(Some(Peer { name, underlay, vtep_mac: mac, second, pod_cidrs: ranges, addresses: Vec::new() }))
}

/// What an operator says by annotation that this node's VTEP address is.
pub fn wanted_underlay(own: &Object, keys: Keys) -> Result<Option<IpAddr>, String> {
    let Some(text) = own.annotation(keys.node_address) else { return Ok(None) };
    text.parse()
        .map(Some)
        .map_err(|_| format!("the annotation {} is {text:?}, which is not an address", keys.node_address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    const DUAL: &str = r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
        "Backend": {"Type": "vxlan"}}"#;

    fn node(annotations: &[(&str, &str)]) -> Object {
        Object {
            name: "b".into(),
            annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            pod_cidrs: vec!["10.244.2.0/24".into(), "fd00:244:2::/64".into()],
            ..Object::default()
        }
    }

    const GOOD: [(&str, &str); 4] = [
        (MANAGED, "true"),
        (BACKEND_TYPE, "vxlan"),
        (BACKEND_DATA, r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#),
        (PUBLIC_IP, "192.168.1.3"),
    ];

    #[test]
    fn data_is_written_as_flannel_writes_it() {
        let mac: Mac = "12:c6:65:89:b4:e3".parse().unwrap();
        assert_eq!(backend_data(Vni::new(1).unwrap(), mac), r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}"#);
    }

    #[test]
    fn a_flannel_node_is_a_peer_for_the_family_of_its_tunnel() {
        let (single, dual) = (NetConf::parse(NET_CONF).unwrap(), NetConf::parse(DUAL).unwrap());
        let peer_of = |node: &Object, conf| peer(node, conf).unwrap().unwrap();
        let found = peer_of(&node(&GOOD), &single);
        assert_eq!(
            (found.underlay.to_string(), found.vtep_mac.to_string()),
            ("192.168.1.3".into(), "12:c6:65:89:b4:e3".into())
        );
        assert_eq!(found.pod_cidrs, ["10.244.2.0/24".parse().unwrap()]);
        assert_eq!(peer_of(&node(&GOOD), &dual).pod_cidrs.len(), 1);
        let podwire = [&GOOD[..], &[(VERSION, "1")]].concat();
        assert_eq!(peer_of(&node(&podwire), &dual).pod_cidrs.len(), 2);
    }

    #[test]
    fn a_second_vtep_is_one_of_flannels_or_of_a_podwire_that_says_so() {
        let (single, dual) = (NetConf::parse(NET_CONF).unwrap(), NetConf::parse(DUAL).unwrap());
        let second = |annotations: &[(&str, &str)], conf| {
            let found = peer(&node(&[&GOOD[..], annotations].concat()), conf).unwrap().unwrap();
            (found.second.map(|end| (end.underlay.to_string(), end.mac.to_string())), found.pod_cidrs.len())
        };
        let v6 = [(BACKEND_V6_DATA, r#"{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}"#), (PUBLIC_IPV6, "fd00::3")];
        let there = Some(("fd00::3".to_owned(), "12:c6:65:89:b4:e4".to_owned()));
        assert_eq!(second(&v6, &dual), (there.clone(), 2));
        assert_eq!(second(&v6, &single), (None, 1));
        assert_eq!(second(&v6[..1], &dual), (None, 1));
        assert_eq!(second(&[v6[0], (PUBLIC_IPV6, "host")], &dual), (None, 1));
        let old = [&v6[..], &[(VERSION, "1")]].concat();
        assert_eq!(second(&old, &dual), (None, 2), "it hears no IPv6 tunnel, whatever it has published");
        assert_eq!(second(&[&old[..], &[(IPV6_VTEP, "true")]].concat(), &dual), (there, 2));
    }

    #[test]
    fn what_a_node_must_not_say_is_named() {
        let conf = NetConf::parse(NET_CONF).unwrap();
        assert_eq!(peer(&node(&[]), &conf), Ok(None));
        assert_eq!(peer(&node(&[(MANAGED, "false")]), &conf), Ok(None));
        for (key, value, said) in [
            (BACKEND_TYPE, "host-gw", "its backend is \"host-gw\""),
            (BACKEND_DATA, "null", "backend-data is \"null\""),
            (BACKEND_DATA, "{\"VNI\":1", "cannot be understood"),
            (BACKEND_DATA, "{\"VtepMAC\":\"12:c6\"}", "cannot be understood"),
            (BACKEND_DATA, "{\"VtepMAC\":7}", "cannot be understood"),
            (PUBLIC_IP, "host.example", "public-ip is \"host.example\""),
            (PUBLIC_IP, "", "cannot be understood"),
        ] {
            let mut node = node(&GOOD);
            node.annotations.insert(key.to_owned(), value.to_owned());
            let error = peer(&node, &conf).unwrap_err();
            assert!(error.contains(said), "{key}: {error}");
        }
        for (key, ..) in &GOOD[1..] {
            let mut node = node(&GOOD);
            node.annotations.remove(*key);
            assert!(peer(&node, &conf).is_err(), "{key}");
        }
        let mut node = node(&GOOD);
        node.pod_cidrs = vec!["10.244.2".into()];
        assert!(peer(&node, &conf).unwrap_err().contains("not a range"));
    }
}
