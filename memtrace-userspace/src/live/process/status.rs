//! The texts of `/proc/PID/stat`, `status` and `syscall`.

use memtrace_common::addr::Avma;

/// `PF_KTHREAD` of `include/linux/sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Whether a process filters its system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// It does not, or the kernel cannot.
    Off,
    /// Only `read`, `write`, `exit` and `sigreturn` are left.
    Strict,
    /// A BPF program decides.
    Filter,
}

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It runs, sleeps or is stopped.
    Alive,
    /// It has ended and waits for its parent.
    Zombie,
    /// It is going away.
    Dead,
}

/// What `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) state: State,
    pub(super) parent: u32,
    pub(super) is_kernel_thread: bool,
    /// In clock ticks since the host's start.
    pub(super) start_ticks: u64,
    pub(super) program: ProgramId,
}

/// Tells one program that a process runs from the next: where its code and its stack start.
///
/// The kernel places both anew for every program, and at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramId {
    start_code: u64,
    start_stack: u64,
}

/// What `status` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) tgid: u32,
    pub(super) namespaced_pids: Vec<u32>,
    pub(super) seccomp: Seccomp,
    pub(super) has_shadow_stack: bool,
}

/// Parses `stat`: `pid (name) state parent …`, where the name may hold spaces and parentheses.
pub(super) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let name_end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(name_end + 1..)?).ok()?;
    // Fields are numbered as in proc_pid_stat(5): the first one behind the name is the third.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: match field(3)? {
            "Z" => State::Zombie,
            "X" | "x" => State::Dead,
            _ => State::Alive,
        },
        parent: field(4)?.parse().ok()?,
        is_kernel_thread: field(9)?.parse::<u64>().ok()? & KERNEL_THREAD != 0,
        start_ticks: field(22)?.parse().ok()?,
        program: ProgramId {
            start_code: field(26)?.parse().ok()?,
            start_stack: field(28)?.parse().ok()?,
        },
    })
}

/// The name in `stat`: everything between the first parenthesis and the last.
pub(super) fn parse_comm(text: &[u8]) -> Option<&[u8]> {
    let start = text.iter().position(|&byte| byte == b'(')?;
    let end = text.iter().rposition(|&byte| byte == b')')?;
    text.get(start + 1..end)
}

/// Parses `status`, whose lines are `Key:\tvalues`.
pub(super) fn parse_status(text: &[u8]) -> Option<Status> {
    // The line with the name is left out: it is escaped, but need not be UTF-8.
    let value = |key: &str| {
        text.split(|&byte| byte == b'\n').find_map(|line| {
            let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b":")?;
            Some(std::str::from_utf8(value).ok()?.trim())
        })
    };
    let tgid = value("Tgid")?.parse().ok()?;
    // Kernels without PID namespaces have no such line.
    let namespaced_pids = match value("NSpid") {
        Some(pids) => pids.split_ascii_whitespace().map(|pid| pid.parse().ok()).collect(),
        None => Some(vec![tgid]),
    };
    let seccomp = match value("Seccomp") {
        // Kernels without seccomp have no such line.
        Some("0") | None => Seccomp::Off,
        Some("1") => Seccomp::Strict,
        Some("2") => Seccomp::Filter,
        Some(_) => return None,
    };
    let has_shadow_stack = value("x86_Thread_features")
        .is_some_and(|features| features.split_ascii_whitespace().any(|name| name == "shstk"));
    Some(Status { tgid, namespaced_pids: namespaced_pids?, seccomp, has_shadow_stack })
}

#[cfg(test)]
impl ProgramId {
    pub(super) fn new(start_code: u64, start_stack: u64) -> ProgramId {
        ProgramId { start_code, start_stack }
    }
}

/// The stack pointer in `syscall`: `nr arg… sp pc`, or `-1 sp pc`; `None` for `running`.
pub(super) fn parse_syscall_stack_pointer(text: &[u8]) -> Option<Avma> {
    let text = std::str::from_utf8(text).ok()?;
    let pointer = text.split_ascii_whitespace().rev().nth(1)?;
    Some(Avma(u64::from_str_radix(pointer.strip_prefix("0x")?, 16).ok()?))
}
