//! Egress masquerade: what pods send to the outside of the cluster leaves with the node's address, by a chain of
//! our table ([`super::ruleset`]).
//!
//! Flannel's rules (`pkg/trafficmngr/nftables`), and one more, for the source addresses that nodes see:
//!
//! ```text
//!   marked by kube-proxy, which masquerades by itself      stays
//!   out through a VXLAN device: to another node            stays
//!   from the cluster's pods, to pods, nodes or multicast   stays
//!   from the cluster's pods, to any other                  is masqueraded
//! ```
//!
//! Flows that are already translated go on as they are.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::nft::{self, matches};
use crate::config::Config;

/// The bit that kube-proxy and others set in a packet's mark to have it masqueraded.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// `srcnat` (`NF_IP_PRI_NAT_SRC`, `include/uapi/linux/netfilter_ipv4.h`).
const PRIORITY: i32 = 100;

const CHAIN: &str = "postrouting";

const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// The chain for `config`, with its sets and rules, in the words of a listing.
pub fn objects(config: &Config) -> Vec<Value> {
    let pods: Vec<IpNet> = config.pod_ranges().collect();
    let nodes = config.peers.iter().flat_map(|peer| peer.node_addresses()).map(IpNet::from);
    let multicast = MULTICAST.iter().filter_map(|range| range.parse().ok());
    let kept: Vec<IpNet> = pods.iter().copied().chain(nodes).chain(multicast).collect();
    let sets = [("pods4", false, &pods), ("kept4", false, &kept), ("pods6", true, &pods), ("kept6", true, &kept)];
    let sets = sets.map(|(name, is_ipv6, ranges)| nft::set(name, is_ipv6, ranges));
    let chain = json!({ "name": CHAIN, "type": "nat", "hook": CHAIN, "prio": PRIORITY, "policy": "accept" });
    let marked = json!({ "&": [{ "meta": { "key": "mark" } }, KUBE_PROXY_MARK] });
    let tunnelled = config.tunnel_devices().map(
        |device| json!([matches("==", &json!({ "meta": { "key": "oifname" } }), &device.into()), { "return": null }]),
    );
    let rules = [json!([matches("==", &marked, &KUBE_PROXY_MARK.into()), { "return": null }])].into_iter();
    let rules =
        rules.chain(tunnelled).chain([masquerade("ip", "@pods4", "@kept4"), masquerade("ip6", "@pods6", "@kept6")]);
    let rules = rules.map(|expr| nft::object("rule", json!({ "chain": CHAIN, "expr": expr })));
    sets.into_iter().chain([nft::object("chain", chain)]).chain(rules).collect()
}

fn masquerade(protocol: &str, from: &str, unless_to: &str) -> Value {
    let field = |name: &str| json!({ "payload": { "protocol": protocol, "field": name } });
    let [from, to] = [("==", "saddr", from), ("!=", "daddr", unless_to)]
        .map(|(op, name, set)| matches(op, &field(name), &set.into()));
    json!([from, to, { "masquerade": { "flags": ["fully-random"] } }])
}
