//! What users see.
//!
//! In: snapshots of the pipeline, and names from the symbolizer. Out: text, JSON, a terminal UI.
//! Views read; they change nothing, and each owns its wire format.
//!
//! ```text
//!   Snapshot ─┐
//!             ├→ frames (names, wrappers cut off) → ranking (per function, in order) ─┬→ export::json
//!   lookup ───┘                                                                      ├→ export::text
//!   Snapshot ──→ caveats (what the numbers cannot see) ──────────────────────────────┴→ tui, plain
//! ```
//!
//! All foreign text goes through [`printable`].

pub mod activity;
mod attribution;
pub mod budget;
pub mod by_thread;
mod call_paths;
pub mod caveats;
pub mod counters;
pub mod diff;
pub mod export;
pub mod findings;
#[cfg(test)]
mod fixture;
pub mod frames;
mod hints;
mod label;
pub mod layout;
pub mod lost;
pub mod plain;
pub mod printable;
pub mod profile;
pub mod quantity;
pub mod ranking;
mod short_name;
pub mod statistics;
pub mod style;
pub mod summary;
pub mod suppressions;
pub mod timelines;
pub mod tui;
