//! The nodes as last heard of, in a file: a daemon that starts while the API server is away begins with them. The file is
//! believed no more than the server is, and only by the node and for the server that it was written for.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};

use super::net_conf::NetConf;
use super::object::Object;
use super::roster::Roster;
use crate::control::durable;

/// The layout of the file.
const FORMAT: u32 = 1;

/// Some ten times what 5,000 nodes take.
const LARGEST_BYTES: u64 = 64 << 20;

/// After a change others may follow at once;
const SETTLE: Duration = Duration::from_secs(1);
/// and a disk is not to be worn by a cluster that is never at rest.
const REST: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    format: u32,
    /// Whose view it is.
    node: String,
    /// The server that was followed.
    server: String,
    saved_at: Timestamp,
    /// The text of `net-conf.json`.
    net_conf: String,
    nodes: Vec<Object>,
}

/// What the file of any version begins with.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a file of this user that nobody else can write to")]
    Shared,
    #[error("it has {0} bytes, which no cluster takes")]
    Large(u64),
    #[error("it cannot be read: {0}")]
    Malformed(String),
    #[error("it is of another version of podwire (format {0})")]
    Format(u32),
    #[error("it is of node {node} and server {server}")]
    Foreign { node: String, server: String },
}

/// What was read.
#[derive(Debug)]
pub struct Recalled {
    pub roster: Roster,
    pub net_conf: String,
    pub saved_at: Timestamp,
}

/// Keeps the file as the cluster is, at its leisure.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    own_name: String,
    /// When the file is to be written next, if what it says is old.
    due: Option<Instant>,
    written: Option<Instant>,
    writer: Option<JoinHandle<()>>,
}

impl Cache {
    pub fn new(path: PathBuf, own_name: String) -> Self {
        Self { path, own_name, due: None, written: None, writer: None }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says of the cluster of `server`; `None` where there is none.
    pub fn recall(&self, server: &str) -> Result<Option<Recalled>, CacheError> {
        read(&self.path)?.map(|contents| contents.recall(&self.own_name, server)).transpose()
    }

    /// Notes that the cluster has changed.
    pub fn touch(&mut self) {
        let now = Instant::now();
        let rested = self.written.map_or(now, |written| written + REST);
        self.due.get_or_insert(rested.max(now + SETTLE));
    }

    /// When [`Cache::write`] is to be called.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.writer.as_ref().is_none_or(JoinHandle::is_finished))
    }

    /// Has the file written, by a thread of its own.
    pub fn write(&mut self, server: &str, net_conf: &str, roster: &Roster) {
        (self.due, self.written) = (None, Some(Instant::now()));
        let contents = Contents {
            format: FORMAT,
            node: self.own_name.clone(),
            server: server.to_owned(),
            saved_at: Timestamp::now(),
            net_conf: net_conf.to_owned(),
            nodes: roster.objects().cloned().collect(),
        };
        let path = self.path.clone();
        self.writer = Some(spawn_blocking(move || {
            if let Err(error) = write(&path, &contents) {
                tracing::warn!(%error, "Kubernetes: cannot keep the nodes in {}", path.display());
            }
        }));
    }
}

impl Contents {
    fn recall(self, own_name: &str, server: &str) -> Result<Recalled, CacheError> {
        if self.node != own_name || self.server != server {
            return Err(CacheError::Foreign { node: self.node, server: self.server });
        }
        let net_conf =
            NetConf::parse(&self.net_conf).map_err(|error| CacheError::Malformed(format!("net-conf.json: {error}")))?;
        let mut roster = Roster::new(own_name, net_conf);
        for node in self.nodes {
            roster.apply(node);
        }
        Ok(Recalled { roster, net_conf: self.net_conf, saved_at: self.saved_at })
    }
}

/// What a file says to a node and of a server; fails as [`Cache::recall`] does.
#[cfg(fuzzing)]
pub fn fuzz(text: &[u8], own_name: &str, server: &str) -> Option<Roster> {
    understand(text).and_then(|contents| contents.recall(own_name, server)).ok().map(|recalled| recalled.roster)
}

fn read(path: &Path) -> Result<Option<Contents>, CacheError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err(CacheError::Shared);
    }
    if meta.len() > LARGEST_BYTES {
        return Err(CacheError::Large(meta.len()));
    }
    let mut text = Vec::new();
    file.take(LARGEST_BYTES).read_to_end(&mut text)?;
    understand(&text).map(Some)
}

fn understand(text: &[u8]) -> Result<Contents, CacheError> {
    let malformed = |error: serde_json::Error| CacheError::Malformed(error.to_string());
    let Head { format } = serde_json::from_slice(text).map_err(malformed)?;
    if format != FORMAT {
        return Err(CacheError::Format(format));
    }
    serde_json::from_slice(text).map_err(malformed)
}

fn write(path: &Path, contents: &Contents) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| fs::metadata(parent).is_err()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    durable::write(path, contents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const NET_CONF: &str = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    const SERVER: &str = "https://10.96.0.1/";

    fn contents() -> Contents {
        let node = |name: &str, range: &str| Object {
            name: name.to_owned(),
            created: "2026-01-01T00:00:01Z".to_owned(),
            annotations: [("podwire.io/mode".to_owned(), "busy".to_owned())].into(),
            pod_cidrs: vec![range.to_owned()],
            is_available: true,
            ..Object::default()
        };
        Contents {
            format: FORMAT,
            node: "a".to_owned(),
            server: SERVER.to_owned(),
            saved_at: "2026-01-02T03:04:05Z".parse().unwrap(),
            net_conf: NET_CONF.to_owned(),
            nodes: vec![node("a", "10.244.1.0/24"), node("b", "10.244.2.0/24")],
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("new/nodes.json"), "a".to_owned());
        assert!(cache.recall(SERVER).unwrap().is_none());
        write(cache.path(), &contents()).unwrap();
        let Recalled { roster, net_conf, saved_at } = cache.recall(SERVER).unwrap().unwrap();
        assert!(roster.objects().eq(&contents().nodes));
        assert_eq!((net_conf.as_str(), saved_at.to_string().as_str()), (NET_CONF, "2026-01-02T03:04:05Z"));
    }

    #[test]
    fn the_view_of_another_node_or_server_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let cache = |name: &str| Cache::new(dir.path().join("nodes.json"), name.to_owned());
        write(cache("a").path(), &contents()).unwrap();
        for (name, server) in [("b", SERVER), ("a", "https://10.96.0.2/")] {
            let error = cache(name).recall(server).unwrap_err();
            assert!(matches!(error, CacheError::Foreign { .. }), "{error}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_trusted_or_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes.json");
        let cache = Cache::new(path.clone(), "a".to_owned());
        let whole = serde_json::to_string(&contents()).unwrap();
        let cases = [
            (whole.get(..whole.len() / 2).unwrap().to_owned(), "cannot be read"),
            ("\u{0}".repeat(100), "cannot be read"),
            ("[".repeat(100_000), "cannot be read"),
            (whole.replace(r#""format":1"#, r#""format":2"#), "another version"),
            (whole.replace("vxlan", "udp"), "net-conf.json"),
            (whole.replace(r#""nodes":["#, r#""nodes":[7,"#), "cannot be read"),
        ];
        for (text, reason) in cases {
            durable::replace(&path, text.as_bytes(), 0o600).unwrap();
            let error = cache.recall(SERVER).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        durable::replace(&path, whole.as_bytes(), 0o600).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o622)).unwrap();
        assert!(matches!(cache.recall(SERVER), Err(CacheError::Shared)));
        fs::remove_file(&path).unwrap();
        File::create(&path).unwrap().set_len(LARGEST_BYTES + 1).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(cache.recall(SERVER), Err(CacheError::Large(_))));
    }
}
