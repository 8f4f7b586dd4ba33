//! Shows memtrace at work on a sample server.
//!
//! ```text
//!   sample-server  <──attach──  memtrace top  (live for some seconds)  ──writes──> demo.mtrace
//!                                                                           │
//!                     terminal <── memtrace report ──────────────────────── ┴──> report.json
//! ```
//!
//! The server dies with xtask, however xtask ends: `setpriv --pdeathsig` has the kernel see to it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cargo::{self, cargo},
    privilege::Privilege,
    setup, shell,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long to watch the server live.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Where the trace and the report go.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    output: PathBuf,
}

/// The server's cache is full after four seconds, so it need not be watched for long.
const WARM_UP: [&str; 2] = ["--leak-after", "10s"];

/// How long the server may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure_programs(setup::BUILD)?;
    let memtrace = cargo::build_memtrace(None)?;
    let server = cargo::one(
        cargo::build({
            let mut build = cargo("build");
            build.args(["--release", "--package=memtrace-tests", "--bin=sample-server"]);
            build
        })?,
        "sample-server",
    )?;
    let privilege = Privilege::acquire();
    if let Privilege::Absent { reason } = privilege {
        bail!("attaching takes root: {reason}");
    }
    let dir = shell::root().join(&options.output);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let (trace, report) = (dir.join("demo.mtrace"), dir.join("report.json"));

    let server = Server::start(&server)?;
    eprintln!("demo: the sample server runs as pid {}; attaching", server.child.id());
    shell::run(
        privilege
            .command(&memtrace)
            .args(["top", "-p", &server.child.id().to_string()])
            .args(["--duration", &format!("{}s", options.seconds), "-o"])
            .arg(&trace),
    )?;
    drop(server);

    shell::run(privilege.command(&memtrace).arg("report").args(WARM_UP).arg(&trace))?;
    let mut json = privilege.command(&memtrace);
    json.arg("report").args(WARM_UP).arg(&trace).args(["--format", "json"]);
    fs::write(&report, shell::ask(&mut json)? + "\n")
        .with_context(|| report.display().to_string())?;
    eprintln!("demo: the report as JSON: {}", report.display());
    eprintln!("demo: the trace, to analyse again: {}", trace.display());
    Ok(ExitCode::SUCCESS)
}

/// The sample server; stopped when dropped.
struct Server {
    child: Child,
}

impl Server {
    /// Starts the server and waits until it says that it is at work.
    fn start(program: &Path) -> Result<Self> {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            // A group of its own: Ctrl-C is for memtrace, which detaches and writes its file.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start setpriv (Debian package util-linux)")?;
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let server = Self { child };
        let (sender, first_line) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // Only the first line is waited for; the rest is read so that the pipe never fills.
                let _ = sender.send(line);
            }
        });
        let line = first_line
            .recv_timeout(PATIENCE)
            .context("the sample server ended or stood still before it was ready")?;
        eprintln!("sample-server: {line}");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what they are for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
