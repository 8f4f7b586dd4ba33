//! Where programs and threads start, in a C library without unwind information.
//!
//! musl is built without it, so every stack of an Alpine container would end one frame too early.
//! But who calls `main`, or the function of a thread, passes its result on to `exit` or
//! `pthread_exit`, which do not return:
//!
//! ```text
//!   ff d3             call *rbx          ← the frame's lookup address lies in here: a root
//!   89 c7             mov  edi, eax
//!   e8 ff a2 ff ff    call exit
//! ```
//!
//! The rows fill gaps: where a frame section describes the code, that holds. Only a file with an
//! `exit` of its own is looked at, and only calls through a pointer count.

use memtrace_common::unwind::{RBP_SAME, Row, cfa};
use object::{Object, ObjectSection, ObjectSymbol, ReadRef, SectionKind};

use super::spans::{Functions, Span};
use super::{MAX_SECTION_BYTES, Text};

/// Functions that do not return and take the result of a program or a thread.
const ENDS: [&str; 3] = ["exit", "pthread_exit", "__pthread_exit"];

/// How the result becomes the argument: `mov rdi, rax`, `movsxd rdi, eax`, `mov edi, eax`.
///
/// The last is the end of the first, so it comes behind.
const PASS_RESULT: [&[u8]; 3] = [&[0x48, 0x89, 0xc7], &[0x48, 0x63, 0xf8], &[0x89, 0xc7]];

/// `call rel32`.
const CALL: u8 = 0xe8;

/// One byte of code for each place where a program or a thread starts: the last of the call.
pub(super) fn of<'data, R: ReadRef<'data>>(elf: &object::File<'data, R>, text: Text) -> Functions {
    let mut ends: Vec<u64> = elf
        .symbols()
        .chain(elf.dynamic_symbols())
        .filter(|symbol| symbol.is_definition() && symbol.name().is_ok_and(|n| ENDS.contains(&n)))
        .map(|symbol| symbol.address())
        .collect();
    ends.sort_unstable();
    ends.dedup();
    let mut starts = Functions::default();
    if ends.is_empty() {
        return starts;
    }
    let code = elf.sections().filter(|s| s.kind() == SectionKind::Text);
    for section in code.filter(|section| section.size() <= MAX_SECTION_BYTES) {
        // A section that cannot be read is text like any other: without rows.
        let Ok(bytes) = section.data() else { continue };
        for offset in calls_before(bytes, section.address(), &ends) {
            let last = section.address().wrapping_add(offset as u64).wrapping_sub(1);
            if let Some((start, end)) = text.clip(last, last.saturating_add(1)) {
                let first_row = starts.rows.len() as u32;
                starts.rows.push(Row {
                    pc: start,
                    cfa_offset: 0,
                    cfa_kind: cfa::ROOT,
                    rbp_offset_by_8: RBP_SAME,
                });
                starts.spans.push(Span { start, end, first_row, rows: 1 });
            }
        }
    }
    // Sections of one file may come in any order, and overlap in one that was made to do harm.
    starts.resolve_overlaps();
    starts
}

/// The offsets behind each call through a pointer whose result goes to one of `ends`, sorted.
fn calls_before(code: &[u8], address: u64, ends: &[u64]) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, call) in code.windows(5).enumerate().filter(|(_, call)| call[0] == CALL) {
        let Some(distance) = call[1..].first_chunk().map(|bytes| i32::from_le_bytes(*bytes)) else {
            continue;
        };
        let next = address.wrapping_add(at as u64 + 5);
        if ends.binary_search(&next.wrapping_add_signed(i64::from(distance))).is_err() {
            continue;
        }
        let before = &code[..at];
        let passes = PASS_RESULT.iter().find_map(|pass| before.strip_suffix(*pass));
        if let Some(before) = passes
            && ends_with_indirect_call(before)
        {
            found.push(before.len());
        }
    }
    found
}

/// Whether the code ends with `call *register`, `call *[register]` or the same with an offset.
fn ends_with_indirect_call(code: &[u8]) -> bool {
    // ModRM: two bits of mode, three that say "call", three of register.
    let is_call = |modrm: u8, modes: &[u8]| modes.contains(&(modrm >> 6)) && modrm >> 3 & 7 == 2;
    match code {
        [.., 0xff, modrm] if is_call(*modrm, &[0, 3]) => true,
        [.., 0xff, modrm, _] => is_call(*modrm, &[1]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x1000;

    /// The places found in `code`, followed by a call of what lies at `AT + 0x100`.
    fn found(before_the_call: &[u8]) -> Vec<usize> {
        let distance = 0x100 - (before_the_call.len() as i32 + 5);
        let code = [before_the_call, &[CALL], &distance.to_le_bytes()].concat();
        calls_before(&code, AT, &[AT + 0x100])
    }

    #[test]
    fn call_whose_result_ends_the_program_is_a_start() {
        assert_eq!(found(&[0x90, 0xff, 0xd3, 0x89, 0xc7]), [3]); // call rbx; mov edi, eax
        assert_eq!(found(&[0x41, 0xff, 0xd4, 0x89, 0xc7]), [3]); // call r12
        assert_eq!(found(&[0xff, 0x13, 0x48, 0x89, 0xc7]), [2]); // call [rbx]; mov rdi, rax
        assert_eq!(found(&[0xff, 0x50, 0x08, 0x48, 0x63, 0xf8]), [3]); // call [rax+8]; movsxd
    }

    #[test]
    fn call_of_a_known_function_is_no_start() {
        assert_eq!(found(&[0xe8, 0, 0, 0, 0, 0x89, 0xc7]), [0; 0]);
    }

    #[test]
    fn end_with_a_value_of_its_own_is_no_start() {
        assert_eq!(found(&[0xff, 0xd3, 0x31, 0xff]), [0; 0]); // xor edi, edi
        assert_eq!(found(&[0x89, 0xc7]), [0; 0]);
        assert_eq!(found(&[]), [0; 0]);
    }

    #[test]
    fn call_of_another_function_is_no_end() {
        let code = [0xff, 0xd3, 0x89, 0xc7, CALL, 0, 0, 0, 0];

        assert_eq!(calls_before(&code, AT, &[AT + 0x100]), [0; 0]);
        assert_eq!(calls_before(&code, AT, &[AT + 9]), [2]);
        assert_eq!(calls_before(&code[..8], AT, &[AT + 9]), [0; 0]);
    }
}
