//! Measures what tracing one malloc+free pair costs.
//!
//! ```text
//!   for each round
//!     for each shape (call depth × frame pointers)
//!       for each of bare, empty programs, memtrace
//!         start pair_loop ─→ attach ─→ batches of pairs ─→ ns per pair ─→ pair_loop exits,
//!                                                                         memtrace with it
//! ```
//!
//! Rounds are interleaved, so that a machine that slows down slows all variants alike, and each
//! figure is the median of the batches of all rounds. *Empty programs* stand on the same probe points and return
//! at once: that is the kernel's own price, below which no tracer on uprobes can go.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{cargo, privilege::Privilege, setup, shell};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often memtrace attaches to each variant.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// malloc+free pairs in a batch.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(10..))]
    pairs: u64,
}

/// Calls between `main` and the loop.
const DEPTHS: [u32; 3] = [0, 20, 60];

/// Batches per attach: attaching and detaching take seconds, a batch a tenth of one.
const BATCHES: u32 = 5;

/// What memtrace prints to stderr once its probes are in place.
const ATTACHED: &str = "attached to";

/// How long memtrace may take to attach or, once its target is gone, to end.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FramePointers {
    Kept,
    Omitted,
}

impl FramePointers {
    fn flag(self) -> &'static str {
        match self {
            Self::Kept => "-fno-omit-frame-pointer",
            Self::Omitted => "-fomit-frame-pointer",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Omitted => "omitted",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Bare,
    EmptyPrograms,
    Memtrace,
}

/// One loop program at one depth, and what its rounds measured.
struct Shape {
    depth: u32,
    frame_pointers: FramePointers,
    program: PathBuf,
    bare_ns: Vec<f64>,
    empty_ns: Vec<f64>,
    memtrace_ns: Vec<f64>,
    /// Events that memtrace lost, in all rounds.
    lost_events: u64,
}

/// What a bench needs to run.
struct Stage {
    privilege: Privilege,
    memtrace: PathBuf,
    trace: PathBuf,
    pairs: u64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure_programs(setup::BUILD)?;
    let memtrace = cargo::build_memtrace(None)?;
    let privilege = Privilege::acquire();
    if let Privilege::Absent { reason } = privilege {
        bail!("attaching takes root: {reason}");
    }
    let dir = shell::root().join("target/bench");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let mut shapes = Vec::new();
    for frame_pointers in [FramePointers::Omitted, FramePointers::Kept] {
        let program = compile(&dir, frame_pointers)?;
        shapes.extend(DEPTHS.map(|depth| Shape {
            depth,
            frame_pointers,
            program: program.clone(),
            bare_ns: Vec::new(),
            empty_ns: Vec::new(),
            memtrace_ns: Vec::new(),
            lost_events: 0,
        }));
    }
    let stage =
        Stage { privilege, memtrace, trace: dir.join("bench.mtrace"), pairs: options.pairs };
    for round in 1..=options.rounds {
        eprintln!("bench: round {round} of {}", options.rounds);
        for shape in &mut shapes {
            stage.measure(shape)?;
        }
    }
    print!("{}", table(&shapes));
    println!(
        "medians of {} rounds of {BATCHES} batches of {} pairs; empty = empty programs on the same \
         probe points",
        options.rounds, options.pairs
    );
    Ok(ExitCode::SUCCESS)
}

/// Compiles the loop program.
fn compile(dir: &Path, frame_pointers: FramePointers) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/pair_loop.c");
    let program = dir.join(format!("pair_loop-{}", frame_pointers.name()));
    let mut cc = Command::new("cc");
    cc.args(["-O2", frame_pointers.flag(), "-o"]).arg(&program).arg(source);
    shell::run(&mut cc)?;
    Ok(program)
}

impl Stage {
    /// Measures all variants of one shape once.
    fn measure(&self, shape: &mut Shape) -> Result<()> {
        shape.bare_ns.extend(self.ns_per_pair(shape, Variant::Bare)?);
        shape.empty_ns.extend(self.ns_per_pair(shape, Variant::EmptyPrograms)?);
        shape.memtrace_ns.extend(self.ns_per_pair(shape, Variant::Memtrace)?);
        shape.lost_events += self.lost_events()?;
        Ok(())
    }

    fn ns_per_pair(&self, shape: &Shape, variant: Variant) -> Result<Vec<f64>> {
        let mut target = PairLoop::start(&shape.program, shape.depth)?;
        let tracer = match variant {
            Variant::Bare => None,
            Variant::EmptyPrograms => {
                Some(self.attach(target.child.id(), &["--probe-cost", "empty"])?)
            }
            Variant::Memtrace => Some(self.attach(target.child.id(), &[])?),
        };
        // The first pairs fault in the heap, the probes' pages and memtrace's tables.
        target.ns_per_pair(self.pairs / 10)?;
        let ns = (0..BATCHES).map(|_| target.ns_per_pair(self.pairs)).collect::<Result<_>>()?;
        target.finish()?;
        if let Some(tracer) = tracer {
            tracer.finish()?;
        }
        Ok(ns)
    }

    /// Starts memtrace on the process and waits until its probes are in place.
    fn attach(&self, pid: u32, arguments: &[&str]) -> Result<Tracer> {
        let mut command = self.privilege.command(&self.memtrace);
        command.arg("record").args(arguments).args(["-p", &pid.to_string(), "-o"]).arg(&self.trace);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start memtrace")?;
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Nobody listens once memtrace has ended; its pipe must be drained all the same.
                let _ = sender.send(line);
            }
        });
        let tracer = Tracer { child, lines };
        tracer.wait_for_line(ATTACHED)?;
        Ok(tracer)
    }

    /// What memtrace says it lost in the trace just written.
    fn lost_events(&self) -> Result<u64> {
        let mut command = self.privilege.command(&self.memtrace);
        let json = shell::ask(command.arg("report").arg(&self.trace).args(["--format", "json"]))?;
        let report: Value = serde_json::from_str(&json).context("memtrace's report")?;
        let capture = &report["capture"];
        capture["lost_events"].as_u64().context("memtrace's report has no capture.lost_events")
    }
}

/// memtrace, attached.
struct Tracer {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Tracer {
    /// Waits for a line with `text` on memtrace's stderr.
    fn wait_for_line(&self, text: &str) -> Result<()> {
        let mut seen = String::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).with_context(|| {
                format!("memtrace ended or stood still before it said `{text}`:\n{seen}")
            })?;
            if line.contains(text) {
                return Ok(());
            }
            let _ = writeln!(seen, "  {line}");
        }
    }

    /// Waits for memtrace to end after its target has.
    fn finish(mut self) -> Result<()> {
        let mut seen = String::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let _ = writeln!(seen, "  {line}");
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!("memtrace did not end after its target had:\n{seen}");
                }
            }
        }
        let status = self.child.wait().context("cannot wait for memtrace")?;
        ensure!(status.success(), "memtrace ended with {status}:\n{seen}");
        Ok(())
    }
}

/// The program being measured; killed when dropped.
struct PairLoop {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl PairLoop {
    fn start(program: &Path, depth: u32) -> Result<Self> {
        let mut child = Command::new(program)
            .arg(depth.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child, stdin, stdout })
    }

    /// Runs that many pairs and returns the nanoseconds that one took.
    fn ns_per_pair(&mut self, pairs: u64) -> Result<f64> {
        let stdin = self.stdin.as_mut().expect("stdin is open until the end");
        writeln!(stdin, "{pairs}").context("pair_loop does not listen")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("pair_loop does not answer")?;
        line.trim().parse().with_context(|| format!("pair_loop answered {line:?}"))
    }

    fn finish(mut self) -> Result<()> {
        self.stdin = None;
        let status = self.child.wait().context("cannot wait for pair_loop")?;
        ensure!(status.success(), "pair_loop ended with {status}");
        Ok(())
    }
}

impl Drop for PairLoop {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The results as a table.
fn table(shapes: &[Shape]) -> String {
    let mut text = String::from(
        "frame pointers  depth  bare ns  empty ns  memtrace ns  memtrace/bare  memtrace/empty  lost\n",
    );
    for Shape { depth, frame_pointers, program: _, bare_ns, empty_ns, memtrace_ns, lost_events } in
        shapes
    {
        let (bare, empty, memtrace) = (median(bare_ns), median(empty_ns), median(memtrace_ns));
        let _ = writeln!(
            text,
            "{:14}  {depth:5}  {bare:7.1}  {empty:8.0}  {memtrace:11.0}  {:12.1}x  {:13.2}x  {lost_events:4}",
            frame_pointers.name(),
            memtrace / bare,
            memtrace / empty,
        );
    }
    text
}

/// The middle value; the mean of the middle two if their number is even; NaN of nothing.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.as_slice() {
        [] => f64::NAN,
        sorted if sorted.len() % 2 == 1 => sorted[middle],
        sorted => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_ignores_order_and_outliers() {
        assert_eq!(median(&[9000.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn table_prints_medians_ratios_and_losses() {
        let shape = Shape {
            depth: 20,
            frame_pointers: FramePointers::Omitted,
            program: PathBuf::new(),
            bare_ns: vec![20.0, 10.0, 30.0],
            empty_ns: vec![2000.0],
            memtrace_ns: vec![2500.0],
            lost_events: 3,
        };

        let expected = "\
frame pointers  depth  bare ns  empty ns  memtrace ns  memtrace/bare  memtrace/empty  lost
omitted            20     20.0      2000         2500         125.0x           1.25x     3
";
        assert_eq!(table(&[shape]), expected);
    }
}
