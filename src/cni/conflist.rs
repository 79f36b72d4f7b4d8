//! The network configuration list by which runtimes find the plugin.

use std::path::Path;

use serde_json::{Map, Value, json};

pub use crate::control::conflist::{PLUGIN, is_read};

use super::version::Version;
use crate::control::conflist::calls;
use crate::control::runtime::DEFAULT_DIR;

/// A list of podwire and the plugins `chain` after it.
pub(super) fn conflist(version: Version, name: &str, runtime_dir: &Path, chain: &[String]) -> Value {
    let mut own = json!({ "type": PLUGIN, "capabilities": { "ips": true, "mac": true } });
    if runtime_dir != Path::new(DEFAULT_DIR) {
        own["runtimeDir"] = json!(runtime_dir);
    }
    let plugins: Vec<_> = std::iter::once(own).chain(chain.iter().map(|kind| chained(kind))).collect();
    json!({ "cniVersion": version.as_str(), "name": name, "plugins": plugins })
}

/// A plugin after ours, with what it wants to hear from the runtime.
fn chained(kind: &str) -> Value {
    let capability = match kind {
        "portmap" => Some("portMappings"),
        "bandwidth" => Some("bandwidth"),
        "tuning" => Some("mac"),
        _ => None,
    };
    let mut plugin = Map::from_iter([("type".to_owned(), json!(kind))]);
    if let Some(capability) = capability {
        plugin.insert("capabilities".to_owned(), json!({ capability: true }));
    }
    plugin.into()
}

/// Whether a configuration, of a list or of a single plugin, calls podwire, be it through a plugin that delegates.
pub fn calls_podwire(text: &[u8]) -> bool {
    calls(text, PLUGIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_podwire_first_and_what_each_plugin_wants_to_hear() {
        let chain = ["portmap", "bandwidth", "sbr"].map(str::to_owned);
        let list = conflist(Version::V1_0_0, "net", Path::new(DEFAULT_DIR), &chain);
        let expected = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [
            { "type": "podwire", "capabilities": { "ips": true, "mac": true } },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "sbr" },
        ] });
        assert_eq!(list, expected);
        let elsewhere = conflist(Version::V1_1_0, "net", Path::new("/run/b"), &[]);
        assert_eq!(elsewhere["plugins"][0]["runtimeDir"], "/run/b");
        assert!(calls_podwire(list.to_string().as_bytes()));
    }

    #[test]
    fn configurations_of_others_are_told_apart() {
        assert!(calls_podwire(br#"{"type":"podwire"}"#));
        assert!(calls_podwire(br#"{"type":"multus","delegates":[{"plugins":[{"type":"podwire"}]}]}"#));
        for other in ["", "podwire", r#"{"type":"bridge","name":"podwire"}"#, r#"{"plugins":[{"type":"flannel"}]}"#] {
            assert!(!calls_podwire(other.as_bytes()), "{other}");
        }
        assert!(is_read(Path::new("10-a.conflist")) && is_read(Path::new("a.conf")) && is_read(Path::new("a.json")));
        assert!(!is_read(Path::new("a.conflist.bak")) && !is_read(Path::new(".conflist")));
    }
}
