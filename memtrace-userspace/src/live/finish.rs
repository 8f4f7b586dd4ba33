//! Finishing a walk that met code newer than the kernel's tables.
//!
//! Between the moment at which a process maps code and the moment at which the kernel has its
//! table, a walk through that code cannot go on. The kernel sends what it has and a copy of the
//! stack, and the daemon, which handles the mapping first, goes on with the same
//! [`step`]: no target is stopped for it, and no stack is cut.

use memtrace_common::addr::Avma;
use memtrace_common::config::MAX_FRAMES;
use memtrace_common::unwind::{End, Row, Step, step};

use super::decode::RawStack;

/// Walks `raw` to its end, adds to its frames, and says why it ended.
///
/// `row_at` gives the unwind row of a program counter, `None` if it is in no code.
pub fn finish(raw: &mut RawStack, row_at: impl Fn(Avma) -> Option<Row>) -> End {
    let mut regs = raw.regs;
    loop {
        let Some(row) = row_at(Avma(regs.lookup_pc())) else { return End::UnknownCode };
        match step(row, regs, |address| word_at(&raw.bytes, raw.base, address)) {
            Step::End(end) => return end,
            Step::Caller { regs: caller, pc_slot: _, fp_slot: _ } => {
                if raw.frames.len() >= MAX_FRAMES {
                    return End::FrameLimit;
                }
                raw.frames.push(Avma(caller.lookup_pc()));
                regs = caller;
            }
        }
    }
}

/// The word at `address` in `bytes`, which start at `base`.
fn word_at(bytes: &[u8], base: Avma, address: u64) -> Option<u64> {
    let offset = usize::try_from(address.checked_sub(base.0)?).ok()?;
    let word = bytes.get(offset..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use memtrace_common::event::{Header, Kind, Stack};
    use memtrace_common::unwind::{PcKind, RBP_SAME, Regs, cfa};

    use super::*;

    fn raw(words: &[u64]) -> RawStack {
        let header = Header { kind: Kind::RawStack as u8, api: 0, flags: 0, tid: 7, time_ns: 1 };
        RawStack {
            stack: Stack { header, id: 9, pid: 7, frames: 1 },
            frames: vec![Avma(0x4fff)],
            regs: Regs { pc: 0x5000, sp: 0x100, fp: 0, pc_kind: PcKind::ReturnAddress },
            base: Avma(0x100),
            bytes: words.iter().flat_map(|word| word.to_le_bytes()).collect(),
        }
    }

    /// Frames of two words each; the root's code starts at 0x9000, none beyond 0xa000.
    fn row_at(pc: Avma) -> Option<Row> {
        let kind = if pc.0 >= 0x9000 { cfa::ROOT } else { cfa::RSP };
        (pc.0 < 0xa000).then_some(Row {
            pc: 0,
            cfa_offset: 16,
            cfa_kind: kind,
            rbp_offset_by_8: RBP_SAME,
        })
    }

    #[test]
    fn walk_goes_on_to_the_root() {
        let mut raw = raw(&[0, 0x6000, 0, 0x9500]);

        let end = finish(&mut raw, row_at);

        assert_eq!((end, raw.frames), (End::Root, vec![Avma(0x4fff), Avma(0x5fff), Avma(0x94ff)]));
    }

    #[test]
    fn code_that_is_still_unknown_ends_the_walk() {
        let mut raw = raw(&[0, 0xb000]);

        let end = finish(&mut raw, row_at);

        assert_eq!((end, raw.frames), (End::UnknownCode, vec![Avma(0x4fff), Avma(0xafff)]));
    }

    #[test]
    fn end_of_the_copy_ends_the_walk() {
        let mut raw = raw(&[0, 0x6000, 0]);

        let end = finish(&mut raw, row_at);

        assert_eq!((end, raw.frames), (End::UnreadableStack, vec![Avma(0x4fff), Avma(0x5fff)]));
    }
}
