//! The other tools that answer memtrace's question, as far as they are installed.
//!
//! ```text
//!   memleak, bpftrace    attach to a pid; probes on the functions' first bytes, stacks by frame
//!                        pointer; run where tracefs is mounted for them alone
//!   heaptrack            starts the program with a library preloaded, or injects it with gdb
//! ```
//!
//! None of them says when it is ready in the same way, so that is waited for here. What a tool
//! counts is read from what it prints; memleak counts no calls, only what is still held.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{
    background::{self, Background, PATIENCE},
    stage::Stage,
};
use crate::shell;

/// How long a tool may take to end: memleak and bpftrace close their probes one by one.
const END_PATIENCE: Duration = Duration::from_secs(120);

/// How long a tool's probes must have been the same before they are taken to be all.
const QUIET: Duration = Duration::from_secs(1);

/// Mounts what the tools look for, in a mount namespace of their own, and becomes the tool.
const WITH_TRACEFS: &str = "\
mount -t tracefs none /sys/kernel/tracing 2>/dev/null
mount -t debugfs none /sys/kernel/debug 2>/dev/null
exec \"$@\"";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Memleak,
    Bpftrace,
    HeaptrackPreload,
    HeaptrackAttach,
}

/// An installed tool.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    kind: Kind,
    program: PathBuf,
    /// What tables call it.
    pub(super) name: &'static str,
}

/// How a tool gets at a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// It starts the program.
    Launches,
    /// It attaches to a process that may still be waiting for its `exec`.
    Attaches,
    /// It attaches to a process that runs.
    Injects,
}

/// The tools that are here, and a line on each that is not.
pub(super) fn find() -> (Vec<Peer>, Vec<String>) {
    let known: [(Kind, &'static str, &[&str], &str); 4] = [
        (
            Kind::Memleak,
            "memleak",
            &["memleak-libbpf", "memleak-bpfcc", "memleak"],
            "libbpf-tools of Debian 13, or bpfcc-tools",
        ),
        (Kind::Bpftrace, "bpftrace", &["bpftrace"], "bpftrace"),
        (Kind::HeaptrackPreload, "heaptrack", &["heaptrack"], "heaptrack"),
        (Kind::HeaptrackAttach, "heaptrack -p", &["heaptrack"], "heaptrack"),
    ];
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for (kind, name, programs, package) in known {
        match programs.iter().find_map(|program| shell::find_program(program)) {
            Some(program) => found.push(Peer { kind, program, name }),
            None => missing.push(format!("{name} is not installed (Debian package {package}).")),
        }
    }
    (found, missing)
}

impl Peer {
    pub(super) fn entry(&self) -> Entry {
        match self.kind {
            Kind::Memleak | Kind::Bpftrace => Entry::Attaches,
            Kind::HeaptrackPreload => Entry::Launches,
            Kind::HeaptrackAttach => Entry::Injects,
        }
    }

    /// The tool and its version, for the notes.
    pub(super) fn version(&self) -> String {
        let program = self.program.display();
        match self.kind {
            // It has no option for that.
            Kind::Memleak => format!("memleak: `{program}`"),
            Kind::Bpftrace | Kind::HeaptrackPreload | Kind::HeaptrackAttach => {
                let version = shell::ask(Command::new(&self.program).arg("--version"));
                format!("{}: {}", self.name, version.unwrap_or_else(|_| program.to_string()))
            }
        }
    }

    /// A command that runs `program` under the tool.
    pub(super) fn launch(&self, stage: &Stage, program: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.arg("-o").arg(heaptrack_output(stage)?).arg(program);
        Ok(command)
    }

    /// Attaches to a process and waits until the probes are in place.
    pub(super) fn attach(&self, stage: &Stage, pid: u32, library: &Path) -> Result<Background> {
        let id = pid.to_string();
        let start = |command| Background::start(self.name, &stage.privilege, command);
        match self.kind {
            Kind::Memleak => {
                let mut command = self.with_tracefs(stage);
                // An interval that does not end: the report is made once, when it is stopped.
                command.args(["-p", &id, "-O"]).arg(short_path(stage, library)?).arg("100000");
                let mut session = start(command)?;
                session.wait_for_perf_events(QUIET)?;
                Ok(session)
            }
            Kind::Bpftrace => {
                let mut command = self.with_tracefs(stage);
                command.args(["-p", &id, "-e", &bpftrace_script(pid, library)]);
                let mut session = start(command)?;
                session.wait_for_perf_events(QUIET)?;
                Ok(session)
            }
            Kind::HeaptrackAttach => {
                let mut command = stage.privilege.command(&self.program);
                command.arg("-o").arg(heaptrack_output(stage)?).args(["-p", &id]);
                let mut session = start(command)?;
                session.wait_for("injection finished", PATIENCE)?;
                Ok(session)
            }
            Kind::HeaptrackPreload => bail!("heaptrack was to be launched, not attached"),
        }
    }

    /// The process beside the target that does the tool's work.
    pub(super) fn daemon(&self, session: &Background) -> Option<u32> {
        let name = match self.kind {
            Kind::Memleak => return Some(session.pid()),
            Kind::Bpftrace => "bpftrace",
            // The kernel keeps 15 bytes of `heaptrack_interpret`.
            Kind::HeaptrackPreload | Kind::HeaptrackAttach => "heaptrack_inter",
        };
        background::find_named(session.pid(), name)
    }

    /// Ends the tool after its target has ended, and returns all that it said.
    pub(super) fn finish(&self, session: Background) -> Result<Vec<String>> {
        match self.kind {
            Kind::Memleak | Kind::Bpftrace => session.stop(END_PATIENCE),
            Kind::HeaptrackPreload | Kind::HeaptrackAttach => session.finish(END_PATIENCE),
        }
    }

    /// How many allocations the tool counted, if it does.
    pub(super) fn count(&self, stage: &Stage, said: &[String]) -> Result<Option<u64>> {
        match self.kind {
            Kind::Memleak => Ok(None),
            Kind::Bpftrace => {
                let count = said.iter().find_map(|line| line.strip_prefix("@calls: "));
                let count = count.context("bpftrace printed no @calls")?;
                count.trim().parse().map(Some).context("bpftrace's @calls")
            }
            Kind::HeaptrackPreload | Kind::HeaptrackAttach => heaptrack_count(stage).map(Some),
        }
    }

    fn with_tracefs(&self, stage: &Stage) -> Command {
        let mut command = stage.privilege.command("env");
        // Room for as many live blocks as memleak has; the variable has had two names.
        command.args(["BPFTRACE_MAP_KEYS_MAX=1000000", "BPFTRACE_MAX_MAP_KEYS=1000000"]);
        command.args(["unshare", "--mount", "sh", "-c", WITH_TRACEFS, "sh"]).arg(&self.program);
        command
    }
}

/// Bytes by stack, and the blocks that are held: what memleak does, in bpftrace's language.
fn bpftrace_script(pid: u32, library: &Path) -> String {
    let library = library.display();
    format!(
        "uprobe:{library}:malloc, uprobe:{library}:realloc /pid == {pid}/ {{ @size[tid] = arg0; }}
         uprobe:{library}:calloc /pid == {pid}/ {{ @size[tid] = arg0 * arg1; }}
         uretprobe:{library}:malloc, uretprobe:{library}:calloc, uretprobe:{library}:realloc
         /pid == {pid} && @size[tid]/ {{
             @calls = count();
             @blocks[retval] = @size[tid];
             @bytes[ustack] = sum(@size[tid]);
             delete(@size[tid]);
         }}
         uprobe:{library}:free /pid == {pid}/ {{ delete(@blocks[arg0]); }}
         END {{ clear(@size); clear(@blocks); clear(@bytes); }}"
    )
}

/// The library whose `malloc` a process calls.
pub(super) fn allocator(pid: u32) -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/maps").context("/proc/self/maps")?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("the target has ended")?;
    let library = mapped(&maps, "libjemalloc").or_else(|| mapped(&own, "libc.so"));
    library.context("this program has no libc.so mapped")
}

/// Another name for a library: libbpf-tools' memleak cuts names after 31 bytes.
fn short_path(stage: &Stage, library: &Path) -> Result<PathBuf> {
    let link = stage.scratch().join("lib");
    // It is there from the last time.
    let _ = fs::remove_file(&link);
    symlink(library, &link).with_context(|| link.display().to_string())?;
    Ok(link)
}

fn mapped(maps: &str, prefix: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
    let named = |path: &&Path| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(prefix))
    };
    paths.filter(named).map(Path::to_owned).next()
}

/// A place for heaptrack's file, in an empty directory: it adds the suffix of its compression.
fn heaptrack_output(stage: &Stage) -> Result<PathBuf> {
    let dir = stage.dir.join("heaptrack");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    Ok(dir.join("profile"))
}

fn heaptrack_count(stage: &Stage) -> Result<u64> {
    let dir = stage.dir.join("heaptrack");
    let mut files = fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let file = files.next().context("heaptrack wrote no file")?.context("heaptrack's file")?.path();
    let text = shell::ask(Command::new("heaptrack_print").arg("-f").arg(file))?;
    parse_heaptrack(&text).context("heaptrack_print gives no count")
}

fn parse_heaptrack(text: &str) -> Option<u64> {
    let line =
        text.lines().find_map(|line| line.strip_prefix("calls to allocation functions: "))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaptrack_count_is_the_first_number_of_its_line() {
        let text = "total runtime: 1.0s.\ncalls to allocation functions: 1234 (9/s)\n";

        assert_eq!(parse_heaptrack(text), Some(1234));
        assert_eq!(parse_heaptrack("nothing"), None);
    }

    #[test]
    fn allocator_is_found_among_mappings() {
        let maps = "7f00-7f01 r-xp 00000000 fe:00 1 /usr/lib/libc.so.6\n7f02-7f03 rw-p 0 00:00 0\n";

        assert_eq!(mapped(maps, "libc.so"), Some(PathBuf::from("/usr/lib/libc.so.6")));
        assert_eq!(mapped(maps, "libjemalloc"), None);
    }
}
