//! Leaks are told from caches, pools and warm-ups, in real programs that are really traced.
//!
//! `programs/leak_corpus.c` holds the programs; the truth is in the names of their functions. The
//! programs are short, so what counts as warm-up is too. Hours are simulated in the pipeline's own
//! tests (`leak_corpus_is_told_apart`).

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result};
use memtrace_tests::privileged;
use memtrace_tests::program::{FramePointers, LEAK_CORPUS};
use memtrace_tests::recording::{memtrace, run, trace_path};
use memtrace_tests::report::{Report, frames};
use serde_json::Value;

/// Programs that run at a time: they sleep most of the time.
const AT_A_TIME: usize = 3;

/// What came of one program.
struct Outcome {
    name: String,
    accused: BTreeSet<String>,
    verdicts: Vec<String>,
}

#[test]
fn leaks_of_real_programs_are_told_from_healthy_growth() -> Result<()> {
    privileged!();
    let executable = LEAK_CORPUS.build(FramePointers::Omitted)?;
    let names = run(&mut Command::new(&executable))?.require_success("list the programs")?.stdout;
    let names: Vec<&str> = names.lines().collect();
    assert!(names.len() >= 30, "{names:?}");

    let waiting = Mutex::new(names.iter());
    let work = || -> Result<Vec<Outcome>> {
        let next = || waiting.lock().expect("no thread panics with it").next();
        std::iter::from_fn(next).map(|name| watch(&executable, name)).collect()
    };
    let outcomes = std::thread::scope(|scope| -> Result<Vec<Outcome>> {
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().expect("a failure is an error")?);
        }
        Ok(all)
    })?;

    let (mut hits, mut misses, mut alarms) = (0, 0, 0);
    for Outcome { name, accused, verdicts } in outcomes {
        let leaks = name.starts_with("leak_");
        let (right, wrong): (Vec<_>, Vec<_>) =
            accused.iter().partition(|function| leaks && **function == name);
        hits += right.len();
        misses += usize::from(leaks && right.is_empty());
        alarms += wrong.len();
        let mark = if wrong.is_empty() && leaks != right.is_empty() { "  " } else { "!!" };
        println!("{mark} {name:36} {}", verdicts.join(", "));
    }
    let precision = hits as f64 / (hits + alarms) as f64;
    let recall = hits as f64 / (hits + misses) as f64;
    println!("{} programs: precision {precision:.3}, recall {recall:.3}", names.len());
    assert!(precision >= 0.95 && recall >= 0.95, "precision {precision}, recall {recall}");
    Ok(())
}

/// The frame that leaks, or else the one that allocates (`strdup`).
fn responsible(report: &Value, leak: &Value) -> Result<String> {
    let frames = frames(report, leak)?;
    let mut names = frames.iter().map(|frame| frame.function.as_deref().unwrap_or("??"));
    let first = names.next().context("a leak has no frames")?;
    let leaks = |name: &&str| name.starts_with("leak_");
    Ok(std::iter::once(first).chain(names).find(leaks).unwrap_or(first).to_owned())
}

/// Traces one program to its end.
fn watch(executable: &Path, name: &str) -> Result<Outcome> {
    let trace = trace_path(&format!("leak_corpus-{name}"))?;
    let report = trace.with_extension("json");
    let mut command = memtrace()?;
    command.args(["record", "--leak-after", "1s", "-o"]).arg(&trace).arg("--report").arg(&report);
    command.arg("--").arg(executable).arg(name);
    run(&mut command)?.require_success(name)?;
    let text = std::fs::read_to_string(&report).context("read the report")?;
    let json = Report::parse(&text)?.json;
    let (mut accused, mut verdicts) = (BTreeSet::new(), Vec::new());
    for leak in json["leaks"].as_array().context("the report has `leaks`")? {
        let function = responsible(&json, leak)?;
        verdicts.push(format!("{function}: {}", leak["class"].as_str().unwrap_or("??")));
        if leak["is_leak"] == true {
            accused.insert(function);
        }
    }
    Ok(Outcome { name: name.to_owned(), accused, verdicts })
}
