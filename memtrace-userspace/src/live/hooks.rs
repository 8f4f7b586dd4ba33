//! The programs that watch the kernel itself: mappings, and the life of processes and threads.
//!
//! Mappings are seen at the functions behind the system calls (`fentry`, `fexit`), which costs the
//! calls that are watched and no others. A kernel that does not let its functions be watched (it is
//! built without CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, or forbids it) has the tracepoints of all
//! system calls. They slow down every system call on the host, and from 6.11 on each return probe,
//! which is one: 140 ns for a pair of `malloc` and `free`.

use std::os::fd::{AsFd, AsRawFd};

use aya::programs::{Program, ProgramError};
use aya::{Btf, Ebpf};
use aya_obj::btf::BtfKind;
use rayon::prelude::*;

use super::loader::LoadError;

/// A program of the object, and the function or tracepoint of the kernel that it watches.
type Hook = (&'static str, &'static str);

const FUNCTIONS: [Hook; 8] = [
    ("munmap_enter", "__x64_sys_munmap"),
    ("mremap_enter", "__x64_sys_mremap"),
    ("mmap_exit", "__x64_sys_mmap"),
    ("munmap_exit", "__x64_sys_munmap"),
    ("mremap_exit", "__x64_sys_mremap"),
    ("mprotect_exit", "__x64_sys_mprotect"),
    ("brk_exit", "__x64_sys_brk"),
    ("schedule_tail_exit", "schedule_tail"),
];

/// A kernel without protection keys has no such function, and nothing to watch.
const PKEY_MPROTECT: Hook = ("pkey_mprotect_exit", "__x64_sys_pkey_mprotect");

/// What does their work where functions cannot be watched.
const SYSTEM_CALLS: [Hook; 2] = [("sys_enter", "sys_enter"), ("sys_exit", "sys_exit")];

/// What nothing replaces.
const LIFE: [Hook; 4] = [
    ("sched_process_fork", "sched_process_fork"),
    ("sched_process_exec", "sched_process_exec"),
    ("sched_process_exit", "sched_process_exit"),
    ("task_rename", "task_rename"),
];

/// Loads and attaches them. They stay as long as `ebpf` does.
pub(super) fn attach(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), LoadError> {
    watch(ebpf, btf, &LIFE).map_err(LoadError::refused)?;
    let keys = btf.id_by_type_name_kind(PKEY_MPROTECT.1, BtfKind::Func).ok().map(|_| PKEY_MPROTECT);
    let functions: Vec<Hook> = FUNCTIONS.into_iter().chain(keys).collect();
    let Err(error) = watch(ebpf, btf, &functions) else {
        tracing::debug!("mappings are watched at the kernel's functions");
        return Ok(());
    };
    tracing::info!(
        "the kernel's functions cannot be watched ({}): mappings are watched at the tracepoints of \
         all system calls, which makes each call slower",
        error.to_string().lines().next().unwrap_or_default(),
    );
    for (_, program) in ebpf.programs_mut() {
        // Those that were not loaded cannot be unloaded, and need not be.
        let _ = match program {
            Program::FEntry(program) => program.unload(),
            Program::FExit(program) => program.unload(),
            _ => Ok(()),
        };
    }
    watch(ebpf, btf, &SYSTEM_CALLS).map_err(LoadError::refused)
}

/// Events that the kernel did not show: it keeps a program on one of its functions from running
/// while it already runs on that CPU, for a thread that was preempted.
pub(super) fn missed(ebpf: &Ebpf) -> u64 {
    FUNCTIONS
        .iter()
        .chain([&PKEY_MPROTECT])
        .filter_map(|(name, _)| {
            let fd = ebpf.program(name)?.fd().ok()?;
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            recursion_misses(&std::fs::read_to_string(path).ok()?)
        })
        .sum()
}

/// The count in what the kernel tells of a program's file descriptor.
fn recursion_misses(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok())
}

/// Loads `hooks` side by side, since the kernel takes its time to verify each, and attaches them.
fn watch(ebpf: &mut Ebpf, btf: &Btf, hooks: &[Hook]) -> Result<(), ProgramError> {
    let mut programs: Vec<(&str, &mut Program)> = ebpf
        .programs_mut()
        .filter_map(|(name, program)| {
            hooks.iter().find(|(hook, _)| *hook == name).map(|(_, at)| (*at, program))
        })
        .collect();
    programs.par_iter_mut().try_for_each(|(at, program)| load(program, at, btf))?;
    programs.into_iter().try_for_each(|(_, program)| match program {
        Program::BtfTracePoint(program) => program.attach().map(drop),
        Program::FEntry(program) => program.attach().map(drop),
        Program::FExit(program) => program.attach().map(drop),
        _ => Err(ProgramError::UnexpectedProgramType),
    })
}

fn load(program: &mut Program, at: &str, btf: &Btf) -> Result<(), ProgramError> {
    match program {
        Program::BtfTracePoint(program) => program.load(at, btf),
        Program::FEntry(program) => program.load(at, btf),
        Program::FExit(program) => program.load(at, btf),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recursion_misses_are_read_from_the_kernels_words() {
        let fdinfo =
            "pos:\t0\nprog_type:\t26\nrun_cnt:\t5\nrecursion_misses:\t3\nverified_insns:\t9\n";

        assert_eq!(recursion_misses(fdinfo), Some(3));
        assert_eq!(recursion_misses("pos:\t0\n"), None);
    }
}
