//! A flame graph as SVG that can be searched and zoomed, drawn by inferno.
//!
//! Calls below a ten-thousandth of the whole are narrower than anybody can see. They are left out
//! before the drawing, so that a million stacks take no more memory than what is shown; their
//! weight stays with their callers, as it does in every flame graph.

use std::io::{self, Write};
use std::sync::Arc;

use inferno::flamegraph::{self, Options, color::Palette};

use super::folded;
use super::weights::{Paths, Step, Weight};
use crate::pipeline::snapshot::Snapshot;
use crate::views::ranking::{Ranking, SortKey};
use crate::views::summary;

/// The part of the whole that is still drawn: one pixel of ten screens.
const SMALLEST_PART: u64 = 10_000;

/// Writes the picture. An error if nothing weighs anything ([`Weight::is_nothing`]): there is no
/// such picture.
pub fn write(
    out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    weight: Weight,
) -> io::Result<()> {
    let lines = visible(&folded::paths(ranking, weight));
    let subtitle = format!(
        "{}: {}; {}",
        summary::target(snapshot),
        summary::capture(snapshot),
        summary::loss(snapshot)
    );
    draw(out, &lines, format!("memtrace: {}", weight.title()), subtitle, weight.key)
}

/// Draws folded lines that count what `key` says; a second number makes it a comparison.
pub(in crate::views) fn draw(
    out: impl Write,
    lines: &[String],
    title: String,
    subtitle: String,
    key: SortKey,
) -> io::Result<()> {
    let mut options = Options::default();
    options.title = title;
    options.subtitle = Some(subtitle);
    options.count_name = match key {
        SortKey::Live | SortKey::Peak | SortKey::Allocated => "bytes",
        SortKey::Allocations | SortKey::Temporary => "allocations",
    }
    .to_owned();
    options.colors = Palette::Basic(flamegraph::color::BasicPalette::Mem);
    options.hash = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
        .map_err(io::Error::other)
}

/// Folded lines of all that is wide enough to be seen, in order.
fn visible(paths: &Paths<Arc<str>>) -> Vec<String> {
    let smallest = paths.total() / SMALLEST_PART;
    let mut lines: Vec<(String, u64)> = Vec::new();
    for (depth, Step { nodes, weight, shared: _, owner: _ }) in
        depths(paths, smallest).iter().zip(paths.walk())
    {
        let names: Vec<&str> =
            nodes[..*depth as usize].iter().map(|&node| &*paths.labels[node as usize]).collect();
        let line = names.join(";");
        match lines.last_mut() {
            Some((last, sum)) if *last == line => *sum = sum.saturating_add(weight),
            Some(_) | None => lines.push((line, weight)),
        }
    }
    lines.into_iter().map(|(line, weight)| format!("{line} {weight}")).collect()
}

/// How many nodes of each path weigh at least `smallest`, with all paths through them.
///
/// Roots always stay, so that the lines add up to the whole.
fn depths(paths: &Paths<Arc<str>>, smallest: u64) -> Vec<u32> {
    let mut depths = Vec::with_capacity(paths.len());
    // The nodes of the path before: the first path through each, and the weight of all so far.
    let mut open: Vec<(usize, u64)> = Vec::new();
    let close = |open: &mut Vec<(usize, u64)>, depth: usize, depths: &mut Vec<u32>| {
        while open.len() > depth {
            let last = open.len() - 1;
            if let Some((first, weight)) = open.pop()
                && weight < smallest
            {
                for visible in &mut depths[first..] {
                    *visible = (*visible).min(last.max(1) as u32);
                }
            }
        }
    };
    for Step { shared, nodes, owner: _, weight } in paths.walk() {
        close(&mut open, shared, &mut depths);
        open.resize(nodes.len(), (depths.len(), 0));
        for (_, sum) in &mut open {
            *sum = sum.saturating_add(weight);
        }
        depths.push(nodes.len() as u32);
    }
    close(&mut open, 0, &mut depths);
    depths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::{Memory, rank};

    fn lines(allocations: u64) -> Vec<String> {
        let mut snapshot = fixture::snapshot();
        snapshot.stacks[0].usage.allocations = allocations;
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let weight = Weight { memory: Memory::Heap, key: SortKey::Allocations };
        visible(&folded::paths(&ranking, weight))
    }

    #[test]
    fn calls_that_nobody_could_see_count_with_their_callers() {
        // `main` has 1.2 million allocations, so that 123 are too few, and 256 are not.
        assert_eq!(
            lines(100),
            [
                "[cut: unreadable_stack] 3",
                "main;cache_fill;cache::Entry::build 256",
                "main 100",
                "main;parse;parse 1234567"
            ]
        );
        assert_eq!(lines(200)[2], "main;handle;leak_per_request 200");
    }
}
