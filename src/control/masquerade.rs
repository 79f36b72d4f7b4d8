//! Egress masquerade: what pods send to the outside of the cluster leaves with the node's address, by a chain of
//! our own table.
//!
//! Flannel's rules (`pkg/trafficmngr/nftables`), and one more, for the source addresses that nodes see:
//!
//! ```text
//!   marked by kube-proxy, which masquerades by itself      stays
//!   out through the VXLAN device: to another node          stays
//!   from the cluster's pods, to pods, nodes or multicast   stays
//!   from the cluster's pods, to any other                  is masqueraded
//! ```
//!
//! What is right is not touched, so that a reconciliation changes nothing, and what differs is replaced in one
//! transaction. Flows that are already translated go on as they are.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::netlink::{BaseChain, Netfilter};
use super::nft::{self, NftError};
use crate::config::{Config, Peer};

/// The bit that kube-proxy and others set in a packet's mark to have it masqueraded.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// `srcnat` (`NF_IP_PRI_NAT_SRC`, `include/uapi/linux/netfilter_ipv4.h`).
const PRIORITY: i32 = 100;

const CHAIN: &str = "postrouting";

const MULTICAST: [&str; 2] = ["224.0.0.0/4", "ff00::/8"];

/// The masquerading of one node.
#[derive(Debug, Default)]
pub struct Masquerade {
    /// What was asked for last, and how `nft` lists it since it was put in place.
    asked: Vec<Value>,
    listed: Option<Vec<Value>>,
    /// How `nft` listed it right after it was last put in place.
    words: Option<Vec<Value>>,
    problem: Option<NftError>,
}

impl Masquerade {
    /// Brings our table to what `config` wants. `nft` runs only if that has changed, or if `is_touched` says that the
    /// table may have, or if `is_there` and it should not be.
    pub fn ensure(&mut self, config: &Config, is_there: bool, is_touched: bool) {
        let wanted = if config.cluster.masquerade { rules(config) } else { Vec::new() };
        let same = wanted == self.asked;
        if same && !is_touched && !(wanted.is_empty() && is_there) {
            return;
        }
        if !same {
            self.asked = wanted;
            self.listed = None;
            self.words = None;
        }
        let result = if self.asked.is_empty() { take_away() } else { self.put() };
        if let Err(error) = &result
            && self.problem.as_ref().is_none_or(|known| known.to_string() != error.to_string())
        {
            tracing::error!("{error}");
        }
        self.problem = result.err();
    }

    /// Why what is wanted is not in place.
    pub fn problem(&self) -> Option<&NftError> {
        self.problem.as_ref()
    }

    fn put(&mut self) -> Result<(), NftError> {
        let listed = nft::list()?;
        if listed.as_ref() == Some(&self.asked) || listed.is_some() && listed == self.listed {
            return Ok(());
        }
        nft::replace(&self.asked)?;
        tracing::info!("the masquerading rules were set");
        // Where this nft says it in other words, these are the words from now on; heard twice, since someone may have
        // changed the table again before it was listed.
        let words = nft::list()?;
        if words == self.words {
            self.listed = words;
        } else {
            self.words = words;
        }
        Ok(())
    }
}

/// Removes our table from the network namespace of the calling thread; false when there was none.
pub fn remove() -> Result<bool, NftError> {
    let chains = Netfilter::open().and_then(|socket| socket.map_or(Ok(Vec::new()), |mut socket| socket.base_chains()));
    // Without an answer nft is asked.
    if chains.is_ok_and(|chains| !chains.iter().any(is_ours)) || nft::list()?.is_none() {
        return Ok(false);
    }
    nft::delete()?;
    Ok(true)
}

fn take_away() -> Result<(), NftError> {
    if remove()? {
        tracing::info!("the masquerading rules were removed");
    }
    Ok(())
}

/// Whether a chain is of our table.
pub fn is_ours(chain: &BaseChain) -> bool {
    chain.family == nft::FAMILY_NUMBER && chain.table == nft::TABLE
}

/// Our table for `config`, in the order and words of a listing.
fn rules(config: &Config) -> Vec<Value> {
    let pods: Vec<IpNet> = config.pod_ranges().collect();
    let nodes = config.peers.iter().flat_map(Peer::node_addresses).map(IpNet::from);
    let multicast = MULTICAST.iter().filter_map(|range| range.parse().ok());
    let kept: Vec<IpNet> = pods.iter().copied().chain(nodes).chain(multicast).collect();
    let sets = [("pods4", false, &pods), ("kept4", false, &kept), ("pods6", true, &pods), ("kept6", true, &kept)];
    let sets = sets.map(|(name, is_ipv6, ranges)| set(name, is_ipv6, ranges));
    let chain = json!({ "name": CHAIN, "type": "nat", "hook": CHAIN, "prio": PRIORITY, "policy": "accept" });
    let marked = json!({ "&": [{ "meta": { "key": "mark" } }, KUBE_PROXY_MARK] });
    let rules = [
        json!([matches("==", &marked, &KUBE_PROXY_MARK.into()), { "return": null }]),
        json!([matches("==", &json!({ "meta": { "key": "oifname" } }), &config.vxlan.device.as_str().into()), { "return": null }]),
        masquerade("ip", "@pods4", "@kept4"),
        masquerade("ip6", "@pods6", "@kept6"),
    ];
    let rules = rules.into_iter().map(|expr| nft::object("rule", json!({ "chain": CHAIN, "expr": expr })));
    [nft::table()].into_iter().chain(sets).chain([nft::object("chain", chain)]).chain(rules).collect()
}

/// A set of the ranges of one family.
fn set(name: &str, is_ipv6: bool, ranges: &[IpNet]) -> Value {
    let ranges: Vec<IpNet> = ranges.iter().filter(|range| range.addr().is_ipv6() == is_ipv6).copied().collect();
    // A set of intervals takes none that overlap.
    let mut elements: Vec<Value> = IpNet::aggregate(&ranges).into_iter().map(element).collect();
    elements.sort_by_cached_key(Value::to_string);
    let kind = if is_ipv6 { "ipv6_addr" } else { "ipv4_addr" };
    let mut set = json!({ "name": name, "type": kind, "flags": ["interval"] });
    if !elements.is_empty() {
        set["elem"] = elements.into();
    }
    nft::object("set", set)
}

fn element(range: IpNet) -> Value {
    let address: IpAddr = range.network();
    match range.prefix_len() {
        len if len == range.max_prefix_len() => address.to_string().into(),
        len => json!({ "prefix": { "addr": address, "len": len } }),
    }
}

fn matches(op: &str, left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn masquerade(protocol: &str, from: &str, unless_to: &str) -> Value {
    let field = |name: &str| json!({ "payload": { "protocol": protocol, "field": name } });
    let [from, to] = [("==", "saddr", from), ("!=", "daddr", unless_to)]
        .map(|(op, name, set)| matches(op, &field(name), &set.into()));
    json!([from, to, { "masquerade": { "flags": ["fully-random"] } }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_range_of_a_set_overlaps_another_and_hosts_are_plain_addresses() {
        let ranges = ["10.244.2.0/24", "10.244.0.0/16", "192.168.1.3/32", "fd00::/64", "10.245.0.0/16"];
        let ranges = ranges.map(|range| range.parse().unwrap());
        let set = set("kept4", false, &ranges);
        let expected = json!(["192.168.1.3", { "prefix": { "addr": "10.244.0.0", "len": 15 } }]);
        assert_eq!(set["set"]["elem"], expected);
        assert_eq!(super::set("kept6", true, &[])["set"].get("elem"), None);
    }
}
