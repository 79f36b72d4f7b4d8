//! The program behind `scripts/demo --kubernetes`: a real API server, two podwire nodes and one of Flannel's. Nodes come
//! and go and the server fails while pods talk; prints how soon each node followed and what the pods noticed, and ends
//! with code 0 only if every criterion is met.

#[path = "../../harness/mod.rs"]
mod harness;
#[path = "../../harness/kubernetes/mod.rs"]
mod kubernetes;

mod findings;
mod report;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;
use std::{fs, io};

use clap::Parser;
use harness::{Prefix, is_root};
use kubernetes::{ApiServer, FlannelCluster};

/// What the namespaces of the demonstration are called.
const PREFIX: &str = "pwkube";

/// Shows nodes of podwire and of Flannel come and go in a cluster with a real API server.
#[derive(Parser)]
#[command(name = "scripts/demo --kubernetes")]
struct Arguments {
    /// Write what was found to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often a Flannel node comes and goes
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: u8,
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    if !is_root() || !ApiServer::is_available() {
        return Ok(ExitCode::FAILURE);
    }
    println!("starting etcd, kube-apiserver and kube-controller-manager, then nodes a and b (podwire) and c (Flannel)");
    let mut cluster = FlannelCluster::start(Prefix::named(PREFIX));
    let findings = story::tell(&mut cluster, arguments.rounds);
    print!("{}", report::Report(&findings));
    if let Some(file) = arguments.json {
        fs::write(file, serde_json::to_string_pretty(&findings)? + "\n")?;
    }
    Ok(if findings.criteria.iter().all(|criterion| criterion.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
