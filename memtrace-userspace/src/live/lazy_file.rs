//! A file whose bytes are read when somebody looks at them.
//!
//! Of a program with 100 MB of text memtrace looks at its headers, its symbols and its frame
//! section: a fifth of it. A mapping of the file would do, but whoever owns the file could cut it
//! short and so kill the reader with SIGBUS. So each block is read into memory of our own, once:
//!
//! ```text
//!   file     | ELF header | .eh_frame | .text ………………………………… | .symtab |
//!   blocks   [ read       ][ read    ][ not read ][ not read ][ read   ]
//! ```
//!
//! What was read stays as it was, whatever becomes of the file; a block that can no longer be read
//! makes the parser fail with an error.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::OnceLock;

use memmap2::{MmapOptions, MmapRaw};
use object::ReadRef;

/// The largest file that is looked at.
pub(super) const MAX_FILE_BYTES: u64 = 4 << 30;

/// The bytes that are read at a time. A larger read would keep a kernel without preemption busy
/// for so long that a target on the same CPU stands still: 20 ms for 128 MiB.
const BLOCK_BYTES: usize = 128 << 10;

/// The state of a block: not read yet, read, or not readable.
type Block = OnceLock<Result<(), Unreadable>>;

#[derive(Clone, Copy, Debug)]
struct Unreadable;

/// The contents of a file, as far as they were looked at.
#[derive(Debug)]
pub struct LazyFile<'file> {
    file: &'file File,
    /// As long as the file was when it was opened.
    memory: MmapRaw,
    blocks: Vec<Block>,
}

impl<'file> LazyFile<'file> {
    /// Looks at `file`, as long as it is now.
    pub fn new(file: &'file File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        if bytes > MAX_FILE_BYTES {
            let limit = MAX_FILE_BYTES >> 30;
            return Err(io::Error::other(format!("the file is larger than {limit} GiB")));
        }
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        // Address space, which costs memory only where it is written.
        let memory = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon()?.into();
        let blocks = (0..bytes.div_ceil(BLOCK_BYTES)).map(|_| Block::new()).collect();
        Ok(LazyFile { file, memory, blocks })
    }

    fn length(&self) -> usize {
        match self.blocks.is_empty() {
            true => 0,
            false => self.memory.len(),
        }
    }

    /// The bytes of `range`, read if they were not yet.
    fn bytes(&self, range: Range<usize>) -> Result<&[u8], Unreadable> {
        if range.start > range.end || range.end > self.length() {
            return Err(Unreadable);
        }
        for block in range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES) {
            (*self.blocks[block].get_or_init(|| self.read_block(block)))?;
        }
        let start = self.memory.as_ptr().wrapping_add(range.start);
        // SAFETY: inside the mapping, which lives as long as `self`. All blocks of the range are
        // read, and a block is written only once, before anybody can see it.
        Ok(unsafe { std::slice::from_raw_parts(start, range.len()) })
    }

    /// Fills a block. Called once for each, through its `OnceLock`.
    fn read_block(&self, block: usize) -> Result<(), Unreadable> {
        let start = block * BLOCK_BYTES;
        let length = BLOCK_BYTES.min(self.length() - start);
        let first = self.memory.as_mut_ptr().wrapping_add(start);
        // SAFETY: inside the mapping; nobody else refers to these bytes, because `bytes` hands out
        // a block only after this has returned.
        let bytes = unsafe { std::slice::from_raw_parts_mut(first, length) };
        self.file.read_exact_at(bytes, start as u64).map_err(|_| Unreadable)
    }
}

fn range(offset: u64, size: u64) -> Option<Range<usize>> {
    let end = usize::try_from(offset.checked_add(size)?).ok()?;
    Some(usize::try_from(offset).ok()?..end)
}

impl<'data> ReadRef<'data> for &'data LazyFile<'_> {
    fn len(self) -> Result<u64, ()> {
        Ok(self.length() as u64)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        let range = range(offset, size).ok_or(())?;
        self.bytes(range).map_err(|Unreadable| ())
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        let end = usize::try_from(range.end).map_err(|_| ())?.min(self.length());
        let start = usize::try_from(range.start).map_err(|_| ())?;
        let mut searched = start;
        while searched < end {
            let next = ((searched / BLOCK_BYTES + 1) * BLOCK_BYTES).min(end);
            let piece = self.bytes(searched..next).map_err(|Unreadable| ())?;
            if let Some(at) = memchr::memchr(delimiter, piece) {
                return self.bytes(start..searched + at).map_err(|Unreadable| ());
            }
            searched = next;
        }
        Err(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Some blocks and a piece, each byte telling where it is.
    fn content() -> Vec<u8> {
        (0..BLOCK_BYTES * 3 + 1000).map(|at| (at / 7 % 251) as u8).collect()
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn blocks_read(lazy: &LazyFile<'_>) -> usize {
        lazy.blocks.iter().filter(|block| block.get().is_some()).count()
    }

    #[test]
    fn bytes_are_those_of_the_file_wherever_they_lie() {
        let content = content();
        let file = file(&content);
        let lazy = LazyFile::new(&file).unwrap();

        for (offset, size) in [(0, 4), (BLOCK_BYTES - 2, 4), (5, 2 * BLOCK_BYTES), (0, 0)] {
            let bytes = (&lazy).read_bytes_at(offset as u64, size as u64);
            assert_eq!(bytes, Ok(&content[offset..offset + size]));
        }
        assert_eq!((&lazy).read_bytes_at(0, content.len() as u64), Ok(&*content));
    }

    #[test]
    fn only_blocks_that_are_looked_at_are_read() {
        let file = file(&content());
        let lazy = LazyFile::new(&file).unwrap();
        assert_eq!(blocks_read(&lazy), 0);

        (&lazy).read_bytes_at(BLOCK_BYTES as u64 + 1, 2).unwrap();

        assert_eq!(blocks_read(&lazy), 1);
    }

    #[test]
    fn bytes_behind_the_end_are_an_error() {
        let content = content();
        let file = file(&content);
        let lazy = LazyFile::new(&file).unwrap();
        let end = content.len() as u64;

        assert_eq!((&lazy).read_bytes_at(end, 0), Ok(&[][..]));
        for (offset, size) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (0, u64::MAX)] {
            assert_eq!((&lazy).read_bytes_at(offset, size), Err(()));
        }
    }

    #[test]
    fn empty_file_has_no_bytes() {
        let file = file(b"");
        let lazy = LazyFile::new(&file).unwrap();

        assert_eq!((&lazy).len(), Ok(0));
        assert_eq!((&lazy).read_bytes_at(0, 1), Err(()));
    }

    #[test]
    fn text_is_found_up_to_its_delimiter_across_blocks() {
        let mut content = vec![b'x'; BLOCK_BYTES * 2 + 10];
        content[BLOCK_BYTES * 2 + 5] = 0;
        let file = file(&content);
        let lazy = LazyFile::new(&file).unwrap();

        let text = |from: usize, to: usize| (&lazy).read_bytes_at_until(from as u64..to as u64, 0);

        assert_eq!(text(3, usize::MAX), Ok(&content[3..BLOCK_BYTES * 2 + 5]));
        assert_eq!(text(BLOCK_BYTES * 2 + 5, content.len()), Ok(&[][..]));
        assert_eq!(text(3, BLOCK_BYTES * 2 + 5), Err(()));
        assert_eq!(text(BLOCK_BYTES * 2 + 6, usize::MAX), Err(()));
    }

    #[test]
    fn file_cut_short_while_it_is_read_is_an_error_and_not_a_signal() {
        let content = content();
        let file = file(&content);
        let lazy = LazyFile::new(&file).unwrap();
        (&lazy).read_bytes_at(0, 8).unwrap();

        file.set_len(10).unwrap();

        assert_eq!((&lazy).read_bytes_at(0, 16), Ok(&content[..16]));
        assert_eq!((&lazy).read_bytes_at(BLOCK_BYTES as u64, 1), Err(()));
    }
}
