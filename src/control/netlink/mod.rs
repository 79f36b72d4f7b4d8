//! NETLINK_ROUTE.
mod monitor;
pub use monitor::{Monitor, News};
