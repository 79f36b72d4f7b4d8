//! The Kubernetes API as the source, against a stand-in of its list, watch and patch semantics: what a healthy server
//! does, and what it does when it is not.

#[path = "../harness/mod.rs"]
mod harness;

mod api;
mod cache;
mod faults;
mod members;
mod nodes;
mod own_node;
mod scale;
mod scene;
mod tls;
