//! The program behind `scripts/faults`: provokes faults on a podwire node while pods talk through it, says what the pods
//! noticed, and ends with code 0 only if that is within bounds.

#[path = "../harness/mod.rs"]
mod harness;

mod fault;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::{fs, io};

use clap::Parser;
use fault::{FAULTS, Fault};
use harness::{Cluster, Options, Prefix, Wire, is_root, notice};
use report::Row;

/// What the namespaces are called.
const PREFIX: &str = "pwfaults";

/// Provokes faults while pods talk, and says what they noticed.
#[derive(Parser)]
#[command(name = "scripts/faults")]
struct Arguments {
    /// Write what was found to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How long pods go on talking after each fault
    #[arg(long, value_name = "N", default_value_t = 2)]
    seconds: u64,
    /// Only faults of this name; can be repeated
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(FAULTS.map(|fault| fault.name)))]
    only: Vec<String>,
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    if !is_root() {
        return Ok(ExitCode::FAILURE);
    }
    let wanted = |fault: &&Fault| arguments.only.is_empty() || arguments.only.iter().any(|name| name == fault.name);
    let mut rows = Vec::new();
    for options in [Options::DEFAULT, Options::KERNEL] {
        let faults: Vec<_> = FAULTS.iter().filter(wanted).filter(|fault| fault.applies(options)).collect();
        if faults.is_empty() {
            continue;
        }
        println!("starting nodes a and b in mode {}", options.mode);
        let mut cluster = Cluster::start(Prefix::named(PREFIX), Wire::default(), options);
        for fault in faults {
            println!("{}: {}", fault.name, fault.what);
            rows.push(measure(&mut cluster, fault, options, Duration::from_secs(arguments.seconds)));
        }
    }
    report::print(&rows);
    if let Some(file) = arguments.json {
        fs::write(file, serde_json::to_string_pretty(&rows)? + "\n")?;
    }
    Ok(if rows.iter().all(|row| row.exceeded.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures once, and once more if a bound was exceeded: on a machine that is shared, the scheduler may have done it.
fn measure(cluster: &mut Cluster, fault: &Fault, options: Options, tail: Duration) -> Row {
    let mut attempt = || Row::new(fault, options, notice(cluster, tail, fault.provoke));
    let first = attempt();
    if first.exceeded.is_empty() {
        return first;
    }
    println!("  exceeded: {}; once more", first.exceeded.join(", "));
    Row { attempts: 2, ..attempt() }
}
