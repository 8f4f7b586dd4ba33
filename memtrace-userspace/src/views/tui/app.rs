//! What the user looks at, and what a key changes about it.

use std::sync::Arc;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Ranked, processes};
use crate::pipeline::snapshot::{ProcessUsage, Snapshot};
use crate::record::Pid;
use crate::views::frames::FunctionId;
use crate::views::ranking::{FunctionUsage, ProcessRanking, SortKey, SymbolizedUsage};

/// Rows that a page key moves by.
const PAGE: usize = 10;

/// What is on the screen below the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The functions of all processes or of one, most expensive first.
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
    /// The process whose functions are listed; `None` for those of all.
    process: Option<Pid>,
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
            process: None,
            selected: None,
        }
    }

    /// Takes a new snapshot.
    pub fn update(&mut self, mut ranked: Ranked) {
        ranked.sort(self.sort);
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
                View::Functions => match self.process {
                    Some(pid) => self.back_to_processes(pid),
                    None if key.code == KeyCode::Esc => Next::Leave,
                    None => Next::Nothing,
                },
                View::Stacks { .. } | View::Processes { .. } => {
                    self.view = View::Functions;
                    Next::Redraw
                }
                View::Threads { pid, selected: _ } => self.back_to_processes(pid),
            },
            KeyCode::Char('t') => self.open_threads(),
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
        let (functions, _) = self.ranking();
        functions.iter().filter(|f| f.heap.own.allocations > 0).collect()
    }

    /// Index of the selected row.
    pub(super) fn selected_row(&self) -> usize {
        let Some(selected) = self.selected else { return 0 };
        self.rows().iter().position(|row| row.function.id == selected).unwrap_or(0)
    }

    /// The stacks in which `function` allocated itself.
    pub(super) fn stacks_of(&self, function: FunctionId) -> Vec<&SymbolizedUsage> {
        let (_, stacks) = self.ranking();
        let allocates = |stack: &&SymbolizedUsage| {
            stack.stack.functions().next().is_some_and(|first| first.function.id == function)
        };
        stacks.iter().filter(allocates).collect()
    }

    /// The functions and stacks of the process that is looked at, or of all.
    fn ranking(&self) -> (&[FunctionUsage], &[SymbolizedUsage]) {
        let Some(ranked) = &self.shown else { return (&[], &[]) };
        match self.process {
            None => (&ranked.ranking.functions, &ranked.ranking.stacks),
            Some(pid) => match ranked.processes.get(&pid) {
                Some(ProcessRanking { functions, stacks }) => (functions, stacks),
                None => (&[], &[]),
            },
        }
    }

    /// The process whose functions are listed, if not those of all.
    pub(super) fn process(&self) -> Option<&ProcessUsage> {
        let processes = &self.shown.as_ref()?.snapshot.processes;
        processes.iter().find(|process| Some(process.pid) == self.process)
    }

    fn toggle_pause(&mut self) -> Next {
        self.paused = !self.paused;
        if !self.paused
            && let Some(mut waiting) = self.waiting.take()
        {
            waiting.sort(self.sort);
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
            ranked.sort(key);
        }
        Next::Redraw
    }

    /// The processes, in the order in which they are shown.
    fn processes(&self) -> Vec<Pid> {
        let Some(ranked) = &self.shown else { return Vec::new() };
        processes::processes(&ranked.snapshot, self.sort).iter().map(|row| row.pid).collect()
    }

    /// From the functions of all to the processes and back; from what is shown of one process to
    /// the same of the next.
    fn next_process(&mut self) -> Next {
        match self.view {
            View::Functions | View::Stacks { .. } => match self.process {
                Some(pid) => self.show_functions(self.process_after(pid)),
                None => {
                    self.view = View::Processes { selected: 0 };
                    Next::Redraw
                }
            },
            View::Processes { .. } => self.show_functions(None),
            View::Threads { pid, selected: _ } => match self.process_after(pid) {
                Some(pid) => {
                    self.view = View::Threads { pid, selected: 0 };
                    Next::Redraw
                }
                None => self.show_functions(None),
            },
        }
    }

    /// The process that stands below `pid`, or the first below the last.
    fn process_after(&self, pid: Pid) -> Option<Pid> {
        let rows = self.processes();
        let next = rows.iter().position(|row| *row == pid).map_or(0, |row| row + 1);
        rows.get(next).or(rows.first()).copied()
    }

    /// Lists the functions of one process, or of all.
    fn show_functions(&mut self, process: Option<Pid>) -> Next {
        self.process = process;
        self.selected = None;
        self.view = View::Functions;
        Next::Redraw
    }

    /// Lists the processes; the row of `pid` is marked.
    fn back_to_processes(&mut self, pid: Pid) -> Next {
        let selected = self.processes().iter().position(|row| *row == pid).unwrap_or(0);
        self.show_functions(None);
        self.view = View::Processes { selected };
        Next::Redraw
    }

    /// Shows more of the selected row.
    fn open(&mut self) -> Next {
        match self.view {
            View::Functions => self.open_stacks(),
            View::Processes { selected } => match self.processes().get(selected) {
                Some(&pid) => self.show_functions(Some(pid)),
                None => Next::Nothing,
            },
            View::Stacks { .. } | View::Threads { .. } => Next::Nothing,
        }
    }

    /// Lists the threads of the selected process, or of the one whose functions are listed.
    fn open_threads(&mut self) -> Next {
        let process = match self.view {
            View::Processes { selected } => self.processes().get(selected).copied(),
            View::Functions => self.process,
            View::Stacks { .. } | View::Threads { .. } => None,
        };
        let Some(pid) = process else { return Next::Nothing };
        self.view = View::Threads { pid, selected: 0 };
        Next::Redraw
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
mod tests;
