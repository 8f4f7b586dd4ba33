//! What `/proc` tells of a process.
//!
//! In: a process id. Out: [`ProcessInfo`], [`Mapping`]s, [`BeforeAttach`], the bytes of mapped
//! files. The files of `/proc` are parsed by pure functions over bytes, in the modules below; here
//! are the thin shells that open them. Nothing is ever written, and the process is not stopped, so
//! every answer is of a moment that is already past: compare [`Identity`] to notice that the id
//! belongs to another process by now.
//!
//! All text is bytes, as it came: a name may hold anything but NUL.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use memtrace_common::addr::Avma;
use thiserror::Error;

use super::selection::Candidate;
use crate::record::{BeforeAttach, MemoryByKind, Namespaces, Pid, Tid};

pub mod binary;
pub mod cgroup;
pub mod maps;
pub(crate) mod memory_limit;
pub mod replaced;
mod smaps;
mod status;
#[cfg(test)]
mod tests;

pub use binary::{BuildIdError, build_id, open_mapped};
pub use maps::{Mapped, Mapping};
pub use status::{ProgramId, Seccomp};

use status::{Stat, State};

/// Bytes of a page, on x86-64.
pub(super) const PAGE_BYTES: u64 = 4096;

/// The most bytes read of one file of `/proc`; the maps of 65,530 mappings have about 10 MB.
const MAX_PROC_FILE_BYTES: u64 = 256 << 20;

/// How many file trees beside one's own are looked into for names.
const MAX_ROOTS: usize = 16;

/// Why a process cannot be traced, or could not be looked at.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// Nothing has this id.
    #[error("no process has the id {pid}; see `ps -e` for those that run")]
    NoSuchProcess {
        /// The id.
        pid: u32,
    },
    /// The id is that of a thread.
    #[error("{tid} is a thread of process {pid}; trace the whole process with -p {pid}")]
    Thread {
        /// The id that was given.
        tid: u32,
        /// The id of its process.
        pid: u32,
    },
    /// The process is a part of the kernel.
    #[error(
        "process {pid} is a kernel thread, which has no memory of its own; \
         choose a process that runs a program"
    )]
    KernelThread {
        /// The id.
        pid: u32,
    },
    /// The process has ended, and its parent has not asked for its status yet.
    #[error(
        "process {pid} has ended and is only waiting for its parent ({parent}) to notice; \
         choose a process that still runs"
    )]
    Zombie {
        /// The id.
        pid: u32,
        /// Its parent.
        parent: u32,
    },
    /// The program is 32-bit code, or x32.
    #[error(
        "process {pid} runs a 32-bit program; memtrace traces 64-bit x86-64 programs only: \
         trace a 64-bit build of it"
    )]
    ThirtyTwoBit {
        /// The id.
        pid: u32,
    },
    /// The program is code for another machine.
    #[error(
        "process {pid} runs a program for another machine (ELF machine {machine}); \
         memtrace traces x86-64 programs only: trace a build for this machine"
    )]
    ForeignMachine {
        /// The id.
        pid: u32,
        /// `e_machine` of its executable.
        machine: u16,
    },
    /// The kernel does not let memtrace look.
    #[error(
        "not allowed to read {path}; run memtrace as root (sudo), or give it CAP_SYS_PTRACE \
         and CAP_SYS_ADMIN"
    )]
    PermissionDenied {
        /// What could not be read.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot read {path}; check that /proc is mounted and that the process still runs")]
    Unreadable {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel gives no handle to it.
    #[error(
        "cannot open process {pid}: {source}; raise the limit of open files (`ulimit -n`) if too \
         many are open"
    )]
    NoHandle {
        /// The id.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// A file of `/proc` says something that memtrace does not understand.
    #[error("cannot make sense of {path}; please report this together with its text")]
    Malformed {
        /// Which one.
        path: PathBuf,
    },
}

/// Tells a process from a later one that has the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its id.
    pub pid: Pid,
    /// When it started, in clock ticks since the host's start.
    pub start_ticks: u64,
}

/// A process that can be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Which one it is.
    pub identity: Identity,
    /// The process that started it, or took it over.
    pub parent: Pid,
    /// Path of its executable, as its own mount namespace has it.
    pub exe: Vec<u8>,
    /// Whether the file at that path has been deleted or replaced since.
    pub exe_is_deleted: bool,
    /// Its command line.
    pub command: Vec<Vec<u8>>,
    /// Its ids from the outermost PID namespace that this `/proc` shows to its own.
    pub namespaced_pids: Vec<u32>,
    /// Whether its system calls are filtered.
    pub seccomp: Seccomp,
    /// Which of its programs it runs.
    pub program: ProgramId,
    /// Whether the processor checks its return addresses (CET).
    pub has_shadow_stack: bool,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id.
    pub tid: Tid,
    /// Its name.
    pub name: Vec<u8>,
}

/// Looks at the process `pid` and checks that it is one that memtrace can trace.
pub fn inspect(pid: Pid) -> Result<ProcessInfo, ProcessError> {
    let path = file_of(pid, "status");
    let status =
        status::parse_status(&read(pid, &path)?).ok_or(ProcessError::Malformed { path })?;
    if status.tgid != pid.0 {
        return Err(ProcessError::Thread { tid: pid.0, pid: status.tgid });
    }
    let stat = stat(pid)?;
    check_alive(pid, &stat)?;

    let exe_path = file_of(pid, "exe");
    let header = binary::read_header(&exe_path).map_err(|source| failed(pid, &exe_path, source))?;
    check_machine(pid, &header)?;
    let (exe, exe_is_deleted) = exe(pid)?;
    let command = split_command(&read(pid, &file_of(pid, "cmdline"))?);
    Ok(ProcessInfo {
        identity: Identity { pid, start_ticks: stat.start_ticks },
        parent: Pid(stat.parent),
        exe,
        exe_is_deleted,
        command,
        namespaced_pids: status.namespaced_pids,
        seccomp: status.seccomp,
        program: stat.program,
        has_shadow_stack: status.has_shadow_stack,
    })
}

/// Where the process lives: its ids in inner PID namespaces, its cgroup, its container.
///
/// Best effort: what cannot be read is not known.
pub fn namespaces(info: &ProcessInfo) -> Namespaces {
    let pid = info.identity.pid;
    let (cgroups, containers) = surroundings(pid);
    Namespaces {
        pid,
        inner_pids: info.namespaced_pids.iter().skip(1).copied().collect(),
        cgroup: cgroup::telling_path(&cgroups).map(<[u8]>::to_vec),
        container: containers.into_iter().next_back(),
    }
}

/// Ways into the file trees of processes that do not have this one's, each tree once.
///
/// They hold while the process runs. What cannot be looked at is left out.
pub fn foreign_roots(pids: &[Pid]) -> Vec<PathBuf> {
    let tree = |of: &str| {
        let mounts = fs::read_link(format!("/proc/{of}/ns/mnt")).ok()?;
        let root = fs::metadata(format!("/proc/{of}/root/")).ok()?;
        Some((mounts, root.dev(), root.ino()))
    };
    let mut seen = vec![tree("self")];
    let mut roots = Vec::new();
    for pid in pids {
        let tree = tree(&pid.0.to_string());
        if roots.len() < MAX_ROOTS && tree.is_some() && !seen.contains(&tree) {
            seen.push(tree);
            roots.push(file_of(*pid, "root"));
        }
    }
    roots
}

/// What a process is called and where it lives; `None` if it runs no program, or no longer.
pub(super) fn candidate(pid: Pid) -> Option<Candidate> {
    let text = read(pid, &file_of(pid, "stat")).ok()?;
    let stat = status::parse_stat(&text)?;
    check_alive(pid, &stat).ok()?;
    // memtrace's own guardian.
    if stat.parent == std::process::id() {
        return None;
    }
    let comm = status::parse_comm(&text)?.to_vec();
    let exe = exe(pid).map(|(path, _)| path).unwrap_or_default();
    let exe_name = exe.rsplit(|&byte| byte == b'/').next().unwrap_or_default().to_vec();
    let (cgroups, containers) = surroundings(pid);
    Some(Candidate { pid, comm, exe_name, cgroups, containers })
}

/// The cgroups of a process and its containers, the innermost last.
fn surroundings(pid: Pid) -> (Vec<cgroup::Cgroup>, Vec<Vec<u8>>) {
    let cgroups = read(pid, &file_of(pid, "cgroup")).unwrap_or_default();
    let cgroups = cgroup::parse_cgroups(&cgroups);
    let mut containers = cgroup::containers(&cgroups);
    if containers.is_empty() {
        let mounts = read(pid, &file_of(pid, "mountinfo")).unwrap_or_default();
        containers.extend(cgroup::container_of_mounts(&mounts));
    }
    (cgroups, containers)
}

/// The program that the process runs now; `None` if it or its first thread has ended.
pub fn program(pid: Pid) -> Option<ProgramId> {
    stat(pid).ok().filter(|stat| stat.state == State::Alive).map(|stat| stat.program)
}

/// The memory of a process that is resident, in bytes; `None` if it is gone.
///
/// The second field of `/proc/PID/statm`, in pages.
pub(super) fn resident_bytes(pid: Pid) -> Option<u64> {
    let statm = std::fs::read_to_string(file_of(pid, "statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(PAGE_BYTES)
}

/// The most of its memory that was ever resident at once, in bytes; `None` if it is gone.
pub fn peak_resident_bytes(pid: Pid) -> Option<u64> {
    let text = std::fs::read_to_string(file_of(pid, "status")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// All mappings of a process, by address.
pub fn mappings(pid: Pid) -> Result<Vec<Mapping>, ProcessError> {
    let path = file_of(pid, "maps");
    maps::parse_maps(&read_mappings(pid, &path)?).ok_or(ProcessError::Malformed { path })
}

/// What the process holds now.
///
/// The stacks of threads are known by the stack pointers of threads that wait in the kernel. The
/// stack of a thread that runs at this moment counts as anonymous memory.
pub fn before_attach(pid: Pid) -> Result<BeforeAttach, ProcessError> {
    let stack_pointers = stack_pointers(pid)?;
    let path = file_of(pid, "smaps");
    let held = smaps::parse_smaps(&read_mappings(pid, &path)?, &stack_pointers)
        .ok_or(ProcessError::Malformed { path })?;
    let smaps::Held { heap_bytes, anonymous_bytes, resident_bytes } = held;
    Ok(BeforeAttach { pid, heap_bytes, anonymous_bytes, resident_bytes })
}

/// The memory of a process by kind. It costs the process: see `live::memory_samples`.
pub(super) fn memory_by_kind(pid: Pid) -> Result<MemoryByKind, ProcessError> {
    let stack_pointers = stack_pointers(pid)?;
    let path = file_of(pid, "smaps");
    smaps::parse_memory(&read_mappings(pid, &path)?, &stack_pointers)
        .ok_or(ProcessError::Malformed { path })
}

/// The threads of a process, by id. Threads that end meanwhile are left out.
pub fn threads(pid: Pid) -> Result<Vec<Thread>, ProcessError> {
    let mut threads = Vec::new();
    for tid in thread_ids(pid)? {
        let path = file_of(pid, &format!("task/{}/comm", tid.0));
        match read(pid, &path) {
            Ok(mut name) => {
                // The kernel appends one newline; a newline of the name itself stays.
                name.pop_if(|last| *last == b'\n');
                threads.push(Thread { tid, name });
            }
            Err(ProcessError::NoSuchProcess { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(threads)
}

fn stack_pointers(pid: Pid) -> Result<Vec<Avma>, ProcessError> {
    let mut pointers = Vec::new();
    for tid in thread_ids(pid)? {
        let path = file_of(pid, &format!("task/{}/syscall", tid.0));
        // Best effort by nature (see `before_attach`): some kernels are built without this file.
        if let Ok(text) = read(pid, &path) {
            pointers.extend(status::parse_syscall_stack_pointer(&text));
        }
    }
    Ok(pointers)
}

/// The ids of its threads, in order.
pub(super) fn thread_ids(pid: Pid) -> Result<Vec<Tid>, ProcessError> {
    let path = file_of(pid, "task");
    let entries = fs::read_dir(&path).map_err(|source| failed(pid, &path, source))?;
    let mut tids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| failed(pid, &path, source))?;
        let tid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        tids.push(Tid(tid.ok_or_else(|| ProcessError::Malformed { path: entry.path() })?));
    }
    tids.sort();
    Ok(tids)
}

fn stat(pid: Pid) -> Result<Stat, ProcessError> {
    let path = file_of(pid, "stat");
    status::parse_stat(&read(pid, &path)?).ok_or(ProcessError::Malformed { path })
}

/// Path of the executable of `pid`, and whether it was deleted since.
pub fn exe(pid: Pid) -> Result<(Vec<u8>, bool), ProcessError> {
    let path = file_of(pid, "exe");
    let target = fs::read_link(&path).map_err(|source| failed(pid, &path, source))?;
    let target = target.into_os_string().into_vec();
    Ok(match target.strip_suffix(maps::DELETED) {
        Some(path) => (path.to_vec(), true),
        None => (target, false),
    })
}

fn check_alive(pid: Pid, stat: &Stat) -> Result<(), ProcessError> {
    if stat.is_kernel_thread {
        return Err(ProcessError::KernelThread { pid: pid.0 });
    }
    match stat.state {
        State::Zombie => Err(ProcessError::Zombie { pid: pid.0, parent: stat.parent }),
        State::Dead => Err(ProcessError::NoSuchProcess { pid: pid.0 }),
        State::Alive => Ok(()),
    }
}

/// Checks the first bytes of an executable.
fn check_machine(pid: Pid, header: &[u8]) -> Result<(), ProcessError> {
    match binary::machine(header) {
        Some(binary::Machine { class: 64, machine: binary::X86_64 }) => Ok(()),
        // i386 and x32, which is 32-bit code for the machine x86-64.
        Some(binary::Machine { class: 32, machine: binary::I386 | binary::X86_64 }) => {
            Err(ProcessError::ThirtyTwoBit { pid: pid.0 })
        }
        Some(binary::Machine { machine, class: _ }) => {
            Err(ProcessError::ForeignMachine { pid: pid.0, machine })
        }
        None => Err(ProcessError::Malformed { path: file_of(pid, "exe") }),
    }
}

/// The arguments in the text of `cmdline`, each of which ends with a NUL.
fn split_command(text: &[u8]) -> Vec<Vec<u8>> {
    // A program that overwrote its arguments to set a title may have left the last NUL out.
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

fn file_of(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", pid.0))
}

fn read(pid: Pid, path: &Path) -> Result<Vec<u8>, ProcessError> {
    File::open(path).and_then(|file| read_whole(&file)).map_err(|source| failed(pid, path, source))
}

/// Reads `maps` or `smaps` of a process that does not end meanwhile.
///
/// The kernel gives them in pieces, and says that there are no more once the process gives its
/// memory back (`m_start` in `fs/proc/task_mmu.c`). What was read before is a part that looks whole.
fn read_mappings(pid: Pid, path: &Path) -> Result<Vec<u8>, ProcessError> {
    loop {
        // It stays that of the memory that the process has now: another program has other memory.
        let file = File::open(path).map_err(|source| failed(pid, path, source))?;
        let whole = read_whole(&file).map_err(|source| failed(pid, path, source))?;
        if whole.is_empty() {
            return Err(ProcessError::NoSuchProcess { pid: pid.0 });
        }
        if file.read_at(&mut [0], 0).map_err(|source| failed(pid, path, source))? > 0 {
            return Ok(whole);
        }
    }
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    // As much as the kernel gives at a time. An empty buffer would be filled a line at a time.
    let mut bytes = Vec::with_capacity(4096);
    file.take(MAX_PROC_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a failed access to a file of the process means.
fn failed(pid: Pid, path: &Path, source: io::Error) -> ProcessError {
    // ESRCH: the process ended between the opening of the file and its reading.
    let is_gone = source.raw_os_error() == Some(libc::ESRCH);
    match source.kind() {
        _ if is_gone => ProcessError::NoSuchProcess { pid: pid.0 },
        io::ErrorKind::NotFound => ProcessError::NoSuchProcess { pid: pid.0 },
        io::ErrorKind::PermissionDenied => ProcessError::PermissionDenied { path: path.to_owned() },
        _ => ProcessError::Unreadable { path: path.to_owned(), source },
    }
}
