//! The processes of a session, and the threads of one: what each allocated and holds.
//!
//! The functions of one process are listed as those of all are (`draw`).

use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::Modifier;
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row, Table, TableState};

use super::draw::{NUMBER_CELLS, Palette, SHARE_CELLS, head, numbers_of};
use crate::pipeline::snapshot::{ProcessUsage, Snapshot, ThreadUsage, Usage};
use crate::record::Pid;
use crate::views::frames::base_name;
use crate::views::printable::printable;
use crate::views::quantity::{bytes, share};
use crate::views::ranking::SortKey;

/// The processes, those with the most first.
pub(super) fn processes(snapshot: &Snapshot, sort: SortKey) -> Vec<&ProcessUsage> {
    let mut processes: Vec<&ProcessUsage> = snapshot.processes.iter().collect();
    processes.sort_by_key(|process| (std::cmp::Reverse(sort.of(&process.heap)), process.pid));
    processes
}

/// The threads of one process, those with the most first.
pub(super) fn threads(snapshot: &Snapshot, pid: Pid, sort: SortKey) -> Vec<&ThreadUsage> {
    let mut threads: Vec<&ThreadUsage> =
        snapshot.threads.iter().filter(|thread| thread.pid == pid).collect();
    threads.sort_by_key(|thread| (std::cmp::Reverse(sort.of(&thread.heap)), thread.tid));
    threads
}

/// Paints the processes; the row at `selected` is marked.
pub(super) fn draw_processes(
    frame: &mut Frame<'_>,
    area: Rect,
    snapshot: &Snapshot,
    sort: SortKey,
    selected: usize,
    palette: Palette,
) {
    let rows: Vec<(&Usage, String)> = processes(snapshot, sort)
        .into_iter()
        .map(|process| (&process.heap, process_label(process)))
        .collect();
    draw_table(frame, area, &rows, sort, ("process", selected), palette);
}

/// Paints the threads of `pid`; the row at `selected` is marked.
pub(super) fn draw_threads(
    frame: &mut Frame<'_>,
    area: Rect,
    (snapshot, pid): (&Snapshot, Pid),
    sort: SortKey,
    selected: usize,
    palette: Palette,
) {
    let title = match snapshot.processes.iter().find(|process| process.pid == pid) {
        Some(process) => format!("thread of {}", process_name(process)),
        None => format!("thread of {}", pid.0),
    };
    let rows: Vec<(&Usage, String)> = threads(snapshot, pid, sort)
        .into_iter()
        .map(|thread| (&thread.heap, format!("{} {}", thread.tid.0, printable(&thread.name))))
        .collect();
    draw_table(frame, area, &rows, sort, (&title, selected), palette);
}

/// `4711 server`.
pub(super) fn process_name(process: &ProcessUsage) -> String {
    format!("{} {}", process.pid.0, base_name(&printable(&process.exe)))
}

/// `4711 server, rss 21.0 MiB, 7 in its namespace`: what matters least may be cut off.
fn process_label(process: &ProcessUsage) -> String {
    let mut label = process_name(process);
    match (process.ended, process.resident_bytes) {
        (Some(_), _) => label.push_str(", ended"),
        (None, Some(resident)) => label.push_str(&format!(", rss {}", bytes(resident))),
        (None, None) => {}
    }
    if let Some(inner) = process.inner_pid() {
        label.push_str(&format!(", {inner} in its namespace"));
    }
    label
}

fn draw_table(
    frame: &mut Frame<'_>,
    area: Rect,
    rows: &[(&Usage, String)],
    sort: SortKey,
    (title, selected): (&str, usize),
    palette: Palette,
) {
    let whole = rows.iter().fold(0u64, |sum, (usage, _)| sum.saturating_add(sort.of(usage)));
    let height = usize::from(area.height.saturating_sub(1));
    let selected = selected.min(rows.len().saturating_sub(1));
    let first = selected.saturating_sub(height.saturating_sub(1));
    let visible = rows.iter().skip(first).take(height).map(|(usage, label)| {
        let mut cells = numbers_of(usage, sort);
        cells.push(Cell::from(Line::from(share(sort.of(usage), whole)).right_aligned()));
        cells.push(Cell::from(label.as_str()));
        Row::new(cells)
    });
    let widths = [Constraint::Length(NUMBER_CELLS); 4]
        .into_iter()
        .chain([Constraint::Length(SHARE_CELLS), Constraint::Min(12)]);
    let table = Table::new(visible, widths)
        .header(head(sort, title, palette))
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(Some(selected - first));
    frame.render_stateful_widget(table, area, &mut state);
}
