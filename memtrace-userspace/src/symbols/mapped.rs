//! The bytes of a foreign file, without trusting whoever owns it.
//!
//! A mapping is cheap, but a file that is cut short while it is mapped kills the reader with
//! SIGBUS, and the owner of the traced program may be no friend of the one who traces it. So:
//!
//! ```text
//!   only root can write it                   map it     (libraries, packages)
//!   small enough                             read it    (what a user has built)
//!   too large to read, ours to write         map it     (what we have built)
//!   too large to read, others may write it   Miss::TooLarge
//! ```
//!
//! A path may name anything: a FIFO would block the open, a device may act on it. Only regular
//! files are opened. This module knows nothing of what the bytes mean.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::{Miss, SymbolError};

/// The largest file that is read into memory whole.
const READ_LIMIT_BYTES: u64 = 512 << 20;

/// The contents of one file.
#[derive(Debug)]
pub(super) enum FileBytes {
    /// Our own copy.
    Read(Vec<u8>),
    /// A view of a file that nobody hostile can cut short.
    Mapped(Mmap),
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Read(bytes) => bytes,
            FileBytes::Mapped(map) => map,
        }
    }
}

impl FileBytes {
    /// What this costs in memory that the kernel cannot take back.
    pub(super) fn heap_bytes(&self) -> usize {
        match self {
            FileBytes::Read(bytes) => bytes.capacity(),
            FileBytes::Mapped(_) => 0,
        }
    }
}

/// Opens the regular file at `path`.
pub(super) fn open(path: &Path) -> Result<Result<FileBytes, Miss>, SymbolError> {
    open_with_limit(path, READ_LIMIT_BYTES)
}

fn open_with_limit(path: &Path, limit: u64) -> Result<Result<FileBytes, Miss>, SymbolError> {
    match open_regular(path) {
        Ok(Some((file, metadata))) => {
            let size = metadata.len();
            let may_map = if size <= limit {
                only_root_writes(path, &metadata)
            } else if only_root_writes(path, &metadata) || only_we_write(&metadata) {
                true
            } else {
                return Ok(Err(Miss::TooLarge {
                    path: path.into(),
                    size_bytes: size,
                    limit_bytes: limit,
                }));
            };
            let bytes = if may_map { map(&file) } else { read(file, size) };
            bytes.map(Ok).map_err(|source| unreadable(path, source))
        }
        Ok(None) => Ok(Err(Miss::NotAFile { path: path.into() })),
        Err(error) if is_absence(&error) => Ok(Err(Miss::NoSuchFile { path: path.into() })),
        Err(source) => Err(unreadable(path, source)),
    }
}

fn unreadable(path: &Path, source: io::Error) -> SymbolError {
    SymbolError::Unreadable { path: path.into(), source: Arc::new(source) }
}

/// Opens `path` if it is a regular file, before and after the opening.
fn open_regular(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    if !std::fs::metadata(path)?.is_file() {
        return Ok(None);
    }
    // O_NONBLOCK matters if the path became a FIFO since; for a regular file it means nothing.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Whether the error says that nothing is there, rather than that we could not look.
///
/// Paths come from the target and from debug links, so one that cannot name a file is a miss.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
    ) || matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENAMETOOLONG))
}

/// Whether nobody but root can change the file.
///
/// Root inside a container looks like root, so paths through `/proc` (`/proc/PID/root/…`) are
/// never believed.
fn only_root_writes(path: &Path, metadata: &Metadata) -> bool {
    metadata.uid() == 0 && metadata.mode() & 0o022 == 0 && !path.starts_with("/proc")
}

/// Whether nobody but this process' user, or root, can change the file.
fn only_we_write(metadata: &Metadata) -> bool {
    let ours = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == metadata.uid());
    ours && metadata.mode() & 0o022 == 0
}

fn map(file: &File) -> io::Result<FileBytes> {
    // SAFETY: a mapping is sound while nobody changes or cuts the file. That is assumed, not
    // proven: the callers let only files through that root or this user alone may write, and
    // package managers and linkers replace such files by renaming instead of writing into them.
    let map = unsafe { Mmap::map(file) }?;
    Ok(FileBytes::Mapped(map))
}

/// Reads at most the `size_bytes` that the file had when it was opened.
fn read(file: File, size_bytes: u64) -> io::Result<FileBytes> {
    let mut bytes = Vec::new();
    let capacity = usize::try_from(size_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.try_reserve_exact(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
    file.take(size_bytes).read_to_end(&mut bytes)?;
    Ok(FileBytes::Read(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn regular_file_is_opened_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"contents").unwrap();

        let bytes = open(&path).unwrap().unwrap();

        assert_eq!(&*bytes, b"contents");
    }

    #[test]
    fn file_that_others_may_write_is_read_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"contents").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();

        let bytes = open(&path).unwrap().unwrap();

        assert!(matches!(bytes, FileBytes::Read(_)));
    }

    #[test]
    fn large_file_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"contents").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();

        let miss = open_with_limit(&path, 7).unwrap().unwrap_err();

        let expected =
            Miss::TooLarge { path: path.as_path().into(), size_bytes: 8, limit_bytes: 7 };
        assert_eq!(miss, expected);
    }

    #[test]
    fn large_file_of_our_own_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"contents").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();

        let bytes = open_with_limit(&path, 7).unwrap().unwrap();

        assert!(matches!(bytes, FileBytes::Mapped(_)));
    }

    #[test]
    fn fifo_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());

        let miss = open(&path).unwrap().unwrap_err();

        assert_eq!(miss, Miss::NotAFile { path: path.as_path().into() });
    }

    #[test]
    fn missing_file_is_a_miss_and_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent");

        let miss = open(&path).unwrap().unwrap_err();

        assert_eq!(miss, Miss::NoSuchFile { path: path.as_path().into() });
    }

    #[test]
    fn path_that_cannot_exist_is_a_miss() {
        let path = "x".repeat(10_000);

        let miss = open(Path::new(&path)).unwrap().unwrap_err();

        assert_eq!(miss, Miss::NoSuchFile { path: Path::new(&path).into() });
    }
}
