//! Every kind of row and every end of a walk, with an array as the stack.

use super::*;

/// Where the array stands in memory.
const STACK: u64 = 0x7fff_0000;

/// Reads words from `words` at [`STACK`]; nothing else can be read.
fn stack(words: &[u64]) -> impl FnMut(u64) -> Option<u64> {
    move |address| {
        let offset = address.checked_sub(STACK)?;
        (offset % 8 == 0).then_some(())?;
        words.get(usize::try_from(offset / 8).ok()?).copied()
    }
}

fn row(cfa_kind: u8, cfa_offset: i16, rbp_offset_by_8: i8) -> Row {
    Row { pc: 0, cfa_offset, cfa_kind, rbp_offset_by_8 }
}

fn regs(pc: u64, sp: u64, fp: u64) -> Regs {
    Regs { pc, sp, fp, pc_kind: PcKind::ReturnAddress }
}

fn caller(pc: u64, sp: u64, fp: u64, pc_slot: u64, fp_slot: u64) -> Step {
    Step::Caller { regs: regs(pc, sp, fp), pc_slot, fp_slot }
}

#[test]
fn lookup_pc_of_return_address_is_inside_the_call() {
    let returned = regs(0x1005, STACK, 0);
    let interrupted = Regs { pc_kind: PcKind::Exact, ..returned };

    assert_eq!(returned.lookup_pc(), 0x1004);
    assert_eq!(interrupted.lookup_pc(), 0x1005);
    assert_eq!(regs(0, STACK, 0).lookup_pc(), u64::MAX);
}

#[test]
fn rsp_row_keeps_rbp_that_was_not_saved() {
    let words = [1, 2, 0x4011];

    let step = step(row(cfa::RSP, 24, RBP_SAME), regs(0x5000, STACK, 77), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 24, 77, STACK + 16, 0));
}

#[test]
fn rsp_row_restores_rbp_that_was_saved() {
    let words = [1, 0xbeef, 0x4011];

    let step = step(row(cfa::RSP, 24, -2), regs(0x5000, STACK, 77), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 24, 0xbeef, STACK + 16, STACK + 8));
}

#[test]
fn rbp_row_counts_from_the_frame_pointer() {
    let words = [1, 2, 3, 0xbeef, 0x4011];

    let step = step(row(cfa::RBP, 16, -2), regs(0x5000, STACK, STACK + 24), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 40, 0xbeef, STACK + 32, STACK + 24));
}

#[test]
fn plt_row_before_the_push_has_one_word() {
    let words = [0x4011, 0x4022];

    let step = step(row(cfa::PLT, 11, RBP_SAME), regs(0x102a, STACK, 77), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 8, 77, STACK, 0));
}

#[test]
fn plt_row_after_the_push_has_two_words() {
    let words = [3, 0x4022];

    let step = step(row(cfa::PLT, 11, RBP_SAME), regs(0x102b, STACK, 77), stack(&words));

    assert_eq!(step, caller(0x4022, STACK + 16, 77, STACK + 8, 0));
}

#[test]
fn deref_rsp_row_reads_the_cfa_from_the_stack() {
    let words = [1, STACK + 32, 0, 0x4011];

    let step = step(row(cfa::DEREF_RSP, 8, RBP_SAME), regs(0x5000, STACK, 77), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 32, 77, STACK + 24, 0));
}

#[test]
fn deref_rbp_row_reads_the_cfa_and_the_frame_pointer_near_rbp() {
    let words = [1, STACK + 56, 0xbeef, 3, 4, 5, 0x4011];

    let step = step(row(cfa::DEREF_RBP, -8, 0), regs(0x5000, STACK, STACK + 16), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 56, 0xbeef, STACK + 48, STACK + 16));
}

#[test]
fn large_row_adds_the_bits_of_its_kind() {
    let stack_of_one_word = |address| (address == STACK + 0x2_8000 - 8).then_some(0x4011);
    let offset = 0x8000_u16 as i16;

    let step =
        step(row(cfa::RSP_LARGE | 2, offset, RBP_SAME), regs(0x5000, STACK, 77), stack_of_one_word);

    assert_eq!(step, caller(0x4011, STACK + 0x2_8000, 77, STACK + 0x2_8000 - 8, 0));
}

#[test]
fn deref_row_without_its_word_is_unreadable() {
    let read_nothing = |_| None;

    for kind in [cfa::DEREF_RBP, cfa::DEREF_RSP] {
        let step = step(row(kind, 8, RBP_SAME), regs(0x5000, STACK, STACK), read_nothing);

        assert_eq!(step, Step::End(End::UnreadableStack));
    }
}

#[test]
fn signal_row_gives_the_interrupted_registers() {
    let mut words = [0; 24];
    words[1 + 5 + 10] = 0xbeef; // rbp
    words[1 + 5 + 15] = 0x1234_5678; // rsp, of a stack below or above
    words[1 + 5 + 16] = 0x4011; // rip

    let step = step(row(cfa::SIGNAL, 8, RBP_SAME), regs(0x5000, STACK, 77), stack(&words));

    let expected = Regs { pc: 0x4011, sp: 0x1234_5678, fp: 0xbeef, pc_kind: PcKind::Exact };
    let slot = |word: u64| STACK + 8 * word;
    assert_eq!(step, Step::Caller { regs: expected, pc_slot: slot(22), fp_slot: slot(16) });
}

#[test]
fn signal_row_without_a_whole_context_is_unreadable() {
    let words = [1; 21];

    let step = step(row(cfa::SIGNAL, 0, RBP_SAME), regs(0x5000, STACK, 77), stack(&words));

    assert_eq!(step, Step::End(End::UnreadableStack));
}

#[test]
fn signal_row_with_null_pc_is_the_root() {
    let words = [0; 32];

    let step = step(row(cfa::SIGNAL, 0, RBP_SAME), regs(0x5000, STACK, 77), stack(&words));

    assert_eq!(step, Step::End(End::Root));
}

#[test]
fn root_row_is_the_root() {
    let step = step(row(cfa::ROOT, 0, RBP_SAME), regs(0x5000, STACK, 0), stack(&[]));

    assert_eq!(step, Step::End(End::Root));
}

#[test]
fn return_address_of_zero_is_the_root() {
    let step = step(row(cfa::RSP, 8, RBP_SAME), regs(0x5000, STACK, 77), stack(&[0]));

    assert_eq!(step, Step::End(End::Root));
}

#[test]
fn no_row_follows_the_frame_pointer() {
    let words = [1, 2, STACK + 48, 0x4011];

    let step = step(row(cfa::NONE, 0, RBP_SAME), regs(0x5000, STACK, STACK + 16), stack(&words));

    assert_eq!(step, caller(0x4011, STACK + 32, STACK + 48, STACK + 24, STACK + 16));
}

#[test]
fn no_row_and_no_frame_pointer_is_no_unwind_info() {
    let words = [1, 2, 3, 4];
    let below = STACK - 8;
    let odd = STACK + 4;
    let unreadable = STACK + 32;
    let half_readable = STACK + 24;

    for fp in [below, odd, unreadable, half_readable] {
        let step = step(row(cfa::NONE, 0, RBP_SAME), regs(0x5000, STACK, fp), stack(&words));

        assert_eq!(step, Step::End(End::NoUnwindInfo), "rbp = {fp:#x}");
    }
}

#[test]
fn no_row_and_null_frame_pointer_is_the_root() {
    let step = step(row(cfa::NONE, 0, RBP_SAME), regs(0x5000, STACK, 0), stack(&[1, 2]));

    assert_eq!(step, Step::End(End::Root));
}

#[test]
fn no_row_and_null_above_the_frame_pointer_is_the_root() {
    let words = [1, 2, 0, 0];

    let step = step(row(cfa::NONE, 0, RBP_SAME), regs(0x5000, STACK, STACK + 16), stack(&words));

    assert_eq!(step, Step::End(End::Root));
}

#[test]
fn unsupported_or_unknown_kind_is_an_unsupported_rule() {
    for kind in [cfa::UNSUPPORTED, cfa::UNSUPPORTED + 1, cfa::RSP_LARGE - 1] {
        let step = step(row(kind, 8, RBP_SAME), regs(0x5000, STACK, 77), stack(&[0x4011]));

        assert_eq!(step, Step::End(End::UnsupportedRule), "kind {kind}");
    }
}

#[test]
fn return_address_that_cannot_be_read_is_unreadable() {
    let step = step(row(cfa::RSP, 16, RBP_SAME), regs(0x5000, STACK, 77), stack(&[1]));

    assert_eq!(step, Step::End(End::UnreadableStack));
}

#[test]
fn saved_rbp_that_cannot_be_read_is_unreadable() {
    let words = [0x4011];

    let step = step(row(cfa::RSP, 8, -2), regs(0x5000, STACK, 77), stack(&words));

    assert_eq!(step, Step::End(End::UnreadableStack));
}

#[test]
fn cfa_at_or_below_the_stack_pointer_is_not_ascending() {
    let words = [0x4011; 8];

    let same = step(row(cfa::RSP, 0, RBP_SAME), regs(0x5000, STACK, 77), stack(&words));
    let below = step(row(cfa::RBP, 16, -2), regs(0x5000, STACK + 32, STACK), stack(&words));

    assert_eq!(same, Step::End(End::NotAscending));
    assert_eq!(below, Step::End(End::NotAscending));
}

#[test]
fn cfa_that_wraps_around_is_not_ascending() {
    let step = step(row(cfa::RBP, 16, -2), regs(0x5000, STACK, u64::MAX - 7), stack(&[]));

    assert_eq!(step, Step::End(End::NotAscending));
}

#[test]
fn end_reasons_survive_the_wire() {
    for &end in End::ALL {
        assert_eq!(End::from_wire(end as u16), Some(end), "{}", end.name());
    }
    assert_eq!(End::from_wire(End::ALL.len() as u16), None);
}

#[test]
fn row_has_the_documented_layout() {
    let row = Row { pc: 0x0403_0201, cfa_offset: 0x0605, cfa_kind: 7, rbp_offset_by_8: 8 };

    assert_eq!(row.as_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(Row::read_from_bytes(&[1, 2, 3, 4, 5, 6, 7, 8]), Ok(row));
    assert_eq!(size_of::<crate::config::RowChunk>(), 4096);
    assert_eq!(size_of::<crate::config::BucketChunk>(), 4096);
    assert_eq!(size_of::<crate::config::Module>(), 32);
    assert_eq!(size_of::<crate::config::Process>(), 24);
}
