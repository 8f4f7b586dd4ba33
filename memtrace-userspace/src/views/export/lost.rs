//! Lost blocks as text.

use std::fmt::{self, Write};

use crate::lost::{Amount, Losses, LostBlocks};
use crate::pipeline::snapshot::Snapshot;
use crate::views::export::text::{write_caveats, write_field, write_stack};
use crate::views::layout::{cut, wrap};
use crate::views::lost::{SymbolizedLosses, caveats, cost};
use crate::views::quantity::{bytes, counted};
use crate::views::style::Style;
use crate::views::summary;

/// How many call paths are shown unless told otherwise.
const DEFAULT_STACKS: usize = 20;

/// How the text looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Cells per line.
    pub width: usize,
    /// Colour, or none.
    pub style: Style,
    /// The most call paths to show.
    pub top: Option<usize>,
}

/// The losses as text; `stacks` are those of `lost`, in order.
pub fn render(
    snapshot: &Snapshot,
    lost: &LostBlocks,
    stacks: &[SymbolizedLosses],
    options: &Options,
) -> String {
    let mut out = String::new();
    write(&mut out, snapshot, lost, stacks, options).expect("writing to a String cannot fail");
    out
}

fn write(
    out: &mut String,
    snapshot: &Snapshot,
    lost: &LostBlocks,
    stacks: &[SymbolizedLosses],
    options: &Options,
) -> fmt::Result {
    let Options { width, style, top } = *options;
    let title = format!("memtrace leaks: {}", summary::target(snapshot));
    writeln!(out, "{}", style.heading(&cut(&title, width)))?;
    write_field(out, "captured", &summary::capture(snapshot), width)?;
    write_field(out, "events", &summary::loss(snapshot), width)?;
    write_field(out, "scan", &cost(&lost.cost), width)?;
    let judged = format!("{}, allocated since the attach and live", amount(lost.judged));
    write_field(out, "judged", &judged, width)?;
    let caveats = caveats(snapshot, lost);
    if !caveats.is_empty() {
        writeln!(out, "\n{}", style.heading("Caveats"))?;
        write_caveats(out, &caveats, width, style)?;
    }
    let Losses { direct, held, indirect: _ } = lost.total();
    let all = direct.plus(held);
    if all.blocks == 0 {
        return writeln!(
            out,
            "\n{}",
            style.heading("Nothing is lost: every judged block is pointed to")
        );
    }
    let heading = format!("Lost: {}", amount(all));
    writeln!(out, "\n{}", style.heading(&heading))?;
    write_field(out, "directly", &format!("{}, to which nothing points", amount(direct)), width)?;
    if held.blocks > 0 {
        let held = format!("{}, to which only lost blocks point", amount(held));
        write_field(out, "indirectly", &held, width)?;
    }
    let direct = stacks.iter().filter(|stack| stack.losses.direct.blocks > 0);
    let shown = top.unwrap_or(DEFAULT_STACKS);
    for (number, stack) in (1..).zip(direct.clone().take(shown)) {
        let SymbolizedLosses { stack, api, losses: Losses { direct, held, indirect: _ } } = stack;
        let mut head = format!("{number}. {} of {}", amount(*direct), api.name());
        if held.blocks > 0 {
            head.push_str(&format!(", holding {}", amount(*held)));
        }
        writeln!(out)?;
        for line in wrap(&head, width.saturating_sub(2)) {
            writeln!(out, "  {}", style.heading(line))?;
        }
        write_stack(out, stack, width, style)?;
    }
    match direct.count().saturating_sub(shown) {
        0 => Ok(()),
        more => {
            writeln!(out, "\n  … and {}; --top shows more", counted(more as u64, "more call path"))
        }
    }
}

/// `1.2 MiB in 1,009 blocks`.
fn amount(amount: Amount) -> String {
    format!("{} in {}", bytes(amount.bytes), counted(amount.blocks, "block"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::layout::width;
    use crate::views::lost::rank;

    fn text(lost: &LostBlocks, top: Option<usize>) -> String {
        let snapshot = fixture::snapshot();
        let stacks = rank(&snapshot, lost, &mut fixture::names());
        render(&snapshot, lost, &stacks, &Options { width: 80, style: Style::Plain, top })
    }

    #[test]
    fn losses_at_80_columns() {
        let text = text(&fixture::lost(), None);

        assert!(text.lines().all(|line| width(line) <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn call_paths_that_are_left_out_are_counted() {
        let text = text(&fixture::lost(), Some(1));

        assert!(text.ends_with("\n  … and 1 more call path; --top shows more\n"), "{text}");
    }

    #[test]
    fn nothing_lost_is_said() {
        let mut lost = fixture::lost();
        lost.stacks.clear();

        assert!(text(&lost, None).ends_with("Nothing is lost: every judged block is pointed to\n"));
    }

    #[test]
    fn look_at_a_running_process_is_a_caveat() {
        let mut lost = fixture::lost();
        lost.cost.stopped = None;

        let text = text(&lost, None);

        assert!(text.contains("! the process ran on while it was read"), "{text}");
        assert!(text.contains("scan       not stopped, read 88.0 MiB in two passes"), "{text}");
    }
}
