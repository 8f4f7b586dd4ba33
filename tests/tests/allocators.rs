//! Every allocator, with its real library: each call counts once, with a complete stack.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use memtrace_tests::compare::{Stacks, compare};
use memtrace_tests::privileged;
use memtrace_tests::program::{self, FramePointers, Program};
use memtrace_tests::recording::{
    memtrace, record_attached, record_attached_with, record_launched, report, run, start_waiting,
    trace_path,
};
use memtrace_tests::report::{Report, Stack};
use memtrace_tests::table::{Column, Table};
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

/// Over-aligned blocks by alignment: allocations, bytes, and those smaller than their alignment.
///
/// Libraries may ask for 16, which every block has.
fn aligned(report: &Report) -> Result<Vec<[u64; 4]>> {
    let functions = report.json["statistics"]["aligned_by_function"].as_array();
    let number = |of: &serde_json::Value, key: &str| of[key].as_u64().context("a number");
    let blocks = |of: &serde_json::Value| -> Result<[u64; 4]> {
        let [alignment, allocations] = [number(of, "alignment")?, number(of, "allocations")?];
        let [bytes, smaller] = [number(of, "requested_bytes")?, number(of, "smaller_allocations")?];
        Ok([alignment, allocations, bytes, smaller])
    };
    let mut blocks: Vec<_> =
        functions.context("functions")?.iter().map(blocks).collect::<Result<_>>()?;
    blocks.retain(|[alignment, ..]| *alignment > 16);
    blocks.sort_unstable();
    Ok(blocks)
}

#[test]
fn alignments_are_those_that_the_program_asked_for() -> Result<()> {
    privileged!();
    // posix_memalign, aligned_alloc, memalign and valloc of `allocators.c`.
    let of_c = [[64, 23, 2300, 0], [128, 19, 4864, 0], [256, 17, 2873, 17], [4096, 7, 700, 7]];
    // `new Wide` of `operators.cc`, and `mallocx` of `extended_jemalloc.c`.
    let (of_cxx, of_mallocx) = ([[128, 13, 3328, 0]], [[64, 21, 4200, 0]]);
    let with = |expected| move |program| (program, expected);
    let programs = allocators::C.iter().map(with(&of_c[..]));
    let programs = programs.chain(allocators::MUSL.iter().map(with(&of_c)));
    let programs = programs.chain(allocators::CXX.iter().map(with(&of_cxx)));
    let programs = programs.chain([(&allocators::EXTENDED_JEMALLOC, &of_mallocx[..])]);
    for (program, expected) in programs {
        let executable = allocators::build(program)?;
        let trace = trace_path(&format!("alignments-{}", program.name))?;

        record_attached(&trace, &executable)?;

        let found = aligned(&report(&trace)?)?;
        ensure!(found == expected, "{}: {found:?}", program.name);
    }
    Ok(())
}

/// `extra_bytes` of a program's over-aligned blocks; null if it is not known.
fn extra_bytes(program: &Program) -> Result<(serde_json::Value, serde_json::Value)> {
    let executable = allocators::build(program)?;
    let trace = trace_path(&format!("extra-{}", program.name))?;
    record_launched(&trace, &[&executable])?;
    let statistics = &report(&trace)?.json["statistics"];
    Ok((statistics["allocator"].clone(), statistics["over_aligned"]["extra_bytes"].clone()))
}

#[test]
fn cost_of_an_alignment_is_what_the_allocator_takes_for_it() -> Result<()> {
    privileged!();
    let program = |name| {
        let found = allocators::C.iter().find(|program| program.name == name);
        found.context("such a program")
    };
    // jemalloc: 100 bytes take 128 and not 112, 169 take 256 and not 192, 100 a page.
    let of_jemalloc = 23 * (128 - 112) + 17 * (256 - 192) + 7 * (4096 - 112);
    // tcmalloc: 128 and not 112, 256 and not 176, a page of the kernel and not 112.
    let of_tcmalloc = 23 * (128 - 112) + 17 * (256 - 176) + 7 * (4096 - 112);

    ensure!(extra_bytes(program("c_jemalloc")?)? == ("jemalloc".into(), of_jemalloc.into()));
    ensure!(extra_bytes(program("c_tcmalloc")?)? == ("tcmalloc".into(), of_tcmalloc.into()));
    ensure!(extra_bytes(program("c_glibc")?)? == ("glibc".into(), 0.into()));
    let unknown = serde_json::Value::Null;
    ensure!(extra_bytes(program("c_mimalloc")?)? == (unknown.clone(), unknown));
    Ok(())
}

#[test]
fn extended_functions_of_mimalloc_count_once() -> Result<()> {
    counts_are_exact(&[allocators::EXTENDED_MIMALLOC], Stacks::Complete)
}

#[test]
fn mimalloc_linked_into_a_program_counts_once() -> Result<()> {
    privileged!();
    for version in [2, 3] {
        let programs = allocators::static_mimalloc(version)?;
        ensure!(programs.len() == 3, "{programs:?}");
        for (executable, program) in programs {
            let name = format!("{} with version {version}", program.name);
            let trace = trace_path(&format!("allocator-static-{}-{version}", program.name))?;

            record_attached(&trace, &executable)?;

            let report = report(&trace)?;
            compare(&program.table()?, &report, Stacks::Complete).context(name.clone())?;
            let probes = report.json["capture"]["probes"].as_array().context("probes")?;
            let is_inside = |probe: &serde_json::Value| {
                probe["module"].as_str().is_some_and(|module| Path::new(module) == executable)
            };
            ensure!(probes.iter().any(is_inside), "{name}: {probes:?}");
        }
    }
    Ok(())
}

#[test]
fn functions_of_a_prefixed_jemalloc_count_once() -> Result<()> {
    privileged!();
    let executable = allocators::prefixed_jemalloc()?;
    let trace = trace_path("allocator-jemalloc-je")?;

    record_attached(&trace, &executable)?;

    let report = report(&trace)?;
    compare(&allocators::EXTENDED_JEMALLOC.table()?, &report, Stacks::Complete)?;
    let probes = report.json["capture"]["probes"].as_array().context("probes")?;
    ensure!(probes.iter().any(|probe| probe["symbol"] == "je_xallocx"), "{probes:?}");
    Ok(())
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

/// Its functions replace the C library's.
#[test]
fn jemalloc_without_a_prefix_in_a_rust_program_counts_once() -> Result<()> {
    rust_crate_is_exact("jemalloc-unprefixed")
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
            // It has warned. The program ends, and what was recorded until then is whole.
            println!("this kernel does not let return addresses be put back: the program ends");
            ensure!(finished.stderr.contains("ended with signal: 6"), "{}", finished.stderr);
            let report = report(&trace)?;
            ensure!(report.number("/capture/lost_events")? == 0, "{}", report.json["capture"]);
            let table = program.table()?;
            ensure!(!table.absent.is_empty(), "{} says nothing of what fails", program.name);
            let never = |stack: &Stack| {
                let first = stack.frames.first();
                first.is_some_and(|first| table.absent.iter().any(|absent| first.is(absent)))
            };
            ensure!(!report.stacks.iter().any(never), "{}: a failed call counts", program.name);
            continue;
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

/// A copy of a program without its symbols, and these as `nm` lists them.
fn strip(program: &Path) -> Result<(PathBuf, String)> {
    let name = program.file_name().context("a file name")?;
    let stripped = scratch_directory(&format!("stripped-{}", name.display()))?.join(name);
    run(Command::new("strip").arg("-o").arg(&stripped).arg(program))?.require_success("strip")?;
    let symbols = run(Command::new("nm").arg(program))?.require_success("nm")?.stdout;
    Ok((stripped, symbols))
}

/// The address of a symbol in what `nm` has listed, in hex.
fn address<'a>(symbols: &'a str, name: &str) -> Result<&'a str> {
    let line = symbols.lines().find(|line| line.split(' ').next_back() == Some(name));
    line.and_then(|line| line.split(' ').next()).with_context(|| format!("address of {name}"))
}

#[test]
fn functions_of_a_stripped_program_are_named_by_address() -> Result<()> {
    privileged!();
    let pool = program::POOL.build(FramePointers::Omitted)?;
    let (stripped, symbols) = strip(&pool)?;
    let by_address: Vec<String> = POOL_PROBES
        .iter()
        .map(|probe| {
            let (head, rest) = probe.split_once(':').context("a kind")?;
            let rest = rest.rsplit_once('!').map_or(rest, |(_, rest)| rest);
            let end = rest.find(['(', '-']).unwrap_or(rest.len());
            let (name, arguments) = rest.split_at(end);
            Ok(format!("{head}:0x{}{arguments}", address(&symbols, name)?))
        })
        .collect::<Result<_>>()?;

    let report = record_pool("pool-stripped", &stripped, &by_address)?;

    let totals = |name: &str| report.number(&format!("/totals/{name}"));
    ensure!((totals("allocations")?, totals("allocated_bytes")?) == (586, 52935));
    ensure!((totals("frees")?, totals("freed_bytes")?) == (307, 28485));
    Ok(())
}

#[test]
fn allocator_of_a_stripped_static_program_is_named_by_address() -> Result<()> {
    privileged!();
    for program in [program::LEAK_STATIC, program::LEAK_MUSL_STATIC] {
        let (stripped, symbols) = strip(&program.build(FramePointers::Omitted)?)?;
        let probes = [
            format!("--probe=alloc:0x{}(size=arg0)", address(&symbols, "malloc")?),
            format!("--probe=free:0x{}(ptr=arg0)", address(&symbols, "free")?),
        ];

        let trace = trace_path(&format!("probed-{}", program.name))?;
        record_attached_with(&trace, &stripped, &probes.each_ref().map(String::as_str))?;

        let report = report(&trace)?;
        let totals = program.table()?.totals;
        ensure!(!totals.is_empty(), "{} knows no totals", program.name);
        for Column { name, expected } in totals {
            let found = report.number(&format!("/totals/{name}"))?;
            ensure!(found == expected, "{}: {name} {found}, not {expected}", program.name);
        }
        ensure!(report.number("/capture/lost_events")? == 0);
    }
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
    let symbols = run(Command::new("nm").arg(&pool))?.stdout;
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
