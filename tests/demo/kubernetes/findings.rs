//! What the demonstration finds, as data: `--json` writes exactly this.

use std::net::IpAddr;

use serde::Serialize;

use super::harness::Deliveries;

/// How long nodes may take to follow a change, in milliseconds: on a small machine all of the cluster shares its cores.
const SOON_MS: u64 = 2_000;

/// The same for a daemon that has to start and to publish its node first.
const START_MS: u64 = 10_000;

/// The same after the server was away: clients come back after a rest.
const BACK_MS: u64 = 35_000;

/// The longest that the network may keep pods from each other, in milliseconds. What is lost is printed, and is no
/// criterion: the receivers may have had no core.
const GAP_MS: f64 = 500.0;

#[derive(Serialize)]
pub struct Findings {
    pub podwire: String,
    pub kernel: String,
    pub kubernetes: String,
    pub events: Vec<Event>,
    pub reachability: Vec<Reach>,
    /// Of the pods of nodes a and b, both ways, while all of it happened.
    pub streams: Deliveries,
    pub criteria: Vec<Criterion>,
}

/// A change of the cluster and how soon the nodes had followed.
#[derive(Serialize)]
pub struct Event {
    pub what: String,
    pub kind: Kind,
    pub followed: Vec<Followed>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Comes,
    /// It comes as soon as its daemon has started.
    Starts,
    Goes,
    /// It came while nodes had lost the server.
    AfterOutage,
}

/// When one node had done what a change asks for; `None` if it had not in time.
#[derive(Serialize)]
pub struct Followed {
    pub node: String,
    pub after_ms: Option<u64>,
}

/// Whether one pod's echo request was answered by another.
#[derive(Serialize)]
pub struct Reach {
    pub when: &'static str,
    pub from: String,
    pub to: String,
    pub address: IpAddr,
    pub answered: bool,
}

#[derive(Serialize)]
pub struct Criterion {
    pub name: &'static str,
    pub met: bool,
}

impl Event {
    /// When the last node had followed.
    pub fn after_ms(&self) -> Option<u64> {
        self.followed.iter().map(|followed| followed.after_ms).try_fold(0, |last, after| Some(last.max(after?)))
    }
}

impl Findings {
    /// What must hold for the demonstration to succeed.
    pub fn judge(&self) -> Vec<Criterion> {
        let within = |kinds: &[Kind], limit_ms| {
            let mut events = self.events.iter().filter(|event| kinds.contains(&event.kind)).peekable();
            events.peek().is_some() && events.all(|event| event.after_ms().is_some_and(|after| after <= limit_ms))
        };
        let criterion = |name, met| Criterion { name, met };
        vec![
            criterion(
                "every pod reached every pod, also while the server was away",
                !self.reachability.is_empty() && self.reachability.iter().all(|row| row.answered),
            ),
            criterion("nodes followed each change within 2 s", within(&[Kind::Comes, Kind::Goes], SOON_MS)),
            criterion("within 10 s, a daemon that starts", within(&[Kind::Starts], START_MS)),
            criterion("within 35 s after the server was away", within(&[Kind::AfterOutage], BACK_MS)),
            criterion(
                "pods of nodes a and b were never apart for more than 0.5 s",
                self.streams.streams.iter().all(|stream| stream.sent > 0 && stream.network_gap_ms <= GAP_MS),
            ),
            criterion("no packet came to a wrong pod", self.streams.misdelivered == 0),
        ]
    }
}
