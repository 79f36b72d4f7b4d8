//! What `scripts/bench stages` measures: that packets do get through each stage, and that what was not counted is not made
//! up.

#[path = "../../benches/stages/instructions.rs"]
#[allow(dead_code, reason = "the bench starts valgrind, tests do not")]
mod instructions;
#[path = "../../benches/stages/rings.rs"]
mod rings;
#[path = "../../benches/stages/stage.rs"]
mod stage;
#[path = "../../benches/stages/table.rs"]
mod table;

use instructions::collected;
use stage::{BURSTS, ROUND, STAGES};
use table::{Row, markdown};

#[test]
fn all_packets_of_a_round_get_through_each_stage_again_and_again() {
    for (name, make) in STAGES {
        for burst in BURSTS {
            let mut stage = make(burst);
            for round in 0..3 {
                if stage.uses_up() {
                    stage.prepare();
                }
                assert_eq!(stage.run(), ROUND, "{name}, bursts of {burst}, round {round}");
            }
        }
    }
}

#[test]
fn instructions_are_read_from_what_callgrind_says() {
    let log = "==71== Callgrind, a call-graph generating cache profiler\n==71== \n==71== Events    : Ir\n\
               ==71== Collected : 1835008\n==71== \n==71== I   refs:      1,835,008\n";
    assert_eq!(collected(log), Some(1_835_008));
    for log in ["", "valgrind: no such file", "==71== Collected :", "==71== Collected : 0\n", "Collected : many"] {
        assert_eq!(collected(log), None, "{log}");
    }
}

#[test]
fn the_table_says_what_was_not_counted() {
    let row = |instructions| Row { stage: "ring", burst: 64, ns: 2.5, million_packets_per_second: 400.0, instructions };
    let table = markdown(&[row(Some(17.25)), row(None)]);
    let rows: Vec<_> = table.lines().skip(2).collect();
    assert_eq!(rows, ["| ring | 64 | 2.5 | 400 | 17.2 |", "| ring | 64 | 2.5 | 400 | ? |"]);
}
