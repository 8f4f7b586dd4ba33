//! The symbolizer as a whole, on files that the tests build.
//!
//! `oracle` compares with binutils, `separate` and `alternate` move debug information elsewhere,
//! `debuginfod` fetches it, `hostile` damages files. All need a C compiler and binutils: without them a test is skipped with a message,
//! except in CI (`CI=true`), where it fails.

mod alternate;
mod debuginfod;
mod hostile;
mod oracle;
mod programs;
mod separate;
