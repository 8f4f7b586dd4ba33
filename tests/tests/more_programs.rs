//! Servers and interpreters of Debian, as they are installed: no loss, and complete stacks.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use memtrace_tests::complete::{require_complete, require_path};
use memtrace_tests::python;
use memtrace_tests::recording::{
    Finished, Recorder, Running, memtrace, record_launched, report, run, trace_path,
};
use memtrace_tests::report::Report;
use memtrace_tests::{privileged, scratch_directory};

/// Allocates buffers in functions with names.
const JAVASCRIPT: &str = "\
const held = [];
function fillCache(n) {
  for (let i = 0; i < n; i++) held.push(Buffer.allocUnsafeSlow(4096 + i % 7));
  if (held.length > 500) held.splice(0, 400);
}
function makeArrays(n) { for (let i = 0; i < n; i++) new ArrayBuffer(100000 + i); }
let round = 0;
const timer = setInterval(function onTick() {
  fillCache(50);
  makeArrays(20);
  if (++round > 60) clearInterval(timer);
}, 5);
";

const PYTHON: &str = "\
class Cache:
    def fill(self, count):
        self.blocks = [bytearray(5000 + i) for i in range(count)]
def handle(cache):
    cache.fill(100)
cache = Cache()
for _ in range(40):
    handle(cache)
";

const RUBY: &str = "\
require 'json'
rows = (0...300).map { |i| { 'key' => i, 'text' => i.to_s * 20 } }
5.times { rows = JSON.parse(JSON.generate(rows)) }
puts rows.map { |row| row['text'].gsub(/1+/) { |m| m * 3 }.size }.sum
";

const SQL: &str = "\
CREATE TABLE item AS SELECT i AS id, i * 7919 % 1000 AS size, 'name' || i AS name
  FROM generate_series(1, 20000) AS i;
CREATE INDEX by_size ON item(size);
ANALYZE item;
SELECT size, count(*), string_agg(name, ',') FROM item GROUP BY size ORDER BY 2 DESC LIMIT 5;
SELECT count(*) FROM item a JOIN item b ON a.size = b.id WHERE a.name LIKE '%7%';
";

fn record(name: &str, command: &[&str]) -> Result<Report> {
    let trace = trace_path(name)?;
    let command: Vec<&Path> = command.iter().map(Path::new).collect();
    record_launched(&trace, &command)?;
    report(&trace)
}

/// A file of this text, in a directory of its own.
fn script(name: &str, text: &str) -> Result<String> {
    let path = scratch_directory(name)?.join("script");
    std::fs::write(&path, text).context("write a script")?;
    Ok(path.to_string_lossy().into_owned())
}

/// Takes away what a runtime leaves behind; its name is that of the process.
fn remove_perf_map(report: &Report) -> Result<()> {
    let map = format!("/tmp/perf-{}.map", report.number("/target/pid")?);
    std::fs::remove_file(map).context("the runtime's perf map")
}

#[test]
fn node_is_complete_and_its_functions_have_names() -> Result<()> {
    privileged!();
    let script = script("node-script", JAVASCRIPT)?;
    // The options turn V8's log on as well, which would lie where the tests are run.
    let node = [
        "/usr/bin/node",
        "--perf-basic-prof",
        "--interpreted-frames-native-stack",
        "--no-logfile-per-isolate",
        "--logfile=/dev/null",
        &script,
    ];

    let report = record("node", &node)?;

    remove_perf_map(&report)?;
    require_complete("node", &report)?;
    require_path(&report, "fillCache", "onTick")?;
    require_path(&report, "makeArrays", "onTick")
}

#[test]
fn python_is_complete_and_its_functions_have_names() -> Result<()> {
    privileged!();
    let Some(python) = python::with_perf_map() else {
        eprintln!("skipped: no Python 3.12 or later");
        return Ok(());
    };
    let script = script("python-script", PYTHON)?;

    let report = record("python-perf", &[&python.to_string_lossy(), "-X", "perf", &script])?;

    remove_perf_map(&report)?;
    require_complete("python", &report)?;
    require_path(&report, "Cache.fill", "handle")?;
    require_path(&report, "handle", "<module>")
}

#[test]
fn ruby_is_complete() -> Result<()> {
    privileged!();
    let script = script("ruby-script", RUBY)?;

    require_complete("ruby", &record("ruby", &["/usr/bin/ruby", &script])?)
}

#[test]
fn git_is_complete_with_its_children() -> Result<()> {
    privileged!();
    let directory = scratch_directory("git-repository")?;
    let path = directory.to_string_lossy().into_owned();
    let commands = "git init -q . && seq 20000 > a && git add . && \
                    git -c user.name=t -c user.email=t@t commit -q -m one && \
                    seq 2 3 30000 > a && git -c user.name=t -c user.email=t@t commit -q -a -m two && \
                    git log -p --stat > /dev/null && git gc -q";
    let command = format!("cd '{path}' && {commands}");

    require_complete("git", &record("git", &["/bin/sh", "-c", &command])?)
}

#[test]
fn nginx_is_complete() -> Result<()> {
    privileged!();
    let directory = scratch_directory("nginx-files")?;
    let socket = std::env::temp_dir().join(format!("nginx-{}.sock", std::process::id()));
    let place = directory.to_string_lossy();
    let configuration = format!(
        "daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log {place}/access.log; client_body_temp_path {place}/body;\n\
         proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/fastcgi;\n\
         uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
         server {{ listen unix:{}; gzip on; gzip_types *;\n\
         location / {{ root {place}; autoindex on; }} }} }}\n",
        socket.display()
    );
    std::fs::write(directory.join("nginx.conf"), configuration).context("write nginx.conf")?;
    std::fs::write(directory.join("page.txt"), "text\n".repeat(5000)).context("write a page")?;
    let trace = trace_path("nginx")?;
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(&trace).args(["--", "/usr/sbin/nginx", "-e", "stderr", "-c"]);
    let server = Running::start(record.arg(directory.join("nginx.conf")).stdin(Stdio::null()))?;
    wait_for_file(&socket)?;

    for _ in 0..20 {
        for page in ["page.txt", "", "missing"] {
            get(&socket, page)?;
        }
    }
    // The process that runs nginx, not the one that records it.
    let pid = std::fs::read_to_string(directory.join("pid")).context("nginx's pid")?;
    run(Command::new("kill").args(["-QUIT", pid.trim()]))?.require_success("kill")?;
    server.finish()?.require_success("memtrace record")?;

    require_complete("nginx", &report(&trace)?)
}

/// Asks for a page, and takes any answer.
fn get(socket: &Path, page: &str) -> Result<()> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).context("connect to nginx")?;
    let request = format!(
        "GET /{page} HTTP/1.1\r\nHost: t\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).context("ask nginx")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read nginx's answer")?;
    ensure!(answer.starts_with(b"HTTP/1.1 "), "nginx does not speak HTTP");
    Ok(())
}

fn wait_for_file(path: &Path) -> Result<()> {
    let until = std::time::Instant::now() + memtrace_tests::recording::DEADLINE;
    while !path.exists() {
        if std::time::Instant::now() > until {
            bail!("{} does not appear", path.display());
        }
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn postgres_is_complete() -> Result<()> {
    privileged!();
    let binaries = postgres_binaries()?;
    // It refuses to run as root.
    let directory = std::env::temp_dir().join(format!("postgres-{}", std::process::id()));
    std::fs::create_dir(&directory).context("a directory for postgres")?;
    let data = directory.join("data");
    run(Command::new("chown").arg("postgres").arg(&directory))?.require_success("chown")?;
    let as_postgres = |program: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
        command.current_dir("/");
        command
    };
    run(as_postgres(&binaries.join("initdb")).args(["-A", "trust", "-D"]).arg(&data))?
        .require_success("initdb")?;
    let mut server = as_postgres(&binaries.join("postgres"));
    server.arg("-D").arg(&data).arg("-k").arg(&directory).args(["-c", "listen_addresses="]);
    let mut server = Running::start(server.stdin(Stdio::null()))?;
    server.wait_for_stderr("ready to accept connections")?;
    let trace = trace_path("postgres")?;

    let recorder = Recorder::attach_with(server.pid(), &trace, &["--children"])?;
    let asked = run(Command::new(binaries.join("psql")).arg("-h").arg(&directory).args([
        "-U",
        "postgres",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        SQL,
    ]))?;
    recorder.detach()?;
    server.signal("INT")?;
    server.finish()?;
    std::fs::remove_dir_all(&directory).context("remove postgres' directory")?;

    asked.require_success("psql").map(|_: Finished| ())?;
    require_complete("postgres", &report(&trace)?)
}

fn postgres_binaries() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut versions = versions.context("`cargo xtask setup` installs postgresql")?.flatten();
    let version = versions.next().context("no version of postgresql is installed")?;
    Ok(version.path().join("bin"))
}
