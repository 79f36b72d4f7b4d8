//! Network configurations of CNI, as far as it matters who is called by them.

use std::path::Path;

use serde_json::Value;

/// What runtimes call our plugin, and the name of its file.
pub const PLUGIN: &str = "podwire";

/// Files that runtimes read as network configurations (`libcni`, `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Whether runtimes read a file of this name.
pub fn is_read(file: &Path) -> bool {
    file.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known))
}

/// Whether a configuration, of a list or of a single plugin, calls `plugin`, be it through another one that delegates.
pub fn calls(text: &[u8], plugin: &str) -> bool {
    fn is_called(value: &Value, plugin: &str) -> bool {
        match value {
            Value::Object(members) => {
                members.get("type").is_some_and(|kind| kind == plugin)
                    || members.values().any(|member| is_called(member, plugin))
            }
            Value::Array(items) => items.iter().any(|item| is_called(item, plugin)),
            _ => false,
        }
    }
    serde_json::from_slice(text).is_ok_and(|config| is_called(&config, plugin))
}
