//! Where the JSON report breaks its lines.

use std::io::{self, Write};

use serde_json::ser::Formatter;

/// Breaks lines in the report and in its lists, and nowhere deeper.
#[derive(Default)]
pub(in crate::views) struct OneEntryPerLine {
    depth: usize,
    /// Whether the innermost list or object has no entry yet.
    empty: bool,
}

impl OneEntryPerLine {
    fn begin(&mut self, out: &mut (impl ?Sized + Write), bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn entry(&mut self, out: &mut (impl ?Sized + Write), first: bool) -> io::Result<()> {
        self.empty = false;
        match (first, self.depth) {
            (true, 1..=2) => self.break_line(out),
            (false, 1..=2) => {
                out.write_all(b",")?;
                self.break_line(out)
            }
            (true, _) => Ok(()),
            (false, _) => out.write_all(b", "),
        }
    }

    fn end(&mut self, out: &mut (impl ?Sized + Write), bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.depth < 2 && !self.empty {
            self.break_line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }

    fn break_line(&self, out: &mut (impl ?Sized + Write)) -> io::Result<()> {
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(b"  "))
    }
}

impl Formatter for OneEntryPerLine {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.entry(out, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.entry(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
