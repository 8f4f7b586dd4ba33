//! Leaks that the user knows: a file in LeakSanitizer's syntax.
//!
//! ```text
//!   # a comment
//!   leak:*Registry::get*      anything that contains it; `*` stands for any text
//!   leak:^main$               `^` and `$` hold it to the start and the end
//!   leak:libfoo.so            functions, modules and source files are looked at
//! ```

use thiserror::Error;

use crate::views::findings::Suppressed;
use crate::views::frames::{Function, SymbolizedStack};
use crate::views::printable::printable_str;

/// Why a file of suppressions cannot be used.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("line {line}: expected `leak:PATTERN`, found `{found}`")]
pub struct SuppressionError {
    /// The line, counted from 1.
    pub line: usize,
    /// What stands there; printable.
    pub found: String,
}

/// The patterns of a file.
#[derive(Clone, Debug, Default)]
pub struct Suppressions {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// As it was given; printable.
    text: String,
    /// What must come in this order.
    parts: Vec<String>,
    /// Whether the first part must stand at the start, the last one at the end.
    at_start: bool,
    at_end: bool,
}

impl Suppressions {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Suppressions, SuppressionError> {
        let mut patterns = Vec::new();
        for (line, content) in (1..).zip(text.lines().map(str::trim)) {
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            match content.strip_prefix("leak:") {
                Some(pattern) if !pattern.is_empty() => patterns.push(Pattern::new(pattern)),
                Some(_) | None => {
                    let found = printable_str(content).into_owned();
                    return Err(SuppressionError { line, found });
                }
            }
        }
        Ok(Suppressions { patterns })
    }

    /// For each pattern that it hides nothing yet.
    pub(super) fn counts(&self) -> Vec<Suppressed> {
        let none = |pattern: &Pattern| {
            let pattern = pattern.text.clone();
            Suppressed { pattern, leaks: 0, live_bytes: 0 }
        };
        self.patterns.iter().map(none).collect()
    }

    /// The first pattern that fits any frame of a stack.
    pub(super) fn find(&self, stack: &SymbolizedStack) -> Option<usize> {
        self.find_in(|| {
            stack.frames().flat_map(|frame| {
                let Function { name, module, file, id: _ } = &*frame.function;
                [name.as_deref(), Some(&**module), file.as_deref()]
            })
        })
    }

    /// The first pattern that fits any text: the functions, modules and source files of a stack.
    pub(super) fn find_in<'t, T: Iterator<Item = Option<&'t str>>>(
        &self,
        texts: impl Fn() -> T,
    ) -> Option<usize> {
        let fits = |pattern: &Pattern| texts().flatten().any(|text| pattern.fits(text));
        self.patterns.iter().position(fits)
    }
}

impl Pattern {
    fn new(pattern: &str) -> Pattern {
        let (at_start, rest) = match pattern.strip_prefix('^') {
            Some(rest) => (true, rest),
            None => (false, pattern),
        };
        let (at_end, rest) = match rest.strip_suffix('$') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        Pattern {
            text: printable_str(pattern).into_owned(),
            parts: rest.split('*').map(str::to_owned).collect(),
            at_start,
            at_end,
        }
    }

    fn fits(&self, text: &str) -> bool {
        let mut rest = text;
        let last = self.parts.len() - 1;
        for (index, part) in self.parts.iter().enumerate() {
            let (first, last) = (index == 0, index == last);
            if first && self.at_start {
                let Some(after) = rest.strip_prefix(part.as_str()) else { return false };
                rest = after;
                if last && self.at_end && !rest.is_empty() {
                    return false;
                }
            } else if last && self.at_end {
                return rest.ends_with(part.as_str());
            } else {
                let Some(found) = rest.find(part.as_str()) else { return false };
                rest = &rest[found + part.len()..];
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).fits(text)
    }

    #[test]
    fn pattern_is_looked_for_anywhere() {
        assert!(fits("leak", "a_leak_b"));
        assert!(!fits("leak", "lea"));
    }

    #[test]
    fn star_stands_for_any_text() {
        assert!(fits("new*Cache", "operator new for Cache<int>"));
        assert!(fits("*", ""));
        assert!(!fits("Cache*new", "operator new for Cache"));
        assert!(!fits("ab*b", "ab"));
    }

    #[test]
    fn anchors_hold_to_the_ends() {
        assert!(fits("^main$", "main") && !fits("^main$", "domain") && !fits("^main$", "main2"));
        assert!(fits("^ma", "main") && !fits("^in", "main"));
        assert!(fits("in$", "main") && !fits("ma$", "main"));
        assert!(fits("^m*n$", "main") && !fits("^m*m$", "main"));
    }

    #[test]
    fn line_without_a_pattern_is_named() {
        let error = Suppressions::parse("# fine\n\nleak:a\nrace:\x1bb\n").expect_err("line 4");

        assert_eq!(error, SuppressionError { line: 4, found: "race:\\x1bb".to_owned() });
        assert!(Suppressions::parse("leak:").is_err());
    }
}
