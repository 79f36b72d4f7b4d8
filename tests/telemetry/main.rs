//! Metrics of live nodes, as scrapers, Prometheus and its tools see them.

#[path = "../harness/mod.rs"]
mod harness;

#[path = "../kubernetes/api/mod.rs"]
mod api;
mod exposition;
mod kubernetes;
mod metrics;
mod monitoring;
mod proofs;
mod server;
mod story;

use harness::{Cluster, Options, Prefix, Wire, is_root};

/// A cluster whose podwire nodes serve metrics, or `None` (and a line that says so) where it cannot be built.
fn cluster() -> Option<Cluster> {
    let options = Options { metrics: true, sections: "[probe]\ninterval_s = 1\n", ..Options::ADAPTIVE };
    is_root().then(|| Cluster::start(Prefix::fresh(), Wire::default(), options))
}
