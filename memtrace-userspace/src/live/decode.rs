//! Bytes of the ring to events.
//!
//! In: one entry of the ring. Out: what the kernel programs wrote, checked: a length that does not
//! fit or a number that is not on the wire is an error, because it means that the object and the
//! daemon do not belong together.

use memtrace_common::addr::Avma;
use memtrace_common::config::{MAX_FRAMES, RAW_STACK_BYTES};
use memtrace_common::event::{Alloc, Api, Free, Header, Kind, Mapping, Stack, StackRest, Task};
use memtrace_common::unwind::{End, PcKind, Regs};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::record::Alignment;

/// An entry of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A heap block was acquired.
    Alloc(Api, Alignment, Alloc),
    /// A heap block was released, retired or restored, as the kind says.
    Free(Kind, Api, Free),
    /// The frames behind a stack id.
    Stack(Stack, End, Vec<Avma>),
    /// A stack that the daemon must finish.
    RawStack(Box<RawStack>),
    /// The address space changed, as the kind says.
    Mapping(Kind, Mapping),
    /// Something happened to a thread or a process, as the kind says.
    Task(Kind, Task),
}

/// A walk that met code newer than the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawStack {
    /// What is known of the stack; its frames follow.
    pub stack: Stack,
    /// The frames so far, innermost first; the last one is in the unknown code.
    pub frames: Vec<Avma>,
    /// The registers of the last frame.
    pub regs: Regs,
    /// Address of the first byte of `bytes`.
    pub base: Avma,
    /// The stack from `base` upwards.
    pub bytes: Vec<u8>,
}

/// An entry that no program of memtrace writes.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Too short for its kind.
    #[error("an event of kind {kind} has {found} bytes, too few")]
    TooShort {
        /// Number of the kind.
        kind: u8,
        /// Bytes that it has.
        found: usize,
    },
    /// A number that is not on the wire.
    #[error("no {what} has the number {found}")]
    Unknown {
        /// What kind of number.
        what: &'static str,
        /// The number.
        found: u32,
    },
}

/// Decodes one entry of the ring.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let header: Header = read(bytes, 0)?.0;
    let unknown = |what, found: u32| DecodeError::Unknown { what, found };
    let kind =
        Kind::from_wire(header.kind).ok_or_else(|| unknown("event kind", header.kind.into()))?;
    let api = || Api::from_wire(header.api).ok_or_else(|| unknown("api", header.api.into()));
    Ok(match kind {
        Kind::Alloc => {
            let alignment = u8::try_from(header.flags).ok().and_then(Alignment::from_log2);
            let alignment = alignment.ok_or_else(|| unknown("alignment", header.flags.into()))?;
            Event::Alloc(api()?, alignment, read(bytes, header.kind)?.0)
        }
        Kind::Free | Kind::Retire | Kind::Restore => {
            Event::Free(kind, api()?, read(bytes, header.kind)?.0)
        }
        Kind::Stack => {
            let (stack, rest): (Stack, _) = read(bytes, header.kind)?;
            let end = End::from_wire(header.flags)
                .ok_or_else(|| unknown("end of a stack", header.flags.into()))?;
            let frames = frames(rest, stack.frames)
                .ok_or(DecodeError::TooShort { kind: header.kind, found: bytes.len() })?;
            Event::Stack(stack, end, frames)
        }
        Kind::RawStack => {
            let too_short = DecodeError::TooShort { kind: header.kind, found: bytes.len() };
            let (stack, tail): (Stack, _) = read(bytes, header.kind)?;
            let (all_frames, tail) = tail.split_at_checked(MAX_FRAMES * 8).ok_or(too_short)?;
            let (rest, copy): (StackRest, _) = read(tail, header.kind)?;
            let frames = frames(all_frames, stack.frames)
                .ok_or(DecodeError::TooShort { kind: header.kind, found: bytes.len() })?;
            let StackRest { pc, sp, fp, base, copied, pc_kind } = rest;
            let pc_kind = match pc_kind {
                0 => PcKind::ReturnAddress,
                1 => PcKind::Exact,
                other => return Err(unknown("kind of program counter", other as u32)),
            };
            let copied = usize::try_from(copied).unwrap_or(usize::MAX).min(RAW_STACK_BYTES);
            Event::RawStack(Box::new(RawStack {
                stack,
                frames,
                regs: Regs { pc, sp, fp, pc_kind },
                base: Avma(base),
                bytes: copy.get(..copied.min(copy.len())).unwrap_or_default().to_vec(),
            }))
        }
        Kind::Map
        | Kind::Unmap
        | Kind::UnmapFailed
        | Kind::RemapStart
        | Kind::Remap
        | Kind::Break
        | Kind::Commit
        | Kind::Decommit => Event::Mapping(kind, read(bytes, header.kind)?.0),
        Kind::ThreadStart
        | Kind::ThreadExit
        | Kind::ThreadName
        | Kind::Fork
        | Kind::Exec
        | Kind::ProcessExit
        | Kind::CodeChanged
        | Kind::Stopped
        | Kind::Ending => Event::Task(kind, read(bytes, header.kind)?.0),
    })
}

/// The first `count` frames of `bytes`; `None` if there are fewer.
fn frames(bytes: &[u8], count: u32) -> Option<Vec<Avma>> {
    let frames = bytes.get(..(count as usize).checked_mul(8)?)?.as_chunks::<8>().0;
    Some(frames.iter().map(|frame| Avma(u64::from_le_bytes(*frame))).collect())
}

fn read<T: FromBytes + KnownLayout + Immutable>(
    bytes: &[u8],
    kind: u8,
) -> Result<(T, &[u8]), DecodeError> {
    T::read_from_prefix(bytes).map_err(|_| DecodeError::TooShort { kind, found: bytes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn header(kind: Kind, api: u8, flags: u16) -> Header {
        Header { kind: kind as u8, api, flags, tid: 7, time_ns: 1000 }
    }

    #[test]
    fn stack_keeps_its_frames_in_order() {
        let stack = Stack { header: header(Kind::Stack, 0, 2), id: 9, pid: 7, frames: 2 };
        let mut bytes = stack.as_bytes().to_vec();
        bytes.extend_from_slice(&0x1000u64.to_le_bytes());
        bytes.extend_from_slice(&0x2000u64.to_le_bytes());

        let event = decode(&bytes);

        let frames = vec![Avma(0x1000), Avma(0x2000)];
        assert_eq!(event, Ok(Event::Stack(stack, End::UnknownCode, frames)));
    }

    #[test]
    fn stack_with_fewer_frames_than_it_says_is_an_error() {
        let stack = Stack { header: header(Kind::Stack, 0, 0), id: 9, pid: 7, frames: 2 };
        let mut bytes = stack.as_bytes().to_vec();
        bytes.extend_from_slice(&0x1000u64.to_le_bytes());

        let event = decode(&bytes);

        assert_eq!(event, Err(DecodeError::TooShort { kind: Kind::Stack as u8, found: 40 }));
    }

    #[test]
    fn raw_stack_keeps_what_is_valid_and_drops_the_rest() {
        let stack = Stack { header: header(Kind::RawStack, 0, 2), id: 9, pid: 7, frames: 1 };
        let rest = StackRest { pc: 5, sp: 0x100, fp: 0, base: 0x100, copied: 8, pc_kind: 0 };
        let mut bytes = stack.as_bytes().to_vec();
        bytes.extend_from_slice(&0x1000u64.to_le_bytes());
        bytes.resize(size_of::<Stack>() + MAX_FRAMES * 8, 0xff);
        bytes.extend_from_slice(rest.as_bytes());
        bytes.resize(bytes.len() + RAW_STACK_BYTES, 0xee);

        let event = decode(&bytes);

        let regs = Regs { pc: 5, sp: 0x100, fp: 0, pc_kind: PcKind::ReturnAddress };
        let (frames, base, stack_bytes) = (vec![Avma(0x1000)], Avma(0x100), vec![0xee; 8]);
        let raw = RawStack { stack, frames, regs, base, bytes: stack_bytes };
        assert_eq!(event, Ok(Event::RawStack(Box::new(raw))));
        bytes.truncate(size_of::<Stack>() + MAX_FRAMES * 8 + 47);
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn event_cut_anywhere_is_an_error() {
        let alloc = Alloc {
            header: header(Kind::Alloc, Api::Malloc as u8, 0),
            ptr: 0x5000,
            size: 64,
            stack: 9,
        };

        assert_eq!(decode(alloc.as_bytes()), Ok(Event::Alloc(Api::Malloc, Alignment::NONE, alloc)));
        for length in 0..size_of::<Alloc>() {
            assert!(decode(&alloc.as_bytes()[..length]).is_err());
        }
    }

    #[test]
    fn unknown_numbers_are_errors() {
        let mut free = Free { header: header(Kind::Free, Api::Free as u8, 0), ptr: 0x5000 };

        free.header.api = 200;
        assert_eq!(decode(free.as_bytes()), Err(DecodeError::Unknown { what: "api", found: 200 }));
        free.header.kind = 99;
        assert_eq!(
            decode(free.as_bytes()),
            Err(DecodeError::Unknown { what: "event kind", found: 99 })
        );
    }
}
