//! Real programs under memtrace and under the other tools.
//!
//! ```text
//!   round   sqlite3: bare, floor, memtrace   python3: bare, floor, memtrace   …   redis: …
//!   first round only: the other tools, on those programs that are compared
//! ```
//!
//! Commands run under the stopwatch, which tells the CPU time of the command alone: neither the
//! tool's start nor its end counts, nor what other programs on the machine take. The time on the
//! clock is kept beside it. A tool that needs more than [`PATIENCE`] for one run is cut off, and
//! the table says by how much it was slower at least.
//!
//! *Floor* is empty programs where memtrace has its own: what the kernel takes for the probes alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{
    background::{self, Background},
    peers::{self, Entry, Peer},
    programs_table,
    redis::{self, Redis},
    report::Section,
    stage::{Recorded, Stage},
    stats::median,
    workloads::{self, Compared, Scale, Workload},
};
use crate::privilege::Privilege;

/// How long one run may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a run of a program cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu_s: f64,
    pub(super) wall_s: f64,
}

/// A run under memtrace.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    pub(super) usage: Usage,
    /// CPU time of memtrace's own process.
    pub(super) daemon_s: f64,
    pub(super) recorded: Recorded,
}

/// A run under another tool.
#[derive(Clone, Debug)]
pub(super) struct PeerRun {
    pub(super) name: &'static str,
    pub(super) outcome: PeerOutcome,
}

#[derive(Clone, Debug)]
pub(super) enum PeerOutcome {
    Ran {
        usage: Usage,
        counted: Option<u64>,
    },
    /// It was cut off; the target had used this much CPU time by then.
    CutOff {
        cpu_s: f64,
    },
    Failed {
        reason: String,
    },
}

/// All that was measured on one program.
pub(super) struct Measured {
    pub(super) name: &'static str,
    /// How memtrace comes to it.
    pub(super) entry: Entry,
    pub(super) target: f64,
    pub(super) bare: Vec<Usage>,
    pub(super) floor: Vec<Usage>,
    pub(super) traced: Vec<Traced>,
    pub(super) peers: Vec<PeerRun>,
}

impl Measured {
    fn new(name: &'static str, entry: Entry, target: f64) -> Self {
        let (bare, floor, traced, peers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { name, entry, target, bare, floor, traced, peers }
    }

    /// The median of the rounds' slowdowns.
    pub(super) fn slowdown(&self, of: impl Fn(&Usage) -> f64) -> f64 {
        let rounds = self.traced.iter().zip(&self.bare);
        median(rounds.map(|(traced, bare)| of(&traced.usage) / of(bare)))
    }

    /// The median of the rounds' slowdowns by the probes alone, in CPU time.
    pub(super) fn floor(&self) -> f64 {
        let rounds = self.floor.iter().zip(&self.bare);
        median(rounds.map(|(floor, bare)| floor.cpu_s / bare.cpu_s))
    }

    /// The median CPU time of the bare runs.
    pub(super) fn bare_s(&self) -> f64 {
        median(self.bare.iter().map(|usage| usage.cpu_s))
    }
}

/// What is run.
enum Program {
    Command(Workload),
    Redis { requests: u32 },
}

pub(super) fn measure(
    stage: &Stage,
    title: &'static str,
    rounds: u32,
    scale: Scale,
    filter: &str,
) -> Result<Option<Section>> {
    let (workloads, mut notes) = workloads::prepare(&stage.dir, scale)?;
    let mut programs: Vec<(Program, Measured)> = workloads
        .into_iter()
        .map(|workload| {
            let measured = Measured::new(workload.name, Entry::Launches, workload.target);
            (Program::Command(workload), measured)
        })
        .collect();
    let requests = match scale {
        Scale::Full => 100_000,
        Scale::Smoke => 5_000,
    };
    if scale == Scale::Smoke {
        programs.truncate(1);
    }
    programs.push((
        Program::Redis { requests },
        Measured::new(redis::NAME, Entry::Injects, redis::TARGET),
    ));
    programs.retain(|(_, measured)| measured.name.contains(filter));
    if programs.is_empty() {
        return Ok(None);
    }
    let (tools, missing) = peers::find();
    notes.extend(missing);
    for number in 1..=rounds {
        for (program, measured) in &mut programs {
            eprintln!("bench: {title}: round {number} of {rounds}: {}", measured.name);
            let name = measured.name;
            let bare = bare(stage, program).with_context(|| name)?;
            measured.bare.push(bare);
            let (floor, _) =
                under_memtrace(stage, program, &["--probe-cost", "empty"]).with_context(|| name)?;
            measured.floor.push(floor);
            measured.traced.push(traced(stage, program).with_context(|| name)?);
            if number == 1 {
                measured.peers = under_peers(stage, program, name, &tools);
            }
        }
    }
    let measured: Vec<Measured> = programs.into_iter().map(|(_, measured)| measured).collect();
    Ok(Some(programs_table::section(title, &measured, notes)))
}

fn bare(stage: &Stage, program: &Program) -> Result<Usage> {
    match program {
        Program::Command(workload) => {
            let mut command = std::process::Command::new(stage.stopwatch());
            command.args(&workload.command);
            let mut watched = Watched::start(workload.name, &Privilege::Root, command)?;
            watched.go()?;
            let usage = watched.usage()?;
            watched.session.finish(PATIENCE)?;
            Ok(usage)
        }
        Program::Redis { requests } => {
            let server = Redis::start(stage)?;
            let usage = server.benchmark(*requests, PATIENCE)?;
            server.shut_down()?;
            Ok(usage)
        }
    }
}

fn traced(stage: &Stage, program: &Program) -> Result<Traced> {
    let (usage, daemon_s) = under_memtrace(stage, program, &[])?;
    Ok(Traced { usage, daemon_s, recorded: stage.recorded()? })
}

/// A run under memtrace with these options of `record`, and the CPU seconds of memtrace's process.
fn under_memtrace(stage: &Stage, program: &Program, options: &[&str]) -> Result<(Usage, f64)> {
    match program {
        Program::Command(workload) => {
            let mut command = stage.record();
            command.args(options).arg("--").arg(stage.stopwatch()).args(&workload.command);
            let mut watched = Watched::start("memtrace", &stage.privilege, command)?;
            let daemon = Stage::daemon(&watched.session)?;
            let before_ns = background::cpu_ns(daemon)?;
            watched.go()?;
            let usage = watched.usage()?;
            // It may have ended meanwhile; its threads' times with it.
            let daemon_s = background::settled_cpu_ns(daemon)
                .map_or(f64::NAN, |now_ns| now_ns.saturating_sub(before_ns) as f64 / 1e9);
            watched.session.finish(PATIENCE)?;
            Ok((usage, daemon_s))
        }
        Program::Redis { requests } => {
            let server = Redis::start(stage)?;
            let session = stage.attach(server.pid(), options)?;
            let daemon = Stage::daemon(&session)?;
            let before_ns = background::settled_cpu_ns(daemon)?;
            let usage = server.benchmark(*requests, PATIENCE)?;
            let daemon_ns = background::settled_cpu_ns(daemon)? - before_ns;
            server.shut_down()?;
            session.finish(PATIENCE)?;
            Ok((usage, daemon_ns as f64 / 1e9))
        }
    }
}

fn under_peers(stage: &Stage, program: &Program, name: &str, tools: &[Peer]) -> Vec<PeerRun> {
    let fits = |tool: &&Peer| match (program, tool.entry()) {
        (Program::Command(workload), Entry::Launches | Entry::Attaches) => {
            workload.compared == Compared::WithPeers
        }
        // What runs to its end in a second cannot be attached to at its start.
        (Program::Command(_), Entry::Injects) => false,
        (Program::Redis { .. }, Entry::Launches | Entry::Attaches | Entry::Injects) => true,
    };
    let run = |tool: &Peer| {
        eprintln!("bench: {name} under {}", tool.name);
        let outcome = under_peer(stage, program, tool).unwrap_or_else(|error| {
            let reason = one_line(&error);
            eprintln!("bench: {}: {reason}", tool.name);
            PeerOutcome::Failed { reason }
        });
        PeerRun { name: tool.name, outcome }
    };
    tools.iter().filter(fits).map(run).collect()
}

fn under_peer(stage: &Stage, program: &Program, tool: &Peer) -> Result<PeerOutcome> {
    match program {
        Program::Command(workload) => command_under_peer(stage, workload, tool),
        Program::Redis { requests } => redis_under_peer(stage, *requests, tool),
    }
}

fn command_under_peer(stage: &Stage, workload: &Workload, tool: &Peer) -> Result<PeerOutcome> {
    let stopwatch = stage.stopwatch();
    let launches = tool.entry() == Entry::Launches;
    let mut command = if launches {
        tool.launch(stage, &stopwatch)?
    } else {
        std::process::Command::new(&stopwatch)
    };
    command.args(&workload.command);
    let mut watched = Watched::start(tool.name, &Privilege::Root, command)?;
    let session = if launches {
        None
    } else {
        Some(tool.attach(stage, watched.pid, &peers::allocator(watched.pid)?)?)
    };
    watched.go()?;
    let Ok(usage) = watched.usage() else {
        let cpu_s = background::cpu_ns(watched.pid)? as f64 / 1e9;
        drop(watched);
        session.map(|session| tool.finish(session)).transpose()?;
        return Ok(PeerOutcome::CutOff { cpu_s });
    };
    let said = watched.session.finish(PATIENCE)?;
    let said = session.map(|session| tool.finish(session)).transpose()?.unwrap_or(said);
    Ok(PeerOutcome::Ran { usage, counted: tool.count(stage, &said)? })
}

fn redis_under_peer(stage: &Stage, requests: u32, tool: &Peer) -> Result<PeerOutcome> {
    let launches = tool.entry() == Entry::Launches;
    let server = if launches { Redis::start_under(stage, tool)? } else { Redis::start(stage)? };
    let pid = server.pid();
    let session =
        if launches { None } else { Some(tool.attach(stage, pid, &peers::allocator(pid)?)?) };
    let start = Instant::now();
    let usage = match server.benchmark(requests, PATIENCE) {
        Ok(usage) => usage,
        Err(_) if start.elapsed() >= PATIENCE => {
            let cpu_s = background::cpu_ns(pid)? as f64 / 1e9;
            drop(server);
            session.map(|session| tool.finish(session)).transpose()?;
            return Ok(PeerOutcome::CutOff { cpu_s });
        }
        Err(error) => return Err(error),
    };
    let said = server.shut_down()?;
    let said = session.map(|session| tool.finish(session)).transpose()?.unwrap_or(said);
    Ok(PeerOutcome::Ran { usage, counted: tool.count(stage, &said)? })
}

/// An error with what the tool said, for a table's notes.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").trim_end_matches('.').to_owned()
}

/// A command behind the stopwatch.
struct Watched {
    session: Background,
    /// The process that will be the command.
    pid: u32,
}

impl Watched {
    fn start(name: &str, privilege: &Privilege, command: std::process::Command) -> Result<Self> {
        let mut session = Background::start(name, privilege, command)?;
        let line = session.wait_for("stopwatch: pid ", PATIENCE)?;
        let pid = line.rsplit(' ').next().and_then(|word| word.parse().ok());
        Ok(Self { session, pid: pid.context("the stopwatch's line has no pid")? })
    }

    fn go(&mut self) -> Result<()> {
        self.session.tell("go")
    }

    fn usage(&mut self) -> Result<Usage> {
        let line = self.session.wait_for("stopwatch: done ", PATIENCE)?;
        parse_done(&line)
    }
}

/// The stopwatch's last line; an error if the command failed.
fn parse_done(line: &str) -> Result<Usage> {
    let words = line.trim_start_matches("stopwatch: done ").split(' ').map(str::parse::<i64>);
    let numbers: Vec<i64> =
        words.collect::<Result<_, _>>().with_context(|| format!("the stopwatch said {line:?}"))?;
    let &[status, cpu_us, wall_us, _rss_kib] = numbers.as_slice() else {
        anyhow::bail!("the stopwatch said {line:?}");
    };
    anyhow::ensure!(status == 0, "the command failed with wait status {status}");
    Ok(Usage { cpu_s: cpu_us as f64 / 1e6, wall_s: wall_us as f64 / 1e6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopwatch_line_is_read_and_a_failed_command_is_an_error() {
        let usage = parse_done("stopwatch: done 0 1500000 2000000 4096").expect("complete");

        assert_eq!(usage, Usage { cpu_s: 1.5, wall_s: 2.0 });
        assert!(parse_done("stopwatch: done 256 1 1 1").is_err());
        assert!(parse_done("stopwatch: done 0 1").is_err());
    }
}
