//! qemu: the one that is installed, or else Debian's packages, unpacked.
//!
//! It is not installed: its packages do not go with those of other versions, such as a `qemu-utils`
//! from the backports, and nobody's tools are removed for a test.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::packages;
use crate::{setup, shell};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// Where Debian's packages have what qemu asks for by a path that is compiled in.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const MODULES: &str = "usr/lib/x86_64-linux-gnu/qemu";
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A qemu that can be started.
pub(crate) struct Qemu {
    program: PathBuf,
    /// Where it was unpacked, if it is not the machine's own.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// Finds it on the path or in `target/vm/qemu`, or else fetches it from apt.
    pub(crate) fn get() -> Result<Self> {
        if let Some(program) = shell::find_program(PROGRAM) {
            return Ok(Self { program, unpacked: None });
        }
        let directory = shell::root().join("target/vm/qemu");
        let program = directory.join("usr/bin").join(PROGRAM);
        if !program.is_file() {
            fetch(&directory)?;
            ensure!(program.is_file(), "the package {PACKAGE} holds no usr/bin/{PROGRAM}");
        }
        Ok(Self { program, unpacked: Some(directory) })
    }

    /// Adds the program to a command line that is to start it, and what it has to be told.
    pub(super) fn add_to(&self, command: &mut Command) -> Result<()> {
        command.arg(&self.program);
        let Some(directory) = &self.unpacked else { return Ok(()) };
        let libraries = LIBRARIES.map(|libraries| directory.join(libraries));
        let libraries = env::join_paths(libraries).context("where qemu was unpacked")?;
        command.env("LD_LIBRARY_PATH", libraries);
        command.env("QEMU_MODULE_DIR", directory.join(MODULES));
        for firmware in FIRMWARE {
            command.arg("-L").arg(directory.join(firmware));
        }
        Ok(())
    }
}

/// Unpacks qemu and what it needs that is not installed.
fn fetch(directory: &Path) -> Result<()> {
    let partial = directory.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
    }
    let names = match needed() {
        Ok(names) => names,
        Err(_) => {
            setup::apt_update()?;
            needed()?
        }
    };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let files = packages::download(&names, &partial.join("packages"))?;
    for file in &files {
        shell::run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(&partial))?;
    }
    fs::remove_dir_all(partial.join("packages")).context("cannot remove qemu's packages")?;
    fs::rename(&partial, directory).with_context(|| format!("cannot rename {}", partial.display()))
}

/// The packages that apt would install.
fn needed() -> Result<Vec<String>> {
    let mut simulation = Command::new("apt-get");
    simulation.args(["install", "--simulate", "--no-install-recommends", PACKAGE]);
    let text = shell::ask(&mut simulation).context("qemu comes from Debian's packages")?;
    let names = installed(&text);
    ensure!(!names.is_empty(), "apt knows of nothing to install for {PACKAGE}");
    Ok(names)
}

/// `seabios` of `Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])`.
fn installed(simulation: &str) -> Vec<String> {
    let lines = simulation.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_those_that_would_be_installed() {
        let simulation = "Reading package lists...
The following packages will be REMOVED:
  qemu-utils
Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]
Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])
Inst qemu-system-x86 (1:7.2+dfsg-7+deb12u18+b3 Debian:12.15/oldstable [amd64])
Conf seabios (1.16.2-1 Debian:12.15/oldstable [all])";

        assert_eq!(installed(simulation), ["seabios", "qemu-system-x86"]);
    }
}
