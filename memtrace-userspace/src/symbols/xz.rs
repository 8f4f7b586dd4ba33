//! Decompression of `.gnu_debugdata`, which is an ELF file in an xz stream.
//!
//! Only the container is read here; LZMA2 itself is lzma-rust2's. Its own container reader would
//! bring a SHA-256 implementation and seven more crates for a checksum that nobody uses here.
//!
//! ```text
//!   stream header 12 | block header 4n | LZMA2 data, padded to 4 | check 0–64 | … | index | footer
//! ```
//!
//! The check behind a block is skipped: what comes out is parsed as foreign data in any case. One
//! filter is supported, LZMA2, which is all that `xz` uses by default and that distributions ship.

use std::io::{self, Read};

use lzma_rust2::Lzma2Reader;
use thiserror::Error;

/// `xz -9` uses 64 MiB; nothing that distributions ship uses more than 8.
const MAX_DICTIONARY_BYTES: u32 = 64 << 20;

/// Why a stream could not be decompressed.
#[derive(Debug, Error)]
pub(super) enum XzError {
    /// It is cut short.
    #[error("the xz stream ends early")]
    Truncated,
    /// It does not begin as an xz stream does.
    #[error("not an xz stream")]
    BadMagic,
    /// A header fails its checksum.
    #[error("the checksum of an xz header is wrong")]
    BadChecksum,
    /// Another filter than LZMA2, or a dictionary beyond [`MAX_DICTIONARY_BYTES`].
    #[error("the xz stream uses a filter or dictionary that is not supported")]
    Unsupported,
    /// The contents are larger than allowed.
    #[error("the contents exceed {limit_bytes} bytes")]
    TooLarge {
        /// What is allowed.
        limit_bytes: usize,
    },
    /// The compressed data is broken.
    #[error("the compressed data is broken")]
    Corrupt(#[source] io::Error),
}

/// Decompresses the blocks of one xz stream.
pub(super) fn decompress(mut input: &[u8], limit_bytes: usize) -> Result<Vec<u8>, XzError> {
    let check_bytes = stream_header(&mut input)?;
    let mut output = Vec::new();
    while *input.first().ok_or(XzError::Truncated)? != 0 {
        let dictionary_bytes = block_header(&mut input)?;
        let before = input.len();
        let mut block = Lzma2Reader::new(input, dictionary_bytes, None);
        let room = limit_bytes - output.len();
        // One more than there is room for tells "full" from "too large".
        (&mut block).take(room as u64 + 1).read_to_end(&mut output).map_err(XzError::Corrupt)?;
        if output.len() > limit_bytes {
            return Err(XzError::TooLarge { limit_bytes });
        }
        input = block.into_inner();
        let padding = (before - input.len()).wrapping_neg() % 4;
        take(&mut input, padding + check_bytes)?;
    }
    Ok(output)
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], XzError> {
    let (head, tail) = input.split_at_checked(len).ok_or(XzError::Truncated)?;
    *input = tail;
    Ok(head)
}

/// Splits off the CRC32 at the end of a header and checks it.
fn checked(header: &[u8]) -> Result<&[u8], XzError> {
    let (body, crc) = header.split_last_chunk::<4>().ok_or(XzError::Truncated)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(XzError::BadChecksum);
    }
    Ok(body)
}

/// Reads the stream header; returns the size of the check behind each block.
fn stream_header(input: &mut &[u8]) -> Result<usize, XzError> {
    let magic = take(input, 6)?;
    if magic != b"\xfd7zXZ\0" {
        return Err(XzError::BadMagic);
    }
    match checked(take(input, 6)?)? {
        [0, 0] => Ok(0),
        // Sizes come in groups of three ids: 4, 8, 16, 32, 64 bytes.
        [0, id @ 1..=15] => Ok(4 << ((id - 1) / 3)),
        _ => Err(XzError::Unsupported),
    }
}

/// Reads a block header; returns the size of the dictionary.
fn block_header(input: &mut &[u8]) -> Result<u32, XzError> {
    let size = (usize::from(*input.first().ok_or(XzError::Truncated)?) + 1) * 4;
    let mut header = checked(take(input, size)?)?;
    let flags = take(&mut header, 2)?[1];
    // One filter, no reserved bits.
    if flags & 0b0011_1111 != 0 {
        return Err(XzError::Unsupported);
    }
    for present in [flags & 0b0100_0000, flags & 0b1000_0000] {
        if present != 0 {
            // The compressed or uncompressed size; the data tells both.
            while take(&mut header, 1)?[0] & 0x80 != 0 {}
        }
    }
    // Filter id LZMA2, one byte of properties.
    let [0x21, 1, properties @ 0..=40] = take(&mut header, 3)? else {
        return Err(XzError::Unsupported);
    };
    let dictionary_bytes = (2 | u64::from(properties & 1)) << (properties / 2 + 11);
    u32::try_from(dictionary_bytes)
        .ok()
        .filter(|bytes| *bytes <= MAX_DICTIONARY_BYTES)
        .ok_or(XzError::Unsupported)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello hello hello\n' | xz -9e`
    #[rustfmt::skip]
    const HELLO: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x04, 0xe6, 0xd6, 0xb4, 0x46, 0x02, 0x00, 0x21, 0x01,
        0x1c, 0x00, 0x00, 0x00, 0x10, 0xcf, 0x58, 0xcc, 0xe0, 0x00, 0x11, 0x00, 0x0c, 0x5d, 0x00, 0x34,
        0x19, 0x49, 0xee, 0x8d, 0xe9, 0x4f, 0x7e, 0x21, 0x21, 0xb0, 0x00, 0x00, 0x1f, 0x01, 0xd9, 0xc8,
        0x87, 0xc1, 0x43, 0xc8, 0x00, 0x01, 0x28, 0x12, 0xc9, 0x6a, 0x62, 0x8e, 0x1f, 0xb6, 0xf3, 0x7d,
        0x01, 0x00, 0x00, 0x00, 0x00, 0x04, 0x59, 0x5a,
    ];

    /// `yes | head -c 3000 | xz --check=crc32 --block-size=1000`
    #[rustfmt::skip]
    const THREE_BLOCKS: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01,
        0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x03, 0xe7, 0x00, 0x0d, 0x5d, 0x00, 0x3c,
        0x82, 0xab, 0xfc, 0x1d, 0xff, 0xf7, 0xff, 0xd1, 0xe2, 0xa8, 0x44, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x89, 0xdf, 0x09, 0xaf, 0x02, 0x00, 0x21, 0x01, 0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3,
        0xe0, 0x03, 0xe7, 0x00, 0x0d, 0x5d, 0x00, 0x3c, 0x82, 0xab, 0xfc, 0x1d, 0xff, 0xf7, 0xff, 0xd1,
        0xe2, 0xa8, 0x44, 0x00, 0x00, 0x00, 0x00, 0x00, 0x89, 0xdf, 0x09, 0xaf, 0x02, 0x00, 0x21, 0x01,
        0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x03, 0xe7, 0x00, 0x0d, 0x5d, 0x00, 0x3c,
        0x82, 0xab, 0xfc, 0x1d, 0xff, 0xf7, 0xff, 0xd1, 0xe2, 0xa8, 0x44, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x89, 0xdf, 0x09, 0xaf, 0x00, 0x03, 0x25, 0xe8, 0x07, 0x25, 0xe8, 0x07, 0x25, 0xe8, 0x07, 0x00,
        0x07, 0x59, 0x86, 0x6a, 0x9b, 0xe3, 0x51, 0x40, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    #[test]
    fn stream_is_decompressed() {
        assert_eq!(decompress(HELLO, 100).unwrap(), b"hello hello hello\n");
    }

    #[test]
    fn blocks_are_joined() {
        assert_eq!(decompress(THREE_BLOCKS, 3000).unwrap(), b"y\n".repeat(1500));
    }

    #[test]
    fn contents_beyond_the_limit_are_refused() {
        let refused = decompress(THREE_BLOCKS, 2999);

        assert!(matches!(refused, Err(XzError::TooLarge { limit_bytes: 2999 })));
    }

    #[test]
    fn garbage_is_not_a_stream() {
        assert!(matches!(decompress(b"garbage", 100), Err(XzError::BadMagic)));
        assert!(matches!(decompress(b"", 100), Err(XzError::Truncated)));
    }

    #[test]
    fn stream_that_is_cut_short_is_refused() {
        // The index and footer, 36 bytes, are not read.
        for end in 0..HELLO.len() - 36 {
            assert!(decompress(&HELLO[..end], 100).is_err(), "{end}");
        }
    }

    #[test]
    fn header_with_a_wrong_checksum_is_refused() {
        let mut stream = HELLO.to_vec();
        stream[16] ^= 1;

        assert!(matches!(decompress(&stream, 100), Err(XzError::BadChecksum)));
    }

    #[test]
    fn damaged_stream_never_panics() {
        for at in 0..HELLO.len() * 8 {
            let mut stream = HELLO.to_vec();
            stream[at / 8] ^= 1 << (at % 8);

            // Either outcome is right; that there is one is what counts.
            let _ = decompress(&stream, 100);
        }
    }
}
