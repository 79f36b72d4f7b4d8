//! What someone changes by hand on a node that runs podwire: it is noticed, put right within a second and told of once,
//! and what is not podwire's stays as it is.

mod config;
mod ended;
#[path = "../harness/mod.rs"]
mod harness;
mod killed;
mod lab;
mod node;
mod pods;
mod quiet;
mod scale;
mod underlay;
