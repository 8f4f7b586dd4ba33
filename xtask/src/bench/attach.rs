//! How long it takes to attach to a program with 100 MB of text, and how long it stands still.
//!
//! ```text
//!   generated assembler ─→ program ─┬→ attach without a table cache ─→ ms, longest stall
//!                                   └→ attach with one              ─→ ms, longest stall
//! ```
//!
//! The time is that from the start of memtrace to its line that all probes are in place; the first
//! event comes a little earlier. The program's file is in memory already, and no other tables than
//! the program's are in the cache. Both ways take turns.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{privilege::Privilege, shell};

/// Functions of the program. With the bytes and rules below: 107 MB of text, 2.4 million rows.
const FUNCTIONS: u32 = 340_000;

/// A function with the frame rules of a usual one; its size varies, so that tables do not repeat.
const FUNCTION_MACRO: &str = "\
.macro function name body
.type \\name, @function
\\name:
.cfi_startproc
push %rbp
.cfi_def_cfa_offset 16
.cfi_offset rbp, -16
push %rbx
.cfi_def_cfa_offset 24
.cfi_offset rbx, -24
sub $8, %rsp
.cfi_def_cfa_offset 32
.skip \\body, 0x90
add $8, %rsp
.cfi_def_cfa_offset 24
pop %rbx
.cfi_def_cfa_offset 16
pop %rbp
.cfi_def_cfa_offset 8
ret
.cfi_endproc
.size \\name, . - \\name
.endm
.section .note.GNU-stack, \"\", @progbits
.text
";

/// What memtrace prints to stderr once its probes are in place.
const ATTACHED: &str = "attached to";

/// What was measured, one value a round, in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Until the probes are in place, all tables compiled.
    pub(crate) cold_ms: Vec<f64>,
    /// The same, the program's table kept from an earlier session.
    pub(crate) warm_ms: Vec<f64>,
    /// The longest time that the program stood still during the attach, without the cache.
    pub(crate) cold_stall_ms: Vec<f64>,
    /// The same with the cache.
    pub(crate) warm_stall_ms: Vec<f64>,
    /// The same with nobody attaching.
    pub(crate) idle_stall_ms: Vec<f64>,
}

/// Builds the program below `dir` and measures `rounds` times.
pub(crate) fn measure(
    privilege: &Privilege,
    memtrace: &Path,
    dir: &Path,
    rounds: u32,
) -> Result<Figures> {
    let program = build(dir)?;
    let cache = dir.join("tables");
    let (off, on) = (Path::new("off"), cache.as_path());
    let attach = |cache: &Path| attach(privilege, memtrace, &program, dir, cache);
    // The first one fills the cache.
    attach(on)?;
    let mut figures = Figures::default();
    for round in 1..=rounds {
        eprintln!("bench: attaching, round {round} of {rounds}");
        let (cold, warm) = (attach(off)?, attach(on)?);
        figures.cold_ms.push(cold.attached_ms);
        figures.warm_ms.push(warm.attached_ms);
        figures.cold_stall_ms.push(cold.stall_ms);
        figures.warm_stall_ms.push(warm.stall_ms);
        figures.idle_stall_ms.extend([cold.idle_stall_ms, warm.idle_stall_ms]);
    }
    Ok(figures)
}

/// Generates, assembles and links the program: about 20 s.
fn build(dir: &Path) -> Result<PathBuf> {
    let source = dir.join("huge.s");
    write_assembler(&source).with_context(|| source.display().to_string())?;
    let main = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/attach_target.c");
    let program = dir.join("huge");
    shell::run(
        Command::new("cc").args(["-O2", "-pthread", "-o"]).arg(&program).args([&main, &source]),
    )?;
    fs::remove_file(&source).with_context(|| source.display().to_string())?;
    Ok(program)
}

fn write_assembler(path: &Path) -> std::io::Result<()> {
    let mut source = BufWriter::new(File::create(path)?);
    source.write_all(FUNCTION_MACRO.as_bytes())?;
    for number in 0..FUNCTIONS {
        writeln!(source, "function _ZN5bench8function{number}Ev {}", 200 + number % 200)?;
    }
    source.flush()
}

/// One attach.
struct Attach {
    attached_ms: f64,
    stall_ms: f64,
    idle_stall_ms: f64,
}

fn attach(
    privilege: &Privilege,
    memtrace: &Path,
    program: &Path,
    dir: &Path,
    cache: &Path,
) -> Result<Attach> {
    let mut target = Target::start(program)?;
    target.longest_stall_ms()?;
    std::thread::sleep(Duration::from_millis(300));
    let idle_stall_ms = target.longest_stall_ms()?;

    let start = Instant::now();
    let mut tracer = privilege
        .command(memtrace)
        .args(["record", "-p", &target.child.id().to_string(), "-o"])
        .arg(dir.join("attach.mtrace"))
        .arg("--table-cache")
        .arg(cache)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start memtrace")?;
    let mut stderr = BufReader::new(tracer.stderr.take().expect("stderr is piped"));
    let mut seen = String::new();
    while !seen.contains(ATTACHED) {
        if stderr.read_line(&mut seen).context("memtrace's stderr")? == 0 {
            bail!("memtrace ended before it had attached:\n{seen}");
        }
    }
    let attached_ms = start.elapsed().as_secs_f64() * 1e3;
    let stall_ms = target.longest_stall_ms()?;

    target.finish()?;
    for line in stderr.lines() {
        let _ = writeln!(seen, "{}", line.context("memtrace's stderr")?);
    }
    let status = tracer.wait().context("cannot wait for memtrace")?;
    ensure!(status.success(), "memtrace ended with {status}:\n{seen}");
    Ok(Attach { attached_ms, stall_ms, idle_stall_ms })
}

/// The program; killed when dropped.
struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Target {
    fn start(program: &Path) -> Result<Self> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Self { child, stdin, stdout })
    }

    /// The longest stall since the last question.
    fn longest_stall_ms(&mut self) -> Result<f64> {
        let stdin = self.stdin.as_mut().expect("stdin is open until the end");
        writeln!(stdin).context("the program does not listen")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("the program does not answer")?;
        let ns: f64 =
            line.trim().parse().with_context(|| format!("the program answered {line:?}"))?;
        Ok(ns / 1e6)
    }

    fn finish(&mut self) -> Result<()> {
        self.stdin = None;
        let status = self.child.wait().context("cannot wait for the program")?;
        ensure!(status.success(), "the program ended with {status}");
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
