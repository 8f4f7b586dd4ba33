//! Names, files, lines and inlined functions from debug information that lies in other files, made
//! by the tools that distributions and build systems use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::debug_info::{
    self, call_paths, expected_paths, expected_paths_without_inlined, finish, strip,
};
use memtrace_tests::debuginfod::{Manners, Server};
use memtrace_tests::recording::{Finished, memtrace, record_attached, run};
use memtrace_tests::report::Report;
use memtrace_tests::{elf, privileged, scratch_directory};

/// The report of a trace, by a `memtrace report` that is changed by `configure`.
fn report(trace: &Path, configure: impl FnOnce(&mut Command)) -> Result<(Report, Finished)> {
    let mut command = memtrace()?;
    command.arg("report").arg(trace).args(["--format", "json"]);
    configure(&mut command);
    let finished = run(&mut command)?.require_success("memtrace report")?;
    Ok((Report::parse(&finished.stdout)?, finished))
}

/// Fails unless every number, name, file, line and inlined function is right.
fn is_complete(report: &Report) -> Result<()> {
    compare(&debug_info::table()?, report, Stacks::Complete)?;
    let (expected, found) = (expected_paths()?, call_paths(report));
    ensure!(found == expected, "expected {expected:#?}, found {found:#?}");
    Ok(())
}

/// Records a program with memory that it allocates from `main` on.
fn record(program: &Path) -> Result<PathBuf> {
    let trace = program.with_extension("mtrace");
    record_attached(&trace, program)?;
    Ok(trace)
}

#[test]
fn split_dwarf_names_everything_wherever_it_lies() -> Result<()> {
    privileged!();
    for (compiler, version, dwp) in [
        ("g++", "-gdwarf-4", "dwp"),
        ("g++", "-gdwarf-5", "llvm-dwp"),
        ("clang++", "-gdwarf-5", "llvm-dwp"),
    ] {
        let directory = scratch_directory(&format!("split{version}-{compiler}"))?;
        let program = debug_info::build(&directory, compiler, &["-gsplit-dwarf", version])?;
        let trace = record(&program)?;
        let is_complete_with = |directory: Option<&Path>| {
            let (report, _) = report(&trace, |command| {
                command.args(
                    directory
                        .map(|directory| ["--debug-dir".as_ref(), directory.as_os_str()])
                        .into_iter()
                        .flatten(),
                );
            })?;
            is_complete(&report).with_context(|| format!("{compiler} {version}"))
        };

        is_complete_with(None).context("beside the object files")?;

        let elsewhere = directory.join("elsewhere");
        fs::create_dir(&elsewhere)?;
        let package = elsewhere.join("two_units.dwp");
        let mut dwp = Command::new(dwp);
        dwp.current_dir(&directory).arg("-e").arg(&program).arg("-o").arg(&package);
        finish(&mut dwp)?;
        for unit in ["main.dwo", "other.dwo"] {
            fs::rename(directory.join(unit), elsewhere.join(unit))?;
        }
        is_complete_with(Some(&elsewhere)).context("a package in a search directory")?;

        fs::rename(&package, directory.join("two_units.dwp"))?;
        is_complete_with(None).context("a package beside the program")?;

        fs::remove_file(directory.join("two_units.dwp"))?;
        is_complete_with(Some(&elsewhere)).context("single files in a search directory")?;
    }
    Ok(())
}

#[test]
fn split_dwarf_of_another_build_is_not_believed() -> Result<()> {
    privileged!();
    let directory = scratch_directory("split-stale")?;
    let program = debug_info::build(&directory.join("old"), "g++", &["-gsplit-dwarf"])?;
    let trace = record(&program)?;
    let newer = ["-gsplit-dwarf", "-DNEWER", "-O1"];
    debug_info::build(&directory.join("new"), "g++", &newer)?;
    for unit in ["main.dwo", "other.dwo"] {
        fs::rename(directory.join("new").join(unit), directory.join("old").join(unit))?;
    }

    let (report, _) = report(&trace, |_| {})?;

    // The program itself has symbols and lines.
    let (expected, found) = (expected_paths_without_inlined()?, call_paths(&report));
    ensure!(found == expected, "expected {expected:#?}, found {found:#?}");
    ensure!(report.counter("symbol_split_files_missing") == 2, "{}", report.json["counters"]);
    Ok(())
}

/// Two programs that share debug information by `dwz -m`, and the file that they share.
struct Shared {
    program: PathBuf,
    debug: PathBuf,
    shared: PathBuf,
}

impl Shared {
    /// Debug information is as Debian's packages have it: apart from the program.
    fn build(directory: &Path, version: &str) -> Result<Shared> {
        let program = debug_info::build(&directory.join("first"), "g++", &[version])?;
        let second = debug_info::build(&directory.join("second"), "g++", &[version, "-DSECOND"])?;
        let shared = directory.join("shared.debug");
        let mut dwz = Command::new("dwz");
        dwz.arg("-m").arg(&shared).arg("-M").arg(&shared).arg(&program).arg(&second);
        finish(&mut dwz)?;
        let debug = strip(&program)?;
        Ok(Shared { program, debug, shared })
    }
}

#[test]
fn debug_information_that_dwz_shares_names_everything() -> Result<()> {
    privileged!();
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let directory = scratch_directory(&format!("dwz{version}"))?;
        let Shared { program, debug, shared } = Shared::build(&directory, version)?;
        let trace = record(&program)?;
        let id = elf::build_id(&program)?;
        let by_id = directory.join("debug/.build-id").join(&id[..2]);
        fs::create_dir_all(&by_id)?;
        fs::rename(&debug, by_id.join(format!("{}.debug", &id[2..])))?;
        let with_debug_dir = |command: &mut Command| {
            command.arg("--debug-dir").arg(directory.join("debug"));
        };

        let (complete, _) = report(&trace, with_debug_dir)?;
        is_complete(&complete).context(version)?;

        // Without what it shares, names that lie there are missing, and the report says so.
        fs::rename(&shared, directory.join("away"))?;
        let (without, _) = report(&trace, with_debug_dir)?;
        let (expected, found) = (without_inlined_names()?, call_paths(&without));
        ensure!(found == expected, "expected {expected:#?}, found {found:#?}");
        let missing = without.counter("symbol_alternate_files_missing");
        ensure!(missing == 1, "{version}: {}", without.json["counters"]);
    }
    Ok(())
}

/// The call paths of which nobody knows what the inlined functions are called.
fn without_inlined_names() -> Result<Vec<Vec<String>>> {
    let nameless = |frame: String| match frame.rsplit_once(") ") {
        Some((_, place)) if place.ends_with(" inlined") => format!("?? {place}"),
        Some(_) | None => frame,
    };
    let mut paths = expected_paths()?;
    for path in &mut paths {
        *path = std::mem::take(path).into_iter().map(nameless).collect();
    }
    Ok(paths)
}

/// A program without names, and a trace of it.
struct Stripped {
    program: PathBuf,
    debug: PathBuf,
    trace: PathBuf,
    /// `BUILD_ID/debuginfo`.
    name: String,
    cache: PathBuf,
}

impl Stripped {
    fn record(test: &str) -> Result<Stripped> {
        let directory = scratch_directory(test)?;
        let program = debug_info::build(&directory, "g++", &[])?;
        // Where nobody looks for it.
        let debug = directory.join("debug-of-it");
        fs::rename(strip(&program)?, &debug)?;
        let trace = record(&program)?;
        let name = format!("{}/debuginfo", elf::build_id(&program)?);
        Ok(Stripped { program, debug, trace, name, cache: directory.join("cache") })
    }

    /// The report, with the names that a server has.
    fn report(&self, server: &Server) -> Result<(Report, Finished)> {
        report(&self.trace, |command| ask(command, server, &self.cache))
    }
}

/// Has a memtrace ask a server, and wait for two seconds at most.
fn ask(command: &mut Command, server: &Server, cache: &Path) {
    command.env("DEBUGINFOD_URLS", &server.url).env("DEBUGINFOD_CACHE_PATH", cache);
    command.env("DEBUGINFOD_TIMEOUT", "2");
}

#[test]
fn names_of_a_stripped_program_come_from_a_server() -> Result<()> {
    privileged!();
    let stripped = Stripped::record("debuginfod")?;
    let server = Server::start(Manners::Gives, &[(stripped.name.clone(), &stripped.debug)])?;

    let (first, _) = stripped.report(&server)?;
    is_complete(&first)?;
    let path = format!("/buildid/{}", stripped.name);
    ensure!(server.asked().iter().filter(|asked| **asked == path).count() == 1);

    // From the cache now.
    let (second, _) = stripped.report(&server)?;
    is_complete(&second)?;
    ensure!(server.asked().is_empty(), "what was fetched is asked for again");
    Ok(())
}

#[test]
fn program_that_is_gone_comes_from_a_server_with_its_names() -> Result<()> {
    privileged!();
    let stripped = Stripped::record("debuginfod-executable")?;
    let away = stripped.program.with_extension("away");
    fs::rename(&stripped.program, &away)?;
    let executable = stripped.name.replace("debuginfo", "executable");
    let files = [(stripped.name.clone(), &*stripped.debug), (executable, &*away)];
    let server = Server::start(Manners::Gives, &files)?;

    let (report, _) = stripped.report(&server)?;

    is_complete(&report)
}

#[test]
fn what_dwz_shares_comes_from_a_server_too() -> Result<()> {
    privileged!();
    let directory = scratch_directory("debuginfod-dwz")?;
    let Shared { program, debug, shared } = Shared::build(&directory, "-gdwarf-5")?;
    let trace = record(&program)?;
    let name =
        |file: &Path| -> Result<String> { Ok(format!("{}/debuginfo", elf::build_id(file)?)) };
    let files = [(name(&program)?, &*debug), (name(&shared)?, &*shared)];
    let server = Server::start(Manners::Gives, &files)?;
    for file in [&debug, &shared] {
        fs::rename(file, file.with_extension("away"))?;
    }

    let (report, _) = report(&trace, |command| ask(command, &server, &directory.join("cache")))?;

    is_complete(&report)
}

/// What a report of a stripped program shows where no server has given anything.
fn is_nameless(report: &Report) -> Result<()> {
    ensure!(report.number("/totals/allocations")? == 18);
    ensure!(report.number("/totals/allocated_bytes")? == 3440);
    ensure!(call_paths(report).is_empty(), "{:#?}", call_paths(report));
    Ok(())
}

#[test]
fn server_without_the_file_is_asked_once() -> Result<()> {
    privileged!();
    let stripped = Stripped::record("debuginfod-404")?;
    let server = Server::start(Manners::Gives, &[])?;

    let (first, _) = stripped.report(&server)?;
    is_nameless(&first)?;
    ensure!(!server.asked().is_empty(), "the server was not asked");

    let (second, _) = stripped.report(&server)?;
    is_nameless(&second)?;
    let asked = server.asked();
    ensure!(asked.is_empty(), "what it does not have is asked for again: {asked:?}");
    Ok(())
}

#[test]
fn server_that_fails_is_left_out_with_a_word() -> Result<()> {
    privileged!();
    let stripped = Stripped::record("debuginfod-fails")?;
    let files = [(stripped.name.clone(), &*stripped.debug)];
    for manners in [Manners::Cuts, Manners::Hangs, Manners::Stalls] {
        let server = Server::start(manners, &files)?;
        let started = Instant::now();

        let (report, finished) = stripped.report(&server)?;

        is_nameless(&report).with_context(|| format!("{manners:?}"))?;
        let said = &finished.stderr;
        ensure!(said.contains("does not answer") && said.contains("left out"), "{said}");
        // Two seconds of waiting, once, and what a report takes on a busy machine.
        ensure!(started.elapsed() < Duration::from_secs(20), "{manners:?}: {said}");
        ensure!(!stripped.cache.join(&stripped.name).exists(), "{manners:?}: it is kept");
    }
    Ok(())
}

#[test]
fn file_of_another_build_from_a_server_is_not_believed() -> Result<()> {
    privileged!();
    let stripped = Stripped::record("debuginfod-other")?;
    let other = scratch_directory("debuginfod-other-build")?;
    let other = debug_info::build(&other, "g++", &["-O1"])?;
    let server = Server::start(Manners::Gives, &[(stripped.name.clone(), &other)])?;

    let (report, _) = stripped.report(&server)?;

    is_nameless(&report)?;
    let rejected = report.counter("symbol_debug_files_rejected");
    ensure!(rejected == 1, "{}", report.json["counters"]);
    Ok(())
}
