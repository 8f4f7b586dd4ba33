//! `stat`, `status` and `syscall` of a process.

use memtrace_common::addr::Avma;

use crate::live::process::status::{
    ProgramId, Seccomp, Stat, State, Status, parse_stat, parse_status, parse_syscall_stack_pointer,
};
use crate::live::process::{ProcessError, check_alive};
use crate::record::Pid;

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
        Some(Status {
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
        parse_status(&text).unwrap().has_shadow_stack
    };

    assert!(has(b"shstk wrss"));
    assert!(!has(b"") && !has(b"wrss"));
}

#[test]
fn status_of_a_kernel_without_seccomp_and_namespaces_is_parsed() {
    assert_eq!(
        parse_status(b"Tgid:\t7\n"),
        Some(Status {
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
