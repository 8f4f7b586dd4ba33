use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use memtrace_common::addr::FileOffset;

use super::maps::{Access, Sharing, parse_maps};
use super::smaps::{Held, parse_memory, parse_smaps};
use super::status::{parse_stat, parse_status, parse_syscall_stack_pointer};
use super::*;
use crate::record::{MemoryByKind, MemoryFigures};

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

/// The oracle is the kernel's own sum.
#[test]
fn kinds_of_memory_add_up_to_what_the_kernel_adds_up() {
    let child = running_cat();
    let pid = Pid(child.id());

    let rollup = || std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.0)).unwrap();
    // Its share of a library's pages changes with every other program that starts or ends.
    let (memory, rollup) = loop {
        let before = rollup();
        let memory = memory_by_kind(pid).unwrap();
        if before == rollup() {
            break (memory, before);
        }
    };
    finish(child);

    let kernel = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    };
    let sum = |of: fn(&MemoryFigures) -> u64| memory.all().iter().map(of).sum::<u64>();
    assert_eq!(memory.resident_bytes(), kernel("Rss:"));
    assert_eq!(sum(|kind| kind.private_dirty_bytes), kernel("Private_Dirty:"));
    assert_eq!(sum(|kind| kind.swapped_bytes), kernel("Swap:"));
    // Each mapping's is rounded down to a kilobyte.
    let proportional = sum(|kind| kind.proportional_bytes);
    assert!((proportional..proportional + (64 << 10)).contains(&kernel("Pss:")));
    assert!(memory.heap.resident_bytes > 0 && memory.stack.resident_bytes > 0);
}

#[test]
fn smaps_that_do_not_parse_are_refused() {
    assert_eq!(parse_smaps(b"1000-2000 rw-p 00000000 00:00 0\nRss: many kB\n", &[]), None);
    assert_eq!(parse_smaps(b"what is this\n", &[]), None);
    assert_eq!(parse_smaps(b"Rss: 18446744073709551615 kB\n", &[]), None);
}

#[test]
fn name_in_stat_may_hold_anything() {
    let text = b"4242 (a) S 1 (\n) Z) S 17 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 \
        4096 100 18446744073709551615 94000 94500 140700 0\n";

    assert_eq!(
        parse_stat(text),
        Some(Stat {
            state: State::Alive,
            parent: 17,
            is_kernel_thread: false,
            start_ticks: 987_654,
            program: ProgramId::new(94_000, 140_700),
        })
    );
}

#[test]
fn kernel_thread_is_told_by_its_flags() {
    let text = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0 0 0 0 0\n";

    let stat = parse_stat(text).unwrap();

    assert!(matches!(check_alive(Pid(2), &stat), Err(ProcessError::KernelThread { pid: 2 })));
}

#[test]
fn truncated_stat_is_refused() {
    assert_eq!(parse_stat(b"1 (init) S 0"), None);
    assert_eq!(parse_stat(b"1 init S"), None);
    assert_eq!(parse_stat(b""), None);
    assert_eq!(parse_stat(b"1 (init)"), None);
}

#[test]
fn status_is_parsed_beside_a_name_that_is_not_utf8() {
    let text = b"Name:\t\xff\xfe\nTgid:\t4242\nPid:\t4243\nNSpid:\t4243\t12\t1\n\
        Seccomp:\t2\nSeccomp_filters:\t1\n";

    assert_eq!(
        parse_status(text),
        Some(status::Status {
            tgid: 4242,
            namespaced_pids: vec![4243, 12, 1],
            seccomp: Seccomp::Filter,
            has_shadow_stack: false,
        })
    );
}

#[test]
fn shadow_stack_is_one_of_the_features_of_the_thread() {
    let has = |features: &[u8]| {
        let text = [b"Tgid:\t7\nx86_Thread_features:\t".as_slice(), features, b"\n"].concat();
        status::parse_status(&text).unwrap().has_shadow_stack
    };

    assert!(has(b"shstk wrss"));
    assert!(!has(b"") && !has(b"wrss"));
}

#[test]
fn status_of_a_kernel_without_seccomp_and_namespaces_is_parsed() {
    assert_eq!(
        parse_status(b"Tgid:\t7\n"),
        Some(status::Status {
            tgid: 7,
            namespaced_pids: vec![7],
            seccomp: Seccomp::Off,
            has_shadow_stack: false,
        })
    );
}

#[test]
fn status_that_does_not_parse_is_refused() {
    assert_eq!(parse_status(b"Name:\tx\n"), None);
    assert_eq!(parse_status(b"Tgid:\t7\nSeccomp:\t9\n"), None);
    assert_eq!(parse_status(b"Tgid:\t7\nNSpid:\tseven\n"), None);
}

#[test]
fn stack_pointer_is_the_last_but_one_word_of_syscall() {
    let waiting = b"202 0x7f00 0x189 0x0 0x0 0x0 0xffffffff 0x7ffc1230 0x7f01\n";

    assert_eq!(parse_syscall_stack_pointer(waiting), Some(Avma(0x7ffc_1230)));
    assert_eq!(parse_syscall_stack_pointer(b"-1 0x7ffc1230 0x7f01\n"), Some(Avma(0x7ffc_1230)));
    assert_eq!(parse_syscall_stack_pointer(b"running\n"), None);
    assert_eq!(parse_syscall_stack_pointer(b""), None);
}

#[test]
fn command_line_is_split_at_its_nuls() {
    assert_eq!(split_command(b"a\0\0b c\0"), [b"a".to_vec(), b"".to_vec(), b"b c".to_vec()]);
    assert_eq!(split_command(b"nginx: worker"), [b"nginx: worker".to_vec()]);
    assert_eq!(split_command(b""), Vec::<Vec<u8>>::new());
}

fn elf_header(class: u8, endian: u8, machine: [u8; 2]) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', class, endian];
    header.resize(18, 0);
    header.extend(machine);
    header
}

#[test]
fn machine_of_the_executable_is_checked() {
    let check = |header: Vec<u8>| check_machine(Pid(9), &header);

    assert!(check(elf_header(2, 1, [62, 0])).is_ok());
    let i386 = check(elf_header(1, 1, [3, 0]));
    assert!(matches!(i386, Err(ProcessError::ThirtyTwoBit { pid: 9 })));
    let x32 = check(elf_header(1, 1, [62, 0]));
    assert!(matches!(x32, Err(ProcessError::ThirtyTwoBit { pid: 9 })));
    let aarch64 = check(elf_header(2, 1, [183, 0]));
    assert!(matches!(aarch64, Err(ProcessError::ForeignMachine { pid: 9, machine: 183 })));
    let s390x = check(elf_header(2, 2, [0, 22]));
    assert!(matches!(s390x, Err(ProcessError::ForeignMachine { pid: 9, machine: 22 })));
    assert!(matches!(check(b"#!/bin/sh".to_vec()), Err(ProcessError::Malformed { .. })));
}

#[test]
fn io_errors_become_answers() {
    let path = Path::new("/proc/9/maps");
    let error = |kind: i32| failed(Pid(9), path, io::Error::from_raw_os_error(kind));

    assert!(matches!(error(libc::ENOENT), ProcessError::NoSuchProcess { pid: 9 }));
    assert!(matches!(error(libc::ESRCH), ProcessError::NoSuchProcess { pid: 9 }));
    assert!(matches!(error(libc::EACCES), ProcessError::PermissionDenied { .. }));
    assert!(matches!(error(libc::EPERM), ProcessError::PermissionDenied { .. }));
    assert!(matches!(error(libc::EIO), ProcessError::Unreadable { .. }));
}

#[test]
fn every_refusal_says_what_to_do() {
    let path = PathBuf::from("/proc/9/maps");
    let refusals = [
        (ProcessError::NoSuchProcess { pid: 9 }, "ps -e"),
        (ProcessError::Thread { tid: 9, pid: 8 }, "-p 8"),
        (ProcessError::KernelThread { pid: 9 }, "choose a process"),
        (ProcessError::Zombie { pid: 9, parent: 8 }, "choose a process"),
        (ProcessError::ThirtyTwoBit { pid: 9 }, "64-bit build"),
        (ProcessError::ForeignMachine { pid: 9, machine: 183 }, "build for this machine"),
        (ProcessError::PermissionDenied { path }, "sudo"),
    ];

    for (error, advice) in refusals {
        let text = error.to_string();
        assert!(text.contains(advice), "{text}");
    }
}

/// `cat`, which has answered once, so that it is past its exec and start-up.
/// A program that waits for its input, and touches no memory until that ends.
fn running_cat() -> Child {
    let mut child =
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(" S ") {
        std::thread::yield_now();
    }
    child
}

/// Closes its input, and waits for it to end.
fn finish(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn running_process_is_inspected() {
    let child = running_cat();
    let pid = Pid(child.id());

    let info = inspect(pid).unwrap();
    let threads = threads(pid).unwrap();
    finish(child);

    assert_eq!(info.command, [b"cat".to_vec()]);
    assert!(info.exe.ends_with(b"/cat"), "{}", info.exe.escape_ascii());
    assert_eq!(info.parent, Pid(std::process::id()));
    assert_eq!(threads, [Thread { tid: Tid(pid.0), name: b"cat".to_vec() }]);
}

#[test]
fn memory_of_a_running_process_is_read() {
    let child = running_cat();
    let pid = Pid(child.id());

    let mappings = mappings(pid).unwrap();
    let before = before_attach(pid).unwrap();
    let code = mappings
        .iter()
        .find(|mapping| mapping.is_code() && matches!(&mapping.mapped, Mapped::File { .. }));
    let build_id =
        build_id(&object::read::ReadCache::new(open_mapped(pid, code.unwrap()).unwrap())).unwrap();
    let vdso = mappings.iter().find(|mapping| mapping.mapped == Mapped::Vdso).cloned();
    finish(child);

    assert_eq!(build_id.len(), 20);
    assert!(vdso.is_some_and(|vdso| vdso.is_code()));
    assert!(before.heap_bytes > 0 && before.resident_bytes > 0);
}

#[test]
fn mappings_of_a_process_that_ends_are_whole_or_none() {
    for _ in 0..200 {
        let mut child = running_cat();
        let pid = Pid(child.id());
        child.stdin.take();
        let mut found = vec![mappings(pid)];
        while child.try_wait().unwrap().is_none() {
            found.push(mappings(pid));
        }
        for found in found {
            // The kernel tells of it last.
            match found {
                Ok(mappings) => assert!(mappings.iter().any(|m| m.mapped == Mapped::Vdso)),
                Err(error) => assert!(matches!(error, ProcessError::NoSuchProcess { .. })),
            }
        }
    }
}

#[test]
fn zombie_is_refused() {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    let pid = Pid(child.id());
    // Its end is waited for without reaping it.
    BufReader::new(child.stdout.take().unwrap()).read_until(b'\n', &mut Vec::new()).unwrap();
    let refused = loop {
        match inspect(pid) {
            // The pipe is closed a moment before the process is a zombie.
            Ok(_) => std::thread::yield_now(),
            Err(error @ ProcessError::Zombie { .. }) => break error,
            Err(_) => std::thread::yield_now(),
        }
    };
    child.wait().unwrap();

    assert!(matches!(refused, ProcessError::Zombie { pid: p, .. } if p == pid.0));
    assert!(matches!(inspect(pid), Err(ProcessError::NoSuchProcess { .. })));
}

#[test]
fn thread_id_is_refused_with_the_id_of_its_process() {
    let (send, receive) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        // SAFETY: `gettid` takes nothing and cannot fail.
        send.send(unsafe { libc::gettid() }).unwrap();
        // Ends when the other side is dropped.
        let _ = stopped.recv();
    });
    let tid = u32::try_from(receive.recv().unwrap()).unwrap();

    let refused = inspect(Pid(tid));

    drop(stop);
    thread.join().unwrap();
    let own = std::process::id();
    assert!(matches!(refused, Err(ProcessError::Thread { tid: t, pid }) if t == tid && pid == own));
}

#[test]
fn deleted_executable_is_opened_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("copy of cat");
    fs::copy("/bin/cat", &path).unwrap();
    let mut child =
        Command::new(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    fs::remove_file(&path).unwrap();
    let pid = Pid(child.id());

    let info = inspect(pid).unwrap();
    let mappings = mappings(pid).unwrap();
    let code = mappings
        .iter()
        .find(|m| m.is_code() && matches!(&m.mapped, Mapped::File { deleted: true, .. }))
        .unwrap();
    let opened = open_mapped(pid, code).map(|mut file| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    });
    finish(child);

    assert!(info.exe_is_deleted);
    assert!(info.exe.ends_with(b"/copy of cat"));
    match opened {
        Ok(bytes) => assert_eq!(bytes, fs::read("/bin/cat").unwrap()),
        // Without CAP_SYS_ADMIN the kernel does not show `map_files`, and the path is gone.
        Err(error) => assert!(matches!(error, ProcessError::PermissionDenied { .. }), "{error}"),
    }
}

#[test]
fn text_has_no_build_id() {
    assert!(
        build_id(&b"no ELF file at all, but long enough to hold the header of one"[..]).is_err()
    );
}
