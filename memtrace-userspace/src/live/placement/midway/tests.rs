use iced_x86::code_asm::*;
use memtrace_common::midway::{Fronts, Midway, Register, When};
use proptest::prelude::*;

use super::*;

mod cores;
mod exchanges;
mod frame_pointers;

use cores::sites_of_front;

const ZF: u8 = 1 << 6;

type Written = Result<(), iced_x86::IcedError>;

/// The code that `write` writes, at an address where a call can go far away.
fn code(write: impl FnOnce(&mut CodeAssembler) -> Written) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(CODE).unwrap()
}

const CODE: u64 = 0x10_0000;
const ELSEWHERE: u64 = 0x4000;

fn known(size: Option<Register>, block: Register, when: When) -> Midway {
    Midway::Known { size, block, when, caller_word: 0, rbp_word: None }
}

fn unless_zero() -> When {
    When { flags: ZF, any_set: false }
}

/// Like `malloc`.
fn plain(calls: Calls) -> Function {
    let (fills, ends, probed) = (Vec::new(), Vec::new(), Vec::new());
    Function { size: Size::Argument, calls, fills, ends, core: None, probed }
}

/// The sites in a function like `malloc`.
fn find(code: &[u8], calls: Calls) -> Option<Sites> {
    super::find(code, &plain(calls))
}

/// The places and what is done there, without the tail calls.
fn midway(code: &[u8], calls: Calls) -> Option<Vec<(u64, Midway)>> {
    find(code, calls).map(|sites| sites.midway)
}

/// As in glibc 2.36: the block is loaded and tested before it is taken.
#[test]
fn test_of_the_block_is_the_place() {
    let code = code(|a| {
        let mut corrupted = a.create_label();
        a.push(rbx)?; // 0
        a.mov(rbx, rdi)?; // 1
        a.mov(rax, qword_ptr(rdx + rdi * 8))?; // 4
        a.test(al, 15)?; // 8
        a.jne(corrupted)?; // 10
        a.mov(qword_ptr(rax + 8), 0)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut corrupted)?;
        a.ud2()
    });

    let expected = Midway::Known {
        size: Some(Register::Rdi),
        block: Register::Rax,
        when: When { flags: ZF, any_set: true },
        caller_word: 1,
        rbp_word: None,
    };
    assert_eq!(midway(&code, Calls::Unknown), Some(vec![(10, expected)]));
}

/// As in glibc 2.36 for a program with one thread: the size is lost before the block is there.
#[test]
fn size_is_noted_at_the_call_that_loses_it() {
    let code = code(|a| {
        let mut failed = a.create_label();
        a.push(rbp)?; // 0
        a.mov(rsi, rdi)?; // 1
        a.xor(ebp, ebp)?; // 4
        a.call(ELSEWHERE)?; // 6
        a.test(rax, rax)?; // 11
        a.je(failed)?; // 14
        a.pop(rbp)?;
        a.ret()?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.pop(rbp)?;
        a.ret()
    });

    let expected = Midway::Known {
        size: None,
        block: Register::Rax,
        when: unless_zero(),
        caller_word: 1,
        rbp_word: Some(0),
    };
    let sites = vec![(6, Midway::Note { size: Register::Rdi, caller_word: 1 }), (14, expected)];
    assert_eq!(midway(&code, Calls::Inner), Some(sites));
    assert_eq!(midway(&code, Calls::Unknown), None);
}

/// As in jemalloc 5.3: the fast path has the block in a register that is moved to `rax` later, and
/// the slow path is another function.
#[test]
fn jump_to_another_function_is_a_call_as_a_whole() {
    let code = code(|a| {
        let mut slow = a.create_label();
        a.cmp(rdi, 0x1000)?; // 0
        a.ja(slow)?; // 7
        a.mov(r11, qword_ptr(r8))?; // 9
        a.cmp(r8w, word_ptr(rax))?; // 12
        a.je(slow)?; // 16
        a.add(rdi, 1)?; // 18
        a.mov(rax, r11)?; // 22
        a.ret()?; // 25
        a.set_label(&mut slow)?;
        a.jmp(ELSEWHERE) // 26
    });

    let sites = Sites {
        midway: vec![(16, known(Some(Register::Rdi), Register::R11, unless_zero()))],
        tail_calls: vec![26],
        frame: None,
    };
    assert_eq!(find(&code, Calls::Unknown), Some(sites));
}

#[test]
fn jump_to_another_function_with_another_size_is_refused() {
    let code = code(|a| {
        let mut slow = a.create_label();
        a.mov(rax, qword_ptr(r8))?;
        a.test(rax, rax)?;
        a.je(slow)?;
        a.ret()?;
        a.set_label(&mut slow)?;
        a.add(rdi, 16)?;
        a.jmp(ELSEWHERE)
    });

    assert_eq!(find(&code, Calls::Unknown), None);
}

#[test]
fn return_without_a_place_before_it_is_refused() {
    let code = code(|a| {
        let mut other = a.create_label();
        a.mov(rax, qword_ptr(r8))?;
        a.test(rdi, rdi)?;
        a.je(other)?;
        a.ret()?;
        a.set_label(&mut other)?;
        a.mov(rax, qword_ptr(r9))?;
        a.ret()
    });

    assert_eq!(find(&code, Calls::Unknown), None);
}

/// The first jump is passed by calls whose block is known and by calls whose is not.
#[test]
fn block_that_some_paths_know_later_is_told_behind() {
    let with = |jumps: bool| {
        code(|a| {
            let (mut join, mut elsewhere) = (a.create_label(), a.create_label());
            a.mov(rax, qword_ptr(r8))?; // 0
            a.test(rax, rax)?; // 3
            a.jne(join)?; // 6
            a.mov(rax, qword_ptr(r9))?; // 8
            a.set_label(&mut join)?;
            a.mov(rdx, rax)?; // 11
            if jumps {
                a.jmp(elsewhere)?; // 14
            }
            a.set_label(&mut elsewhere)?;
            a.ret()
        })
    };

    let expected = known(Some(Register::Rdi), Register::Rax, When::ALWAYS);
    assert_eq!(midway(&with(true), Calls::Unknown), Some(vec![(14, expected)]));
    assert_eq!(find(&with(false), Calls::Unknown), None);
}

#[test]
fn size_and_block_may_be_spilled_meanwhile() {
    let code = code(|a| {
        let (mut failed, mut wake, mut back) =
            (a.create_label(), a.create_label(), a.create_label());
        a.push(rbx)?; // 0
        a.sub(rsp, 16)?; // 1
        a.mov(qword_ptr(rsp), rdi)?; // 5
        a.call(ELSEWHERE)?; // 9
        a.mov(rbx, qword_ptr(rsp))?; // 14
        a.test(rax, rax)?; // 18
        a.je(failed)?; // 21
        a.cmp(edx, 1)?;
        a.jg(wake)?;
        a.set_label(&mut back)?;
        a.add(rsp, 16)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut wake)?;
        a.mov(qword_ptr(rsp + 8), rax)?;
        a.call(ELSEWHERE)?;
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.jmp(back)?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.jmp(back)
    });

    // The failed path joins the others behind `back`, with a block that is none.
    let sites = midway(&code, Calls::Inner);

    let expected = Midway::Known {
        size: Some(Register::Rbx),
        block: Register::Rax,
        when: unless_zero(),
        caller_word: 3,
        rbp_word: None,
    };
    assert_eq!(sites, Some(vec![(21, expected)]));
}

#[test]
fn loop_behind_a_call_is_not_taken_for_the_end_of_the_program() {
    let with = |jumps_from_below: bool| {
        code(|a| {
            let (mut head, mut done) = (a.create_label(), a.create_label());
            a.push(rbx)?;
            a.mov(rbx, rdi)?;
            a.test(rdi, rdi)?;
            a.je(head)?;
            a.call(ELSEWHERE)?;
            a.nop_1::<AsmMemoryOperand>(dword_ptr(rax))?;
            a.set_label(&mut head)?;
            a.mov(rax, qword_ptr(rbx))?;
            a.test(rax, rax)?;
            if jumps_from_below {
                a.je(head)?;
            } else {
                a.je(done)?;
            }
            a.pop(rbx)?;
            a.ret()?;
            a.set_label(&mut done)?;
            a.ud2()
        })
    };
    let graph = |code: &[u8]| Graph::of(code, &plain(Calls::Inner)).unwrap();
    let call_of = |code: &[u8]| {
        let graph = graph(code);
        graph.nodes().find(|(_, node)| node.instruction.is_call_near()).unwrap().1.flow
    };

    assert!(matches!(call_of(&with(true)), Flow::Call { .. }));
    assert_eq!(call_of(&with(false)), Flow::End);
}

/// As in glibc 2.43: the next code happens to be aligned, so nothing stands between.
#[test]
fn call_behind_which_the_frame_is_another_does_not_return() {
    let code = code(|a| {
        let (mut corrupted, mut mangled) = (a.create_label(), a.create_label());
        a.mov(rax, qword_ptr(r8))?; // 0
        a.test(r10b, r10b)?; // 3
        a.jne(mangled)?; // 6
        a.test(al, 15)?; // 8
        a.jne(corrupted)?; // 10
        a.ret()?;
        a.set_label(&mut corrupted)?;
        a.sub(rsp, 8)?;
        a.call(ELSEWHERE)?;
        a.set_label(&mut mangled)?;
        a.xor(rax, rcx)?;
        a.test(al, 15)?;
        a.jne(corrupted)?;
        a.ret()
    });

    let sites = midway(&code, Calls::Inner).unwrap();

    let taken = When { flags: ZF, any_set: true };
    let expected = known(Some(Register::Rdi), Register::Rax, taken);
    assert_eq!(sites.len(), 2);
    assert_eq!(sites[0], (6, expected));
    assert_eq!(sites[1].1, expected);
}

#[test]
fn frame_that_is_deeper_than_a_probe_reads_is_refused() {
    let with = |bytes: i32| {
        code(|a| {
            let mut failed = a.create_label();
            a.sub(rsp, bytes)?;
            a.mov(rax, qword_ptr(r8))?;
            a.test(rax, rax)?;
            a.je(failed)?;
            a.add(rsp, bytes)?;
            a.ret()?;
            a.set_label(&mut failed)?;
            a.ud2()
        })
    };

    assert!(find(&with(120), Calls::Unknown).is_some());
    assert_eq!(find(&with(128), Calls::Unknown), None);
}

#[test]
fn what_is_not_followed_is_refused() {
    type Write = fn(&mut CodeAssembler) -> Written;
    let odd: [Write; 6] = [
        |a| a.jmp(rax),
        |a| a.call(rax),
        |a| a.mov(rbp, rsp),
        |a| a.lea(rdx, qword_ptr(rsp + 8)),
        |a| a.and(rsp, -16),
        |a| a.mov(dword_ptr(rsp + rcx * 4), eax),
    ];
    let with = |odd: Write| {
        code(|a| {
            let mut failed = a.create_label();
            odd(a)?;
            a.mov(rax, qword_ptr(r8))?;
            a.test(rax, rax)?;
            a.je(failed)?;
            a.ret()?;
            a.set_label(&mut failed)?;
            a.ud2()
        })
    };

    for odd in odd {
        assert_eq!(find(&with(odd), Calls::Inner), None);
    }
    assert!(find(&with(|a| a.mov(rdx, rax)), Calls::Inner).is_some());
}

#[test]
fn condition_of_more_than_one_of_the_low_flags_is_refused() {
    let code = code(|a| {
        let mut failed = a.create_label();
        a.mov(rax, qword_ptr(r8))?;
        a.cmp(rax, 1)?;
        a.jl(failed)?;
        a.ret()?;
        a.set_label(&mut failed)?;
        a.ud2()
    });

    assert_eq!(find(&code, Calls::Unknown), None);
}

/// As in glibc 2.36's `calloc`: the product is in a register that calls keep, and the block is
/// cleared by a jump to `memset`, which returns it.
fn calloc(product: impl FnOnce(&mut CodeAssembler) -> Written) -> Vec<u8> {
    code(|a| {
        let mut failed = a.create_label();
        a.push(rbx)?; // 0
        product(a)?; // 1
        a.call(ELSEWHERE)?; // 10
        a.test(rax, rax)?; // 15
        a.je(failed)?; // 18
        a.mov(rdi, rax)?;
        a.pop(rbx)?;
        a.jmp(ELSEWHERE)?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.pop(rbx)?;
        a.ret()
    })
}

/// A function like `calloc`, which may jump to `memset`.
fn product() -> Function {
    // What `ELSEWHERE` is to code that is assembled at this address.
    let fills = vec![ELSEWHERE.wrapping_sub(CODE)];
    Function { size: Size::Product, fills, ..plain(Calls::Inner) }
}

#[test]
fn product_of_the_arguments_is_the_size() {
    let places = |code: &[u8]| super::find(code, &product()).map(|sites| sites.midway);
    let expected = Midway::Known {
        size: Some(Register::Rbx),
        block: Register::Rax,
        when: unless_zero(),
        caller_word: 1,
        rbp_word: None,
    };

    let mul = calloc(|a| {
        a.mov(rax, rdi)?;
        a.mul(rsi)?;
        a.mov(rbx, rax)
    });
    assert_eq!(places(&mul), Some(vec![(18, expected)]));

    let imul = calloc(|a| {
        a.mov(rbx, rsi)?;
        a.imul_2(rbx, rdi)?;
        a.xor(edx, edx)
    });
    assert_eq!(places(&imul), Some(vec![(18, expected)]));
}

#[test]
fn product_of_anything_else_is_no_size() {
    let square = calloc(|a| {
        a.mov(rax, rdi)?;
        a.mul(rdi)?;
        a.mov(rbx, rax)
    });
    let overwritten = calloc(|a| {
        a.mov(rax, rdx)?;
        a.mul(rsi)?;
        a.mov(rbx, rax)
    });
    let lost = calloc(|a| {
        a.mov(rax, rdi)?;
        a.mul(rsi)?;
        a.mov(rax, rdi)
    });

    for code in [square, overwritten, lost] {
        assert_eq!(super::find(&code, &product()), None);
    }
}

#[test]
fn jump_to_what_is_not_memset_gives_no_block() {
    let code = calloc(|a| {
        a.mov(rax, rdi)?;
        a.mul(rsi)?;
        a.mov(rbx, rax)
    });

    assert_eq!(super::find(&code, &Function { fills: Vec::new(), ..product() }), None);
}

/// As in glibc's `_int_malloc`, for programs with one thread.
#[test]
fn jump_over_a_lock_prefix_is_followed() {
    let code = code(|a| {
        let mut unlocked = a.create_label();
        a.je(unlocked)?; // 0
        a.db(&[0xf0])?; // 2
        a.set_label(&mut unlocked)?;
        a.cmpxchg(qword_ptr(r8), r9)?; // 3
        a.test(rax, rax)?; // 7
        let mut failed = a.create_label();
        a.je(failed)?; // 10
        a.ret()?;
        a.set_label(&mut failed)?;
        a.xor(eax, eax)?;
        a.ret()
    });

    let expected = known(Some(Register::Rdi), Register::Rax, unless_zero());
    assert_eq!(midway(&code, Calls::Unknown), Some(vec![(10, expected)]));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(code in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = find(&code, Calls::Inner);
        let _ = find(&code, Calls::Unknown);
        let _ = super::find(&code, &product());
        let _ = sites_of_front(&code);
        let _ = find_in_core(&code, Vec::new(), |_| Some(Fronts::default()));
    }
}
