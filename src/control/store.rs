//! The pods and the addresses of this node on disk: what must survive a restart of the daemon.
//!
//! Every change replaces the whole file, so that a pod and its addresses are never apart: an address is a pod's, held or
//! in quarantine from one moment to the next. The file carries the kernel's boot id: wiring does not survive a reboot, so
//! what is of another boot is dropped.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::durable;
use super::wiring::Pod;

/// The format of the file.
const VERSION: u32 = 2;
/// The oldest format that is understood: pods only.
const OLDEST: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    boot_id: String,
    /// Whether no pod can be missing.
    #[serde(default = "yes")]
    complete: bool,
    pods: Vec<Pod>,
    #[serde(default)]
    quarantine: Vec<Released>,
    #[serde(default)]
    held: Vec<Held>,
    /// The address of each range that was given out last.
    #[serde(default)]
    last: Vec<IpAddr>,
}

/// What a file without the key means.
fn yes() -> bool {
    true
}

/// An address that was a pod's a short time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Released {
    pub address: IpAddr,
    /// When it was released ([`super::boottime`]).
    pub at_ms: u64,
}

/// An address that a container has from another plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    pub address: IpAddr,
    /// The other plugin's network.
    pub network: String,
    pub container: String,
    /// Old plugins did not note it.
    pub ifname: Option<String>,
    /// Since when it is known here ([`super::boottime`]).
    pub since_ms: u64,
}

/// When it is, and how long an address rests after its release.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// [`super::boottime`].
    pub now_ms: u64,
    pub lasts: Duration,
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

/// Pods and addresses, in memory as on disk.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    contents: Contents,
}

impl Held {
    /// What to call its container: `CONTAINER:IFNAME`, or `CONTAINER` where no more is known.
    pub fn name(&self) -> String {
        self.ifname.as_ref().map_or_else(|| self.container.clone(), |ifname| format!("{}:{ifname}", self.container))
    }

    /// Whether both are the same address of the same container.
    pub fn is_same(&self, other: &Self) -> bool {
        *self == Self { since_ms: self.since_ms, ..other.clone() }
    }

    /// Whether it is of the pod that a CNI plugin calls `name`: `CONTAINER:IFNAME`.
    pub fn is_of(&self, name: &str) -> bool {
        let rest = name.strip_prefix(self.container.as_str()).and_then(|rest| rest.strip_prefix(':'));
        rest.is_some_and(|ifname| self.ifname.as_ref().is_none_or(|own| own == ifname))
    }
}

impl Rest {
    /// How long an address that was released at `at_ms` still rests.
    pub fn left(&self, at_ms: u64) -> Option<Duration> {
        let left = self.lasts.checked_sub(Duration::from_millis(self.now_ms.saturating_sub(at_ms)))?;
        (!left.is_zero()).then_some(left)
    }
}

impl Store {
    /// Opens the store at `path`. A file that cannot be understood is renamed to `….torn` and
    /// reported beside an empty store: losing what is remembered must not stop the daemon.
    pub fn open(path: &Path) -> Result<(Self, Option<StoreError>), StoreError> {
        let unreadable = |error| StoreError::Read(path.to_owned(), error);
        let boot_id = durable::boot_id().map_err(unreadable)?;
        let mut store = Self { path: path.to_owned(), contents: Contents::empty(boot_id) };
        let Some(text) = durable::read(path).map_err(unreadable)? else { return Ok((store, None)) };
        match understand(&text) {
            Ok(found) if found.boot_id == store.contents.boot_id => store.contents = found,
            // Addresses of before the boot may still be in others' caches.
            Ok(found) => store.contents.last = found.last,
            Err(why) => {
                let aside = path.with_extension("json.torn");
                fs::rename(path, &aside).map_err(|error| StoreError::Write(aside.clone(), error))?;
                return Ok((store, Some(StoreError::Torn { path: path.to_owned(), aside, why })));
            }
        }
        Ok((store, None))
    }

    /// The attached pods, ordered by id.
    pub fn pods(&self) -> &[Pod] {
        &self.contents.pods
    }

    /// What was released and not given out since; some may have rested for long enough.
    pub fn released(&self) -> &[Released] {
        &self.contents.quarantine
    }

    /// What containers of another plugin have.
    pub fn held(&self) -> &[Held] {
        &self.contents.held
    }

    /// The address of each range that was given out last.
    pub fn last(&self) -> &[IpAddr] {
        &self.contents.last
    }

    /// Whether no pod can be missing: the file was there when the store was opened, whole and of this boot, or
    /// [`Store::complete`] was called since.
    pub fn is_complete(&self) -> bool {
        self.contents.complete
    }

    /// How the file differs from what is remembered, if it does.
    pub fn difference(&self) -> Option<String> {
        let path = self.path.display();
        let next = "the next change of pods writes it anew";
        match durable::read(&self.path).map(|text| text.map(|text| understand(&text))) {
            Ok(Some(Ok(found))) if found == self.contents => None,
            Ok(Some(Ok(_))) => Some(format!("{path} was changed by another program; {next}")),
            Ok(Some(Err(why))) => Some(format!("{path} cannot be understood ({why}); {next}")),
            // Nothing was written yet.
            Ok(None) if self.contents == Contents::empty(self.contents.boot_id.clone()) => None,
            Ok(None) => Some(format!("{path} is gone; {next}")),
            Err(error) => Some(format!("cannot read {path}: {error}")),
        }
    }

    /// Remembers that no pod is missing.
    pub fn complete(&mut self) -> Result<(), StoreError> {
        self.change(|contents| contents.complete = true)
    }

    /// Remembers a pod, and which of its addresses were the next ones of their ranges. When this fails nothing has
    /// changed, in memory or on disk.
    pub fn insert(&mut self, pod: Pod, given: &[IpAddr], rest: Rest) -> Result<(), StoreError> {
        self.change(|contents| {
            contents.last.retain(|last| !given.iter().any(|given| given.is_ipv4() == last.is_ipv4()));
            contents.last.extend(given);
            contents.forget_rested(rest);
            contents.quarantine.retain(|released| !pod.addresses.contains(&released.address));
            contents.held.retain(|held| !pod.addresses.contains(&held.address));
            contents.pods.push(pod);
            contents.pods.sort_by_key(|pod| pod.id);
        })
    }

    /// Forgets the pod called `name`; its addresses begin to rest. When this fails nothing has changed, in memory or on
    /// disk.
    pub fn remove(&mut self, name: &str, rest: Rest) -> Result<(), StoreError> {
        self.change(|contents| {
            let gone = contents.pods.extract_if(.., |pod| pod.name == name);
            let addresses = gone.flat_map(|pod| pod.addresses).collect();
            contents.put_to_rest(addresses, rest);
        })
    }

    /// Holds addresses for containers of another plugin, whoever held them before.
    pub fn hold(&mut self, held: Vec<Held>) -> Result<(), StoreError> {
        self.change(|contents| {
            let is_new = |address| held.iter().any(|held| held.address == address);
            contents.quarantine.retain(|released| !is_new(released.address));
            contents.held.retain(|held| !is_new(held.address));
            contents.held.extend(held);
        })
    }

    /// Holds no longer what `is_free` says; it begins to rest.
    pub fn let_go(&mut self, is_free: impl Fn(&Held) -> bool, rest: Rest) -> Result<(), StoreError> {
        self.change(|contents| {
            let gone = contents.held.extract_if(.., |held| is_free(held)).map(|held| held.address).collect();
            contents.put_to_rest(gone, rest);
        })
    }

    /// Forgets who holds the address, and that it rests: the next pod may have it.
    pub fn release(&mut self, address: IpAddr) -> Result<(), StoreError> {
        self.change(|contents| {
            contents.held.retain(|held| held.address != address);
            contents.quarantine.retain(|released| released.address != address);
        })
    }

    fn change(&mut self, change: impl FnOnce(&mut Contents)) -> Result<(), StoreError> {
        let mut contents = self.contents.clone();
        change(&mut contents);
        durable::write(&self.path, &contents).map_err(|error| StoreError::Write(self.path.clone(), error))?;
        self.contents = contents;
        Ok(())
    }
}

impl Contents {
    fn empty(boot_id: String) -> Self {
        let (pods, quarantine, held, last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { version: VERSION, boot_id, complete: false, pods, quarantine, held, last }
    }

    fn put_to_rest(&mut self, addresses: BTreeSet<IpAddr>, rest: Rest) {
        self.forget_rested(rest);
        self.quarantine.retain(|released| !addresses.contains(&released.address));
        let released = addresses.into_iter().map(|address| Released { address, at_ms: rest.now_ms });
        self.quarantine.extend(released.filter(|_| !rest.lasts.is_zero()));
    }

    fn forget_rested(&mut self, rest: Rest) {
        self.quarantine.retain(|released| rest.left(released.at_ms).is_some());
    }
}

fn understand(text: &str) -> Result<Contents, String> {
    let contents: Contents = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !(OLDEST..=VERSION).contains(&contents.version) {
        return Err(format!("format {}, this podwire knows up to {VERSION}", contents.version));
    }
    Ok(Contents { version: VERSION, ..contents })
}

/// What holds of any file: it is refused with a reason, or reads back as what was understood of it.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    match understand(&String::from_utf8_lossy(bytes)) {
        Ok(contents) => assert_eq!(understand(&serde_json::to_string(&contents).expect("JSON")), Ok(contents)),
        Err(why) => assert!(!why.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{IfIndex, PodId};
    use crate::wire::Mac;

    const REST: Rest = Rest { now_ms: 5000, lasts: Duration::from_secs(30) };

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
            since_ms: None,
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
            store.insert(pod(id, name), &[], REST).unwrap();
        }
        store.remove("b", REST).unwrap();
        assert!(!open(&path).is_complete(), "there may have been others before");
        store.complete().unwrap();
        assert!(open(&path).is_complete());
        assert_eq!(open(&path).pods(), [pod(1, "a"), pod(3, "c")]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the file");
    }

    #[test]
    fn pods_of_another_boot_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        open(&path).insert(pod(1, "a"), &[], REST).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&durable::boot_id().unwrap(), "another boot")).unwrap();
        assert!(open(&path).pods().is_empty() && !open(&path).is_complete());
    }

    #[test]
    fn a_file_torn_at_any_byte_is_kept_aside_and_the_store_goes_on_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        open(&path).insert(pod(1, "a"), &[], REST).unwrap();
        let whole = fs::read(&path).unwrap();
        let json_end = whole.len() - 1;
        for cut in 0..json_end {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut store, torn) = Store::open(&path).unwrap();
            assert!(matches!(torn, Some(StoreError::Torn { .. })), "cut at {cut}");
            assert_eq!(fs::read(dir.path().join("pods.json.torn")).unwrap(), whole[..cut]);
            store.insert(pod(2, "b"), &[], REST).unwrap();
            assert_eq!(open(&path).pods(), [pod(2, "b")]);
        }
    }

    #[test]
    fn the_first_format_is_still_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        let old = include_str!("../../tests/data/pods-format-1.json");
        fs::write(&path, old.replace("BOOT", &durable::boot_id().unwrap())).unwrap();
        let mut store = open(&path);
        assert_eq!(store.pods(), [pod(1, "a")]);
        assert!(store.is_complete() && store.released().is_empty() && store.held().is_empty());
        store.insert(pod(2, "b"), &[], REST).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("\"version\":2"));
        assert_eq!(open(&path).pods().len(), 2);
    }

    #[test]
    fn a_pods_addresses_rest_from_the_moment_it_is_gone_until_they_have_rested() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        let mut store = open(&path);
        let a = pod(1, "a");
        store.insert(a.clone(), &a.addresses, REST).unwrap();
        store.remove("a", REST).unwrap();
        let resting = |store: &Store| store.released().iter().map(|released| released.address).collect::<Vec<_>>();
        let again = open(&path);
        assert_eq!((again.pods().len(), resting(&again), again.last()), (0, a.addresses.clone(), &a.addresses[..]));
        let later = Rest { now_ms: 34_999, ..REST };
        assert_eq!(later.left(again.released()[0].at_ms), Some(Duration::from_millis(1)));
        let b = Pod { addresses: vec!["10.244.1.2".parse().unwrap()], ..pod(2, "b") };
        store.insert(b, &[], Rest { now_ms: 35_000, ..REST }).unwrap();
        assert!(open(&path).released().is_empty(), "they have rested");
        assert_eq!(open(&path).last(), a.addresses);
        store.remove("b", Rest { lasts: Duration::ZERO, ..REST }).unwrap();
        assert!(store.released().is_empty(), "none rests where none is to");
    }

    #[test]
    fn a_requested_address_leaves_quarantine_with_its_pod() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(&dir.path().join("pods.json"));
        store.insert(pod(1, "a"), &[], REST).unwrap();
        store.remove("a", REST).unwrap();
        store.insert(pod(1, "b"), &[], REST).unwrap();
        assert!(store.released().is_empty());
    }

    #[test]
    fn held_addresses_are_let_go_by_their_container_and_then_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        let mut store = open(&path);
        let held = |address: &str, container: &str, ifname: Option<&str>| Held {
            address: address.parse().unwrap(),
            network: "cbr0".into(),
            container: container.into(),
            ifname: ifname.map(str::to_owned),
            since_ms: 1,
        };
        let all =
            [held("10.0.0.1", "c1", Some("eth0")), held("fd00::1", "c1", Some("eth0")), held("10.0.0.2", "c2", None)];
        store.hold(all.to_vec()).unwrap();
        assert_eq!(open(&path).held(), all);
        for (name, expected) in [("c1", false), ("c1:eth1", false), ("c12:eth0", false), ("c1:eth0", true)] {
            assert_eq!(all[0].is_of(name), expected, "{name}");
        }
        assert!(all[2].is_of("c2:anything"), "the interface is not known");
        store.let_go(|held| held.is_of("c1:eth0"), REST).unwrap();
        assert_eq!((open(&path).held().len(), open(&path).released().len()), (1, 2));
        store.release("10.0.0.2".parse().unwrap()).unwrap();
        store.release("fd00::1".parse().unwrap()).unwrap();
        assert_eq!((open(&path).held().len(), open(&path).released().len()), (0, 1));
    }

    #[test]
    fn a_reboot_leaves_the_last_addresses_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        let mut store = open(&path);
        let a = pod(1, "a");
        store.insert(a.clone(), &a.addresses, REST).unwrap();
        store.insert(Pod { addresses: vec![], ..pod(2, "b") }, &[], REST).unwrap();
        store.remove("a", REST).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&durable::boot_id().unwrap(), "another boot")).unwrap();
        let store = open(&path);
        assert!(store.pods().is_empty() && store.released().is_empty() && !store.is_complete());
        assert_eq!(store.last(), a.addresses);
    }

    #[test]
    fn a_future_format_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        fs::write(&path, r#"{"version":3,"boot_id":"x","pods":[]}"#).unwrap();
        let (_, torn) = Store::open(&path).unwrap();
        assert!(torn.unwrap().to_string().contains("format 3"));
    }

    #[test]
    fn a_write_that_fails_changes_nothing_and_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone/pods.json");
        let mut store = open(&path);
        let error = store.insert(pod(1, "a"), &[], REST).unwrap_err().to_string();
        assert!(error.contains("gone/pods.json"), "{error}");
        assert!(store.pods().is_empty());
    }
}
