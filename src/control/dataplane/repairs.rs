use std::collections::BTreeMap;
use std::time::Instant;

use nix::net::if_::if_indextoname;

use crate::control::journal::Journal;
use crate::ids::IfIndex;
use crate::steer::Repair;

/// Tells of repairs: at once when one is done, and when it cannot be done, in the second round. A device that has just
/// gone is withdrawn by then.
#[derive(Debug, Default)]
pub struct Repairs {
    failed: BTreeMap<(&'static str, IfIndex), u32>,
    journal: Journal,
}

impl Repairs {
    /// Takes in what one round found.
    pub fn tell(&mut self, round: Vec<Repair>, now: Instant) {
        let before = std::mem::take(&mut self.failed);
        for Repair { program, ifindex, outcome } in round {
            let device = device(ifindex);
            let Err(error) = outcome else {
                let repair = format!("{program} was not attached to {device} any more, or not pinned; it is again");
                self.journal.tell_repair(&repair, now);
                continue;
            };
            let rounds = before.get(&(program, ifindex)).map_or(1, |rounds| rounds + 1);
            if rounds == 2 {
                let problem = format!("{program} is not attached to {device} any more: {error}");
                self.journal.tell_problem(&problem, now);
            }
            self.failed.insert((program, ifindex), rounds);
        }
    }
}

/// A device in words: its name, while it has one.
fn device(ifindex: IfIndex) -> String {
    let name = if_indextoname(ifindex.0).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {ifindex}"))
}
