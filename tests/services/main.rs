//! Services behind kube-proxy's rules, host ports and masqueraded egress, while both paths are in use.

#[path = "../harness/mod.rs"]
mod harness;

mod detection;
mod egress;
mod endpoints;
mod invalid;
mod iptables;
mod peers;
mod rules;
mod scene;
mod services;
