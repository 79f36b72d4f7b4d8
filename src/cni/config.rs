//! The network configuration, each call taking of it only what it needs: a DEL must not fail because of what only an ADD
//! uses. Unknown keys are allowed; nesting is bounded by the parser.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::environment::{Arguments, Attachment};
use super::failure::{Code, Failure};
use super::result::CniResult;
use super::values::{is_identifier, parse_address};
use super::version::{self, Version};
use crate::control::runtime::DEFAULT_DIR;
use crate::wire::Mac;

/// The longest configuration, in bytes.
pub(super) const MAX_CONFIG: usize = 1 << 20;

const MAX_NAME: usize = 200;

/// What every call needs: which network it is about, and whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub(super) version: Version,
    pub(super) name: String,
    /// Of the daemon.
    pub(super) runtime_dir: PathBuf,
}

impl Network {
    pub(super) fn parse(config: &[u8]) -> Result<Self, Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Base {
            name: String,
            #[serde(rename = "type")]
            _kind: String,
            runtime_dir: Option<PathBuf>,
        }
        let version = version(config)?;
        let Base { name, runtime_dir, .. } = read(config)?;
        if name.len() > MAX_NAME || !is_identifier(&name) {
            return Err(Failure::config(format!(
                "`name` is not 1 to {MAX_NAME} letters, digits, or any of `_.-`, the first a letter or a digit"
            )));
        }
        let runtime_dir = runtime_dir.unwrap_or_else(|| DEFAULT_DIR.into());
        if !runtime_dir.is_absolute() || runtime_dir.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(Failure::config("`runtimeDir` is not an absolute path"));
        }
        Ok(Self { version, name, runtime_dir })
    }

    /// The same for a command that came with version `first`.
    pub(super) fn since(config: &[u8], first: Version, command: &str) -> Result<Self, Failure> {
        let network = Self::parse(config)?;
        if network.version >= first {
            return Ok(network);
        }
        let message = format!("{command} needs cniVersion {first} or later, this is {}", network.version);
        Err(Failure::new(Code::IncompatibleVersion, message))
    }
}

fn version(config: &[u8]) -> Result<Version, Failure> {
    if config.len() > MAX_CONFIG {
        return Err(Failure::config(format!("the network configuration is longer than {MAX_CONFIG} bytes")));
    }
    // Which would be read as the members of an object without their names.
    if config.trim_ascii_start().starts_with(b"[") {
        return Err(Failure::config("the network configuration is a list, not an object"));
    }
    let name = version::announced(config).map_err(|error| unreadable(&error))?;
    Version::named(&name).ok_or_else(|| {
        let spoken: Vec<_> = Version::ALL.iter().map(|version| version.as_str()).collect();
        let message = format!("cniVersion {name:?} is not spoken, only {}", spoken.join(", "));
        Failure::new(Code::IncompatibleVersion, message)
    })
}

/// Takes what `T` wants of the configuration.
fn read<T: DeserializeOwned>(config: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(config).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> Failure {
    if error.is_data() {
        Failure::config("the network configuration is not valid").with_details(error)
    } else {
        Failure::new(Code::Undecodable, "the network configuration is not JSON").with_details(error)
    }
}

/// For the pod's resolver; handed through to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

/// What an ADD asks for beyond an attachment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    /// At most once each; empty when the daemon may choose.
    pub addresses: Vec<IpAddr>,
    pub mac: Option<Mac>,
    /// Whether the configuration has a part in them, or only the environment.
    pub by_config: bool,
    pub dns: Option<Dns>,
    pub previous: Option<CniResult>,
}

/// Asked for by name: in `runtimeConfig` and in `args.cni`, the specification's two ways.
#[derive(Default, Deserialize)]
struct Asked {
    #[serde(default)]
    ips: Option<Vec<String>>,
    mac: Option<String>,
}

#[derive(Default, Deserialize)]
struct Args {
    cni: Option<Asked>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddConfig {
    dns: Option<Dns>,
    ipam: Option<Value>,
    ip_masq: Option<bool>,
    runtime_config: Option<Asked>,
    args: Option<Args>,
    prev_result: Option<CniResult>,
}

impl Wishes {
    /// The addresses are those of all ways to ask, as `host-local` has it; the MAC is of the first of `runtimeConfig`,
    /// `args.cni` and `CNI_ARGS`, as `bridge` has it.
    pub(super) fn parse(config: &[u8], arguments: &Arguments) -> Result<Self, Failure> {
        let AddConfig { dns, ipam, ip_masq, runtime_config, args, prev_result } = read(config)?;
        if let Some(ipam) = ipam.filter(|ipam| ipam.as_object().is_none_or(|ipam| !ipam.is_empty())) {
            let message = format!("`ipam` is not supported, the daemon has the addresses: {}", excerpt(&ipam));
            return Err(Failure::new(Code::UnsupportedField, message));
        }
        if ip_masq == Some(true) {
            let message = "`ipMasq`: true is not supported here; see `masquerade` in the daemon's configuration";
            return Err(Failure::new(Code::UnsupportedField, message));
        }
        let in_args = args.unwrap_or_default().cni.unwrap_or_default();
        let mut wishes = Self { dns, previous: prev_result, ..Self::default() };
        for (place, asked) in [("runtimeConfig", runtime_config.unwrap_or_default()), ("args.cni", in_args)] {
            wishes.take(place, &asked)?;
        }
        wishes.by_config = wishes.mac.is_some() || !wishes.addresses.is_empty();
        wishes.mac = wishes.mac.or(arguments.mac);
        wishes.addresses.extend(arguments.address.filter(|address| !wishes.addresses.contains(address)));
        Ok(wishes)
    }

    fn take(&mut self, place: &str, asked: &Asked) -> Result<(), Failure> {
        for text in asked.ips.iter().flatten() {
            let address = parse_address(text)
                .ok_or_else(|| Failure::config(format!("`{place}.ips` has {text:?}, which is not an address")))?;
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
        if let Some(text) = &asked.mac {
            let mac = text.parse().map_err(|error| Failure::config(format!("`{place}.mac`: {error}")))?;
            self.mac.get_or_insert(mac);
        }
        Ok(())
    }
}

/// The beginning of a value, enough to recognise it.
fn excerpt(value: &Value) -> String {
    value.to_string().chars().take(200).collect()
}

/// The result of the ADD that a CHECK is about.
pub(super) fn previous_result(config: &[u8]) -> Result<CniResult, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct CheckConfig {
        prev_result: Option<CniResult>,
    }
    let CheckConfig { prev_result } = read(config)?;
    prev_result.ok_or_else(|| Failure::config("`prevResult` is missing"))
}

/// The attachments that a GC is to keep. A list that is not there is no list of none; `null` is, as Go writes one.
pub(super) fn valid_attachments(config: &[u8]) -> Result<Vec<Attachment>, Failure> {
    #[derive(Deserialize)]
    struct GcConfig {
        #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "present")]
        valid: Option<Vec<Valid>>,
    }
    #[derive(Deserialize)]
    struct Valid {
        #[serde(rename = "containerID")]
        container: String,
        ifname: String,
    }
    /// A member that is there, be it `null`.
    fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Valid>>, D::Error> {
        Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
    }
    let GcConfig { valid } = read(config)?;
    let valid = valid.ok_or_else(|| Failure::config("`cni.dev/valid-attachments` is missing"))?;
    let checked = |Valid { container, ifname }| {
        let attachment = Attachment { container, ifname };
        match attachment.fault() {
            Some((_, fault)) => {
                Err(Failure::config(format!("`cni.dev/valid-attachments` has {attachment}, which {fault}")))
            }
            None => Ok(attachment),
        }
    };
    valid.into_iter().map(checked).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(config: &str) -> Result<Wishes, Failure> {
        Wishes::parse(config.as_bytes(), &Arguments::default())
    }

    #[test]
    fn a_network_is_known_by_name_and_has_a_daemon() {
        let network = Network::parse(br#"{"cniVersion":"0.4.0","name":"a.b_c-1","type":"podwire","foo":[1]}"#).unwrap();
        let expected = Network { version: Version::V0_4_0, name: "a.b_c-1".into(), runtime_dir: "/run/podwire".into() };
        assert_eq!(network, expected);
        let network = Network::parse(br#"{"cniVersion":"1.1.0","name":"a","type":"x","runtimeDir":"/run/b"}"#).unwrap();
        assert_eq!((network.version, network.runtime_dir), (Version::V1_1_0, "/run/b".into()));
    }

    #[test]
    fn configurations_are_refused_with_the_code_of_the_specification() {
        let cases: [(&str, Code, &str); 18] = [
            ("", Code::Undecodable, "EOF"),
            ("{", Code::Undecodable, "EOF"),
            ("\u{0}", Code::Undecodable, "not JSON"),
            (r#"{"cniVersion":"1.0.0"} x"#, Code::Undecodable, "trailing"),
            ("7", Code::InvalidConfig, "not valid"),
            (r#"["1.0.0","name","type",null]"#, Code::InvalidConfig, "a list"),
            (r#"{"cniVersion":1}"#, Code::InvalidConfig, "integer"),
            (r#"{"name":"a","type":"podwire"}"#, Code::IncompatibleVersion, "0.1.0"),
            (r#"{"cniVersion":"0.2.0"}"#, Code::IncompatibleVersion, "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            (r#"{"cniVersion":"1.2.0"}"#, Code::IncompatibleVersion, "1.2.0"),
            (r#"{"cniVersion":"1.0.0","cniVersion":"1.0.0"}"#, Code::InvalidConfig, "duplicate"),
            (r#"{"cniVersion":"1.0.0","type":"podwire"}"#, Code::InvalidConfig, "`name`"),
            (r#"{"cniVersion":"1.0.0","name":"a"}"#, Code::InvalidConfig, "`type`"),
            (r#"{"cniVersion":"1.0.0","name":"","type":"x"}"#, Code::InvalidConfig, "`name`"),
            (r#"{"cniVersion":"1.0.0","name":"../x","type":"x"}"#, Code::InvalidConfig, "`name`"),
            (r#"{"cniVersion":"1.0.0","name":7,"type":"x"}"#, Code::InvalidConfig, "integer"),
            (r#"{"cniVersion":"1.0.0","name":"a","type":"x","runtimeDir":"x"}"#, Code::InvalidConfig, "`runtimeDir`"),
            (r#"{"cniVersion":"1.0.0","name":"a","type":"x","runtimeDir":"/\u0000"}"#, Code::InvalidConfig, "absolute"),
        ];
        for (config, code, reason) in cases {
            let failure = Network::parse(config.as_bytes()).unwrap_err();
            assert_eq!(failure.code, code, "{config}");
            assert!(failure.to_string().contains(reason), "{config}: {failure}");
        }
    }

    #[test]
    fn size_and_nesting_are_bounded() {
        let nested = |depth: usize| format!(r#"{{"ipam":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(wishes(&nested(100)).unwrap_err().code, Code::UnsupportedField);
        assert_eq!(wishes(&nested(10_000)).unwrap_err().code, Code::Undecodable);
        let long = format!(r#"{{"cniVersion":"1.0.0","name":"a","type":"x","any":"{}"}}"#, "x".repeat(MAX_CONFIG));
        assert_eq!(Network::parse(long.as_bytes()).unwrap_err().code, Code::InvalidConfig);
    }

    #[test]
    fn each_way_to_ask_for_addresses_and_a_mac_is_heard() {
        let arguments = Arguments { address: "fd00::9".parse().ok(), mac: Some(Mac([2; 6])), ..Arguments::default() };
        let config = r#"{"runtimeConfig":{"ips":["10.244.1.7/24"],"mac":"02:00:00:00:00:01","portMappings":[{}],"bandwidth":{}},
            "args":{"cni":{"ips":["10.244.1.7","10.244.1.8"],"mac":"02:00:00:00:00:02"},"labels":{}},"ipam":{},"dns":{}}"#;
        let wishes = Wishes::parse(config.as_bytes(), &arguments).unwrap();
        let expected: Vec<IpAddr> = ["10.244.1.7", "10.244.1.8", "fd00::9"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(wishes.addresses, expected);
        assert_eq!(wishes.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert!(wishes.by_config);
        let wishes = Wishes::parse(br#"{"ipam":null}"#, &arguments).unwrap();
        assert_eq!((wishes.mac, wishes.addresses.len(), wishes.by_config), (Some(Mac([2; 6])), 1, false));
    }

    #[test]
    fn what_cannot_be_granted_is_refused_by_name() {
        let cases: [(&str, Code, &str); 7] = [
            (
                r#"{"ipam":{"type":"host-local"}}"#,
                Code::UnsupportedField,
                r#"`ipam` is not supported, the daemon has the addresses: {"type":"host-local"}"#,
            ),
            (r#"{"ipam":[]}"#, Code::UnsupportedField, "`ipam`"),
            (r#"{"ipMasq":true}"#, Code::UnsupportedField, "`ipMasq`: true"),
            (r#"{"runtimeConfig":{"ips":["x"]}}"#, Code::InvalidConfig, r#"`runtimeConfig.ips` has "x""#),
            (r#"{"args":{"cni":{"mac":"x"}}}"#, Code::InvalidConfig, "`args.cni.mac`"),
            (r#"{"dns":{"nameservers":"10.0.0.1"}}"#, Code::InvalidConfig, "not valid"),
            (r#"{"prevResult":{"ips":[{"address":"x"}]}}"#, Code::InvalidConfig, "not valid"),
        ];
        for (config, code, reason) in cases {
            let failure = wishes(config).unwrap_err();
            assert_eq!(failure.code, code, "{config}: {failure}");
            assert!(failure.to_string().contains(reason), "{failure}");
        }
    }

    #[test]
    fn a_list_to_keep_that_is_missing_is_no_empty_list() {
        let valid = |config: &str| valid_attachments(config.as_bytes());
        for none in ["[]", "null"] {
            assert_eq!(valid(&format!(r#"{{"cni.dev/valid-attachments":{none}}}"#)).unwrap(), []);
        }
        let listed = valid(r#"{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0","x":1}]}"#).unwrap();
        assert_eq!(listed[0].name(), "a:eth0");
        for config in [
            "{}",
            r#"{"cni.dev/attachments":[]}"#,
            r#"{"cni.dev/valid-attachments":{}}"#,
            r#"{"cni.dev/valid-attachments":[{"containerID":"a"}]}"#,
            r#"{"cni.dev/valid-attachments":[{"containerID":"../a","ifname":"eth0"}]}"#,
        ] {
            assert_eq!(valid(config).unwrap_err().code, Code::InvalidConfig, "{config}");
        }
    }
}
