//! A DWARF reader that cannot be made to work without end.
//!
//! gimli checks every offset, but DWARF is a graph: a thousand functions may share one list of a
//! million ranges, and inlined functions may nest a million deep, which addr2line follows by
//! recursion. Both fit in a file of a few megabytes and end in exhausted memory or a blown stack.
//! So every read goes through [`Metered`], which refuses when
//!
//! ```text
//!   steps taken > STEPS + file size / BYTES_PER_EXTRA_STEP     memory grows by 5 bytes per step
//!                                                              in honest files, 80 in others
//!   stack used  > STACK_BYTES      measured from the address of a local variable, whenever a
//!                                  ULEB128 is read: every entry begins with one
//! ```
//!
//! The limits are for one [`Meter`]; whoever owns it decides when to start anew.
//!
//! Measured on 41 MB of DWARF from rustc: 0.6 million steps until the first answer, 11 million
//! when every unit has been asked for, 0.5 million for the dearest lookup.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gimli::{EndianSlice, Error, LittleEndian, Reader, ReaderOffsetId, Result};

/// Read operations per context, enough for all of 60 MB of DWARF or for one unit as large.
const STEPS: u64 = 16 << 20;

/// Setting up a context takes a step for every 64 bytes of the file, before any unit is read.
const BYTES_PER_EXTRA_STEP: u64 = 8;

/// How much stack a parse may use; inlining 200 deep needs about 200 KiB in a debug build.
const STACK_BYTES: usize = 640 << 10;

/// Copying a byte is this much cheaper than a step.
const BYTES_PER_STEP: usize = 16;

/// What a parse has used so far.
///
/// Atomic only so that readers may move between threads; one thread uses it at a time.
#[derive(Debug)]
pub(super) struct Meter {
    steps: AtomicU64,
    limit: u64,
    /// Reads below this stack address are refused.
    stack_floor: AtomicUsize,
}

impl Meter {
    /// A meter for a file of this size.
    pub(super) fn for_file(size_bytes: usize) -> Meter {
        let limit = STEPS + size_bytes as u64 / BYTES_PER_EXTRA_STEP;
        Meter { steps: AtomicU64::new(0), limit, stack_floor: AtomicUsize::new(0) }
    }

    /// Measures the stack from the caller's frame on.
    pub(super) fn start_stack_here(&self) {
        self.stack_floor.store(stack_address().saturating_sub(STACK_BYTES), Ordering::Relaxed);
    }

    /// Gives back all steps, for a new context.
    pub(super) fn refill(&self) {
        self.steps.store(0, Ordering::Relaxed);
    }

    /// Steps taken since the last refill.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether a read was refused for want of steps.
    pub(super) fn is_exhausted(&self) -> bool {
        self.steps() > self.limit
    }

    #[inline]
    fn charge(&self, steps: u64) -> bool {
        // Not `fetch_add`: one thread uses a meter at a time, and a locked instruction is dear.
        let total = self.steps.load(Ordering::Relaxed).saturating_add(steps);
        self.steps.store(total, Ordering::Relaxed);
        total <= self.limit
    }

    #[inline]
    fn has_stack(&self) -> bool {
        stack_address() >= self.stack_floor.load(Ordering::Relaxed)
    }
}

/// The address of something on the stack, near its end.
#[inline]
fn stack_address() -> usize {
    let here = 0_u8;
    std::hint::black_box(&raw const here).addr()
}

/// Bytes of a section, read under a [`Meter`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Metered<'a> {
    bytes: &'a [u8],
    meter: &'a Meter,
}

impl<'a> Metered<'a> {
    pub(super) fn new(bytes: &'a [u8], meter: &'a Meter) -> Metered<'a> {
        Metered { bytes, meter }
    }

    /// The bytes that are left.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    #[inline]
    fn take(&mut self, len: usize, steps: u64) -> Result<&'a [u8]> {
        if !self.meter.charge(steps) {
            return Err(self.refusal());
        }
        let (head, tail) = self.bytes.split_at_checked(len).ok_or_else(|| self.refusal())?;
        self.bytes = tail;
        Ok(head)
    }

    /// Reads a number of a few bytes as gimli does where nothing is metered, for one step.
    #[inline]
    fn take_number<T>(
        &mut self,
        read: impl FnOnce(&mut EndianSlice<'a, LittleEndian>) -> Result<T>,
    ) -> Result<T> {
        if !self.meter.charge(1) {
            return Err(self.refusal());
        }
        let mut bytes = EndianSlice::new(self.bytes, LittleEndian);
        let number = read(&mut bytes)?;
        self.bytes = bytes.slice();
        Ok(number)
    }

    #[cold]
    fn refusal(&self) -> Error {
        Error::UnexpectedEof(self.offset_id())
    }

    /// Charges for looking at all the bytes that are left.
    fn charge_all(&self) -> Result<()> {
        let steps = 1 + (self.bytes.len() / BYTES_PER_STEP) as u64;
        if self.meter.charge(steps) { Ok(()) } else { Err(self.refusal()) }
    }
}

impl Reader for Metered<'_> {
    type Endian = LittleEndian;
    type Offset = usize;

    fn endian(&self) -> LittleEndian {
        LittleEndian
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn empty(&mut self) {
        self.bytes = &[];
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        self.bytes = self.bytes.get(..len).ok_or_else(|| self.refusal())?;
        Ok(())
    }

    fn offset_from(&self, base: &Self) -> usize {
        self.bytes.as_ptr().addr().wrapping_sub(base.bytes.as_ptr().addr())
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId(self.bytes.as_ptr().addr() as u64)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let offset = id.0.checked_sub(self.offset_id().0)?;
        usize::try_from(offset).ok().filter(|offset| *offset <= self.bytes.len())
    }

    fn find(&self, byte: u8) -> Result<usize> {
        let at = memchr::memchr(byte, self.bytes);
        let seen = at.unwrap_or(self.bytes.len());
        if !self.meter.charge(1 + (seen / BYTES_PER_STEP) as u64) {
            return Err(self.refusal());
        }
        at.ok_or_else(|| self.refusal())
    }

    #[inline]
    fn skip(&mut self, len: usize) -> Result<()> {
        self.take(len, 1).map(|_| ())
    }

    #[inline]
    fn split(&mut self, len: usize) -> Result<Self> {
        let bytes = self.take(len, 1)?;
        Ok(Metered { bytes, meter: self.meter })
    }

    fn to_slice(&self) -> Result<Cow<'_, [u8]>> {
        Ok(self.bytes.into())
    }

    fn to_string(&self) -> Result<Cow<'_, str>> {
        self.charge_all()?;
        std::str::from_utf8(self.bytes).map(Cow::from).map_err(|_| Error::BadUtf8)
    }

    fn to_string_lossy(&self) -> Result<Cow<'_, str>> {
        self.charge_all()?;
        Ok(String::from_utf8_lossy(self.bytes))
    }

    #[inline]
    fn read_slice(&mut self, buf: &mut [u8]) -> Result<()> {
        let bytes = self.take(buf.len(), 1)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    #[inline]
    fn read_u8(&mut self) -> Result<u8> {
        let byte = self.take(1, 1)?;
        Ok(byte[0])
    }

    #[inline]
    fn read_null_terminated_slice(&mut self) -> Result<Self> {
        let len = self.find(0)?;
        let (text, rest) = self.bytes.split_at(len);
        self.bytes = &rest[1..];
        Ok(Metered { bytes: text, meter: self.meter })
    }

    // The defaults charge for every byte.
    #[inline]
    fn read_uleb128(&mut self) -> Result<u64> {
        if !self.meter.has_stack() {
            return Err(self.refusal());
        }
        self.take_number(Reader::read_uleb128)
    }

    #[inline]
    fn read_uleb128_u16(&mut self) -> Result<u16> {
        self.take_number(Reader::read_uleb128_u16)
    }

    #[inline]
    fn read_sleb128(&mut self) -> Result<i64> {
        self.take_number(Reader::read_sleb128)
    }

    #[inline]
    fn skip_leb128(&mut self) -> Result<()> {
        let before = self.bytes.len();
        self.take_number(Reader::skip_leb128)?;
        // It may be longer than any number.
        let steps = (before - self.bytes.len()) / BYTES_PER_STEP;
        if steps == 0 || self.meter.charge(steps as u64) { Ok(()) } else { Err(self.refusal()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_past_the_steps_is_refused() {
        let meter = Meter::for_file(0);
        let mut reader = Metered::new(&[1, 2, 3], &meter);
        assert_eq!(reader.read_u8(), Ok(1));

        meter.charge(STEPS);

        assert!(reader.read_u8().is_err());
        assert!(meter.is_exhausted());
    }

    #[test]
    fn refill_allows_reading_again() {
        let meter = Meter::for_file(0);
        meter.charge(STEPS + 1);

        meter.refill();

        assert_eq!(Metered::new(&[7], &meter).read_u8(), Ok(7));
    }

    #[test]
    fn deep_recursion_is_refused() {
        fn nest(mut reader: Metered<'_>, depth: u32) -> u32 {
            let ballast = std::hint::black_box([0_u8; 1024]);
            let deepest =
                if reader.read_uleb128().is_ok() { nest(reader, depth + 1) } else { depth };
            deepest + u32::from(std::hint::black_box(ballast)[0])
        }
        let bytes = vec![0; 1 << 20];
        let meter = Meter::for_file(0);

        meter.start_stack_here();
        let depth = nest(Metered::new(&bytes, &meter), 0);

        assert!((100..=640).contains(&depth), "{depth}");
        assert!(!meter.is_exhausted());
    }

    #[test]
    fn offsets_are_relative_to_the_base() {
        let meter = Meter::for_file(0);
        let base = Metered::new(&[1, 2, 3], &meter);
        let mut reader = base;

        reader.skip(2).unwrap();

        assert_eq!(reader.offset_from(&base), 2);
        assert_eq!(base.lookup_offset_id(reader.offset_id()), Some(2));
        assert_eq!(reader.lookup_offset_id(base.offset_id()), None);
    }

    #[test]
    fn split_beyond_the_end_is_refused() {
        let meter = Meter::for_file(0);

        assert!(Metered::new(&[1], &meter).split(2).is_err());
    }
}
