//! What the plugins of Flannel remember of a pod, so that they can remove it: host-local a file an address, the plugin
//! `flannel` the configuration that it handed on to `bridge` (flannel-io/cni-plugin `flannel.go`, `flannel_linux.go`).

use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::network::Network;
use super::subnet::Subnet;
use crate::control::api::Owner;
use crate::control::durable;
use crate::control::wiring::Pod;

/// Writes both down for a pod that a runtime has attached.
pub fn note(cni_state: &Path, network: &Network, subnet: &Subnet, pod: &Pod, owner: &Owner) -> io::Result<()> {
    let (given, handed_on) = (given(cni_state, network), cni_state.join("flannel"));
    make_dir(&given)?;
    make_dir(&handed_on)?;
    for address in &pod.addresses {
        let text = format!("{}\r\n{}", owner.container, pod.ifname);
        durable::replace(&given.join(address.to_string()), text.as_bytes(), 0o600)?;
    }
    let config = serde_json::to_vec(&handed_on_config(cni_state, network, subnet))?;
    durable::replace(&handed_on.join(&owner.container), &config, 0o600)
}

/// Has host-local go on after the addresses that were given last, of the range with this number in its configuration.
pub fn note_last(cni_state: &Path, network: &Network, range: usize, last: IpAddr) -> io::Result<()> {
    let given = given(cni_state, network);
    make_dir(&given)?;
    durable::replace(&given.join(format!("last_reserved_ip.{range}")), last.to_string().as_bytes(), 0o600)
}

/// Gives an address back to host-local.
pub fn give_back(cni_state: &Path, network: &Network, address: IpAddr) -> io::Result<()> {
    match fs::remove_file(given(cni_state, network).join(address.to_string())) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Where host-local keeps the addresses of the network.
fn given(cni_state: &Path, network: &Network) -> PathBuf {
    cni_state.join("networks").join(&network.name)
}

/// What the plugin `flannel` hands on to `bridge`.
fn handed_on_config(cni_state: &Path, network: &Network, subnet: &Subnet) -> Value {
    let ranges: Vec<_> = subnet.gateways.iter().map(|range| json!([{ "subnet": range.trunc() }])).collect();
    let routes: Vec<_> = subnet.cluster.iter().map(|range| json!({ "dst": range })).collect();
    let mut ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    if cni_state != Path::new("/var/lib/cni") {
        ipam["dataDir"] = json!(cni_state.join("networks"));
    }
    let mut config = network.delegate.clone();
    let own = [
        ("name", json!(network.name)),
        ("cniVersion", json!("0.3.1")),
        ("type", json!("bridge")),
        ("isGateway", json!(true)),
        ("ipMasq", json!(!subnet.masquerade)),
        ("mtu", json!(subnet.mtu)),
        ("ipam", ipam),
    ];
    for (key, value) in own {
        config[key] = value;
    }
    config
}
