//! The live source: attaches to a process and turns its ring events into records.

pub mod kernel_types;
pub mod loader;
