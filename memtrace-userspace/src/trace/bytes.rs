//! Numbers and texts as bytes, and back.
//!
//! ```text
//!   varint   LEB128: seven bits a byte, low ones first, the top bit set on all but the last
//!   zigzag   0, -1, 1, -2 … as 0, 1, 2, 3 …
//! ```
//!
//! Reading is checked: bytes that end early and numbers beyond 64 bits are [`Damage`].

use super::error::Damage;

/// Appends a varint: 1 to 10 bytes.
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // No row is longer than `format::MAX_ROW_BYTES`, so the length has 32 bits.
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// `to - from` around the circle of 64 bits, small in both directions.
#[inline]
pub(super) fn delta(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    ((difference << 1) ^ (difference >> 63)) as u64
}

/// The `to` of a [`delta`].
#[inline]
pub(super) fn undelta(from: u64, delta: u64) -> u64 {
    from.wrapping_add((delta >> 1) ^ (delta & 1).wrapping_neg())
}

/// A [`delta`] of addresses that are multiples of 8, nearly always: eight times smaller.
///
/// `(difference >> 3) zigzag + (difference & 7) << 61`
#[inline]
pub(super) fn address_delta(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    let words = difference >> 3;
    let zigzag = ((words << 1) ^ (words >> 63)) as u64;
    zigzag | (difference as u64 & 7) << 61
}

/// The `to` of an [`address_delta`].
#[inline]
pub(super) fn undelta_address(from: u64, delta: u64) -> u64 {
    let zigzag = delta & !(7 << 61);
    let words = (zigzag >> 1) ^ (zigzag & 1).wrapping_neg();
    from.wrapping_add(words << 3 | delta >> 61)
}

/// Bytes being read from front to back.
#[derive(Debug)]
pub(super) struct Input {
    what: &'static str,
    bytes: Vec<u8>,
    at: usize,
}

impl Input {
    /// No bytes yet; `what` names them in errors.
    pub(super) fn new(what: &'static str) -> Input {
        Input { what, bytes: Vec::new(), at: 0 }
    }

    /// Starts over with these bytes.
    pub(super) fn refill(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.at = 0;
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Checks that everything was read.
    pub(super) fn expect_end(&self) -> Result<(), Damage> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(Damage::LeftOver { what: self.what }) }
    }

    /// How many of `count` items of at least `size_bytes` can be there: no more than are asked for,
    /// and no more than the bytes that are left can hold.
    pub(super) fn room_for(&self, count: u32, size_bytes: usize) -> usize {
        (count as usize).min((self.bytes.len() - self.at) / size_bytes)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Damage> {
        let byte = *self.bytes.get(self.at).ok_or(Damage::ColumnEnds { what: self.what })?;
        self.at += 1;
        Ok(byte)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Damage> {
        let first = self.byte()?;
        if first < 0x80 { Ok(u64::from(first)) } else { self.long_varint(first) }
    }

    fn long_varint(&mut self, first: u8) -> Result<u64, Damage> {
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte()?;
            // The tenth byte holds the 64th bit and no more.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damage::UnknownValue { what: self.what, found: value })
    }

    /// A varint of 32 bits.
    #[inline]
    pub(super) fn varint_u32(&mut self) -> Result<u32, Damage> {
        let value = self.varint()?;
        u32::try_from(value).map_err(|_| Damage::UnknownValue { what: self.what, found: value })
    }

    /// As many bytes as asked for.
    pub(super) fn take(&mut self, count: usize) -> Result<&[u8], Damage> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(Damage::ColumnEnds { what: self.what })?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// As many bytes as an array holds.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let what = self.what;
        self.take(N)?.try_into().map_err(|_| Damage::ColumnEnds { what })
    }

    /// What [`put_bytes`] wrote.
    pub(super) fn bytes(&mut self) -> Result<Vec<u8>, Damage> {
        let length = u32::from_le_bytes(self.array()?);
        // Beyond what `take` can give on any machine that has more than 32-bit addresses; on
        // others it saturates and `take` refuses it.
        Ok(self.take(usize::try_from(length).unwrap_or(usize::MAX))?.to_vec())
    }

    /// What [`put_bytes`] wrote of a text.
    pub(super) fn text(&mut self) -> Result<String, Damage> {
        String::from_utf8(self.bytes()?).map_err(|_| Damage::NotText { what: self.what })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input(bytes: &[u8]) -> Input {
        let mut input = Input::new("test");
        input.refill(bytes);
        input
    }

    proptest! {
        #[test]
        fn varint_round_trips(value: u64) {
            let mut bytes = Vec::new();

            put_varint(&mut bytes, value);

            let mut input = input(&bytes);
            prop_assert_eq!(input.varint(), Ok(value));
            prop_assert_eq!(input.expect_end(), Ok(()));
        }

        #[test]
        fn deltas_round_trip(from: u64, to: u64) {
            prop_assert_eq!(undelta(from, delta(from, to)), to);
            prop_assert_eq!(undelta_address(from, address_delta(from, to)), to);
        }
    }

    #[test]
    fn small_steps_are_small_numbers() {
        let steps = [delta(10, 10), delta(10, 9), delta(10, 11), address_delta(64, 48)];

        assert_eq!(steps, [0, 1, 2, 3]);
    }

    #[test]
    fn varint_beyond_64_bits_is_damage() {
        let mut ends = input(&[0xff; 9]);
        let mut eleven = input(&[0xff; 11]);
        let mut overflow = input(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]);

        assert_eq!(ends.varint(), Err(Damage::ColumnEnds { what: "test" }));
        assert!(matches!(eleven.varint(), Err(Damage::UnknownValue { .. })));
        assert!(matches!(overflow.varint(), Err(Damage::UnknownValue { .. })));
    }

    #[test]
    fn length_beyond_the_input_is_damage() {
        let mut input = input(&[0xff, 0xff, 0xff, 0xff, 1]);

        assert_eq!(input.bytes(), Err(Damage::ColumnEnds { what: "test" }));
    }
}
