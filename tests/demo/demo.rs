//! The program behind `scripts/demo`: builds a cluster of two podwire nodes and a plain kernel node in network
//! namespaces, measures it, prints tables, and ends with code 0 only if every criterion is met.

#[path = "../harness/mod.rs"]
mod harness;

mod findings;
mod measure;
mod picture;
mod report;
mod transcript;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use clap::Parser;
use harness::{Cluster, Options, Prefix, Wire, is_root};

/// What the namespaces of the demonstration are called.
const PREFIX: &str = "pwdemo";

/// As it comes, but each packet wakes its worker: so few as here would go past it.
const OPTIONS: Options = Options { wake_pps: 0, ..Options::DEFAULT };

/// Shows pods of two podwire nodes and a plain kernel node talking.
#[derive(Parser)]
#[command(name = "scripts/demo")]
struct Arguments {
    /// Write what was found to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write what operators see to this directory too: the page `tour.md`, and its pictures
    #[arg(long, value_name = "DIR")]
    transcript: Option<PathBuf>,
    /// Leave the nodes up, and print how to enter them
    #[arg(long)]
    keep: bool,
    /// Only remove nodes that were left up
    #[arg(long, conflicts_with_all = ["json", "keep", "transcript"])]
    clean: bool,
    /// Seconds of each throughput measurement
    #[arg(long, value_name = "N", default_value_t = 2)]
    seconds: u32,
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    if !is_root() {
        return Ok(ExitCode::FAILURE);
    }
    if arguments.clean {
        Prefix::remove(PREFIX);
        return Ok(ExitCode::SUCCESS);
    }
    println!("starting nodes a and b (podwire) and c (plain kernel VXLAN), two pods each");
    let mut cluster = Cluster::start(Prefix::named(PREFIX), Wire::default(), OPTIONS);
    let findings = measure::measure(&mut cluster, arguments.seconds);
    print!("{}", report::Report(&findings));
    if let Some(file) = arguments.json {
        fs::write(file, serde_json::to_string_pretty(&findings)? + "\n")?;
    }
    if let Some(dir) = arguments.transcript {
        transcript::write(&mut cluster, &dir)?;
    }
    if arguments.keep {
        cluster.keep();
        print!("{}", report::Entrances(&cluster));
    }
    Ok(if findings.criteria.iter().all(|criterion| criterion.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
