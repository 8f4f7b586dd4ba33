//! Unwinding through code that runtimes copy instead of compiling it.
//!
//! CPython's `-X perf` gives each Python function a copy of one small function, so that its frame
//! has an address of its own. Copies have no `.eh_frame`, and in CPython 3.12 and 3.13, which are
//! built without frame pointers, nothing else leads past them:
//!
//! ```text
//!   endbr64            with -fcf-protection only
//!   sub  rsp, 8
//!   call rcx           the evaluation loop; every stack through the copy returns here
//!   add  rsp, 8
//!   ret                CFA = rsp + 16 at the return address
//! ```
//!
//! Arenas hold nothing else, so one row serves all of one. Later versions push `rbp`, which the
//! walk follows by itself. See `Python/asm_trampoline.S` of CPython.

use memtrace_common::addr::Svma;
use memtrace_common::config::BUCKET_SHIFT;
use memtrace_common::unwind::{RBP_SAME, Row, cfa};

use super::{Skipped, Table};

/// As many bytes from the start of an arena tell what it is.
pub const TRAMPOLINE_BYTES: usize = ENDBR64.len() + CPYTHON.len();

const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
const CPYTHON: [u8; 11] = [0x48, 0x83, 0xec, 0x08, 0xff, 0xd1, 0x48, 0x83, 0xc4, 0x08, 0xc3];

/// Arenas have 64 KiB, and neighbours are one mapping. What lies behind has no row.
pub const ARENA_BYTES: u64 = 16 << 20;

/// Whether `code`, the start of a mapping without a file, is a trampoline of CPython.
pub fn is_trampoline(code: &[u8]) -> bool {
    code.strip_prefix(&ENDBR64).unwrap_or(code).starts_with(&CPYTHON)
}

/// The table of an arena of trampolines, whose first byte is at address 0.
pub fn trampoline_table() -> Table {
    let row = Row { pc: 0, cfa_offset: 16, cfa_kind: cfa::RSP, rbp_offset_by_8: RBP_SAME };
    let buckets = vec![0; (ARENA_BYTES >> BUCKET_SHIFT) as usize + 1];
    Table { base: Svma(0), rows: vec![row], buckets, skipped: Skipped::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cfi::lookup;

    #[test]
    fn trampoline_of_cpython_is_recognised() {
        // objdump -d --disassemble=_Py_trampoline_func_start libpython3.12.so.1.0
        let code = b"\x48\x83\xec\x08\xff\xd1\x48\x83\xc4\x08\xc3\0\0\0\0";

        assert!(is_trampoline(code));
        assert!(is_trampoline(&[&ENDBR64[..], code].concat()));
        assert!(!is_trampoline(&code[1..]));
        assert!(!is_trampoline(&code[..10]));
        assert!(!is_trampoline(&[]));
    }

    #[test]
    fn table_of_trampolines_has_one_row_for_all_of_an_arena() {
        let table = trampoline_table();

        assert!(table.is_sound());
        for pc in [0, 6, ARENA_BYTES - 1] {
            assert_eq!(lookup(&table, Svma(pc)), table.rows[0]);
        }
        assert_eq!(lookup(&table, Svma(ARENA_BYTES)).cfa_kind, cfa::NONE);
    }
}
