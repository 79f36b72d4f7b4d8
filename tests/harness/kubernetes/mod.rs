//! A real Kubernetes control plane for the laboratory: only for the tests that name it, because of what it links.
#![allow(dead_code, unused_imports, reason = "each test crate uses its own part of the laboratory")]

mod api_server;
mod cluster;
mod manifests;
mod pki;

pub use api_server::{ApiServer, api_of};
pub use cluster::{FlannelCluster, annotation, flannel, flannel_v6};
pub use manifests::{account, deploy, flannel_role, object, objects};
