//! Unwind tables of large files, kept on disk from one session to the next.
//!
//! ```text
//!   /var/cache/memtrace/                              root's; others have $XDG_CACHE_HOME/memtrace
//!     3f2a…-fe01-1835.table                           build id, device, inode
//!       | header: what it is of, lengths, checksum | rows | buckets |
//! ```
//!
//! A file is known by its build id, device, inode, size and times together. The build id alone
//! would let anybody who can build a program decide what another program's table is.
//!
//! Only tables are kept, and no probes: a wrong row makes a wrong stack, a wrong probe would end
//! the target. Nothing here can fail a session. A directory that is not ours alone is not used; an
//! entry that is damaged, foreign or of another version is as good as none, and is replaced. Entries
//! appear whole, by renaming, so sessions may share the directory. It is kept below a size by
//! removing what was not used for longest.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use memtrace_common::addr::Svma;
use memtrace_common::unwind::Row;
use thiserror::Error;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes, KnownLayout};

use crate::cfi::{self, Skipped, Table, Unsupported};

/// Frame sections smaller than this are compiled in less time than an entry takes to read.
pub const MIN_SECTION_BYTES: u64 = 1 << 20;

/// What all entries together may take.
const MAX_BYTES: u64 = 512 << 20;

/// How old a file that was being written must be to be given up.
const ABANDONED: Duration = Duration::from_secs(3600);

const MAGIC: [u8; 8] = *b"MTTABLE\n";
const SUFFIX: &str = ".table";
const UNFINISHED: &str = ".unfinished-";
const MAX_BUILD_ID_BYTES: usize = 64;

/// What a table is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    build_id: Vec<u8>,
    file: FileStamp,
}

/// Tells the contents of a file from earlier and later ones, and from other files.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
    changed_s: i64,
    changed_ns: i64,
}

impl FileStamp {
    /// The stamp of a file.
    pub fn of(metadata: &Metadata) -> FileStamp {
        FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.size(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
            changed_s: metadata.ctime(),
            changed_ns: metadata.ctime_nsec(),
        }
    }
}

impl Identity {
    /// The identity of a file with this build id, which may be empty.
    pub fn new(build_id: &[u8], file: FileStamp) -> Identity {
        let known = build_id.len().min(MAX_BUILD_ID_BYTES);
        Identity { build_id: build_id[..known].to_vec(), file }
    }

    fn entry_name(&self) -> String {
        let FileStamp { device, inode, .. } = self.file;
        let build_id: String = self.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{build_id}-{device:x}-{inode:x}{SUFFIX}")
    }
}

/// The start of an entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    /// CRC-32 of the entry with 0 in this place.
    checksum: u32,
    file: FileStamp,
    build_id: [u8; MAX_BUILD_ID_BYTES],
    build_id_bytes: u64,
    base: u64,
    rows: u64,
    buckets: u64,
    skipped: [u64; 5],
    unsupported: [u64; Unsupported::ALL.len()],
}

impl Header {
    fn new(identity: &Identity, table: &Table) -> Header {
        let Table { base, rows, buckets, skipped } = table;
        let Skipped {
            broken_sections,
            broken_cies,
            broken_fdes,
            fdes_outside_text,
            overlapping_fdes,
            unsupported,
        } = *skipped;
        let mut build_id = [0; MAX_BUILD_ID_BYTES];
        build_id[..identity.build_id.len()].copy_from_slice(&identity.build_id);
        Header {
            magic: MAGIC,
            version: cfi::VERSION,
            checksum: 0,
            file: identity.file,
            build_id,
            build_id_bytes: identity.build_id.len() as u64,
            base: base.0,
            rows: rows.len() as u64,
            buckets: buckets.len() as u64,
            skipped: [
                broken_sections,
                broken_cies,
                broken_fdes,
                fdes_outside_text,
                overlapping_fdes,
            ],
            unsupported,
        }
    }

    /// How long an entry with this header is; `None` if no file is.
    fn entry_bytes(&self) -> Option<u64> {
        let rows = self.rows.checked_mul(size_of::<Row>() as u64)?;
        let buckets = self.buckets.checked_mul(size_of::<u32>() as u64)?;
        (size_of::<Header>() as u64).checked_add(rows)?.checked_add(buckets)
    }

    fn skipped(&self) -> Skipped {
        let [broken_sections, broken_cies, broken_fdes, fdes_outside_text, overlapping_fdes] =
            self.skipped;
        Skipped {
            broken_sections,
            broken_cies,
            broken_fdes,
            fdes_outside_text,
            overlapping_fdes,
            unsupported: self.unsupported,
        }
    }
}

/// Why an entry is not used.
#[derive(Debug, Error)]
enum Unusable {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not a file that only this user can write")]
    NotOurs,
    #[error("is of another version or file")]
    Foreign,
    #[error("is damaged")]
    Damaged,
}

/// Why a directory is not used.
#[derive(Debug, Error)]
enum NoDirectory {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not a directory that only this user can write")]
    NotOurs,
}

/// A directory of tables.
#[derive(Debug)]
pub struct TableCache {
    /// Kept open, so that whatever happens to its path, this one is used.
    directory: File,
    max_bytes: u64,
}

impl TableCache {
    /// Where tables are kept unless the user names another place; `None` if there is no home.
    pub fn usual_directory() -> Option<PathBuf> {
        if effective_user() == 0 {
            return Some("/var/cache/memtrace".into());
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        caches.map(|caches| caches.join("memtrace"))
    }

    /// Opens `directory`, or makes it. `None` if it cannot be used; the log says why.
    pub fn open(directory: &Path) -> Option<TableCache> {
        match open_directory(directory) {
            Ok(directory) => Some(TableCache { directory, max_bytes: MAX_BYTES }),
            Err(error) => {
                tracing::info!("unwind tables are not kept in {}: {error}", directory.display());
                None
            }
        }
    }

    /// The table that was kept for a file.
    pub fn load(&self, identity: &Identity) -> Option<Table> {
        let path = self.path(&identity.entry_name());
        match read_entry(&path, identity) {
            Ok(table) => Some(table),
            Err(Unusable::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::debug!("the kept unwind table {} {error}", identity.entry_name());
                None
            }
        }
    }

    /// Keeps the table of a file. Whether that works makes no difference to the session.
    pub fn store(&self, identity: &Identity, table: &Table) {
        if let Err(error) = self.write_entry(identity, table).and_then(|()| self.shrink()) {
            tracing::debug!("cannot keep the unwind table {}: {error}", identity.entry_name());
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }

    fn write_entry(&self, identity: &Identity, table: &Table) -> io::Result<()> {
        let mut header = Header::new(identity, table);
        if header.entry_bytes().is_none_or(|bytes| bytes > self.max_bytes) {
            return Err(io::Error::other("it is larger than all of them may be"));
        }
        header.checksum = checksum(&header, &table.rows, &table.buckets);
        // It is removed when it is dropped, unless it has got its name.
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(self.path(""))?;
        file.write_all(header.as_bytes())?;
        file.write_all(table.rows.as_bytes())?;
        file.write_all(table.buckets.as_bytes())?;
        file.persist(self.path(&identity.entry_name()))?;
        Ok(())
    }

    /// Removes what was not used for longest, until the rest is small enough.
    fn shrink(&self) -> io::Result<()> {
        let now = SystemTime::now();
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(""))? {
            let entry = entry?;
            // Another session may have removed it.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified()?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if name.ends_with(SUFFIX) {
                entries.push((used, metadata.len(), path));
            } else if name.starts_with(UNFINISHED)
                && now.duration_since(used).is_ok_and(|age| age > ABANDONED)
            {
                fs::remove_file(path)?;
            }
        }
        entries.sort();
        let mut bytes: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, freed, path) in entries {
            if bytes <= self.max_bytes {
                break;
            }
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => bytes -= freed,
            }
        }
        Ok(())
    }
}

fn open_directory(path: &Path) -> Result<File, NoDirectory> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_CLOEXEC)
        .open(path)?;
    if !only_ours(&directory.metadata()?) {
        return Err(NoDirectory::NotOurs);
    }
    Ok(directory)
}

/// Whether it belongs to this user, and nobody else may write it.
fn only_ours(metadata: &Metadata) -> bool {
    metadata.uid() == effective_user() && metadata.mode() & 0o022 == 0
}

fn effective_user() -> u32 {
    // SAFETY: it only returns a number, and cannot fail.
    unsafe { libc::geteuid() }
}

fn read_entry(path: &Path, identity: &Identity) -> Result<Table, Unusable> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !only_ours(&metadata) {
        return Err(Unusable::NotOurs);
    }
    let mut header = Header::new_zeroed();
    file.read_exact(header.as_mut_bytes())?;
    let same_file = header.file == identity.file
        && header.build_id.get(..header.build_id_bytes as usize) == Some(&identity.build_id[..]);
    if header.magic != MAGIC || header.version != cfi::VERSION || !same_file {
        return Err(Unusable::Foreign);
    }
    // What is allocated is bounded by what is really there.
    if header.entry_bytes() != Some(metadata.len()) {
        return Err(Unusable::Damaged);
    }
    let mut rows = vec![Row::NONE; header.rows as usize];
    let mut buckets = vec![0u32; header.buckets as usize];
    file.read_exact(rows.as_mut_bytes())?;
    file.read_exact(buckets.as_mut_bytes())?;
    let expected = std::mem::take(&mut header.checksum);
    if checksum(&header, &rows, &buckets) != expected {
        return Err(Unusable::Damaged);
    }
    let table = Table { base: Svma(header.base), rows, buckets, skipped: header.skipped() };
    if !table.is_sound() {
        return Err(Unusable::Damaged);
    }
    // The time of the last use. Without it the entry is removed earlier, no more.
    if let Err(error) = file.set_modified(SystemTime::now()) {
        tracing::debug!("cannot note the use of {}: {error}", path.display());
    }
    Ok(table)
}

fn checksum(header: &Header, rows: &[Row], buckets: &[u32]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.as_bytes());
    hasher.update(rows.as_bytes());
    hasher.update(buckets.as_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests;
