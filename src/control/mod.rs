//! The control plane: one thread, one event loop. Everything that may block lives here.

pub mod kernel;
pub mod netlink;
pub mod netns;
pub mod plan;
pub mod sysctl;
pub mod underlay;
pub mod view;
pub mod wiring;
