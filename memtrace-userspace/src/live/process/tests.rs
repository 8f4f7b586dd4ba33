mod maps;
mod running;
mod smaps;
mod status;

use super::*;

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

#[test]
fn text_has_no_build_id() {
    assert!(
        build_id(&b"no ELF file at all, but long enough to hold the header of one"[..]).is_err()
    );
}
