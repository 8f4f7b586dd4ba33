//! Functions that give a block for another.

use super::*;

const MALLOC: u64 = 0x5000;
const FREE: u64 = 0x6000;

/// What differs between the functions of these tests.
struct Realloc {
    /// Where NULL is left to.
    malloc: u64,
    /// Where a block is left to for which nothing is asked.
    free: u64,
    /// The register whose test leads there.
    tested: AsmRegister64,
}

const REALLOC: Realloc = Realloc { malloc: MALLOC, free: FREE, tested: rbx };

/// Like glibc's `realloc`.
fn realloc(Realloc { malloc, free, tested }: Realloc) -> Vec<u8> {
    code(|a| {
        let (mut some, mut failed, mut end) =
            (a.create_label(), a.create_label(), a.create_label());
        a.push(rbp)?; // 0
        a.push(rbx)?; // 1
        a.mov(rbx, rdi)?; // 2
        a.mov(rbp, rsi)?; // 5
        a.test(rsi, rsi)?; // 8
        a.jne(some)?; // 11
        a.call(free)?; // 13
        a.jmp(failed)?; // 18
        a.set_label(&mut some)?;
        let mut block = a.create_label();
        a.test(tested, tested)?; // 20
        a.jne(block)?; // 23
        a.mov(rdi, rbp)?; // 25
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.jmp(malloc)?;
        a.set_label(&mut block)?;
        a.mov(rdx, qword_ptr(rbx - 8))?; // 35
        a.call(ELSEWHERE)?; // 39
        a.test(rax, rax)?; // 44
        a.je(failed)?; // 47
        a.set_label(&mut end)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.jmp(end)
    })
}

fn sites(code: &[u8]) -> Option<Vec<(u64, Midway)>> {
    let probed = [MALLOC, FREE].map(|to| to.wrapping_sub(CODE)).to_vec();
    let function = Function { size: Size::InExchange, probed, ..plain(Calls::Inner) };
    super::super::find(code, &function).map(|sites| sites.midway)
}

fn replaced(block: Register, when: When, or_stays: bool) -> Midway {
    Midway::Replaced { block, when, or_stays, caller_word: 2, rbp_word: Some(1) }
}

const RETIRE: Midway = Midway::Retire { size: Register::Rsi, block: Register::Rdi, caller_word: 2 };

#[test]
fn block_is_taken_where_it_is_none_that_others_take() {
    let expected = vec![(39, RETIRE), (47, replaced(Register::Rax, unless_zero(), true))];

    assert_eq!(sites(&realloc(REALLOC)), Some(expected));
}

#[test]
fn what_is_left_to_a_function_without_probes_would_be_missed() {
    assert_eq!(sites(&realloc(Realloc { malloc: ELSEWHERE, ..REALLOC })), None);
    assert_eq!(sites(&realloc(Realloc { free: ELSEWHERE, ..REALLOC })), None);
}

#[test]
fn test_of_another_register_tells_nothing_of_the_block() {
    assert_eq!(sites(&realloc(Realloc { tested: rcx, ..REALLOC })), None);
}

#[test]
fn function_that_never_asks_whether_there_is_a_block_has_no_places() {
    let code = code(|a| {
        a.push(rbx)?;
        a.call(ELSEWHERE)?;
        a.pop(rbx)?;
        a.ret()
    });

    assert_eq!(sites(&code), None);
}

/// As in glibc 2.36: what `mremap` cannot grow stays if it is large enough, or `malloc` is asked.
#[test]
fn way_on_which_nothing_is_decided_yet_is_told_later() {
    let code = code(|a| {
        let (mut block, mut end) = (a.create_label(), a.create_label());
        a.push(rbp)?; // 0
        a.push(rbx)?; // 1
        a.mov(rbx, rdi)?; // 2
        a.mov(rbp, rsi)?; // 5
        a.test(rdi, rdi)?; // 8
        a.jne(block)?; // 11
        a.pop(rbx)?; // 13
        a.mov(rdi, rbp)?; // 14
        a.pop(rbp)?; // 17
        a.jmp(MALLOC)?; // 18
        a.set_label(&mut block)?;
        a.call(ELSEWHERE)?; // 23
        a.mov(r8, rbx)?; // 28
        a.mov(r12, rbx)?; // 31
        a.cmp(rax, rbp)?; // 34
        a.jae(end)?; // 37
        a.call(MALLOC)?; // 39
        a.mov(r12, rax)?; // 44
        a.test(rax, rax)?; // 47
        a.je(end)?; // 50
        a.call(ELSEWHERE)?;
        a.set_label(&mut end)?;
        a.mov(rax, r12)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()
    });

    let not_below = When { flags: 1, any_set: false };
    let expected = vec![
        (23, RETIRE),
        (37, replaced(Register::R12, not_below, false)),
        (50, replaced(Register::R12, When::ALWAYS, false)),
    ];
    assert_eq!(sites(&code), Some(expected));
}

/// As where glibc refuses a size that no block can have.
#[test]
fn failure_is_told_where_no_register_says_so() {
    let code = code(|a| {
        let (mut block, mut refused) = (a.create_label(), a.create_label());
        let mut failed = a.create_label();
        a.push(rbp)?; // 0
        a.push(rbx)?; // 1
        a.mov(rbp, rsi)?; // 2
        a.test(rdi, rdi)?; // 5
        a.jne(block)?; // 8
        a.pop(rbx)?; // 10
        a.pop(rbp)?; // 11
        a.mov(rdi, rsi)?; // 12
        a.jmp(MALLOC)?; // 15
        a.set_label(&mut block)?;
        a.test(rsi, rsi)?; // 20
        a.js(refused)?; // 23
        a.call(ELSEWHERE)?; // 25
        a.test(rax, rax)?; // 30
        a.je(failed)?; // 33
        a.pop(rbx)?; // 35
        a.pop(rbp)?; // 36
        a.ret()?; // 37
        a.set_label(&mut refused)?;
        a.mov(dword_ptr(r8), 12)?; // 38
        a.jmp(failed)?; // 45
        a.nop()?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.pop(rbx)?;
        a.pop(rbp)?;
        a.ret()
    });

    let expected = vec![
        (23, RETIRE),
        (33, replaced(Register::Rax, unless_zero(), true)),
        (45, replaced(Register::Rax, When::NEVER, true)),
    ];
    assert_eq!(sites(&code), Some(expected));
}
