//! The compiler and the linker of the kernel object.
//!
//! ```text
//!   rustc ──LLVM bitcode──> bpf-linker ──> memtrace-ebpf.o
//!     └────── libLLVM.so ──────┘            one library, so that both speak the same bitcode
//! ```
//!
//! Building `core` for `bpfel-unknown-none` takes the standard library's sources. Two toolchains
//! bring them: rustup's nightly with `rust-src`, and Debian's `cargo-web` with `rust-web-src`.
//! bpf-linker loads the first `libLLVM*` that it finds in a directory of `LD_LIBRARY_PATH`; so it is
//! given a directory that holds nothing but the compiler's own.

use std::{
    fmt, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::shell;

/// The LLVM releases that bpf-linker 0.10 can load at run time.
const SUPPORTED_LLVM: std::ops::RangeInclusive<u32> = 20..=22;

/// A compiler that can build the kernel object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Who brought it, for people.
    pub(crate) origin: String,
    /// Its cargo.
    pub(crate) cargo: PathBuf,
    /// Its rustc.
    pub(crate) rustc: PathBuf,
    /// The version of rustc and of the LLVM in it.
    pub(crate) version: Version,
    /// The LLVM library that its rustc uses.
    llvm_library: PathBuf,
}

/// What `rustc -Vv` says that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Such as `1.96.0`.
    pub(crate) rustc: String,
    /// Such as `22.1.8`.
    pub(crate) llvm: String,
    /// The first number of it, such as 22.
    pub(crate) llvm_major: u32,
}

/// Why no toolchain can build the kernel object: one line per candidate.
#[derive(Debug)]
pub(crate) struct NoToolchain(Vec<String>);

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// Finds a toolchain: rustup's nightly first, then Debian's.
pub(crate) fn find() -> Result<Toolchain, NoToolchain> {
    let mut misses = Vec::new();
    let nightlies = rustup_nightlies();
    if nightlies.is_empty() {
        misses.push("rustup has no nightly".to_owned());
    }
    for name in nightlies {
        let origin = format!("rustup's {name}");
        let sysroot = Command::new("rustup")
            .args(["run", &name, "rustc", "--print", "sysroot"])
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        match sysroot.map_err(Into::into).and_then(|root| probe(&origin, Path::new(&root))) {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => misses.push(format!("{origin}: {error:#}")),
        }
    }
    match probe("Debian's rustc-web", Path::new("/usr")) {
        Ok(toolchain) => Ok(toolchain),
        Err(error) => {
            misses.push(format!("Debian's rustc-web: {error:#}"));
            Err(NoToolchain(misses))
        }
    }
}

/// The nightly toolchains that rustup knows, by name.
fn rustup_nightlies() -> Vec<String> {
    let list = shell::ask(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect()
}

/// Looks for a toolchain under `sysroot` and says what it lacks.
fn probe(origin: &str, sysroot: &Path) -> Result<Toolchain> {
    let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
    for file in [&cargo, &rustc, &sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs")] {
        fs::metadata(file).with_context(|| format!("no {}", file.display()))?;
    }
    let verbose = shell::ask(Command::new(&rustc).arg("-Vv"))?;
    let version = parse_version(&verbose).context("rustc does not name its LLVM")?;
    anyhow::ensure!(
        SUPPORTED_LLVM.contains(&version.llvm_major),
        "its LLVM is {}, bpf-linker takes {} to {}",
        version.llvm,
        SUPPORTED_LLVM.start(),
        SUPPORTED_LLVM.end(),
    );
    let llvm_library = match llvm_in(&sysroot.join("lib"), version.llvm_major) {
        Some(library) => library,
        None => {
            let libraries = shell::ask(Command::new("ldd").arg(&rustc))?;
            parse_ldd(&libraries).context("its LLVM is not a shared library")?
        }
    };
    Ok(Toolchain { origin: origin.to_owned(), cargo, rustc, version, llvm_library })
}

/// rustup's LLVM: `libLLVM.so.22.1-rust-1.97.0-nightly` beside `librustc_driver`.
fn llvm_in(dir: &Path, major: u32) -> Option<PathBuf> {
    let prefix = format!("libLLVM.so.{major}.");
    let entries = fs::read_dir(dir).ok()?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

/// The LLVM library in the output of `ldd`.
fn parse_ldd(text: &str) -> Option<PathBuf> {
    let line = text.lines().map(str::trim).find(|line| line.starts_with("libLLVM"))?;
    let (_, path) = line.split_once("=> ")?;
    Some(PathBuf::from(path.split(" (").next()?))
}

fn parse_version(verbose: &str) -> Option<Version> {
    let field = |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name));
    let llvm = field("LLVM version: ")?.to_owned();
    Some(Version {
        rustc: field("release: ")?.to_owned(),
        llvm_major: llvm.split('.').next()?.parse().ok()?,
        llvm,
    })
}

impl Toolchain {
    /// Where bpf-linker for this LLVM is installed, whether or not it is there yet.
    pub(crate) fn linker_root(&self) -> PathBuf {
        shell::root().join(format!("target/tools/llvm-{}", self.version.llvm_major))
    }

    /// bpf-linker, whether or not it is there yet.
    pub(crate) fn linker(&self) -> PathBuf {
        self.linker_root().join("bin/bpf-linker")
    }

    /// A directory that holds this compiler's LLVM library and no other.
    pub(crate) fn llvm_dir(&self) -> Result<PathBuf> {
        let dir = self.linker_root().join("lib");
        match fs::remove_dir_all(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("clear {}", dir.display())),
        }
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let link = dir.join("libLLVM.so");
        symlink(&self.llvm_library, &link).with_context(|| format!("link {}", link.display()))?;
        Ok(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_names_the_llvm_major() {
        let verbose = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\n\
                       LLVM version: 22.1.8\n";

        let version = parse_version(verbose);

        let expected =
            Version { rustc: "1.96.0".to_owned(), llvm: "22.1.8".to_owned(), llvm_major: 22 };
        assert_eq!(version, Some(expected));
    }

    #[test]
    fn version_without_llvm_is_none() {
        assert_eq!(parse_version("release: 1.96.0\n"), None);
    }

    #[test]
    fn ldd_line_of_llvm_is_found_among_others() {
        let text = "\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\
                    \tlibLLVM.so.22.1 => /lib/x86_64-linux-gnu/libLLVM.so.22.1 (0x00007fcd5d400000)\n";

        assert_eq!(parse_ldd(text), Some(PathBuf::from("/lib/x86_64-linux-gnu/libLLVM.so.22.1")));
        assert_eq!(parse_ldd("\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"), None);
    }
}
