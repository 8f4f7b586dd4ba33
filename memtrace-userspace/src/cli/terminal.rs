//! What the output can show.

use std::io::{self, IsTerminal};

use memtrace_userspace::views::style::Style;
use memtrace_userspace::views::tui::Palette;
use ratatui::crossterm::terminal;

/// Width of text where there is no terminal to ask.
const DEFAULT_WIDTH: usize = 80;
/// Narrower than this, tables make no sense and lines are left to wrap.
const MIN_WIDTH: usize = 70;
/// Wider than this, a line is hard to follow.
const MAX_WIDTH: usize = 200;

/// Whether a stream is a terminal that shows colours, and the user has nothing against them.
pub(crate) fn colour(stream: &impl IsTerminal) -> bool {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !unwanted && !is_dumb()
}

/// The style of text on stdout.
pub(crate) fn style() -> Style {
    if colour(&io::stdout()) { Style::Ansi } else { Style::Plain }
}

/// The colours of a full screen on stdout.
pub(crate) fn palette() -> Palette {
    if colour(&io::stdout()) { Palette::Colour } else { Palette::Monochrome }
}

/// Whether stdout can show a full screen.
pub(crate) fn has_screen() -> bool {
    io::stdout().is_terminal() && !is_dumb()
}

/// How many cells a line on stdout has.
pub(crate) fn width() -> usize {
    if !io::stdout().is_terminal() {
        return DEFAULT_WIDTH;
    }
    let columns = terminal::size().map_or(DEFAULT_WIDTH, |(columns, _)| usize::from(columns));
    columns.clamp(MIN_WIDTH, MAX_WIDTH)
}

/// How many cells a line on stderr has, as far as the terminal tells.
pub(crate) fn error_width() -> usize {
    terminal::size().map_or(DEFAULT_WIDTH, |(columns, _)| usize::from(columns))
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}
