//! What the user looks at, and what a key changes about it.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Ranked, processes};
use crate::pipeline::snapshot::Snapshot;
use crate::record::Pid;
use crate::views::frames::FunctionId;
use crate::views::ranking::{FunctionUsage, SortKey, SymbolizedUsage};

/// Rows that a page key moves by.
const PAGE: usize = 10;

/// What is on the screen below the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The functions, most expensive first.
    Functions,
    /// The stacks that a function is in; the first visible line.
    Stacks {
        /// The function.
        function: FunctionId,
        /// How many lines are scrolled away.
        scroll: usize,
    },
    /// The processes, most expensive first.
    Processes {
        /// The row that is marked.
        selected: usize,
    },
    /// The threads of one process.
    Threads {
        /// The process.
        pid: Pid,
        /// The row that is marked.
        selected: usize,
    },
}

/// What follows from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The key means nothing here.
    Nothing,
    /// The screen is to be drawn again.
    Redraw,
    /// The user wants to leave.
    Leave,
}

/// The state of the live view.
///
/// Paused, it goes on to take snapshots and keeps the newest for when it is resumed.
#[derive(Debug)]
pub struct App {
    shown: Option<Ranked>,
    waiting: Option<Ranked>,
    paused: bool,
    ended: bool,
    sort: SortKey,
    view: View,
    /// Stays with its function while rows move; `None` stays with the first row.
    selected: Option<FunctionId>,
}

impl App {
    /// Nothing to show yet.
    pub fn new(sort: SortKey) -> App {
        App {
            shown: None,
            waiting: None,
            paused: false,
            ended: false,
            sort,
            view: View::Functions,
            selected: None,
        }
    }

    /// Takes a new snapshot.
    pub fn update(&mut self, mut ranked: Ranked) {
        ranked.ranking.sort(self.sort);
        if self.paused && self.shown.is_some() {
            self.waiting = Some(ranked);
        } else {
            self.shown = Some(ranked);
        }
    }

    /// No more snapshots will come.
    pub fn source_ended(&mut self) {
        self.ended = true;
    }

    /// Acts on a key.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Next::Leave,
                _ => Next::Nothing,
            };
        }
        match key.code {
            KeyCode::Char('q') => Next::Leave,
            KeyCode::Char('p' | ' ') => self.toggle_pause(),
            KeyCode::Char('s') => self.sort_by(self.next_sort()),
            KeyCode::Char('1') => self.sort_by(SortKey::Live),
            KeyCode::Char('2') => self.sort_by(SortKey::Peak),
            KeyCode::Char('3') => self.sort_by(SortKey::Allocated),
            KeyCode::Char('4') => self.sort_by(SortKey::Allocations),
            KeyCode::Char('5') => self.sort_by(SortKey::Temporary),
            KeyCode::Tab => self.next_process(),
            KeyCode::Enter | KeyCode::Right => self.open(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => match self.view {
                View::Functions if key.code == KeyCode::Esc => Next::Leave,
                View::Functions => Next::Nothing,
                View::Stacks { .. } | View::Processes { .. } => {
                    self.view = View::Functions;
                    Next::Redraw
                }
                View::Threads { pid, selected: _ } => {
                    let rows = self.processes();
                    let selected = rows.iter().position(|row| *row == pid).unwrap_or(0);
                    self.view = View::Processes { selected };
                    Next::Redraw
                }
            },
            KeyCode::Up | KeyCode::Char('k') => self.go(|row| row.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|row| row.saturating_add(1)),
            KeyCode::PageUp => self.go(|row| row.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|row| row.saturating_add(PAGE)),
            KeyCode::Home | KeyCode::Char('g') => self.go(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(|_| usize::MAX),
            _ => Next::Nothing,
        }
    }

    /// The newest snapshot that arrived, shown or not.
    pub fn newest(&self) -> Option<&Arc<Snapshot>> {
        self.waiting.as_ref().or(self.shown.as_ref()).map(|ranked| &ranked.snapshot)
    }

    pub(super) fn shown(&self) -> Option<&Ranked> {
        self.shown.as_ref()
    }

    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    pub(super) fn sort(&self) -> SortKey {
        self.sort
    }

    pub(super) fn view(&self) -> View {
        self.view
    }

    /// The functions to list: those that allocated themselves.
    pub(super) fn rows(&self) -> Vec<&FunctionUsage> {
        let Some(ranked) = &self.shown else { return Vec::new() };
        ranked.ranking.functions.iter().filter(|f| f.heap.own.allocations > 0).collect()
    }

    /// Index of the selected row.
    pub(super) fn selected_row(&self) -> usize {
        let Some(selected) = self.selected else { return 0 };
        self.rows().iter().position(|row| row.function.id == selected).unwrap_or(0)
    }

    /// The stacks in which `function` allocated itself.
    pub(super) fn stacks_of(&self, function: FunctionId) -> Vec<&SymbolizedUsage> {
        let Some(ranked) = &self.shown else { return Vec::new() };
        let allocates = |stack: &&SymbolizedUsage| {
            stack.stack.functions().next().is_some_and(|first| first.function.id == function)
        };
        ranked.ranking.stacks.iter().filter(allocates).collect()
    }

    fn toggle_pause(&mut self) -> Next {
        self.paused = !self.paused;
        if !self.paused
            && let Some(mut waiting) = self.waiting.take()
        {
            waiting.ranking.sort(self.sort);
            self.shown = Some(waiting);
        }
        Next::Redraw
    }

    fn next_sort(&self) -> SortKey {
        match self.sort {
            SortKey::Live => SortKey::Peak,
            SortKey::Peak => SortKey::Allocated,
            SortKey::Allocated => SortKey::Allocations,
            SortKey::Allocations => SortKey::Temporary,
            SortKey::Temporary => SortKey::Live,
        }
    }

    fn sort_by(&mut self, key: SortKey) -> Next {
        self.sort = key;
        if let Some(ranked) = &mut self.shown {
            ranked.ranking.sort(key);
        }
        Next::Redraw
    }

    /// The processes, in the order in which they are shown.
    fn processes(&self) -> Vec<Pid> {
        let Some(ranked) = &self.shown else { return Vec::new() };
        processes::processes(&ranked.snapshot, self.sort).iter().map(|row| row.pid).collect()
    }

    /// From functions to processes and back; from the threads of a process to those of the next.
    fn next_process(&mut self) -> Next {
        self.view = match self.view {
            View::Functions | View::Stacks { .. } => View::Processes { selected: 0 },
            View::Processes { .. } => View::Functions,
            View::Threads { pid, selected: _ } => {
                let rows = self.processes();
                let next = rows.iter().position(|row| *row == pid).map_or(0, |row| row + 1);
                match rows.get(next).or(rows.first()) {
                    Some(&pid) => View::Threads { pid, selected: 0 },
                    None => View::Functions,
                }
            }
        };
        Next::Redraw
    }

    /// Shows more of the selected row.
    fn open(&mut self) -> Next {
        match self.view {
            View::Functions => self.open_stacks(),
            View::Processes { selected } => match self.processes().get(selected) {
                Some(&pid) => {
                    self.view = View::Threads { pid, selected: 0 };
                    Next::Redraw
                }
                None => Next::Nothing,
            },
            View::Stacks { .. } | View::Threads { .. } => Next::Nothing,
        }
    }

    fn open_stacks(&mut self) -> Next {
        let row = self.selected_row();
        let Some(function) = self.rows().get(row).map(|row| row.function.id) else {
            return Next::Nothing;
        };
        self.selected = Some(function);
        self.view = View::Stacks { function, scroll: 0 };
        Next::Redraw
    }

    /// Moves the selection or scrolls; the end of what there is, stops it.
    fn go(&mut self, target: impl Fn(usize) -> usize) -> Next {
        match self.view {
            View::Functions => {
                let row = target(self.selected_row());
                let rows = self.rows();
                let last = rows.len().saturating_sub(1);
                let selected = rows.get(row.min(last)).map(|row| row.function.id);
                self.selected = if row == 0 { None } else { selected };
            }
            View::Stacks { function, scroll } => {
                let lines =
                    self.stacks_of(function).iter().map(|s| s.stack.frames().count() + 2).sum();
                self.view = View::Stacks { function, scroll: target(scroll).min(lines) };
            }
            View::Processes { selected } => {
                let last = self.processes().len().saturating_sub(1);
                self.view = View::Processes { selected: target(selected).min(last) };
            }
            View::Threads { pid, selected } => {
                let threads = self
                    .shown
                    .as_ref()
                    .map_or(0, |ranked| processes::threads(&ranked.snapshot, pid, self.sort).len());
                let last = threads.saturating_sub(1);
                self.view = View::Threads { pid, selected: target(selected).min(last) };
            }
        }
        Next::Redraw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::rank;

    fn ranked() -> Ranked {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        Ranked { snapshot: Arc::new(snapshot), ranking }
    }

    fn press(app: &mut App, code: KeyCode) -> Next {
        app.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn first_row(app: &App) -> Option<String> {
        app.rows().first().and_then(|row| row.function.name.as_deref().map(str::to_owned))
    }

    fn filled() -> App {
        let mut app = App::new(SortKey::Live);
        app.update(ranked());
        app
    }

    #[test]
    fn sort_key_reorders_the_rows() {
        let mut app = filled();
        assert_eq!(first_row(&app).as_deref(), Some("leak_per_request"));

        press(&mut app, KeyCode::Char('2'));

        assert_eq!(first_row(&app).as_deref(), Some("cache::Entry::build"));
    }

    #[test]
    fn sort_key_steps_through_all() {
        let mut app = filled();
        let mut seen = Vec::new();

        for _ in SortKey::ALL {
            seen.push(app.sort());
            press(&mut app, KeyCode::Char('s'));
        }

        assert_eq!(seen, SortKey::ALL);
        assert_eq!(app.sort(), SortKey::Live);
    }

    #[test]
    fn paused_view_keeps_its_numbers_until_it_is_resumed() {
        let mut app = filled();
        press(&mut app, KeyCode::Char('p'));
        let mut newer = ranked();
        Arc::make_mut(&mut newer.snapshot).events = 99;

        app.update(newer);
        assert_ne!(app.shown().map(|r| r.snapshot.events), Some(99));
        press(&mut app, KeyCode::Char('p'));

        assert_eq!(app.shown().map(|r| r.snapshot.events), Some(99));
    }

    #[test]
    fn selection_stays_with_its_function_when_rows_move() {
        let mut app = filled();
        press(&mut app, KeyCode::Down);
        let selected = app.rows()[app.selected_row()].function.name.clone();

        press(&mut app, KeyCode::Char('2'));

        assert_eq!(app.rows()[app.selected_row()].function.name, selected);
        assert_eq!(app.selected_row(), 0);
    }

    #[test]
    fn selection_stops_at_the_last_row() {
        let mut app = filled();

        press(&mut app, KeyCode::End);
        press(&mut app, KeyCode::Down);

        assert_eq!(app.selected_row(), app.rows().len() - 1);
    }

    #[test]
    fn enter_shows_the_stacks_and_escape_goes_back() {
        let mut app = filled();

        press(&mut app, KeyCode::Enter);
        let View::Stacks { function, .. } = app.view() else { panic!("{:?}", app.view()) };
        assert_eq!(app.stacks_of(function).len(), 1);

        assert_eq!(press(&mut app, KeyCode::Esc), Next::Redraw);
        assert_eq!(press(&mut app, KeyCode::Esc), Next::Leave);
    }

    #[test]
    fn tab_goes_to_the_processes_and_on_through_their_threads() {
        let mut newer = ranked();
        let snapshot = Arc::make_mut(&mut newer.snapshot);
        let first = snapshot.processes[0].pid;
        let mut child = snapshot.processes[0].clone();
        child.pid = Pid(first.0 + 1);
        child.heap.live_bytes = 1;
        snapshot.processes.push(child);
        let mut app = App::new(SortKey::Live);
        app.update(newer);

        press(&mut app, KeyCode::Tab);
        press(&mut app, KeyCode::End);
        assert_eq!(app.view(), View::Processes { selected: 1 });

        press(&mut app, KeyCode::Enter);
        assert_eq!(app.view(), View::Threads { pid: Pid(first.0 + 1), selected: 0 });

        press(&mut app, KeyCode::Tab);
        assert_eq!(app.view(), View::Threads { pid: first, selected: 0 });

        press(&mut app, KeyCode::Esc);
        assert_eq!(app.view(), View::Processes { selected: 0 });
        press(&mut app, KeyCode::Tab);
        assert_eq!(app.view(), View::Functions);
    }

    #[test]
    fn keys_before_the_first_snapshot_do_no_harm() {
        let mut app = App::new(SortKey::Live);

        for code in [KeyCode::Enter, KeyCode::Down, KeyCode::End, KeyCode::Char('s')]
            .into_iter()
            .chain([KeyCode::Tab, KeyCode::Enter, KeyCode::Down, KeyCode::Tab])
        {
            press(&mut app, code);
        }

        assert_eq!(app.view(), View::Functions);
        assert_eq!(press(&mut app, KeyCode::Char('q')), Next::Leave);
    }

    #[test]
    fn control_c_leaves() {
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);

        assert_eq!(filled().key(key), Next::Leave);
    }
}
