//! `/proc/PID/smaps`, added up.

use memtrace_common::addr::Avma;

use crate::live::process::smaps::{Held, parse_memory, parse_smaps};
use crate::record::{MemoryByKind, MemoryFigures};

/// The heap, a file, an allocator's arena, a guard page, a thread's stack, the main stack.
const SMAPS: &[u8] = b"\
10000-31000 rw-p 00000000 00:00 0                                        [heap]
Size:                132 kB
KernelPageSize:        4 kB
Rss:                   8 kB
VmFlags: rd wr mr mw me ac sd
40000-42000 rw-p 00001000 fe:01 1835                                     /tmp/Rss: 4 kB
Rss:                   4 kB
VmFlags: rd wr mr mw me ac sd
50000-60000 rw-p 00000000 00:00 0 
Rss:                  12 kB
60000-61000 ---p 00000000 00:00 0 
Rss:                   0 kB
61000-81000 rw-p 00000000 00:00 0 
Rss:                  16 kB
90000-91000 rw-s 00000000 00:01 3                                        /dev/zero (deleted)
Rss:                   0 kB
a0000-a1000 rw-p 00000000 00:00 0                                        [anon:arena]
Rss:                   0 kB
7ffc0000-7ffe0000 rw-p 00000000 00:00 0                                  [stack]
Rss:                  20 kB
VmFlags: rd wr mr mw me gd ac
";

#[test]
fn smaps_are_added_up_without_the_stacks_of_threads() {
    let stack_pointer = Avma(0x80ff0);

    assert_eq!(
        parse_smaps(SMAPS, &[stack_pointer]),
        Some(Held { heap_bytes: 0x21000, anonymous_bytes: 0x11000, resident_bytes: 60 * 1024 })
    );
}

#[test]
fn unknown_stack_counts_as_anonymous_memory() {
    assert_eq!(parse_smaps(SMAPS, &[]).unwrap().anonymous_bytes, 0x31000);
}

/// Names and figures of smaps, in a line each.
const DETAIL: &[u8] = b"\
10000-31000 rw-p 00000000 00:00 0                                        [heap]
Size:                132 kB
Rss:                   8 kB
Pss:                   7 kB
Pss_Dirty:             5 kB
Private_Clean:         1 kB
Private_Dirty:         6 kB
AnonHugePages:         2 kB
Swap:                  4 kB
SwapPss:               3 kB
VmFlags: rd wr mr mw me ac sd
40000-42000 r--p 00001000 fe:01 1835                                     /tmp/Rss: 4 kB
Rss:                   4 kB
50000-60000 rw-p 00000000 00:00 0 
Rss:                  12 kB
60000-61000 ---p 00000000 00:00 0 
Rss:                   0 kB
61000-81000 rw-p 00000000 00:00 0 
Rss:                  16 kB
90000-91000 rw-s 00000000 00:01 3                                        /memfd:ring (deleted)
Rss:                   3 kB
a0000-a1000 rw-p 00000000 00:00 0                                        [anon:arena]
Rss:                   1 kB
7ffc0000-7ffe0000 rw-p 00000000 00:00 0                                  [stack]
Rss:                  20 kB
";

#[test]
fn smaps_are_added_up_by_kind_of_memory() {
    const KIB: u64 = 1024;
    let size = |size_bytes, resident_bytes| MemoryFigures {
        size_bytes,
        resident_bytes: resident_bytes * KIB,
        ..MemoryFigures::default()
    };
    let expected = MemoryByKind {
        heap: MemoryFigures {
            proportional_bytes: 7 * KIB,
            private_dirty_bytes: 6 * KIB,
            swapped_bytes: 4 * KIB,
            huge_bytes: 2 * KIB,
            ..size(0x21000, 8)
        },
        anonymous: MemoryFigures { reserved_bytes: 0x1000, ..size(0x11000, 13) },
        file: size(0x2000, 4),
        stack: size(0x40000, 36),
        shared: size(0x1000, 3),
    };

    assert_eq!(parse_memory(DETAIL, &[Avma(0x80ff0)]), Some(expected));
}

#[test]
fn smaps_in_detail_that_do_not_parse_are_refused() {
    for text in [&b"1000-2000 rw-p 00000000 00:00 0\nRss: many kB\n"[..], b"what is this\n"] {
        assert_eq!(parse_memory(text, &[]), None);
    }
}

#[test]
fn smaps_that_do_not_parse_are_refused() {
    assert_eq!(parse_smaps(b"1000-2000 rw-p 00000000 00:00 0\nRss: many kB\n", &[]), None);
    assert_eq!(parse_smaps(b"what is this\n", &[]), None);
    assert_eq!(parse_smaps(b"Rss: 18446744073709551615 kB\n", &[]), None);
}
