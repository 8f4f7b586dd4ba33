//! Where the snapshots of a command come from, and the arguments that say so.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use memtrace_userspace::live::allocators::Watch;
use memtrace_userspace::live::allocators::spec::ProbeSpec;
use memtrace_userspace::live::loader::Program;
use memtrace_userspace::live::probes::LinkKind;
use memtrace_userspace::live::process::{self, replaced};
use memtrace_userspace::live::tracer::{Children, NewCode};
use memtrace_userspace::operations::Finder;
use memtrace_userspace::pipeline::Limits;
use memtrace_userspace::pipeline::snapshot::Snapshot;
use memtrace_userspace::record::Pid;
use memtrace_userspace::session::{self, Progress, RecordOptions, Refused, Target};
use memtrace_userspace::symbols::{Debuginfod, Elsewhere, Options, Symbolizer};
use memtrace_userspace::views::frames::Names;
use memtrace_userspace::views::ranking::SortKey;

use super::replay::{Pace, replay};
use super::target::Resolved;
use super::{quantity, tell};

/// What to put first in lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// Bytes held now, or at the end
    Live,
    /// Bytes held at the moment of the global peak
    Peak,
    /// All bytes ever allocated
    Allocated,
    /// The number of allocations
    Allocations,
    /// The number of allocations that did not last (see --temporary-between)
    Temporary,
}

impl From<Sort> for SortKey {
    fn from(sort: Sort) -> SortKey {
        match sort {
            Sort::Live => SortKey::Live,
            Sort::Peak => SortKey::Peak,
            Sort::Allocated => SortKey::Allocated,
            Sort::Allocations => SortKey::Allocations,
            Sort::Temporary => SortKey::Temporary,
        }
    }
}

/// Where to find names.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SymbolArguments {
    /// Where copies of the target's files or their debug files are; may be given again. Of a trace,
    /// the debuginfod servers in DEBUGINFOD_URLS are asked as well, if it is set
    #[arg(long = "debug-dir", value_name = "DIR")]
    debug_dirs: Vec<PathBuf>,
}

impl SymbolArguments {
    /// Names from the files of this machine, the directories given and debuginfod's servers.
    pub(crate) fn names(&self) -> Names {
        Names::new(Symbolizer::new(self.places()))
    }

    /// Where these names come from.
    pub(crate) fn places(&self) -> Options {
        self.places_announced(tell)
    }

    /// The same; `announce` hears of what is fetched.
    pub(crate) fn places_announced(&self, announce: fn(&str)) -> Options {
        let debuginfod = Debuginfod::from_environment(announce).map(Arc::new);
        Options { debuginfod, ..self.options(&[]) }
    }

    /// Names for processes that run.
    pub(crate) fn names_of_running(&self, pids: &[Pid]) -> Names {
        Names::new(Symbolizer::new(self.places_of_running(pids)))
    }

    /// Where these names come from: from the files that they have, which may be others than this
    /// machine's or be gone, and without the network.
    pub(crate) fn places_of_running(&self, pids: &[Pid]) -> Options {
        let pids = pids.to_vec();
        let options = self.options(&pids);
        let elsewhere = Elsewhere::new(move |path| {
            pids.iter().filter_map(|pid| replaced::file_at(*pid, path)).collect()
        });
        Options { elsewhere, ..options }
    }

    fn options(&self, pids: &[Pid]) -> Options {
        let defaults = Options::default();
        let roots = process::foreign_roots(pids);
        let in_roots = roots.iter().map(|root| root.join("usr/lib/debug"));
        let debug_dirs = self.debug_dirs.iter().cloned().chain(in_roots).chain(defaults.debug_dirs);
        let debug_dirs = debug_dirs.collect();
        let search_dirs = self.debug_dirs.iter().chain(&roots).cloned().collect();
        Options { search_dirs, roots, debug_dirs, ..defaults }
    }
}

/// How to trace a running process.
#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// Stop after this time, such as 10s or 5m
    #[arg(long, value_name = "TIME", value_parser = quantity::positive_duration)]
    duration: Option<Duration>,
    /// Memory for events on their way from the kernel, 1M to 1G [default: 8M]
    #[arg(long, value_name = "SIZE", value_parser = ring_size)]
    ring_size: Option<u64>,
    /// The most memory for unwind tables, 1M to 4G; it is taken as it is needed [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = unwind_memory)]
    unwind_memory: Option<u64>,
    /// Where the unwind tables of large programs are kept for the next session, or `off`
    /// [env: MEMTRACE_TABLE_CACHE] [default: /var/cache/memtrace, or your own cache directory]
    #[arg(long, value_name = "DIR")]
    table_cache: Option<PathBuf>,
    /// How long the target may be made to wait for room there before an event is lost [default: 500ms]
    #[arg(long, value_name = "TIME", value_parser = quantity::duration)]
    back_pressure: Option<Duration>,
    /// Probe this function as well, an allocator of the program's own: such as
    /// 'alloc:pool_alloc(size=arg1)->ret' with 'free:pool_free(ptr=arg1)', 'realloc:…' or 'ignore:…';
    /// may be given again. docs/probes.md has the grammar
    #[arg(long = "probe", value_name = "SPEC")]
    probes: Vec<ProbeSpec>,
    /// Trace the children of the process as well; those of a command always are
    #[arg(long)]
    children: bool,
    /// Stop the process for a moment whenever it loads a library, so that even one that is unloaded
    /// at once has names; its parent may notice, and its system calls may end early
    #[arg(long)]
    stop_for_code: bool,
    /// Probe the returns of functions that give memory, and not places inside them at which they have
    /// the block: dearer by a third, for a comparison
    #[arg(long)]
    return_probes: bool,
    /// What the probes do: for measurements of what they cost
    #[arg(long, hide = true, value_enum, default_value_t = ProbeCost::Full)]
    probe_cost: ProbeCost,
    /// How the probes are attached: for tests of what the kernel at hand would not choose
    #[arg(long, hide = true, value_enum, env = "MEMTRACE_PROBE_LINKS", hide_env = true)]
    probe_links: Option<ProbeLinks>,
}

/// How much a hit of a probe costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProbeCost {
    /// All that tracing takes
    Full,
    /// The hit alone: nothing is traced
    Empty,
}

/// The kernel's interface for probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProbeLinks {
    /// One link for many (Linux 6.6)
    Multi,
    /// A perf event for each
    Perf,
}

impl TraceArguments {
    /// A session that attaches to running processes.
    pub(crate) fn attach(self, resolved: Resolved, output: Option<PathBuf>) -> RecordOptions {
        let Resolved { pids, selection, follow } = resolved;
        RecordOptions {
            refused: match selection {
                Some(_) => Refused::Skip,
                None => Refused::End,
            },
            follow: selection.filter(|_| follow),
            ..self.session(Target::Attach(pids), output)
        }
    }

    /// A session that traces `target` into `output`.
    pub(crate) fn session(self, target: Target, output: Option<PathBuf>) -> RecordOptions {
        let TraceArguments {
            duration,
            ring_size,
            unwind_memory,
            table_cache,
            back_pressure,
            probes,
            children,
            stop_for_code,
            return_probes,
            probe_cost,
            probe_links,
        } = self;
        let usual = RecordOptions::new(target);
        let table_cache = table_cache
            .or_else(|| std::env::var_os("MEMTRACE_TABLE_CACHE").map(PathBuf::from))
            .filter(|directory| !directory.as_os_str().is_empty());
        RecordOptions {
            output,
            duration,
            ring_bytes: ring_size.unwrap_or(usual.ring_bytes),
            back_pressure: back_pressure.unwrap_or(usual.back_pressure),
            unwind_bytes: unwind_memory.unwrap_or(usual.unwind_bytes),
            table_cache: match table_cache {
                Some(directory) if directory.as_os_str() == "off" => None,
                Some(directory) => Some(directory),
                None => usual.table_cache,
            },
            children: if children { Children::Follow } else { usual.children },
            new_code: if stop_for_code { NewCode::Stop } else { usual.new_code },
            program: match probe_cost {
                ProbeCost::Full => Program::Trace,
                ProbeCost::Empty => Program::Empty,
            },
            links: probe_links.map(|links| match links {
                ProbeLinks::Multi => LinkKind::Multi,
                ProbeLinks::Perf => LinkKind::Perf,
            }),
            probes,
            watch: if return_probes { Watch::Calls } else { usual.watch },
            ..usual
        }
    }
}

/// A size that the kernel can give a ring.
fn ring_size(text: &str) -> Result<u64, String> {
    match quantity::size(text).map_err(|error| error.to_string())? {
        bytes @ 0x10_0000..=0x4000_0000 => Ok(bytes),
        _ => Err("must be 1M to 1G".to_owned()),
    }
}

/// A size that the tables of unwind rows can have.
fn unwind_memory(text: &str) -> Result<u64, String> {
    match quantity::size(text).map_err(|error| error.to_string())? {
        bytes @ 0x10_0000..=0x1_0000_0000 => Ok(bytes),
        _ => Err("must be 1M to 4G".to_owned()),
    }
}

/// A source of snapshots.
#[derive(Debug)]
pub(crate) enum Source {
    /// A session that is about to start.
    Live(Box<RecordOptions>),
    /// A trace.
    File(PathBuf, Box<Limits>, Option<Finder>, Pace),
}

/// Runs a source to its end, or until the receiver is gone.
///
/// A live session never waits for a slow reader: it passes over snapshots instead. The last
/// snapshot is always delivered.
pub(crate) fn run(source: Source, snapshots: &SyncSender<Arc<Snapshot>>) -> Result<()> {
    let last = match source {
        Source::Live(options) => {
            let deliver = |progress: Progress<'_>| match progress {
                Progress::Started(_) | Progress::Glance(_) => ControlFlow::Continue(()),
                Progress::Snapshot(snapshot) => offer(snapshots, snapshot),
            };
            session::run(*options, deliver)?.snapshot
        }
        Source::File(path, limits, operations, pace @ Pace::WallTime(_)) => {
            replay(&path, &[], *limits, operations, pace, |snapshot| offer(snapshots, &snapshot))?
        }
        Source::File(path, limits, operations, pace @ (Pace::AtEnd | Pace::TraceTime(_))) => {
            let deliver = |snapshot| match snapshots.send(snapshot) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            replay(&path, &[], *limits, operations, pace, deliver)?
        }
    };
    // Without a receiver nobody wants it any more.
    let _ = snapshots.send(last);
    Ok(())
}

fn offer(snapshots: &SyncSender<Arc<Snapshot>>, snapshot: &Arc<Snapshot>) -> ControlFlow<()> {
    match snapshots.try_send(Arc::clone(snapshot)) {
        Ok(()) | Err(TrySendError::Full(_)) => ControlFlow::Continue(()),
        Err(TrySendError::Disconnected(_)) => ControlFlow::Break(()),
    }
}
