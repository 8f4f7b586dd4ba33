//! Flame graphs of a comparison.
//!
//! The folded form has a line for each stack of heap memory and two numbers, as the tools that
//! come with flame graphs expect it of `difffolded`:
//!
//! ```text
//!   main;handle;parse 1024 2048
//! ```
//!
//! The SVG shows the new side's widths; red has grown, blue has shrunk. What is gone has no width
//! there: the folded form and the text have it.

use std::io::{self, Write};

use thiserror::Error;

use super::{Comparison, Sides, StackChange, StackSide};
use crate::views::export::flamegraph;
use crate::views::export::folded::folded_name;
use crate::views::export::weights::function_name;
use crate::views::profile::{Function, Vocabulary};
use crate::views::ranking::Memory;

/// Why there is no picture.
#[derive(Debug, Error)]
pub enum FlameError {
    /// No stack of the new side has any of what is compared.
    #[error("there is nothing to draw: the new side has no {what}; try another --sort")]
    Empty {
        /// What is compared.
        what: &'static str,
    },
    /// The place for it takes no more.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// The stacks in folded form, in the order of their text.
pub fn folded(comparison: &Comparison, words: &Vocabulary) -> Vec<String> {
    let key = comparison.key;
    let mut lines: Vec<String> = comparison
        .stacks
        .iter()
        .filter(|change| change.memory == Memory::Heap)
        .filter_map(|change| {
            let (old, new) = change.amounts(key);
            let (old, new) = (old.unwrap_or(0), new.unwrap_or(0));
            (old > 0 || new > 0).then(|| format!("{} {old} {new}", folded_path(change, words)))
        })
        .collect();
    lines.sort();
    lines
}

/// From the root to the allocating function.
fn folded_path(change: &StackChange, words: &Vocabulary) -> String {
    let name = |id| {
        let Function { name, module } = words.function(id);
        folded_name(&function_name(name.as_deref(), module))
    };
    let mut frames: Vec<String> = change.functions_from_root(words).map(name).collect();
    let is_cut = |side: &Option<StackSide>| side.as_ref().is_some_and(|side| !side.is_complete);
    if is_cut(&change.old) || is_cut(&change.new) || frames.is_empty() {
        frames.insert(0, "[cut]".to_owned());
    }
    frames.join(";")
}

/// Draws the comparison.
pub fn write_svg(
    out: impl Write,
    sides: &Sides<'_>,
    comparison: &Comparison,
    words: &Vocabulary,
) -> Result<(), FlameError> {
    let key = comparison.key;
    let lines = folded(comparison, words);
    if comparison.stacks.iter().all(|change| change.amounts(key).1.unwrap_or(0) == 0) {
        return Err(FlameError::Empty { what: key.title() });
    }
    let subtitle = format!(
        "{} → {}: width is the new side, red has grown, blue has shrunk",
        sides.old.name, sides.new.name
    );
    flamegraph::draw(out, &lines, format!("memtrace diff: {}", key.title()), subtitle, key)?;
    Ok(())
}
