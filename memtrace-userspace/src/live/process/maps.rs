//! The text of `/proc/PID/maps`.
//!
//! ```text
//!   7f01a8226000-7f01a839c000 r-xp 00026000 fe:01 1835       /usr/lib/libc.so.6
//!   start        end          perm offset   dev   inode      path, escaped, or a [name]
//! ```

use memtrace_common::addr::{Avma, FileOffset};

/// What the kernel appends to the path of a file that was deleted.
pub(super) const DELETED: &[u8] = b" (deleted)";

/// One mapping of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: Avma,
    /// One past the last address.
    pub end: Avma,
    /// What may be done with it.
    pub access: Access,
    /// Whether writes are seen by others that map the same.
    pub sharing: Sharing,
    /// Offset in the file of the first byte.
    pub offset: FileOffset,
    /// The device that the file is on: major and minor number.
    pub device: (u32, u32),
    /// The file's number on its device; 0 if there is no file.
    pub inode: u64,
    /// What it shows.
    pub mapped: Mapped,
}

impl Mapping {
    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: Avma) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether its code can run and is the program's, unlike that of `[vsyscall]`.
    pub fn is_code(&self) -> bool {
        self.access.execute
            && match &self.mapped {
                Mapped::File { .. } | Mapped::Anonymous | Mapped::Vdso => true,
                Mapped::Heap | Mapped::Stack => true,
                Mapped::Special { name } => name.starts_with(b"[anon:"),
            }
    }
}

/// What may be done with the bytes of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// `PROT_READ`.
    pub read: bool,
    /// `PROT_WRITE`.
    pub write: bool,
    /// `PROT_EXEC`.
    pub execute: bool,
}

/// Who sees the writes to a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// `MAP_PRIVATE`.
    Private,
    /// `MAP_SHARED`.
    Shared,
}

/// What a mapping shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// A file, or what the kernel shows as one (`/memfd:name`, `/dev/zero`).
    File {
        /// Its path, in the mount namespace of the process.
        path: Vec<u8>,
        /// Whether that path is gone, or leads to another file by now.
        ///
        /// A file whose own name ends in ` (deleted)` cannot be told from one.
        deleted: bool,
    },
    /// Memory without a file or a name.
    Anonymous,
    /// `[heap]`, which `brk` moves.
    Heap,
    /// `[stack]` of the first thread.
    Stack,
    /// `[vdso]`.
    Vdso,
    /// Any other name, with its brackets: `[vvar]`, `[vsyscall]`, `[anon:name]`.
    Special {
        /// The name.
        name: Vec<u8>,
    },
}

/// Parses all of `maps`; `None` if any line is not as the kernel writes it.
pub fn parse_maps(text: &[u8]) -> Option<Vec<Mapping>> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).map(parse_mapping).collect()
}

/// Parses one line of `maps`, without its newline.
pub(super) fn parse_mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let (start, end) = split_pair(fields.next()?, b'-')?;
    let permissions: &[u8; 4] = fields.next()?.try_into().ok()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = split_pair(fields.next()?, b':')?;
    let inode = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_ascii_start();
    if start >= end {
        return None;
    }
    Some(Mapping {
        start: Avma(start),
        end: Avma(end),
        access: Access {
            read: flag(permissions[0], b'r')?,
            write: flag(permissions[1], b'w')?,
            execute: flag(permissions[2], b'x')?,
        },
        sharing: match permissions[3] {
            b'p' => Sharing::Private,
            b's' => Sharing::Shared,
            _ => return None,
        },
        offset: FileOffset(offset),
        device: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
        inode,
        mapped: parse_mapped(name, inode),
    })
}

fn parse_mapped(name: &[u8], inode: u64) -> Mapped {
    match name {
        b"" => Mapped::Anonymous,
        b"[heap]" => Mapped::Heap,
        b"[stack]" => Mapped::Stack,
        b"[vdso]" => Mapped::Vdso,
        // The name of a file without a path, such as `anon_inode:[perf_event]`, has an inode.
        _ if name.starts_with(b"[") && inode == 0 => Mapped::Special { name: name.to_vec() },
        _ => {
            let path = unescape(name);
            match path.strip_suffix(DELETED) {
                Some(path) => Mapped::File { path: path.to_vec(), deleted: true },
                None => Mapped::File { path, deleted: false },
            }
        }
    }
}

/// Undoes the kernel's escape of newlines, `\012`.
///
/// It escapes nothing else, not even the backslash, so that a path with these four characters in
/// it is taken for one with a newline.
fn unescape(path: &[u8]) -> Vec<u8> {
    const ESCAPE: &[u8] = b"\\012";
    let mut unescaped = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, behind)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(ESCAPE) {
            unescaped.push(b'\n');
            rest = after;
        } else {
            unescaped.push(first);
            rest = behind;
        }
    }
    unescaped
}

fn flag(found: u8, letter: u8) -> Option<bool> {
    match found {
        b'-' => Some(false),
        _ if found == letter => Some(true),
        _ => None,
    }
}

fn split_pair(text: &[u8], separator: u8) -> Option<(u64, u64)> {
    let at = text.iter().position(|&byte| byte == separator)?;
    Some((hex(&text[..at])?, hex(&text[at + 1..])?))
}

fn hex(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
