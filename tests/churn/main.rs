//! Pods that come and go at random by CNI, while plugin and daemon are killed, their namespaces vanish and the
//! configuration changes: the store, the kernel and the daemon agree all the time, and in the end nothing is left.
//!
//! `PODWIRE_CNI_SEED` repeats the choices of a run, `PODWIRE_CNI_STEPS` makes it longer or shorter.

mod agreement;
#[path = "../harness/mod.rs"]
mod harness;
mod model;
mod site;

use std::env;

use harness::is_root;
use site::Site;

/// How many steps, unless told otherwise.
const STEPS: usize = 2000;

/// After how many steps everything is looked at.
const BETWEEN_LOOKS: usize = 100;

#[test]
fn pods_come_and_go_and_nothing_is_lost_or_left() {
    if !is_root() {
        return;
    }
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}")));
    let seed = number("PODWIRE_CNI_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = number("PODWIRE_CNI_STEPS").map_or(STEPS, |steps| usize::try_from(steps).expect("a small number"));
    println!("PODWIRE_CNI_SEED={seed} PODWIRE_CNI_STEPS={steps}");
    let mut site = Site::new(seed);
    let mut look_at = BETWEEN_LOOKS;
    while site.steps() < steps {
        site.round();
        if site.steps() >= look_at {
            look_at += BETWEEN_LOOKS;
            site.assert_agreement();
        }
    }
    site.assert_agreement();
    site.remove_all();
    site.assert_nothing_left();
    site.report();
}
