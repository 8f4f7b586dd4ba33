//! The live source: attaches to processes and turns their ring events into records.

pub mod allocators;
pub mod attach;
pub mod clock;
mod closer;
pub mod decode;
pub mod finish;
pub mod guardian;
pub mod images;
pub mod kernel_types;
pub mod kernel_version;
pub mod launch;
pub mod loader;
pub mod placement;
pub mod privilege;
mod probed;
pub mod probes;
pub mod process;
pub mod tables;
pub mod tracer;
pub mod uprobe_multi;
