//! The live view on a terminal.
//!
//! In: ranked snapshots, keys. Out: the screen. [`App`] is the state and has no I/O; [`draw`]
//! paints it; [`run`] is the loop that owns the terminal and gives it back on every way out.
//!
//! ```text
//!   source ──Snapshot──> rank (its own thread: names may take seconds) ──Ranked──> run ──> screen
//!                                                                       keys ──────┘
//! ```

mod app;
mod draw;
mod processes;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEventKind};

pub use app::{App, Next, View};
pub use draw::{Palette, draw};

use crate::pipeline::snapshot::Snapshot;
use crate::record::{EndReason, Pid};
use crate::views::ranking::{ProcessRanking, Ranking, SortKey};

/// How long a key may wait to be seen.
const POLL: Duration = Duration::from_millis(50);

/// A snapshot with names, ready to be shown.
#[derive(Debug)]
pub struct Ranked {
    /// The state of the session.
    pub snapshot: Arc<Snapshot>,
    /// Its functions and stacks; the view sorts them anew.
    pub ranking: Ranking,
    /// The same of each process.
    pub processes: BTreeMap<Pid, ProcessRanking>,
}

impl Ranked {
    fn sort(&mut self, key: SortKey) {
        self.ranking.sort(key);
        self.processes.values_mut().for_each(|ranking| ranking.sort(key));
    }
}

/// What to do when no more snapshots come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// Keep showing the last one until the user leaves.
    Stay,
    /// Leave if the user or a time limit ended the session; stay if the target did.
    LeaveIfAsked,
}

/// Shows what arrives until the user leaves, or the source ends as `at_end` says.
///
/// Leaves at once if the source ends without a single snapshot: then there is an error to tell.
/// Returns the last snapshot that arrived.
pub fn run(
    updates: &Receiver<Ranked>,
    mut app: App,
    palette: Palette,
    at_end: AtEnd,
) -> io::Result<Option<Arc<Snapshot>>> {
    let mut terminal = ratatui::try_init()?;
    let outcome = event_loop(&mut terminal, updates, &mut app, palette, at_end);
    ratatui::try_restore()?;
    outcome.map(|()| app.newest().cloned())
}

fn event_loop(
    terminal: &mut ratatui::DefaultTerminal,
    updates: &Receiver<Ranked>,
    app: &mut App,
    palette: Palette,
    at_end: AtEnd,
) -> io::Result<()> {
    let mut stale = true;
    let mut ended = false;
    loop {
        match updates.try_recv() {
            Ok(ranked) => {
                app.update(ranked);
                stale = true;
            }
            Err(TryRecvError::Disconnected) if !ended => {
                ended = true;
                if leaves(app, at_end) {
                    return Ok(());
                }
                app.source_ended();
                stale = true;
            }
            Err(TryRecvError::Disconnected | TryRecvError::Empty) => {}
        }
        if stale {
            terminal.draw(|frame| draw(frame, app, palette))?;
            stale = false;
        }
        if event::poll(POLL)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => match app.key(key) {
                    Next::Leave => return Ok(()),
                    Next::Redraw => stale = true,
                    Next::Nothing => {}
                },
                Event::Resize(..) => stale = true,
                Event::Key(_)
                | Event::FocusGained
                | Event::FocusLost
                | Event::Mouse(_)
                | Event::Paste(_) => {}
            }
        }
    }
}

fn leaves(app: &App, at_end: AtEnd) -> bool {
    let Some(newest) = app.newest() else { return true };
    match at_end {
        AtEnd::Stay => false,
        AtEnd::LeaveIfAsked => match newest.end {
            Some(EndReason::DurationOver | EndReason::Interrupted) | None => true,
            Some(EndReason::TargetExited) => false,
        },
    }
}
