//! The trace file: records in, records out, byte for byte the same.
//!
//! A trace stands in for the process: it holds every [`Record`](crate::record::Record) of a
//! session, in order, and a replay of it gives the report that live tracing gave.
//!
//! ```text
//!   records ─→ Writer ─→ columns + rows ─→ zstd ─→ block, block, … end mark
//!   records ←─ Reader ←─ columns + rows ←─ zstd ←─┘
//! ```
//!
//! Keyframes and an index between the blocks let a reader begin in the middle ([`Index`]).
//!
//! The file grows by whole blocks, each with a checksum, so that a writer that was killed leaves
//! a readable trace ([`Truncation`] says where it stops), and any other file gives a
//! [`TraceError`]. Lengths are bounded before anything is allocated: a trace may come from
//! anywhere. The format is described in `docs/trace-format.md`.
//!
//! This module does not open files, does not know the pipeline, and does not judge whether the
//! records make sense.

mod bytes;
mod columns;
mod error;
mod format;
mod index;
mod model;
mod reader;
mod rows;
mod writer;

#[cfg(test)]
mod tests;

pub use error::{Cut, Damage, TraceError, Truncation, WriteError};
pub use format::VERSION;
pub use index::{Index, Keyframe, MarkPlace, read_snapshot};
pub use reader::Reader;
pub use writer::Writer;
