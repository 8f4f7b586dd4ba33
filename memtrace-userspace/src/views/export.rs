//! Reports of a whole session: one file per format.
//!
//! ```text
//!   Snapshot, Ranking ─┬→ text, json, csv, pprof, perfetto
//!                      └→ weights ─→ folded, flamegraph, speedscope, firefox
//!   Record, Posting ────→ dhat, heaptrack, parquet
//!   all of these ───────→ html
//! ```
//!
//! The first two kinds show the end of a session. The third sees every event, because its formats
//! hold what a snapshot does not; so does the page, which shows both.

pub mod csv;
pub mod dhat;
pub mod firefox;
pub mod flamegraph;
pub mod folded;
pub mod heaptrack;
pub mod html;
pub mod json;
pub(in crate::views) mod list;
pub mod lost;
pub mod parquet;
pub mod perfetto;
pub mod pprof;
pub mod speedscope;
pub mod text;
pub mod weights;
