//! The control plane: one thread, one event loop. Everything that may block lives here.

pub mod api;
pub mod client;
pub mod daemon;
pub mod dataplane;
pub mod explain;
pub mod lifecycle;
pub mod notes;
pub mod runtime;
pub mod server;
pub mod uninstall;
pub mod view;

mod answers;
mod config_file;
mod desired;
mod devices;
mod durable;
mod fault;
mod forwarding;
mod hosting;
mod hub;
mod ipam;
mod journal;
mod masquerade;
mod nat;
mod nft;
mod node;
mod pace;
mod pod_news;
mod pods;
mod reclaim;
mod report;
mod shaping;
mod store;
mod tunnel;
mod watch;

pub mod inside;
pub mod kernel;
pub mod netlink;
pub mod netns;
pub mod originals;
pub mod plan;
pub mod sysctl;
pub mod underlay;
pub mod wiring;
