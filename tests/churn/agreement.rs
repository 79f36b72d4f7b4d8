//! Whether the model, the store, the daemon and the kernel say the same of a node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use podwire::control::api::{self, Ready, Reply, Request};
use podwire::control::client;
use serde::Deserialize;
use serde_json::Value;

use super::harness::{Netns, PodwireNode};
use super::model::Model;

/// The protocol of podwire's own routes.
const PROTOCOL: u64 = 240;

/// How long a datagram to a pod may take on a busy machine.
const ARRIVAL: Duration = Duration::from_secs(2);

/// What everybody says of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pod {
    addresses: BTreeSet<IpAddr>,
    host_ifname: String,
    host_ifindex: u32,
    mac: String,
}

/// As the store has it; what is not compared is left out.
#[derive(Deserialize)]
struct Stored {
    name: String,
    addresses: BTreeSet<IpAddr>,
    host_ifname: String,
    host_ifindex: u32,
    mac: String,
}

#[derive(Deserialize)]
struct Store {
    pods: Vec<Stored>,
}

/// What was looked at, and what does not agree.
pub struct Look {
    /// The names in the store.
    pub remembered: BTreeSet<String>,
    pub faults: Vec<String>,
}

/// A place where pods can be: its namespace, if it is there, and the attachments that were made in it, as
/// `(name, interface)`.
pub type Place<'a> = (Option<&'a Netns>, Vec<(String, String)>);

/// Looks at everything. `ended` are the names of pods whose namespace is gone, which the daemon must have noticed.
pub fn look(node: &PodwireNode, model: &Model, places: &[Place<'_>], ended: &BTreeSet<String>) -> Look {
    let mut faults = Vec::new();
    let stored = stored(node);
    let remembered: BTreeSet<String> = stored.keys().cloned().collect();
    compare("the store", model, &stored, &mut faults);
    let kept = ended.intersection(&remembered);
    faults.extend(kept.map(|name| format!("{name} is remembered, and its namespace is gone")));
    // Of a DEL that was cut short the name and the addresses may be left, until somebody asks again.
    let devices: BTreeSet<u64> =
        json(&node.host.netns, "ip -json link show").iter().filter_map(|link| link["ifindex"].as_u64()).collect();
    let lives = |(name, pod): &(&String, &Pod)| {
        model.sure().contains_key(*name) || devices.contains(&u64::from(pod.host_ifindex))
    };
    let living: BTreeMap<&str, &Pod> = stored.iter().filter(lives).map(|(name, pod)| (name.as_str(), pod)).collect();
    faults.extend(listed(node, &stored));
    faults.extend(kernel(&node.host.netns, &living));
    faults.extend(pins(node, &living));
    faults.extend(data_plane(node, stored.len()));
    faults.extend(ranges(node, &stored));
    faults.extend(inside(places, &living));
    let notes = fs::read_dir(node.runtime_dir().join("detach")).into_iter().flatten().flatten();
    faults.extend(notes.map(|note| format!("a note is left: {}", note.path().display())));
    Look { remembered, faults }
}

/// Sends a datagram from the node to each address of each pod; names those where it did not arrive.
pub fn unreachable(node: &Netns, places: &[Place<'_>], model: &Model) -> Vec<String> {
    let sender = node.within(|| [UdpSocket::bind("0.0.0.0:0"), UdpSocket::bind("[::]:0")]);
    let [v4, v6] = sender.map(|socket| socket.expect("a socket of the node"));
    let mut faults = Vec::new();
    for (netns, attachments) in places {
        let names = attachments.iter().map(|(name, _)| name);
        for (name, held) in names.filter_map(|name| Some((name, model.sure().get(name)?))) {
            for address in &held.addresses {
                let netns = netns.unwrap_or_else(|| panic!("{name} has no namespace"));
                let receiver = netns.within(|| UdpSocket::bind((*address, 0)));
                let arrived = receiver.and_then(|receiver| {
                    receiver.set_read_timeout(Some(ARRIVAL))?;
                    let sender = if address.is_ipv4() { &v4 } else { &v6 };
                    sender.send_to(name.as_bytes(), receiver.local_addr()?)?;
                    let mut buffer = [0; 128];
                    let length = receiver.recv(&mut buffer)?;
                    Ok(buffer[..length] == *name.as_bytes())
                });
                match arrived {
                    Ok(true) => {}
                    other => faults.push(format!("{name} is not reached at {address}: {other:?}")),
                }
            }
        }
    }
    faults
}

/// What the file says, by name.
fn stored(node: &PodwireNode) -> BTreeMap<String, Pod> {
    let path = node.runtime_dir().join("pods.json");
    let Ok(text) = fs::read_to_string(&path) else { return BTreeMap::new() };
    let store: Store = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", path.display()));
    let pods = store.pods.into_iter().map(|pod| {
        let Stored { name, addresses, host_ifname, host_ifindex, mac } = pod;
        (name, Pod { addresses, host_ifname, host_ifindex, mac })
    });
    pods.collect()
}

/// All that the model is sure of must be there, and nothing that it rules out; no address twice.
fn compare(place: &str, model: &Model, pods: &BTreeMap<String, Pod>, faults: &mut Vec<String>) {
    for (name, held) in model.sure() {
        match pods.get(name) {
            None => faults.push(format!("{name} is lost: {place} does not have it")),
            Some(pod) if pod.addresses != held.addresses || pod.mac != held.mac => {
                faults.push(format!("{place} has {name} with {:?} {}, not {held:?}", pod.addresses, pod.mac));
            }
            Some(_) => {}
        }
    }
    let extra = pods.keys().filter(|name| !model.allows(name));
    faults.extend(extra.map(|name| format!("{place} has {name}, which was removed")));
    let mut owners: BTreeMap<IpAddr, &str> = BTreeMap::new();
    for (name, pod) in pods {
        for address in &pod.addresses {
            if let Some(other) = owners.insert(*address, name) {
                faults.push(format!("{place} has {address} twice: {other} and {name}"));
            }
        }
    }
}

/// `podwire pods list` beside the store.
fn listed(node: &PodwireNode, stored: &BTreeMap<String, Pod>) -> Option<String> {
    let pods: Vec<api::Pod> =
        serde_json::from_str(&node.cli("pods list --output json")).expect("pods list prints JSON");
    let listed: BTreeMap<String, BTreeSet<IpAddr>> =
        pods.into_iter().map(|pod| (pod.name, pod.addresses.into_iter().collect())).collect();
    let stored: BTreeMap<String, BTreeSet<IpAddr>> =
        stored.iter().map(|(name, pod)| (name.clone(), pod.addresses.clone())).collect();
    (listed != stored).then(|| format!("pods list: {listed:?}\nthe store: {stored:?}"))
}

/// Devices, routes and neighbours of the node's namespace.
fn kernel(netns: &Netns, pods: &BTreeMap<&str, &Pod>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut differ = |what: &str, found: BTreeSet<String>, wanted: BTreeSet<String>| {
        let extra: Vec<_> = found.difference(&wanted).collect();
        let missing: Vec<_> = wanted.difference(&found).collect();
        if !extra.is_empty() || !missing.is_empty() {
            faults.push(format!("{what}: left over {extra:?}, missing {missing:?}"));
        }
    };
    let links = json(netns, "ip -json link show");
    let ends = links.iter().filter(|link| is_host_end(&link["ifname"]));
    differ(
        "devices",
        ends.map(|link| format!("{} {}", link["ifname"].as_str().unwrap_or_default(), link["ifindex"])).collect(),
        pods.values().map(|pod| format!("{} {}", pod.host_ifname, pod.host_ifindex)).collect(),
    );
    let routes = ["-4", "-6"].map(|family| json(netns, &format!("ip -json {family} route show proto {PROTOCOL}")));
    let routes = routes.iter().flatten().filter(|route| is_host_end(&route["dev"]));
    let each = |pod: &Pod, mac: &str| -> Vec<String> {
        pod.addresses.iter().map(|address| format!("{address} {}{mac}", pod.host_ifname)).collect()
    };
    differ(
        "routes",
        routes.map(|route| format!("{} {}", text(&route["dst"]), text(&route["dev"]))).collect(),
        pods.values().flat_map(|pod| each(pod, "")).collect(),
    );
    let neighbours = json(netns, "ip -json neigh show nud permanent");
    let neighbours = neighbours.iter().filter(|neighbour| is_host_end(&neighbour["dev"]));
    differ(
        "neighbours",
        neighbours.map(|n| format!("{} {} {}", text(&n["dst"]), text(&n["dev"]), text(&n["lladdr"]))).collect(),
        pods.values().flat_map(|pod| each(pod, &format!(" {}", pod.mac))).collect(),
    );
    faults
}

/// The links that hold the steering program on pods' devices.
fn pins(node: &PodwireNode, pods: &BTreeMap<&str, &Pod>) -> Option<String> {
    let entries = fs::read_dir(node.pins().join("links")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found: BTreeSet<String> = names.filter(|name| name.starts_with("pod_")).collect();
    let wanted: BTreeSet<String> = if node.options().is_kernel() {
        BTreeSet::new()
    } else {
        pods.values().map(|pod| format!("pod_{}", pod.host_ifindex)).collect()
    };
    (found != wanted).then(|| format!("programs are pinned on {found:?}, pods are {wanted:?}"))
}

/// No frame is lost, none is on its way, and the workers know as many pods as there are.
fn data_plane(node: &PodwireNode, pods: usize) -> Vec<String> {
    let status = node.status();
    let mut faults = Vec::new();
    if status.pods != pods {
        faults.push(format!("status counts {} pods, the store has {pods}", status.pods));
    }
    let Some(figures) = status.dataplane.figures else { return faults };
    let unbalanced = figures.workers.iter().filter(|worker| !worker.frames.is_balanced());
    faults.extend(unbalanced.map(|worker| format!("frames of worker {}: {:?}", worker.worker, worker.frames)));
    let under_way = figures.pods.iter().filter(|pod| pod.in_flight > 0);
    faults.extend(under_way.map(|pod| format!("pod {} has {} frames in flight", pod.pod, pod.in_flight)));
    if figures.pods.len() > pods {
        faults.push(format!("the data plane has {} pods, the store {pods}", figures.pods.len()));
    }
    faults
}

/// What is said to be used of each range beside the addresses that pods have.
fn ranges(node: &PodwireNode, stored: &BTreeMap<String, Pod>) -> Vec<String> {
    let reply = client::call(&node.runtime_dir(), Request::Ready);
    let Ok(Reply::Ready(Ready { ranges, .. })) = reply else { return vec![format!("no readiness: {reply:?}")] };
    let addresses: Vec<IpAddr> = stored.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
    let mut faults = Vec::new();
    for range in ranges {
        let used = addresses.iter().filter(|address| range.cidr.contains(*address)).count();
        if u64::try_from(used).ok() != Some(range.used) {
            faults.push(format!("{}: {used} addresses are used, the daemon counts {}", range.cidr, range.used));
        }
    }
    faults
}

/// Each namespace has the devices and addresses of its own pods, and no others.
fn inside(places: &[Place<'_>], pods: &BTreeMap<&str, &Pod>) -> Vec<String> {
    let mut faults = Vec::new();
    for (netns, attachments) in places {
        let Some(netns) = netns else { continue };
        let wanted: BTreeMap<String, BTreeSet<IpAddr>> = attachments
            .iter()
            .filter_map(|(name, ifname)| Some((ifname.clone(), pods.get(name.as_str())?.addresses.clone())))
            .collect();
        let links = json(netns, "ip -json address show");
        let found: BTreeMap<String, BTreeSet<IpAddr>> = links
            .iter()
            .filter(|link| link["ifname"] != "lo")
            .map(|link| (text(&link["ifname"]).to_owned(), global_addresses(link)))
            .collect();
        if found != wanted {
            faults.push(format!("{} has {found:?} and should have {wanted:?}", netns.name()));
        }
    }
    faults
}

fn global_addresses(link: &Value) -> BTreeSet<IpAddr> {
    let infos = link["addr_info"].as_array().into_iter().flatten();
    infos.filter(|info| info["scope"] == "global").filter_map(|info| text(&info["local"]).parse().ok()).collect()
}

fn json(netns: &Netns, line: &str) -> Vec<Value> {
    let printed = netns.run(line);
    if printed.trim().is_empty() { Vec::new() } else { serde_json::from_str(&printed).expect("ip prints JSON") }
}

fn is_host_end(name: &Value) -> bool {
    let id = name.as_str().and_then(|name| name.strip_prefix("pw"));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
