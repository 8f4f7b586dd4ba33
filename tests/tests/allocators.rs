//! Every allocator, with its real library: each call counts once, with a complete stack.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::{
    memtrace, record_attached, record_attached_with, record_launched, report, run, start_waiting,
    trace_path,
};
use memtrace_tests::report::{Report, Stack};
use memtrace_tests::table::Table;
use memtrace_tests::{allocators, scratch_directory};

/// Attached to, so that the totals hold whatever the allocator does before `main`.
fn counts_are_exact(programs: &[Program], stacks: Stacks) -> Result<()> {
    privileged!();
    for program in programs {
        let executable = allocators::build(program)?;
        let trace = trace_path(&format!("allocator-{}", program.name))?;

        record_attached(&trace, &executable)?;

        compare(&program.table()?, &report(&trace)?, stacks).context(program.name)?;
    }
    Ok(())
}

/// From the first instruction, when the allocator itself may not be ready.
fn launch_is_exact(programs: &[Program], stacks: Stacks) -> Result<()> {
    privileged!();
    for program in programs {
        let executable = allocators::build(program)?;
        let trace = trace_path(&format!("allocator-launched-{}", program.name))?;

        record_launched(&trace, &[&executable])?;

        let mut table = program.table()?;
        table.totals.clear();
        compare(&table, &report(&trace)?, stacks).context(program.name)?;
    }
    Ok(())
}

#[test]
fn functions_of_c_count_once_in_every_allocator() -> Result<()> {
    counts_are_exact(allocators::C, Stacks::Complete)
}

#[test]
fn functions_of_c_count_once_from_the_first_instruction() -> Result<()> {
    launch_is_exact(allocators::C, Stacks::Complete)
}

#[test]
fn functions_of_c_count_once_in_musl() -> Result<()> {
    counts_are_exact(allocators::MUSL, Stacks::MayEndEarly)
}

#[test]
fn operators_count_once_in_every_allocator_and_library() -> Result<()> {
    counts_are_exact(allocators::CXX, Stacks::Complete)
}

#[test]
fn extended_functions_of_jemalloc_count_once() -> Result<()> {
    counts_are_exact(&[allocators::EXTENDED_JEMALLOC], Stacks::Complete)
}

fn rust_crate_is_exact(feature: &str) -> Result<()> {
    privileged!();
    let (executable, source) = allocators::rust(feature)?;
    let table = Table::parse(&std::fs::read_to_string(source)?)?;
    let trace = trace_path(&format!("allocator-rust-{feature}"))?;

    record_launched(&trace, &[&executable])?;

    compare(&table, &report(&trace)?, Stacks::Complete)
}

#[test]
fn jemalloc_in_a_rust_program_counts_once() -> Result<()> {
    rust_crate_is_exact("jemalloc")
}

#[test]
fn mimalloc_in_a_rust_program_counts_once() -> Result<()> {
    rust_crate_is_exact("mimalloc")
}

#[test]
fn exception_out_of_operator_new_is_caught_by_the_program() -> Result<()> {
    privileged!();
    for program in [program::THROWING_JEMALLOC, program::THROWING_TCMALLOC] {
        let trace = trace_path(&format!("allocator-{}", program.name))?;
        let executable = program.build(FramePointers::Omitted)?;

        let finished = record_launched(&trace, &[&executable])?;

        if finished.stderr.contains("be left by an exception, the program ends") {
            println!("skipped: this kernel does not let return addresses be put back");
            return Ok(());
        }
        ensure!(!finished.stderr.contains("ended with"), "{}", finished.stderr);
        compare(&program.table()?, &report(&trace)?, Stacks::Complete)?;
    }
    Ok(())
}

/// The probes of [`program::POOL`].
const POOL_PROBES: &[&str] = &[
    "--probe=alloc:pool_alloc(size=arg1)->ret",
    "--probe=alloc:*!pool_array(size=arg2*arg3)",
    "--probe=realloc:pool_realloc(ptr=arg2,size=arg1)",
    "--probe=alloc:pool!pool_take(size=arg3)->*arg0",
    "--probe=free:pool_free(ptr=arg1)",
    "--probe=alloc:wrap_alloc",
    "--probe=free:wrap_free",
    "--probe=ignore:pool_create",
    "--probe=ignore:pool_destroy",
];

#[test]
fn functions_that_the_user_names_are_counted_as_said() -> Result<()> {
    privileged!();
    let pool = program::POOL.build(FramePointers::Omitted)?;
    let trace = trace_path("pool-attached")?;

    record_attached_with(&trace, &pool, POOL_PROBES)?;

    let report = report(&trace)?;
    compare(&program::POOL.table()?, &report, Stacks::Complete)?;
    ensure!(report.counter("orphan_frees") == 0, "{}", report.json["counters"]);
    Ok(())
}

fn record_pool(name: &str, executable: &Path, probes: &[String]) -> Result<Report> {
    let trace = trace_path(name)?;
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(&trace).args(probes).arg("--").arg(executable);
    run(&mut record)?.require_success("memtrace record")?;
    report(&trace)
}

#[test]
fn functions_of_a_stripped_program_are_named_by_address() -> Result<()> {
    privileged!();
    let pool = program::POOL.build(FramePointers::Omitted)?;
    let stripped = scratch_directory("stripped")?.join("pool");
    run(std::process::Command::new("strip").arg("-o").arg(&stripped).arg(&pool))?
        .require_success("strip")?;
    let symbols = run(std::process::Command::new("nm").arg(&pool))?.require_success("nm")?.stdout;
    let by_address: Vec<String> = POOL_PROBES
        .iter()
        .map(|probe| {
            let (head, rest) = probe.split_once(':').context("a kind")?;
            let rest = rest.rsplit_once('!').map_or(rest, |(_, rest)| rest);
            let end = rest.find(['(', '-']).unwrap_or(rest.len());
            let (name, arguments) = rest.split_at(end);
            let line = symbols.lines().find(|line| line.split(' ').next_back() == Some(name));
            let address = line.and_then(|line| line.split(' ').next()).context("its address")?;
            Ok(format!("{head}:0x{address}{arguments}"))
        })
        .collect::<Result<_>>()?;

    let report = record_pool("pool-stripped", &stripped, &by_address)?;

    let totals = |name: &str| report.number(&format!("/totals/{name}"));
    ensure!((totals("allocations")?, totals("allocated_bytes")?) == (586, 52935));
    ensure!((totals("frees")?, totals("freed_bytes")?) == (307, 28485));
    Ok(())
}

/// What memtrace says of a probe that cannot be placed.
fn refusal(executable: &Path, probe: &str) -> Result<String> {
    let trace = trace_path("pool-refused")?;
    let mut record = memtrace()?;
    record.args(["record", "-o"]).arg(&trace).arg(probe).arg("--").arg(executable);
    let finished = run(&mut record)?;
    ensure!(finished.status.code() == Some(2), "{probe}: {}", finished.status);
    ensure!(!trace.exists(), "{probe}: a trace is left behind");
    Ok(finished.stderr)
}

#[test]
fn probe_that_cannot_be_placed_is_refused_with_the_reason() -> Result<()> {
    privileged!();
    let pool = program::POOL.build(FramePointers::Omitted)?;
    let symbols = run(std::process::Command::new("nm").arg(&pool))?.stdout;
    let main = symbols.lines().find(|line| line.ends_with(" T main")).context("main")?;
    let main = u64::from_str_radix(main.split(' ').next().context("an address")?, 16)?;
    let inside = format!("--probe=alloc:{:#x}", main + 4);
    let cases: [(&str, &str); 4] = [
        ("--probe=alloc:pool_aloc", "similar ones are pool_alloc"),
        (&inside, "is inside the function that starts at"),
        ("--probe=alloc:0x10", "not in the file's executable code"),
        ("--probe=alloc:pool_alloc(size=rdi)", "none of `size=argN`"),
    ];
    for (probe, reason) in cases {
        let said = refusal(&pool, probe)?;
        ensure!(said.contains(reason), "{probe}: {said}");
    }
    Ok(())
}

#[test]
fn arenas_of_python_are_mappings_of_its_function() -> Result<()> {
    privileged!();
    let script = "import sys; x = [str(i) * 3 for i in range(60000)]; sys._debugmallocstats()";
    let trace = trace_path("arenas-python")?;

    let command = ["/usr/bin/python3", "-c", script].map(Path::new);
    let said = record_launched(&trace, &command)?.stderr;

    // Python counts its arenas itself; each has 1 MiB.
    let line = said.lines().find(|line| line.starts_with("# arenas allocated total"));
    let arenas = line.and_then(|line| line.rsplit('=').next()).context("Python's own count")?;
    let arenas: u64 = arenas.trim().parse().context("Python's own count")?;
    let report = report(&trace)?;
    // Debian's python3 is stripped; python3-dbg brings the names.
    let is_arena = |stack: &&Stack| match stack.frames.as_slice() {
        [map, new, ..] => map.is("_PyObject_ArenaMmap") && new.is("new_arena"),
        _ => false,
    };
    let stacks = report.stacks.iter().filter(is_arena);
    let bytes: u64 = stacks.filter_map(|stack| stack.json["allocated_bytes"].as_u64()).sum();
    ensure!(arenas >= 3 && bytes == arenas << 20, "{bytes} bytes of {arenas} arenas were mapped");
    let functions = report.json["functions"].as_array().context("functions")?;
    let function = functions.iter().find(|function| function["function"] == "_PyObject_ArenaMmap");
    let listed = function.context("it is listed")?["mapped"]["self"]["allocated_bytes"].as_u64();
    ensure!(listed.is_some_and(|listed| listed >= bytes), "{listed:?}");
    Ok(())
}

/// What `doctor -p` prints of a process that allocates all the time.
#[test]
fn doctor_tells_of_a_process_what_tracing_it_means() -> Result<()> {
    privileged!();
    let program = program::STEADY.build(FramePointers::Omitted)?;
    let target = start_waiting(&program)?;

    let pid = target.pid().to_string();
    let doctor = run(memtrace()?.args(["doctor", "-p", &pid, "--sample", "1s"]))?;

    let said = doctor.require_success("memtrace doctor -p")?.stdout;
    let path = program.display().to_string();
    let wanted = [
        "Allocators\n  glibc",
        "    malloc+0x",
        "emulated, 0.7 µs a hit",
        &format!("debug info {path}"),
        "debug info ",
        "allocations/s",
        "% of one core",
        "complete stacks: 100.0%",
    ];
    for wanted in wanted {
        ensure!(said.contains(wanted), "no `{wanted}` in\n{said}");
    }
    ensure!(!said.contains(" 0 allocations/s"), "{said}");
    let wide = said.lines().find(|line| line.chars().count() > 80);
    ensure!(wide.is_none(), "{wide:?}");
    target.signal("KILL")?;
    Ok(())
}
