//! The kernel path on a real kernel: nodes set up through the crate's own interface, and one set up
//! by plain commands that judges them.

#[path = "../harness/mod.rs"]
mod harness;
mod lab;
mod nodes;
mod objects;
mod underlay;
mod wiring;
