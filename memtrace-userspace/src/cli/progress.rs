//! What a live session tells on stderr while it runs: a line for each process that it begins with, and
//! one that is drawn over and over.

use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};
use memtrace_userspace::live::allocators::survey::Verdict;
use memtrace_userspace::pipeline::Pipeline;
use memtrace_userspace::pipeline::snapshot::Glance;
use memtrace_userspace::record::Pid;
use memtrace_userspace::session::{
    self, Apply, Progress, RecordOptions, SessionError, SessionSummary, Started,
};
use memtrace_userspace::views::layout::cut;
use memtrace_userspace::views::printable::{printable, printable_str};
use memtrace_userspace::views::{quantity, summary};

use super::{tell, terminal};

/// Whether there is a line of progress; it is drawn on a terminal only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Shown,
    /// What is traced writes where the line would be.
    Hidden,
}

/// Runs a session, and tells of it before `on_progress` is called.
pub(crate) fn run(
    options: RecordOptions,
    line: Line,
    on_progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<SessionSummary, SessionError> {
    run_watched(options, Box::new(Pipeline::apply_all), line, on_progress)
}

/// The same, with somebody who sees what each record changes ([`session::run_watched`]).
pub(crate) fn run_watched(
    options: RecordOptions,
    apply: Apply,
    line: Line,
    mut on_progress: impl FnMut(Progress<'_>) -> ControlFlow<()>,
) -> Result<SessionSummary, SessionError> {
    let bar = match line {
        Line::Shown => ProgressBar::new_spinner(),
        Line::Hidden => ProgressBar::hidden(),
    };
    let style = ProgressStyle::with_template("{spinner} {msg}");
    let bar = bar.with_style(style.expect("the template is well-formed"));
    let ended = session::run_watched(options, apply, |progress| {
        match progress {
            Progress::Started(processes) => tell_started(processes),
            Progress::Glance(glance) => {
                bar.set_message(progress_line(glance, terminal::error_width()));
                bar.tick();
            }
            Progress::Snapshot(_) => {}
        }
        on_progress(progress)
    });
    bar.finish_and_clear();
    ended
}

/// Tells of each process that it is traced, and what of it is not seen.
fn tell_started(processes: &[Started]) {
    if processes.is_empty() {
        tell("nothing matches yet; waiting, Ctrl-C ends");
    }
    for process in processes {
        tell(&started_line(process));
        if let Started::Attached { verdict, .. } = process {
            warning(*verdict).iter().for_each(|line| tell(line));
        }
    }
}

/// `attached to 4242 (/usr/bin/server): 12 probes; Ctrl-C detaches`.
///
/// Scripts wait for this line: it comes before the first event.
fn started_line(started: &Started) -> String {
    match started {
        Started::Attached { pid: Pid(pid), exe, probes, stepped_probes, verdict: _ } => {
            let stepped = match stepped_probes {
                0 => String::new(),
                stepped => format!(", {stepped} of them single-stepped"),
            };
            let probes = quantity::counted(*probes, "probe");
            format!("attached to {pid} ({}): {probes}{stepped}; Ctrl-C detaches", printable(exe))
        }
        Started::Skipped { pid: _, reason } => format!("left out: {}", printable_str(reason)),
        Started::Launched { pid: Pid(pid), command } => {
            format!("tracing {} (pid {pid})", printable_str(&command.to_string_lossy()))
        }
    }
}

/// What is not seen, if it is not everything.
pub(crate) fn warning(verdict: Verdict) -> Option<String> {
    match verdict {
        Verdict::Traceable => None,
        Verdict::GoWithC | Verdict::Go | Verdict::NoAllocator => {
            Some(format!("warning: {verdict}"))
        }
    }
}

/// `server (pid 4242)  00:00:12  2.5M events, 0 lost  live 14.0 MiB`.
///
/// There is room behind it for the spinner and for the `^C` that a terminal echoes: a line that
/// wraps cannot be cleared.
fn progress_line(glance: &Glance, columns: usize) -> String {
    let line = format!(
        "{}  {}  {} events, {} lost  live {}",
        summary::glanced_target(glance),
        quantity::clock(summary::since_start(glance.now)),
        quantity::count(glance.events),
        quantity::count(glance.lost_events),
        quantity::bytes(glance.live_bytes),
    );
    cut(&line, columns.saturating_sub(5)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_about_the_attach_names_the_process_and_its_probes() {
        let attached = Started::Attached {
            pid: Pid(7),
            exe: b"/srv/a\x1bpp".to_vec(),
            probes: 12,
            stepped_probes: 1,
            verdict: Verdict::Traceable,
        };
        let launched = Started::Launched { pid: Pid(7), command: "make".into() };

        assert_eq!(
            started_line(&attached),
            "attached to 7 (/srv/a\\x1bpp): 12 probes, 1 of them single-stepped; Ctrl-C detaches"
        );
        assert_eq!(started_line(&launched), "tracing make (pid 7)");
    }
}
