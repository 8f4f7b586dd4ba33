//! The files behind a process's mappings.
//!
//! A mapped file is opened through `/proc/PID/map_files`, which leads to the very file that is
//! mapped, even if it was deleted or replaced, or lies in another mount namespace. Only where that
//! is not allowed, its path is looked up below `/proc/PID/root`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf;
use object::read::ReadRef;
use object::read::elf::{ElfFile64, ProgramHeader as _};
use thiserror::Error;

use super::ProcessError;
use super::maps::{Mapped, Mapping};
use crate::record::Pid;

/// `e_machine` of x86-64.
pub(super) const X86_64: u16 = elf::EM_X86_64.0;
/// `e_machine` of 32-bit x86.
pub(super) const I386: u16 = elf::EM_386.0;

/// The longest build id that is believed; linkers make 20 bytes at most by themselves.
const MAX_BUILD_ID_BYTES: usize = 64;

/// Why a file's build id could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not a readable x86-64 ELF file: {reason}")]
pub struct BuildIdError {
    reason: String,
}

/// What an ELF header says the code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// 32 or 64.
    pub(super) class: u8,
    /// `e_machine`.
    pub(super) machine: u16,
}

/// Reads the machine out of the first bytes of an ELF file; `None` if it is not one.
pub(super) fn machine(header: &[u8]) -> Option<Machine> {
    let header: &[u8; 20] = header.first_chunk()?;
    if header[..4] != elf::ELFMAG {
        return None;
    }
    let class = match header[4] {
        1 => 32,
        2 => 64,
        _ => return None,
    };
    let machine = [header[18], header[19]];
    let machine = match header[5] {
        1 => u16::from_le_bytes(machine),
        2 => u16::from_be_bytes(machine),
        _ => return None,
    };
    Some(Machine { class, machine })
}

/// Reads as much of a file as [`machine`] needs, or all of it if it is shorter.
pub(super) fn read_header(path: &Path) -> io::Result<Vec<u8>> {
    let mut header = Vec::new();
    File::open(path)?.take(20).read_to_end(&mut header)?;
    Ok(header)
}

/// The GNU build id of an ELF file, from its note segments; empty if it has none.
pub fn build_id<'data>(file: impl ReadRef<'data>) -> Result<Vec<u8>, BuildIdError> {
    let broken = |error: object::read::Error| BuildIdError { reason: error.to_string() };
    let elf = ElfFile64::<LittleEndian, _>::parse(file).map_err(broken)?;
    for segment in elf.elf_program_headers() {
        let Some(mut notes) = segment.notes(LittleEndian, file).map_err(broken)? else { continue };
        while let Some(note) = notes.next().map_err(broken)? {
            let is_build_id = note.name() == elf::ELF_NOTE_GNU
                && note.n_type(LittleEndian) == elf::NT_GNU_BUILD_ID;
            if is_build_id && note.desc().len() <= MAX_BUILD_ID_BYTES {
                return Ok(note.desc().to_vec());
            }
        }
    }
    Ok(Vec::new())
}

/// Opens the file that `mapping` of the process `pid` shows.
///
/// `mapping` must show a file. The error names the path that was tried last.
pub fn open_mapped(pid: Pid, mapping: &Mapping) -> Result<File, ProcessError> {
    let exact = map_file_path(pid, mapping);
    let not_exact = match open_regular(&exact) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    let Mapped::File { path, deleted: false } = &mapping.mapped else {
        return Err(unreadable(&exact, not_exact));
    };
    let by_path = root_path(pid, path);
    let file = open_regular(&by_path).map_err(|source| unreadable(&by_path, source))?;
    let found = file.metadata().map_err(|source| unreadable(&by_path, source))?.ino();
    // Device numbers are not compared: overlayfs and btrfs show other ones in `maps`.
    if found != mapping.inode {
        return Err(unreadable(&exact, not_exact));
    }
    Ok(file)
}

/// Where the kernel shows the file of a mapping, whatever became of its path.
pub(super) fn map_file_path(pid: Pid, mapping: &Mapping) -> PathBuf {
    let Mapping { start, end, .. } = mapping;
    PathBuf::from(format!("/proc/{}/map_files/{start:x}-{end:x}", pid.0))
}

/// Where a path of the process's mount namespace is for us.
pub(super) fn root_path(pid: Pid, path: &[u8]) -> PathBuf {
    let mut root = PathBuf::from(format!("/proc/{}/root", pid.0)).into_os_string();
    root.push(std::ffi::OsStr::from_bytes(path));
    PathBuf::from(root)
}

/// Opens a regular file, and nothing else that the target may have put in its place.
///
/// It is looked at before it is opened, because to open a device may do something, and again
/// afterwards, because it may have been exchanged; a FIFO is not waited for.
fn open_regular(path: &Path) -> io::Result<File> {
    let check = |metadata: fs::Metadata| {
        if metadata.is_file() { Ok(()) } else { Err(io::Error::other("not a regular file")) }
    };
    check(fs::metadata(path)?)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    check(file.metadata()?)?;
    Ok(file)
}

fn unreadable(path: &Path, source: io::Error) -> ProcessError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => ProcessError::PermissionDenied { path: path.to_owned() },
        _ => ProcessError::Unreadable { path: path.to_owned(), source },
    }
}
