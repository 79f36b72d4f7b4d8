//! The result of ADD: what runtimes and the plugins later in the chain get.
//!
//! In memory it is that of the latest version. Before 1.0.0 each address also tells its family, and before 1.1.0
//! interfaces have no MTU.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::Dns;
use super::version::Version;
use crate::control::api::Pod;
use crate::control::wiring::{GATEWAY_V4, GATEWAY_V6};

/// A result, ours or of plugins earlier in the chain; members that we do not know are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CniResult {
    #[serde(default)]
    pub(super) cni_version: String,
    #[serde(default, deserialize_with = "list")]
    pub(super) interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "list")]
    pub(super) ips: Vec<Ip>,
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub(super) routes: Vec<Route>,
    #[serde(default)]
    pub(super) dns: Option<Dns>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Interface {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The network namespace; none or empty for the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ip {
    /// "4" or "6", before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Which of the interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A list that may be `null`, as Go writes an empty one.
fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl CniResult {
    /// Adds a pod's two ends, its addresses and its default routes. The configuration's `dns` goes before that of
    /// earlier plugins.
    pub(super) fn extended(mut self, pod: &Pod, sandbox: &Path, dns: Option<Dns>) -> Self {
        let interface = |name: &str, mac: &str, sandbox| Interface {
            name: name.to_owned(),
            mac: Some(mac.to_owned()),
            mtu: pod.mtu.map(u32::from),
            sandbox,
            rest: Map::new(),
        };
        self.interfaces.push(interface(&pod.host_ifname, &pod.host_mac, None));
        self.interfaces.push(interface(&pod.ifname, &pod.mac, Some(sandbox.display().to_string())));
        let inside = self.interfaces.len() - 1;
        for &address in &pod.addresses {
            let (gateway, any) = gateway(address);
            let (interface, gateway) = (Some(inside), Some(gateway));
            self.ips.push(Ip { version: None, interface, address: address.into(), gateway, rest: Map::new() });
            self.routes.push(Route { dst: any, gw: gateway, rest: Map::new() });
        }
        self.dns = dns.or(self.dns);
        self
    }

    /// As the runtime reads it, in the version of the call.
    pub(super) fn into_json(mut self, version: Version) -> serde_json::Result<String> {
        version.as_str().clone_into(&mut self.cni_version);
        self.dns.get_or_insert_default();
        for ip in &mut self.ips {
            let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            ip.version = (version < Version::V1_0_0).then(|| family.to_owned());
        }
        if version < Version::V1_1_0 {
            self.interfaces.iter_mut().for_each(|interface| interface.mtu = None);
        }
        serde_json::to_string(&self)
    }
}

/// The pods' gateway of the family of `address`, and the whole family.
fn gateway(address: IpAddr) -> (IpAddr, IpNet) {
    let (gateway, any): (IpAddr, IpAddr) = match address {
        IpAddr::V4(_) => (GATEWAY_V4.into(), Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V6(_) => (GATEWAY_V6.into(), Ipv6Addr::UNSPECIFIED.into()),
    };
    (gateway, IpNet::new_assert(any, 0))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::api;

    pub fn pod() -> Pod {
        Pod {
            id: 7,
            name: "c1:eth0".into(),
            addresses: ["10.244.1.5", "fd00:244:1::5"].map(|ip| ip.parse().unwrap()).into(),
            mac: "0a:58:0a:f4:01:05".into(),
            netns: "/run/netns/c1".into(),
            ifname: "eth0".into(),
            host_ifname: "pw7".into(),
            host_mac: "0a:58:a9:fe:01:01".into(),
            mtu: Some(1450),
            owner: None,
            problem: None,
            path: api::Path::Kernel,
            reason: None,
        }
    }

    fn json(previous: &str, dns: Option<&str>, version: Version) -> String {
        let previous: CniResult = serde_json::from_str(previous).unwrap();
        let dns = dns.map(|dns| serde_json::from_str(dns).unwrap());
        previous.extended(&pod(), Path::new("/run/netns/c1"), dns).into_json(version).unwrap()
    }

    #[test]
    fn a_result_has_the_members_of_its_version() {
        let expected = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"pw7","mac":"0a:58:a9:fe:01:01","mtu":1450},{"name":"eth0","mac":"0a:58:0a:f4:01:05","mtu":1450,"sandbox":"/run/netns/c1"}],"ips":[{"interface":1,"address":"10.244.1.5/32","gateway":"169.254.1.1"},{"interface":1,"address":"fd00:244:1::5/128","gateway":"fe80::1"}],"routes":[{"dst":"0.0.0.0/0","gw":"169.254.1.1"},{"dst":"::/0","gw":"fe80::1"}],"dns":{}}"#;
        assert_eq!(json("{}", None, Version::V1_1_0), expected);
        let without_mtu = expected.replace(r#","mtu":1450"#, "");
        assert_eq!(json("{}", None, Version::V1_0_0), without_mtu.replace("1.1.0", "1.0.0"));
        let with_family = without_mtu
            .replace(r#"{"interface":1,"address":"10."#, r#"{"version":"4","interface":1,"address":"10."#)
            .replace(r#"{"interface":1,"address":"fd"#, r#"{"version":"6","interface":1,"address":"fd"#);
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            assert_eq!(json("{}", None, version), with_family.replace("1.1.0", version.as_str()));
        }
    }

    #[test]
    fn what_earlier_plugins_have_made_is_kept_and_comes_first() {
        let previous = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"net0","sandbox":"/x","pciID":"0000:00:01.0","socketPath":""}],
            "ips":[{"interface":0,"address":"192.0.2.7/24","foo":1},{"address":"192.0.2.8/24"}],
            "routes":[{"dst":"192.0.2.0/24","mtu":1400}],"dns":{"nameservers":["192.0.2.1"],"search":["a.b"]}}"#;
        let result: Value = serde_json::from_str(&json(previous, None, Version::V1_1_0)).unwrap();
        let mut kept: Value = serde_json::from_str(previous).unwrap();
        for list in ["interfaces", "ips", "routes"] {
            let (old, new) = (kept[list].as_array_mut().unwrap(), result[list].as_array().unwrap());
            assert_eq!((&new[..old.len()], new.len()), (&old[..], old.len() + 2), "{list}");
        }
        assert_eq!(result["ips"][2]["interface"], 2);
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(result["dns"], kept["dns"]);
        let result: Value = serde_json::from_str(&json(previous, Some(r#"{"domain":"x"}"#), Version::V0_4_0)).unwrap();
        assert_eq!(result["dns"], serde_json::json!({ "domain": "x" }));
        assert_eq!(result["ips"][1]["version"], "4");
    }

    #[test]
    fn a_result_with_lists_that_are_null_is_empty() {
        let result: CniResult =
            serde_json::from_str(r#"{"interfaces":null,"ips":null,"routes":null,"dns":null}"#).unwrap();
        assert_eq!(result, CniResult::default());
    }
}
