//! What `scripts/soak` does for hours, for half a minute, or as many seconds as `PODWIRE_SOAK_SECS` says.

use std::time::Duration;

use super::endurance::{self, Plan};
use super::harness::{Options, Wire};
use super::{assert_ledgers_balance, cluster};

fn length() -> Duration {
    let given =
        std::env::var("PODWIRE_SOAK_SECS").ok().map(|secs| secs.parse().expect("PODWIRE_SOAK_SECS is a number"));
    Duration::from_secs(given.unwrap_or(30))
}

#[test]
fn mixed_traffic_and_events_leak_nothing_and_lose_nothing_unexplained() {
    let Some(mut cluster) = cluster(Wire::default(), Options::ADAPTIVE) else { return };
    let plan = Plan { length: length(), rate: 1000, quiet: Duration::ZERO, seed: fastrand::u64(..) };
    let outcome = endurance::run(&mut cluster, plan, || false, |turn| println!("{turn}"));
    println!("{outcome}");
    assert_ledgers_balance(&cluster);
    assert_eq!(outcome.faults(), [""; 0]);
    assert!(outcome.turns > 0 && outcome.quiet.sent > 0);
}
