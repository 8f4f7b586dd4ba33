//! Names that a process writes for the code it makes at run time: `/tmp/perf-PID.map`.
//!
//! Node (`--perf-basic-prof`), Python (`-X perf`), the JVM and others write one line for each piece
//! of code, as Linux's perf reads them:
//!
//! ```text
//!   7f3a80001000 40 JS:*handle /srv/app.js:4:1        start and size, hexadecimal; the name
//! ```
//!
//! In: the file, as far as it has grown, and addresses that stacks went through. Out: the symbols
//! that cover them. A later line replaces what it overlaps. Only where a line stands is kept, not
//! its name: a program writes hundreds of thousands of them, and few are ever asked for.
//!
//! The file is the target's: it may hold anything, shrink, or be exchanged. It is read in bounded
//! pieces, a bounded number of lines is kept, and what could not be is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use memtrace_common::addr::Avma;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::process::ProcessInfo;
use crate::record::Pid;

/// Bytes that are read of one map at a time; parsing them takes a few milliseconds.
const MAX_BYTES_AT_ONCE: u64 = 4 << 20;

/// Bytes that are read of one map in all.
const MAX_BYTES: u64 = 512 << 20;

/// Symbols that are known of one process at a time: 32 MB.
const MAX_SYMBOLS: usize = 1 << 19;

/// Addresses without a name that are remembered of one process.
const MAX_ADDRESSES: usize = 1 << 16;

/// A longer line is left out.
const MAX_LINE_BYTES: usize = 4096;

/// So many bytes before the end of what was read tell whether the file is still the same.
const MARK_BYTES: usize = 64;

/// A symbol of code without a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JitSymbol {
    /// Where it starts.
    pub start: Avma,
    /// Its size in bytes.
    pub size: u64,
    /// Its name, as the process wrote it.
    pub name: Vec<u8>,
}

/// What could not be read, or not be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unread {
    /// Lines that are no symbols, or for which there was no room.
    pub lines: u64,
    /// Addresses for which there was no room.
    pub addresses: u64,
    /// Files that are too large, belong to another user, or cannot be read.
    pub files: u64,
}

/// The names of one program's run-time code, as far as stacks went through it.
#[derive(Debug)]
pub(super) struct JitNames {
    process: ProcessFiles,
    root: Root,
    map: Option<PerfMap>,
    /// Addresses that stacks went through and that have no name yet.
    awaited: BTreeSet<Avma>,
    /// What could not be read so far.
    pub unread: Unread,
}

/// The root directory of a process.
#[derive(Debug)]
enum Root {
    /// The process has made no code.
    NotNeeded,
    /// It outlives the process. The map must belong to this user, or to root.
    Open { root: OwnedFd, uid: u32 },
    /// The process was gone, or its map cannot be read.
    GivenUp,
}

/// Which map belongs to a process.
#[derive(Debug)]
struct ProcessFiles {
    pid: Pid,
    /// Its id where it lives: in its own PID namespace.
    own_pid: u32,
}

impl JitNames {
    /// Opens nothing yet.
    pub(super) fn new(info: &ProcessInfo) -> JitNames {
        let pid = info.identity.pid;
        let own_pid = info.namespaced_pids.last().copied().unwrap_or(pid.0);
        JitNames {
            process: ProcessFiles { pid, own_pid },
            root: Root::NotNeeded,
            map: None,
            awaited: BTreeSet::new(),
            unread: Unread::default(),
        }
    }

    /// The process makes code, and may name it.
    ///
    /// To be called while it lives: its first stack through that code may come when it has ended.
    pub(super) fn expect(&mut self) {
        if matches!(self.root, Root::NotNeeded) {
            self.root = self.process.open_root();
        }
    }

    /// A stack goes through `address`.
    pub(super) fn saw(&mut self, address: Avma) {
        if self.awaited.len() >= MAX_ADDRESSES {
            self.unread.addresses += 1;
            return;
        }
        self.awaited.insert(address);
    }

    /// Reads on, and gives the symbols of awaited addresses that were not given before.
    pub(super) fn find(&mut self) -> Vec<JitSymbol> {
        if self.awaited.is_empty() {
            return Vec::new();
        }
        if let Err(error) = self.read_on() {
            tracing::debug!("cannot read the perf map of {}: {error}", self.process.pid.0);
            self.unread.files += 1;
            // What was read before still names what it can.
            self.root = Root::GivenUp;
        }
        let Some(map) = &mut self.map else { return Vec::new() };
        let mut found = Vec::new();
        self.awaited.retain(|address| match map.symbols.find(*address) {
            Some((_, Sent::Yes)) => false,
            Some((line, sent @ Sent::No)) => {
                *sent = Sent::Yes;
                found.extend(read_symbol(&map.file, line));
                false
            }
            None => true,
        });
        found
    }

    /// As [`JitNames::find`], to the end of the map.
    pub(super) fn find_all(&mut self) -> Vec<JitSymbol> {
        let mut found = self.find();
        while self.map.as_ref().is_some_and(|map| map.has_more) && !self.awaited.is_empty() {
            found.extend(self.find());
        }
        found
    }

    fn read_on(&mut self) -> io::Result<()> {
        let Root::Open { root, uid } = &self.root else { return Ok(()) };
        let Some(file) = self.process.open_map(root, *uid)? else { return Ok(()) };
        let metadata = file.metadata()?;
        let is_same = |map: &PerfMap| map.identity == (metadata.dev(), metadata.ino());
        match &mut self.map {
            Some(map) if is_same(map) && map.still_has_what_was_read()? => {}
            map => *map = Some(PerfMap::new(file, (metadata.dev(), metadata.ino()))),
        }
        match &mut self.map {
            Some(map) => map.read_on(&mut self.unread),
            None => Ok(()),
        }
    }
}

impl ProcessFiles {
    fn open_root(&self) -> Root {
        let process = format!("/proc/{}", self.pid.0);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("{process}/root"), flags, Mode::empty());
        match (root, std::fs::metadata(process)) {
            (Ok(root), Ok(metadata)) => Root::Open { root, uid: metadata.uid() },
            (Err(_), _) | (_, Err(_)) => Root::GivenUp,
        }
    }

    /// The map, where the process has its root; `None` if there is none.
    ///
    /// Nothing that the target has put there leads elsewhere, and a FIFO is not waited for.
    fn open_map(&self, root: &OwnedFd, uid: u32) -> io::Result<Option<File>> {
        let path = format!("tmp/perf-{}.map", self.own_pid);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat2(
            root,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        if ![0, uid].contains(&metadata.uid()) {
            return Err(io::Error::other("it belongs to another user"));
        }
        Ok(Some(file))
    }
}

/// A map that is being read.
#[derive(Debug)]
struct PerfMap {
    file: File,
    identity: (u64, u64),
    /// Up to where whole lines were read.
    read: u64,
    /// The last bytes before that.
    mark: Vec<u8>,
    /// Whether the file had more when it was read last.
    has_more: bool,
    symbols: Symbols,
}

impl PerfMap {
    fn new(file: File, identity: (u64, u64)) -> PerfMap {
        let symbols = Symbols::default();
        PerfMap { file, identity, read: 0, mark: Vec::new(), has_more: false, symbols }
    }

    /// Whether the file has only grown: the JVM writes its map anew each time.
    fn still_has_what_was_read(&self) -> io::Result<bool> {
        let mut mark = vec![0; self.mark.len()];
        match self.file.read_exact_at(&mut mark, self.read - self.mark.len() as u64) {
            Ok(()) => Ok(mark == self.mark),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read_on(&mut self, unread: &mut Unread) -> io::Result<()> {
        self.has_more = false;
        let size = self.file.metadata()?.len();
        let most = MAX_BYTES_AT_ONCE.min(MAX_BYTES.saturating_sub(self.read));
        if most == 0 {
            return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
        }
        let wanted = size.saturating_sub(self.read).min(most);
        let mut bytes = vec![0; wanted as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], self.read + filled as u64)? {
                0 => break,
                more => filled += more,
            }
        }
        bytes.truncate(filled);
        let whole = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(newline) => newline + 1,
            // A line without end would keep everything behind it from being read.
            None if filled > MAX_LINE_BYTES => filled,
            None => return Ok(()),
        };
        let mut at = self.read;
        for line in bytes[..whole].split_inclusive(|&byte| byte == b'\n') {
            let length = line.len();
            match parse(line) {
                Some((start, size, _)) if length <= MAX_LINE_BYTES => {
                    let line = Line { at, length: length as u16 };
                    unread.lines += u64::from(!self.symbols.insert(start, size, line));
                }
                Some(_) | None => unread.lines += 1,
            }
            at += length as u64;
        }
        self.mark = bytes[whole.saturating_sub(MARK_BYTES)..whole].to_vec();
        self.read = at;
        self.has_more = size > self.read && wanted == most;
        Ok(())
    }
}

/// Where a line stands in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    at: u64,
    length: u16,
}

/// Whether a symbol was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    No,
}

/// The symbols of a map, by start; they do not overlap.
#[derive(Debug, Default)]
struct Symbols {
    by_start: BTreeMap<Avma, (Avma, Line, Sent)>,
}

impl Symbols {
    /// Takes a symbol in, in the place of those that it overlaps; `false` if there is no room.
    fn insert(&mut self, start: Avma, size: u64, line: Line) -> bool {
        let end = Avma(start.0.saturating_add(size));
        if start >= end {
            return true;
        }
        if let Some((&before, &(its_end, _, _))) = self.by_start.range(..start).next_back()
            && its_end > start
        {
            self.by_start.remove(&before);
        }
        while let Some((&overlapped, _)) = self.by_start.range(start..end).next() {
            self.by_start.remove(&overlapped);
        }
        if self.by_start.len() >= MAX_SYMBOLS {
            return false;
        }
        self.by_start.insert(start, (end, line, Sent::No));
        true
    }

    fn find(&mut self, address: Avma) -> Option<(Line, &mut Sent)> {
        let (_, (end, line, sent)) = self.by_start.range_mut(..=address).next_back()?;
        (address < *end).then_some((*line, sent))
    }
}

/// Reads a symbol again; `None` if the file has changed meanwhile.
fn read_symbol(file: &File, line: Line) -> Option<JitSymbol> {
    let mut bytes = vec![0; usize::from(line.length)];
    file.read_exact_at(&mut bytes, line.at).ok()?;
    let (start, size, name) = parse(&bytes)?;
    Some(JitSymbol { start, size, name: name.to_vec() })
}

/// The start, the size and the name in a line.
fn parse(line: &[u8]) -> Option<(Avma, u64, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(3, |&byte| byte == b' ');
    let start = hexadecimal(fields.next()?)?;
    let size = hexadecimal(fields.next()?)?;
    let name = fields.next()?.trim_ascii();
    (!name.is_empty()).then_some((Avma(start), size, name))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(digits).ok()?;
    // The JVM writes `0x…`.
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests;
