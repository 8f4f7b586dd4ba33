//! Lines of `/proc/PID/maps`.

use memtrace_common::addr::{Avma, FileOffset};

use crate::live::process::maps::{Access, Mapped, Mapping, Sharing, parse_maps};

fn only_mapping(line: &[u8]) -> Mapping {
    let mut mappings = parse_maps(line).unwrap();
    assert_eq!(mappings.len(), 1);
    mappings.remove(0)
}

#[test]
fn line_of_maps_is_parsed_whole() {
    let line = b"7f01a8226000-7f01a839c000 r-xp 00026000 fe:01 1835                       \
        /usr/lib/x86_64-linux-gnu/libc.so.6\n";

    assert_eq!(
        only_mapping(line),
        Mapping {
            start: Avma(0x7f01_a822_6000),
            end: Avma(0x7f01_a839_c000),
            access: Access { read: true, write: false, execute: true },
            sharing: Sharing::Private,
            offset: FileOffset(0x26000),
            device: (0xfe, 1),
            inode: 1835,
            mapped: Mapped::File {
                path: b"/usr/lib/x86_64-linux-gnu/libc.so.6".to_vec(),
                deleted: false
            },
        }
    );
}

fn mapped(inode: &str, name: &[u8]) -> Mapped {
    let mut line =
        format!("1000-2000 rw-p 00000000 00:00 {inode}                    ").into_bytes();
    line.extend(name);
    only_mapping(&line).mapped
}

fn file(path: &[u8], deleted: bool) -> Mapped {
    Mapped::File { path: path.to_vec(), deleted }
}

#[test]
fn bracketed_names_are_not_files() {
    assert_eq!(mapped("0", b""), Mapped::Anonymous);
    assert_eq!(mapped("0", b"[heap]"), Mapped::Heap);
    assert_eq!(mapped("0", b"[stack]"), Mapped::Stack);
    assert_eq!(mapped("0", b"[vdso]"), Mapped::Vdso);
    assert_eq!(mapped("0", b"[anon:x y]"), Mapped::Special { name: b"[anon:x y]".to_vec() });
}

#[test]
fn line_without_a_name_may_end_after_the_inode() {
    assert_eq!(only_mapping(b"1000-2000 rw-p 00000000 00:00 0 \n").mapped, Mapped::Anonymous);
    assert_eq!(only_mapping(b"1000-2000 rw-p 00000000 00:00 0").mapped, Mapped::Anonymous);
}

#[test]
fn odd_paths_survive() {
    assert_eq!(mapped("7", b"/tmp/two words  here"), file(b"/tmp/two words  here", false));
    assert_eq!(mapped("7", b"/tmp/new\\012line"), file(b"/tmp/new\nline", false));
    assert_eq!(mapped("7", b"/tmp/back\\slash"), file(b"/tmp/back\\slash", false));
    assert_eq!(mapped("7", b"/tmp/\xff\xfe"), file(b"/tmp/\xff\xfe", false));
    assert_eq!(mapped("7", b"/tmp/ends \\012"), file(b"/tmp/ends \n", false));
    assert_eq!(mapped("7", b"anon_inode:[io_uring]"), file(b"anon_inode:[io_uring]", false));
}

#[test]
fn deleted_file_is_told_from_its_path() {
    assert_eq!(mapped("7", b"/opt/app (deleted)"), file(b"/opt/app", true));
    assert_eq!(mapped("7", b"/memfd:jit (deleted)"), file(b"/memfd:jit", true));
    assert_eq!(mapped("7", b"/opt/app (deleted) x"), file(b"/opt/app (deleted) x", false));
}

#[test]
fn shared_mapping_is_told_from_a_private_one() {
    let line = b"1000-2000 rw-s 00000000 00:01 9 /dev/zero (deleted)\n";

    assert_eq!(only_mapping(line).sharing, Sharing::Shared);
}

#[test]
fn broken_line_of_maps_is_refused() {
    for line in [
        &b"nonsense"[..],
        b"2000-1000 rw-p 00000000 00:00 0",
        b"1000-2000 rw-p 00000000 00:00",
        b"1000-2000 rw?p 00000000 00:00 0",
        b"1000-2000 rwxz 00000000 00:00 0",
        b"1000-2000 rw-pp 00000000 00:00 0",
        b"1000-20000000000000000 rw-p 00000000 00:00 0",
        b"1000-2000 rw-p 00000000 00:00 -1",
    ] {
        assert_eq!(parse_maps(line), None, "{}", line.escape_ascii());
    }
}

#[test]
fn empty_maps_are_no_mappings() {
    assert_eq!(parse_maps(b""), Some(vec![]));
}

#[test]
fn vsyscall_is_no_code_of_the_program() {
    let vsyscall = b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n";
    let jit = b"1000-2000 rwxp 00000000 00:00 0 \n";
    let data = b"1000-2000 rw-p 00000000 fe:01 7 /bin/x\n";

    assert!(!only_mapping(vsyscall).is_code());
    assert!(only_mapping(jit).is_code());
    assert!(!only_mapping(data).is_code());
}
