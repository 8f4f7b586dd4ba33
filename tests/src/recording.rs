//! Runs memtrace, on programs that wait for it and on programs that it starts.
//!
//! A program with `--wait` says `ready`, does its work when told to, and says `done`:
//!
//! ```text
//!   program    ready ·········· works ··· done ············· ends
//!   memtrace         attached ·················· detaches
//!   test         start      go              SIGINT       go
//! ```
//!
//! Everything has a deadline, so that a hang is a failure that shows what was said so far.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::Report;

/// How long anything may take before the test gives up.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Part of the line that memtrace writes to stderr once it sees every call of its target.
pub const ATTACHED: &str = "attached";

/// What a finished memtrace said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Finished {
        Finished {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Finished {
    /// An error with everything that was said, unless the exit status is 0.
    pub fn require_success(self, what: &str) -> Result<Finished> {
        if !self.status.success() {
            bail!("{what}: {}\nstdout:\n{}\nstderr:\n{}", self.status, self.stdout, self.stderr);
        }
        Ok(self)
    }
}

/// A `memtrace` command, to which arguments are added.
pub fn memtrace() -> Result<Command> {
    Ok(Command::new(crate::memtrace_path()?))
}

/// Runs a command to its end, within [`DEADLINE`].
pub fn run(command: &mut Command) -> Result<Finished> {
    let what = format!("{command:?}");
    command.stdin(Stdio::null());
    Running::start(command)?.finish().with_context(|| what)
}

/// A command that runs; it is killed when this is dropped before it has ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    stdin: Option<ChildStdin>,
    stdout: Lines,
    stderr: Lines,
}

impl Running {
    /// Starts a command; its stdin is a pipe unless the command says otherwise.
    pub fn start(command: &mut Command) -> Result<Running> {
        let what = format!("{command:?}");
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.with_context(|| format!("start {what}"))?;
        Ok(Running {
            stdin: child.stdin.take(),
            stdout: Lines::of(child.stdout.take().context("stdout is a pipe")?),
            stderr: Lines::of(child.stderr.take().context("stderr is a pipe")?),
            child,
            what,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has written a line to stdout that contains `text`.
    pub fn wait_for_stdout(&mut self, text: &str) -> Result<()> {
        let found = self.stdout.wait_for(text);
        self.explain(found, "stdout", text)
    }

    /// Waits for the next line that it writes to stdout, and gives it.
    pub fn next_stdout_line(&mut self) -> Result<String> {
        let start = self.stdout.seen;
        self.wait_for_stdout("")?;
        Ok(self.stdout.text[start..self.stdout.seen].trim_end().to_owned())
    }

    /// Waits until it has written a line to stderr that contains `text`.
    pub fn wait_for_stderr(&mut self, text: &str) -> Result<()> {
        let found = self.stderr.wait_for(text);
        self.explain(found, "stderr", text)
    }

    fn explain(&mut self, found: Result<()>, stream: &str, text: &str) -> Result<()> {
        found.with_context(|| {
            self.stdout.drain();
            self.stderr.drain();
            format!(
                "{} did not write `{text}` to {stream}\nstdout:\n{}\nstderr:\n{}",
                self.what, self.stdout.text, self.stderr.text
            )
        })
    }

    /// Sends an empty line to its stdin.
    pub fn go_on(&mut self) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin is not a pipe")?;
        stdin.write_all(b"\n").with_context(|| format!("write to {}", self.what))
    }

    /// Sends it a signal, such as `INT`.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.kill(name, &self.pid().to_string())
    }

    /// Sends a signal to its process group, which it must lead.
    pub fn signal_group(&self, name: &str) -> Result<()> {
        self.kill(name, &format!("-{}", self.pid()))
    }

    fn kill(&self, name: &str, receiver: &str) -> Result<()> {
        let status = Command::new("kill")
            .args([&format!("-{name}"), "--", receiver])
            .status()
            .context("run kill")?;
        if !status.success() {
            bail!("kill -{name} of {}: {status}", self.what);
        }
        Ok(())
    }

    /// Whether it still runs, and is neither stopped nor a zombie.
    pub fn is_running(&self) -> Result<bool> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let (_, state) = stat.rsplit_once(") ").with_context(|| format!("parse {path}"))?;
        Ok(!state.starts_with(['T', 't', 'Z', 'X']))
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Finished> {
        drop(self.stdin.take());
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().context("wait for a child")? {
                break status;
            }
            if started.elapsed() > DEADLINE {
                self.stdout.drain();
                self.stderr.drain();
                bail!(
                    "{} does not end\nstdout:\n{}\nstderr:\n{}",
                    self.what,
                    self.stdout.text,
                    self.stderr.text
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        self.stdout.read_to_end()?;
        self.stderr.read_to_end()?;
        let stdout = std::mem::take(&mut self.stdout.text);
        let stderr = std::mem::take(&mut self.stderr.text);
        Ok(Finished { status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It fails if the command has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a stream, read by a thread so that the writer never blocks.
#[derive(Debug)]
struct Lines {
    receiver: Receiver<String>,
    text: String,
    seen: usize,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Lines {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
        Lines { receiver, text: String::new(), seen: 0 }
    }

    /// Waits for a line that contains `wanted`, behind the last one found.
    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        loop {
            while let Some(length) = self.text[self.seen..].find('\n') {
                let line = self.seen..self.seen + length;
                self.seen = line.end + 1;
                if self.text[line].contains(wanted) {
                    return Ok(());
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(line) => self.text.push_str(&line),
                Err(RecvTimeoutError::Timeout) => bail!("the deadline of {DEADLINE:?} is over"),
                Err(RecvTimeoutError::Disconnected) => bail!("it has closed the stream"),
            }
        }
    }

    fn drain(&mut self) {
        while let Ok(line) = self.receiver.try_recv() {
            self.text.push_str(&line);
        }
    }

    /// Reads to the end; a grandchild that keeps the stream open is given up after the deadline.
    fn read_to_end(&mut self) -> Result<()> {
        loop {
            match self.receiver.recv_timeout(DEADLINE) {
                Ok(line) => self.text.push_str(&line),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => bail!("somebody keeps the stream open"),
            }
        }
    }
}

/// A `memtrace record -p` that has attached.
#[derive(Debug)]
pub struct Recorder {
    running: Running,
}

impl Recorder {
    /// Starts it and waits until it is attached.
    pub fn attach(pid: u32, trace: &Path) -> Result<Recorder> {
        Recorder::attach_with(pid, trace, &[])
    }

    /// The same with further arguments.
    pub fn attach_with(pid: u32, trace: &Path, arguments: &[&str]) -> Result<Recorder> {
        let pid = pid.to_string();
        Recorder::select(&[&["-p", &pid], arguments].concat(), trace)
    }

    /// The same of the processes that the arguments name.
    pub fn select(arguments: &[&str], trace: &Path) -> Result<Recorder> {
        let mut command = memtrace()?;
        command.args(["record", "-o"]).arg(trace).args(arguments);
        let mut running = Running::start(command.stdin(Stdio::null()))?;
        running.wait_for_stderr(ATTACHED)?;
        Ok(Recorder { running })
    }

    /// Detaches with Ctrl-C and waits until the trace is written.
    pub fn detach(self) -> Result<Finished> {
        self.running.signal("INT")?;
        self.running.finish()?.require_success("memtrace record")
    }

    /// Waits until it ends by itself.
    pub fn finish(self) -> Result<Finished> {
        self.running.finish()?.require_success("memtrace record")
    }

    /// Sends it a signal, such as `STOP`.
    pub fn signal(&self, name: &str) -> Result<()> {
        self.running.signal(name)
    }

    /// Kills it in the middle of its work.
    pub fn kill(self) -> Result<()> {
        self.running.signal("KILL")?;
        self.running.finish()?;
        Ok(())
    }
}

/// A program that has said `ready` and waits.
pub fn start_waiting(program: &Path) -> Result<Running> {
    let mut running = Running::start(Command::new(program).arg("--wait").stdin(Stdio::piped()))?;
    running.wait_for_stdout("ready")?;
    Ok(running)
}

/// Records a command from its first instruction to its end.
pub fn record_launched(trace: &Path, command: &[&Path]) -> Result<Finished> {
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(trace).arg("--").args(command);
    run(&mut record)?.require_success("memtrace record")
}

/// Attaches to a waiting program, has it do its work, and detaches while it still holds memory.
pub fn record_attached(trace: &Path, program: &Path) -> Result<Finished> {
    record_attached_with(trace, program, &[])
}

/// The same with further arguments of memtrace's.
pub fn record_attached_with(trace: &Path, program: &Path, arguments: &[&str]) -> Result<Finished> {
    let mut target = start_waiting(program)?;
    let recorder = Recorder::attach_with(target.pid(), trace, arguments)?;
    target.go_on()?;
    target.wait_for_stdout("done")?;
    let finished = recorder.detach()?;
    if !target.is_running()? {
        bail!("the target does not run after the detach");
    }
    target.go_on()?;
    target.finish()?.require_success("the target, after the detach,")?;
    Ok(finished)
}

/// `memtrace report --format json` of a trace.
pub fn report(trace: &Path) -> Result<Report> {
    let finished = run(memtrace()?.arg("report").arg(trace).args(["--format", "json"]))?;
    Report::parse(&finished.require_success("memtrace report")?.stdout)
}

/// Path of a trace in a directory of its own.
pub fn trace_path(test: &str) -> Result<PathBuf> {
    Ok(crate::scratch_directory(test)?.join("trace.mtrace"))
}
