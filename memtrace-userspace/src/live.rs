//! The live source: attaches to a process and turns its ring events into records.

pub mod allocators;
pub mod placement;
pub mod process;
