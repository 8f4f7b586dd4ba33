//! The programs that show each allocator, built with the real one.
//!
//! They are apart from [`crate::program::ALL`]: they need every allocator's library, and the tests
//! on other kernels need none of them.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::program::{FramePointers, Program, Startup, Toolchain};

const fn linked(
    name: &'static str,
    source: &'static str,
    toolchain: Toolchain,
    link: &'static [&'static str],
) -> Program {
    Program { name, source, toolchain, startup: Startup::Allocates, companions: &[], link }
}

/// Every function of C that gives or takes memory, in `allocators.c`.
pub const C: &[Program] = &[
    linked("c_glibc", "allocators.c", Toolchain::C, &[]),
    linked("c_glibc_static", "allocators.c", Toolchain::StaticC, &[]),
    linked("c_jemalloc", "allocators.c", Toolchain::C, &["-ljemalloc"]),
    linked(
        "c_jemalloc_static",
        "allocators.c",
        Toolchain::C,
        &["-l:libjemalloc.a", "-lm", "-lstdc++"],
    ),
    linked(
        "c_tcmalloc",
        "allocators.c",
        Toolchain::C,
        &["-Wl,--no-as-needed", "-ltcmalloc_minimal"],
    ),
    linked(
        "c_tcmalloc_static",
        "allocators.c",
        Toolchain::C,
        &["-l:libtcmalloc_minimal.a", "-lm", "-lstdc++"],
    ),
    linked("c_mimalloc", "allocators.c", Toolchain::C, &["-Wl,--no-as-needed", "-lmimalloc"]),
];

/// The same with musl, whose code has no unwind information.
pub const MUSL: &[Program] = &[
    linked("c_musl", "allocators.c", Toolchain::Musl, &[]),
    linked("c_musl_static", "allocators.c", Toolchain::StaticMusl, &[]),
];

/// C++'s operators, in `operators.cc`.
pub const CXX: &[Program] = &[
    linked("cxx_libstdcxx", "operators.cc", Toolchain::Cxx, &[]),
    linked("cxx_jemalloc", "operators.cc", Toolchain::Cxx, &["-ljemalloc"]),
    linked("cxx_jemalloc_static", "operators.cc", Toolchain::Cxx, &["-l:libjemalloc.a"]),
    linked("cxx_tcmalloc", "operators.cc", Toolchain::Cxx, &["-ltcmalloc_minimal"]),
    linked("cxx_tcmalloc_static", "operators.cc", Toolchain::Cxx, &["-l:libtcmalloc_minimal.a"]),
    linked("cxx_mimalloc", "operators.cc", Toolchain::Cxx, &["-lmimalloc"]),
    linked("cxx_libcxx", "operators.cc", Toolchain::LibCxx, &[]),
    linked("cxx_libcxx_jemalloc", "operators.cc", Toolchain::LibCxx, &["-ljemalloc"]),
    linked("cxx_libcxx_tcmalloc", "operators.cc", Toolchain::LibCxx, &["-ltcmalloc_minimal"]),
];

/// jemalloc's extended functions.
pub const EXTENDED_JEMALLOC: Program =
    linked("extended_jemalloc", "extended_jemalloc.c", Toolchain::C, &["-ljemalloc"]);

/// What each allocator says of its own blocks.
pub const USABLE_GLIBC: Program = linked("usable_glibc", "usable_sizes.c", Toolchain::C, &[]);
/// The same of jemalloc.
pub const USABLE_JEMALLOC: Program =
    linked("usable_jemalloc", "usable_sizes.c", Toolchain::C, &["-ljemalloc"]);
/// The same of tcmalloc.
pub const USABLE_TCMALLOC: Program = linked(
    "usable_tcmalloc",
    "usable_sizes.c",
    Toolchain::C,
    &["-Wl,--no-as-needed", "-ltcmalloc_minimal"],
);
/// The same of mimalloc.
pub const USABLE_MIMALLOC: Program = linked(
    "usable_mimalloc",
    "usable_sizes.c",
    Toolchain::C,
    &["-Wl,--no-as-needed", "-lmimalloc"],
);
/// The same of musl.
pub const USABLE_MUSL: Program =
    linked("usable_musl", "usable_sizes.c", Toolchain::StaticMusl, &[]);

/// A Rust program with the allocator of a crate in it, and its source for the table.
pub fn rust(feature: &str) -> Result<(PathBuf, PathBuf)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("programs/rust_allocators");
    let target = crate::target_directory()?.join("test-programs/rust_allocators").join(feature);
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(&directory).args(["build", "--release", "--locked", "--features", feature]);
    let output = build.arg("--target-dir").arg(&target).output().context("run cargo")?;
    if !output.status.success() {
        bail!("{build:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((target.join("release/rust-allocators"), directory.join("src/main.rs")))
}

/// Builds a program without frame pointers.
pub fn build(program: &Program) -> Result<PathBuf> {
    program.build(FramePointers::Omitted)
}
