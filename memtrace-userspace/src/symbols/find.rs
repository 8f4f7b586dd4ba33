//! Finding the files that work together, and checking each before it is believed.
//!
//! In: paths to try out, from `debug_files`, from whoever sees the processes, and from debuginfod.
//! Out: bytes of files that are the right ones, by build id or checksum.

use std::path::{Path, PathBuf};

use object::Object;

use super::debuginfod::Kind;
use super::mapped::{self, FileBytes};
use super::object::{self as elf, Elf};
use super::{Counters, Miss, Options, SymbolError};
use super::{debug_files, hex, xz};

/// A decompressed `.gnu_debugdata`; they are rarely above 2 MiB.
const MAX_MINI_BYTES: usize = 256 << 20;

/// The first candidate that is the image, or the most telling reason why none is.
pub(super) fn find_image(
    options: &Options,
    path: &Path,
    build_id: &[u8],
) -> Result<Result<(PathBuf, FileBytes), Miss>, SymbolError> {
    let mut miss = Miss::NoSuchFile { path: path.into() };
    let mut error = None;
    for candidate in candidates(options, path, build_id) {
        let found = match mapped::open(&candidate) {
            Ok(Ok(bytes)) => match check_build_id(&candidate, &bytes, build_id) {
                Ok(()) => return Ok(Ok((candidate, bytes))),
                Err(miss) => miss,
            },
            Ok(Err(miss)) => miss,
            Err(unreadable) => {
                error.get_or_insert(unreadable);
                continue;
            }
        };
        if matches!(miss, Miss::NoSuchFile { .. }) && !matches!(found, Miss::NoSuchFile { .. }) {
            miss = found;
        }
    }
    if let Some(server) = &options.debuginfod
        && let Some(fetched) = server.find(build_id, Kind::Executable, &mut 0)
        && let Ok(Ok(bytes)) = mapped::open(&fetched)
        && check_build_id(&fetched, &bytes, build_id).is_ok()
    {
        // Debug links are relative to the place where it was.
        return Ok(Ok((path.to_owned(), bytes)));
    }
    error.map_or(Ok(Err(miss)), Err)
}

/// Where the image may be, the likeliest place first.
fn candidates(options: &Options, path: &Path, build_id: &[u8]) -> Vec<PathBuf> {
    let elsewhere = options.elsewhere.of(path);
    let others = debug_files::images(options, path, build_id);
    // Without a build id the file at the same path may be another, and nobody would notice.
    if build_id.is_empty() {
        elsewhere.into_iter().chain(others).collect()
    } else {
        others.into_iter().chain(elsewhere).collect()
    }
}

fn check_build_id(path: &Path, bytes: &[u8], expected: &[u8]) -> Result<(), Miss> {
    let elf = parse(path, bytes)?;
    let found = elf.build_id().ok().flatten().unwrap_or_default();
    if expected.is_empty() || found == expected {
        return Ok(());
    }
    Err(Miss::BuildIdDiffers { path: path.into(), expected: hex(expected), found: hex(found) })
}

/// The image at `path`, as ELF.
pub(super) fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<Elf<'a>, Miss> {
    elf::parse(bytes).map_err(|error| Miss::NotElf { path: path.into(), reason: error.to_string() })
}

/// Tries out `candidates` in turn; the first that passes `check` is the one.
fn first_that_fits(
    counters: &mut Counters,
    candidates: Vec<PathBuf>,
    check: impl Fn(&[u8]) -> bool,
) -> Option<(PathBuf, FileBytes)> {
    for candidate in candidates {
        match mapped::open(&candidate) {
            Ok(Ok(bytes)) if check(&bytes) => return Some((candidate, bytes)),
            Ok(Err(Miss::NoSuchFile { .. })) => {}
            Ok(Ok(_) | Err(_)) => counters.debug_files_rejected += 1,
            Err(SymbolError::Unreadable { .. }) => counters.debug_files_unreadable += 1,
        }
    }
    None
}

pub(super) fn has_build_id(bytes: &[u8], build_id: &[u8]) -> bool {
    let elf = elf::parse(bytes);
    elf.is_ok_and(|elf| elf.build_id().ok().flatten() == Some(build_id))
}

/// The debug information of `image`, if it lies in another file.
pub(super) fn find_debug(
    options: &Options,
    counters: &mut Counters,
    path: &Path,
    image: &Elf<'_>,
) -> Option<(PathBuf, FileBytes)> {
    if let Ok(Some(build_id)) = image.build_id() {
        let candidates = debug_files::by_build_id(options, build_id);
        let found = first_that_fits(counters, candidates, |bytes| has_build_id(bytes, build_id));
        if found.is_some() {
            return found;
        }
    }
    let found = find_linked(options, counters, path, image);
    if found.is_some() {
        return found;
    }
    fetch_debug(options, counters, image.build_id().ok()??)
}

/// The debug information with this build id, from a server.
fn fetch_debug(
    options: &Options,
    counters: &mut Counters,
    build_id: &[u8],
) -> Option<(PathBuf, FileBytes)> {
    let rejected = &mut counters.debug_files_rejected;
    let fetched = options.debuginfod.as_ref()?.find(build_id, Kind::DebugInfo, rejected)?;
    first_that_fits(counters, vec![fetched], |bytes| has_build_id(bytes, build_id))
}

/// The debug information that `image` links to by name.
fn find_linked(
    options: &Options,
    counters: &mut Counters,
    path: &Path,
    image: &Elf<'_>,
) -> Option<(PathBuf, FileBytes)> {
    let (link, crc) = image.gnu_debuglink().ok()??;
    let mut candidates = debug_files::by_link(options, path, link);
    // The link is relative to where the image really is: /usr/bin/app may be a symbolic link.
    if let Ok(real) = path.canonicalize()
        && real != path
    {
        candidates.extend(debug_files::by_link(options, &real, link));
    }
    first_that_fits(counters, candidates, |bytes| {
        crc32fast::hash(bytes) == crc && elf::parse(bytes).is_ok()
    })
}

/// The file that `debug_bytes` shares debug information with.
pub(super) fn find_alternate(
    options: &Options,
    counters: &mut Counters,
    debug_path: &Path,
    debug_bytes: &[u8],
) -> Option<FileBytes> {
    let elf = elf::parse(debug_bytes).ok()?;
    let (link, build_id) = elf.gnu_debugaltlink().ok()??;
    let candidates = debug_files::by_alternate_link(options, debug_path, link, build_id);
    let found = first_that_fits(counters, candidates, |bytes| has_build_id(bytes, build_id))
        .or_else(|| fetch_debug(options, counters, build_id));
    if found.is_none() {
        counters.alternate_files_missing += 1;
    }
    found.map(|(_, bytes)| bytes)
}

/// The symbols of local functions that an image may carry compressed.
pub(super) fn find_mini(counters: &mut Counters, image: &Elf<'_>) -> Option<Vec<u8>> {
    use object::ObjectSection;
    let compressed = image.section_by_name(".gnu_debugdata")?.data().ok()?;
    match xz::decompress(compressed, MAX_MINI_BYTES) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::debug!(%error, "cannot decompress .gnu_debugdata");
            counters.debug_files_rejected += 1;
            None
        }
    }
}
