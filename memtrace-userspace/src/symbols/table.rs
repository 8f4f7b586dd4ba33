//! Which symbol an address belongs to.
//!
//! In: the function symbols of all tables of a file, in any order, overlapping, aliased, nested.
//! Out: one flat list of segments, so that a lookup is one binary search.
//!
//! ```text
//!   symbols     outer |=====================|      free (weak) and cfree (global), same start
//!               inner      |=====|                 |====|
//!               label (size 0)               |·           up to the next symbol
//!   segments    outer |inner |outer          |label|free|—
//! ```
//!
//! A symbol with a size covers exactly that; the one that starts last wins. A symbol without a
//! size covers what no other does, up to the next symbol or the end of its section. Which of
//! several names at one address is shown is decided by [`Candidate::rank`].

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

use memtrace_common::addr::Svma;

/// The most symbols that are taken from one file; beyond, they are counted as left out.
const MAX_SYMBOLS: usize = 4 << 20;

/// How far a symbol is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Binding {
    /// `static` in C.
    Local,
    /// May be replaced at link time.
    Weak,
    /// Exported.
    Global,
}

/// A symbol that stands for code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate<'a> {
    /// Its first byte.
    pub(super) start: Svma,
    /// What the table says; 0 if it does not say.
    pub(super) size_bytes: u64,
    /// One past the last byte of its section.
    pub(super) limit: Svma,
    /// Its visibility.
    pub(super) binding: Binding,
    /// Whether the table calls it a function; assembly often does not.
    pub(super) is_function: bool,
    /// The name as it stands in the file.
    pub(super) name: &'a [u8],
}

impl<'a> Candidate<'a> {
    /// The better name is the greater.
    ///
    /// Functions before labels, exported before local. Among exported names, one without leading
    /// underscores wins over its reserved twin, whatever the binding: libc's public names are
    /// weak aliases of reserved global ones (`mmap` of `__mmap`, `puts` of `_IO_puts`).
    fn rank(&self) -> impl Ord + use<'a> {
        let underscores = self.name.iter().take_while(|byte| **byte == b'_').count();
        let is_mangled = super::demangle::is_mangled(self.name);
        (
            self.is_function,
            self.binding != Binding::Local,
            Reverse(if is_mangled { 0 } else { underscores }),
            self.binding,
            Reverse(self.name.contains(&b'@')),
            Reverse(self.name.len()),
            // Any order will do, as long as it is the same in every run.
            Reverse(self.name),
        )
    }

    fn end(&self) -> u64 {
        self.start.0.saturating_add(self.size_bytes).min(self.limit.0)
    }
}

/// A symbol that covers an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Symbol<'a> {
    /// Its first byte.
    pub(super) start: Svma,
    /// The name as it stands in the file.
    pub(super) name: &'a [u8],
}

/// From `start` up to the start of the next segment, this symbol is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    start: u64,
    symbol: Option<u32>,
}

/// The function symbols of one file.
#[derive(Debug, Default)]
pub(super) struct Table<'a> {
    segments: Vec<Segment>,
    symbols: Vec<Symbol<'a>>,
    left_out: u64,
    /// The segment that was found last.
    last: usize,
}

impl<'a> Table<'a> {
    /// Builds the table.
    pub(super) fn build(candidates: impl Iterator<Item = Candidate<'a>>) -> Table<'a> {
        let mut kept: Vec<Candidate<'a>> = Vec::new();
        let mut left_out: u64 = 0;
        for candidate in candidates {
            if kept.len() < MAX_SYMBOLS {
                kept.push(candidate);
            } else {
                left_out += 1;
            }
        }
        kept.sort_unstable_by(|a, b| match a.start.cmp(&b.start) {
            Ordering::Equal => a.rank().cmp(&b.rank()),
            order @ (Ordering::Less | Ordering::Greater) => order,
        });
        let segments = fill_gaps(&sized_segments(&kept), &kept);
        let symbols = kept.iter().map(|c| Symbol { start: c.start, name: c.name }).collect();
        Table { segments, symbols, left_out, last: 0 }
    }

    /// The symbol that covers `svma`.
    pub(super) fn find(&mut self, svma: Svma) -> Option<Symbol<'a>> {
        // Whoever asks for many addresses asks for neighbours: a search waits for the memory often.
        let covers = |index: usize| {
            self.segments.get(index).is_some_and(|segment| segment.start <= svma.0)
                && self.segments.get(index + 1).is_none_or(|next| svma.0 < next.start)
        };
        let near = [self.last, self.last + 1].into_iter().find(|index| covers(*index));
        self.last = match near {
            Some(index) => index,
            None => {
                let after = self.segments.partition_point(|segment| segment.start <= svma.0);
                after.checked_sub(1)?
            }
        };
        let segment = self.segments.get(self.last)?;
        self.symbols.get(segment.symbol? as usize).copied()
    }

    /// The code of the symbols that `which` knows by any of their names, piece by piece: first
    /// address, one past the last, and the least that it says of those names.
    pub(super) fn code_of<T: Copy + Ord>(
        &self,
        which: impl Fn(&[u8]) -> Option<T>,
    ) -> Vec<(Svma, Svma, T)> {
        let mut meant: BTreeMap<Svma, T> = BTreeMap::new();
        for symbol in &self.symbols {
            if let Some(said) = which(symbol.name) {
                meant
                    .entry(symbol.start)
                    .and_modify(|least| *least = said.min(*least))
                    .or_insert(said);
            }
        }
        // What covers code ends where the next segment begins.
        let pieces = self.segments.array_windows().filter_map(|[segment, next]| {
            let symbol = self.symbols.get(segment.symbol? as usize)?;
            Some((Svma(segment.start), Svma(next.start), *meant.get(&symbol.start)?))
        });
        pieces.collect()
    }

    /// Whether no address has a symbol.
    pub(super) fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// How many symbols did not fit.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Memory used, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.segments.capacity() * size_of::<Segment>()
            + self.symbols.capacity() * size_of::<Symbol<'_>>()
    }
}

/// Index of a candidate; [`MAX_SYMBOLS`] keeps it small.
fn id(index: usize) -> u32 {
    u32::try_from(index).expect("there are at most MAX_SYMBOLS candidates")
}

/// Appends a segment, unless it changes nothing.
fn emit(segments: &mut Vec<Segment>, segment: Segment) {
    if segments.last().is_some_and(|last| last.start == segment.start) {
        segments.pop();
    }
    if segments.last().map_or(segment.symbol.is_some(), |last| last.symbol != segment.symbol) {
        segments.push(segment);
    }
}

/// Segments of the symbols that have a size. `sorted` is ordered by start, best name last.
fn sized_segments(sorted: &[Candidate<'_>]) -> Vec<Segment> {
    let mut segments = Vec::new();
    // (end, symbol) of the symbols that are open, the innermost last.
    let mut open: Vec<(u64, u32)> = Vec::new();
    for (index, candidate) in sorted.iter().enumerate() {
        let (start, end) = (candidate.start.0, candidate.end());
        if candidate.size_bytes == 0 || end <= start {
            continue;
        }
        close_until(&mut open, &mut segments, start);
        open.push((end, id(index)));
        emit(&mut segments, Segment { start, symbol: Some(id(index)) });
    }
    close_until(&mut open, &mut segments, u64::MAX);
    segments
}

/// Closes the open symbols that end at or before `until`, falling back to the ones around them.
fn close_until(open: &mut Vec<(u64, u32)>, segments: &mut Vec<Segment>, until: u64) {
    while let Some(&(end, _)) = open.last() {
        if end > until {
            return;
        }
        while open.last().is_some_and(|outer| outer.0 <= end) {
            open.pop();
        }
        emit(segments, Segment { start: end, symbol: open.last().map(|outer| outer.1) });
    }
}

/// Lets symbols without a size cover what the sized ones leave free.
fn fill_gaps(sized: &[Segment], sorted: &[Candidate<'_>]) -> Vec<Segment> {
    let mut labels = sorted
        .iter()
        .enumerate()
        .filter(|(_, label)| label.size_bytes == 0 && label.start < label.limit)
        .peekable();
    let mut filled = Vec::with_capacity(sized.len());
    let before_first = Segment { start: 0, symbol: None };
    let starts_at_zero = sized.first().is_some_and(|first| first.start == 0);
    let segments = (!starts_at_zero).then_some(&before_first).into_iter().chain(sized);
    let ends = sized.iter().map(|next| next.start).skip(usize::from(starts_at_zero));
    for (segment, end) in segments.zip(ends.chain([u64::MAX])) {
        emit(&mut filled, *segment);
        while let Some((index, label)) = labels.next_if(|(_, label)| label.start.0 < end) {
            let next = labels.peek().map_or(end, |(_, next)| next.start.0.min(end));
            if segment.symbol.is_some() {
                continue;
            }
            emit(&mut filled, Segment { start: label.start.0, symbol: Some(id(index)) });
            if label.limit.0 < next {
                emit(&mut filled, Segment { start: label.limit.0, symbol: None });
            }
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn function(start: u64, size_bytes: u64, name: &'static str) -> Candidate<'static> {
        Candidate {
            start: Svma(start),
            size_bytes,
            limit: Svma(0x1000),
            binding: Binding::Global,
            is_function: true,
            name: name.as_bytes(),
        }
    }

    fn names(candidates: &[Candidate<'static>], addresses: &[u64]) -> Vec<Option<&'static str>> {
        let mut table = Table::build(candidates.iter().copied());
        let name = |symbol: Symbol<'static>| std::str::from_utf8(symbol.name).unwrap();
        addresses.iter().map(|svma| table.find(Svma(*svma)).map(name)).collect()
    }

    #[test]
    fn address_behind_a_sized_symbol_has_no_name() {
        let found = names(&[function(0x10, 0x10, "f")], &[0xf, 0x10, 0x1f, 0x20]);

        assert_eq!(found, [None, Some("f"), Some("f"), None]);
    }

    #[test]
    fn symbol_without_size_reaches_to_the_next() {
        let found = names(&[function(0x10, 0, "a"), function(0x20, 8, "b")], &[0x1f, 0x20, 0x28]);

        assert_eq!(found, [Some("a"), Some("b"), None]);
    }

    #[test]
    fn symbol_without_size_ends_with_its_section() {
        let found = names(&[function(0x10, 0, "a")], &[0xfff, 0x1000]);

        assert_eq!(found, [Some("a"), None]);
    }

    #[test]
    fn label_inside_a_function_does_not_cut_it() {
        let found = names(&[function(0x10, 0x10, "f"), function(0x18, 0, "label")], &[0x18, 0x1f]);

        assert_eq!(found, [Some("f"), Some("f")]);
    }

    #[test]
    fn nested_function_interrupts_the_outer_one() {
        let symbols = [function(0x10, 0x30, "outer"), function(0x20, 0x10, "inner")];

        let found = names(&symbols, &[0x1f, 0x20, 0x2f, 0x30, 0x40]);

        assert_eq!(found, [Some("outer"), Some("inner"), Some("inner"), Some("outer"), None]);
    }

    #[test]
    fn code_of_a_function_is_what_no_other_interrupts_under_any_of_its_names() {
        let symbols =
            [function(0x10, 0x30, "outer"), function(0x10, 0x30, "alias"), function(0x20, 8, "b")];
        let table = Table::build(symbols.into_iter());
        let code = |wanted: &'static [&'static str]| {
            table.code_of(|name| wanted.iter().position(|wanted| wanted.as_bytes() == name))
        };

        let pieces = [(0x10, 0x20), (0x28, 0x40)].map(|(from, to)| (Svma(from), Svma(to), 0));
        assert_eq!(code(&["outer"]), pieces);
        assert_eq!(code(&["alias"]), pieces);
        assert_eq!(code(&["none", "b"]), [(Svma(0x20), Svma(0x28), 1)]);
        assert_eq!(code(&["alias", "outer"]), pieces);
    }

    #[test]
    fn symbol_whose_size_overflows_ends_with_its_section() {
        let found = names(&[function(0x10, u64::MAX, "f")], &[0xfff, 0x1000]);

        assert_eq!(found, [Some("f"), None]);
    }

    #[test]
    fn global_wins_over_weak_and_weak_over_local() {
        let symbol = |binding, name| Candidate { binding, ..function(0x10, 8, name) };
        let symbols =
            [symbol(Binding::Local, "a"), symbol(Binding::Global, "c"), symbol(Binding::Weak, "b")];

        assert_eq!(names(&symbols, &[0x10]), [Some("c")]);
        assert_eq!(names(&[symbols[0], symbols[2]], &[0x10]), [Some("b")]);
    }

    #[test]
    fn public_weak_name_wins_over_reserved_global_name() {
        let weak = Candidate { binding: Binding::Weak, ..function(0x10, 8, "mmap") };

        let found = names(&[weak, function(0x10, 8, "__mmap")], &[0x10]);

        assert_eq!(found, [Some("mmap")]);
    }

    #[test]
    fn function_wins_over_untyped_label() {
        let label = Candidate { is_function: false, ..function(0x10, 8, "a") };
        let local = Candidate { binding: Binding::Local, ..function(0x10, 8, "function") };

        assert_eq!(names(&[label, local], &[0x10]), [Some("function")]);
    }

    #[test]
    fn short_name_without_version_wins() {
        let symbols =
            [function(0x10, 8, "f@V1"), function(0x10, 8, "fgh"), function(0x10, 8, "ab")];

        assert_eq!(names(&symbols, &[0x10]), [Some("ab")]);
    }

    /// The slow twin: looks at every symbol.
    fn find_slowly(candidates: &[Candidate<'static>], svma: u64) -> Option<&'static [u8]> {
        let covers = |c: &&Candidate<'_>| c.size_bytes > 0 && c.start.0 <= svma && svma < c.end();
        let by_rank = |a: &&Candidate<'_>, b: &&Candidate<'_>| {
            a.start.cmp(&b.start).then_with(|| a.rank().cmp(&b.rank()))
        };
        if let Some(sized) = candidates.iter().filter(covers).max_by(by_rank) {
            return Some(sized.name);
        }
        let label = candidates
            .iter()
            .filter(|c| c.size_bytes == 0 && c.start.0 <= svma && c.start < c.limit)
            .max_by(by_rank)?;
        let cut = candidates.iter().any(|c| {
            c.size_bytes > 0 && c.end() > c.start.0 && label.start.0 < c.end() && c.start.0 <= svma
        });
        (svma < label.limit.0 && !cut).then_some(label.name)
    }

    proptest! {
        #[test]
        fn table_agrees_with_its_slow_twin(
            symbols in prop::collection::vec((0..64u64, 0..24u64, 0..80u64, 0..3u8, any::<bool>()), 0..24)
        ) {
            const NAMES: [&str; 24] = [
                "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l",
                "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x",
            ];
            let candidates: Vec<_> = symbols
                .iter()
                .zip(NAMES)
                .map(|(&(start, size_bytes, limit, binding, is_function), name)| Candidate {
                    start: Svma(start),
                    size_bytes,
                    limit: Svma(limit),
                    binding: [Binding::Local, Binding::Weak, Binding::Global][usize::from(binding)],
                    is_function,
                    name: name.as_bytes(),
                })
                .collect();

            let mut table = Table::build(candidates.iter().copied());

            for svma in 0..100 {
                let found = table.find(Svma(svma)).map(|symbol| symbol.name);
                prop_assert_eq!(found, find_slowly(&candidates, svma), "at {}", svma);
            }
        }
    }
}
