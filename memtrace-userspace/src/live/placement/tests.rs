use proptest::prelude::*;

use super::*;

const IP: u64 = 0x1000;

fn place_one(code: &[u8]) -> Site {
    place(code, IP, acquired(1))
}

fn acquired(arguments: u8) -> Need {
    Need { arguments, released: None }
}

/// The site in a function like `free`.
fn place_release(code: &[u8]) -> Site {
    place(code, IP, Need { arguments: 1, released: Argument::new(0) })
}

fn emulated(delta: u64) -> Site {
    Site { delta, depth: 0, cost: ProbeCost::Emulated }
}

fn stepped_entry() -> Site {
    Site { delta: 0, depth: 0, cost: ProbeCost::Stepped }
}

#[test]
fn push_at_entry_is_the_site() {
    let code = [0x55, 0xc3]; // push rbp; ret

    assert_eq!(place_one(&code), emulated(0));
}

#[test]
fn push_of_a_high_register_is_emulated() {
    let code = [0x41, 0x54, 0xc3]; // push r12; ret

    assert_eq!(place_one(&code), emulated(0));
}

#[test]
fn push_of_an_immediate_is_stepped() {
    let code = [0x6a, 0x01, 0x58, 0xc3]; // push 1; pop rax; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn endbr64_is_passed() {
    let code = [0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0, 1, 0, 0]; // endbr64; jmp far away

    assert_eq!(place_one(&code), emulated(4));
}

#[test]
fn conditional_jump_after_a_test_is_the_site() {
    // glibc 2.36 `free`: test rdi, rdi; je +0x10; push rbp; ret
    let code = [0x48, 0x85, 0xff, 0x0f, 0x84, 0x10, 0, 0, 0, 0x55, 0xc3];

    assert_eq!(place_one(&code), emulated(3));
}

#[test]
fn release_of_null_does_not_reach_the_site() {
    // glibc 2.36 `free`: test rdi, rdi; je far away; push rbp; sub rsp, 0x18; test al, 2; jne +2
    let free = [
        0x48, 0x85, 0xff, 0x0f, 0x84, 0x10, 1, 0, 0, 0x55, 0x48, 0x83, 0xec, 0x18, 0xa8, 0x02,
        0x75, 0x02, 0xc3,
    ];

    assert_eq!(place_release(&free), Site { depth: 32, ..emulated(16) });
    assert_eq!(place_one(&free), emulated(3));
}

#[test]
fn site_of_a_release_is_behind_no_other_branch() {
    let behind = [0x74, 0x01, 0x90, 0xc3]; // je +1; nop; ret
    for test in [
        [0x48, 0x85, 0xf6, 0x74, 0x10], // test rsi, rsi; je: another argument
        [0x48, 0x85, 0xff, 0x75, 0x10], // test rdi, rdi; jne: where there is a block
        [0x48, 0x39, 0xff, 0x74, 0x10], // cmp rdi, rdi; je: always
    ] {
        assert_eq!(place_release(&[&test[..], &behind].concat()), emulated(3));
    }
}

#[test]
fn release_keeps_its_first_branch_if_no_other_has_the_block() {
    let null = [0x48, 0x85, 0xff, 0x74, 0x10]; // test rdi, rdi; je
    let lost = [0x48, 0xff, 0xcf, 0x74, 0x00, 0xc3]; // dec rdi; je; ret
    let called = [0xe8, 0, 1, 0, 0, 0x74, 0x00, 0xc3]; // call; je; ret
    let moved = [0x48, 0x89, 0xec, 0x74, 0x00, 0xc3]; // mov rsp, rbp; je; ret
    let looped = [0x74, 0x02, 0x75, 0xfc, 0xc3]; // je +2; jne to that; ret
    for behind in [&lost[..], &called, &moved, &looped, &[0x55, 0xc3]] {
        assert_eq!(place_release(&[&null, behind].concat()), emulated(3));
    }
}

#[test]
fn load_and_compare_are_passed() {
    // glibc 2.36 `posix_memalign`: cmp byte [rip + 0], 0; push r12; ret
    let code = [0x80, 0x3d, 0, 0, 0, 0, 0, 0x41, 0x54, 0xc3];

    assert_eq!(place(&code, IP, acquired(0b111)), emulated(7));
}

#[test]
fn clobbered_argument_ends_the_walk() {
    // musl `valloc`: mov rsi, rdi; mov edi, 0x1000; jmp far away
    let code = [0x48, 0x89, 0xfe, 0xbf, 0, 0x10, 0, 0, 0xe9, 0, 1, 0, 0];

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn clobbered_register_that_is_no_argument_is_passed() {
    let code = [0x48, 0x89, 0xfe, 0x55, 0xc3]; // mov rsi, rdi; push rbp; ret

    assert_eq!(place(&code, IP, acquired(1)), emulated(3));
    assert_eq!(place(&code, IP, acquired(0b11)), stepped_entry());
}

#[test]
fn argument_clobbered_without_being_named_ends_the_walk() {
    // mul rdx writes rdx:rax, as in glibc 2.36 `reallocarray`; push rbp; ret
    let code = [0x48, 0xf7, 0xe2, 0x55, 0xc3];

    assert_eq!(place(&code, IP, acquired(0b111)), stepped_entry());
}

#[test]
fn moved_stack_pointer_ends_the_walk() {
    let code = [0x48, 0x83, 0xec, 0x18, 0x55, 0xc3]; // sub rsp, 0x18; push rbp; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn stepped_push_moves_the_stack_pointer() {
    let code = [0x6a, 0x01, 0x55, 0xc3]; // push 1; push rbp; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn jump_back_to_the_site_rules_it_out() {
    // test rdi, rdi; je +1; nop; dec rdi; jmp back to the je
    let code = [0x48, 0x85, 0xff, 0x74, 0x01, 0x90, 0x48, 0xff, 0xcf, 0xeb, 0xf8];

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn jump_between_entry_and_site_rules_it_out() {
    // mov rax, rdi; test rax, rax; je +2; jmp back to the test
    let code = [0x48, 0x89, 0xf8, 0x48, 0x85, 0xc0, 0x74, 0x02, 0xeb, 0xf9, 0xc3];

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn jump_back_to_the_entry_passes_the_site_as_often() {
    // test rdi, rdi; je +2; jmp back to the test; ret
    let code = [0x48, 0x85, 0xff, 0x74, 0x02, 0xeb, 0xf9, 0xc3];

    assert_eq!(place_one(&code), emulated(3));
}

#[test]
fn jump_behind_the_site_is_harmless() {
    // test rdi, rdi; je +1; nop; dec rdi; jmp back to the nop
    let code = [0x48, 0x85, 0xff, 0x74, 0x01, 0x90, 0x48, 0xff, 0xcf, 0xeb, 0xfa];

    assert_eq!(place_one(&code), emulated(3));
}

#[test]
fn call_into_the_prologue_rules_the_site_out() {
    // test rdi, rdi; je +0; call back to the je
    let code = [0x48, 0x85, 0xff, 0x74, 0x00, 0xe8, 0xf9, 0xff, 0xff, 0xff];

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn jump_table_may_go_anywhere() {
    // test rdi, rdi; je +2; jmp rax
    let code = [0x48, 0x85, 0xff, 0x74, 0x02, 0xff, 0xe0];

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn jump_table_does_not_matter_at_the_entry() {
    let code = [0x55, 0xff, 0xe0]; // push rbp; jmp rax

    assert_eq!(place_one(&code), emulated(0));
}

#[test]
fn tail_call_through_the_got_leaves_the_function() {
    // test rdi, rdi; je +2; jmp [rip + 0x100]
    let code = [0x48, 0x85, 0xff, 0x74, 0x02, 0xff, 0x25, 0, 1, 0, 0];

    assert_eq!(place_one(&code), emulated(3));
}

#[test]
fn stepped_branch_is_not_passed() {
    let code = [0xe3, 0x00, 0x55, 0xc3]; // jrcxz +0; push rbp; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn system_call_is_not_passed() {
    let code = [0x0f, 0x05, 0x55, 0xc3]; // syscall; push rbp; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn indirect_call_is_not_passed() {
    let code = [0xff, 0xd0, 0x55, 0xc3]; // call rax; push rbp; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn branch_with_a_hint_prefix_is_no_site() {
    let code = [0x3e, 0x74, 0x00, 0x55, 0xc3]; // je,pt +0; push rbp; ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn nops_that_only_newer_kernels_emulate_are_passed() {
    // nop dword [rax + rax]; xchg ax, ax; push rbp; ret
    let code = [0x0f, 0x1f, 0x44, 0, 0, 0x66, 0x90, 0x55, 0xc3];

    assert_eq!(place_one(&code), emulated(7));
}

#[test]
fn exchange_that_looks_like_a_nop_is_no_site() {
    let code = [0x41, 0x90, 0x55, 0xc3]; // xchg r8d, eax; push rbp; ret

    assert_eq!(place_one(&code), emulated(2));
}

#[test]
fn truncated_instruction_after_the_site_hides_a_jump() {
    // test rdi, rdi; je +2; the first bytes of a jmp
    let code = [0x48, 0x85, 0xff, 0x74, 0x02, 0xe9, 0xf9];

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn undecodable_bytes_after_the_site_hide_a_jump() {
    let code = [0x48, 0x85, 0xff, 0x74, 0x02, 0x06, 0xc3]; // test; je; (bad); ret

    assert_eq!(place_one(&code), stepped_entry());
}

#[test]
fn undecodable_entry_stays_at_the_entry() {
    assert_eq!(place_one(&[0x06, 0x55]), stepped_entry());
}

#[test]
fn truncated_entry_stays_at_the_entry() {
    assert_eq!(place_one(&[0x48, 0x85]), stepped_entry());
    assert_eq!(place_one(&[]), stepped_entry());
}

#[test]
fn function_without_a_site_stays_at_the_entry() {
    assert_eq!(place_one(&[0x31, 0xc0, 0xc3]), stepped_entry()); // xor eax, eax; ret
}

#[test]
fn code_at_the_end_of_the_address_space_does_not_overflow() {
    let code = [0x48, 0x85, 0xff, 0x74, 0x01, 0x90, 0xc3];

    assert_eq!(place(&code, u64::MAX - 2, acquired(1)), emulated(3));
}

/// The starts of the instructions that are reached from the entry by falling through.
fn straight_line_starts(code: &[u8]) -> Vec<u64> {
    let mut decoder = Decoder::with_ip(64, code, IP, DecoderOptions::NONE);
    let mut starts = Vec::new();
    while decoder.can_decode() {
        let start = decoder.ip() - IP;
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        starts.push(start);
        if instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    starts
}

/// Mostly the instructions that prologues are made of, so that random code has sites.
fn prologue_like() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(vec![0x48, 0x85, 0xff]),              // test rdi, rdi
        Just(vec![0xf3, 0x0f, 0x1e, 0xfa]),        // endbr64
        Just(vec![0x48, 0x89, 0xf8]),              // mov rax, rdi
        Just(vec![0x48, 0x89, 0xc7]),              // mov rdi, rax
        Just(vec![0x55]),                          // push rbp
        any::<u8>().prop_map(|to| vec![0x74, to]), // je
        any::<u8>().prop_map(|to| vec![0xeb, to]), // jmp
        prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn site_is_an_instruction_reached_by_falling_through(
        code in prop_oneof![prologue_like(), prop::collection::vec(any::<u8>(), 0..64)],
        arguments in 0u8..=7,
    ) {
        let site = place(&code, IP, acquired(arguments));

        let starts = straight_line_starts(&code);
        prop_assert!(site.delta == 0 || starts.contains(&site.delta));
        prop_assert!(site.delta == 0 || site.cost == ProbeCost::Emulated);
        prop_assert!(place_release(&code).delta <= code.len() as u64);
    }
}
