//! Runs the tests that attach on kernels other than this machine's.
//!
//! ```text
//!   apt ─→ .deb ─→ vmlinuz ───────────────────────────────┐
//!   memtrace, tests, test programs, libraries ─→ initramfs ┴→ qemu ─→ first serial line: console.log
//!                                                              └────→ second: the tests' output
//! ```
//!
//! A machine has the files it needs under the paths that they have here, so that neither memtrace
//! nor a test sees a difference. It has no disk, no network and no compiler: programs are built
//! beforehand. Nothing of it is installed here, not even qemu, and it needs no root.
//!
//! Where the processor offers no virtualization the machine is emulated, some ten times slower:
//! [`SELECTION`] is the tests that a kernel can make fail, not all of them.

mod initramfs;
mod kernel;
mod machine;
mod packages;
mod qemu;

use std::{
    fs,
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cargo::{self, Executable, cargo},
    setup, shell,
    tally::Tally,
};
use initramfs::Initramfs;
pub(crate) use kernel::{Kernel, Series, fetch};
pub(crate) use qemu::Qemu;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this kernel.
    #[arg(long)]
    kernel: Option<Series>,
    /// Only the tests whose name contains FILTER, of all tests that attach.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
}

/// Which tests run unless the user says otherwise: a test program, and words that a name contains.
///
/// They cover attaching and launching, every way to allocate, stacks without frame pointers, fork,
/// exec, code that comes and goes, system calls, and that the target survives all of it.
const SELECTION: &[(&str, &[&str])] = &[
    (
        "programs",
        &[
            "leak::",
            "realloc_chain::",
            "left_realloc::",
            "aligned::",
            "recursion::",
            "signal_handler::",
            "signal_in_",
            "longjmp::",
            "cxx_exception::",
            "fork_both::",
            "exec_again::",
            "mappings::",
            "reserved::",
            "dlopen_plugins::",
            "dlopen_churn::",
            "thread_churn::",
            "filtered::",
        ],
    ),
    ("links", &["vfork", "outlive"]),
    ("leaks", &["lost_blocks_are_found", "allocates_meanwhile"]),
    ("allocators", &["exception_out", "user_names"]),
    ("lifecycle", &[]),
];

/// Left out of [`SELECTION`]: stacks through frame pointers are the easier half.
const SKIPPED: &str = "with_frame_pointers";

/// Programs that tests run, besides memtrace and the test programs.
const TOOLS: &[&str] = &[
    "/bin/sh",
    "/bin/cat",
    "/bin/kill",
    "/bin/mount",
    "/bin/sleep",
    "/bin/true",
    "/bin/umount",
    "/usr/bin/setpriv",
    "/usr/bin/strip",
];

/// musl's loader and library in one; `ldd` cannot tell what musl programs need.
const MUSL_LOADER: &str = "/lib/ld-musl-x86_64.so.1";

/// The line behind which the machine has no more tests to run.
const END: &str = "vm-test: all tests have run";

/// How much of a failed machine's console is shown: an oops and its call trace.
const CONSOLE_LINES: usize = 60;

/// What a machine runs: built once, booted with every kernel.
pub(crate) struct Guest {
    qemu: Qemu,
    initramfs: PathBuf,
}

impl Guest {
    /// Packs memtrace, the tests and everything they need.
    pub(crate) fn pack(
        qemu: Qemu,
        memtrace: &Path,
        tests: &[Executable],
        filter: Option<&str>,
    ) -> Result<Self> {
        let root = shell::root();
        let programs = shell::ask(cargo("run").args([
            "--quiet",
            "--package=memtrace-tests",
            "--bin=build-programs",
        ]))
        .context("cannot build the test programs")?;
        let programs: Vec<&Path> = programs.lines().map(Path::new).collect();

        let mut initramfs = Initramfs::default();
        let executables = [memtrace, Path::new("/bin/busybox")]
            .into_iter()
            .chain(TOOLS.iter().map(Path::new))
            .chain(tests.iter().map(|test| test.path.as_path()))
            .chain(programs.iter().copied());
        for executable in executables {
            initramfs.add_executable(executable)?;
        }
        for program in &programs {
            initramfs.add(&with_suffix(program, ".command"))?;
        }
        initramfs.add(&root.join("target/CACHEDIR.TAG"))?;
        initramfs.add(&root.join("tests/programs"))?;
        if Path::new(MUSL_LOADER).exists() {
            initramfs.add(Path::new(MUSL_LOADER))?;
        }
        initramfs.add_script("/init", include_str!("vm_test/init.sh"));
        initramfs.add_script("/tests", &script(memtrace, tests, filter));

        let path = root.join("target/vm/initramfs.cpio");
        initramfs.write(&path)?;
        Ok(Self { qemu, initramfs: path })
    }

    /// Boots all kernels and counts their tests.
    ///
    /// Side by side: an emulated machine keeps one processor busy, however many it has itself.
    pub(crate) fn run<'k>(&self, kernels: &'k [Kernel]) -> Vec<Ran<'k>> {
        let boot = |kernel: &'k Kernel| {
            let started = Instant::now();
            let mut tally = Tally::default();
            let name = format!("kernel {}", kernel.series);
            tally.count(&name, |tally| self.boot(kernel, tally));
            Ran { kernel, tally, time: started.elapsed() }
        };
        thread::scope(|scope| {
            let machines: Vec<_> =
                kernels.iter().map(|kernel| scope.spawn(move || boot(kernel))).collect();
            machines
                .into_iter()
                .map(|machine| machine.join().unwrap_or_else(|panic| resume_unwind(panic)))
                .collect()
        })
    }

    /// Boots a kernel and counts its tests as they pass and fail.
    fn boot(&self, kernel: &Kernel, tally: &mut Tally) -> Result<()> {
        let console = kernel.directory.join("console.log");
        let mut qemu = machine::command(&self.qemu, &kernel.image, &self.initramfs, &console)?;
        let mut ended = false;
        let prefix = format!("{}: ", kernel.series);
        let outcome = shell::stream_as(&prefix, &mut qemu, |line| {
            ended |= line == END;
            tally.read(line);
        });
        tally.end_of_output();
        if let Err(error) = outcome {
            bail!("{error:#}{}", last_words(&console));
        }
        if !ended {
            bail!("the machine went down before its tests had ended{}", last_words(&console));
        }
        if tally.passed() + tally.failed() == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}

/// What a kernel has run.
pub(crate) struct Ran<'k> {
    kernel: &'k Kernel,
    pub(crate) tally: Tally,
    time: Duration,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure_programs(setup::BUILD)?;
    setup::ensure_programs(setup::TESTS)?;
    let qemu = Qemu::get()?;
    let memtrace = cargo::build_memtrace(None)?;
    let tests = cargo::build_attaching_tests()?;
    let guest = Guest::pack(qemu, &memtrace, &tests, options.filter.as_deref())?;
    let wanted =
        Series::ALL.iter().copied().filter(|it| options.kernel.is_none_or(|only| only == *it));
    let mut total = Tally::default();
    let mut kernels = Vec::new();
    for series in wanted {
        match fetch(series) {
            Ok(kernel) => kernels.push(kernel),
            Err(error) => {
                eprintln!("error: kernel {series}: {error:#}");
                total.fail(&format!("kernel {series}"));
            }
        }
    }
    for Ran { kernel, tally, time } in guest.run(&kernels) {
        println!(
            "kernel {}: {} passed, {} failed in {:.0} s",
            kernel.series,
            tally.passed(),
            tally.failed(),
            time.as_secs_f64(),
        );
        total.add(tally);
    }
    for name in total.failures() {
        eprintln!("failed: {name}");
    }
    println!("{} passed, {} failed", total.passed(), total.failed());
    Ok(if total.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The end of what the kernel wrote to its console, to be put behind an error.
fn last_words(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    format!("; its console ({}) ends with:\n{}", console.display(), last.join("\n"))
}

/// The commands that the machine runs, as a shell script.
fn script(memtrace: &Path, tests: &[Executable], filter: Option<&str>) -> String {
    let mut script = format!(
        "#!/bin/busybox sh\nexport CI=true MEMTRACE_BIN={}\ncd {}\n",
        quoted(&memtrace.to_string_lossy()),
        quoted(&shell::root().join("tests").to_string_lossy()),
    );
    for test in tests {
        let words: Vec<&str> = match filter {
            Some(filter) => vec![filter],
            None => match SELECTION.iter().find(|(name, _)| *name == test.name) {
                Some((_, words)) => [words, ["--skip", SKIPPED].as_slice()].concat(),
                None => continue,
            },
        };
        script.push_str(&quoted(&test.path.to_string_lossy()));
        script.push_str(" --test-threads=1");
        for word in words {
            script.push(' ');
            script.push_str(&quoted(word));
        }
        script.push('\n');
    }
    script.push_str(&format!("echo {}\n", quoted(END)));
    script
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The path with something behind its file name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(name: &str) -> Executable {
        Executable {
            name: name.to_owned(),
            kind: "test".to_owned(),
            path: PathBuf::from(format!("/t/{name}-1")),
        }
    }

    fn commands(filter: Option<&str>) -> Vec<String> {
        let tests = [executable("lifecycle"), executable("unknown")];
        let script = script(Path::new("/t/it's/memtrace"), &tests, filter);
        script.lines().filter(|line| line.contains("--test-threads")).map(str::to_owned).collect()
    }

    #[test]
    fn selection_runs_in_the_programs_that_it_names() {
        assert_eq!(
            commands(None),
            ["'/t/lifecycle-1' --test-threads=1 '--skip' 'with_frame_pointers'"]
        );
    }

    #[test]
    fn filter_takes_the_place_of_the_selection_everywhere() {
        assert_eq!(
            commands(Some("fork")),
            ["'/t/lifecycle-1' --test-threads=1 'fork'", "'/t/unknown-1' --test-threads=1 'fork'"]
        );
    }

    #[test]
    fn script_survives_a_quote_in_a_path() {
        let script = script(Path::new("/t/it's/memtrace"), &[], None);

        assert!(script.contains(r"MEMTRACE_BIN='/t/it'\''s/memtrace'"), "{script}");
    }
}
