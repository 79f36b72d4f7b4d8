//! Keeps this node's own object as it should be: says it once, sees when somebody changes it, and says it again, more and
//! more patiently.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::core::Request;
use kube::core::params::{Patch, PatchParams};

use super::announce::Announcement;
use super::connect::request;
use super::error::{SourceError, chain};
use super::object::Object;
use crate::wire::TunnelEnd;

/// Whose changes these are, for people (`metadata.managedFields`).
const MANAGER: &str = "podwire";

/// The rest after a patch: somebody who keeps changing the node back, such as a flanneld on it, must not cost the API
/// server a patch per change.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// What was said of the own node, and when something may be said again.
#[derive(Debug)]
pub struct Publisher {
    own_name: String,
    last: Option<Said>,
    /// Why the last patch failed.
    error: Option<String>,
}

#[derive(Debug)]
struct Said {
    announcement: Announcement,
    at: Instant,
    rest: Duration,
    /// The same was said before.
    is_repeated: bool,
}

impl Publisher {
    pub fn new(own_name: String) -> Self {
        Self { own_name, last: None, error: None }
    }

    /// When the own node is to be patched, if it is.
    pub fn due(&self, announcement: Option<&Announcement>, own: Option<&Object>) -> Option<Instant> {
        announcement?.patch(own?, "")?;
        let now = Instant::now();
        Some(self.last.as_ref().map_or(now, |said| said.at + said.rest))
    }

    /// Patches the own node, if anything is to be said; returns it as it is now.
    pub async fn publish(
        &mut self,
        client: &Client,
        announcement: &Announcement,
        own: &Object,
    ) -> Result<Option<Object>, SourceError> {
        let Some(patch) = announcement.patch(own, &now()) else { return Ok(None) };
        self.note(announcement);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let nodes = Request::new("/api/v1/nodes");
        let patch = nodes.patch_subresource("status", &self.own_name, &params, &Patch::Strategic(patch));
        let patch = patch.map_err(|error| SourceError::Client(chain(&error)))?;
        let patched = request(client, "publish this node", patch).await;
        let error = patched.as_ref().err().map(ToString::to_string);
        match &error {
            Some(text) if self.error.as_ref() != Some(text) => tracing::error!("Kubernetes: {text}"),
            None => {
                tracing::info!(node = self.own_name, v4 = %of(announcement.v4), v6 = %of(announcement.v6), "published this node");
            }
            _ => {}
        }
        self.error = error;
        patched.map(Some)
    }

    /// What should be known of it.
    pub fn problem(&self) -> Option<String> {
        let repeated = self.last.as_ref().is_some_and(|said| said.is_repeated && said.at.elapsed() < LONGEST_REST);
        let overwritten = repeated.then(|| {
            format!(
                "the annotations of node {} were changed by somebody else and put back; does a flanneld run on it?",
                self.own_name
            )
        });
        self.error.clone().or(overwritten)
    }

    /// Notes that a patch goes out.
    fn note(&mut self, announcement: &Announcement) {
        let last = self.last.take().filter(|said| said.at.elapsed() < said.rest + LONGEST_REST);
        let is_repeated = last.as_ref().is_some_and(|said| said.announcement == *announcement && self.error.is_none());
        if is_repeated {
            tracing::warn!(
                node = self.own_name,
                "somebody else has changed this node's annotations; they are put back"
            );
        }
        let rest = last.map_or(FIRST_REST, |said| (said.rest * 2).min(LONGEST_REST));
        self.last = Some(Said { announcement: *announcement, at: Instant::now(), rest, is_repeated });
    }
}

/// The end of a tunnel, for people.
fn of(end: Option<TunnelEnd>) -> String {
    end.map_or_else(|| "none".to_owned(), |TunnelEnd { underlay, mac }| format!("{underlay} {mac}"))
}

/// The time as `metav1.Time` has it: RFC 3339 to the second.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
