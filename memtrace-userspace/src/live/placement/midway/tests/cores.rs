//! Functions that leave the search for memory to a core, and that core.

use memtrace_common::midway::Front;

use super::*;

/// Like glibc's `malloc` with one thread: loses the size in a call of a core, and asks that once more.
fn front(
    size_for_core: AsmRegister64,
    behind: impl FnOnce(&mut CodeAssembler) -> Written,
) -> Vec<u8> {
    code(|a| {
        let (mut found, mut failed) = (a.create_label(), a.create_label());
        a.push(rbp)?; // 0
        a.push(rbx)?; // 1
        a.mov(rbx, rdi)?; // 2
        a.mov(rsi, size_for_core)?; // 5
        a.call(ELSEWHERE)?; // 8
        a.test(rax, rax)?; // 13
        a.jne(found)?; // 16
        a.mov(rsi, rbx)?;
        a.call(ELSEWHERE)?;
        a.test(rax, rax)?;
        a.je(failed)?;
        a.set_label(&mut found)?;
        behind(a)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()
    })
}

pub(super) fn sites_of_front(code: &[u8]) -> Option<Sites> {
    let core = Some(ELSEWHERE.wrapping_sub(CODE));
    super::super::find(code, &Function { core, ..plain(Calls::Inner) })
}

#[test]
fn function_that_leaves_the_search_to_a_core_needs_no_places() {
    let code = front(rbx, |a| a.mov(qword_ptr(r8), rax));

    let frame = Some(Frame { caller_word: 3, rbp_word: 2 });
    let expected = Sites { midway: Vec::new(), tail_calls: Vec::new(), frame };
    assert_eq!(sites_of_front(&code), Some(expected));
}

#[test]
fn core_is_what_is_called_where_a_size_is_noted() {
    let code = code(|a| {
        a.mov(rsi, rdi)?; // 0
        a.call(ELSEWHERE)?; // 3
        a.test(rax, rax)?;
        let mut failed = a.create_label();
        a.je(failed)?;
        a.ret()?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.ret()
    });
    let sites = find(&code, Calls::Inner).unwrap();

    assert_eq!(super::super::core(&code, &sites), Some(ELSEWHERE.wrapping_sub(CODE)));
    assert_eq!(super::super::core(&code, &Sites::default()), None);
}

#[test]
fn core_that_is_asked_for_another_size_does_not_serve() {
    assert_eq!(sites_of_front(&front(r8, |a| a.nop())), None);
}

#[test]
fn function_that_returns_something_else_than_its_core_does_is_no_front() {
    assert_eq!(sites_of_front(&front(rbx, |a| a.mov(rax, qword_ptr(r8)))), None);
    assert_eq!(sites_of_front(&front(rbx, |a| a.lea(rax, rax + 16))), None);
    assert_eq!(sites_of_front(&front(rbx, |a| a.call(ELSEWHERE + 64))), None);
}

/// Like glibc's `_int_malloc`, where all ways end in one test whether memory is to be filled.
#[test]
fn place_in_a_core_says_who_calls_it() {
    let code = code(|a| {
        let mut corrupted = a.create_label();
        a.push(rbp)?; // 0
        a.push(r12)?; // 1
        a.mov(r12, rsi)?; // 3
        a.mov(rcx, qword_ptr(rdi))?; // 6
        a.test(cl, 15)?; // 9
        a.jne(corrupted)?; // 12
        a.mov(rax, rcx)?;
        a.pop(r12)?;
        a.pop(rbp)?;
        a.ret()?;
        a.set_label(&mut corrupted)?;
        a.ud2()
    });
    let fronts = |place| Some([Front { from_place: place as i32, ..Front::default() }; 2]);

    let core = Midway::Core {
        size: Register::Rsi,
        block: Register::Rcx,
        when: When { flags: ZF, any_set: true },
        caller_word: 2,
        fronts: fronts(12).unwrap(),
    };
    assert_eq!(find_in_core(&code, Vec::new(), fronts), Some(vec![(12, core)]));
    assert_eq!(find_in_core(&code, Vec::new(), |_| None), None);
}
