//! What `podwire status` says of the Kubernetes API.

use serde::{Deserialize, Serialize};

/// Whether the API is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KubernetesState {
    /// Not reached yet.
    Connecting,
    /// Each change of a node is heard of.
    Following,
    /// The server is away, or refuses; what it said last stays.
    Away,
}

/// The Kubernetes API as the source of ranges and peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub state: KubernetesState,
    /// Why it is not followed.
    pub why: Option<String>,
    /// The server's address.
    pub server: Option<String>,
    /// How long ago the server last showed that it is alive: an answer, an event, a bookmark. None if it never did.
    pub age_ms: Option<u64>,
    /// How many nodes there are, this one among them.
    pub nodes: usize,
    /// Whether the ranges of this node are known.
    pub joined: bool,
    /// When an earlier daemon kept what is known, in RFC 3339; none once this one has listed the nodes.
    pub as_of: Option<String>,
    /// How often the kernel was looked at as a whole since the daemon started.
    pub looks: u64,
    pub changes: ChangeTimes,
}

/// How long changes of the cluster have taken since the daemon started, from a change's arrival at this machine until
/// tables, programs and kernel were as it asks. Changes that come while others are carried out are carried out together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeTimes {
    pub changes: u64,
    pub median_us: u64,
    pub p99_us: u64,
    pub longest_us: u64,
}
