//! The live source: attaches to processes and turns their ring events into records.

pub mod allocators;
pub mod attach;
pub mod clock;
mod closer;
pub mod decode;
mod events;
pub mod finish;
pub mod guardian;
mod hooks;
pub mod images;
pub mod kernel_types;
pub mod kernel_version;
pub mod launch;
pub mod lazy_file;
pub mod loader;
mod mapped_array;
mod pidfd;
pub mod placement;
pub mod privilege;
mod probed;
pub mod probes;
pub mod process;
mod ring_meter;
pub mod table_cache;
pub mod tables;
pub mod tracer;
pub mod uprobe_multi;
