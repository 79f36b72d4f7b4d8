//! The control plane: one thread, one event loop. Everything that may block lives here.

pub mod view;
