//! What the kernel path refuses, whoever sends it and whatever the programs are attached to:
//!
//! - from pods, a source that is not theirs. `pod_steer` drops it where it is attached; it is not in `mode = "kernel"`,
//!   nor yet on the device of a pod that a runtime has just added ([`super::newcomers`]). The kernel itself looks whether
//!   the way back to the source leads through the device that the packet came by. A rule it is, because `rp_filter`
//!   knows no IPv6 and is loose wherever `all.rp_filter` is.
//! - from elsewhere, the address of a pod of this node as the source, inside of a tunnel too;
//! - tunnel packets to this node that come from no peer's VTEP (`dataplane.known_vteps_only`), by whatever device.
//!   `nic_steer` drops them on the uplink only;
//! - tunnel packets of pods to any VTEP, by the overlay too: masqueraded, they would seem to come from this node's.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::nft::{self, matches};
use super::wiring::HOST_END;
use crate::config::Config;

const CHAIN: &str = "guard";

/// `raw` (`NF_IP_PRI_RAW`, `include/uapi/linux/netfilter_ipv4.h`): before conntrack notes a flow.
const PRIORITY: i32 = -300;

/// Each family of addresses, whether it is IPv6, and the set of the peers' VTEPs that are of it.
const FAMILIES: [(&str, bool, &str); 2] = [("ip", false, "vteps4"), ("ip6", true, "vteps6")];

/// The chain for `config`, with its sets and rules, in the words of a listing.
pub fn objects(config: &Config) -> Vec<Value> {
    let vteps: Vec<IpNet> = config.peers.iter().flat_map(|peer| peer.ends()).map(|end| end.underlay.into()).collect();
    let sets = FAMILIES.map(|(_, is_ipv6, name)| nft::set(name, is_ipv6, &vteps));
    let chain = json!({ "name": CHAIN, "type": "filter", "hook": "prerouting", "prio": PRIORITY, "policy": "accept" });
    // Neighbour discovery needs them, and no router forwards them (RFC 4291, section 2.5).
    let link_local = json!({ "set": ["::", { "prefix": { "addr": "fe80::", "len": 10 } }] });
    let accepted = json!([from_pod("=="), matches("==", &payload("ip6", "saddr"), &link_local), { "accept": null }]);
    let dropped = of_tunnels(config).into_iter().chain(of_sources(config)).map(|mut condition| {
        condition.extend([json!({ "counter": null }), json!({ "drop": null })]);
        condition.into()
    });
    let rules = usual(config).into_iter().chain([solicitations(), accepted]).chain(dropped);
    let rules = rules.map(|expr| nft::object("rule", json!({ "chain": CHAIN, "expr": expr })));
    sets.into_iter().chain([nft::object("chain", chain)]).chain(rules).collect()
}

/// What is accepted at once, because no rule below drops it: tunnel packets of peers, and from elsewhere than pods what is
/// no tunnel packet and has no source of this node's range. Most packets, which would be held against each rule else.
fn usual(config: &Config) -> Vec<Value> {
    let (tunnel, devices) = (payload("udp", "dport"), config.tunnel_devices());
    let port = config.vxlan.port.into();
    let from_outside: Vec<_> = devices.map(|device| matches("!=", &interface(), &device.into())).collect();
    let mut accepted = Vec::new();
    for (family, is_ipv6, vteps) in FAMILIES {
        if !config.peers.is_empty() && config.dataplane.known_vteps_only {
            let of_peer = matches("==", &payload(family, "saddr"), &format!("@{vteps}").into());
            let conditions = [matches("==", &tunnel, &port), of_peer, from_pod("!=")];
            accepted.push(conditions.into_iter().chain(from_outside.clone()).collect::<Vec<_>>());
        }
        let own = config.node.pod_cidrs.iter().filter(|range| range.addr().is_ipv6() == is_ipv6);
        let of_others: Vec<_> =
            own.map(|&range| matches("!=", &payload(family, "saddr"), &nft::range(range))).collect();
        if of_others.is_empty() {
            continue;
        }
        let no_datagram = matches("!=", &json!({ "meta": { "key": "l4proto" } }), &"udp".into());
        for no_tunnel in [no_datagram, matches("!=", &tunnel, &port)] {
            accepted.push([of_others.clone(), vec![no_tunnel, from_pod("!=")]].concat());
        }
    }
    accepted.into_iter().map(|conditions| [conditions, vec![json!({ "accept": null })]].concat().into()).collect()
}

/// What asks for routers. The kernel would note whoever asks as a neighbour (`ndisc_recv_rs` in `net/ipv6/ndisc.c`), in a
/// table that all namespaces share; pods are told of their router when they are attached.
fn solicitations() -> Value {
    let solicits = matches("==", &payload("icmpv6", "type"), &"nd-router-solicit".into());
    json!([from_pod("=="), solicits, { "drop": null }])
}

/// Which tunnel packets are refused, by their outer headers.
fn of_tunnels(config: &Config) -> Vec<Vec<Value>> {
    let tunnel = matches("==", &payload("udp", "dport"), &config.vxlan.port.into());
    let to_node = matches("==", &json!({ "fib": { "result": "type", "flags": ["daddr"] } }), &"local".into());
    let from_tunnel = config.tunnel_devices().map(|device| matches("==", &interface(), &device.into()));
    let from = std::iter::once(from_pod("==")).chain(from_tunnel);
    let mut refused: Vec<_> = from.map(|from| vec![tunnel.clone(), from, to_node.clone()]).collect();
    // The kernel path is not to be cut off by a daemon that has yet to learn of its peers.
    if config.peers.is_empty() {
        return refused;
    }
    for (family, _, vteps) in FAMILIES {
        let vteps = format!("@{vteps}").into();
        refused.push(vec![tunnel.clone(), from_pod("=="), matches("==", &payload(family, "daddr"), &vteps)]);
        if config.dataplane.known_vteps_only {
            let from_no_peer = matches("!=", &payload(family, "saddr"), &vteps);
            refused.push(vec![tunnel.clone(), from_no_peer, to_node.clone()]);
        }
    }
    refused
}

/// Which sources are refused: where another way leads back to them than the one that the packet came by.
fn of_sources(config: &Config) -> Vec<Vec<Value>> {
    let way_back = json!({ "fib": { "result": "oif", "flags": ["saddr", "iif"] } });
    let forged = vec![from_pod("=="), matches("==", &way_back, &false.into())];
    let device = json!({ "fib": { "result": "oifname", "flags": ["saddr"] } });
    let leads_to_pod = matches("==", &device, &format!("{HOST_END}*").into());
    let from_elsewhere = config.node.pod_cidrs.iter().map(|&range| {
        let family = if range.addr().is_ipv6() { "ip6" } else { "ip" };
        vec![from_pod("!="), matches("==", &payload(family, "saddr"), &nft::range(range)), leads_to_pod.clone()]
    });
    [forged].into_iter().chain(from_elsewhere).collect()
}

/// Whether (`==`) or not (`!=`) a packet comes by the host end of a pod.
fn from_pod(op: &str) -> Value {
    matches(op, &interface(), &format!("{HOST_END}*").into())
}

fn interface() -> Value {
    json!({ "meta": { "key": "iifname" } })
}

fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}
