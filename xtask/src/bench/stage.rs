//! What every part of the bench works with: memtrace, the targets, and a place for their files.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::background::{self, Background, PATIENCE};
use crate::{cargo, privilege::Privilege, setup, shell};

/// What memtrace prints to stderr once its probes are in place.
const ATTACHED: &str = "attached to";

/// How the loops are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FramePointers {
    Kept,
    Omitted,
}

impl FramePointers {
    const ALL: [Self; 2] = [Self::Omitted, Self::Kept];

    fn flag(self) -> &'static str {
        match self {
            Self::Kept => "-fno-omit-frame-pointer",
            Self::Omitted => "-fomit-frame-pointer",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Omitted => "omitted",
        }
    }
}

/// Everything that is built before the first measurement.
pub(super) struct Stage {
    pub(super) privilege: Privilege,
    memtrace: PathBuf,
    /// Where traces, workloads and results lie.
    pub(super) dir: PathBuf,
    scratch: PathBuf,
}

/// What one trace holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Recorded {
    pub(super) events: u64,
    pub(super) lost_events: u64,
    pub(super) allocations: u64,
    pub(super) frees: u64,
    pub(super) truncated_allocations: u64,
    pub(super) trace_bytes: u64,
    /// The kernel half's counters that are not zero, by name.
    pub(super) counters: Vec<(String, u64)>,
}

impl Recorded {
    pub(super) fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(key, _)| key == name).map_or(0, |(_, value)| *value)
    }

    /// The allocations whose stack reaches the root, in percent.
    pub(super) fn complete_percent(&self) -> f64 {
        let complete = self.allocations - self.truncated_allocations.min(self.allocations);
        complete as f64 * 100.0 / self.allocations as f64
    }
}

impl Stage {
    /// Builds memtrace and the targets.
    pub(super) fn set_up() -> Result<Self> {
        setup::ensure_programs(setup::BENCH)?;
        let memtrace = cargo::build_memtrace(None)?;
        let privilege = Privilege::acquire();
        if let Privilege::Absent { reason } = &privilege {
            anyhow::bail!("attaching takes root: {reason}");
        }
        let dir = shell::root().join("target/bench");
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let scratch = env::temp_dir().join(format!("mtb-{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        let stage = Self { privilege, memtrace, dir, scratch };
        for frame_pointers in FramePointers::ALL {
            let mut compile = Command::new("c++");
            compile.args(["-O2", frame_pointers.flag(), "-o"]).arg(stage.loops(frame_pointers));
            shell::run(compile.arg(source("loops.cc")).arg("-lpthread"))?;
        }
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-static", "-o"]).arg(stage.stopwatch()).arg(source("stopwatch.c"));
        shell::run(&mut compile)?;
        Ok(stage)
    }

    /// A directory with a short path, for sockets and links; it is gone at the end.
    pub(super) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The loop program.
    pub(super) fn loops(&self, frame_pointers: FramePointers) -> PathBuf {
        self.dir.join(format!("loops-{}", frame_pointers.name()))
    }

    /// The program that times commands.
    pub(super) fn stopwatch(&self) -> PathBuf {
        self.dir.join("stopwatch")
    }

    /// Where memtrace's last trace lies.
    pub(super) fn trace(&self) -> PathBuf {
        self.dir.join("bench.mtrace")
    }

    /// `memtrace record` into [`Stage::trace`].
    pub(super) fn record(&self) -> Command {
        let mut command = self.privilege.command(&self.memtrace);
        command.args(["record", "-o"]).arg(self.trace());
        command
    }

    /// Starts memtrace on a process and waits until its probes are in place.
    pub(super) fn attach(&self, pid: u32, arguments: &[&str]) -> Result<Background> {
        let mut command = self.record();
        command.args(arguments).args(["-p", &pid.to_string()]);
        let mut tracer = Background::start("memtrace", &self.privilege, command)?;
        tracer.wait_for(ATTACHED, PATIENCE)?;
        Ok(tracer)
    }

    /// memtrace's own process, of a session that [`Stage::record`] or [`Stage::attach`] started.
    pub(super) fn daemon(session: &Background) -> Result<u32> {
        background::find_named(session.pid(), "memtrace").context("memtrace's process is not found")
    }

    /// What is in [`Stage::trace`].
    pub(super) fn recorded(&self) -> Result<Recorded> {
        let trace = self.trace();
        let trace_bytes = trace.metadata().with_context(|| trace.display().to_string())?.len();
        let mut command = self.privilege.command(&self.memtrace);
        let json = shell::ask(command.arg("report").arg(&trace).args(["--format", "json"]))?;
        let report: Value = serde_json::from_str(&json).context("memtrace's report")?;
        read_report(&report, trace_bytes)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What is left lies among temporary files.
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

pub(super) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench").join(name)
}

fn read_report(report: &Value, trace_bytes: u64) -> Result<Recorded> {
    let number = |pointer: &str| {
        let value = report.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("memtrace's report has no number {pointer}"))
    };
    let counters = report["counters"].as_object().context("memtrace's report has no counters")?;
    Ok(Recorded {
        events: number("/capture/events")?,
        lost_events: number("/capture/lost_events")?,
        allocations: number("/totals/allocations")?,
        frees: number("/totals/frees")?,
        truncated_allocations: number("/capture/truncated_allocations")?,
        trace_bytes,
        counters: counters
            .iter()
            .filter_map(|(name, value)| Some((name.clone(), value.as_u64()?)))
            .collect(),
    })
}

/// CPU time and time of one batch of a loop, for one operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    pub(super) cpu_ns: f64,
    pub(super) wall_ns: f64,
}

/// A running loop program.
pub(super) struct Loops {
    program: Background,
    threads: u64,
}

impl Loops {
    /// Starts it and waits until all its threads are there.
    pub(super) fn start(
        program: &Path,
        arguments: &[String; 3],
        preload: Option<&str>,
    ) -> Result<Self> {
        let threads = arguments[2].parse().context("the number of threads")?;
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(library) = preload {
            command.env("LD_PRELOAD", library);
        }
        Self::from_command(command, threads)
    }

    /// Starts a command that runs the loop program, such as a tracer that preloads itself.
    pub(super) fn from_command(command: Command, threads: u64) -> Result<Self> {
        let mut program = Background::start("loops", &Privilege::Root, command)?;
        program.wait_for("loops: ready", PATIENCE)?;
        Ok(Self { program, threads })
    }

    pub(super) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Its process, or that of the tool that runs it.
    pub(super) fn background(&self) -> &Background {
        &self.program
    }

    /// Runs a batch of that many operations in each thread.
    pub(super) fn run(&mut self, ops: u64, patience: Duration) -> Result<Cost> {
        self.program.tell(&ops.to_string())?;
        let line = self.program.wait_for("loops: ", patience)?;
        let (cpu_ns, wall_ns) =
            parse_pair(&line).with_context(|| format!("the loop program answered {line:?}"))?;
        let all = (ops * self.threads) as f64;
        Ok(Cost { cpu_ns: cpu_ns as f64 / all, wall_ns: wall_ns as f64 / all })
    }

    /// Ends it.
    pub(super) fn finish(self) -> Result<Vec<String>> {
        self.program.finish(PATIENCE)
    }
}

fn parse_pair(line: &str) -> Option<(u64, u64)> {
    let (first, second) = line.strip_prefix("loops: ")?.split_once(' ')?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn report_is_read_with_its_counters() {
        let report = json!({
            "capture": { "events": 10, "lost_events": 1, "truncated_allocations": 2 },
            "totals": { "allocations": 8, "frees": 2 },
            "counters": { "ring_waits": 3 },
        });

        let recorded = read_report(&report, 40).expect("complete");

        assert_eq!(recorded.counter("ring_waits"), 3);
        assert_eq!(recorded.counter("stack_walks"), 0);
        assert_eq!(recorded.complete_percent(), 75.0);
        assert_eq!((recorded.events, recorded.lost_events, recorded.trace_bytes), (10, 1, 40));
    }

    #[test]
    fn report_without_a_number_is_an_error() {
        let error = read_report(&json!({ "counters": {} }), 0).expect_err("incomplete");

        assert_eq!(error.to_string(), "memtrace's report has no number /capture/events");
    }
}
