//! memtrace's userspace half, as a library: sources, trace files, pipeline, symbols, views.
//!
//! ```text
//!   live ─┐                                          ┌→ views::tui
//!         ├→ Record → pipeline::Pipeline → Snapshot ─┼→ views::export
//!   trace ┘                                          └→ …            symbols: asked by views only
//! ```

pub mod batches;
pub mod cfi;
pub mod control;
mod hash;
pub mod heap_snapshot;
pub mod live;
pub mod lost;
pub mod modules;
pub mod operations;
pub mod part;
pub mod pipeline;
pub mod reach;
pub mod record;
pub mod session;
pub mod symbols;
pub mod trace;
pub mod views;
