//! Functions that the user names, in files that are built here.

use memtrace_common::addr::Svma;

use super::super::Watch;
use super::fixture::{Fixture, LOAD_BIAS};
use super::{BODY, FixtureSymbol};
use crate::live::allocators::named::{NotFound, resolve};
use crate::live::allocators::{Plan, Role, Skip, Target, plan};

fn find(fixture: &Fixture, spec: &str) -> Result<Target, NotFound> {
    resolve(&*fixture.build(), &spec.parse().unwrap())
}

fn pools() -> (Fixture, u64) {
    let mut fixture = Fixture::default();
    let at = fixture.function("_ZN4Pool5allocEm", BODY);
    fixture.function("pool_free", BODY);
    (fixture, at)
}

#[test]
fn function_is_found_by_each_form_of_its_name() {
    let (fixture, at) = pools();

    for name in ["_ZN4Pool5allocEm", "Pool::alloc(unsigned long)", "Pool::alloc"] {
        let target = find(&fixture, &format!("alloc:{name}(size=arg1)")).unwrap();

        assert_eq!((target.svma, target.size, target.role), (Svma(at), 2, Role::Acquire), "{name}");
    }
}

#[test]
fn misspelt_name_is_answered_with_near_ones() {
    let (fixture, _) = pools();

    let near = vec!["pool_free".to_owned()];
    assert_eq!(find(&fixture, "free:pool_fre"), Err(NotFound::NoSymbol { near }));
    assert_eq!(find(&fixture, "free:xyz"), Err(NotFound::NoSymbol { near: Vec::new() }));
    assert_eq!(find(&Fixture::default(), "free:xyz"), Err(NotFound::NoSymbols));
}

#[test]
fn name_of_several_functions_is_answered_with_all() {
    let (mut fixture, first) = pools();
    let second = fixture.function("_ZN4Pool5allocEmm", BODY);

    let candidates = vec![
        format!("{first:#x} (Pool::alloc(unsigned long))"),
        format!("{second:#x} (Pool::alloc(unsigned long, unsigned long))"),
    ];
    assert_eq!(find(&fixture, "alloc:Pool::alloc"), Err(NotFound::Ambiguous { candidates }));
    assert!(find(&fixture, &format!("alloc:{first:#x}")).is_ok());
}

#[test]
fn address_needs_something_that_says_a_function_starts_there() {
    let mut fixture = Fixture::default();
    let silent = fixture.code(BODY);
    let called = fixture.code(BODY);
    let caller = fixture.function_calling("caller", &[], 0xe8, called);
    fixture.symbols.clear();

    assert_eq!(find(&fixture, &format!("alloc:{silent:#x}")), Err(NotFound::NoFunctionStart));
    assert_eq!(find(&fixture, &format!("alloc:{:#x}", called + 1)), Err(NotFound::NoFunctionStart));
    // Of a function without an end, the first instruction is looked at.
    let target = find(&fixture, &format!("alloc:{called:#x}")).unwrap();
    assert_eq!((target.svma.0, target.size), (called, 1));
    assert!(caller > called);
    assert_eq!(find(&fixture, "alloc:0x10"), Err(NotFound::NotInCode));
}

#[test]
fn indirect_function_is_refused() {
    let mut fixture = Fixture::default();
    let at = fixture.code(BODY);
    fixture.symbols.push(FixtureSymbol { kind: 10, ..FixtureSymbol::function("fast", at, 2) });

    assert_eq!(find(&fixture, "alloc:fast"), Err(NotFound::IndirectFunction));
}

#[test]
fn what_the_user_says_of_a_known_function_holds() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    let spec = "ignore:malloc".parse().unwrap();

    let Plan { probes, skipped, .. } = plan(&*fixture.build(), &[&spec], Watch::Inside).unwrap();

    let roles: Vec<Role> = probes.iter().map(|probe| probe.target.role).collect();
    assert_eq!(roles, [Role::Enclose]);
    assert_eq!(skipped[0].reason, Skip::Alias { of: "malloc".to_owned() });
}

#[test]
fn return_probe_stands_where_the_return_address_is() {
    let mut fixture = Fixture::default();
    // test rdi, rdi; je +3; push rbp; jne +0; ret
    fixture.function("free", &[0x48, 0x85, 0xff, 0x74, 0x03, 0x55, 0x75, 0x00, 0xc3]);
    let file = fixture.build();
    let spec = "free:free(ptr=arg0)".parse().unwrap();
    let site = |named: &[&_]| plan(&*file, named, Watch::Inside).unwrap().probes[0].site;

    let (own, named) = (site(&[]), site(&[&spec]));

    assert_eq!((own.delta, own.depth), (6, 8));
    assert_eq!((named.delta, named.depth), (3, 0));
}

#[test]
fn functions_that_end_the_process_are_found_once_each() {
    let mut fixture = Fixture::default();
    fixture.function("_exit", BODY);
    fixture.function("exit", BODY);
    fixture.function("_Exit", BODY);

    let plan = plan(&*fixture.build(), &[], Watch::Calls).unwrap();

    let ends: Vec<&str> = plan.ends.iter().map(|probe| &*probe.target.symbol).collect();
    assert_eq!(ends, ["_exit", "_Exit"]);
    assert!(plan.ends.iter().all(|probe| probe.target.role == Role::End));
    assert!(plan.probes.is_empty());
}

#[test]
fn unwinders_are_probed_beside_what_may_throw() {
    let mut fixture = Fixture::default();
    fixture.function("malloc", BODY);
    fixture.function("_Unwind_RaiseException", BODY);
    let silent = plan(&*fixture.build(), &[], Watch::Inside).unwrap();
    fixture.function("_Znwm", BODY);
    let throwing = plan(&*fixture.build(), &[], Watch::Inside).unwrap();

    assert_eq!((silent.may_throw(), throwing.may_throw()), (false, true));
    assert_eq!(silent.unwinders.len(), 1);
    assert_eq!(silent.unwinders[0].target.role, Role::Unwind);
    assert!(silent.unwinders[0].offset().0 < LOAD_BIAS);
}
