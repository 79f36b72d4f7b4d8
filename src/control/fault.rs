//! Faults that tests provoke.

use std::env;
use std::error::Error;
use std::time::Duration;

use super::api::{FaultKind, Provocation};
use super::node::Node;
use crate::worker::Fault;

/// The environment variable that lets a daemon's workers be given faults: `1` for yes.
const ALLOWED: &str = "PODWIRE_FAULTS";

impl Node {
    /// Has a worker suffer, if the daemon was started to be tested.
    pub fn provoke(&self, Provocation { worker, kind, ms }: Provocation) -> Result<(), Box<dyn Error>> {
        if env::var_os(ALLOWED).is_none_or(|value| value != "1") {
            return Err(format!("faults are for tests: they need a daemon that was started with {ALLOWED}=1").into());
        }
        tracing::warn!(worker, ?kind, ms, "a fault was asked for");
        let time = Duration::from_millis(ms);
        let fault = match kind {
            FaultKind::Hang => Fault::Hang(time),
            FaultKind::Starve => Fault::Starve(time),
            FaultKind::Overstep => Fault::Overstep,
        };
        self.lifecycle.provoke(worker, fault)
    }
}
