//! Debian's own stripped programs: no loss, complete stacks, and the same count as heaptrack.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use memtrace_tests::complete::require_complete;
use memtrace_tests::recording::{
    Recorder, Running, memtrace, record_launched, report, run, trace_path,
};
use memtrace_tests::report::Report;
use memtrace_tests::{privileged, scratch_directory};

/// Builds, indexes and queries a table.
const SQL: &str = "\
CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, size INT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
  INSERT INTO item SELECT i, 'name' || i, i * 7919 % 1000 FROM n;
CREATE INDEX by_size ON item(size);
SELECT count(*), sum(size), max(name) FROM item WHERE size BETWEEN 100 AND 900;
SELECT sum(length(names)) FROM (SELECT group_concat(name) AS names FROM item GROUP BY size);
UPDATE item SET name = upper(name) WHERE size % 7 = 0;
SELECT count(DISTINCT substr(name, 1, 6)) FROM item;";

const PYTHON: &str = "\
import json
rows = [{'key': i, 'text': str(i) * 3} for i in range(200)]
for _ in range(3):
    rows = json.loads(json.dumps(rows))
print(len(rows))";

const PERL: &str = "my %h; $h{$_ % 1000} .= \"x$_\" for 1..20000; print scalar(keys %h), \"\\n\"";

const CXX: &str = "\
#include <vector>
struct Node { int value; std::vector<Node> children; };
int sum(const Node &node) {
    int total = node.value;
    for (const Node &child : node.children) total += sum(child);
    return total;
}
";

/// Enough was seen, nothing is lost, and nearly every stack and every allocation is complete.
fn require_truth(program: &str, report: &Report) -> Result<()> {
    let allocations = report.number("/totals/allocations")?;
    ensure!(allocations > 1000, "only {allocations} allocations were seen");
    let complete = report.share_of_complete_allocations();
    ensure!(complete >= 0.995, "{:.3} % of the allocations have whole stacks", complete * 100.0);
    require_complete(program, report)
}

fn record(name: &str, command: &[&str]) -> Result<Report> {
    let trace = trace_path(name)?;
    let command: Vec<&Path> = command.iter().map(Path::new).collect();
    record_launched(&trace, &command)?;
    report(&trace)
}

/// Whether an executable of this name was among the traced processes.
fn traced(report: &Report, name: &str) -> bool {
    let processes = report.json["target"]["processes"].as_array();
    processes.into_iter().flatten().any(|process| {
        process["exe"].as_str().is_some_and(|exe| exe.rsplit('/').next() == Some(name))
    })
}

#[test]
fn sqlite3_agrees_with_heaptrack() -> Result<()> {
    privileged!();
    let report = record("sqlite3", &["/usr/bin/sqlite3", ":memory:", SQL])?;

    require_truth("sqlite3", &report)?;

    // Both count a realloc that gives memory as an allocation.
    let ours = report.number("/totals/allocations")?;
    let theirs = heaptrack_allocations(&["/usr/bin/sqlite3", ":memory:", SQL])?;
    let difference = ours.abs_diff(theirs) as f64 / theirs as f64;
    ensure!(difference <= 0.005, "memtrace counts {ours}, heaptrack {theirs}");
    Ok(())
}

fn heaptrack_allocations(command: &[&str]) -> Result<u64> {
    let output = scratch_directory("heaptrack")?.join("profile");
    let mut heaptrack = Command::new("heaptrack");
    heaptrack.arg("-o").arg(&output).args(command);
    run(&mut heaptrack)?.require_success("heaptrack")?;
    let directory = output.parent().context("it lies in a directory")?;
    let mut files = std::fs::read_dir(directory).context("heaptrack's directory")?;
    let file = files.next().context("heaptrack wrote no file")??.path();
    let finished = run(Command::new("heaptrack_print").arg("-f").arg(&file))?;
    let text = finished.require_success("heaptrack_print")?.stdout;
    let line = text.lines().find_map(|line| line.strip_prefix("calls to allocation functions: "));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.context("heaptrack_print gives no count")?.parse().context("heaptrack's count")
}

#[test]
fn python3_is_complete() -> Result<()> {
    privileged!();
    // Without it Python's own allocator hides the objects from everybody.
    let command = ["env", "PYTHONMALLOC=malloc", "/usr/bin/python3", "-c", PYTHON];

    let report = record("python3", &command)?;

    require_truth("python3", &report)
}

#[test]
fn perl_is_complete() -> Result<()> {
    privileged!();
    let report = record("perl", &["/usr/bin/perl", "-e", PERL])?;

    require_truth("perl", &report)
}

/// A source and the object that `g++` is to make of it.
fn node_in(directory: &Path) -> Result<[String; 2]> {
    let [source, object] = ["node.cc", "node.o"].map(|name| directory.join(name));
    std::fs::write(&source, CXX).context("write node.cc")?;
    Ok([source, object].map(|path| path.to_string_lossy().into_owned()))
}

#[test]
fn compiler_is_complete_with_its_children() -> Result<()> {
    privileged!();
    let [source, object] = node_in(&scratch_directory("compiler")?)?;

    let report = record("cc1plus", &["g++", "-O1", "-c", &source, "-o", &object])?;

    ensure!(Path::new(&object).is_file(), "the compiler made no object");
    ensure!(traced(&report, "cc1plus"), "cc1plus was not traced: {}", report.json["target"]);
    require_truth("cc1plus", &report)
}

#[test]
fn unwind_table_beyond_the_limit_is_counted_and_costs_no_event() -> Result<()> {
    privileged!();
    let [source, object] = node_in(&scratch_directory("compiler-limit")?)?;
    let trace = trace_path("cc1plus-limit")?;

    let mut record = memtrace()?;
    record.args(["record", "--unwind-memory", "4M", "-o"]).arg(&trace).arg("--");
    run(record.args(["g++", "-O1", "-c", &source, "-o", &object]))?.require_success("record")?;

    let report = report(&trace)?;
    ensure!(Path::new(&object).is_file(), "the compiler made no object");
    // The half million rows of cc1plus find no room, those of g++, of the assembler and of libraries do.
    let without_room = report.counter("unwind_tables_without_room_for_rows");
    ensure!(without_room == 1, "{without_room} tables found no room for their rows");
    ensure!(report.share_of_complete_allocations() < 0.9, "how can these stacks be complete?");
    ensure!(report.number("/capture/lost_events")? == 0, "events were lost");
    Ok(())
}

/// A server on a socket of its own.
struct Redis {
    socket: PathBuf,
}

impl Redis {
    fn in_directory(test: &str) -> Result<Redis> {
        // A socket's path is short; that of the repository may not be.
        let socket = std::env::temp_dir().join(format!("{test}-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        Ok(Redis { socket })
    }

    fn arguments(&self) -> Vec<String> {
        let socket = self.socket.to_string_lossy().into_owned();
        ["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket", &socket]
            .map(str::to_owned)
            .to_vec()
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut client = Command::new(program);
        client.arg("-s").arg(&self.socket).args(arguments);
        Ok(run(&mut client)?.require_success(program)?.stdout)
    }

    fn benchmark(&self) -> Result<()> {
        let arguments = ["-n", "3000", "-c", "8", "-t", "set,get,lpush,hset,zadd", "-q"];
        self.client("redis-benchmark", &arguments)?;
        Ok(())
    }

    fn shut_down(&self, mut server: Running) -> Result<()> {
        self.client("redis-cli", &["shutdown", "nosave"])?;
        server.wait_for_stdout("bye bye")?;
        server.finish()?.require_success("redis-server")?;
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // The server removes it itself when it ends in order.
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn redis_launched_is_complete() -> Result<()> {
    privileged!();
    let trace = trace_path("redis-launched")?;
    let redis = Redis::in_directory("redis-launched")?;
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(&trace).args(["--", "/usr/bin/redis-server"]);
    let mut server = Running::start(record.args(redis.arguments()).stdin(Stdio::null()))?;
    server.wait_for_stdout("accept connections at")?;

    redis.benchmark()?;
    redis.shut_down(server)?;

    require_truth("redis-server, launched", &report(&trace)?)
}

#[test]
fn redis_attached_under_load_is_complete_and_unharmed() -> Result<()> {
    privileged!();
    let trace = trace_path("redis-attached")?;
    let redis = Redis::in_directory("redis-attached")?;
    let mut server = Command::new("/usr/bin/redis-server");
    let mut server = Running::start(server.args(redis.arguments()).stdin(Stdio::null()))?;
    server.wait_for_stdout("accept connections at")?;
    let mut load = Command::new("redis-benchmark");
    load.arg("-s").arg(&redis.socket).args(["-l", "-c", "8", "-t", "set,get,lpop", "-q"]);
    let load = Running::start(load.stdin(Stdio::null()))?;

    let recorder = Recorder::attach(server.pid(), &trace)?;
    redis.benchmark()?;
    recorder.detach()?;

    load.signal("TERM")?;
    load.finish()?;
    ensure!(redis.client("redis-cli", &["ping"])?.trim() == "PONG", "it does not answer");
    redis.shut_down(server)?;
    let report = report(&trace)?;
    ensure!(report.json["capture"]["origin"] == "attached", "{}", report.json["capture"]["origin"]);
    require_truth("redis-server, attached to", &report)
}
