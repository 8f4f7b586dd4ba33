//! Debian's packages, downloaded by apt and not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::shell;

/// Downloads packages into a directory, which is made, and gives their files.
pub(super) fn download(packages: &[&str], directory: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    let mut download = Command::new("apt-get");
    download.args(["--quiet", "download"]).args(packages).current_dir(directory);
    shell::run(&mut download).with_context(|| {
        format!(
            "{} cannot be downloaded; this takes a network, and if the archive has moved on, \
             `apt-get update`",
            packages.join(", ")
        )
    })?;
    Ok(files_in(directory).filter(|file| has_name(file, |name| name.ends_with(".deb"))).collect())
}

/// The first file of a directory whose name is as wanted.
pub(super) fn file_in(directory: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    files_in(directory).find(|file| has_name(file, &wanted))
}

fn files_in(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path())
}

fn has_name(file: &Path, wanted: impl Fn(&str) -> bool) -> bool {
    file.file_name().and_then(|name| name.to_str()).is_some_and(wanted)
}
