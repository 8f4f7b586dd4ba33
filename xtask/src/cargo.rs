//! Builds targets of the workspace with the cargo that runs xtask.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell;

/// A program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    /// The target's name.
    pub(crate) name: String,
    /// `bin`, `lib`, `test`, …: what the target is.
    pub(crate) kind: String,
    /// Where it lies.
    pub(crate) path: PathBuf,
}

/// A cargo command of the stable toolchain, in the repository's root.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.current_dir(shell::root()).arg(subcommand);
    command
}

/// Runs a build and returns the programs that it produced or found fresh.
pub(crate) fn build(mut command: Command) -> Result<Vec<Executable>> {
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the build failed");
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// Builds `memtrace` for release, around another kernel object than the committed one if one is
/// given, and returns where it lies.
pub(crate) fn build_memtrace(object: Option<&Path>) -> Result<PathBuf> {
    let mut command = cargo("build");
    command.args(["--release", "--package", "memtrace-userspace", "--bin", "memtrace"]);
    embed(&mut command, object);
    one(build(command)?, "memtrace")
}

/// Builds the tests of crate memtrace-tests that attach to programs.
pub(crate) fn build_attaching_tests() -> Result<Vec<Executable>> {
    let mut command = cargo("test");
    command.args(["--package=memtrace-tests", "--tests", "--no-run"]);
    let mut built = build(command)?;
    built.retain(|program| program.kind == "test");
    Ok(built)
}

/// Lets memtrace embed this kernel object instead of the committed one.
pub(crate) fn embed(build: &mut Command, object: Option<&Path>) {
    if let Some(object) = object {
        build.env("MEMTRACE_EBPF_OBJECT", object);
    }
}

/// The program of that name among those built.
pub(crate) fn one(built: Vec<Executable>, name: &str) -> Result<PathBuf> {
    let found = built.into_iter().find(|program| program.name == name);
    Ok(found.with_context(|| format!("cargo built no program named {name}"))?.path)
}

/// The programs named in cargo's JSON messages.
fn executables(messages: &str) -> Vec<Executable> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter_map(|message| {
            Some(Executable {
                name: message["target"]["name"].as_str()?.to_owned(),
                kind: message["target"]["kind"][0].as_str()?.to_owned(),
                path: PathBuf::from(message["executable"].as_str()?),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_taken_from_artifact_messages_only() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"a"},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"leak"},"executable":"/t/leak-1"}
not json
{"reason":"build-finished","success":true}"#;

        let found = executables(messages);

        let leak = Executable {
            name: "leak".to_owned(),
            kind: "test".to_owned(),
            path: PathBuf::from("/t/leak-1"),
        };
        assert_eq!(found, [leak]);
    }
}
