//! Language runtimes that make code at run time: names where they tell them, advice where not.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memtrace_tests::complete::{require_complete, require_path};
use memtrace_tests::program::{self, FramePointers};
use memtrace_tests::python;
use memtrace_tests::recording::{
    Recorder, Running, memtrace, record_launched, report, run, trace_path,
};
use memtrace_tests::{privileged, scratch_directory};

/// Compiles its methods at their first call, and leaves each its frame.
const COMPILED: [&str; 4] = [
    "-Xcomp",
    "-XX:CompileCommand=quiet",
    "-XX:CompileCommand=compileonly,Churn::*",
    "-XX:CompileCommand=dontinline,Churn::*",
];

/// Compiles `Churn.java`, and gives the directory of its class.
fn compile_java(test: &str) -> Result<PathBuf> {
    let classes = scratch_directory(test)?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/Churn.java");
    run(Command::new("javac").arg("-d").arg(&classes).arg(source))?.require_success("javac")?;
    Ok(classes)
}

/// The report as a user reads it, on one line.
fn text_report(trace: &Path) -> Result<String> {
    let text =
        run(memtrace()?.arg("report").arg(trace))?.require_success("memtrace report")?.stdout;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn require_words(text: &str, words: &[&str]) -> Result<()> {
    for words in words {
        ensure!(text.contains(words), "no `{words}` in\n{text}");
    }
    Ok(())
}

#[test]
fn java_is_complete_and_its_methods_have_names() -> Result<()> {
    privileged!();
    let classes = compile_java("java-classes")?;
    let trace = trace_path("java")?;
    let mut java = Command::new("java");
    java.args(COMPILED).arg("-XX:+PreserveFramePointer").arg("-cp").arg(classes);
    let mut java = Running::start(java.args(["Churn", "--wait"]).stdin(Stdio::piped()))?;
    java.wait_for_stdout("ready")?;

    let recorder = Recorder::attach(java.pid(), &trace)?;
    java.go_on()?;
    java.wait_for_stdout("done")?;
    let pid = java.pid().to_string();
    run(Command::new("jcmd").args([&pid, "Compiler.perfmap"]))?.require_success("jcmd")?;
    recorder.detach()?;
    java.go_on()?;
    java.finish()?.require_success("java")?;
    std::fs::remove_file(format!("/tmp/perf-{pid}.map")).context("java's perf map")?;

    let report = report(&trace)?;
    require_complete("java", &report)?;
    require_path(&report, "void Churn.compress(byte[])", "void Churn.handle(int, byte[])")?;
    require_path(&report, "void Churn.handle(int, byte[])", "void Churn.main(java.lang.String[])")?;
    ensure!(!text_report(&trace)?.contains("Java methods have no names"), "it has names");
    Ok(())
}

#[test]
fn java_without_a_map_is_told_what_to_switch_on() -> Result<()> {
    privileged!();
    let classes = compile_java("java-nameless-classes")?.to_string_lossy().into_owned();
    let trace = trace_path("java-nameless")?;

    let java = run(Command::new("which").arg("java"))?.require_success("which java")?.stdout;
    record_launched(
        &trace,
        &[Path::new(java.trim()), Path::new("-cp"), Path::new(&classes), Path::new("Churn")],
    )?;

    require_words(
        &text_report(&trace)?,
        &[
            "Java methods have no names",
            "-XX:+PreserveFramePointer",
            "jcmd PID Compiler.perfmap",
            "stacks go through code that was made at run time and has no name",
        ],
    )
}

#[test]
fn python_with_another_kind_of_names_is_told_which_to_switch_on() -> Result<()> {
    privileged!();
    let Some(python) = python::with_jit_dump() else {
        eprintln!("skipped: no Python 3.13 or later");
        return Ok(());
    };
    let trace = trace_path("python-perf-jit")?;
    let text = "def fill():\n    return [bytearray(5000 + i) for i in range(300)]\nfill()\n";

    let words = ["-X", "perf_jit", "-c", text].map(Path::new);
    record_launched(&trace, &[&[python.as_path()], &words[..]].concat())?;

    let report = report(&trace)?;
    let pid = report.number("/target/pid")?;
    std::fs::remove_file(format!("/tmp/jit-{pid}.dump")).context("python's dump of its code")?;
    require_complete("python -X perf_jit", &report)?;
    require_words(
        &text_report(&trace)?,
        &["Python functions have no names", "with -X perf (-X perf_jit writes a dump"],
    )
}

#[test]
fn report_says_what_is_seen_of_a_go_program() -> Result<()> {
    privileged!();
    for program in [program::GO_PROGRAM, program::CGO_PROGRAM] {
        let trace = trace_path(&format!("report-{}", program.name))?;

        record_launched(&trace, &[&program.build(FramePointers::Kept)?])?;

        require_words(
            &text_report(&trace)?,
            &["of Go's own heap only the mappings by which it grows are counted", "pprof"],
        )
        .context(program.name)?;
        ensure!(report(&trace)?.counter("go_programs") == 1, "{}", program.name);
    }
    let trace = trace_path("report-not-go")?;
    record_launched(&trace, &[&program::LEAK.build(FramePointers::Kept)?])?;
    ensure!(!text_report(&trace)?.contains("Go's own heap"), "it is written in C");
    Ok(())
}
