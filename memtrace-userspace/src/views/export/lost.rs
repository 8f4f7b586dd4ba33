//! Lost blocks as text.

use std::cmp::Reverse;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::lost::{Amount, Births, Losses, LostBlocks, NotRead, ProcessLosses};
use crate::pipeline::snapshot::Snapshot;
use crate::record::{Pid, Time};
use crate::views::export::text::{self, write_caveats, write_field, write_stack};
use crate::views::findings::Findings;
use crate::views::label::function_label;
use crate::views::layout::{cut, wrap};
use crate::views::lost::{FunctionLosses, Ranking, SymbolizedLosses, caveats, cost, exe};
use crate::views::printable::{printable, printable_str};
use crate::views::quantity::{bytes, count, counted, duration};
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

/// The losses as text, and behind them what grows, if that is wanted.
pub fn render(
    snapshot: &Snapshot,
    lost: &LostBlocks,
    ranking: &Ranking,
    growth: Option<&Findings>,
    options: &Options,
) -> String {
    let mut out = String::new();
    let &Options { width, style, top } = options;
    let written = write(&mut out, snapshot, lost, ranking, options).and_then(|()| match growth {
        Some(findings) => {
            let options = text::Options { width, style, sort: None, top, histograms: None };
            text::write_growth(&mut out, snapshot, findings, &options)
        }
        None => Ok(()),
    });
    written.expect("writing to a String cannot fail");
    out
}

fn write(
    out: &mut String,
    snapshot: &Snapshot,
    lost: &LostBlocks,
    ranking: &Ranking,
    options: &Options,
) -> fmt::Result {
    let Options { width, style, top } = *options;
    let title = format!("memtrace leaks: {}", summary::target(snapshot));
    writeln!(out, "{}", style.heading(&cut(&title, width)))?;
    write_field(out, "captured", &summary::capture(snapshot), width)?;
    write_field(out, "events", &summary::loss(snapshot), width)?;
    let scan = match lost.read() {
        1 => cost(&lost.cost),
        read => format!("{} processes, each by itself: {}", count(read), cost(&lost.cost)),
    };
    write_field(out, "scan", &scan, width)?;
    let judged = format!("{}, allocated since the attach and live", amount(lost.judged));
    write_field(out, "judged", &judged, width)?;
    let caveats = caveats(snapshot, lost);
    if !caveats.is_empty() {
        writeln!(out, "\n{}", style.heading("Caveats"))?;
        write_caveats(out, &caveats, width, style)?;
    }
    let Ranking { stacks, functions, born, direct, indirect, suppressed } = ranking;
    let all = direct.plus(*indirect);
    if all.blocks == 0 {
        let nothing = "Nothing is lost: every judged block is pointed to";
        let nothing = if suppressed.blocks == 0 { nothing } else { "Nothing else is lost" };
        writeln!(out, "\n{}", style.heading(nothing))?;
    } else {
        writeln!(out, "\n{}", style.heading(&format!("Lost: {}", amount(all))))?;
        let direct = format!("{}, to which nothing points", amount(*direct));
        write_field(out, "directly", &direct, width)?;
    }
    if let Some(born) = born {
        write_field(out, "age", &ages(*born, snapshot), width)?;
    }
    if indirect.blocks > 0 {
        let indirect = format!("{}, to which only lost blocks point", amount(*indirect));
        write_field(out, "indirectly", &indirect, width)?;
    }
    if suppressed.blocks > 0 {
        write_field(out, "suppressed", &format!("{}, not shown", amount(*suppressed)), width)?;
    }
    if lost.read() + lost.unread() > 1 {
        write_processes(out, lost, snapshot, options)?;
    }
    if functions.len() > 1 {
        write_functions(out, functions, snapshot, options)?;
    }
    let direct = stacks.iter().filter(|stack| stack.losses.direct.blocks > 0);
    let shown = top.unwrap_or(DEFAULT_STACKS);
    for (number, stack) in (1..).zip(direct.clone().take(shown)) {
        let SymbolizedLosses { stack, api, losses } = stack;
        let Losses { direct, born, held, indirect: _ } = losses;
        let mut head = format!("{number}. {} of {}", amount(*direct), api.name());
        if held.blocks > 0 {
            head.push_str(&format!(", holding {}", amount(*held)));
        }
        if let Some(born) = born {
            head.push_str(&format!("; {}", ages(*born, snapshot)));
        }
        writeln!(out)?;
        for line in wrap(&head, width.saturating_sub(2)) {
            writeln!(out, "  {}", style.heading(line))?;
        }
        write_stack(out, stack, width, style)?;
    }
    let more = direct.count().saturating_sub(shown);
    if more > 0 {
        writeln!(out, "\n  … and {}; --top shows more", counted(more as u64, "more call path"))?;
    }
    if all.blocks > 0 {
        writeln!(out, "\n{}", style.heading("What to do"))?;
        for line in wrap(&advice(functions), width.saturating_sub(2)) {
            writeln!(out, "  {line}")?;
        }
    }
    Ok(())
}

/// ```text
///         lost     blocks  paths  function
///     12.0 MiB     12,312      1  leak_per_request, 1.2 s to 11.3 s old
/// ```
fn write_functions(
    out: &mut String,
    functions: &[FunctionLosses],
    snapshot: &Snapshot,
    &Options { width, style, top }: &Options,
) -> fmt::Result {
    writeln!(out, "\n{}", style.heading("By function, with what only its blocks lead to"))?;
    writeln!(out, "  {:>10} {:>10} {:>6}  function", "lost", "blocks", "paths")?;
    let shown = top.unwrap_or(DEFAULT_STACKS);
    for FunctionLosses { frame, direct, held, call_paths, born } in functions.iter().take(shown) {
        let all = direct.plus(*held);
        let ages = ages(*born, snapshot);
        let room = width.saturating_sub(34 + ages.len());
        let name = match frame {
            Some(frame) => function_label(&frame.function, None, room),
            None => "unknown".to_owned(),
        };
        writeln!(
            out,
            "  {:>10} {:>10} {:>6}  {name}, {ages}",
            bytes(all.bytes),
            count(all.blocks),
            count(*call_paths),
        )?;
    }
    match functions.len().saturating_sub(shown) {
        0 => Ok(()),
        more => {
            writeln!(out, "  … and {}; --top shows more", counted(more as u64, "more function"))
        }
    }
}

/// ```text
///         lost     blocks  process
///     12.0 MiB     12,315  4242 (/srv/app/server)
///            -          -  4251 (/srv/app/worker): a signal ended it
/// ```
fn write_processes(
    out: &mut String,
    lost: &LostBlocks,
    snapshot: &Snapshot,
    &Options { width, style, top }: &Options,
) -> fmt::Result {
    writeln!(out, "\n{}", style.heading("By process, before suppressions"))?;
    writeln!(out, "  {:>10} {:>10}  process", "lost", "blocks")?;
    let name = |pid: Pid| match exe(snapshot, pid) {
        Some(exe) => format!("{} ({})", pid.0, printable(exe)),
        None => pid.0.to_string(),
    };
    let losses = |process: &ProcessLosses| process.direct.plus(process.indirect);
    let mut read: Vec<_> = lost.processes.iter().collect();
    read.sort_by_key(|process| (Reverse(losses(process)), process.pid));
    let read = read.into_iter().map(|process| {
        let Amount { bytes: lost, blocks } = losses(process);
        (bytes(lost), count(blocks), name(process.pid))
    });
    let not_read = lost.not_read.iter().map(|NotRead { pid, reason }| {
        ("-".to_owned(), "-".to_owned(), format!("{}: {}", name(*pid), printable_str(reason)))
    });
    let shown = top.unwrap_or(DEFAULT_STACKS);
    for (lost, blocks, name) in read.chain(not_read).take(shown) {
        let (lines, mut numbers) = (wrap(&name, width.saturating_sub(25)), [lost, blocks]);
        for line in lines {
            let [lost, blocks] = std::mem::take(&mut numbers);
            writeln!(out, "  {lost:>10} {blocks:>10}  {line}")?;
        }
    }
    match (lost.read() + lost.unread()).saturating_sub(shown as u64) {
        0 => Ok(()),
        more => writeln!(out, "  … and {} more; --top shows more", count(more)),
    }
}

/// `1.2 s to 11.3 s old`, counted from the end of the session.
fn ages(Births { first, last }: Births, snapshot: &Snapshot) -> String {
    let age = |born: Time| duration(Duration::from_nanos(snapshot.now.0.saturating_sub(born.0)));
    match (age(last), age(first)) {
        (youngest, oldest) if youngest == oldest => format!("{oldest} old"),
        (youngest, oldest) => format!("{youngest} to {oldest} old"),
    }
}

/// What a reader can do about what was lost.
fn advice(functions: &[FunctionLosses]) -> String {
    let mut names =
        functions.iter().filter_map(|losses| losses.frame.as_ref()?.function.name.as_deref());
    let name = names.next().unwrap_or("FUNCTION");
    format!(
        "A call path says where a block was made; look for where the last pointer to it went out of \
         use, and free it there. Blocks of all ages speak for a leak that goes on, old ones alone \
         for one of the start. What is known: --suppressions FILE with the line leak:{name}"
    )
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
    use crate::views::suppressions::Suppressions;

    fn text(lost: &LostBlocks, top: Option<usize>) -> String {
        text_without(lost, top, "")
    }

    fn text_without(lost: &LostBlocks, top: Option<usize>, suppressions: &str) -> String {
        let snapshot = fixture::snapshot();
        let suppressions = Suppressions::parse(suppressions).expect("valid");
        let ranking = rank(&snapshot, lost, &mut fixture::names(), &suppressions);
        render(&snapshot, lost, &ranking, None, &Options { width: 80, style: Style::Plain, top })
    }

    #[test]
    fn losses_at_80_columns() {
        let text = text(&fixture::lost(), None);

        assert!(text.lines().all(|line| width(line) <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn losses_of_several_processes_at_80_columns() {
        let text = text(&fixture::lost_of_family(), None);

        assert!(text.lines().all(|line| width(line) <= 80), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn call_paths_that_are_left_out_are_counted() {
        let text = text(&fixture::lost(), Some(1));

        assert!(text.contains("\n  … and 1 more function; --top shows more\n"), "{text}");
        assert!(text.contains("\n  … and 1 more call path; --top shows more\n"), "{text}");
    }

    #[test]
    fn nothing_lost_is_said() {
        let mut lost = fixture::lost();
        lost.stacks.clear();

        assert!(text(&lost, None).ends_with("Nothing is lost: every judged block is pointed to\n"));
    }

    #[test]
    fn suppressed_losses_are_told_in_sum() {
        let text = text_without(&fixture::lost(), None, "leak:*");

        let end = "Nothing else is lost\n  suppressed 12.0 MiB in 12,315 blocks, not shown\n";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn what_grows_comes_behind_what_is_lost() {
        let (snapshot, lost) = (fixture::snapshot(), fixture::lost());
        let mut names = fixture::names();
        let ranking = rank(&snapshot, &lost, &mut names, &Suppressions::default());
        let growth = Findings::new(&snapshot, &mut names);
        let options = Options { width: 80, style: Style::Plain, top: None };

        let text = render(&snapshot, &lost, &ranking, Some(&growth), &options);

        let (_, growth) = text.split_once("\nLeaks\n").expect("what grows");
        assert!(growth.contains("leak_per_request"), "{growth}");
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
