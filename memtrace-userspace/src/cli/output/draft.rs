//! A file that gets its name when it is complete.
//!
//! The kernel takes a file without a name away when nobody has it open any more (`O_TMPFILE`,
//! open(2)), so a report that is interrupted leaves nothing behind. Where a file system has no such
//! files, or `/proc` is not there to give one its name, the draft has a name that begins with
//! `.memtrace-`, and only an interruption leaves that.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use tempfile::{Builder, NamedTempFile};

/// What names of drafts begin with.
const PREFIX: &str = ".memtrace-";

/// Where a process sees its open files.
const OPEN_FILES: &str = "/proc/self/fd";

/// A file that is being written. Dropped, it is gone.
pub(crate) enum Draft {
    Unnamed { file: File, directory: PathBuf },
    Named(NamedTempFile),
}

impl Draft {
    /// A new file in `directory`; the umask takes its part of `permissions`.
    pub(super) fn new(directory: &Path, permissions: Permissions) -> io::Result<Draft> {
        let unnamed = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(permissions.mode())
            .open(directory);
        match unnamed {
            Ok(file) if Path::new(OPEN_FILES).is_dir() => {
                Ok(Draft::Unnamed { file, directory: directory.to_owned() })
            }
            Ok(_) | Err(_) => Draft::named(directory, permissions),
        }
    }

    fn named(directory: &Path, permissions: Permissions) -> io::Result<Draft> {
        let file = Builder::new().prefix(PREFIX).permissions(permissions).tempfile_in(directory)?;
        Ok(Draft::Named(file))
    }

    /// The open file.
    pub(super) fn file(&self) -> &File {
        match self {
            Draft::Unnamed { file, .. } => file,
            Draft::Named(file) => file.as_file(),
        }
    }

    /// Makes it the file at `path`, which it replaces in one step; both are in one directory.
    pub(super) fn persist(self, path: &Path) -> io::Result<()> {
        match self {
            Draft::Unnamed { file, directory } => {
                // Links do not replace a file, and renaming does.
                let link = format!("{OPEN_FILES}/{}", file.as_raw_fd());
                let named = Builder::new().prefix(PREFIX).make_in(directory, |name| {
                    Ok(linkat(CWD, &link, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
                })?;
                named.persist(path).map_err(|error| error.error)
            }
            Draft::Named(file) => {
                file.persist(path).map_err(|error| error.error)?;
                Ok(())
            }
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn count(directory: &Path) -> usize {
        fs::read_dir(directory).expect("a directory").count()
    }

    #[test]
    fn unfinished_file_has_no_name_that_could_be_left_behind() {
        let directory = tempfile::tempdir().expect("temp dir");

        let draft = Draft::new(directory.path(), Permissions::from_mode(0o666));

        let mut draft = draft.expect("writable");
        draft.write_all(b"half").expect("space");
        assert_eq!(count(directory.path()), 0);
        drop(draft);
        assert_eq!(count(directory.path()), 0);
    }

    #[test]
    fn either_kind_replaces_what_is_there_and_leaves_nothing_else() {
        let directory = tempfile::tempdir().expect("temp dir");
        let path = directory.path().join("r.json");
        fs::write(&path, "old").expect("space");

        for make in [Draft::new, Draft::named] {
            let mut draft =
                make(directory.path(), Permissions::from_mode(0o600)).expect("writable");
            draft.write_all(b"new").expect("space");
            draft.persist(&path).expect("space");

            assert_eq!(fs::read(&path).expect("the file"), b"new");
            assert_eq!(path.metadata().expect("the file").permissions().mode() & 0o777, 0o600);
            assert_eq!(count(directory.path()), 1);
            fs::write(&path, "old").expect("space");
        }
    }
}
