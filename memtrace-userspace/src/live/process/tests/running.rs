//! Processes that run, or have ended.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use crate::live::process::maps::Mapped;
use crate::live::process::{
    ProcessError, Thread, before_attach, build_id, inspect, mappings, memory_by_kind, open_mapped,
    threads,
};
use crate::record::{MemoryFigures, Pid, Tid};

/// `cat`, which has answered once and is past its start-up. It waits for its input, and touches no
/// memory until that ends.
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
