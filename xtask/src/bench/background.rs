//! A program that runs beside the bench: a tracer, a target, or a tracer that runs a target.
//!
//! Its stdout and stderr become one stream of lines, which is drained all the time so that it never
//! stands still on a full pipe. It and its process group are killed when the bench drops it.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{privilege::Privilege, shell};

/// How long a program may take to get ready or, once it has been told to, to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long between two looks at what sends no line.
const POLL: Duration = Duration::from_millis(20);

/// Below this share of a core a daemon is idle: it only looks whether there is work.
const IDLE_SHARE: f64 = 0.05;

/// A running program.
pub(super) struct Background {
    name: String,
    privilege: Privilege,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Background {
    /// Starts a program in a process group of its own.
    pub(super) fn start(name: &str, privilege: &Privilege, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdin = child.stdin.take();
        let (sender, lines) = mpsc::channel();
        drain(child.stdout.take().expect("stdout is piped"), sender.clone());
        drain(child.stderr.take().expect("stderr is piped"), sender);
        let (name, privilege) = (name.to_owned(), privilege.clone());
        Ok(Self { name, privilege, child, stdin, lines, seen: Vec::new() })
    }

    /// The process that was started; under sudo, sudo.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line that contains `text` and returns it.
    pub(super) fn wait_for(&mut self, text: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                let seen = self.seen.join("\n  ");
                let name = &self.name;
                bail!("{name} ended or stood still before it said `{text}`:\n  {seen}");
            };
            self.seen.push(line.clone());
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// Writes a line to its stdin.
    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin was closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} does not listen", self.name))
    }

    /// Waits until a tracer has placed its probes: until its perf events are there and stay as many
    /// for a while.
    ///
    /// Tools that do not say when they are ready leave no other trace.
    pub(super) fn wait_for_perf_events(&mut self, quiet: Duration) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (mut events, mut since) = (0, Instant::now());
        while Instant::now() < deadline {
            thread::sleep(POLL);
            if let Some(status) = self.child.try_wait().context("cannot wait for it")? {
                self.seen.extend(self.lines.iter());
                bail!("{} ended with {status}:\n  {}", self.name, self.seen.join("\n  "));
            }
            let now = perf_events(self.pid())?;
            if now != events {
                (events, since) = (now, Instant::now());
            } else if events > 0 && since.elapsed() >= quiet {
                return Ok(());
            }
        }
        bail!("{} placed no probes within {PATIENCE:?}", self.name)
    }

    /// Sends a signal, such as `INT`.
    pub(super) fn signal(&self, pid: u32, signal: &str) -> Result<()> {
        let mut kill = self.privilege.command("kill");
        shell::ask(kill.arg(format!("-{signal}")).arg(pid.to_string())).map(drop)
    }

    /// Closes its stdin, waits for its end and returns all that it said.
    pub(super) fn finish(mut self, patience: Duration) -> Result<Vec<String>> {
        self.stdin = None;
        let status = self.wait(patience)?;
        let seen = std::mem::take(&mut self.seen);
        let name = &self.name;
        ensure!(status.success(), "{name} ended with {status}:\n  {}", seen.join("\n  "));
        Ok(seen)
    }

    /// Interrupts it, waits for its end, however it ends, and returns all that it said.
    pub(super) fn stop(mut self, patience: Duration) -> Result<Vec<String>> {
        // It may have ended with its target already.
        let _ = self.signal(self.pid(), "INT");
        self.wait(patience)?;
        Ok(std::mem::take(&mut self.seen))
    }

    fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let seen = self.seen.join("\n  ");
                    bail!("{} did not end within {patience:?}:\n  {seen}", self.name);
                }
            }
        }
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let group = format!("-{}", self.pid());
        // It may have ended meanwhile.
        let _ = shell::ask(self.privilege.command("kill").args(["-KILL", "--", &group]));
        let _ = self.child.wait();
    }
}

fn drain(stream: impl Read + Send + 'static, sender: mpsc::Sender<String>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // Bytes, not strings: a tracer may print what is not UTF-8.
        while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes != 0) {
            // Nobody listens once the program was dropped; its pipe must be drained all the same.
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    });
}

/// The CPU time of a process: of all its threads, those that have ended too.
pub(super) fn cpu_ns(pid: u32) -> Result<u64> {
    let id = libc::pid_t::try_from(pid).context("a process id")?;
    let (mut clock, mut time) = (0, libc::timespec { tv_sec: 0, tv_nsec: 0 });
    // SAFETY: the C library writes into `clock`.
    let error = unsafe { libc::clock_getcpuclockid(id, &raw mut clock) };
    ensure!(error == 0, "process {pid}: {}", io::Error::from_raw_os_error(error));
    // SAFETY: the kernel writes into `time`.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    ensure!(result == 0, "process {pid}: {}", io::Error::last_os_error());
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// Waits until a daemon has caught up with its work, and returns its CPU time then.
pub(super) fn settled_cpu_ns(pid: u32) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let mut before_ns = cpu_ns(pid)?;
    let mut start = Instant::now();
    while Instant::now() < deadline {
        thread::sleep(POLL);
        let (now_ns, elapsed) = (cpu_ns(pid)?, start.elapsed());
        if ((now_ns - before_ns) as f64) < IDLE_SHARE * elapsed.as_nanos() as f64 {
            return Ok(now_ns);
        }
        (before_ns, start) = (now_ns, Instant::now());
    }
    bail!("process {pid} is still at work after {PATIENCE:?}")
}

fn perf_events(pid: u32) -> Result<usize> {
    let dir = format!("/proc/{pid}/fd");
    let links = fs::read_dir(&dir).with_context(|| format!("{dir}: the tracer has ended"))?;
    let is_event = |link: fs::DirEntry| {
        fs::read_link(link.path()).is_ok_and(|to| to.to_string_lossy().contains("[perf_event]"))
    };
    Ok(links.filter_map(Result::ok).map(is_event).filter(|is_event| *is_event).count())
}

/// The process of that name at or below `pid`: sudo runs what it was given as a child.
pub(super) fn find_named(pid: u32, name: &str) -> Option<u32> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if comm.trim_end() == name {
        return Some(pid);
    }
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .find_map(|child| find_named(child, name))
}
