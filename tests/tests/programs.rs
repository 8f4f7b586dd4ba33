//! Every number of every test program, launched and attached to, with and without frame pointers.

use anyhow::Result;
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::{record_attached, record_launched, report, trace_path};

fn launched(program: Program, frame_pointers: FramePointers, stacks: Stacks) -> Result<()> {
    privileged!();
    let executable = program.build(frame_pointers)?;
    let trace = trace_path(&format!("launched-{}-{frame_pointers:?}", program.name))?;

    record_launched(&trace, &[&executable])?;

    compare(&program.table()?, &report(&trace)?, stacks)
}

fn attached(program: Program, frame_pointers: FramePointers, stacks: Stacks) -> Result<()> {
    privileged!();
    let executable = program.build(frame_pointers)?;
    let trace = trace_path(&format!("attached-{}-{frame_pointers:?}", program.name))?;

    record_attached(&trace, &executable)?;

    compare(&program.table()?, &report(&trace)?, stacks)
}

/// The four tests of a program.
macro_rules! tests_of {
    ($($module:ident: $program:ident, $stacks:ident;)*) => {
        $(mod $module {
            use super::*;

            #[test]
            fn launched_with_frame_pointers() -> Result<()> {
                launched(program::$program, FramePointers::Kept, Stacks::$stacks)
            }

            #[test]
            fn launched_without_frame_pointers() -> Result<()> {
                launched(program::$program, FramePointers::Omitted, Stacks::$stacks)
            }

            #[test]
            fn attached_with_frame_pointers() -> Result<()> {
                attached(program::$program, FramePointers::Kept, Stacks::$stacks)
            }

            #[test]
            fn attached_without_frame_pointers() -> Result<()> {
                attached(program::$program, FramePointers::Omitted, Stacks::$stacks)
            }
        })*
    };
}

tests_of! {
    leak: LEAK, Complete;
    leak_static: LEAK_STATIC, Complete;
    leak_jemalloc: LEAK_JEMALLOC, Complete;
    // Debian builds musl without unwind information: stacks may end where main was called.
    leak_musl: LEAK_MUSL, MayEndEarly;
    leak_musl_static: LEAK_MUSL_STATIC, MayEndEarly;
    cross_thread: CROSS_THREAD, Complete;
    realloc_chain: REALLOC_CHAIN, Complete;
    calloc_blocks: CALLOC_BLOCKS, Complete;
    aligned: ALIGNED, Complete;
    recursion: RECURSION, Complete;
    signal_handler: SIGNAL_HANDLER, Complete;
    longjmp: LONGJMP, Complete;
    own_allocator: OWN_ALLOCATOR, Complete;
    cxx_objects: CXX_OBJECTS, Complete;
    cxx_exception: CXX_EXCEPTION, Complete;
    fork_both: FORK_BOTH, Complete;
    exec_again: EXEC_AGAIN, Complete;
    dlopen_plugins: DLOPEN_PLUGINS, Complete;
    thread_churn: THREAD_CHURN, Complete;
    mappings: MAPPINGS, Complete;
    big_mapping: BIG_MAPPING, Complete;
    rust_program: RUST_PROGRAM, Complete;
    // Go switches stacks on the way into C.
    cgo_program: CGO_PROGRAM, MayEndEarly;
}
