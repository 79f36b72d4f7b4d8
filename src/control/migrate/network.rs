//! Flannel's network configuration, in place or put aside.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::control::conflist::{calls, is_read};
use crate::control::foreign_file;

/// The longest configuration that is read, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// What a configuration's name ends with while podwire has the node: no runtime reads it.
const ASIDE: &str = ".before-podwire";

/// As Flannel's manifest has it.
const FILE: &str = "10-flannel.conflist";
const NAME: &str = "cbr0";
const BRIDGE: &str = "cni0";

/// What runtimes call Flannel's plugin.
const FLANNEL: &str = "flannel";

/// A network that Flannel's plugin makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub name: String,
    pub bridge: String,
    /// What the plugin hands on to the bridge plugin.
    pub delegate: Value,
    pub file: File,
}

/// Where its configuration is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum File {
    InPlace(PathBuf),
    Aside(PathBuf),
    Missing,
}

impl Network {
    /// That of the directory of configurations; Flannel's own where there is none.
    pub fn find(conf_dir: &Path) -> Self {
        let in_place = callers(conf_dir, FLANNEL).into_iter().next().map(|(path, text)| (File::InPlace(path), text));
        let aside = || {
            let is_aside = |path: &Path| path.to_string_lossy().ends_with(ASIDE);
            let found = texts(conf_dir, is_aside).into_iter().find(|(_, text)| calls(text.as_bytes(), FLANNEL));
            found.map(|(path, text)| (File::Aside(path), text))
        };
        let (file, text) = in_place.or_else(aside).unwrap_or((File::Missing, String::new()));
        Self::parse(file, &text)
    }

    fn parse(file: File, text: &str) -> Self {
        let list: Value = serde_json::from_str(text).unwrap_or_default();
        let plugins = list["plugins"].as_array().cloned().unwrap_or_else(|| vec![list.clone()]);
        let delegate = plugins.iter().find(|plugin| plugin["type"] == FLANNEL).map(|plugin| plugin["delegate"].clone());
        let delegate = delegate.filter(Value::is_object).unwrap_or_else(own_delegate);
        let word = |value: &Value, default: &str| {
            let text = value.as_str().filter(|text| !["", ".", ".."].contains(text) && !text.contains('/'));
            text.unwrap_or(default).to_owned()
        };
        Self { name: word(&list["name"], NAME), bridge: word(&delegate["bridge"], BRIDGE), delegate, file }
    }
}

impl File {
    /// Where it goes so that no runtime finds it.
    pub fn aside(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(ASIDE);
        name.into()
    }

    /// Where it was before it was put aside.
    pub fn in_place(aside: &Path) -> PathBuf {
        let name = aside.to_string_lossy();
        name.strip_suffix(ASIDE).unwrap_or(&name).into()
    }
}

/// The configurations in the directory that call `plugin`, by name, with their texts.
pub fn callers(conf_dir: &Path, plugin: &str) -> Vec<(PathBuf, String)> {
    let mut found = texts(conf_dir, is_read);
    found.retain(|(_, text)| calls(text.as_bytes(), plugin));
    found
}

fn texts(conf_dir: &Path, is_wanted: impl Fn(&Path) -> bool) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(conf_dir).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_wanted(path)).collect();
    paths.sort();
    let text = |path: PathBuf| foreign_file::read(&path, MOST_BYTES).ok().map(|text| (path, text));
    paths.into_iter().filter_map(text).collect()
}

fn own_delegate() -> Value {
    json!({ "hairpinMode": true, "isDefaultGateway": true })
}

/// The configuration of Flannel's manifest, and where it belongs.
pub fn own_conflist(conf_dir: &Path) -> (PathBuf, String) {
    let plugins = json!([
        { "type": FLANNEL, "delegate": own_delegate() },
        { "type": "portmap", "capabilities": { "portMappings": true } },
    ]);
    let list = json!({ "name": NAME, "cniVersion": "0.3.1", "plugins": plugins });
    (conf_dir.join(FILE), format!("{list:#}\n"))
}

/// What holds of any file: the network that it names has names that can be those of a directory and a device.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    let Network { name, bridge, delegate, .. } = Network::parse(File::Missing, text);
    assert!([name, bridge].iter().all(|word| !word.contains('/') && !["", ".", ".."].contains(&word.as_str())));
    assert!(delegate.is_object());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_network_is_found_in_place_and_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (path, text) = own_conflist(dir.path());
        let file = || Network::find(dir.path()).file;
        assert_eq!(file(), File::Missing);
        fs::write(dir.path().join("05-other.conf"), r#"{"type":"bridge"}"#).unwrap();
        fs::write(dir.path().join("06-torn.conflist"), "{").unwrap();
        fs::write(
            &path,
            text.replace("cbr0", "net0").replace("\"hairpinMode\"", "\"bridge\": \"br7\", \"hairpinMode\""),
        )
        .unwrap();
        let found = Network::find(dir.path());
        assert_eq!((found.name.as_str(), found.bridge.as_str()), ("net0", "br7"));
        assert_eq!(found.file, File::InPlace(path.clone()));
        let aside = File::aside(&path);
        fs::rename(&path, &aside).unwrap();
        assert_eq!(file(), File::Aside(aside.clone()));
        assert_eq!(File::in_place(&aside), path);
    }

    #[test]
    fn names_that_lead_out_of_a_directory_are_not_taken() {
        for name in ["", ".", "..", "a/b", "/a"] {
            let list = json!({ "name": name, "type": FLANNEL, "delegate": { "bridge": name } });
            let Network { name, bridge, .. } = Network::parse(File::Missing, &list.to_string());
            assert_eq!((name.as_str(), bridge.as_str()), (NAME, BRIDGE));
        }
    }
}
