//! Tracing: from what a client asks for to what it is told.
//!
//! The control loop makes a [`Plan`] of the request and has the data plane give the [`Sources`]; a [`Session`] then reads
//! them on a thread of its own and writes to the client. The two hold a [`Tie`]: when one lets go, the other stops.
//!
//! ```text
//!   client ──▶ server ──▶ control loop ──▶ data plane ─┬─ taps ──▶ workers ──▶ feeds ─┐
//!     ▲                                                └─ order ─▶ programs ─▶ ring ──┤
//!     │                        ┌─▶ session ◀──────────────────────────────────────────┘
//!     └───────────────────────────────┘
//! ```

mod names;
mod plan;
mod session;
mod telling;

use std::sync::{Arc, OnceLock};

pub use names::Names;
pub use plan::Plan;
pub use session::Session;

use super::api::Refusal;
use super::api::trace::Ask;
use super::node::Node;
use crate::steer::ProgramTap;
use crate::trace::Feed;

/// What a data plane gives to a trace.
#[derive(Debug)]
pub struct Sources {
    /// One of each worker.
    pub feeds: Vec<Arc<Feed>>,
    pub programs: ProgramTap,
    /// Let go last: another trace may begin then.
    pub tie: Tie,
}

/// What holds the two ends of a trace together.
#[derive(Clone, Debug, Default)]
pub struct Tie(Arc<OnceLock<&'static str>>);

impl Tie {
    /// Ends the trace for the other end, for the first reason that is given.
    pub fn cut(&self, reason: &'static str) {
        self.0.get_or_init(|| reason);
    }

    /// Why the trace has ended, if it has.
    pub fn is_cut(&self) -> Option<&'static str> {
        self.0.get().copied()
    }

    /// Whether the other end has let go.
    pub fn is_loose(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Node {
    /// Begins a trace.
    pub fn begin_trace(&mut self, ask: &Ask) -> Result<Session, Refusal> {
        let plan = Plan::new(ask, &self.config, self.store.pods())?;
        let sources = self.lifecycle.trace(&plan).map_err(|error| Refusal::invalid(error.to_string()))?;
        let names = Arc::new(Names::new(self.name_table()));
        self.names = Arc::downgrade(&names);
        Ok(Session::new(ask, plan, sources, names))
    }

    /// Lets a trace know what is called how.
    pub(super) fn tell_names(&self) {
        if let Some(names) = self.names.upgrade() {
            names.replace(self.name_table());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_of_a_trace_notices_when_the_other_stops() {
        let (plane, session) = (Tie::default(), Tie::default());
        assert!(plane.is_loose() && session.is_cut().is_none());
        let other = plane.clone();
        assert!(!plane.is_loose());
        drop(other);
        assert!(plane.is_loose());
        let other = plane.clone();
        plane.cut("first");
        plane.cut("second");
        assert_eq!(other.is_cut(), Some("first"));
    }
}
