//! The program behind `scripts/soak`: has a cluster live through events for hours while its pods talk, and ends with code
//! 0 only if nothing leaked, nothing came to a wrong pod, and nothing was lost that is not explained.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "mod.rs"]
mod endurance;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io};

use clap::Parser;
use endurance::Plan;
use harness::{Cluster, Options, Prefix, Wire, is_root};
use signal_hook::consts::{SIGINT, SIGTERM};

/// What the namespaces are called.
const PREFIX: &str = "pwsoak";

/// Has nodes live through events while pods talk, and says what leaked, strayed or got lost.
#[derive(Parser)]
#[command(name = "scripts/soak")]
struct Arguments {
    /// How long, in hours; parts of an hour are allowed
    #[arg(long, value_name = "N", default_value = "2", value_parser = hours)]
    hours: Duration,
    /// Datagrams a second of each of the five streams
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..=20_000))]
    rate: u64,
    /// Of the order of events, to have the same again
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write what was found to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn hours(text: &str) -> Result<Duration, String> {
    let hours: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(hours * 3600.0).map_err(|error| error.to_string())
}

fn main() -> io::Result<ExitCode> {
    let Arguments { hours, rate, seed, json } = Arguments::parse();
    if !is_root() {
        return Ok(ExitCode::FAILURE);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends the run at once.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let plan =
        Plan { length: hours, rate, quiet: Duration::from_secs(5), seed: seed.unwrap_or_else(|| fastrand::u64(..)) };
    println!("{} hours at {rate} datagrams a second and stream, seed {}", hours.as_secs_f64() / 3600.0, plan.seed);
    let mut cluster = Cluster::start(Prefix::named(PREFIX), Wire::default(), Options::ADAPTIVE);
    let outcome = endurance::run(&mut cluster, plan, || stop.load(Ordering::Relaxed), |turn| println!("{turn}"));
    print!("{outcome}");
    if let Some(file) = json {
        fs::write(file, serde_json::to_string_pretty(&outcome)? + "\n")?;
    }
    Ok(if outcome.faults().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
