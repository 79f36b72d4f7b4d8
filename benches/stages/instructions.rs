//! Instructions of a stage, counted by valgrind's callgrind: the same on each run and on each machine with the same
//! program. Counted is only what [`measured`] calls, in a process of the bench's own program.

use std::hint::black_box;
use std::process::Command;
use std::{env, io};

use super::stage::{Make, PACKETS, ROUND, Stage};

/// Rounds that are counted, after one that is not.
const ROUNDS: u32 = 64;

/// The function whose calls callgrind counts.
const COUNTED: &str = "--toggle-collect=*measured_round*";

/// Runs a round. Callgrind knows it by its name.
#[inline(never)]
fn measured_round(stage: &mut dyn Stage) -> usize {
    // A call in last place would be a jump, which is no call to callgrind.
    black_box(stage.run())
}

/// What the counted process does.
pub fn run(make: Make, burst: usize) {
    let mut stage = make(burst);
    stage.prepare();
    stage.run();
    for _ in 0..ROUNDS {
        stage.prepare();
        assert_eq!(measured_round(&mut *stage), ROUND);
    }
}

/// Instructions of one packet in a stage: has this program do [`run`], which `arguments` ask it for, under callgrind.
pub fn count(arguments: &[&str]) -> Result<f64, String> {
    let program = env::current_exe().map_err(|error| format!("cannot find the bench's own program: {error}"))?;
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", COUNTED]);
    let output = valgrind.arg(program).args(arguments).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "valgrind is missing; install Debian's package valgrind".to_owned(),
        _ => format!("cannot start valgrind: {error}"),
    })?;
    let log = String::from_utf8_lossy(&output.stderr);
    let collected = collected(&log).filter(|_| output.status.success());
    let collected = collected.ok_or_else(|| format!("valgrind counted nothing ({}):\n{log}", output.status))?;
    #[expect(clippy::cast_precision_loss, reason = "a few millions")]
    let instructions = collected as f64;
    Ok(instructions / (f64::from(ROUNDS) * PACKETS))
}

/// How many instructions callgrind says that it collected, if any.
pub fn collected(log: &str) -> Option<u64> {
    let number = log.lines().find_map(|line| line.split_once("Collected :"))?.1;
    number.split_whitespace().next()?.parse().ok().filter(|&instructions| instructions > 0)
}
