//! What pods may not send by the kernel path: packets with a source that is not theirs.
//!
//! `pod_steer` drops them where it is attached. It is not in `mode = "kernel"`, nor yet on the device of a pod that a
//! runtime has just added ([`super::newcomers`]). There the kernel itself looks whether the way back to the source leads
//! through the device that the packet came by. A rule it is, because `rp_filter` knows no IPv6 and is loose wherever
//! `all.rp_filter` is.

use serde_json::{Value, json};

use super::nft::{self, matches};
use super::wiring::HOST_END;

const CHAIN: &str = "guard";

/// `raw` (`NF_IP_PRI_RAW`, `include/uapi/linux/netfilter_ipv4.h`): before conntrack notes a flow.
const PRIORITY: i32 = -300;

/// The chain with its rules, in the words of a listing.
pub fn objects() -> Vec<Value> {
    let chain = json!({ "name": CHAIN, "type": "filter", "hook": "prerouting", "prio": PRIORITY, "policy": "accept" });
    let from_pod = matches("==", &json!({ "meta": { "key": "iifname" } }), &format!("{HOST_END}*").into());
    // Neighbour discovery needs them, and no router forwards them (RFC 4291, section 2.5).
    let link_local = json!({ "set": ["::", { "prefix": { "addr": "fe80::", "len": 10 } }] });
    let source = json!({ "payload": { "protocol": "ip6", "field": "saddr" } });
    let way_back = json!({ "fib": { "result": "oif", "flags": ["saddr", "iif"] } });
    let rules = [
        json!([from_pod, matches("==", &source, &link_local), { "accept": null }]),
        json!([from_pod, matches("==", &way_back, &false.into()), { "counter": null }, { "drop": null }]),
    ];
    let rules = rules.into_iter().map(|expr| nft::object("rule", json!({ "chain": CHAIN, "expr": expr })));
    [nft::object("chain", chain)].into_iter().chain(rules).collect()
}
