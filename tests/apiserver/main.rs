//! podwire and its manifests at a real Kubernetes API server.

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/kubernetes/mod.rs"]
mod kubernetes;

mod cluster;
mod container;
mod credentials;
mod manifests;
mod rbac;
mod server;

use harness::{Prefix, Switch, Wire};
use kubernetes::ApiServer;

/// An API server in a laboratory, or `None` (and a line that says so) where there is none to start. Fields are dropped in
/// this order.
struct Site {
    server: ApiServer,
    _prefix: Prefix,
}

impl Site {
    fn new() -> Option<Self> {
        ApiServer::is_available().then(|| {
            let prefix = Prefix::fresh();
            let switch = Switch::new(&prefix, Wire::default());
            Self { server: ApiServer::start(&prefix, &switch), _prefix: prefix }
        })
    }
}
