//! Flannel's `net-conf.json` (flannel `pkg/subnet/config.go`, `pkg/backend/vxlan/vxlan.go`).

use ipnet::IpNet;
use serde_json::Value;

use super::go_json::field;
use crate::wire::Vni;

/// The kernel's default, which Flannel leaves in place (`drivers/net/vxlan/vxlan_core.c`).
const DEFAULT_PORT: u16 = 8472;

/// What the file asks of each node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// The range of all IPv4 pods, unless IPv4 is off.
    pub v4: Option<IpNet>,
    /// The range of all IPv6 pods, if IPv6 is on.
    pub v6: Option<IpNet>,
    pub vni: Vni,
    pub port: u16,
    /// The MTU of the underlay, in bytes; the uplink's when `None`.
    pub mtu: Option<u32>,
    /// Whether nodes of one link do without the tunnel.
    pub direct_routing: bool,
    /// Whether VXLAN devices take group policies.
    pub gbp: bool,
}

/// Why the file cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetConfError {
    #[error("it is not JSON: {0}")]
    Syntax(String),
    #[error("{key} is {value}, which is not {wanted}")]
    Value { key: &'static str, value: String, wanted: &'static str },
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("the backend is {0}; podwire speaks vxlan only: set Backend.Type to \"vxlan\" on all nodes")]
    Backend(String),
    #[error("neither EnableIPv4 nor EnableIPv6 is on")]
    NoFamily,
}

impl NetConf {
    pub fn parse(text: &str) -> Result<Self, NetConfError> {
        let conf: Value = serde_json::from_str(text).map_err(|error| NetConfError::Syntax(error.to_string()))?;
        let [is_v4, is_v6] =
            [("EnableIPv4", true), ("EnableIPv6", false)].map(|(key, default)| flag(&conf, key, default));
        let v4 = is_v4?.then(|| network(&conf, "Network", false)).transpose()?;
        let v6 = is_v6?.then(|| network(&conf, "IPv6Network", true)).transpose()?;
        if v4.is_none() && v6.is_none() {
            return Err(NetConfError::NoFamily);
        }
        let nothing = Value::Null;
        let backend = field(&conf, "Backend").unwrap_or(&nothing);
        // Without one Flannel takes udp.
        match field(backend, "Type").map_or(Some("udp"), Value::as_str) {
            Some("vxlan") => {}
            other => return Err(NetConfError::Backend(other.unwrap_or("not a string").to_owned())),
        }
        let vni = number(backend, "VNI", u64::from(Vni::MAX))?.unwrap_or(1);
        let vni = Vni::new(vni).filter(|vni| vni.get() != 0).ok_or(NetConfError::Value {
            key: "Backend.VNI",
            value: vni.to_string(),
            wanted: "between 1 and 16777215",
        })?;
        let port = number(backend, "Port", u64::from(u16::MAX))?.and_then(|port| u16::try_from(port).ok());
        Ok(Self {
            v4,
            v6,
            vni,
            port: port.filter(|port| *port != 0).unwrap_or(DEFAULT_PORT),
            mtu: number(backend, "MTU", u64::from(u16::MAX))?.filter(|mtu| *mtu != 0),
            direct_routing: flag(backend, "DirectRouting", false)?,
            gbp: flag(backend, "GBP", false)?,
        })
    }

    /// The ranges of all pods.
    pub fn pod_cidrs(&self) -> Vec<IpNet> {
        self.v4.into_iter().chain(self.v6).collect()
    }

    /// Whether nodes reach each other by IPv6: where there is IPv4, it is that.
    pub fn underlay_is_ipv6(&self) -> bool {
        self.v4.is_none()
    }
}

fn flag(object: &Value, key: &'static str, default: bool) -> Result<bool, NetConfError> {
    let Some(value) = field(object, key) else { return Ok(default) };
    value.as_bool().ok_or_else(|| NetConfError::Value { key, value: value.to_string(), wanted: "true or false" })
}

fn number(object: &Value, key: &'static str, most: u64) -> Result<Option<u32>, NetConfError> {
    let Some(value) = field(object, key) else { return Ok(None) };
    let number = value.as_u64().filter(|number| *number <= most).and_then(|number| u32::try_from(number).ok());
    let wanted = "a whole number of that key's range";
    number.map(Some).ok_or_else(|| NetConfError::Value { key, value: value.to_string(), wanted })
}

fn network(object: &Value, key: &'static str, is_ipv6: bool) -> Result<IpNet, NetConfError> {
    let value = field(object, key).ok_or(NetConfError::Missing(key))?;
    let range = value.as_str().and_then(|text| text.parse::<IpNet>().ok());
    let wanted = if is_ipv6 { "an IPv6 range" } else { "an IPv4 range" };
    let range = range.filter(|range| range.addr().is_ipv6() == is_ipv6);
    range.map(|range| range.trunc()).ok_or_else(|| NetConfError::Value { key, value: value.to_string(), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_flannel_reads() {
        let plain = NetConf::parse(r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
        assert_eq!(plain.pod_cidrs(), ["10.244.0.0/16".parse().unwrap()]);
        assert!(!plain.direct_routing && !plain.gbp);
        assert_eq!((plain.vni.get(), plain.port, plain.mtu, plain.underlay_is_ipv6()), (1, 8472, None, false));
        let full = NetConf::parse(
            r#"{"network": "10.1.2.3/16", "enableIPv6": true, "IPv6Network": "fd00::/48", "SubnetLen": 24,
                "backend": {"type": "vxlan", "vni": 4096, "PORT": 4789, "MTU": 1400, "DirectRouting": true, "GBP": true}}"#,
        )
        .unwrap();
        assert_eq!(full.pod_cidrs(), ["10.1.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()]);
        assert_eq!((full.vni.get(), full.port, full.mtu), (4096, 4789, Some(1400)));
        assert!(full.direct_routing && full.gbp);
        let v6 =
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "vxlan"}}"#;
        let v6 = NetConf::parse(v6).unwrap();
        assert!(v6.underlay_is_ipv6() && v6.v4.is_none());
    }

    #[test]
    fn says_what_it_cannot_follow() {
        for (text, said) in [
            ("{", "not JSON"),
            ("[]", "Network is missing"),
            (r#"{"Network": "10.244.0.0/16"}"#, "the backend is udp"),
            (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#, "the backend is host-gw"),
            (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": 7}}"#, "the backend is not a string"),
            (r#"{"Network": "10.244.0.0", "Backend": {"Type": "vxlan"}}"#, "an IPv4 range"),
            (r#"{"Network": "fd00::/48", "Backend": {"Type": "vxlan"}}"#, "an IPv4 range"),
            (
                r#"{"Network": "10.244.0.0/16", "EnableIPv6": true, "Backend": {"Type": "vxlan"}}"#,
                "IPv6Network is missing",
            ),
            (r#"{"EnableIPv4": false, "Backend": {"Type": "vxlan"}}"#, "neither"),
            (r#"{"EnableIPv4": "no", "Backend": {"Type": "vxlan"}}"#, "true or false"),
            (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 0}}"#, "between 1 and"),
            (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "VNI": 16777216}}"#, "VNI is 16777216"),
            (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": -1}}"#, "Port is -1"),
            (r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1.5}}"#, "MTU is 1.5"),
        ] {
            let error = NetConf::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
