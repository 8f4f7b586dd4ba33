//! Runs programs and says which.
//!
//! Every command that changes something is echoed to stderr before it starts, so that a reader of
//! the terminal or of a CI log can repeat it by hand.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The repository's root directory.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask is a directory of the repository").to_owned()
}

/// Prints the command, runs it with the caller's terminal, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", display(command));
    let status = command.status().with_context(|| format!("cannot start {}", display(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", display(command));
    }
    Ok(())
}

/// Runs a command, passes its stdout on and shows each line of it to `read`.
pub(crate) fn stream(command: &mut Command, read: impl FnMut(&str)) -> Result<()> {
    stream_as("", command, read)
}

/// The same, with `prefix` in front of each line that is passed on.
pub(crate) fn stream_as(
    prefix: &str,
    command: &mut Command,
    mut read: impl FnMut(&str),
) -> Result<()> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start it")?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut reader = BufReader::new(stdout);
    let mut line = Vec::new();
    // Bytes, not strings: a test may print what is not UTF-8.
    while reader.read_until(b'\n', &mut line).context("cannot read its output")? != 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        println!("{prefix}{text}");
        read(text);
        line.clear();
    }
    let status = child.wait().context("cannot wait for it")?;
    if !status.success() {
        bail!("it ended with {status}");
    }
    Ok(())
}

/// Runs a command that only asks and returns its stdout without the final newline.
pub(crate) fn ask(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", display(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", display(command), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// Where a program lies: a name is looked up in `PATH`, a path is taken as it is.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let is_file = |path: &PathBuf| fs::metadata(path).is_ok_and(|data| data.is_file());
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_file);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(is_file)
}

/// Whether a continuous-integration service runs this: there, a skipped test is a failed one.
pub(crate) fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|value| value == "true" || value == "1")
}

/// The command as a shell would take it, for simple arguments.
fn display(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}
