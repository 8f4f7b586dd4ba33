//! Fitting text into columns of a terminal.
//!
//! Widths are in cells, as a terminal counts them: a Chinese character takes two.

use std::borrow::Cow;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// How many cells a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text, cut to `cells` with `…` as its last character if it is wider.
pub fn cut(text: &str, cells: usize) -> Cow<'_, str> {
    if text.width() <= cells {
        return Cow::Borrowed(text);
    }
    let Some(room) = cells.checked_sub(1) else { return Cow::Borrowed("") };
    let (start, _) = split(text, room);
    Cow::Owned(format!("{start}…"))
}

/// [`cut`], then filled with blanks to exactly `cells`.
pub fn fill(text: &str, cells: usize) -> String {
    let text = cut(text, cells);
    let blanks = cells - text.width();
    format!("{text}{}", " ".repeat(blanks))
}

/// Breaks a text into lines of at most `cells`, at blanks where there are any.
///
/// Names of C++ functions have few, so a line is broken anywhere rather than be too wide.
pub fn wrap(text: &str, cells: usize) -> Vec<&str> {
    let cells = cells.max(2);
    let mut lines = Vec::new();
    let mut rest = text;
    while rest.width() > cells {
        let (start, _) = split(rest, cells);
        let end = match start.rfind(' ') {
            Some(blank) if blank > start.len() / 2 => blank + 1,
            _ => start.len(),
        };
        lines.push(rest[..end].trim_end());
        rest = &rest[end..];
    }
    lines.push(rest);
    lines
}

/// The longest start of the text that fits into `cells`, and what is left.
fn split(text: &str, cells: usize) -> (&str, &str) {
    let mut used = 0;
    for (index, c) in text.char_indices() {
        used += c.width().unwrap_or(0);
        if used > cells {
            return text.split_at(index);
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_marks_what_it_cut() {
        assert_eq!(cut("allocate", 8), "allocate");
        assert_eq!(cut("allocate", 5), "allo…");
        assert_eq!(cut("allocate", 1), "…");
        assert_eq!(cut("allocate", 0), "");
    }

    #[test]
    fn wide_characters_never_exceed_the_width() {
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(fill("日本語", 4), "日… ");
    }

    #[test]
    fn wrap_prefers_blanks() {
        assert_eq!(wrap("one two three", 9), ["one two", "three"]);
    }

    #[test]
    fn wrap_breaks_long_words() {
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("日本", 1), ["日", "本"]);
    }
}
