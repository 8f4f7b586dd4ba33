//! Runs everything that says whether memtrace is right.
//!
//! ```text
//!   programs ─→ fmt, clippy ─→ kernel object ─→ unit, golden, CLI tests ─→ tests that attach
//!                              stale? build       cargo test                as root, one at a time,
//!                                                                           on memtrace as shipped,
//!                                                                           here and in vm_test
//! ```
//!
//! A step that fails does not stop the ones after it. Each check counts as one test, so the last
//! line, alone on stdout's end, tells the whole story: `N passed, N failed`. What this machine does
//! not allow is a printed skip on a laptop and a failure under `CI=true`.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    bench,
    cargo::{self, Executable, cargo},
    consumers, ebpf,
    privilege::Privilege,
    setup, shell,
    tally::Tally,
    vm_test::{self, Guest, Kernel, Qemu, Series},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the tests that attach to programs and need root.
    #[arg(long)]
    unprivileged: bool,
    /// Only the tests whose name contains FILTER; no formatting, lints or kernel build.
    #[arg(long, value_name = "FILTER")]
    only: Option<String>,
}

/// What may go on without a step that this machine cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// A laptop: say so and go on.
    Skips,
    /// Continuous integration: the skipped test is a failed one.
    Fails,
}

struct Session {
    tally: Tally,
    skipped: Vec<String>,
    lack: Lack,
}

/// What runs with root's rights, here and on other kernels.
struct Attaching {
    memtrace: PathBuf,
    tests: Vec<Executable>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut session = Session {
        tally: Tally::default(),
        skipped: Vec::new(),
        lack: if shell::is_ci() { Lack::Fails } else { Lack::Skips },
    };
    let filter = options.only.as_deref();

    session.needs("build programs", setup::ensure_programs(setup::BUILD));
    session.needs("test programs", setup::ensure_programs(setup::TESTS));
    session.needs("readers of exports", consumers::ensure());
    let object = if filter.is_none() {
        session.check_sources();
        session.kernel_object()
    } else {
        None
    };
    session.unprivileged_tests(filter, object.as_deref());
    if options.unprivileged {
        session.skipped.push("tests that attach: --unprivileged".to_owned());
    } else if let Some(attaching) = session.attaching(object.as_deref()) {
        if let Some(privilege) = session.privilege() {
            session.privileged_tests(&privilege, &attaching, filter);
        }
        if filter.is_none() {
            session.other_kernels(&attaching);
        }
    }
    Ok(session.conclude(filter))
}

impl Session {
    /// Counts a step as one test.
    fn check(&mut self, name: &str, step: impl FnOnce() -> Result<()>) {
        if self.prepare(name, step).is_some() {
            self.tally.pass();
        }
    }

    /// Takes a step that tests need; it counts only if it fails.
    fn prepare<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        eprintln!("\n== {name}");
        match step() {
            Ok(value) => Some(value),
            Err(error) => {
                eprintln!("error: {error:#}");
                self.tally.fail(name);
                None
            }
        }
    }

    /// Notes that the machine lacks something: a skip or a failure.
    fn needs<T>(&mut self, name: &str, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                let line = format!("{name}: {error:#}");
                match self.lack {
                    Lack::Skips => {
                        eprintln!("skipped: {line}");
                        self.skipped.push(line);
                    }
                    Lack::Fails => {
                        eprintln!("error: {line}");
                        self.tally.fail(name);
                    }
                }
                None
            }
        }
    }

    fn check_sources(&mut self) {
        self.needs("rustfmt and clippy", setup::ensure_components());
        self.check("formatting", || shell::run(cargo("fmt").args(["--all", "--check"])));
        self.check("formatting of memtrace-ebpf", || {
            let manifest = "--manifest-path=memtrace-ebpf/Cargo.toml";
            shell::run(cargo("fmt").args([manifest, "--check"]))
        });
        self.check("lints", || {
            shell::run(cargo("clippy").args([
                "--workspace",
                "--all-targets",
                "--",
                "--deny=warnings",
            ]))
        });
    }

    /// Checks the committed kernel object and returns one built from its sources just now.
    fn kernel_object(&mut self) -> Option<PathBuf> {
        self.check("freshness of the committed kernel object", || ebpf::check(&shell::root()));
        self.needs("BPF toolchain", setup::ensure_toolchain())?;
        let built =
            self.prepare("build of the kernel object", || ebpf::build(ebpf::Messages::Silent))?;
        Some(built.object)
    }

    /// Unit, golden and CLI tests of the workspace, and the documentation's examples.
    fn unprivileged_tests(&mut self, filter: Option<&str>, object: Option<&Path>) {
        const MEMTRACE: &[&str] = &["--workspace", "--exclude=memtrace-tests"];
        const HARNESS: &[&str] = &["--package=memtrace-tests", "--lib", "--bins"];
        for (name, packages) in
            [("unit, golden and CLI tests", MEMTRACE), ("tests of the test harness", HARNESS)]
        {
            let mut tests = cargo("test");
            // A test that differs from its golden file fails; only `xtask bless` writes one.
            tests.args(packages).arg("--no-fail-fast").env("INSTA_UPDATE", "no");
            cargo::embed(&mut tests, object);
            tests.arg("--").args(filter);
            self.count(name, &mut tests);
        }
    }

    /// Builds memtrace as it is shipped, and the tests that attach.
    fn attaching(&mut self, object: Option<&Path>) -> Option<Attaching> {
        let memtrace =
            self.prepare("release build of memtrace", || cargo::build_memtrace(object))?;
        let tests = self.prepare("build of the tests that attach", cargo::build_attaching_tests)?;
        Some(Attaching { memtrace, tests })
    }

    /// The right to attach, if this machine gives it.
    fn privilege(&mut self) -> Option<Privilege> {
        let privilege = match Privilege::acquire() {
            Privilege::Absent { reason } => Err(anyhow::anyhow!(reason)),
            privilege @ (Privilege::Root | Privilege::Sudo) => Ok(privilege),
        };
        self.needs("privileged tests", privilege)
    }

    /// The tests that attach, on this machine's kernel.
    fn privileged_tests(
        &mut self,
        privilege: &Privilege,
        attaching: &Attaching,
        filter: Option<&str>,
    ) {
        for test in &attaching.tests {
            let mut command = privileged(privilege, &attaching.memtrace, test, filter);
            self.count(&test.name, &mut command);
        }
        if filter.is_none() {
            self.check("the bench, one short round", bench::smoke);
        }
        if *privilege == Privilege::Sudo {
            self.needs("files that tests left as root", give_back_files(privilege));
        }
    }

    /// The tests that attach, on other kernels than this machine's.
    fn other_kernels(&mut self, attaching: &Attaching) {
        let Some(qemu) = self.needs("virtual machines", Qemu::get()) else { return };
        let guest = self.prepare("files of the virtual machines", || {
            Guest::pack(qemu, &attaching.memtrace, &attaching.tests, None)
        });
        let Some(guest) = guest else { return };
        let kernels: Vec<Kernel> = Series::ALL
            .iter()
            .filter_map(|series| self.needs(&format!("kernel {series}"), vm_test::fetch(*series)))
            .collect();
        for machine in guest.run(&kernels) {
            self.tally.add(machine.tally);
        }
    }

    /// Runs tests and counts them as they pass and fail.
    fn count(&mut self, name: &str, tests: &mut Command) {
        self.tally.count(name, |tally| shell::stream(tests, |line| tally.read(line)));
    }

    /// Prints what was skipped, what failed and the final line.
    fn conclude(mut self, filter: Option<&str>) -> ExitCode {
        if let Some(filter) = filter
            && self.tally.passed() + self.tally.failed() == 0
        {
            self.tally.fail(&format!("no test's name contains `{filter}`"));
        }
        eprintln!();
        for line in &self.skipped {
            eprintln!("skipped: {line}");
        }
        for name in self.tally.failures() {
            eprintln!("failed: {name}");
        }
        println!("{} passed, {} failed", self.tally.passed(), self.tally.failed());
        if self.tally.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// One test program of crate memtrace-tests, run as root, one test at a time.
fn privileged(
    privilege: &Privilege,
    memtrace: &Path,
    test: &Executable,
    filter: Option<&str>,
) -> Command {
    // `env`, because sudo drops the caller's variables. The tests compile programs with rustup's
    // rustc, so they need to find it as the caller does.
    let mut command = privilege.command("env");
    command.arg(assignment("MEMTRACE_BIN", memtrace.as_os_str()));
    for variable in ["PATH", "RUSTUP_TOOLCHAIN", "CI", "MEMTRACE_PROBE_LINKS"] {
        command.args(env::var_os(variable).map(|value| assignment(variable, &value)));
    }
    let rustup = env::var_os("RUSTUP_HOME")
        .or_else(|| env::home_dir().map(|home| home.join(".rustup").into_os_string()));
    command.args(rustup.map(|dir| assignment("RUSTUP_HOME", &dir)));
    command
        .arg(&test.path)
        .arg("--test-threads=1")
        .args(filter)
        .current_dir(shell::root().join("tests"));
    command
}

/// `NAME=value`, as `env` takes it.
fn assignment(name: &str, value: &OsStr) -> OsString {
    let mut assignment = OsString::from(name);
    assignment.push("=");
    assignment.push(value);
    assignment
}

/// Makes what tests wrote under `target` as root the caller's again.
fn give_back_files(privilege: &Privilege) -> Result<()> {
    let target = shell::root().join("target");
    let mut command = privilege.command("chown");
    command.args(["--recursive", "--reference"]).arg(&target);
    for name in ["test-programs", "test-scratch", "test-privilege.lock"] {
        command.arg(target.join(name));
    }
    shell::run(&mut command)
}
