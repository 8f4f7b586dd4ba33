//! The command as a user meets it: arguments in; stdout, stderr, exit status and files out.

#[path = "cli/comparison.rs"]
mod comparison;
#[path = "cli/timelines.rs"]
mod timelines;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use memtrace_userspace::record::{
    Alignment, EndReason, Image, Module, Origin, Pid, Process, Record, Session, Tid, Time,
    WireStackId,
};
use memtrace_userspace::trace::Writer;
use tempfile::TempDir;

const PID: Pid = Pid(4242);
const CODE: Avma = Avma(0x40_0000);

/// One block of 100 bytes for each second of the trace; the first is freed.
fn records(seconds: u64) -> Vec<Record> {
    let time = |seconds| Time(seconds * 1_000_000_000);
    let tid = Tid(4242);
    let stack = WireStackId(7);
    let block = |second: u64| Avma(0x1000 + second * 0x100);
    let mut records = vec![
        Record::Session(Session {
            tool_version: "0.1.0".to_owned(),
            kernel: "6.18.0".to_owned(),
            started_unix_s: 1_760_000_000,
            pid: PID,
            origin: Origin::Launched,
        }),
        Record::Process(Process {
            time: time(0),
            pid: PID,
            parent: None,
            exe: b"/no/such/server\x1b[2J".to_vec(),
            command: vec![b"server".to_vec()],
        }),
        Record::Module(Module {
            time: time(0),
            pid: PID,
            start: CODE,
            end: Avma(CODE.0 + 0x1000),
            offset: FileOffset(0),
            image: Image::File { path: b"/no/such/server\x1b[2J".to_vec(), build_id: vec![1; 20] },
        }),
        Record::Thread { time: time(0), pid: PID, tid, name: b"server".to_vec() },
        Record::Stack { id: stack, pid: PID, end: End::Root, frames: vec![Avma(CODE.0 + 0x10)] },
    ];
    for second in 0..seconds {
        let (time, ptr) = (time(second), block(second));
        records.push(Record::Alloc {
            time,
            tid,
            api: Api::Malloc,
            ptr,
            size: 100,
            alignment: Alignment::NONE,
            stack,
        });
    }
    records.push(Record::Free { time: time(seconds), tid, api: Api::Free, ptr: block(0) });
    records.push(Record::End { time: time(seconds), reason: EndReason::TargetExited });
    records
}

struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Files {
        Files { directory: tempfile::tempdir().expect("temp dir") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A trace in several blocks, so that it can be cut between them.
    fn trace(&self, seconds: u64) -> PathBuf {
        let path = self.path("t.mtrace");
        let mut writer = Writer::new(File::create(&path).expect("space")).expect("space");
        for (number, record) in records(seconds).iter().enumerate() {
            writer.write(record).expect("space");
            if number % 8 == 7 {
                writer.flush_block().expect("space");
            }
        }
        writer.finish().expect("space");
        path
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.directory.path())
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }
}

fn memtrace(arguments: &[&str]) -> Output {
    command(arguments).output().expect("memtrace runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memtrace"));
    command.args(arguments).env_remove("MEMTRACE_LOG").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Asserts exit status 2 and a single line on stderr that contains `expected`.
fn assert_error(output: &Output, expected: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("memtrace: error: "), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn text_report_goes_to_stdout() {
    let files = Files::new();

    let output = memtrace(&["report", utf8(&files.trace(10))]);

    let stdout = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    assert!(stdout.contains("  live       900 B in 9 blocks\n"), "{stdout}");
    assert!(stdout.contains("?? in server\\x1b[2J\n"), "{stdout}");
    assert!(!stdout.contains('\x1b'), "{stdout}");
}

#[test]
fn json_report_is_valid_and_deterministic() {
    let files = Files::new();
    let trace = files.trace(10);

    let first = memtrace(&["report", utf8(&trace), "--format", "json"]);
    let second = memtrace(&["report", utf8(&trace), "--format", "json"]);

    assert_eq!(first.status.code(), Some(0), "{}", text(&first.stderr));
    assert_eq!(text(&first.stdout), text(&second.stdout));
    let report = serde_json::from_slice(&first.stdout).expect("JSON");
    let schema = include_str!("../../docs/report.schema.json");
    let schema = serde_json::from_str(schema).expect("the schema is JSON");
    if let Err(error) = jsonschema::validate(&schema, &report) {
        panic!("{}: {error}", error.instance_path());
    }
    assert_eq!(report["totals"]["live_bytes"], 900);
    assert_eq!(report["capture"]["lost_events"], 0);
    assert_eq!(report["functions"][0]["self"]["allocations"], 10);
}

#[test]
fn report_in_a_file_leaves_nothing_else() {
    let files = Files::new();
    let trace = files.trace(3);
    let out = files.path("r.json");

    let output = memtrace(&["report", utf8(&trace), "--format", "json", "-o", utf8(&out)]);

    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(files.names(), ["r.json", "t.mtrace"]);
}

#[test]
fn truncated_trace_gives_what_it_has() {
    let files = Files::new();
    let trace = files.trace(100);
    let bytes = fs::read(&trace).expect("the trace");
    fs::write(&trace, &bytes[..bytes.len() / 2]).expect("space");

    let output = memtrace(&["report", utf8(&trace), "--format", "json"]);

    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let warning = format!("memtrace: warning: {}: the trace stops at byte ", trace.display());
    assert!(stderr.starts_with(&warning), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["counters"]["trace_truncated"], 1);
    assert_eq!(report["capture"]["end"], serde_json::Value::Null);
    assert_ne!(report["totals"]["allocations"], 0);
}

#[test]
fn damaged_trace_leaves_no_report() {
    let files = Files::new();
    let trace = files.trace(100);
    let mut bytes = fs::read(&trace).expect("the trace");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&trace, bytes).expect("space");
    let out = files.path("r.txt");

    let output = memtrace(&["report", utf8(&trace), "-o", utf8(&out)]);

    assert_error(&output, "damaged at byte");
    assert_eq!(files.names(), ["t.mtrace"]);
}

#[test]
fn bad_inputs_are_one_line_each() {
    let files = Files::new();
    fs::write(files.path("foreign"), "ELF or so, at any rate no trace").expect("space");
    fs::write(files.path("empty"), "").expect("space");

    assert_error(
        &memtrace(&["report", "/no/such/file"]),
        "cannot read /no/such/file; name a trace that `memtrace record -o FILE` wrote: ",
    );
    assert_error(&memtrace(&["report", utf8(&files.path("foreign"))]), "not a memtrace trace");
    assert_error(&memtrace(&["report", utf8(&files.path("empty"))]), "ends after 0 bytes");
    assert_error(&memtrace(&["report", "/"]), "is a directory");
    assert_error(
        &memtrace(&["top", "/no/such/file"]),
        "cannot read /no/such/file; name a trace that `memtrace record -o FILE` wrote: ",
    );
}

#[test]
fn unwritable_output_is_an_error() {
    let files = Files::new();
    let trace = files.trace(3);
    let report = |out: &str| memtrace(&["report", utf8(&trace), "-o", out]);

    assert_error(&report("/no/such/directory/r.txt"), "cannot write /no/such/directory/r.txt");
    assert_error(&report("/dev/full"), "No space left on device");
    assert_error(&report(utf8(files.directory.path())), "is a directory");
    assert_error(&report(utf8(&trace)), "the trace that is read");
}

#[test]
fn closed_pipe_is_success() {
    let files = Files::new();
    let trace = files.trace(2_000);
    let mut child = command(&["report", utf8(&trace), "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("memtrace runs");

    drop(child.stdout.take());
    let output = child.wait_with_output().expect("memtrace ends");

    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

#[test]
fn top_without_a_terminal_prints_blocks() {
    let files = Files::new();
    let trace = files.trace(10);

    let end = memtrace(&["top", utf8(&trace)]);
    let steps = memtrace(&["top", utf8(&trace), "--interval", "5s"]);

    let blocks = |output: &Output| {
        let stdout = text(&output.stdout);
        stdout
            .lines()
            .filter(|line| line.contains("  mapped "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(blocks(&end), ["00:00:10  live 900 B  peak 1000 B  mapped 0 B  10 calls"]);
    assert_eq!(
        blocks(&steps),
        [
            "00:00:05  live 600 B  peak 600 B  mapped 0 B  6 calls",
            "00:00:10  live 900 B  peak 1000 B  mapped 0 B  10 calls",
        ]
    );
}

#[test]
fn wrong_arguments_are_status_2() {
    for arguments in [
        &["report"][..],
        &["record", "-p", "0"],
        &["record", "-p", "1", "--duration", "10"],
        &["top", "-p", "1", "--ring-size", "1X"],
        &["nonsense"],
    ] {
        let output = memtrace(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn end_of_the_name_chooses_the_format_and_an_option_overrules_it() {
    let files = Files::new();
    let trace = files.trace(3);
    let start = |arguments: &[&str], name: &str| {
        let out = files.path(name);
        let output = memtrace(&[&["report", utf8(&trace), "-o", utf8(&out)], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let bytes = fs::read(out).expect("a report");
        String::from_utf8_lossy(&bytes[..5]).into_owned()
    };

    assert_eq!(start(&[], "x.svg"), "<?xml");
    assert_eq!(start(&[], "x.json"), "{\n  \"");
    assert_eq!(start(&[], "x.parquet")[..4], *"PAR1");
    assert_eq!(start(&[], "x.csv"), "funct");
    assert_eq!(start(&[], "x.unknown"), "memtr");
    assert_eq!(start(&["--format", "text"], "x.svg"), "memtr");
}

#[test]
fn options_that_mean_nothing_for_the_format_are_refused() {
    let files = Files::new();
    let trace = files.trace(3);
    let report = |arguments: &[&str]| memtrace(&[&["report", utf8(&trace)], arguments].concat());

    assert_error(
        &report(&["--format", "pprof", "--metric", "peak"]),
        "--metric means nothing for --format pprof",
    );
    assert_error(&report(&["--memory", "mapped"]), "--memory means nothing for --format text");
    assert_error(&report(&["--format", "svg", "--top", "3"]), "--top means nothing");
}

#[test]
fn part_of_a_trace_is_refused_by_formats_made_of_events() {
    let files = Files::new();
    let trace = files.trace(3);
    let out = files.path("x");

    for format in ["dhat", "heaptrack", "parquet"] {
        for (part, what) in [
            (["--from", "1s"], "the whole trace"),
            (["--to", "1s"], "the whole trace"),
            (["--at", "end"], "the whole trace"),
            (["--pid", "1"], "all processes of the trace"),
        ] {
            let arguments = ["report", utf8(&trace), "--format", format, "-o", utf8(&out)];
            let report = memtrace(&[&arguments[..], &part[..]].concat());

            assert_error(&report, &format!("--format {format} is about {what}; leave out"));
            assert!(!out.exists(), "{format} {part:?}");
        }
    }
}

#[test]
fn picture_of_nothing_is_an_error_and_leaves_no_file() {
    let files = Files::new();
    let trace = files.trace(3);
    let out = files.path("x.svg");

    let output = memtrace(&["report", utf8(&trace), "-o", utf8(&out), "--memory", "mapped"]);

    assert_error(&output, "no stack has any live bytes, mapped; choose another --metric");
    assert_eq!(files.names(), ["t.mtrace"]);
}

#[test]
fn full_device_is_an_error_in_every_format() {
    let files = Files::new();
    let trace = files.trace(20);

    for format in [
        "csv",
        "dhat",
        "firefox",
        "folded",
        "heaptrack",
        "json",
        "parquet",
        "perfetto",
        "pprof",
        "speedscope",
        "svg",
        "text",
    ] {
        let output = memtrace(&["report", utf8(&trace), "--format", format, "-o", "/dev/full"]);
        assert_error(&output, "No space left on device");
    }
}

#[test]
fn every_format_is_the_same_twice() {
    let files = Files::new();
    let trace = files.trace(20);

    for format in ["csv", "dhat", "firefox", "folded", "heaptrack", "parquet", "perfetto", "pprof"]
    {
        let report = || memtrace(&["report", utf8(&trace), "--format", format]);
        let first = report();
        assert!(!first.stdout.is_empty(), "{format}: {}", text(&first.stderr));
        assert!(first.stdout == report().stdout, "{format}");
    }
}
