//! The text of `/proc/PID/smaps`: the lines of `maps`, each followed by figures.
//!
//! ```text
//!   5582a000-5584b000 rw-p 00000000 00:00 0      [heap]
//!   Size:                132 kB
//!   Rss:                   8 kB
//! ```

use memtrace_common::addr::Avma;

use super::maps::{Access, Mapped, Mapping, Sharing, parse_mapping};
use crate::record::{MemoryByKind, MemoryFigures};

/// What a process holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Size of `[heap]`.
    pub(super) heap_bytes: u64,
    /// Size of private anonymous writable mappings other than heap and stacks.
    pub(super) anonymous_bytes: u64,
    /// Resident set size.
    pub(super) resident_bytes: u64,
}

/// Adds up `smaps`; `None` if it is not as the kernel writes it.
///
/// A mapping that holds one of `stack_pointers` is a thread's stack. Sums saturate.
pub(super) fn parse_smaps(text: &[u8], stack_pointers: &[Avma]) -> Option<Held> {
    let mut held = Held::default();
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        if let Some(kilobytes) = line.strip_prefix(b"Rss:") {
            let bytes = parse_kilobytes(kilobytes)?;
            held.resident_bytes = held.resident_bytes.saturating_add(bytes);
        } else if !is_figure(line) {
            held.add(&parse_mapping(line)?, stack_pointers);
        }
    }
    Some(held)
}

/// Adds up `smaps` by kind of memory; `None` if it is not as the kernel writes it.
///
/// A mapping that holds one of `stack_pointers` is a thread's stack. Sums saturate.
pub(super) fn parse_memory(text: &[u8], stack_pointers: &[Avma]) -> Option<MemoryByKind> {
    let mut memory = MemoryByKind::default();
    let mut kind = &mut MemoryFigures::default();
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        if !is_figure(line) {
            let mapping = parse_mapping(line)?;
            kind = kind_of(&mut memory, &mapping, stack_pointers);
            let Access { read, write, execute } = mapping.access;
            let bytes = match read || write || execute {
                true => &mut kind.size_bytes,
                false => &mut kind.reserved_bytes,
            };
            *bytes = bytes.saturating_add(mapping.size_bytes());
            continue;
        }
        let (name, figure) = line.split_at(line.iter().position(|&byte| byte == b':')?);
        let sum = match name {
            b"Rss" => &mut kind.resident_bytes,
            b"Pss" => &mut kind.proportional_bytes,
            b"Private_Dirty" => &mut kind.private_dirty_bytes,
            b"Swap" => &mut kind.swapped_bytes,
            b"AnonHugePages" | b"ShmemPmdMapped" | b"FilePmdMapped" => &mut kind.huge_bytes,
            _ => continue,
        };
        *sum = sum.saturating_add(parse_kilobytes(&figure[1..])?);
    }
    Some(memory)
}

/// The figures to which those of a mapping are added.
fn kind_of<'m>(
    memory: &'m mut MemoryByKind,
    mapping: &Mapping,
    stack_pointers: &[Avma],
) -> &'m mut MemoryFigures {
    let is_stack = stack_pointers.iter().any(|&pointer| mapping.contains(pointer));
    match (&mapping.mapped, mapping.sharing) {
        (Mapped::Heap, _) => &mut memory.heap,
        (Mapped::Stack, _) => &mut memory.stack,
        (Mapped::Anonymous | Mapped::Special { .. }, Sharing::Private) if is_stack => {
            &mut memory.stack
        }
        (Mapped::Anonymous | Mapped::Special { .. }, Sharing::Private) => &mut memory.anonymous,
        (Mapped::Anonymous | Mapped::Special { .. }, Sharing::Shared) => &mut memory.shared,
        (Mapped::File { path, .. }, Sharing::Shared) if is_memory(path) => &mut memory.shared,
        (Mapped::File { .. } | Mapped::Vdso, _) => &mut memory.file,
    }
}

/// Whether the kernel shows memory without a file under this path.
fn is_memory(path: &[u8]) -> bool {
    [&b"/dev/zero"[..], b"/memfd:", b"/SYSV", b"/dev/shm/"]
        .iter()
        .any(|start| path.starts_with(start))
}

impl Held {
    fn add(&mut self, mapping: &Mapping, stack_pointers: &[Avma]) {
        let size_bytes = mapping.size_bytes();
        let is_anonymous = match &mapping.mapped {
            Mapped::Heap => {
                self.heap_bytes = self.heap_bytes.saturating_add(size_bytes);
                false
            }
            Mapped::Anonymous => true,
            Mapped::Special { name } => name.starts_with(b"[anon:"),
            Mapped::File { .. } | Mapped::Stack | Mapped::Vdso => false,
        };
        let is_stack = stack_pointers.iter().any(|&pointer| mapping.contains(pointer));
        let is_private = mapping.sharing == Sharing::Private;
        if is_anonymous && is_private && mapping.access.write && !is_stack {
            self.anonymous_bytes = self.anonymous_bytes.saturating_add(size_bytes);
        }
    }
}

/// Whether a line is a figure (`Rss: 4 kB`, `VmFlags: rd`), and not a mapping.
///
/// The first word of a figure ends in a colon. That of a mapping is two addresses.
fn is_figure(line: &[u8]) -> bool {
    line.split(|&byte| byte == b' ').next().is_some_and(|word| word.ends_with(b":"))
}

fn parse_kilobytes(text: &[u8]) -> Option<u64> {
    let number = text.trim_ascii().strip_suffix(b" kB")?;
    let kilobytes: u64 = std::str::from_utf8(number).ok()?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}
