//! podwire: a userspace, poll-mode pod data plane over a kernel path that is always complete.
//!
//! The map of the crate, in layers; a module imports only from layers below its own
//! (`tests/architecture.rs` checks it).
#![deny(unsafe_code)]

// Argument parsing and printing.
pub mod cli;

// Looks at the machine and asks the daemon.
pub mod doctor;

// Measures what pods get.
pub mod latency;

// What container runtimes call; asks the daemon.
pub mod cni;

// May block, allocate and log.
pub mod control;
pub mod telemetry;

// Start-up may allocate; the loop may not.
pub mod config;
pub mod steer;
pub mod worker;

// No allocation, no log, no lock, no clock.
pub mod pipeline;
pub mod port;

// Look-up, segmentation, and the rings shared with the kernel.
pub mod fib;
pub mod offload;
pub mod packet;
pub mod shared;
pub mod trace;
pub mod xsk;

// Import nothing of ours.
pub mod confine;
pub mod counters;
pub mod frame;
pub mod ids;
pub mod wire;
