//! The programs that show each allocator, built with the real one.
//!
//! They are apart from [`crate::program::ALL`]: they need every allocator's library, and the tests
//! on other kernels need none of them.

use std::path::{Path, PathBuf};
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

/// mimalloc's own functions.
pub const EXTENDED_MIMALLOC: Program =
    linked("extended_mimalloc", "extended_mimalloc.c", Toolchain::C, &["-lmimalloc"]);

/// [`EXTENDED_JEMALLOC`] with a jemalloc whose functions have the prefix `je_`.
///
/// No package of Debian has one, so it is made of the sources in Rust's crate.
pub fn prefixed_jemalloc() -> Result<PathBuf> {
    let place = crate::target_directory()?.join("test-programs/jemalloc_je");
    let library = place.join("lib/libjemalloc.a");
    if !library.exists() {
        build_prefixed_jemalloc(&place)?;
    }
    let program = place.join("extended_jemalloc_je");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-DWITH_PREFIX"]);
    gcc.arg("-I").arg(place.join("include")).arg("-o").arg(&program);
    gcc.arg(EXTENDED_JEMALLOC.source_path()).arg(&library).args(["-pthread", "-ldl", "-lm"]);
    succeed(&mut gcc)?;
    Ok(program)
}

fn build_prefixed_jemalloc(place: &Path) -> Result<()> {
    let sources = sources_in_crate("jemalloc", "tikv-jemalloc-sys")?;
    let build = place.join("build");
    std::fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
    succeed(Command::new("cp").arg("-rT").arg(sources.join("jemalloc")).arg(&build))?;
    succeed(Command::new("cp").arg(sources.join("configure/configure")).arg(&build))?;
    let mut configure = Command::new("sh");
    configure.current_dir(&build).args(["configure", "--with-jemalloc-prefix=je_"]);
    configure.args(["--with-version=5.3.0-0-g0", "--disable-cxx", "--enable-doc=no"]);
    configure.arg("--enable-shared=no").arg(format!("--prefix={}", place.display()));
    succeed(&mut configure)?;
    let mut make = Command::new("make");
    make.current_dir(&build).args(["-j2", "install_lib_static", "install_include"]);
    succeed(&mut make)?;
    Ok(())
}

/// Programs with a mimalloc of version 2 or 3 linked into them, in place of the C library's allocator.
///
/// Debian 12 has it as a shared library alone, so it is made of the sources in Rust's crate.
pub fn static_mimalloc(version: u32) -> Result<Vec<(PathBuf, &'static Program)>> {
    let place = crate::target_directory()?.join(format!("test-programs/mimalloc_v{version}"));
    std::fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    let sources = sources_in_crate("mimalloc", "libmimalloc-sys")?;
    let sources = sources.join(format!("c_src/mimalloc/v{version}"));
    let object = place.join("mimalloc.o");
    let include = sources.join("include");
    // One file that includes all others, as mimalloc's own build makes `mimalloc.o`.
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-g", "-DNDEBUG", "-DMI_MALLOC_OVERRIDE", "-fno-builtin-malloc", "-I"]);
    gcc.arg(&include).arg("-c").arg(sources.join("src/static.c")).arg("-o").arg(&object);
    succeed(&mut gcc)?;
    let programs = C.iter().chain(CXX).filter(|program| program.name.ends_with("_mimalloc"));
    let programs = programs.chain([&EXTENDED_MIMALLOC]).map(|program| {
        let mut compile =
            Command::new(if program.toolchain == Toolchain::C { "gcc" } else { "g++" });
        let executable = place.join(program.name);
        compile.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-I"]).arg(&include);
        compile.arg("-o").arg(&executable).arg(program.source_path()).arg(&object).arg("-pthread");
        succeed(&mut compile)?;
        Ok((executable, program))
    });
    programs.collect()
}

/// Where cargo has the sources of a crate that a feature of the Rust program needs.
fn sources_in_crate(feature: &str, name: &str) -> Result<PathBuf> {
    let mut metadata = Command::new(env!("CARGO"));
    metadata.current_dir(rust_directory());
    metadata.args(["metadata", "--format-version=1", "--locked", "--features", feature]);
    let metadata: serde_json::Value =
        serde_json::from_slice(&succeed(&mut metadata)?).context("cargo's metadata")?;
    let packages = metadata["packages"].as_array().context("cargo's packages")?;
    let package = packages.iter().find(|package| package["name"] == name);
    let manifest = package.and_then(|package| package["manifest_path"].as_str());
    Ok(Path::new(manifest.with_context(|| format!("crate {name}"))?).with_file_name(""))
}

/// Runs a command to its end, and returns what it has printed.
fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn rust_directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("programs/rust_allocators")
}

/// A Rust program with the allocator of a crate in it, and its source for the table.
pub fn rust(feature: &str) -> Result<(PathBuf, PathBuf)> {
    let directory = rust_directory();
    let target = crate::target_directory()?.join("test-programs/rust_allocators").join(feature);
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(&directory).args(["build", "--release", "--locked", "--features", feature]);
    succeed(build.arg("--target-dir").arg(&target))?;
    Ok((target.join("release/rust-allocators"), directory.join("src/main.rs")))
}

/// Builds a program without frame pointers.
pub fn build(program: &Program) -> Result<PathBuf> {
    program.build(FramePointers::Omitted)
}
