use memtrace_common::event::Api;

use super::*;
use crate::record::ProbeCost;

mod fixture;
mod known_builds;
mod named;

use fixture::{Fixture, FixtureSymbol};

/// `ret`.
const RET: &[u8] = &[0xc3];
/// `push rbp; ret`, as a stand-in for a real function.
const BODY: &[u8] = &[0x55, 0xc3];

fn probed(found: &Found) -> Vec<(&str, Api, Role)> {
    found.targets.iter().map(|t| (t.symbol.as_str(), t.call.api().unwrap(), t.role)).collect()
}

fn skipped(found: &Found) -> Vec<(&str, Skip)> {
    found.skipped.iter().map(|s| (s.symbol.as_str(), s.reason.clone())).collect()
}

#[test]
fn defined_functions_are_found_in_both_tables() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    fixture.dynamic_function("free", BODY);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(
        probed(&found),
        [("malloc", Api::Malloc, Role::Acquire), ("free", Api::Free, Role::Release)]
    );
    assert_eq!(skipped(&found), []);
}

#[test]
fn offset_and_code_are_those_of_the_file() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    let file = fixture.build();

    let target = find(&*file).unwrap().targets.remove(0);

    assert_eq!(target.code(&*file), BODY);
    assert_eq!(target.svma.0, target.offset.0 + fixture::LOAD_BIAS);
}

#[test]
fn imported_function_is_no_target() {
    let mut fixture = Fixture::default();
    fixture.imported("malloc");

    assert_eq!(find(&*fixture.build()).unwrap(), Found::default());
}

#[test]
fn file_without_symbols_has_no_targets() {
    assert_eq!(find(&*Fixture::default().build()).unwrap(), Found::default());
}

#[test]
fn same_symbol_in_both_tables_is_one_target() {
    let mut fixture = Fixture::default();
    let at = fixture.function("malloc", BODY);
    fixture.dynamic_symbols.push(FixtureSymbol::function("malloc", at, 2));

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(probed(&found), [("malloc", Api::Malloc, Role::Acquire)]);
    assert_eq!(skipped(&found), []);
}

#[test]
fn version_is_no_part_of_the_name() {
    let mut fixture = Fixture::default();
    fixture.function("memalign@@GLIBC_2.2.5", BODY);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(probed(&found), [("memalign", Api::Memalign, Role::Acquire)]);
}

#[test]
fn aliases_get_one_probe_under_the_canonical_name() {
    let mut fixture = Fixture::default();
    let at = fixture.function("cfree", BODY);
    fixture.symbols.push(FixtureSymbol::function("free", at, 2));
    fixture.symbols.push(FixtureSymbol::function("_ZdlPv", at, 2));
    fixture.function("malloc", BODY);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(
        probed(&found),
        [("free", Api::Free, Role::Release), ("malloc", Api::Malloc, Role::Acquire)]
    );
    let alias = Skip::Alias { of: "free".into() };
    assert_eq!(skipped(&found), [("_ZdlPv", alias.clone()), ("cfree", alias)]);
}

#[test]
fn indirect_function_is_skipped_by_name() {
    let mut fixture = Fixture::default();
    let at = fixture.code(BODY);
    fixture.symbols.push(FixtureSymbol { kind: 10, ..FixtureSymbol::function("malloc", at, 2) });

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(probed(&found), []);
    assert_eq!(skipped(&found), [("malloc", Skip::IndirectFunction)]);
}

#[test]
fn data_named_like_a_function_is_skipped() {
    let mut fixture = Fixture::default();
    let at = fixture.code(BODY);
    fixture.symbols.push(FixtureSymbol { kind: 1, ..FixtureSymbol::function("free", at, 8) });

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("free", Skip::NotAFunction)]);
}

#[test]
fn symbol_without_size_is_skipped() {
    let mut fixture = Fixture::default();
    let at = fixture.code(BODY);
    fixture.symbols.push(FixtureSymbol::function("malloc", at, 0));

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("malloc", Skip::NoSize)]);
}

#[test]
fn symbol_outside_the_code_is_skipped() {
    let mut fixture = Fixture::default();
    fixture.symbols.push(FixtureSymbol::function("malloc", 0x10, 2));
    fixture.symbols.push(FixtureSymbol::function("calloc", u64::MAX - 1, u64::MAX));
    fixture.symbols.push(FixtureSymbol::function("free", fixture::LOAD_BIAS + 0x100_0000, 2));

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(probed(&found), []);
    let not_in_code = Skip::NotInCode;
    assert_eq!(
        skipped(&found),
        [("calloc", not_in_code.clone()), ("free", not_in_code.clone()), ("malloc", not_in_code)]
    );
}

#[test]
fn segment_that_is_not_executable_holds_no_code() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    fixture.segment_flags = 4;

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("malloc", Skip::NotInCode)]);
}

#[test]
fn glibcs_dynamic_linker_is_skipped() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    fixture.soname = Some("ld-linux-x86-64.so.2");

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(probed(&found), []);
    assert_eq!(skipped(&found), [("malloc", Skip::DynamicLinker)]);
}

#[test]
fn musls_dynamic_linker_is_its_c_library() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    fixture.soname = Some("libc.musl-x86_64.so.1");

    assert_eq!(probed(&find(&*fixture.build()).unwrap()), [("malloc", Api::Malloc, Role::Acquire)]);
}

#[test]
fn operators_of_a_file_without_malloc_are_not_looked_at() {
    let mut fixture = Fixture::default();
    fixture.function("_Znwm", BODY);
    fixture.function("_ZdlPv", BODY);

    assert_eq!(find(&*fixture.build()).unwrap(), Found::default());
}

#[test]
fn operator_with_its_own_fast_path_is_probed() {
    let mut fixture = Fixture::default();
    let malloc = fixture.function("malloc", BODY);
    // cmp rdi, rax; ja slow; ret; slow: jmp malloc
    fixture.function_calling("_Znwm", &[0x48, 0x39, 0xc7, 0x77, 0x01, 0xc3], 0xe9, malloc);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(
        probed(&found),
        [("malloc", Api::Malloc, Role::Acquire), ("_Znwm", Api::New, Role::Acquire)]
    );
}

#[test]
fn operator_that_jumps_to_free_is_skipped() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    let free = fixture.function("free", BODY);
    fixture.function_calling("_ZdlPv", &[0xf3, 0x0f, 0x1e, 0xfa], 0xe9, free);

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("_ZdlPv", Skip::Forwards)]);
}

#[test]
fn operator_that_forwards_to_a_forwarding_operator_is_skipped() {
    let mut fixture = Fixture::default();
    let malloc = fixture.function("malloc", BODY);
    let new = fixture.function_calling("_Znwm", &[], 0xe9, malloc);
    fixture.function_calling("_Znam", &[], 0xe9, new);

    assert_eq!(
        skipped(&find(&*fixture.build()).unwrap()),
        [("_Znam", Skip::Forwards), ("_Znwm", Skip::Forwards)]
    );
}

#[test]
fn operator_that_frees_unless_null_is_skipped() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    let free = fixture.function("free", BODY);
    // test rdi, rdi; jne +1; ret; jmp free
    let head = [0x48, 0x85, 0xff, 0x75, 0x01, 0xc3];
    fixture.function_calling("_ZdlPvm", &head, 0xe9, free);

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("_ZdlPvm", Skip::Forwards)]);
}

#[test]
fn operator_that_frees_only_sometimes_is_probed() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    let free = fixture.function("free", BODY);
    // test rsi, rsi; jne +1; ret; jmp free
    let head = [0x48, 0x85, 0xf6, 0x75, 0x01, 0xc3];
    fixture.function_calling("_ZdlPvm", &head, 0xe9, free);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(found.targets.last().map(|t| t.symbol.as_str()), Some("_ZdlPvm"));
}

#[test]
fn operator_that_calls_malloc_through_the_plt_is_skipped() {
    let mut fixture = Fixture::default();
    fixture.dynamic_function("malloc", BODY);
    let plt = fixture.plt("malloc");
    // push rbx; call malloc@plt; and an end that is not reached by falling through
    fixture.function_calling("_Znwm", &[0x53], 0xe8, plt);

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("_Znwm", Skip::Forwards)]);
}

#[test]
fn operator_that_forwards_through_functions_of_other_names_is_skipped() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    let free = fixture.dynamic_function("free", BODY);
    fixture.dynamic_symbols.push(FixtureSymbol::function("own_free", free, 2));
    let free_stub = fixture.plt("own_free");
    let free_size = fixture.function_calling("own_free_size", &[], 0xe9, free_stub);
    fixture.function_calling("_ZdlPvm", &[], 0xe9, free_size);

    assert_eq!(skipped(&find(&*fixture.build()).unwrap()), [("_ZdlPvm", Skip::Forwards)]);
}

#[test]
fn functions_that_jump_to_each_other_are_followed_only_so_far() {
    let mut fixture = Fixture::default();
    let malloc = fixture.function("malloc", RET);
    let mut next = fixture.function_calling("helper", &[], 0xe9, malloc);
    for _ in 0..10 {
        next = fixture.function_calling("helper", &[], 0xe9, next);
    }
    fixture.function_calling("_Znwm", &[], 0xe9, next);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(found.targets.last().map(|t| t.symbol.as_str()), Some("_Znwm"));
}

#[test]
fn file_with_absurdly_many_allocators_is_cut_short() {
    let mut fixture = Fixture::default();
    for _ in 0..MAX_FUNCTIONS + 100 {
        fixture.function("malloc", BODY);
    }

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(found.targets.len(), MAX_FUNCTIONS);
    assert_eq!(skipped(&found), [("malloc", Skip::TooMany)]);
}

#[test]
fn operator_that_calls_something_else_is_probed() {
    let mut fixture = Fixture::default();
    fixture.dynamic_function("malloc", BODY);
    let plt = fixture.plt("mmap");
    fixture.function_calling("_Znwm", &[0x53], 0xe9, plt);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(found.targets.last().map(|t| t.symbol.as_str()), Some("_Znwm"));
}

#[test]
fn operator_that_releases_does_not_forward_to_one_that_acquires() {
    let mut fixture = Fixture::default();
    let malloc = fixture.function("malloc", BODY);
    fixture.function_calling("_ZdlPv", &[], 0xe9, malloc);

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(found.targets.last().map(|t| t.symbol.as_str()), Some("_ZdlPv"));
}

#[test]
fn operator_that_loops_forever_is_probed() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", RET);
    fixture.function("_Znwm", &[0x90, 0xeb, 0xfd]); // nop; jmp back to the nop

    let found = find(&*fixture.build()).unwrap();

    assert_eq!(found.targets.last().map(|t| t.symbol.as_str()), Some("_Znwm"));
}

#[test]
fn plan_has_a_site_for_every_target() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    fixture.function("free", &[0x48, 0x85, 0xff, 0x74, 0x00, 0xc3]); // test; je; ret
    let file = fixture.build();

    let plan = plan(&*file, &[], Watch::Inside).unwrap();

    let free = &plan.probes[1];
    assert_eq!(free.site, Site { delta: 3, depth: 0, cost: ProbeCost::Emulated });
    assert_eq!(
        free.record(b"/lib/x.so"),
        record::Probe {
            symbol: "free".into(),
            module: b"/lib/x.so".to_vec(),
            offset: FileOffset(free.target.offset.0 + 3),
            cost: ProbeCost::Emulated,
        }
    );
}

#[test]
fn text_is_not_an_elf_file() {
    let found = find(&b"#!/bin/sh\necho this is longer than an ELF header\n"[..]);

    assert_eq!(found, Err(AllocatorsError::NotElf { reason: "no ELF magic number".into() }));
}

#[test]
fn file_of_another_machine_is_refused_by_name() {
    let mut file = Fixture::default().build();
    file[18] = 183; // EM_AARCH64

    assert_eq!(find(&*file), Err(AllocatorsError::ForeignMachine { machine: 183, class: 64 }));
}

#[test]
fn thirty_two_bit_file_is_refused_by_name() {
    let mut file = Fixture::default().build();
    file[4] = 1; // ELFCLASS32

    assert_eq!(find(&*file), Err(AllocatorsError::ForeignMachine { machine: 62, class: 32 }));
}

#[test]
fn truncated_file_never_panics() {
    let mut fixture = Fixture::default();
    let free = fixture.function("free", BODY);
    fixture.dynamic_function("malloc", BODY);
    fixture.function_calling("_ZdlPv", &[], 0xe9, free);
    fixture.plt("malloc");
    let file = fixture.build();

    for length in 0..file.len() {
        // Any result will do; what is tested is that there is one.
        let _ = plan(&file[..length], &[], Watch::Inside);
    }
}

#[test]
fn what_takes_memory_back_is_placed_first() {
    let mut fixture = Fixture::default();
    for name in ["malloc", "realloc", "calloc", "free", "cfree"] {
        fixture.function(name, BODY);
    }

    let plan = plan(&*fixture.build(), &[], Watch::Inside).unwrap();

    let order: Vec<&str> =
        plan.in_placing_order().iter().map(|probe| probe.target.symbol.as_str()).collect();
    assert_eq!(order, ["free", "cfree", "realloc", "malloc", "calloc"]);
}
