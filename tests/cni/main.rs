//! The CNI plugin, as container runtimes meet it: the binary itself, called in the namespace of a node with a daemon.

mod attachments;
mod away;
mod chain;
mod flannel;
#[path = "../harness/mod.rs"]
mod harness;
mod hostile;
mod install;
mod migrate;
mod plugin;
mod refusals;
mod verbs;
