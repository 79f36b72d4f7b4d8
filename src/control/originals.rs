//! What the settings of the whole node were before podwire changed them, on disk, so that `uninstall` can put them back.
//!
//! Settings of podwire's own devices go with the devices and are not kept here.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use super::sysctl::{self, Changed, SysctlError};

/// The format of the file.
const VERSION: u32 = 1;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    /// Settings do not survive a reboot: those of another boot are dropped.
    boot_id: String,
    /// In the order in which they were first changed.
    settings: Vec<Original>,
}

/// A setting that podwire has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Original {
    key: String,
    /// The last value that was not podwire's.
    before: String,
    set: String,
}

/// What became of a setting that podwire has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    Changed(Changed),
    /// It stays as podwire set it.
    Left {
        key: String,
        value: String,
    },
}

/// Why an original is not remembered.
#[derive(Debug, thiserror::Error)]
#[error("cannot remember the settings of the node in {path}: {source}; free space or make it writable", path = .path.display())]
pub struct OriginalsError {
    path: PathBuf,
    source: io::Error,
}

/// The settings that podwire has changed, in memory as on disk.
#[derive(Debug)]
pub struct Originals {
    path: PathBuf,
    contents: Contents,
}

impl Originals {
    /// Those remembered at `path`. A file that cannot be understood is said in the log and counts as empty: what the
    /// settings were is lost, and nothing else.
    pub fn open(path: &Path) -> Result<Self, OriginalsError> {
        let error = |source| OriginalsError { path: path.to_owned(), source };
        let boot_id = durable::boot_id().map_err(error)?;
        let mut contents = Contents { version: VERSION, boot_id, settings: Vec::new() };
        match durable::read(path).map_err(error)?.map(|text| serde_json::from_str::<Contents>(&text)) {
            Some(Ok(found)) if found.version == VERSION && found.boot_id == contents.boot_id => contents = found,
            Some(Err(why)) => tracing::warn!(path = %path.display(), %why, "the node's earlier settings are unknown"),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), contents })
    }

    /// Remembers the value of `net/KEY`, which is about to be set, unless it has that value already.
    pub fn note(&mut self, key: &str, set: &str) -> Result<(), OriginalsError> {
        let Ok(Some(before)) = sysctl::read(key) else { return Ok(()) };
        if before == set {
            return Ok(());
        }
        let original = Original { key: key.to_owned(), before, set: set.to_owned() };
        let settings = &mut self.contents.settings;
        match settings.iter_mut().find(|known| known.key == key) {
            Some(known) if *known == original => return Ok(()),
            Some(known) => *known = original,
            None => settings.push(original),
        }
        durable::write(&self.path, &self.contents).map_err(|source| OriginalsError { path: self.path.clone(), source })
    }

    /// Puts back what still is as podwire set it, the last change first; what makes the node a router only if it
    /// `may_stop_routing`.
    pub fn restore(self, may_stop_routing: bool) -> impl Iterator<Item = Result<Restored, SysctlError>> {
        let settings = self.contents.settings.into_iter().rev();
        settings.filter_map(move |Original { key, before, set }| match sysctl::read(&key) {
            Ok(Some(now)) if now != set => None,
            Ok(Some(value)) if !may_stop_routing && is_of_router(&key) => Some(Ok(Restored::Left { key, value })),
            Ok(_) => sysctl::ensure(&key, &before).transpose().map(|changed| changed.map(Restored::Changed)),
            Err(error) => Some(Err(error)),
        })
    }
}

/// Whether a setting makes the node forward, or has it learn routes although it does (see `forwarding`).
fn is_of_router(key: &str) -> bool {
    key == "ipv4/ip_forward" || key.starts_with("ipv6/conf/")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ipv4/ip_forward";

    /// The remembered values before podwire's.
    fn befores(path: &Path) -> Vec<String> {
        Originals::open(path).unwrap().contents.settings.into_iter().map(|original| original.before).collect()
    }

    #[test]
    fn a_setting_is_remembered_once_and_only_when_it_is_to_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sysctls.json");
        let now = sysctl::read(KEY).unwrap().unwrap();
        let mut originals = Originals::open(&path).unwrap();
        originals.note(KEY, &now).unwrap();
        originals.note("ipv4/no_such_setting", "1").unwrap();
        assert!(!path.exists());
        originals.note(KEY, "7").unwrap();
        originals.note(KEY, "7").unwrap();
        assert_eq!(befores(&path), [now.as_str()]);
        Originals::open(&path).unwrap().note(KEY, "8").unwrap();
        assert_eq!(befores(&path), [now.as_str()]);
        assert_eq!(Originals::open(&path).unwrap().restore(true).count(), 0, "it is not as podwire set it");
    }

    #[test]
    fn what_is_torn_of_another_boot_or_of_another_format_counts_as_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sysctls.json");
        let mut originals = Originals::open(&path).unwrap();
        originals.note(KEY, "7").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let boot_id = originals.contents.boot_id.as_str();
        for spoilt in
            [&text[..text.len() / 2], &text.replace(boot_id, "x"), &text.replace("\"version\":1", "\"version\":2")]
        {
            assert_eq!(befores(&path).len(), 1);
            std::fs::write(&path, spoilt).unwrap();
            assert!(befores(&path).is_empty(), "{spoilt}");
            std::fs::write(&path, &text).unwrap();
        }
    }
}
