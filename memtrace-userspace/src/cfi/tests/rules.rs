//! Each kind of rule, from instructions to rows.

use gimli::write::{CallFrameInstruction as I, Expression};
use memtrace_common::unwind::RBP_SAME;

use super::*;

/// The rows of one function at the start of 256 bytes of text, without those of the gap after it.
fn rows_of(cie: CommonInformationEntry, program: &[(u32, I)]) -> (Vec<Row>, Skipped) {
    let section = eh_frame(cie, vec![function(0, 64, program)]);
    let mut table = compile_bytes(&elf(64, &[(".eh_frame", &section)]));
    assert_eq!(table.rows.pop(), Some(gap(64)));
    (table.rows, table.skipped)
}

fn gap(pc: u32) -> Row {
    row(pc, cfa::NONE, 0, RBP_SAME)
}

fn rows(program: &[(u32, I)]) -> Vec<Row> {
    let (rows, skipped) = rows_of(cie(), program);
    assert_eq!(skipped, Skipped::default());
    rows
}

/// Asserts that the program makes one row, which is unsupported because of `reason`.
fn assert_unsupported(program: &[(u32, I)], reason: Unsupported) {
    let (rows, skipped) = rows_of(cie(), program);

    let mut expected = Skipped::default();
    expected.unsupported[reason as usize] = 1;
    assert_eq!(rows, [row(0, cfa::UNSUPPORTED, 0, RBP_SAME)]);
    assert_eq!(skipped, expected);
}

/// Asserts that a function with this program is left out as broken, and its neighbour is not.
fn assert_broken(program: &[(u32, I)]) {
    let section = eh_frame(cie(), vec![function(0, 64, program), function(64, 64, &[])]);

    let table = compile_bytes(&elf(128, &[(".eh_frame", &section)]));

    let expected = Skipped { broken_fdes: 1, ..Skipped::default() };
    assert_eq!(table.rows, [gap(0), row(64, cfa::RSP, 8, RBP_SAME), gap(128)]);
    assert_eq!(table.skipped, expected);
}

/// `*(register + offset)`, then `more`.
fn deref(register: gimli::Register, offset: i64) -> Expression {
    let mut expression = Expression::new();
    expression.op_breg(register, offset);
    expression.op_deref();
    expression
}

fn address(register: gimli::Register, offset: i64) -> Expression {
    let mut expression = Expression::new();
    expression.op_breg(register, offset);
    expression
}

#[test]
fn frame_with_frame_pointer_has_three_rows() {
    let rows = rows(&[
        (1, I::CfaOffset(16)),
        (1, I::Offset(X86_64::RBP, -16)),
        (4, I::CfaRegister(X86_64::RBP)),
    ]);

    assert_eq!(
        rows,
        [row(0, cfa::RSP, 8, RBP_SAME), row(1, cfa::RSP, 16, -2), row(4, cfa::RBP, 16, -2)]
    );
}

#[test]
fn remembered_state_comes_back_after_the_epilogue() {
    let rows = rows(&[
        (4, I::CfaOffset(48)),
        (20, I::RememberState),
        (20, I::CfaOffset(8)),
        (21, I::RestoreState),
    ]);

    assert_eq!(
        rows,
        [
            row(0, cfa::RSP, 8, RBP_SAME),
            row(4, cfa::RSP, 48, RBP_SAME),
            row(20, cfa::RSP, 8, RBP_SAME),
            row(21, cfa::RSP, 48, RBP_SAME),
        ]
    );
}

#[test]
fn restored_register_goes_back_to_the_rule_of_the_cie() {
    let rows = rows(&[(1, I::Offset(X86_64::RBP, -16)), (9, I::Restore(X86_64::RBP))]);

    assert_eq!(
        rows,
        [row(0, cfa::RSP, 8, RBP_SAME), row(1, cfa::RSP, 8, -2), row(9, cfa::RSP, 8, RBP_SAME)]
    );
}

#[test]
fn registers_that_the_walk_does_not_need_make_no_rows() {
    let rows = rows(&[(2, I::Offset(X86_64::RBX, -16)), (4, I::Offset(X86_64::R12, -24))]);

    assert_eq!(rows, [row(0, cfa::RSP, 8, RBP_SAME)]);
}

#[test]
fn undefined_and_same_value_rbp_count_as_not_saved() {
    let rows = rows(&[(0, I::Undefined(X86_64::RBP)), (8, I::SameValue(X86_64::RBP))]);

    assert_eq!(rows, [row(0, cfa::RSP, 8, RBP_SAME)]);
}

#[test]
fn saved_rbp_at_the_limits_of_a_byte_fits() {
    let rows = rows(&[(0, I::Offset(X86_64::RBP, -1024)), (8, I::Offset(X86_64::RBP, 1016))]);

    assert_eq!(rows, [row(0, cfa::RSP, 8, -128), row(8, cfa::RSP, 8, 127)]);
}

#[test]
fn saved_rbp_that_does_not_fit_is_unsupported() {
    let at_the_cfa = I::Offset(X86_64::RBP, 0);
    let far_below = I::Offset(X86_64::RBP, -1032);
    let far_above = I::Offset(X86_64::RBP, 1024);
    let in_a_register = I::Register(X86_64::RBP, X86_64::RAX);
    let computed = I::ValOffset(X86_64::RBP, -16);
    let near_rsp = I::Expression(X86_64::RBP, address(X86_64::RSP, 8));

    for rule in [at_the_cfa, far_below, far_above, in_a_register, computed, near_rsp] {
        assert_unsupported(&[(0, rule)], Unsupported::FramePointer);
    }
}

#[test]
fn misaligned_saved_rbp_is_unsupported() {
    let mut cie = CommonInformationEntry::new(ENCODING, 1, -4, X86_64::RA);
    cie.add_instruction(I::Cfa(X86_64::RSP, 8));
    cie.add_instruction(I::Offset(X86_64::RA, -8));

    let (rows, _) = rows_of(cie, &[(0, I::Offset(X86_64::RBP, -12))]);

    assert_eq!(rows, [row(0, cfa::UNSUPPORTED, 0, RBP_SAME)]);
}

#[test]
fn frame_of_32_kib_and_more_is_large() {
    let rows = rows(&[
        (0, I::CfaOffset(0x7ff8)),
        (8, I::CfaOffset(0x8000)),
        (16, I::CfaOffset(0x12_3458)),
        (24, I::CfaOffset(0x7f_fff8)),
    ]);

    assert_eq!(
        rows,
        [
            row(0, cfa::RSP, 0x7ff8, RBP_SAME),
            row(8, cfa::RSP_LARGE, 0x8000_u16 as i16, RBP_SAME),
            row(16, cfa::RSP_LARGE | 0x12, 0x3458, RBP_SAME),
            row(24, cfa::RSP_LARGE | 0x7f, 0xfff8_u16 as i16, RBP_SAME),
        ]
    );
}

#[test]
fn cfa_beyond_the_row_is_unsupported() {
    assert_unsupported(&[(0, I::CfaOffset(0x80_0000))], Unsupported::CfaOffset);
    assert_unsupported(&[(0, I::Cfa(X86_64::RBP, 0x8000))], Unsupported::CfaOffset);
    assert_unsupported(&[(0, I::Cfa(X86_64::RSP, -0x8008))], Unsupported::CfaOffset);
}

#[test]
fn cfa_from_another_register_is_unsupported() {
    assert_unsupported(&[(0, I::Cfa(X86_64::RBX, 16))], Unsupported::CfaRegister);
    assert_unsupported(&[(0, I::Cfa(X86_64::R10, 0))], Unsupported::CfaRegister);
}

/// The CFA of a PLT: `rsp + 8 + (((rip & 15) >= pushed_from) << 3)`.
fn plt_expression(pushed_from: u64) -> Expression {
    Expression::raw(vec![
        0x77,
        8, // breg7 rsp+8
        0x80,
        0, // breg16 rip+0
        0x3f,
        0x1a, // lit15; and
        0x30 + pushed_from as u8,
        0x2a, // lit; ge
        0x33,
        0x24,
        0x22, // lit3; shl; plus
    ])
}

#[test]
fn plt_of_gnu_ld_has_its_own_kind() {
    for pushed_from in [9, 10, 11] {
        let rows = rows(&[
            (0, I::CfaOffset(16)),
            (6, I::CfaOffset(24)),
            (16, I::CfaExpression(plt_expression(pushed_from))),
        ]);

        assert_eq!(
            rows,
            [
                row(0, cfa::RSP, 16, RBP_SAME),
                row(6, cfa::RSP, 24, RBP_SAME),
                row(16, cfa::PLT, pushed_from as i16, RBP_SAME),
            ]
        );
    }
}

#[test]
fn realigned_frame_reads_its_cfa_and_rbp_near_rbp() {
    let rows = rows(&[
        (0, I::Expression(X86_64::RBP, address(X86_64::RBP, 0))),
        (0, I::CfaExpression(deref(X86_64::RBP, -40))),
    ]);

    assert_eq!(rows, [row(0, cfa::DEREF_RBP, -40, 0)]);
}

#[test]
fn realigned_frame_without_saved_rbp_is_unsupported() {
    let program = [(0, I::CfaExpression(deref(X86_64::RBP, -40)))];

    assert_unsupported(&program, Unsupported::FramePointer);
}

#[test]
fn saved_stack_pointer_on_the_stack_is_read() {
    let rows =
        rows(&[(0, I::CfaExpression(deref(X86_64::RSP, 152))), (0, I::Offset(X86_64::RBP, -24))]);

    assert_eq!(rows, [row(0, cfa::DEREF_RSP, 152, -3)]);
}

#[test]
fn other_cfa_expression_is_unsupported() {
    let mut plus_8 = deref(X86_64::RSP, 152);
    plus_8.op_plus_uconst(8);
    let broken = Expression::raw(vec![0x77]);
    let endless = Expression::raw(vec![0x96; 1000]);
    let empty = Expression::new();
    let not_a_plt = Expression::raw(plt_of_another_stub_size());

    for expression in [plus_8, broken, endless, empty, not_a_plt, deref(X86_64::R10, 0)] {
        assert_unsupported(&[(0, I::CfaExpression(expression))], Unsupported::CfaExpression);
    }
}

fn plt_of_another_stub_size() -> Vec<u8> {
    vec![0x77, 8, 0x80, 0, 0x4f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22] // lit31 for lit15
}

#[test]
fn undefined_return_address_is_the_root() {
    let rows = rows(&[(0, I::Undefined(X86_64::RA)), (0, I::Cfa(X86_64::RDI, 0))]);

    assert_eq!(rows, [row(0, cfa::ROOT, 0, RBP_SAME)]);
}

#[test]
fn return_address_elsewhere_is_unsupported() {
    let higher = I::Offset(X86_64::RA, 0);
    let same = I::SameValue(X86_64::RA);
    let in_a_register = I::Register(X86_64::RA, X86_64::R11);
    let computed = I::Expression(X86_64::RA, address(X86_64::RSP, 168));

    for rule in [higher, same, in_a_register, computed] {
        assert_unsupported(&[(0, rule)], Unsupported::ReturnAddress);
    }
}

#[test]
fn stack_pointer_with_its_own_rule_is_unsupported() {
    assert_unsupported(&[(0, I::Offset(X86_64::RSP, 16))], Unsupported::StackPointer);
    assert_unsupported(&[(0, I::ValOffset(X86_64::RSP, 8))], Unsupported::StackPointer);
}

/// `__restore_rt` of glibc, with its `ucontext_t` at `rsp + context`.
fn signal_program(context: i64) -> Vec<(u32, I)> {
    vec![
        (0, I::CfaExpression(deref(X86_64::RSP, context + 160))),
        (0, I::Expression(X86_64::R8, address(X86_64::RSP, context + 40))),
        (0, I::Expression(X86_64::RBP, address(X86_64::RSP, context + 120))),
        (0, I::Expression(X86_64::RSP, address(X86_64::RSP, context + 160))),
        (0, I::Expression(X86_64::RA, address(X86_64::RSP, context + 168))),
    ]
}

#[test]
fn signal_trampoline_points_to_its_ucontext() {
    for context in [0, 8, 704] {
        let mut cie = cie();
        cie.signal_trampoline = true;

        let (rows, skipped) = rows_of(cie, &signal_program(context));

        assert_eq!(rows, [row(0, cfa::SIGNAL, context as i16, RBP_SAME)]);
        assert_eq!(skipped, Skipped::default());
    }
}

#[test]
fn signal_trampoline_with_another_layout_is_unsupported() {
    let mut other_rbp = signal_program(0);
    other_rbp[2] = (0, I::Expression(X86_64::RBP, address(X86_64::RSP, 128)));
    let mut other_rsp = signal_program(0);
    other_rsp[0] = (0, I::CfaExpression(deref(X86_64::RSP, 168)));
    let too_far = signal_program(40_000);
    let plain = vec![];

    for program in [other_rbp, other_rsp, too_far, plain] {
        let mut cie = cie();
        cie.signal_trampoline = true;

        let (rows, skipped) = rows_of(cie, &program);

        assert_eq!(rows, [row(0, cfa::UNSUPPORTED, 0, RBP_SAME)]);
        assert_eq!(skipped.unsupported[Unsupported::SignalFrame as usize], 1);
    }
}

#[test]
fn contradicting_program_is_broken() {
    assert_broken(&[(0, I::RestoreState)]);
    assert_broken(&[(0, I::CfaExpression(Expression::new())), (1, I::CfaOffset(8))]);
    assert_broken(&[(0, I::CfaExpression(Expression::new())), (1, I::CfaRegister(X86_64::RBP))]);
    assert_broken(&vec![(0, I::RememberState); 65]);
}

#[test]
fn return_column_other_than_rip_breaks_the_cie_and_its_functions() {
    let cie = CommonInformationEntry::new(ENCODING, 1, -8, X86_64::RBX);
    let section = eh_frame(cie, vec![function(0, 64, &[])]);

    let table = compile_bytes(&elf(64, &[(".eh_frame", &section)]));

    assert_eq!(table.rows, [gap(0)]);
    assert_eq!(table.skipped, Skipped { broken_cies: 1, broken_fdes: 1, ..Skipped::default() });
}

#[test]
fn pc_relative_addresses_count_from_the_section() {
    let mut cie = cie();
    cie.fde_address_encoding = gimli::DW_EH_PE_pcrel | gimli::DW_EH_PE_sdata4;
    let mut section = eh_frame(cie, vec![function(0, 64, &[])]);
    // The writer knows no section address: it wrote TEXT as if the section were at 0.
    let field = section.len() - 16;
    let written = i32::from_le_bytes(*section[field..].first_chunk().unwrap());
    let fixed = i64::from(written) - EH_FRAME as i64;
    section[field..field + 4].copy_from_slice(&(fixed as i32).to_le_bytes());

    let table = compile_bytes(&elf(64, &[(".eh_frame", &section)]));

    assert_eq!(table.rows, [row(0, cfa::RSP, 8, RBP_SAME), gap(64)]);
}

#[test]
fn functions_outside_the_text_are_counted() {
    let mut discarded = FrameDescriptionEntry::new(Address::Constant(0), 64);
    discarded.add_instruction(0, I::CfaOffset(16));
    let section = eh_frame(cie(), vec![discarded, function(0, 64, &[]), function(999, 64, &[])]);

    let table = compile_bytes(&elf(64, &[(".eh_frame", &section)]));

    assert_eq!(table.rows, [row(0, cfa::RSP, 8, RBP_SAME), gap(64)]);
    assert_eq!(table.skipped, Skipped { fdes_outside_text: 2, ..Skipped::default() });
}

#[test]
fn function_that_reaches_over_the_text_is_clipped() {
    let section = eh_frame(cie(), vec![function(32, 9999, &[(64, I::CfaOffset(16))])]);

    let table = compile_bytes(&elf(64, &[(".eh_frame", &section)]));

    assert_eq!(table.rows, [gap(0), row(32, cfa::RSP, 8, RBP_SAME), gap(64)]);
    assert_eq!(lookup(&table, Svma(TEXT + 63)), row(32, cfa::RSP, 8, RBP_SAME));
    assert_eq!(lookup(&table, Svma(TEXT + 64)), gap(64));
}

#[test]
fn file_without_frames_has_no_rows_anywhere() {
    let table = compile_bytes(&elf(600, &[]));

    assert_eq!(table.base, Svma(TEXT));
    assert_eq!(table.rows, [gap(0)]);
    assert_eq!(table.buckets, [0, 0, 0, 0]);
    assert_eq!(lookup(&table, Svma(0)), GAP);
    assert_eq!(lookup(&table, Svma(u64::MAX)), GAP);
}

#[test]
fn buckets_point_to_the_rows_at_their_starts() {
    let functions = vec![
        function(0, 256, &[(255, I::CfaOffset(16))]),
        function(256, 200, &[(8, I::CfaOffset(24))]),
        function(600, 168, &[]),
    ];
    let section = eh_frame(cie(), functions);

    let table = compile_bytes(&elf(768, &[(".eh_frame", &section)]));

    let pcs: Vec<u32> = table.rows.iter().map(|row| row.pc).collect();
    assert_eq!(pcs, [0, 255, 256, 264, 456, 600]);
    assert_eq!(table.buckets, [0, 2, 4, 5]);
}

#[test]
fn debug_frame_fills_what_eh_frame_lacks() {
    let eh = eh_frame(cie(), vec![function(64, 64, &[(0, I::CfaOffset(16))])]);
    let debug = debug_frame(
        cie(),
        vec![
            function(0, 72, &[(0, I::CfaOffset(24)), (32, I::CfaOffset(32))]),
            function(80, 8, &[(0, I::CfaOffset(40))]),
            function(96, 96, &[(0, I::CfaOffset(48)), (8, I::CfaOffset(56))]),
        ],
    );

    let table = compile_bytes(&elf(256, &[(".eh_frame", &eh), (".debug_frame", &debug)]));

    assert_eq!(
        table.rows,
        [
            row(0, cfa::RSP, 24, RBP_SAME),
            row(32, cfa::RSP, 32, RBP_SAME),
            row(64, cfa::RSP, 16, RBP_SAME),
            row(128, cfa::RSP, 56, RBP_SAME),
            gap(192),
        ]
    );
}
