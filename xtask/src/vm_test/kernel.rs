//! Debian's kernels: packages that apt knows, downloaded and unpacked, never installed.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::packages::{download, file_in};
use crate::{setup, shell};

/// A stable series of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// Debian 12's own: no `uprobe_multi`, return probes through `int3`, an older verifier.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's own, and Debian 12's backport.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    pub(crate) const ALL: &[Series] = &[Series::V6_1, Series::V6_12];
}

impl fmt::Display for Series {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Series::V6_1 => "6.1",
            Series::V6_12 => "6.12",
        })
    }
}

/// A kernel that can be booted.
pub(crate) struct Kernel {
    pub(super) series: Series,
    /// Its `vmlinuz`.
    pub(super) image: PathBuf,
    /// Where it was unpacked.
    pub(super) directory: PathBuf,
}

/// Gives the newest kernel of a series, from `target/vm` or else from apt.
pub(crate) fn fetch(series: Series) -> Result<Kernel> {
    let package = newest(series)?;
    let directory = shell::root().join("target/vm").join(&package);
    if let Some(image) = image(&directory) {
        return Ok(Kernel { series, image, directory });
    }
    for file in download(&[&package], &directory)? {
        unpack(&file, &directory)?;
    }
    let image = image(&directory)
        .with_context(|| format!("the package {package} holds no boot/vmlinuz-*"))?;
    Ok(Kernel { series, image, directory })
}

/// The newest package of a series that apt knows.
fn newest(series: Series) -> Result<String> {
    let prefix = format!("linux-image-{series}.");
    let known = || -> Result<Option<String>> {
        let names = shell::ask(Command::new("apt-cache").args(["pkgnames", &prefix]))
            .context("kernels come from Debian's packages, through apt")?;
        Ok(pick(&names))
    };
    if let Some(package) = known()? {
        return Ok(package);
    }
    setup::apt_update()?;
    known()?.with_context(|| {
        format!(
            "apt knows no {prefix}*-cloud-amd64; add an archive that has it, such as Debian 12's \
             and its security updates, to /etc/apt/sources.list.d"
        )
    })
}

/// The newest package for clouds: the same kernel as the others, with fewer drivers.
fn pick(names: &str) -> Option<String> {
    let for_clouds = names.lines().filter(|name| name.ends_with("-cloud-amd64"));
    for_clouds.max_by_key(|name| numbers(name)).map(str::to_owned)
}

/// `[6, 12, 117, 12, 64]` of `linux-image-6.12.117+deb12-cloud-amd64`.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Unpacks what is in `boot` of the file of a package, and removes the file.
fn unpack(package: &Path, directory: &Path) -> Result<()> {
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--directory").arg(directory).arg("./boot");
    shell::run(tar.stdin(archive.stdout.take().expect("stdout is piped")))?;
    let status = archive.wait().context("cannot wait for dpkg-deb")?;
    if !status.success() {
        bail!("dpkg-deb could not read {}: {status}", package.display());
    }
    fs::remove_file(package).with_context(|| format!("cannot remove {}", package.display()))
}

fn image(directory: &Path) -> Option<PathBuf> {
    file_in(&directory.join("boot"), |name| name.starts_with("vmlinuz-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_is_told_by_numbers_and_not_by_letters() {
        let names = "linux-image-6.12.99+deb12-cloud-amd64
linux-image-6.12.117+deb12-cloud-amd64
linux-image-6.12.118+deb12-amd64
linux-image-6.12.118+deb12-cloud-amd64-dbg
linux-image-6.12.120+deb12-cloud-amd64-unsigned
linux-image-6.12.111+deb12-cloud-amd64";

        assert_eq!(pick(names).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(pick("linux-image-6.12.118+deb12-amd64"), None);
    }
}
