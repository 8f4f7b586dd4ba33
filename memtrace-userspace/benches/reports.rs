//! Every report that can be made of a trace, and what making it takes.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What is made, and the arguments of memtrace that make it.
pub(crate) type Report = (&'static str, &'static [&'static str]);

/// In the arguments, `TRACE` is the trace, `OUT` a file, and `FROM` and `TO` lie in its middle.
pub(crate) const REPORTS: &[Report] = &[
    ("text", &["report", "TRACE", "-o", "OUT.txt"]),
    ("json", &["report", "TRACE", "-o", "OUT.json"]),
    ("html", &["report", "TRACE", "-o", "OUT.html"]),
    ("csv", &["report", "TRACE", "-o", "OUT.csv"]),
    ("folded", &["report", "TRACE", "-o", "OUT.folded"]),
    ("svg", &["report", "TRACE", "-o", "OUT.svg"]),
    ("pprof", &["report", "TRACE", "-o", "OUT.pb.gz"]),
    ("speedscope", &["report", "TRACE", "-o", "OUT.speedscope.json"]),
    ("firefox", &["report", "TRACE", "-o", "OUT.firefox.json"]),
    ("perfetto", &["report", "TRACE", "-o", "OUT.pftrace"]),
    ("dhat", &["report", "TRACE", "-o", "OUT.dhat.json"]),
    ("heaptrack", &["report", "TRACE", "-o", "OUT.heaptrack.zst"]),
    ("parquet", &["report", "TRACE", "-o", "OUT.parquet"]),
    ("timeline", &["report", "TRACE", "--timeline", "-o", "OUT.timeline.json"]),
    ("diff", &["diff", "TRACE", "TRACE", "-o", "OUT.diff.txt"]),
    ("diff-json", &["diff", "TRACE", "TRACE", "--format", "json", "-o", "OUT.diff.json"]),
    ("check", &["check", "TRACE", "--max-live", "1TB"]),
    ("range", &["report", "TRACE", "--from", "FROM", "--to", "TO", "-o", "OUT.range.json"]),
    ("moment", &["report", "TRACE", "--at", "peak", "-o", "OUT.peak.json"]),
    ("snapshot", &["snapshot", "TRACE", "--at", "peak", "-o", "OUT.held.mtrace"]),
];

/// What a report took.
pub(crate) struct Cost {
    pub(crate) status: ExitStatus,
    pub(crate) wall: Duration,
    /// Of all its threads.
    pub(crate) processor: Duration,
    /// The most that was ever resident.
    pub(crate) peak_bytes: u64,
    /// What it wrote.
    pub(crate) made_bytes: u64,
}

/// Makes a report of a trace that is `length` long, in an empty directory that it leaves empty.
pub(crate) fn make(
    memtrace: &str,
    trace: &Path,
    length: Duration,
    directory: &Path,
    (name, arguments): Report,
) -> Cost {
    let argument = |argument: &&str| -> OsString {
        match *argument {
            "TRACE" => trace.into(),
            "FROM" => format!("{}ms", length.as_millis() / 3).into(),
            "TO" => format!("{}ms", length.as_millis() * 2 / 3).into(),
            other => match other.strip_prefix("OUT") {
                Some(ending) => directory.join(format!("out{ending}")).into(),
                None => other.into(),
            },
        }
    };
    let mut command = Command::new(memtrace);
    command.args(arguments.iter().map(argument)).stdout(Stdio::null());
    let start = Instant::now();
    let child = command.spawn().expect("memtrace was built");
    let (status, usage) = wait(child);
    let time = |time: libc::timeval| {
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_usec.unsigned_abs() as u32 * 1000)
    };
    let mut made_bytes = 0;
    for entry in std::fs::read_dir(directory).expect("it is there").flatten() {
        made_bytes += entry.metadata().map_or(0, |data| data.len());
        std::fs::remove_file(entry.path()).expect(name);
    }
    Cost {
        status,
        wall: start.elapsed(),
        processor: time(usage.ru_utime) + time(usage.ru_stime),
        peak_bytes: usage.ru_maxrss.unsigned_abs() * 1024,
        made_bytes,
    }
}

/// How a child ended, and what it used.
fn wait(child: Child) -> (ExitStatus, libc::rusage) {
    let pid = libc::pid_t::try_from(child.id()).expect("the kernel's ids are positive");
    let mut status = 0;
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid, and the child is ours and was not waited for.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr()) };
    assert_eq!(waited, pid, "{}", std::io::Error::last_os_error());
    // SAFETY: zeroes are a valid value, and the kernel has filled it.
    (ExitStatus::from_raw(status), unsafe { usage.assume_init() })
}
