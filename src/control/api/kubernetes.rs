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
}
