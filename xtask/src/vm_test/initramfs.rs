//! The file system of a virtual machine: files of this machine under their own paths.
//!
//! Symbolic links are kept and what they lead to comes along, so that `/lib` is what it is here.
//! An executable brings the libraries that the loader would map.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use cpio::newc;

use crate::shell;

/// Directories that nothing lies in before the machine runs.
const MOUNT_POINTS: [&str; 5] = ["/proc", "/sys", "/dev", "/tmp", "/busybox"];

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// What to pack, by absolute path; a directory sorts before what lies in it.
#[derive(Default)]
pub(super) struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Directory,
    /// A symbolic link, and where it leads to.
    Link(PathBuf),
    /// A file of this machine.
    File,
    /// An executable file with this content.
    Script(String),
}

impl Initramfs {
    /// Adds an executable and the shared libraries it is linked with.
    pub(super) fn add_executable(&mut self, path: &Path) -> Result<()> {
        self.add(path)?;
        // It fails for programs that are linked statically or with another C library.
        if let Ok(listed) = shell::ask(Command::new("ldd").arg(path)) {
            for library in libraries(&listed) {
                self.add(library)?;
            }
        }
        Ok(())
    }

    /// Adds a file, or a directory with everything in it.
    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let context = || format!("cannot pack {}", path.display());
        let found = self.walk(path).with_context(context)?;
        if found.is_dir() {
            for entry in fs::read_dir(&found).with_context(context)? {
                self.add(&entry.with_context(context)?.path())?;
            }
        } else if found.is_file() {
            self.entries.insert(found, Entry::File);
        } else {
            bail!("{} is neither a file nor a directory", found.display());
        }
        Ok(())
    }

    /// Adds the directories and links on the way to `path`; returns what it leads to.
    fn walk(&mut self, path: &Path) -> io::Result<PathBuf> {
        // An endless chain of links is the system's error here.
        let end = fs::canonicalize(path)?;
        let mut at = PathBuf::from("/");
        let mut ahead: Vec<PathBuf> = reversed(path);
        while let Some(component) = ahead.pop() {
            if component == Path::new("..") {
                at.pop();
                continue;
            }
            at.push(component);
            let kind = fs::symlink_metadata(&at)?.file_type();
            if kind.is_symlink() {
                let target = fs::read_link(&at)?;
                self.entries.insert(at.clone(), Entry::Link(target.clone()));
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                ahead.extend(reversed(&target));
            } else if kind.is_dir() {
                self.entries.insert(at.clone(), Entry::Directory);
            }
        }
        Ok(end)
    }

    /// Adds an executable script in the root directory.
    pub(super) fn add_script(&mut self, path: &str, content: &str) {
        self.entries.insert(PathBuf::from(path), Entry::Script(content.to_owned()));
    }

    /// Writes the archive, in the format that the kernel unpacks.
    pub(super) fn write(mut self, to: &Path) -> Result<()> {
        let context = || format!("cannot write {}", to.display());
        for directory in MOUNT_POINTS {
            self.entries.entry(PathBuf::from(directory)).or_insert(Entry::Directory);
        }
        let directory = to.parent().expect("the archive lies in a directory");
        fs::create_dir_all(directory).with_context(context)?;
        let mut out = BufWriter::new(File::create(to).with_context(context)?);
        for (path, entry) in &self.entries {
            out = append(out, path, entry)
                .with_context(|| format!("cannot pack {}", path.display()))?;
        }
        newc::trailer(out).and_then(|mut out| out.flush()).with_context(context)
    }
}

fn append(out: BufWriter<File>, path: &Path, entry: &Entry) -> Result<BufWriter<File>> {
    let name = path.strip_prefix("/")?.to_str().context("its name is not UTF-8")?;
    let file = newc::Builder::new(name).nlink(1);
    match entry {
        Entry::Directory => pack(file.mode(DIRECTORY), out, &[][..], 0),
        Entry::Link(target) => {
            let target = target.as_os_str().as_bytes();
            pack(file.mode(LINK), out, target, target.len() as u64)
        }
        Entry::Script(content) => {
            pack(file.mode(FILE | 0o755), out, content.as_bytes(), content.len() as u64)
        }
        Entry::File => {
            let source = File::open(path)?;
            let metadata = source.metadata()?;
            // Tests compare times to see whether a program is up to date.
            let seconds = u32::try_from(metadata.mtime()).unwrap_or(0);
            let file = file.mode(FILE | metadata.mode() & 0o7777).mtime(seconds);
            pack(file, out, source, metadata.len())
        }
    }
}

fn pack(
    file: newc::Builder,
    out: BufWriter<File>,
    mut content: impl Read,
    size_bytes: u64,
) -> Result<BufWriter<File>> {
    let size = u32::try_from(size_bytes).context("it is larger than 4 GiB")?;
    let mut writer = file.write(out, size);
    io::copy(&mut content, &mut writer)?;
    Ok(writer.finish()?)
}

/// The names in a path, the last one first.
fn reversed(path: &Path) -> Vec<PathBuf> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(_) | Component::ParentDir => Some(PathBuf::from(component.as_os_str())),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.rev().collect()
}

/// The paths in what `ldd` prints.
fn libraries(listed: &str) -> impl Iterator<Item = &Path> {
    listed.lines().filter_map(|line| {
        let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim();
        let path = path.split_once(" (").map_or(path, |(path, _)| path);
        path.starts_with('/').then(|| Path::new(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_the_paths_that_ldd_found() {
        let listed = "\tlinux-vdso.so.1 (0x00007f697c855000)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f697be1e000)
\tlibgone.so => not found
\t/lib64/ld-linux-x86-64.so.2 (0x00007f697c857000)
";

        let found: Vec<&Path> = libraries(listed).collect();

        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(Path::new));
    }

    #[test]
    fn link_is_kept_and_followed() {
        let directory = std::env::temp_dir().join(format!("memtrace-pack-{}", std::process::id()));
        fs::create_dir_all(directory.join("usr/lib")).unwrap();
        fs::write(directory.join("usr/lib/file"), "").unwrap();
        std::os::unix::fs::symlink("usr/../usr/lib", directory.join("lib")).unwrap();

        let mut packed = Initramfs::default();
        packed.add(&directory.join("lib/file")).unwrap();

        fs::remove_dir_all(&directory).unwrap();
        let link = Entry::Link(PathBuf::from("usr/../usr/lib"));
        assert_eq!(packed.entries.get(&directory.join("lib")), Some(&link));
        assert_eq!(packed.entries.get(&directory.join("usr/lib")), Some(&Entry::Directory));
        assert_eq!(packed.entries.get(&directory.join("usr/lib/file")), Some(&Entry::File));
    }
}
