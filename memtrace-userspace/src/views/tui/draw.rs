//! Painting the live view.
//!
//! ```text
//!   memtrace top: server (pid 4242)                       00:00:12  attached     title
//!   live 14.0 MiB  peak 54.0 MiB  mapped 32.0 MiB  …                             totals
//!   ▁▅▂▆▃█▅▂▆▃▇▄                                                                 live over time
//!   phase "after warm-up" for 12.3 s: +2.0 MiB, peak 54.0 MiB                    since the last mark
//!   ! 5 events were lost: the numbers are incomplete                             findings, caveats
//!         LIVE     peak  allocated    calls  function                            table, or stacks
//!   q quit  p pause  s sort …                                                    keys
//! ```

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table, TableState};

use super::app::{App, View};
use super::processes::{draw_processes, draw_threads, process_name};
use crate::pipeline::snapshot::{Snapshot, Usage};
use crate::views::counters::explain_end;
use crate::views::frames::FunctionId;
use crate::views::label::{amount, frame_labels, function_label};
use crate::views::layout::width;
use crate::views::quantity::{bytes, clock, count, counted, highest_of_each, share};
use crate::views::ranking::{Memory, SortKey};
use crate::views::{caveats, summary};

/// The most caveats that are shown; they must leave room for the table.
const CAVEATS: usize = 4;
/// Lines of the curve of live bytes.
const CURVE_LINES: u16 = 3;
/// Cells that the table's numbers take.
pub(super) const NUMBER_CELLS: u16 = 10;
pub(super) const SHARE_CELLS: u16 = 6;

/// Whether colours may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Palette {
    /// Bold and inverse only.
    Monochrome,
    /// The terminal's 16 colours.
    Colour,
}

impl Palette {
    fn style(self, colour: Color, otherwise: Modifier) -> Style {
        match self {
            Palette::Monochrome => Style::new().add_modifier(otherwise),
            Palette::Colour => Style::new().fg(colour),
        }
    }

    fn accent(self) -> Style {
        self.style(Color::Cyan, Modifier::BOLD)
    }

    fn warning(self) -> Style {
        self.style(Color::Yellow, Modifier::BOLD)
    }

    fn faint(self) -> Style {
        self.style(Color::DarkGray, Modifier::DIM)
    }
}

/// Draws the whole screen.
pub fn draw(frame: &mut Frame<'_>, app: &App, palette: Palette) {
    let Some(ranked) = app.shown() else {
        frame.render_widget(
            Paragraph::new("memtrace top: waiting for the first events …"),
            frame.area(),
        );
        return;
    };
    let snapshot = &ranked.snapshot;
    let mut warnings = caveats::caveats(snapshot);
    let hidden = warnings.len().saturating_sub(CAVEATS);
    warnings.truncate(CAVEATS);
    if hidden > 0 {
        warnings.push(format!("and {hidden} more; see `memtrace report`"));
    }
    warnings.splice(0..0, ranked.ranking.findings.headlines());
    let warning_lines = u16::try_from(warnings.len()).expect("at most CAVEATS + 3");
    let phase = summary::phase(snapshot);
    let [title, totals, curve, mark, caveats, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(if frame.area().height >= 20 { CURVE_LINES } else { 1 }),
        Constraint::Length(u16::from(phase.is_some())),
        Constraint::Length(warning_lines),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());

    draw_title(frame, title, app, snapshot, palette);
    draw_totals(frame, totals, snapshot);
    draw_curve(frame, curve, snapshot, palette);
    if let Some(phase) = phase {
        frame.render_widget(Line::styled(phase, palette.accent()), mark);
    }
    let warnings: Vec<Line<'_>> = warnings
        .into_iter()
        .map(|text| Line::styled(format!("! {text}"), palette.warning()))
        .collect();
    frame.render_widget(Paragraph::new(warnings), caveats);
    match app.view() {
        View::Functions => draw_functions(frame, body, app, snapshot, palette),
        View::Stacks { function, scroll } => {
            draw_stacks(frame, body, app, (function, scroll), palette);
        }
        View::Processes { selected } => {
            draw_processes(frame, body, snapshot, app.sort(), selected, palette);
        }
        View::Threads { pid, selected } => {
            draw_threads(frame, body, (snapshot, pid), app.sort(), selected, palette);
        }
    }
    draw_keys(frame, keys, app, palette);
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, app: &App, snapshot: &Snapshot, palette: Palette) {
    let state = match (app.paused(), app.ended()) {
        (true, _) => "paused",
        (false, true) => "ended",
        (false, false) => "live",
    };
    let right = format!("{}  {state}", clock(summary::since_start(snapshot.now)));
    let width = u16::try_from(right.len()).expect("a short text");
    let [left, gap] =
        Layout::horizontal([Constraint::Min(10), Constraint::Length(width)]).areas(area);
    let title = format!("memtrace top: {}", summary::target(snapshot));
    frame.render_widget(Line::styled(title, palette.accent().add_modifier(Modifier::BOLD)), left);
    frame.render_widget(Line::raw(right), gap);
}

fn draw_totals(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let totals = &snapshot.totals;
    let resident =
        snapshot.processes.iter().filter_map(|p| p.resident_bytes).reduce(u64::saturating_add);
    let mut parts = vec![
        format!("live {}", bytes(totals.heap.live_bytes)),
        format!("peak {}", bytes(totals.peak_live_bytes)),
        format!("mapped {}", bytes(totals.mapped.live_bytes)),
    ];
    parts.extend(resident.map(|resident| format!("resident {}", bytes(resident))));
    parts.push(counted(totals.heap.allocations, "call"));
    parts.extend(calls_per_second(snapshot).map(|rate| format!("{}/s", count(rate))));
    // Whole parts only: half a number is a wrong number.
    let mut text = String::new();
    for part in parts {
        let gap = if text.is_empty() { "" } else { "  " };
        if width(&text) + width(gap) + width(&part) > usize::from(area.width) {
            break;
        }
        text.push_str(gap);
        text.push_str(&part);
    }
    frame.render_widget(Line::raw(text), area);
}

/// Allocations per second in the last whole step of the timeline.
fn calls_per_second(snapshot: &Snapshot) -> Option<u64> {
    let [.., before, last, _unfinished] = snapshot.timeline.as_slice() else { return None };
    let ns = last.time.0.checked_sub(before.time.0).filter(|&ns| ns > 0)?;
    u64::try_from(u128::from(last.allocations) * 1_000_000_000 / u128::from(ns)).ok()
}

/// The whole session; each column is as high as the highest moment that it stands for.
fn draw_curve(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot, palette: Palette) {
    let live: Vec<u64> = snapshot.timeline.iter().map(|point| point.peak_live_bytes).collect();
    let columns = highest_of_each(&live, usize::from(area.width));
    frame.render_widget(Sparkline::default().data(columns).style(palette.accent()), area);
}

/// The numbers that have a column: what the functions are sorted by is among them.
fn columns(sort: SortKey) -> [SortKey; 4] {
    let second = match sort {
        SortKey::Temporary => SortKey::Temporary,
        SortKey::Live | SortKey::Peak | SortKey::Allocated | SortKey::Allocations => SortKey::Peak,
    };
    [SortKey::Live, second, SortKey::Allocated, SortKey::Allocations]
}

fn draw_functions(
    frame: &mut Frame<'_>,
    area: Rect,
    app: &App,
    snapshot: &Snapshot,
    palette: Palette,
) {
    let name_width = area.width.saturating_sub((NUMBER_CELLS + 1) * 4 + SHARE_CELLS + 1).max(12);
    let (whole, title) = match app.process() {
        Some(process) => (&process.heap, format!("function of {}", process_name(process))),
        None => (&snapshot.totals.heap, "function".to_owned()),
    };
    let whole = app.sort().of(whole);
    let rows = app.rows();
    let height = usize::from(area.height.saturating_sub(1));
    // Only what can be seen is laid out: a program may have ten thousand functions.
    let selected = app.selected_row();
    let first = selected.saturating_sub(height.saturating_sub(1));
    let visible = rows.iter().skip(first).take(height).map(|row| {
        let own = &row.heap.own;
        let mut cells = numbers_of(own, app.sort());
        cells.push(right(share(app.sort().of(own), whole)));
        cells.push(Cell::from(function_label(&row.function, row.line, usize::from(name_width))));
        Row::new(cells)
    });
    let widths = [Constraint::Length(NUMBER_CELLS); 4]
        .into_iter()
        .chain([Constraint::Length(SHARE_CELLS), Constraint::Min(name_width)]);
    let table = Table::new(visible, widths)
        .header(head(app.sort(), &title, palette))
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(Some(selected - first));
    frame.render_stateful_widget(table, area, &mut state);
}

/// The numbers of a row, in the order of [`columns`].
pub(super) fn numbers_of(usage: &Usage, sort: SortKey) -> Vec<Cell<'static>> {
    columns(sort).iter().map(|key| right(amount(*key, key.of(usage)))).collect()
}

/// The line above a table whose last column is `title`.
pub(super) fn head(sort: SortKey, title: &str, palette: Palette) -> Row<'static> {
    let numbers = columns(sort).map(|key| {
        let title = match key {
            SortKey::Live => "live",
            SortKey::Peak => "peak",
            SortKey::Allocated => "allocated",
            SortKey::Allocations => "calls",
            SortKey::Temporary => "temporary",
        };
        if key == sort {
            right(format!("▼{}", title.to_uppercase())).style(Modifier::BOLD)
        } else {
            right(title.to_owned())
        }
    });
    let cells =
        numbers.into_iter().chain([right("share".to_owned()), Cell::from(title.to_owned())]);
    Row::new(cells).style(palette.faint())
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn draw_stacks(
    frame: &mut Frame<'_>,
    area: Rect,
    app: &App,
    (function, scroll): (FunctionId, usize),
    palette: Palette,
) {
    let stacks = app.stacks_of(function);
    let mut lines = Vec::new();
    let name = stacks.first().and_then(|stack| stack.stack.functions().next());
    if let Some(allocating) = name {
        let label = function_label(&allocating.function, None, usize::from(area.width));
        let of_process = app.process().map(|process| format!(" in {}", process_name(process)));
        let title = format!("stacks of {label}{}", of_process.unwrap_or_default());
        lines.push(Line::styled(title, palette.accent()));
    } else {
        lines.push(Line::raw("this function holds no stacks now"));
    }
    let room = scroll + usize::from(area.height);
    for stack in stacks {
        if lines.len() > room {
            break;
        }
        let usage = &stack.usage;
        let kind = match Memory::of(stack.api) {
            Memory::Heap => "",
            Memory::Mapped => " (mapping)",
        };
        lines.push(Line::from(vec![
            Span::styled(amount(app.sort(), app.sort().of(usage)), Modifier::BOLD),
            Span::raw(format!(
                "  {}{kind}: {} live, {} at peak, {}",
                stack.api.name(),
                bytes(usage.live_bytes),
                bytes(usage.peak_bytes),
                counted(usage.allocations, "call"),
            )),
        ]));
        for label in frame_labels(&stack.stack) {
            lines.push(Line::raw(format!("    {label}")));
        }
        if stack.stack.end != memtrace_common::unwind::End::Root {
            let end = format!("    cut off here: {}", explain_end(stack.stack.end));
            lines.push(Line::styled(end, palette.warning()));
        }
    }
    let visible: Vec<Line<'_>> = lines.into_iter().skip(scroll).collect();
    frame.render_widget(Paragraph::new(visible), area);
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, app: &App, palette: Palette) {
    let several = app.shown().is_some_and(|ranked| ranked.snapshot.processes.len() > 1);
    let keys = match app.view() {
        View::Functions if app.process().is_some() => {
            "q quit  p pause  s sort  ⏎ stacks  t threads  tab next process  esc back"
        }
        View::Functions if several => "q quit  p pause  s sort  ↑↓ select  ⏎ stacks  tab processes",
        View::Functions => {
            "q quit  p pause  s sort (1 live 2 peak 3 allocated 4 calls)  ↑↓ select  ⏎ stacks"
        }
        View::Stacks { .. } => "q quit  p pause  s sort  ↑↓ scroll  esc back",
        View::Processes { .. } => {
            "q quit  p pause  s sort  ↑↓ select  ⏎ functions  t threads  tab all functions"
        }
        View::Threads { .. } => "q quit  p pause  s sort  ↑↓ scroll  tab next process  esc back",
    };
    frame.render_widget(Line::styled(keys, palette.faint()), area);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

    use super::*;
    use crate::record::Pid;
    use crate::views::fixture;
    use crate::views::ranking::{rank, rank_processes};
    use crate::views::tui::Ranked;

    fn screen(app: &App, columns: u16, lines: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).expect("in memory");
        terminal.draw(|frame| draw(frame, app, Palette::Monochrome)).expect("in memory");
        terminal.backend().to_string()
    }

    fn filled() -> App {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let mut app = App::new(SortKey::Live);
        app.update(Ranked { snapshot: Arc::new(snapshot), ranking, processes: BTreeMap::new() });
        app
    }

    #[test]
    fn functions_at_80_by_24() {
        insta::assert_snapshot!(screen(&filled(), 80, 24));
    }

    #[test]
    fn functions_at_120_by_30() {
        insta::assert_snapshot!(screen(&filled(), 120, 30));
    }

    #[test]
    fn stacks_of_the_selected_function() {
        let mut app = filled();
        app.key(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));

        insta::assert_snapshot!(screen(&app, 80, 24));
    }

    /// The fixture with a second process, which has ended and holds less.
    fn with_two_processes() -> App {
        let mut snapshot = fixture::snapshot();
        let mut child = snapshot.processes[0].clone();
        child.pid = Pid(4250);
        child.exe = b"/usr/bin/worker".to_vec();
        child.ended = Some(snapshot.now);
        child.heap.live_bytes = 1 << 20;
        snapshot.processes.insert(0, child);
        let mut of_child = snapshot.stacks[0].clone();
        of_child.usage.live_bytes = 1 << 20;
        snapshot.process_stacks = BTreeMap::from([(Pid(4250), vec![of_child])]);
        let mut names = fixture::names();
        let ranking = rank(&snapshot, &mut names, SortKey::Live);
        let processes = rank_processes(&snapshot, &mut names, SortKey::Live);
        let mut app = App::new(SortKey::Live);
        app.update(Ranked { snapshot: Arc::new(snapshot), ranking, processes });
        app
    }

    #[test]
    fn processes_of_a_session_of_two() {
        let mut app = with_two_processes();
        app.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE));

        insta::assert_snapshot!(screen(&app, 80, 24));
    }

    #[test]
    fn functions_of_the_selected_process() {
        let mut app = with_two_processes();
        for key in [KeyCode::Tab, KeyCode::Down, KeyCode::Enter] {
            app.key(KeyEvent::new(key, KeyModifiers::NONE));
        }

        insta::assert_snapshot!(screen(&app, 80, 24));
    }

    #[test]
    fn threads_of_the_selected_process() {
        let mut app = with_two_processes();
        app.key(KeyEvent::new(KeyCode::Tab, KeyModifiers::NONE));
        app.key(KeyEvent::new(KeyCode::Char('t'), KeyModifiers::NONE));

        insta::assert_snapshot!(screen(&app, 80, 24));
    }

    #[test]
    fn phase_since_the_last_mark_has_a_line() {
        let mut snapshot = fixture::snapshot();
        snapshot.phases = fixture::phases();
        let mut app = App::new(SortKey::Live);
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        app.update(Ranked { snapshot: Arc::new(snapshot), ranking, processes: BTreeMap::new() });

        let screen = screen(&app, 80, 24);

        assert!(
            screen.contains("phase \"load\\x1b\" for 2.0 s: -1.0 MiB, peak 54.0 MiB"),
            "{screen}"
        );
    }

    #[test]
    fn before_the_first_snapshot() {
        insta::assert_snapshot!(screen(&App::new(SortKey::Live), 60, 5));
    }

    #[test]
    fn tiny_terminals_do_not_panic() {
        for (width, height) in [(1, 1), (5, 2), (20, 4), (300, 3)] {
            screen(&filled(), width, height);
        }
    }
}
