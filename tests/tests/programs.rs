//! Every number of every test program, launched and attached to, with and without frame pointers.

use anyhow::Result;
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers, Program, Startup};
use memtrace_tests::recording::{
    memtrace, record_attached, record_attached_with, record_launched, report, run, trace_path,
};

fn launched(program: Program, frame_pointers: FramePointers, stacks: Stacks) -> Result<()> {
    privileged!();
    let executable = program.build(frame_pointers)?;
    let trace = trace_path(&format!("launched-{}-{frame_pointers:?}", program.name))?;

    record_launched(&trace, &[&executable])?;

    let mut table = program.table()?;
    if program.startup == Startup::Allocates {
        table.totals.clear();
    }
    compare(&table, &report(&trace)?, stacks)
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
    // musl has no unwind information but what memtrace makes of it.
    leak_musl: LEAK_MUSL, HeapComplete;
    leak_musl_static: LEAK_MUSL_STATIC, HeapComplete;
    cross_thread_musl: CROSS_THREAD_MUSL, HeapComplete;
    cross_thread: CROSS_THREAD, Complete;
    realloc_chain: REALLOC_CHAIN, Complete;
    calloc_blocks: CALLOC_BLOCKS, Complete;
    allocator_paths: ALLOCATOR_PATHS, Complete;
    aligned: ALIGNED, Complete;
    recursion: RECURSION, Complete;
    signal_handler: SIGNAL_HANDLER, Complete;
    signal_in_vdso: SIGNAL_IN_VDSO, Complete;
    signal_in_allocator: SIGNAL_IN_ALLOCATOR, Complete;
    longjmp: LONGJMP, Complete;
    left_realloc: LEFT_REALLOC, Complete;
    own_allocator: OWN_ALLOCATOR, Complete;
    cxx_objects: CXX_OBJECTS, Complete;
    cxx_exception: CXX_EXCEPTION, Complete;
    exec_again: EXEC_AGAIN, Complete;
    thread_churn: THREAD_CHURN, Complete;
    mappings: MAPPINGS, Complete;
    reserved: RESERVED, Complete;
    big_mapping: BIG_MAPPING, Complete;
    filtered: FILTERED, Complete;
    rust_program: RUST_PROGRAM, Complete;
    // Go switches stacks on the way into C.
    cgo_program: CGO_PROGRAM, MayEndEarly;
}

/// With this setting `_int_malloc` writes to each block on its way out.
#[test]
fn allocator_that_fills_its_memory_is_exact() -> Result<()> {
    privileged!();
    let executable = program::ALLOCATOR_PATHS.build(FramePointers::Omitted)?;
    let trace = trace_path("launched-allocator_paths-filled")?;
    let mut record = memtrace()?;
    record.env("GLIBC_TUNABLES", "glibc.malloc.perturb=165");

    record.args(["record", "-o"]).arg(&trace).arg("--").arg(&executable);
    run(&mut record)?.require_success("memtrace record")?;

    compare(&program::ALLOCATOR_PATHS.table()?, &report(&trace)?, Stacks::Complete)
}

mod dlopen_plugins {
    use super::*;

    #[test]
    fn launched_with_frame_pointers() -> Result<()> {
        launched(program::DLOPEN_PLUGINS, FramePointers::Kept, Stacks::Complete)
    }

    #[test]
    fn launched_without_frame_pointers() -> Result<()> {
        launched(program::DLOPEN_PLUGINS, FramePointers::Omitted, Stacks::Complete)
    }

    #[test]
    fn attached_with_frame_pointers() -> Result<()> {
        attached_and_stopped_for_code(FramePointers::Kept)
    }

    #[test]
    fn attached_without_frame_pointers() -> Result<()> {
        attached_and_stopped_for_code(FramePointers::Omitted)
    }

    /// A plugin is unloaded within a millisecond: only a target that waits keeps its names.
    fn attached_and_stopped_for_code(frame_pointers: FramePointers) -> Result<()> {
        privileged!();
        let executable = program::DLOPEN_PLUGINS.build(frame_pointers)?;
        let trace = trace_path(&format!("attached-dlopen_plugins-{frame_pointers:?}"))?;

        record_attached_with(&trace, &executable, &["--stop-for-code"])?;

        compare(&program::DLOPEN_PLUGINS.table()?, &report(&trace)?, Stacks::Complete)
    }

    #[test]
    fn attached_without_a_stop_loses_no_allocation() -> Result<()> {
        privileged!();
        let executable = program::DLOPEN_PLUGINS.build(FramePointers::Omitted)?;
        let trace = trace_path("attached-dlopen_plugins-running")?;

        record_attached(&trace, &executable)?;

        let report = report(&trace)?;
        // 13 in constructors, 127 and 131 in the plugins; names of code that is gone may be missing.
        let plugins = 13 + 127 + 131;
        assert_eq!(report.number("/capture/lost_events")?, 0);
        assert!(report.number("/totals/allocations")? >= plugins);
        Ok(())
    }
}

mod dlopen_churn {
    use super::*;

    #[test]
    fn launched_is_exact() -> Result<()> {
        launched(program::DLOPEN_CHURN, FramePointers::Omitted, Stacks::Complete)
    }

    #[test]
    fn attached_and_stopped_for_code_is_exact() -> Result<()> {
        privileged!();
        let executable = program::DLOPEN_CHURN.build(FramePointers::Omitted)?;
        let trace = trace_path("attached-dlopen_churn")?;

        record_attached_with(&trace, &executable, &["--stop-for-code"])?;

        compare(&program::DLOPEN_CHURN.table()?, &report(&trace)?, Stacks::Complete)
    }

    #[test]
    fn attached_without_a_stop_loses_names_but_no_allocation() -> Result<()> {
        privileged!();
        let executable = program::DLOPEN_CHURN.build(FramePointers::Omitted)?;
        let trace = trace_path("attached-dlopen_churn-running")?;

        record_attached(&trace, &executable)?;

        let report = report(&trace)?;
        // What dlopen itself allocates comes on top.
        let plugins = 5080 + 5240;
        assert_eq!(report.number("/capture/lost_events")?, 0);
        assert!(report.number("/totals/allocations")? >= plugins);
        let ends = report.stacks.iter().map(|stack| stack.end.as_str());
        let ends: std::collections::BTreeSet<&str> = ends.collect();
        assert!(
            ends.iter().all(|end| ["root", "unknown_code", "no_unwind_info"].contains(end)),
            "{ends:?}"
        );
        Ok(())
    }
}

mod fork_both {
    use super::*;
    use memtrace_tests::table::{Subject, Table};

    #[test]
    fn launched_with_frame_pointers() -> Result<()> {
        launched(program::FORK_BOTH, FramePointers::Kept, Stacks::Complete)
    }

    #[test]
    fn launched_without_frame_pointers() -> Result<()> {
        launched(program::FORK_BOTH, FramePointers::Omitted, Stacks::Complete)
    }

    #[test]
    fn attached_sees_the_parent_alone() -> Result<()> {
        privileged!();
        let executable = program::FORK_BOTH.build(FramePointers::Omitted)?;
        let trace = trace_path("attached-fork_both")?;

        record_attached(&trace, &executable)?;

        compare(&of_the_parent(program::FORK_BOTH.table()?), &report(&trace)?, Stacks::Complete)
    }

    /// What is left of the table if the children are not traced.
    fn of_the_parent(mut table: Table) -> Table {
        let mut absent = Vec::new();
        table.rows.retain(|row| {
            let Subject::Function(name) = &row.subject else { return true };
            let child = name.contains("child");
            if child {
                absent.push(name.clone());
            }
            !child
        });
        table.absent = absent;
        table.processes.truncate(1);
        table.process_count = None;
        table.totals = table.processes[0].columns.clone();
        table
    }
}
