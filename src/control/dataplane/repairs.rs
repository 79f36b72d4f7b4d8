use std::collections::BTreeMap;

use crate::ids::IfIndex;
use crate::steer::Repair;

/// Tells of repairs, of each once: at once when it is done, and when it cannot be done, in the second round. A device
/// that has just gone is withdrawn by then.
#[derive(Debug, Default)]
pub struct Repairs {
    failed: BTreeMap<(&'static str, IfIndex), u32>,
}

impl Repairs {
    /// Takes in what one round found.
    pub fn tell(&mut self, round: Vec<Repair>) {
        let before = std::mem::take(&mut self.failed);
        for Repair { program, ifindex, outcome } in round {
            let Err(error) = outcome else {
                tracing::warn!(
                    "{program} was not attached to interface {ifindex} any more, or not pinned; it is again"
                );
                continue;
            };
            let rounds = before.get(&(program, ifindex)).map_or(1, |rounds| rounds + 1);
            if rounds == 2 {
                tracing::error!(%error, "{program} is not attached to interface {ifindex} any more");
            }
            self.failed.insert((program, ifindex), rounds);
        }
    }
}
