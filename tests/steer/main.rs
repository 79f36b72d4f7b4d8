//! The steering programs as the kernel runs them: decided by test runs with a socket in the map, and seen at work
//! in network namespaces of their own.
//!
//! Without root each test prints `skipped: needs root` and does nothing.

mod bare;
mod bulk;
mod clsact;
mod delivery;
mod hub;
mod lab;
mod live;
mod nat;
mod nic;
mod noise;
mod order;
mod packets;
mod pod;
mod queue;
mod rig;
mod shaping;
mod takeover;
mod trace;
mod tunnel;
mod uplink_tc;
mod vxlan;
