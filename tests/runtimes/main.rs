//! Container runtimes as clients of the plugin: containerd, driven through its CRI socket as the kubelet drives it, and
//! podman. Each node has a runtime of its own in its network namespace.

#[path = "../harness/mod.rs"]
mod harness;

mod containerd;
mod crash;
mod cri;
mod image;
mod inventory;
mod podman;
mod ports;
mod reach;
mod scene;
mod shaping;
mod web;
