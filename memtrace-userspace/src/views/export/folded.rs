//! Folded stacks: a line for each call path, from the root outwards, and its weight.
//!
//! ```text
//!   main;handle;leak_per_request 12288
//! ```
//!
//! What Brendan Gregg's `flamegraph.pl`, inferno, speedscope and many more read. Semicolons of
//! names are written as colons, since the format has no way to quote them.

use std::io::{self, Write};
use std::sync::Arc;

use super::weights::{Paths, Step, Weight};
use crate::views::ranking::Ranking;

/// Writes the stacks; one line for each call path of function names.
pub fn write(mut out: impl Write, ranking: &Ranking, weight: Weight) -> io::Result<()> {
    let paths = paths(ranking, weight);
    for Step { shared: _, nodes, owner: _, weight } in paths.walk() {
        for (depth, &node) in nodes.iter().enumerate() {
            if depth > 0 {
                out.write_all(b";")?;
            }
            out.write_all(paths.labels[node as usize].as_bytes())?;
        }
        writeln!(out, " {weight}")?;
    }
    Ok(())
}

/// The call paths by function names.
pub(super) fn paths(ranking: &Ranking, weight: Weight) -> Paths<Arc<str>> {
    Paths::new(ranking, weight, |node| folded_name(&node.name()).into())
}

/// A name that can stand between semicolons.
pub(in crate::views) fn folded_name(name: &str) -> String {
    name.replace(';', ":")
}
