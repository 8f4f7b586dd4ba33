//! Which memory of a process may hold pointers to its heap, and reading it.
//!
//! ```text
//!   private, written to     read              globals, stacks, the heap, whatever the program maps
//!   private, of a file      what was changed  the file cannot know an address
//!   shared, writable        read
//!   shared, read-only       no                whoever writes it has it mapped writable, too
//!   device, vDSO, no access no
//! ```
//!
//! Of a stack, what lies below the stack pointer and the 128 bytes that the ABI lets functions use
//! there is left over from calls that are long over, and is not read.

use std::collections::HashMap;
use std::num::NonZero;
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;
use std::{io, iter, thread};

use memtrace_common::addr::Avma;

use super::ScanError;
use super::resident::{Pages, Resident};
use super::urgent::ComesFirst;
use crate::live::process::maps::Sharing;
use crate::live::process::{Mapped, Mapping, ProcessError};
use crate::reach::{Blocks, PIECE_BYTES, Piece, Room};
use crate::record::Pid;

const PAGE_BYTES: u64 = 4096;

/// The red zone of the System V ABI.
const RED_ZONE_BYTES: u64 = 128;

/// Memory that is to be read, in pieces.
pub(super) struct Memory {
    pieces: Vec<Range<u64>>,
}

/// What was read of it.
#[derive(Default)]
pub(super) struct Read {
    pub(super) pieces: Vec<Piece>,
    pub(super) bytes: u64,
    pub(super) unreadable_bytes: u64,
    /// Whether there was not enough time for all.
    pub(super) is_late: bool,
}

/// Threads' worth of memory to read with.
pub(super) struct Readers {
    readers: Vec<Reader>,
    /// Memory for the words of pieces, by the address of the piece that needed it last.
    spare: Mutex<HashMap<Avma, Vec<u64>>>,
}

struct Reader {
    bytes: Vec<u8>,
    room: Room,
}

impl Memory {
    /// The memory behind `mappings`, which are in order, without what is below `stack_pointers`.
    pub(super) fn of(
        mappings: &[Mapping],
        stack_pointers: &[Avma],
        resident: &Resident,
    ) -> io::Result<Memory> {
        let mut pieces = Vec::new();
        for (index, mapping) in mappings.iter().enumerate() {
            let Some(wanted) = wanted(mapping) else { continue };
            let guard = index.checked_sub(1).map(|before| &mappings[before]);
            let start = first_in_use(mapping, guard, stack_pointers);
            for range in resident.ranges(page_of(start)..mapping.end.0, wanted)? {
                let start = range.start.max(start);
                pieces.extend(
                    (start..range.end)
                        .step_by(PIECE_BYTES)
                        .map(|from| from..range.end.min(from + PIECE_BYTES as u64)),
                );
            }
        }
        Ok(Memory { pieces })
    }

    /// Reads it all, or as much as there is time for.
    pub(super) fn read(
        &self,
        pid: Pid,
        blocks: &Blocks,
        readers: &mut Readers,
        until: Option<Instant>,
    ) -> Result<Read, ScanError> {
        let Readers { readers, spare } = readers;
        let job = Job { memory: self, pid, blocks, spare, until, next: AtomicUsize::new(0) };
        let reads: Vec<io::Result<Read>> = thread::scope(|scope| {
            let threads: Vec<_> =
                readers.iter_mut().map(|reader| job.spawn(scope, reader)).collect();
            let join = |thread: ScopedJoinHandle<'_, io::Result<Read>>| {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            threads.into_iter().map(|thread| thread.and_then(join)).collect()
        });
        let mut all = Read::default();
        for read in reads {
            match read {
                Ok(Read { mut pieces, bytes, unreadable_bytes, is_late }) => {
                    all.pieces.append(&mut pieces);
                    all.bytes += bytes;
                    all.unreadable_bytes += unreadable_bytes;
                    all.is_late |= is_late;
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    return Err(ProcessError::NoSuchProcess { pid: pid.0 }.into());
                }
                Err(source) => return Err(ScanError::Memory { pid: pid.0, source }),
            }
        }
        Ok(all)
    }
}

impl Readers {
    /// As many as there are processors. Their memory is ready, too: to get it takes the kernel
    /// longer than to read as much.
    pub(super) fn new() -> Readers {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let reader = || Reader { bytes: vec![1; PIECE_BYTES], room: Room::new() };
        Readers {
            readers: iter::repeat_with(reader).take(count).collect(),
            spare: Mutex::default(),
        }
    }

    /// Keeps the memory of these pieces for the next reading of the same addresses.
    pub(super) fn keep_memory_of(&mut self, pieces: Vec<Piece>) {
        let spare = self.spare.get_mut().unwrap_or_else(PoisonError::into_inner);
        spare.extend(pieces.into_iter().map(Piece::into_parts));
    }
}

/// What the readers of one process share.
struct Job<'a> {
    memory: &'a Memory,
    pid: Pid,
    blocks: &'a Blocks,
    spare: &'a Mutex<HashMap<Avma, Vec<u64>>>,
    until: Option<Instant>,
    /// The next piece that nobody reads yet.
    next: AtomicUsize,
}

impl Job<'_> {
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        reader: &'scope mut Reader,
    ) -> io::Result<ScopedJoinHandle<'scope, io::Result<Read>>> {
        let name = "reader".to_owned();
        thread::Builder::new().name(name).spawn_scoped(scope, || self.take_part(reader))
    }

    /// Reads pieces until none is left.
    fn take_part(&self, reader: &mut Reader) -> io::Result<Read> {
        let _first = self.until.map(|_| ComesFirst::begin());
        let mut read = Read::default();
        while let Some(range) = self.memory.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                read.is_late = true;
                break;
            }
            self.read_range(range, reader, &mut read)?;
        }
        Ok(read)
    }

    fn read_range(
        &self,
        range: &Range<u64>,
        Reader { bytes, room }: &mut Reader,
        read: &mut Read,
    ) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            match read_some(self.pid, at, &mut bytes[..(range.end - at) as usize]) {
                Ok(count) if count > 0 => {
                    let words = {
                        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
                        spare.remove(&Avma(at)).unwrap_or_default()
                    };
                    let piece = Piece::new(self.blocks, Avma(at), &bytes[..count], room, words);
                    read.pieces.extend((!piece.is_empty()).then_some(piece));
                    read.bytes += count as u64;
                    at += count as u64;
                }
                // It is gone, or a device's, or beyond the end of its file: the rest may not be.
                Ok(_) | Err(Unreadable::Page) => {
                    let next = (page_of(at) + PAGE_BYTES).min(range.end);
                    read.unreadable_bytes += next - at;
                    at = next;
                }
                Err(Unreadable::Process(source)) => return Err(source),
            }
        }
        Ok(())
    }
}

/// Which pages of a mapping may hold a pointer to the heap; `None` if none does.
fn wanted(mapping: &Mapping) -> Option<Pages> {
    if !mapping.access.read {
        return None;
    }
    match (&mapping.mapped, mapping.sharing) {
        (Mapped::Vdso, _) => None,
        (Mapped::Special { name }, _) if !name.starts_with(b"[anon") => None,
        (Mapped::File { path, .. }, _) if is_device(path) => None,
        (Mapped::File { .. }, Sharing::Private) => Some(Pages::Changed),
        (_, Sharing::Shared) => mapping.access.write.then_some(Pages::Used),
        (Mapped::Anonymous | Mapped::Heap | Mapped::Stack | Mapped::Special { .. }, _) => {
            Some(Pages::Used)
        }
    }
}

/// Memory of a device is not memory: to read it may do something.
fn is_device(path: &[u8]) -> bool {
    path.starts_with(b"/dev/") && !path.starts_with(b"/dev/shm/") && path != b"/dev/zero"
}

/// From where on a mapping is in use: from the stack pointer on, if it is the stack of one thread.
///
/// It is one if the kernel says so, or if a guard lies below it and one stack pointer in it: a stack
/// without a guard could have anything below.
fn first_in_use(mapping: &Mapping, before: Option<&Mapping>, stack_pointers: &[Avma]) -> u64 {
    let mut inside = stack_pointers.iter().filter(|pointer| mapping.contains(**pointer));
    let (Some(pointer), None) = (inside.next(), inside.next()) else { return mapping.start.0 };
    let is_guarded = before.is_some_and(|before| {
        before.end == mapping.start && !before.access.read && !before.access.write
    });
    let is_stack = mapping.mapped == Mapped::Stack
        || (is_guarded
            && mapping.sharing == Sharing::Private
            && matches!(mapping.mapped, Mapped::Anonymous | Mapped::Special { .. }));
    if is_stack {
        (pointer.0.saturating_sub(RED_ZONE_BYTES) & !7).max(mapping.start.0)
    } else {
        mapping.start.0
    }
}

fn page_of(address: u64) -> u64 {
    address & !(PAGE_BYTES - 1)
}

/// Why nothing was read.
enum Unreadable {
    /// The memory at this address cannot be read.
    Page,
    /// Nothing of the process can.
    Process(io::Error),
}

/// Reads from `address` on; less than asked for if what follows cannot be read.
fn read_some(pid: Pid, address: u64, buffer: &mut [u8]) -> Result<usize, Unreadable> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(address as usize),
        iov_len: buffer.len(),
    };
    // SAFETY: the kernel writes into `buffer` alone, and no more than it holds.
    let read = unsafe {
        libc::process_vm_readv(pid.0 as libc::pid_t, &raw const local, 1, &raw const remote, 1, 0)
    };
    match usize::try_from(read) {
        Ok(read) => Ok(read),
        Err(_) => {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EFAULT | libc::ENOMEM | libc::EIO) => Err(Unreadable::Page),
                _ => Err(Unreadable::Process(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::addr::FileOffset;

    use super::*;
    use crate::live::process::maps::parse_maps;

    fn mapping(line: &str) -> Mapping {
        parse_maps(line.as_bytes()).expect("a line of maps").remove(0)
    }

    #[test]
    fn memory_that_may_hold_pointers_is_read() {
        let cases = [
            ("1000-2000 rw-p 00000000 00:00 0 ", Some(Pages::Used)),
            ("1000-2000 r--p 00000000 00:00 0 ", Some(Pages::Used)),
            ("1000-2000 rw-p 00000000 00:00 0 [heap]", Some(Pages::Used)),
            ("1000-2000 rw-p 00000000 00:00 0 [anon:arena]", Some(Pages::Used)),
            ("1000-2000 rw-p 00000000 fe:01 7 /lib/a.so", Some(Pages::Changed)),
            ("1000-2000 r--p 00000000 fe:01 7 /lib/a.so", Some(Pages::Changed)),
            ("1000-2000 rw-s 00000000 00:05 7 /dev/shm/a", Some(Pages::Used)),
            ("1000-2000 rw-s 00000000 00:05 7 /dev/zero (deleted)", Some(Pages::Used)),
            ("1000-2000 r--s 00000000 fe:01 7 /usr/share/a", None),
            ("1000-2000 rw-s 00000000 00:05 7 /dev/dri/card0", None),
            ("1000-2000 ---p 00000000 00:00 0 ", None),
            ("1000-2000 r-xp 00000000 00:00 0 [vdso]", None),
            ("1000-2000 r--p 00000000 00:00 0 [vvar]", None),
        ];
        for (line, expected) in cases {
            assert_eq!(wanted(&mapping(line)), expected, "{line}");
        }
    }

    #[test]
    fn stack_is_in_use_from_the_red_zone_on() {
        let main = mapping("10000-20000 rw-p 00000000 00:00 0 [stack]");
        let thread = mapping("40000-50000 rw-p 00000000 00:00 0 ");
        let guard = mapping("3f000-40000 ---p 00000000 00:00 0 ");
        let other = mapping("3f000-40000 rw-p 00000000 fe:01 7 /lib/a.so");
        let pointers = [Avma(0x18004), Avma(0x48000)];

        assert_eq!(first_in_use(&main, None, &pointers), 0x17f80);
        assert_eq!(first_in_use(&thread, Some(&guard), &pointers), 0x47f80);
        assert_eq!(first_in_use(&thread, Some(&other), &pointers), 0x40000);
        assert_eq!(first_in_use(&thread, Some(&guard), &[Avma(0x48000), Avma(0x49000)]), 0x40000);
        assert_eq!(first_in_use(&thread, Some(&guard), &[Avma(0x40008)]), 0x40000);
        assert_eq!(first_in_use(&main, None, &[]), 0x10000);
        assert_eq!(main.offset, FileOffset(0));
    }

    #[test]
    fn memory_of_this_process_is_read_with_the_pointers_in_it() {
        let pid = Pid(std::process::id());
        let block = Box::new([0u8; 4096]);
        let address = block.as_ptr().addr() as u64;
        let blocks = Blocks::new([crate::reach::Span { start: Avma(address), size_bytes: 4096 }]);
        let pointers = [address + 8; 3];
        let place = pointers.as_ptr().addr() as u64;
        let memory = Memory { pieces: vec![place..place + 24, 0x10..0x20] };

        let read = memory.read(pid, &blocks, &mut Readers::new(), None).expect("our own memory");

        assert_eq!(read.pieces.iter().map(Piece::len).sum::<usize>(), 3);
        assert_eq!((read.bytes, read.unreadable_bytes, read.is_late), (24, 16, false));
    }
}
