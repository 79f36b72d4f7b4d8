//! What holds of whatever an API server says, for the fuzz targets.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::announce::{Announcement, patched};
use super::cache;
use super::net_conf::NetConf;
use super::object::Object;
use super::roster::Roster;
use crate::config::{Config, Joined, Mode};
use crate::wire::{Mac, TunnelEnd, Vni};

const OWN_NAME: &str = "node-a";
const SERVER: &str = "https://10.96.0.1";
const CONFIG: &str = "[node]\nname='node-a'\nuplink='eth0'\n[dataplane]\nmode='kernel'\n[kubernetes]\n";

/// Takes the text of `net-conf.json` and Node objects, with a zero byte before each, or after a zero byte the file that
/// keeps them: what comes of them is a configuration that a file could have, and what this node says of itself it says
/// once.
pub fn fuzz(input: &[u8]) {
    let mut parts = input.split(|byte| *byte == 0);
    let net_conf = parts.next().unwrap_or_default();
    let roster = if net_conf.is_empty() {
        cache::fuzz(parts.next().unwrap_or_default(), OWN_NAME, SERVER)
    } else {
        read(net_conf, parts)
    };
    if let Some(roster) = roster {
        joins(&roster);
        says_once(&roster);
    }
}

fn read<'i>(net_conf: &[u8], nodes: impl Iterator<Item = &'i [u8]>) -> Option<Roster> {
    let net_conf = NetConf::parse(str::from_utf8(net_conf).ok()?).ok()?;
    let mut roster = Roster::new(OWN_NAME, net_conf);
    for node in nodes.filter_map(|text| serde_json::from_slice::<Object>(text).ok()) {
        let again = serde_json::to_vec(&node).expect("JSON");
        assert_eq!(serde_json::from_slice::<Object>(&again).expect("an object"), node);
        let changes = roster.apply(node.clone());
        assert!(!roster.apply(node) || !changes, "the same object again is no change");
    }
    Some(roster)
}

fn joins(roster: &Roster) {
    let cluster = roster.cluster(None);
    let Ok(own) = &cluster.own else { return };
    let config = Config::parse(CONFIG).expect("a configuration");
    let Ok(Joined { config, left_out }) = config.join(own, &cluster.members, &BTreeSet::new()) else { return };
    let nodes_out = left_out.iter().filter(|said| said.starts_with("node ")).count();
    assert_eq!(config.peers.len() + nodes_out, cluster.members.peers.len(), "{left_out:?}");
    let text = file(&config);
    if let Err(error) = Config::parse(&text) {
        panic!("{error}\n{text}");
    }
    let macs: HashSet<Mac> = config.peers.iter().map(|peer| peer.vtep_mac).chain(config.node.vtep_mac).collect();
    assert_eq!(macs.len(), config.peers.len() + 1);
}

/// The file of a node that is told the same by hand. Its own VTEP addresses are judged by what the kernel has.
fn file(config: &Config) -> String {
    let list = |ranges: &[IpNet]| format!("{:?}", ranges.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mac = config.node.vtep_mac.expect("a MAC");
    let mac6 = config.node.vtep_mac6.map_or_else(String::new, |mac| format!("vtep_mac6 = '{mac}'\n"));
    let mut text = format!(
        "[node]\nname = {OWN_NAME:?}\nuplink = 'eth0'\nvtep_mac = '{mac}'\n{mac6}pod_cidrs = {}\n[cluster]\npod_cidrs = {}\n\
         [vxlan]\nvni = {}\nport = {}\n[dataplane]\nmode = 'kernel'\n",
        list(&config.node.pod_cidrs),
        list(&config.cluster.pod_cidrs),
        config.vxlan.vni.get(),
        config.vxlan.port,
    );
    for peer in &config.peers {
        let _ = write!(
            text,
            "[[peers]]\nname = {:?}\nunderlay = '{}'\nvtep_mac = '{}'\npod_cidrs = {}\n",
            peer.name,
            peer.underlay,
            peer.vtep_mac,
            list(&peer.pod_cidrs)
        );
        if let Some(TunnelEnd { underlay, mac }) = peer.second {
            let _ = write!(text, "underlay6 = '{underlay}'\nvtep_mac6 = '{mac}'\n");
        }
    }
    text
}

/// After its patch the own object says what was announced, and nothing is left to be said.
fn says_once(roster: &Roster) {
    let Some(own) = roster.own() else { return };
    let announcement = Announcement {
        vni: Vni::new(1).expect("24 bits"),
        v4: Some(TunnelEnd { underlay: Ipv4Addr::new(192, 168, 1, 2).into(), mac: Mac([2, 0, 0, 0, 0, 1]) }),
        v6: None,
        mode: Mode::Adaptive,
    };
    let Some(patch) = announcement.patch(own, "2026-01-01T00:00:00Z") else { return };
    assert_eq!(announcement.patch(&patched(own, &patch), "2026-01-01T00:00:01Z"), None);
}
