//! `memtrace diff` and `memtrace check` on trace files.

use memtrace_userspace::record::{Probe, ProbeCost};

use super::*;

/// The trace of a program whose allocator was found.
fn trace_with_a_probe(files: &Files, seconds: u64) -> PathBuf {
    let path = files.path("probed.mtrace");
    let mut records = records(seconds);
    records.insert(
        1,
        Record::Probe(Probe {
            symbol: "malloc".to_owned(),
            module: b"/no/such/libc".to_vec(),
            offset: FileOffset(0x10),
            cost: ProbeCost::Emulated,
        }),
    );
    let mut writer = Writer::new(File::create(&path).expect("space")).expect("space");
    records.iter().for_each(|record| writer.write(record).expect("space"));
    writer.finish().expect("space");
    path
}

fn json_report(files: &Files, trace: &Path, name: &str) -> PathBuf {
    let report = files.path(name);
    let arguments = ["report", utf8(trace), "--format", "json", "-o", utf8(&report)];
    assert_eq!(memtrace(&arguments).status.code(), Some(0));
    report
}

/// A trace of ten seconds, and one of twenty.
fn two_traces(files: &Files) -> (PathBuf, PathBuf) {
    let (old, new) = (files.path("old.mtrace"), files.path("new.mtrace"));
    fs::rename(files.trace(10), &old).expect("space");
    fs::rename(files.trace(20), &new).expect("space");
    (old, new)
}

#[test]
fn report_as_a_side_of_a_diff_is_as_good_as_its_trace() {
    let files = Files::new();
    let (old, new) = two_traces(&files);
    let (old_report, new_report) =
        (json_report(&files, &old, "old.json"), json_report(&files, &new, "new.json"));
    let folded = |old: &Path, new: &Path| {
        let output = memtrace(&["diff", utf8(old), utf8(new), "--format", "folded"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };

    let expected = "?? in server\\x1b[2J 900 1900\n";
    for (old, new) in [(&old, &new), (&old_report, &new), (&old, &new_report)] {
        assert_eq!(folded(old, new), expected);
    }
}

#[test]
fn diff_goes_to_stdout_and_finds_nothing_wrong() {
    let files = Files::new();
    let (old, new) = two_traces(&files);

    let output = memtrace(&["diff", utf8(&old), utf8(&new)]);

    let stdout = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert!(stdout.contains("  live              900 B    1.9 KiB"), "{stdout}");
    assert!(stdout.contains("?? in server\\x1b[2J\n"), "{stdout}");
    assert!(!stdout.contains('\x1b'), "{stdout}");
}

#[test]
fn rates_compare_sessions_of_different_length() {
    let files = Files::new();
    let (old, new) = two_traces(&files);

    let output = memtrace(&["diff", utf8(&old), utf8(&new), "--per-second", "--format", "folded"]);

    assert_eq!(text(&output.stdout), "?? in server\\x1b[2J 100 100\n");
    let live = memtrace(&["diff", utf8(&old), utf8(&new), "--per-second", "--sort", "live"]);
    assert_error(&live, "choose --sort allocated or --sort allocations");
}

#[test]
fn bad_sides_of_a_diff_are_one_line_each() {
    let files = Files::new();
    let (old, new) = two_traces(&files);
    let (broken, foreign) = (files.path("broken.json"), files.path("foreign.json"));
    fs::write(&broken, "{ \"format\": ").expect("space");
    fs::write(&foreign, "{ \"format\": \"lock file\", \"version\": 3 }").expect("space");
    let diff =
        |old: &Path, more: &[&str]| memtrace(&[&["diff", utf8(old), utf8(&new)], more].concat());

    let missing = diff(Path::new("/no/such/file"), &[]);
    assert_error(&missing, "cannot read /no/such/file; name a trace or a JSON report: ");
    assert_error(&diff(&broken, &[]), "not a JSON report");
    assert_error(&diff(&foreign, &[]), "found lock file version 3");
    assert_error(&diff(files.directory.path(), &[]), "is a directory");
    assert_error(&diff(&old, &["-o", utf8(&old)]), "the trace that is read");
    assert_error(&diff(&old, &["-o", utf8(&new)]), "the trace that is read");
}

#[test]
fn check_of_a_trace_ends_as_its_limits_say() {
    let files = Files::new();
    let trace = trace_with_a_probe(&files, 10);
    let check = |most: &str| memtrace(&["check", utf8(&trace), "--max-live", most]);

    let (kept, exceeded) = (check("900"), check("899"));

    assert_eq!((kept.status.code(), text(&kept.stderr)), (Some(0), String::new()));
    assert!(text(&kept.stdout).ends_with("\n1 check: 1 passed\n"), "{}", text(&kept.stdout));
    assert_eq!((exceeded.status.code(), text(&exceeded.stderr)), (Some(1), String::new()));
    assert!(text(&exceeded.stdout).contains("  FAIL         900 B      899 B       -1 B  live"));
}

#[test]
fn trace_without_an_allocator_proves_nothing() {
    let files = Files::new();

    let output = memtrace(&["check", utf8(&files.trace(10)), "--max-live", "1G"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("no allocator was found to probe"));
}

#[test]
fn trace_that_stops_early_proves_nothing_unless_that_is_allowed() {
    let files = Files::new();
    let trace = files.trace(100);
    let bytes = fs::read(&trace).expect("the trace");
    fs::write(&trace, &bytes[..bytes.len() / 2]).expect("space");

    let output = memtrace(&["check", utf8(&trace), "--max-live", "1G", "--format", "json"]);

    assert_eq!(output.status.code(), Some(1));
    let check: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(check["checks"][0]["verdict"], "unknown");
    assert_eq!(check["losses"][0], "the trace file stops early");
}

#[test]
fn result_and_junit_go_to_their_files() {
    let files = Files::new();
    let trace = files.trace(3);
    let (result, junit) = (files.path("result.txt"), files.path("junit.xml"));
    let arguments = ["check", utf8(&trace), "--max-live", "1"];
    let more = ["--result", utf8(&result), "--junit", utf8(&junit)];

    let output = memtrace(&[&arguments[..], &more].concat());

    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    assert!(fs::read_to_string(&result).expect("a result").contains("1 failed"));
    assert!(fs::read_to_string(&junit).expect("a report").contains("failures=\"1\""));
    assert_eq!(files.names(), ["junit.xml", "result.txt", "t.mtrace"]);
}

#[test]
fn limits_that_make_no_sense_are_one_line_each() {
    let files = Files::new();
    let trace = files.trace(3);
    let budget = files.path("mem.toml");
    fs::write(&budget, "[total]\npeak = \"1 banana\"\n").expect("space");
    let check = |more: &[&str]| memtrace(&[&["check", utf8(&trace)], more].concat());

    assert_error(&check(&[]), "there is nothing to check");
    assert_error(&check(&["--max-peak", "much"]), "--max-peak: expected a number with a unit");
    assert_error(&check(&["--max-peak", "+5%"]), "give a --baseline");
    assert_error(&check(&["--baseline", utf8(&trace), "--tolerance", "5"]), "--tolerance");
    assert_error(&check(&["--budget", utf8(&budget)]), "mem.toml:2: peak: unknown unit `banana`");
    assert_error(
        &check(&["--budget", "/no/such/budget"]),
        "cannot read /no/such/budget; check --budget: ",
    );
    let no_target = memtrace(&["check", "--max-peak", "1G"]);
    assert_eq!((no_target.status.code(), text(&no_target.stdout)), (Some(2), String::new()));
}

#[test]
fn leaks_of_a_report_are_judged_as_those_of_its_trace_if_it_tells_of_all_that_count() {
    let files = Files::new();
    let trace = trace_with_a_probe(&files, 100);
    let plain = json_report(&files, &trace, "plain.json");
    let slow = files.path("slow.json");
    let arguments = ["report", utf8(&trace), "--leak-threshold", "healthy=100KB/h", "-o"];
    assert_eq!(memtrace(&[&arguments[..], &[utf8(&slow)]].concat()).status.code(), Some(0));
    let check = |path: &Path, most| {
        let output = memtrace(&["check", utf8(path), "--max-leaks", most]);
        (output.status.code(), text(&output.stdout))
    };
    let verdicts = |path: &Path| {
        ["100KB/h", "10MB/h"].map(|most| {
            let (status, stdout) = check(path, most);
            (status, stdout.contains("  FAIL"), stdout.contains("  pass"))
        })
    };

    let of_trace = verdicts(&trace);

    assert_eq!(of_trace, [(Some(1), true, false), (Some(0), false, true)]);
    assert_eq!(verdicts(&slow), of_trace);
    let (status, stdout) = check(&plain, "100KB/h");
    assert_eq!(status, Some(1));
    assert!(stdout.contains("--leak-threshold healthy=100000/h"), "{stdout}");
    assert_eq!(check(&plain, "10MB/h").0, Some(0));
    let other = ["check", utf8(&plain), "--max-leaks", "10MB/h", "--leak-after", "5s"];
    assert_error(&memtrace(&other), "was written with --leak-after 30.0 s");
}
