//! The doors through which the fuzz targets reach what the control plane reads of others. Each takes any bytes, and
//! asserts what holds of whatever comes of them.

pub use super::ipam::fuzz as ipam;
pub use super::kubernetes::fuzz as kubernetes;
pub use super::netlink::fuzz as netlink;
pub use super::probe::fuzz as witness;
pub use super::server::fuzz as request;
pub use super::store::fuzz as store;

/// Files of other plugins, and what stands in them.
pub fn foreign(text: &str) {
    super::host_local::fuzz(text);
    super::migrate::fuzz(text);
}
