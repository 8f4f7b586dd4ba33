//! Installs what building and testing need and the machine lacks.
//!
//! Looks first and installs only what is missing, so that a machine that has everything needs no
//! network. Debian packages are installed by apt, by root or through sudo, and never at the price
//! of removing another package; elsewhere the missing programs are named with the packages that
//! bring them on Debian. bpf-linker comes from crates.io and stays in `target/tools`, as do
//! the [`consumers`] of exports.

use std::{
    collections::BTreeSet,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cargo::cargo,
    consumers,
    privilege::is_root,
    shell,
    toolchain::{self, Toolchain},
    vm_test::Qemu,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only what building memtrace and its kernel object needs, not what the tests need.
    #[arg(long)]
    build_only: bool,
    /// The tools as well that `cargo xtask bench` compares memtrace with.
    #[arg(long, conflicts_with = "build_only")]
    peers: bool,
}

/// A program or library that must be there, and the Debian package that brings it.
pub(crate) struct Program {
    /// Its name in `PATH`, or its path where the tests mean Debian's own build.
    name: &'static str,
    package: &'static str,
}

/// What compiling memtrace needs: zstd is C.
pub(crate) const BUILD: &[Program] = &[Program { name: "cc", package: "build-essential" }];

/// What the bench compiles with, and the programs that it traces.
pub(crate) const BENCH: &[Program] = &[
    Program { name: "cc", package: "build-essential" },
    Program { name: "c++", package: "build-essential" },
    Program { name: "git", package: "git" },
    Program { name: "/usr/bin/perl", package: "perl" },
    Program { name: "/usr/bin/python3", package: "python3" },
    Program { name: "/usr/bin/redis-benchmark", package: "redis-tools" },
    Program { name: "/usr/bin/redis-server", package: "redis-server" },
    Program { name: "/usr/bin/sqlite3", package: "sqlite3" },
    Program { name: "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", package: "libjemalloc2" },
];

/// What the bench compares memtrace with, where it is there.
///
/// libbpf-tools' `memleak` is preferred to bcc's, which needs the kernel's headers; Debian has it
/// from release 13 on.
const PEERS: &[Program] = &[
    Program { name: "bpftrace", package: "bpftrace" },
    Program { name: "gdb", package: "gdb" },
    Program { name: "heaptrack", package: "heaptrack" },
    Program { name: "memleak-bpfcc", package: "bpfcc-tools" },
];

/// What the tests trace, compare with and compile with.
pub(crate) const TESTS: &[Program] = &[
    Program { name: "g++", package: "build-essential" },
    Program { name: "go", package: "golang-go" },
    Program { name: "jcmd", package: "default-jdk-headless" },
    Program { name: "make", package: "build-essential" },
    Program { name: "xz", package: "xz-utils" },
    Program { name: "valgrind", package: "valgrind" },
    Program { name: "musl-gcc", package: "musl-tools" },
    Program { name: "/bin/busybox", package: "busybox-static" },
    Program { name: "npm", package: "npm" },
    Program { name: "/usr/bin/chromium-headless-shell", package: "chromium-headless-shell" },
    Program { name: "git", package: "git" },
    Program { name: "/usr/bin/heaptrack", package: "heaptrack" },
    Program { name: "/usr/bin/node", package: "nodejs" },
    Program { name: "/usr/bin/perl", package: "perl" },
    Program { name: "/usr/bin/pg_ctlcluster", package: "postgresql" },
    Program { name: "/usr/bin/python3", package: "python3" },
    Program { name: "/usr/bin/redis-benchmark", package: "redis-tools" },
    Program { name: "/usr/bin/redis-server", package: "redis-server" },
    Program { name: "/usr/bin/ruby", package: "ruby" },
    Program { name: "/usr/bin/sqlite3", package: "sqlite3" },
    Program { name: "/usr/share/doc/python3-venv/copyright", package: "python3-venv" },
    Program { name: "/usr/sbin/nginx", package: "nginx-light" },
    Program { name: "/usr/lib/x86_64-linux-gnu/libjemalloc.so", package: "libjemalloc-dev" },
    Program { name: "/usr/lib/x86_64-linux-gnu/libmimalloc.so", package: "libmimalloc-dev" },
    Program {
        name: "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.a",
        package: "libgoogle-perftools-dev",
    },
    Program { name: "clang++", package: "clang" },
    Program { name: "dwz", package: "dwz" },
    Program { name: "llvm-dwp", package: "llvm" },
    Program { name: "podman", package: "podman" },
    // crun, podman's other runtime, refuses cgroups of both versions at a time.
    Program { name: "runc", package: "runc" },
    Program { name: "/usr/lib/x86_64-linux-gnu/libc++.so", package: "libc++-dev" },
    Program { name: "/usr/lib/x86_64-linux-gnu/libc++abi.so", package: "libc++abi-dev" },
    // The names in Debian's python3, which is stripped.
    Program { name: "/usr/bin/python3-dbg", package: "python3-dbg" },
];

/// The packages that make Debian's BPF toolchain.
const DEBIAN_TOOLCHAIN: &[&str] = &["cargo-web", "rust-web-src"];

/// The release of bpf-linker that loads LLVM at run time.
const LINKER_VERSION: &str = "^0.10";

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure_programs(BUILD)?;
    ensure_components()?;
    if !options.build_only {
        ensure_programs(TESTS)?;
        consumers::ensure()?;
        Qemu::get()?;
    }
    if options.peers {
        ensure_programs(BENCH)?;
        ensure_programs(PEERS)?;
    }
    let toolchain = ensure_toolchain()?;
    eprintln!(
        "setup: everything is there; the kernel object is built by {} ({}, LLVM {})",
        toolchain.origin, toolchain.version.rustc, toolchain.version.llvm
    );
    Ok(ExitCode::SUCCESS)
}

/// Installs the packages of those programs that are missing.
pub(crate) fn ensure_programs(programs: &[Program]) -> Result<()> {
    let missing: BTreeSet<&str> = missing(programs).map(|program| program.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt_install(&missing.into_iter().collect::<Vec<_>>())?;
    match self::missing(programs).next() {
        None => Ok(()),
        Some(program) => {
            bail!("{} is still missing after installing {}", program.name, program.package)
        }
    }
}

fn missing(programs: &[Program]) -> impl Iterator<Item = &Program> {
    programs.iter().filter(|program| shell::find_program(program.name).is_none())
}

/// Adds rustfmt and clippy to rustup's toolchain if they are missing.
pub(crate) fn ensure_components() -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if shell::ask(cargo(subcommand).arg("--version")).is_err() {
            shell::run(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// Finds or installs a compiler for the kernel object, and its linker.
pub(crate) fn ensure_toolchain() -> Result<Toolchain> {
    let toolchain = match toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(why) => {
            eprintln!("setup: no toolchain can build the kernel object: {why}");
            install_toolchain()?;
            toolchain::find()
                .map_err(|why| anyhow::anyhow!("no toolchain can build the kernel object: {why}"))?
        }
    };
    if !toolchain.linker().is_file() {
        shell::run(
            cargo("install")
                .args(["bpf-linker", "--version", LINKER_VERSION, "--locked"])
                .arg("--no-default-features")
                .arg(format!("--features=rust-llvm-{}", toolchain.version.llvm_major))
                .arg("--root")
                .arg(toolchain.linker_root()),
        )?;
    }
    Ok(toolchain)
}

/// Debian's packages where apt has them, else rustup's nightly.
fn install_toolchain() -> Result<()> {
    if apt_has(DEBIAN_TOOLCHAIN) {
        return apt_install(DEBIAN_TOOLCHAIN);
    }
    let nightly = ["toolchain", "install", "nightly", "--profile=minimal", "--component=rust-src"];
    if shell::find_program("rustup").is_none() {
        bail!(
            "install rustup (https://rustup.rs), then run `rustup {}`; on Debian, `apt-get \
             install {}` does as well",
            nightly.join(" "),
            DEBIAN_TOOLCHAIN.join(" ")
        );
    }
    shell::run(Command::new("rustup").args(nightly))
}

/// Whether apt is there and knows all of these packages.
fn apt_has(packages: &[&str]) -> bool {
    let known = || {
        let show = shell::ask(Command::new("apt-cache").arg("show").args(packages));
        show.is_ok_and(|text| {
            packages.iter().all(|name| text.lines().any(|line| line == format!("Package: {name}")))
        })
    };
    shell::find_program("apt-get").is_some() && (known() || (apt_update().is_ok() && known()))
}

pub(crate) fn apt_update() -> Result<()> {
    shell::run(&mut apt_get(&["update"])?)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    if shell::find_program("apt-get").is_none() {
        bail!(
            "this machine lacks programs that setup can install only on Debian; install what \
             brings the same as Debian's {}",
            packages.join(", ")
        );
    }
    apt_update()?;
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends", "--no-remove"])?;
    shell::run(install.args(packages))
}

/// An apt-get command that may change the system and asks no questions.
fn apt_get(arguments: &[&str]) -> Result<Command> {
    let mut command = if is_root() {
        Command::new("env")
    } else {
        shell::find_program("sudo").with_context(|| {
            format!("not root and no sudo; as root, run `apt-get {}`", arguments.join(" "))
        })?;
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(arguments);
    Ok(command)
}
