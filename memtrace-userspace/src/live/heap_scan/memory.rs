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

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;
use std::{io, ptr, thread};

use memtrace_common::addr::Avma;
use rayon::prelude::*;

use super::ScanError;
use super::copies::{Copies, Copy, GROUP_BYTES, Part};
use super::resident::{Pages, Resident};
use super::urgent::ComesFirst;
use crate::live::process::maps::Sharing;
use crate::live::process::{Mapped, Mapping, PAGE_BYTES, ProcessError};
use crate::reach::{Blocks, Piece};
use crate::record::Pid;

/// The red zone of the System V ABI.
const RED_ZONE_BYTES: u64 = 128;

/// Memory that is to be read, in groups of ranges that a copy has room for.
pub(super) struct Memory {
    groups: Vec<Vec<Range<u64>>>,
    bytes: u64,
}

/// What was read of it.
#[derive(Default)]
pub(super) struct Read {
    /// The words of what was looked through at once, for want of room.
    pub(super) pieces: Vec<Piece>,
    /// What is still to be looked through.
    copies: Vec<Copy>,
    pub(super) bytes: u64,
    pub(super) unreadable_bytes: u64,
    /// What of it was looked through at once.
    pub(super) uncopied_bytes: u64,
    /// Whether there was not enough time for all.
    pub(super) is_late: bool,
}

impl Memory {
    /// The memory behind `mappings`, which are in order, without what is below `stack_pointers`.
    pub(super) fn of(
        mappings: &[Mapping],
        stack_pointers: &[Avma],
        resident: &Resident,
    ) -> io::Result<Memory> {
        let mut memory = Memory { groups: Vec::new(), bytes: 0 };
        let mut room = 0;
        for (index, mapping) in mappings.iter().enumerate() {
            let Some(wanted) = wanted(mapping) else { continue };
            let guard = index.checked_sub(1).map(|before| &mappings[before]);
            let start = first_in_use(mapping, guard, stack_pointers);
            for range in resident.ranges(page_of(start)..mapping.end.0, wanted)? {
                memory.add(range.start.max(start)..range.end, &mut room);
            }
        }
        Ok(memory)
    }

    /// How much it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a range, of which the last group has `room` for so many bytes.
    fn add(&mut self, mut range: Range<u64>, room: &mut u64) {
        self.bytes += range.end.saturating_sub(range.start);
        while range.start < range.end {
            if *room == 0 {
                self.groups.push(Vec::new());
                *room = GROUP_BYTES as u64;
            }
            let end = range.end.min(range.start + *room);
            *room -= end - range.start;
            if let Some(group) = self.groups.last_mut() {
                group.push(range.start..end);
            }
            range.start = end;
        }
    }

    /// Copies it, or as much as there is time for; what `copies` has no room for is looked through at
    /// once.
    pub(super) fn read(
        &self,
        pid: Pid,
        blocks: &Blocks,
        copies: &mut Copies,
        until: Option<Instant>,
    ) -> Result<Read, ScanError> {
        let Copies { free, own } = copies;
        let job = Job {
            memory: self,
            pid,
            blocks,
            free: &Mutex::new(free),
            until,
            next: AtomicUsize::new(0),
        };
        let reads: Vec<io::Result<Read>> = thread::scope(|scope| {
            let threads: Vec<_> = own.iter_mut().map(|own| job.spawn(scope, own)).collect();
            let join = |thread: ScopedJoinHandle<'_, io::Result<Read>>| {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            threads.into_iter().map(|thread| thread.and_then(join)).collect()
        });
        let mut all = Read::default();
        for read in reads {
            match read {
                Ok(Read {
                    mut pieces,
                    mut copies,
                    bytes,
                    unreadable_bytes,
                    uncopied_bytes,
                    is_late,
                }) => {
                    all.pieces.append(&mut pieces);
                    all.copies.append(&mut copies);
                    all.bytes += bytes;
                    all.unreadable_bytes += unreadable_bytes;
                    all.uncopied_bytes += uncopied_bytes;
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

impl Read {
    /// Looks through the copies, each of which goes as soon as that is done.
    pub(super) fn into_pieces(self, blocks: &Blocks) -> Vec<Piece> {
        let Read { mut pieces, copies, .. } = self;
        let seen: Vec<Vec<Piece>> =
            copies.into_par_iter().map(|copy| copy.pieces(blocks)).collect();
        pieces.extend(seen.into_iter().flatten());
        pieces
    }
}

/// What the readers of one process share.
struct Job<'a> {
    memory: &'a Memory,
    pid: Pid,
    blocks: &'a Blocks,
    /// Room for copies that nobody has taken yet.
    free: &'a Mutex<&'a mut Vec<Copy>>,
    until: Option<Instant>,
    /// The next group that nobody reads yet.
    next: AtomicUsize,
}

impl Job<'_> {
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        own: &'scope mut Copy,
    ) -> io::Result<ScopedJoinHandle<'scope, io::Result<Read>>> {
        let name = "reader".to_owned();
        thread::Builder::new().name(name).spawn_scoped(scope, || self.take_part(own))
    }

    /// Reads groups until none is left.
    fn take_part(&self, own: &mut Copy) -> io::Result<Read> {
        let _first = self.until.map(|_| ComesFirst::begin());
        let mut read = Read::default();
        while let Some(group) = self.memory.groups.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                read.is_late = true;
                break;
            }
            let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
            match free {
                Some(mut copy) => {
                    self.read_group(group, &mut copy, &mut read)?;
                    read.copies.push(copy);
                }
                None => {
                    let before = read.bytes;
                    self.read_group(group, own, &mut read)?;
                    read.uncopied_bytes += read.bytes - before;
                    read.pieces.append(&mut own.pieces(self.blocks));
                }
            }
        }
        Ok(read)
    }

    fn read_group(&self, group: &[Range<u64>], copy: &mut Copy, read: &mut Read) -> io::Result<()> {
        copy.clear();
        let mut ranges = group.to_vec();
        ranges.reverse();
        while !ranges.is_empty() {
            match read_some(self.pid, &mut ranges, copy) {
                Ok(count) if count > 0 => read.bytes += count,
                // It is gone, or a device's, or beyond the end of its file: the rest may not be.
                Ok(_) | Err(Unreadable::Page) => read.unreadable_bytes += skip_page(&mut ranges),
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

/// Reads the first of `ranges`, which are in reverse order, and takes away what was read: less than
/// all if there are too many, or what follows cannot be read.
fn read_some(pid: Pid, ranges: &mut Vec<Range<u64>>, copy: &mut Copy) -> Result<u64, Unreadable> {
    let remote: Vec<libc::iovec> = ranges
        .iter()
        .rev()
        .take(libc::UIO_MAXIOV as usize)
        .map(|range| libc::iovec {
            iov_base: ptr::without_provenance_mut(range.start as usize),
            iov_len: (range.end - range.start) as usize,
        })
        .collect();
    let room = copy.room();
    let local = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    let count = remote.len() as libc::c_ulong;
    let pid = pid.0 as libc::pid_t;
    // SAFETY: the kernel writes into `room` alone, and no more than it holds.
    let read =
        unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), count, 0) };
    let Ok(read) = u64::try_from(read) else {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EFAULT | libc::ENOMEM | libc::EIO) => Unreadable::Page,
            _ => Unreadable::Process(error),
        });
    };
    let mut left = read;
    while left > 0
        && let Some(range) = ranges.last_mut()
    {
        let count = left.min(range.end - range.start);
        copy.add(Part { base: Avma(range.start), bytes: count as usize });
        left -= count;
        range.start += count;
        if range.start >= range.end {
            ranges.pop();
        }
    }
    Ok(read)
}

/// Takes away the rest of the page that the first of `ranges` begins in, and tells how much that is.
fn skip_page(ranges: &mut Vec<Range<u64>>) -> u64 {
    let Some(range) = ranges.last_mut() else { return 0 };
    let next = (page_of(range.start) + PAGE_BYTES).min(range.end);
    let skipped = next - range.start;
    range.start = next;
    if range.start >= range.end {
        ranges.pop();
    }
    skipped
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
        let mut memory = Memory { groups: Vec::new(), bytes: 0 };
        let mut room = 0;
        memory.add(0x10..0x20, &mut room);
        memory.add(place..place + 16, &mut room);
        memory.add(0x2010..0x2020, &mut room);
        memory.add(place + 16..place + 24, &mut room);

        // With room for a copy, and without.
        for bytes in [GROUP_BYTES as u64, 0] {
            let mut copies = Copies::new(bytes).expect("a little memory");
            let read = memory.read(pid, &blocks, &mut copies, None).expect("our own memory");

            assert_eq!((read.bytes, read.unreadable_bytes, read.is_late), (24, 32, false));
            let pieces = read.into_pieces(&blocks);
            assert_eq!(pieces.iter().map(Piece::len).sum::<usize>(), 3);
        }
    }
}
