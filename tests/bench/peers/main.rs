//! The program behind `scripts/bench bulk`: podwire beside its peers.
//!
//! Each system is built anew, two nodes with one wire between them, measured, and removed before the next one, in
//! alternating rounds: machines drift. Nodes, pods and load share the machine's cores, so that ratios count, and those
//! are only told of if the rounds bear them out.

mod bulk;
#[path = "../../harness/mod.rs"]
mod harness;
mod machine;
mod report;
mod systems;

use std::io;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser};
use harness::{Wire, is_root};
use machine::Machine;
use report::Report;
use systems::{SYSTEMS, System};

/// Measures podwire beside its peers.
#[derive(Parser)]
#[command(name = "scripts/bench")]
enum Verb {
    /// TCP throughput, its cost in CPU time, and the latency beside it
    Bulk {
        #[command(flatten)]
        common: Common,
        /// MTU of the wire; can be repeated
        #[arg(long, value_name = "BYTES", default_values_t = [1500, 9000])]
        mtu: Vec<u32>,
        /// TCP connections at a time; can be repeated
        #[arg(long, value_name = "N", default_values_t = [1, 8, 32])]
        flows: Vec<u32>,
    },
}

#[derive(Args)]
struct Common {
    /// Write the figures to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seconds of each measurement
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Rounds of all systems
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Only this system; can be repeated. The first one is what the others are measured by
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(SYSTEMS.map(|system| system.name)))]
    only: Vec<String>,
}

impl Common {
    /// The systems that are wanted, in the order that is wanted.
    fn systems(&self) -> Vec<System> {
        let named = |name: &String| SYSTEMS.into_iter().find(|system| system.name == name);
        if self.only.is_empty() { SYSTEMS.to_vec() } else { self.only.iter().filter_map(named).collect() }
    }
}

fn main() -> io::Result<()> {
    let verb = Verb::parse();
    if !is_root() {
        return Err(io::Error::other("network namespaces need root"));
    }
    match verb {
        Verb::Bulk { common, mtu, flows } => bulk(&common, &mtu, &flows),
    }
}

fn bulk(common: &Common, mtus: &[u32], flows: &[u32]) -> io::Result<()> {
    let (systems, scenarios) = (common.systems(), bulk::Scenario::all(mtus, flows));
    let measurements = u64::from(common.rounds) * (systems.len() * scenarios.len()) as u64;
    eprintln!("{measurements} measurements, {} minutes at least", measurements * u64::from(common.seconds) / 60);
    let mut report = Report::new(Machine::look(), common.seconds, common.rounds, systems[0].name);
    for round in 1..=common.rounds {
        for system in &systems {
            for &mtu in mtus {
                let rig = system.build(Wire { mtu, ..Wire::default() }, 2);
                for scenario in scenarios.iter().filter(|scenario| scenario.mtu == mtu) {
                    let name = scenario.name();
                    let outcome =
                        rig.as_ref().map_err(Clone::clone).and_then(|rig| scenario.measure(rig, common.seconds));
                    eprint!("round {round} of {}: {}: {name}: ", common.rounds, system.name);
                    match outcome {
                        Ok(figures) => {
                            eprintln!("{:.2} {}", figures[0].1, figures[0].0.name);
                            report.add(&name, system.name, &figures);
                        }
                        Err(reason) => {
                            eprintln!("{reason}");
                            report.fail(&name, system.name, reason);
                        }
                    }
                }
            }
        }
    }
    report.finish(common.json.as_deref())
}
