//! The sites in Debian's own builds, as far as this machine has them.
//!
//! Each file is known by its build id: with another build (an update, another distribution) there
//! is nothing to compare, and the test says so.

use std::path::Path;

use super::*;
use crate::live::process::build_id;

/// The plan of the file at `path`, if it is there and is the build `id`.
fn plan_of(path: &str, id: &str) -> Option<Plan> {
    let Ok(file) = std::fs::read(Path::new(path)) else {
        eprintln!("skipped: no {path}");
        return None;
    };
    let found: String = build_id(&*file).unwrap().iter().map(|b| format!("{b:02x}")).collect();
    if found != id {
        eprintln!("skipped: {path} is build {found}, and not {id}");
        return None;
    }
    Some(plan(&*file, &[], Watch::Inside).unwrap())
}

fn sites(plan: &Plan) -> Vec<(&str, u64, ProbeCost)> {
    let mut sites: Vec<_> = plan
        .probes
        .iter()
        .map(|probe| (probe.target.symbol.as_str(), probe.site.delta, probe.site.cost))
        .collect();
    sites.sort_by_key(|(symbol, ..)| *symbol);
    sites
}

use ProbeCost::{Emulated, Stepped};

#[test]
fn glibc_2_36_of_debian_12() {
    let Some(plan) =
        plan_of("/lib/x86_64-linux-gnu/libc.so.6", "93ac61ec5a8eb1396f9fbd350e3169a558528a40")
    else {
        return;
    };

    assert_eq!(
        sites(&plan),
        [
            ("_int_malloc", 1212, Emulated), // je: unless memory is to be filled
            ("_int_malloc", 1236, Emulated), // jmp: it was
            ("_int_malloc", 1488, Emulated), // jne: a chunk of a bin
            ("_int_malloc", 1725, Emulated), // jmp: one that went to the thread's cache
            ("_int_malloc", 3010, Emulated), // je: the rest of a larger one
            ("_int_malloc", 3034, Emulated), // jmp
            ("_int_malloc", 3141, Emulated), // jmp
            ("_int_malloc", 3394, Emulated), // jmp: the top, or what the system gave
            ("_int_malloc", 3428, Emulated), // jne: unless it gave nothing
            ("aligned_alloc", 7, Emulated),  // and memalign: je
            ("free", 35, Emulated),          // jne, behind the test for NULL
            ("malloc", 343, Emulated),       // jne: from the thread's cache, unless it is corrupted
            ("posix_memalign", 7, Emulated), // push
            ("pvalloc", 7, Emulated),        // push
            ("realloc", 97, Emulated),       // jne: takes the block
            ("realloc", 272, Emulated),      // je: no memory, with one thread
            ("realloc", 455, Emulated),      // je: no memory in the arena; else it has a block
            ("realloc", 610, Emulated),      // je: a mapping that need not grow
            ("realloc", 691, Emulated), // jne: one that the system has made larger, unless corrupted
            ("realloc", 802, Emulated), // jae: one that it has not, but is large enough
            ("realloc", 822, Emulated), // je: one that was copied, or could not be
            ("realloc", 878, Emulated), // jmp: larger than anything
            ("realloc", 1026, Emulated), // je: from another arena
            ("reallocarray", 0, Stepped), // mul clobbers rdx before the first branch
            ("valloc", 7, Emulated),    // push
        ]
    );
}

#[test]
fn jemalloc_5_3_of_debian_12() {
    let Some(plan) = plan_of(
        "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
        "1d5163c246dc9cd2b4d339f2ac42efd95c6e0ae1",
    ) else {
        return;
    };

    assert_eq!(
        sites(&plan),
        [
            ("_ZdaPvm", 3, Emulated), // je
            ("_ZdlPvm", 3, Emulated), // je
            ("_Znwm", 160, Emulated), // jmp, to the slow path
            ("_Znwm", 110, Emulated), // je: the block, unless the cache is empty
            ("_Znwm", 176, Emulated), // je: or it was at its low water mark
            ("_ZnwmRKSt9nothrow_t", 160, Emulated),
            ("_ZnwmRKSt9nothrow_t", 110, Emulated),
            ("_ZnwmRKSt9nothrow_t", 176, Emulated),
            ("aligned_alloc", 0, Emulated),
            ("calloc", 0, Emulated),
            ("dallocx", 0, Emulated),
            ("free", 48, Emulated), // jne
            ("malloc", 160, Emulated),
            ("malloc", 110, Emulated),
            ("malloc", 176, Emulated),
            ("mallocx", 0, Emulated),
            ("memalign", 0, Emulated),
            ("posix_memalign", 0, Emulated),
            ("rallocx", 2, Emulated),
            ("realloc", 0, Emulated),
            ("sdallocx", 10, Emulated), // ja
            ("valloc", 0, Emulated),
            ("xallocx", 0, Emulated),
        ]
    );
    let forwarding: Vec<_> = plan
        .skipped
        .iter()
        .map(|skipped| {
            assert_eq!(skipped.reason, Skip::Forwards);
            skipped.symbol.as_str()
        })
        .collect();
    assert_eq!(
        forwarding,
        [
            "_ZdaPv",
            "_ZdaPvRKSt9nothrow_t",
            "_ZdaPvSt11align_val_t",
            "_ZdaPvSt11align_val_tRKSt9nothrow_t",
            "_ZdaPvmSt11align_val_t", // to sdallocx
            "_ZdlPv",
            "_ZdlPvRKSt9nothrow_t",
            "_ZdlPvSt11align_val_t",
            "_ZdlPvSt11align_val_tRKSt9nothrow_t",
            "_ZdlPvmSt11align_val_t", // to sdallocx
            "_Znam",
            "_ZnamRKSt9nothrow_t",
            "_ZnamSt11align_val_t", // to aligned_alloc
            "_ZnamSt11align_val_tRKSt9nothrow_t",
            "_ZnwmSt11align_val_t",
            "_ZnwmSt11align_val_tRKSt9nothrow_t",
        ]
    );
}

#[test]
fn musl_1_2_3_of_debian_12() {
    let Some(plan) =
        plan_of("/usr/lib/x86_64-linux-musl/libc.so", "54d00df44fce62f541ca62b56bdef5bf31ff077c")
    else {
        return;
    };

    assert_eq!(
        sites(&plan),
        [
            ("aligned_alloc", 0, Emulated),
            ("calloc", 0, Emulated),
            ("free", 0, Emulated),     // jmp
            ("malloc", 0, Emulated),   // jmp
            ("memalign", 0, Emulated), // jmp
            ("posix_memalign", 0, Emulated),
            ("realloc", 0, Emulated),      // jmp
            ("reallocarray", 6, Emulated), // je
            ("valloc", 0, Stepped),        // a mov clobbers rdi before the first branch
        ]
    );
}

#[test]
fn dynamic_linker_of_glibc_2_36_exports_no_allocator() {
    let Some(plan) =
        plan_of("/lib64/ld-linux-x86-64.so.2", "7ebc65e52f2bbea498b4040fa92f7238377aaba9")
    else {
        return;
    };

    assert_eq!(plan, Plan::default());
}

#[test]
fn libstdcxx_of_debian_12_only_forwards() {
    let Some(plan) = plan_of(
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "289ee39f8c07bd4fa48102dfeeb7e6f9c76158b4",
    ) else {
        return;
    };

    assert_eq!(plan, Plan::default());
}
