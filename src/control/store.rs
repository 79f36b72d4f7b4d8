//! The pods of this node on disk: what must survive a restart of the daemon.
//!
//! The file carries the kernel's boot id: wiring does not survive a reboot, so entries of another
//! boot are dropped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable;
use super::wiring::Pod;

/// The format of the file.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    boot_id: String,
    pods: Vec<Pod>,
}

/// Why the pods cannot be remembered.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot write {path}: {source}; free space or make it writable, then try again", path = .0.display(), source = .1)]
    Write(PathBuf, #[source] io::Error),
    #[error("cannot read {path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, #[source] io::Error),
    #[error("{path} cannot be understood ({why}); it is kept as {aside}: pods attached before are unknown, attach them again", path = .path.display(), aside = .aside.display())]
    Torn { path: PathBuf, aside: PathBuf, why: String },
}

/// Which pods are attached, in memory as on disk.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    boot_id: String,
    pods: Vec<Pod>,
    is_complete: bool,
}

impl Store {
    /// Opens the store at `path`. A file that cannot be understood is renamed to `….torn` and
    /// reported beside an empty store: losing what is remembered must not stop the daemon.
    pub fn open(path: &Path) -> Result<(Self, Option<StoreError>), StoreError> {
        let unreadable = |error| StoreError::Read(path.to_owned(), error);
        let boot_id = durable::boot_id().map_err(unreadable)?;
        let mut store = Self { path: path.to_owned(), boot_id, pods: Vec::new(), is_complete: false };
        let Some(text) = durable::read(path).map_err(unreadable)? else { return Ok((store, None)) };
        match understand(&text) {
            Ok(contents) => {
                if contents.boot_id == store.boot_id {
                    store.pods = contents.pods;
                    store.is_complete = true;
                }
                Ok((store, None))
            }
            Err(why) => {
                let aside = path.with_extension("json.torn");
                fs::rename(path, &aside).map_err(|error| StoreError::Write(aside.clone(), error))?;
                Ok((store, Some(StoreError::Torn { path: path.to_owned(), aside, why })))
            }
        }
    }

    /// The attached pods, ordered by id.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Whether no pod can be missing: the file was there when the store was opened, whole and of this boot.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// Remembers a pod. When this fails nothing has changed, in memory or on disk.
    pub fn insert(&mut self, pod: Pod) -> Result<(), StoreError> {
        let mut pods = self.pods.clone();
        pods.push(pod);
        pods.sort_by_key(|pod| pod.id);
        self.replace(pods)
    }

    /// Forgets the pod called `name`. When this fails nothing has changed, in memory or on disk.
    pub fn remove(&mut self, name: &str) -> Result<(), StoreError> {
        self.replace(self.pods.iter().filter(|pod| pod.name != name).cloned().collect())
    }

    fn replace(&mut self, pods: Vec<Pod>) -> Result<(), StoreError> {
        let contents = Contents { version: VERSION, boot_id: self.boot_id.clone(), pods };
        durable::write(&self.path, &contents).map_err(|error| StoreError::Write(self.path.clone(), error))?;
        self.pods = contents.pods;
        Ok(())
    }
}

fn understand(text: &str) -> Result<Contents, String> {
    let contents: Contents = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if contents.version != VERSION {
        return Err(format!("format {}, this podwire knows {VERSION}", contents.version));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IfIndex, PodId};
    use crate::wire::Mac;

    fn pod(id: u16, name: &str) -> Pod {
        Pod {
            id: PodId::new(id).unwrap(),
            name: name.into(),
            netns: "/run/netns/web".into(),
            ifname: "eth0".into(),
            host_ifname: format!("pw{id}"),
            host_ifindex: IfIndex(7),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            addresses: vec!["10.244.1.1".parse().unwrap(), "fd00:244:1::1".parse().unwrap()],
            owner: None,
            netns_cookie: None,
        }
    }

    fn open(path: &Path) -> Store {
        let (store, torn) = Store::open(path).unwrap();
        assert!(torn.is_none(), "{torn:?}");
        store
    }

    #[test]
    fn pods_come_back_after_a_restart_ordered_by_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        let mut store = open(&path);
        for (id, name) in [(2, "b"), (1, "a"), (3, "c")] {
            store.insert(pod(id, name)).unwrap();
        }
        store.remove("b").unwrap();
        assert!(!store.is_complete() && open(&path).is_complete());
        assert_eq!(open(&path).pods(), [pod(1, "a"), pod(3, "c")]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the file");
    }

    #[test]
    fn pods_of_another_boot_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        open(&path).insert(pod(1, "a")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(open(&path).boot_id.as_str(), "another boot")).unwrap();
        assert!(open(&path).pods().is_empty() && !open(&path).is_complete());
    }

    #[test]
    fn a_file_torn_at_any_byte_is_kept_aside_and_the_store_goes_on_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        open(&path).insert(pod(1, "a")).unwrap();
        let whole = fs::read(&path).unwrap();
        let json_end = whole.len() - 1;
        for cut in 0..json_end {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut store, torn) = Store::open(&path).unwrap();
            assert!(matches!(torn, Some(StoreError::Torn { .. })), "cut at {cut}");
            assert_eq!(fs::read(dir.path().join("pods.json.torn")).unwrap(), whole[..cut]);
            store.insert(pod(2, "b")).unwrap();
            assert_eq!(open(&path).pods(), [pod(2, "b")]);
        }
    }

    #[test]
    fn a_future_format_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        fs::write(&path, r#"{"version":2,"boot_id":"x","pods":[]}"#).unwrap();
        let (_, torn) = Store::open(&path).unwrap();
        assert!(torn.unwrap().to_string().contains("format 2"));
    }

    #[test]
    fn a_write_that_fails_changes_nothing_and_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone/pods.json");
        let mut store = open(&path);
        let error = store.insert(pod(1, "a")).unwrap_err().to_string();
        assert!(error.contains("gone/pods.json"), "{error}");
        assert!(store.pods().is_empty());
    }
}
