//! Builds the kernel object and knows whether the committed one is fresh.
//!
//! ```text
//!   memtrace-ebpf/{Cargo.toml, Cargo.lock, src}  ─┐
//!                                                 ├─ sha256 ──> prebuilt/BUILD.json
//!   memtrace-common/{Cargo.toml, src}            ─┘                   │ names
//!                  │ build                                            v
//!                  └──────────────────────────────> prebuilt/memtrace-ebpf.o
//! ```
//!
//! The object is committed so that a plain stable `cargo build` embeds it without a BPF toolchain.
//! Freshness is a matter of sources, not of bytes: another compiler may build other bytes.

mod strip;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{setup, shell, toolchain::Toolchain};

/// The target triple of the kernel's virtual machine.
const TARGET: &str = "bpfel-unknown-none";

/// Everything that the object is built from, relative to the repository's root.
const SOURCES: &[&str] = &[
    "memtrace-common/Cargo.toml",
    "memtrace-common/src",
    "memtrace-ebpf/Cargo.lock",
    "memtrace-ebpf/Cargo.toml",
    "memtrace-ebpf/src",
];

/// What the outer `cargo run` or the user sets for another compiler.
const FOREIGN_VARIABLES: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build nothing; fail if the committed object does not belong to its sources.
    #[arg(long, conflicts_with = "debug_log")]
    check: bool,
    /// Build an object that logs through aya-log, and leave the committed one alone.
    #[arg(long)]
    debug_log: bool,
}

/// What the object says when asked about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Messages {
    /// Nothing: the object that is committed.
    Silent,
    /// Its decisions, through aya-log.
    Logged,
}

/// An object that was just built, still in cargo's target directory.
pub(crate) struct Built {
    /// Where it lies.
    pub(crate) object: PathBuf,
    toolchain: Toolchain,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        check(&shell::root())?;
        eprintln!("ebpf: the committed object is fresh");
    } else if options.debug_log {
        let built = build(Messages::Logged)?;
        eprintln!(
            "ebpf: embed it with MEMTRACE_EBPF_OBJECT={} cargo build",
            built.object.display()
        );
    } else {
        commit(&build(Messages::Silent)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the object with whichever toolchain is there, installing one if need be.
pub(crate) fn build(messages: Messages) -> Result<Built> {
    let toolchain = setup::ensure_toolchain()?;
    let crate_dir = shell::root().join("memtrace-ebpf");
    let target_dir = crate_dir.join("target");
    let mut command = Command::new(&toolchain.cargo);
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command
        .current_dir(&crate_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("LD_LIBRARY_PATH", toolchain.llvm_dir()?)
        .env("CARGO_ENCODED_RUSTFLAGS", rustc_flags(&toolchain)?)
        .args(["build", "--release", "--target", TARGET, "-Zbuild-std=core"])
        // Debian's compiler is older than some dependencies ask for and builds them all the same.
        .args(["--ignore-rust-version", "--target-dir"])
        .arg(&target_dir);
    match messages {
        Messages::Silent => {}
        Messages::Logged => {
            command.arg("--features=log");
        }
    }
    shell::run(&mut command)?;

    let linked = target_dir.join(TARGET).join("release/memtrace-ebpf");
    let content = fs::read(&linked).with_context(|| linked.display().to_string())?;
    let object = target_dir.join(match messages {
        Messages::Silent => "memtrace-ebpf.o",
        Messages::Logged => "memtrace-ebpf-log.o",
    });
    fs::write(&object, strip::strip_debug(&content)?)
        .with_context(|| object.display().to_string())?;
    Ok(Built { object, toolchain })
}

/// The compiler's flags, as cargo takes them from a variable.
fn rustc_flags(toolchain: &Toolchain) -> Result<String> {
    let mut flags = vec![
        format!("-Clinker={}", toolchain.linker().display()),
        // For the callbacks of bpf_loop.
        "-Clink-arg=--btf".to_owned(),
    ];
    // BTF names source files: the same ones on every machine.
    let home = env::var("HOME").context("HOME is not set")?;
    let cargo_home = env::var("CARGO_HOME").unwrap_or_else(|_| format!("{home}/.cargo"));
    let root = shell::root().display().to_string();
    for (from, to) in [(cargo_home.as_str(), "/cargo"), (&root, "/memtrace")] {
        flags.push(format!("--remap-path-prefix={from}={to}"));
    }
    Ok(flags.join("\x1f"))
}

/// Puts the object where it is committed, with a note of what it was built from and by.
fn commit(built: &Built) -> Result<()> {
    let root = shell::root();
    let object = fs::read(&built.object).with_context(|| built.object.display().to_string())?;
    let linker = shell::ask(Command::new(built.toolchain.linker()).arg("--version"))?;
    let note = json!({
        "sources_sha256": sources_sha256(&root)?,
        "object_sha256": hex(&Sha256::digest(&object)),
        "toolchain": built.toolchain.origin,
        "rustc": built.toolchain.version.rustc,
        "llvm": built.toolchain.version.llvm,
        "linker": linker,
    });
    let (object_path, note_path) = prebuilt(&root);
    fs::create_dir_all(object_path.parent().expect("the object lies in a directory"))?;
    fs::write(&object_path, &object).with_context(|| object_path.display().to_string())?;
    fs::write(&note_path, format!("{note:#}\n"))
        .with_context(|| note_path.display().to_string())?;
    eprintln!("ebpf: wrote {} ({} bytes)", object_path.display(), object.len());
    Ok(())
}

/// Fails unless the committed object was built from the sources beside it.
pub(crate) fn check(root: &Path) -> Result<()> {
    const ADVICE: &str = "run `cargo xtask ebpf` and commit the result";
    let (object_path, note_path) = prebuilt(root);
    let read = |path: &Path| {
        fs::read(path)
            .with_context(|| format!("no committed object at {}; {ADVICE}", path.display()))
    };
    let object = read(&object_path)?;
    let note: Value = serde_json::from_slice(&read(&note_path)?)
        .with_context(|| format!("{} is not JSON", note_path.display()))?;
    for (field, found) in [
        ("sources_sha256", sources_sha256(root)?),
        ("object_sha256", hex(&Sha256::digest(&object))),
    ] {
        let expected = note[field].as_str().unwrap_or("nothing");
        if expected != found {
            bail!(
                "the committed kernel object is stale: {field} is {found}, {} says {expected}; \
                 {ADVICE}",
                note_path.display()
            );
        }
    }
    Ok(())
}

/// Where the object and the note about it are committed.
fn prebuilt(root: &Path) -> (PathBuf, PathBuf) {
    let dir = root.join("memtrace-ebpf/prebuilt");
    (dir.join("memtrace-ebpf.o"), dir.join("BUILD.json"))
}

/// The hash of the paths and contents of all [`SOURCES`], in hexadecimal.
fn sources_sha256(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect_files(root, source, &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = fs::read(root.join(&file)).with_context(|| file.clone())?;
        // Lengths keep two different sets of files from giving the same stream of bytes.
        hash.update((file.len() as u64).to_le_bytes());
        hash.update(&file);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

/// Adds the file, or the files below the directory, as paths relative to `root`.
fn collect_files(root: &Path, relative: &str, files: &mut Vec<String>) -> Result<()> {
    let path = root.join(relative);
    if path.is_file() {
        files.push(relative.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(&path).with_context(|| path.display().to_string())? {
        let name = entry?.file_name();
        let name = name.to_str().with_context(|| format!("{name:?} is not UTF-8"))?;
        collect_files(root, &format!("{relative}/{name}"), files)?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with every source, an object and the note that belongs to them.
    fn fresh_tree(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("memtrace-{name}-{}", std::process::id()));
        for file in [
            "memtrace-common/Cargo.toml",
            "memtrace-common/src/unwind.rs",
            "memtrace-ebpf/Cargo.lock",
            "memtrace-ebpf/Cargo.toml",
            "memtrace-ebpf/src/main.rs",
            "memtrace-ebpf/prebuilt/memtrace-ebpf.o",
        ] {
            write(&root, file, file);
        }
        let note = json!({
            "sources_sha256": sources_sha256(&root).expect("all sources are there"),
            "object_sha256": hex(&Sha256::digest("memtrace-ebpf/prebuilt/memtrace-ebpf.o")),
        });
        write(&root, "memtrace-ebpf/prebuilt/BUILD.json", &note.to_string());
        root
    }

    fn write(root: &Path, file: &str, content: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("files lie in directories")).expect("temp dir");
        fs::write(path, content).expect("temp file");
    }

    #[test]
    fn object_of_unchanged_sources_is_fresh() {
        let root = fresh_tree("fresh");

        let checked = check(&root);

        fs::remove_dir_all(&root).expect("temp dir");
        checked.expect("nothing has changed");
    }

    #[test]
    fn object_is_stale_when_anything_it_depends_on_changes() {
        let changes = [
            ("memtrace-common/src/unwind.rs", "changed", "sources_sha256"),
            ("memtrace-common/src/new.rs", "", "sources_sha256"),
            ("memtrace-ebpf/Cargo.lock", "changed", "sources_sha256"),
            ("memtrace-ebpf/prebuilt/memtrace-ebpf.o", "other bytes", "object_sha256"),
        ];
        for (file, content, field) in changes {
            let root = fresh_tree("stale");

            write(&root, file, content);
            let checked = check(&root);

            fs::remove_dir_all(&root).expect("temp dir");
            let message = checked.expect_err(file).to_string();
            assert!(message.contains(field), "{file}: {message}");
        }
    }

    #[test]
    fn object_that_was_never_built_says_how_to_build_it() {
        let root = fresh_tree("absent");
        fs::remove_dir_all(root.join("memtrace-ebpf/prebuilt")).expect("temp dir");

        let checked = check(&root);

        fs::remove_dir_all(&root).expect("temp dir");
        let message = checked.expect_err("no object").to_string();
        assert!(message.contains("cargo xtask ebpf"), "{message}");
    }

    #[test]
    fn hex_pads_each_byte() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
    }
}
