//! Rules into a row.
//!
//! A row has 8 bytes, so most of what DWARF can say does not fit, and most of what compilers do
//! say does. What does not fit becomes a row of kind `UNSUPPORTED` that ends the walk by name,
//! and the reason is counted in [`Unsupported`]: a wrong frame would be worse than none.

use gimli::{Encoding, Format, Operation, Register, UnwindExpression, UnwindSection, X86_64};
use memtrace_common::unwind::{RBP_SAME, Row, cfa, ucontext};

use super::entries::Bytes;
use super::program::{Cfa, Rule, State};

/// Why rules do not fit into a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unsupported {
    /// The CFA counts from a register other than `rsp` and `rbp`.
    CfaRegister,
    /// The CFA is too far from its register for 16 bits.
    CfaOffset,
    /// The CFA is an expression that no kind of row stands for.
    CfaExpression,
    /// `rbp` is saved where 8 bits, counted in words from the CFA, do not reach.
    FramePointer,
    /// The return address is not at `CFA - 8`.
    ReturnAddress,
    /// The caller's `rsp` is not the CFA.
    StackPointer,
    /// A signal frame whose registers are not in a `ucontext_t`.
    SignalFrame,
}

impl Unsupported {
    /// Every reason.
    pub const ALL: &[Unsupported] = &[
        Unsupported::CfaRegister,
        Unsupported::CfaOffset,
        Unsupported::CfaExpression,
        Unsupported::FramePointer,
        Unsupported::ReturnAddress,
        Unsupported::StackPointer,
        Unsupported::SignalFrame,
    ];
}

/// The kind of function that rules belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// A function that was called.
    Call,
    /// A return trampoline of the kernel's signal delivery (the augmentation `S`).
    Signal,
}

/// The row for `state`, with a `pc` of 0.
pub(super) fn encode<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    frame: Frame,
    state: &State,
) -> Result<Row, Unsupported> {
    match (frame, state.return_address) {
        (_, Rule::Undefined) => return Ok(row(cfa::ROOT, 0, RBP_SAME)),
        (Frame::Signal, _) => return encode_signal(section, state),
        (Frame::Call, Rule::Offset(-8)) => {}
        (
            Frame::Call,
            Rule::Unset | Rule::SameValue | Rule::Offset(_) | Rule::Expression(_) | Rule::Elsewhere,
        ) => return Err(Unsupported::ReturnAddress),
    }
    if state.sp != Rule::Unset {
        return Err(Unsupported::StackPointer);
    }
    match state.cfa {
        Cfa::Register { register: X86_64::RSP, offset } => {
            let (kind, offset) = encode_distance(offset)?;
            Ok(row(kind, offset, encode_fp(state.fp)?))
        }
        Cfa::Register { register: X86_64::RBP, offset } => {
            Ok(row(cfa::RBP, narrow(offset)?, encode_fp(state.fp)?))
        }
        Cfa::Register { .. } => Err(Unsupported::CfaRegister),
        Cfa::Expression(expression) => match parse_cfa(section, expression) {
            Some((cfa::DEREF_RBP, offset)) => {
                let fp = register_offset(section, state.fp, X86_64::RBP);
                let words = fp.and_then(words).ok_or(Unsupported::FramePointer)?;
                Ok(row(cfa::DEREF_RBP, narrow(offset)?, words))
            }
            Some((kind, offset)) => Ok(row(kind, narrow(offset)?, encode_fp(state.fp)?)),
            None => Err(Unsupported::CfaExpression),
        },
    }
}

/// The kind and the offset of `CFA = rsp + distance`.
fn encode_distance(distance: i64) -> Result<(u8, i16), Unsupported> {
    if let Ok(offset) = i16::try_from(distance) {
        return Ok((cfa::RSP, offset));
    }
    let high = u8::try_from(distance >> 16).ok().filter(|high| high & cfa::RSP_LARGE == 0);
    let high = high.ok_or(Unsupported::CfaOffset)?;
    Ok((cfa::RSP_LARGE | high, distance as u16 as i16))
}

fn narrow(offset: i64) -> Result<i16, Unsupported> {
    i16::try_from(offset).map_err(|_| Unsupported::CfaOffset)
}

/// Where `rbp` is saved, in words from the CFA.
fn encode_fp(rule: Rule) -> Result<i8, Unsupported> {
    match rule {
        Rule::Unset | Rule::Undefined | Rule::SameValue => Ok(RBP_SAME),
        // A saved `rbp` at the CFA itself would read as "not saved".
        Rule::Offset(offset) => {
            words(offset).filter(|words| *words != RBP_SAME).ok_or(Unsupported::FramePointer)
        }
        Rule::Expression(_) | Rule::Elsewhere => Err(Unsupported::FramePointer),
    }
}

/// Bytes in words, if they are whole and few.
fn words(bytes: i64) -> Option<i8> {
    if bytes % 8 == 0 { i8::try_from(bytes / 8).ok() } else { None }
}

fn row(cfa_kind: u8, cfa_offset: i16, rbp_offset_by_8: i8) -> Row {
    Row { pc: 0, cfa_offset, cfa_kind, rbp_offset_by_8 }
}

/// Recognises the CFA expressions that have a kind of their own: (kind, offset).
///
/// ```text
///   GNU ld, .plt   rsp + 8 + (((rip & 15) >= 11) << 3)     from byte 11 of a stub, a word is pushed
///   GCC, DRAP      *(rbp + offset)
///   assembly       *(rsp + offset)
/// ```
fn parse_cfa<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    expression: UnwindExpression<usize>,
) -> Option<(u8, i64)> {
    use Operation as Op;

    match operations(section, expression)?.as_slice() {
        [
            Op::RegisterOffset { register: X86_64::RSP, offset: 8, .. },
            Op::RegisterOffset { register: X86_64::RA, offset: 0, .. },
            Op::UnsignedConstant { value: 15 },
            Op::And,
            Op::UnsignedConstant { value: pushed_from @ 0..16 },
            Op::Ge,
            Op::UnsignedConstant { value: 3 },
            Op::Shl,
            Op::Plus,
        ] => Some((cfa::PLT, i64::try_from(*pushed_from).ok()?)),
        [Op::RegisterOffset { register, offset, .. }, Op::Deref { size: 8, space: false, .. }] => {
            match *register {
                X86_64::RBP => Some((cfa::DEREF_RBP, *offset)),
                X86_64::RSP => Some((cfa::DEREF_RSP, *offset)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The row for a signal trampoline: the registers are in a `ucontext_t` near `rsp`.
///
/// glibc's `__restore_rt` says (`sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c`), for every
/// register, where in the `ucontext_t` it is. With `rip` at `rsp + 168`:
///
/// ```text
///   ucontext = rsp + 168 − (40 + 16·8) = rsp + 0       and rbp, rsp must agree
/// ```
fn encode_signal<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    state: &State,
) -> Result<Row, Unsupported> {
    let sp = match state.cfa {
        Cfa::Expression(expression) => match parse_cfa(section, expression) {
            Some((cfa::DEREF_RSP, offset)) => Some(offset),
            _ => None,
        },
        Cfa::Register { .. } => None,
    };
    let context = |at: Option<i64>, register: u64| at?.checked_sub_unsigned(register);
    let from_rsp = |rule| register_offset(section, rule, X86_64::RSP);
    let context_of_pc = context(from_rsp(state.return_address), ucontext::RIP);
    let context_of_fp = context(from_rsp(state.fp), ucontext::RBP);
    let context_of_sp = context(sp, ucontext::RSP);
    if context_of_pc != context_of_fp || context_of_pc != context_of_sp {
        return Err(Unsupported::SignalFrame);
    }
    let offset = context_of_pc.and_then(|offset| i16::try_from(offset).ok());
    offset.map(|offset| row(cfa::SIGNAL, offset, RBP_SAME)).ok_or(Unsupported::SignalFrame)
}

/// The offset in a rule "at the address `base + offset`" that is given as an expression.
fn register_offset<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    rule: Rule,
    base: Register,
) -> Option<i64> {
    let Rule::Expression(expression) = rule else {
        return None;
    };
    match operations(section, expression)?.as_slice() {
        [Operation::RegisterOffset { register, offset, .. }] if *register == base => Some(*offset),
        _ => None,
    }
}

/// The longest expression that is looked at: the CFA of a PLT has 9 operations.
const MAX_OPERATIONS: usize = 9;

/// The operations of an expression; `None` if it is broken or too long.
fn operations<'data, S: UnwindSection<Bytes<'data>>>(
    section: &S,
    expression: UnwindExpression<usize>,
) -> Option<Vec<Operation<Bytes<'data>>>> {
    let mut left = expression.get(section).ok()?.operations(ENCODING);
    let mut operations = Vec::new();
    while let Some(operation) = left.next().ok()? {
        if operations.len() == MAX_OPERATIONS {
            return None;
        }
        operations.push(operation);
    }
    Some(operations)
}

/// How operands are encoded: frame expressions of x86-64 know no other way.
const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 5 };
