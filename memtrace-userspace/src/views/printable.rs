//! Foreign text, made safe to print.
//!
//! Paths, thread names, command lines and symbol names are written by whoever wrote the target.
//! Printed as they are, they could move the cursor, retitle the terminal, or show one name while
//! being another. Every view passes them through [`printable`]; nothing else escapes anything.
//!
//! ```text
//!   "ok\x1b[2J"        ->  ok\x1b[2J      control characters, C0 and C1 and DEL
//!   "a\u{202e}b"       ->  a\u{202e}b     bidirectional overrides, invisible format characters
//!   [0x61, 0xff]       ->  a\xff          bytes that are not UTF-8
//! ```
//!
//! A backslash stays a backslash: the text is for reading, not for turning back into bytes.

use std::borrow::Cow;
use std::fmt::Write;

/// Makes bytes of foreign origin safe to print on one line of a terminal.
pub fn printable(bytes: &[u8]) -> Cow<'_, str> {
    match str::from_utf8(bytes) {
        Ok(text) => printable_str(text),
        Err(_) => Cow::Owned(escape(bytes)),
    }
}

/// [`printable`] for text that is known to be UTF-8.
pub fn printable_str(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_unsafe) {
        Cow::Owned(escape(text.as_bytes()))
    } else {
        Cow::Borrowed(text)
    }
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if !is_unsafe(c) {
                out.push(c);
            } else if u32::from(c) < 0x100 {
                push(&mut out, format_args!("\\x{:02x}", u32::from(c)));
            } else {
                push(&mut out, format_args!("\\u{{{:x}}}", u32::from(c)));
            }
        }
        for byte in chunk.invalid() {
            push(&mut out, format_args!("\\x{byte:02x}"));
        }
    }
    out
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

/// Characters that change how their neighbours are shown, or that cannot be seen at all.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}'                        // soft hyphen
            | '\u{61c}'                     // Arabic letter mark
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'       // zero width, left-to-right and right-to-left marks
            | '\u{2028}'..='\u{202e}'       // line separators, embeddings and overrides
            | '\u{2060}'..='\u{206f}'       // word joiner, isolates, deprecated format characters
            | '\u{fe00}'..='\u{fe0f}'       // variation selectors
            | '\u{feff}'                    // byte order mark
            | '\u{fff9}'..='\u{fffb}'       // interlinear annotation
            | '\u{e0000}'..='\u{e0fff}'     // tags
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_borrowed() {
        assert!(matches!(printable("größe/日本".as_bytes()), Cow::Borrowed("größe/日本")));
    }

    #[test]
    fn terminal_escapes_are_escaped() {
        assert_eq!(printable(b"\x1b]0;owned\x07\r\n\x7f"), "\\x1b]0;owned\\x07\\x0d\\x0a\\x7f");
    }

    #[test]
    fn c1_controls_are_escaped() {
        assert_eq!(printable("\u{9b}2J".as_bytes()), "\\x9b2J");
    }

    #[test]
    fn bidi_overrides_are_escaped() {
        assert_eq!(printable("a\u{202e}b\u{2066}c".as_bytes()), "a\\u{202e}b\\u{2066}c");
    }

    #[test]
    fn invisible_characters_are_escaped() {
        assert_eq!(printable("fo\u{200b}o\u{feff}".as_bytes()), "fo\\u{200b}o\\u{feff}");
    }

    #[test]
    fn invalid_utf8_is_escaped_byte_by_byte() {
        assert_eq!(printable(b"a\xff\xc3(b\xe2\x82"), "a\\xff\\xc3(b\\xe2\\x82");
    }

    #[test]
    fn no_byte_string_survives_with_a_control_character() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                let text = printable(&[first, second]).into_owned();
                assert!(!text.chars().any(is_unsafe), "{first:#x} {second:#x} -> {text:?}");
            }
        }
    }
}
