//! Stacks with names.
//!
//! In: the stacks of a snapshot and a way to look names up. Out: [`SymbolizedStack`]s, whose
//! frames run from the allocating function outwards to the thread's root, and [`Function`]s, each
//! once. Everything is remembered, so that a live view asks for each address once.
//!
//! ```text
//!   Place ──lookup──> inlined frames, then the physical function     (one to many)
//!   Stack ──────────> frames, minus the allocator's wrappers         (see `attribution`)
//! ```
//!
//! All names are printable when they leave here. It opens no file: the symbolizer does that,
//! behind the [`Lookup`].

use std::collections::BTreeMap;
use std::sync::Arc;

use memtrace_common::addr::FileOffset;
use memtrace_common::unwind::End;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::pipeline::snapshot::{Place, Stack};
use crate::record::Image;
use crate::views::attribution::{self, Candidate};
use crate::views::printable::{printable, printable_str};

/// Finds the names of an address in a file; the reason, if there are none.
pub type Lookup<'a> = dyn FnMut(&Image, FileOffset) -> Result<Vec<NamedFrame>, String> + Send + 'a;

/// What the symbolizer says about one function at an address. Innermost inlined frame first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFrame {
    /// The function, demangled.
    pub function: Option<Arc<str>>,
    /// Its source file.
    pub file: Option<Arc<str>>,
    /// The line of the call.
    pub line: Option<u32>,
    /// Whether the next frame holds its code.
    pub inlined: bool,
}

/// A function, told apart from others by all that is known of it.
///
/// Made once by its [`Names`] and shared: the order is that of the name, then of the place.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function {
    /// Its name, demangled and printable; `None` stands for all nameless code of the module.
    pub name: Option<Arc<str>>,
    /// Path of the file it lies in, or `[vdso]`, `[anonymous]`, `[unknown]`; printable.
    pub module: Arc<str>,
    /// Its source file, printable.
    pub file: Option<Arc<str>>,
    /// Tells it apart quickly.
    pub id: FunctionId,
}

/// Number of a [`Function`] among those of one [`Names`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FunctionId(usize);

/// One frame of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The function.
    pub function: Arc<Function>,
    /// The line in it.
    pub line: Option<u32>,
    /// Whether the next frame holds its code.
    pub inlined: bool,
    /// Where its code is.
    pub place: Place,
}

/// A call path with names.
#[derive(Debug)]
pub struct SymbolizedStack {
    /// From the allocating function outwards; empty if nothing of the stack is known.
    pub frames: Vec<Frame>,
    /// Where the walk ended, and why.
    pub end: End,
    /// The functions of `frames` in order, each once, with the line of its innermost frame.
    pub functions: Vec<(Arc<Function>, Option<u32>)>,
}

/// Modules in which an address has no name, with the first reason; sorted by path.
pub type Misses = BTreeMap<Arc<str>, String>;

/// What makes two functions one: name, module, source file.
type Identity = (Option<Arc<str>>, Arc<str>, Option<Arc<str>>);

/// Names for the stacks of one session.
pub struct Names<'a> {
    lookup: Box<Lookup<'a>>,
    functions: FxHashMap<Identity, Arc<Function>>,
    places: FxHashMap<Place, Arc<[Frame]>>,
    stacks: FxHashMap<Arc<Stack>, Arc<SymbolizedStack>>,
    misses: Misses,
}

impl<'a> Names<'a> {
    /// Names from this source.
    pub fn new(
        lookup: impl FnMut(&Image, FileOffset) -> Result<Vec<NamedFrame>, String> + Send + 'a,
    ) -> Names<'a> {
        Names {
            lookup: Box::new(lookup),
            functions: FxHashMap::default(),
            places: FxHashMap::default(),
            stacks: FxHashMap::default(),
            misses: Misses::new(),
        }
    }

    /// What could not be named so far.
    pub fn misses(&self) -> &Misses {
        &self.misses
    }

    /// The stack with names. `images` is the table of the snapshot that the stack comes from.
    pub fn symbolize(&mut self, images: &[Arc<Image>], stack: &Arc<Stack>) -> Arc<SymbolizedStack> {
        if let Some(known) = self.stacks.get(stack) {
            return Arc::clone(known);
        }
        let mut frames = Vec::with_capacity(stack.frames.len());
        for &place in &stack.frames {
            frames.extend_from_slice(&self.place(images, place));
        }
        let candidates = frames.iter().map(|frame| {
            let Function { name, module, .. } = &*frame.function;
            Candidate { function: name.as_deref(), module }
        });
        if let Some(first) = attribution::allocating_frame(candidates) {
            frames.drain(..first);
        }
        let symbolized = Arc::new(SymbolizedStack {
            functions: each_function_once(&frames),
            frames,
            end: stack.end,
        });
        self.stacks.insert(Arc::clone(stack), Arc::clone(&symbolized));
        symbolized
    }

    fn place(&mut self, images: &[Arc<Image>], place: Place) -> Arc<[Frame]> {
        if let Some(known) = self.places.get(&place) {
            return Arc::clone(known);
        }
        let frames: Arc<[Frame]> = match place {
            Place::InFile { image, offset } => match images.get(image as usize) {
                Some(image) => self.look_up(image, offset, place),
                None => Arc::new([self.nameless("[unknown]".into(), place)]),
            },
            Place::Anonymous { .. } => Arc::new([self.nameless("[anonymous]".into(), place)]),
            Place::Unknown { .. } => Arc::new([self.nameless("[unknown]".into(), place)]),
        };
        self.places.insert(place, Arc::clone(&frames));
        frames
    }

    fn look_up(&mut self, image: &Image, offset: FileOffset, place: Place) -> Arc<[Frame]> {
        let module = module_name(image);
        let named = match (self.lookup)(image, offset) {
            Ok(named) if !named.is_empty() => named,
            Ok(_) => return Arc::new([self.nameless(module, place)]),
            Err(reason) => {
                self.misses.entry(Arc::clone(&module)).or_insert(reason);
                return Arc::new([self.nameless(module, place)]);
            }
        };
        named
            .into_iter()
            .map(|NamedFrame { function, file, line, inlined }| {
                let identity = (function.map(shown), Arc::clone(&module), file.map(shown));
                Frame { function: self.intern(identity), line, inlined, place }
            })
            .collect()
    }

    fn nameless(&mut self, module: Arc<str>, place: Place) -> Frame {
        let function = self.intern((None, module, None));
        Frame { function, line: None, inlined: false, place }
    }

    fn intern(&mut self, identity: Identity) -> Arc<Function> {
        let id = FunctionId(self.functions.len());
        let function = self.functions.entry(identity).or_insert_with_key(|identity| {
            let (name, module, file) = identity.clone();
            Arc::new(Function { name, module, file, id })
        });
        Arc::clone(function)
    }
}

/// How views name what is mapped.
pub fn module_name(image: &Image) -> Arc<str> {
    match image {
        Image::File { path, build_id: _ } => printable(path).into(),
        Image::Vdso => "[vdso]".into(),
        Image::Anonymous => "[anonymous]".into(),
    }
}

/// The last part of a path.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn shown(text: Arc<str>) -> Arc<str> {
    match printable_str(&text) {
        std::borrow::Cow::Borrowed(_) => text,
        std::borrow::Cow::Owned(escaped) => escaped.into(),
    }
}

fn each_function_once(frames: &[Frame]) -> Vec<(Arc<Function>, Option<u32>)> {
    let mut seen = FxHashSet::default();
    frames
        .iter()
        .filter(|frame| seen.insert(frame.function.id))
        .map(|frame| (Arc::clone(&frame.function), frame.line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;

    fn shown_frames(stack: &SymbolizedStack) -> Vec<String> {
        stack
            .frames
            .iter()
            .map(|frame| {
                let name = frame.function.name.as_deref().unwrap_or("??");
                format!("{name}{}", if frame.inlined { " (inlined)" } else { "" })
            })
            .collect()
    }

    #[test]
    fn inlined_frames_come_before_their_function() {
        let snapshot = fixture::snapshot();
        let mut names = fixture::names();

        let stack = names.symbolize(&snapshot.images, &snapshot.stacks[1].stack);

        assert_eq!(shown_frames(&stack), ["cache::Entry::build (inlined)", "cache_fill", "main"]);
    }

    #[test]
    fn wrappers_are_cut_off_the_inner_end() {
        let snapshot = fixture::snapshot();
        let mut names = fixture::names();

        let stack = names.symbolize(&snapshot.images, &snapshot.stacks[2].stack);

        assert_eq!(shown_frames(&stack), ["parse", "parse", "main"]);
        assert_eq!(stack.functions.len(), 2);
    }

    #[test]
    fn reason_for_missing_names_is_kept() {
        let snapshot = fixture::snapshot();
        let mut names = Names::new(|_, _| Err("no such file".to_owned()));

        names.symbolize(&snapshot.images, &snapshot.stacks[0].stack);

        assert_eq!(
            names.misses().iter().map(|(m, r)| (&**m, r.as_str())).collect::<Vec<_>>(),
            [("/srv/app/server", "no such file")]
        );
    }

    #[test]
    fn hostile_names_are_printable() {
        let snapshot = fixture::snapshot();
        let mut names = Names::new(|_, _| {
            Ok(vec![NamedFrame {
                function: Some("f\x1b[2J".into()),
                file: Some("a\u{202e}.c".into()),
                line: Some(1),
                inlined: false,
            }])
        });

        let stack = names.symbolize(&snapshot.images, &snapshot.stacks[0].stack);

        let function = &stack.frames[0].function;
        assert_eq!(function.name.as_deref(), Some("f\\x1b[2J"));
        assert_eq!(function.file.as_deref(), Some("a\\u{202e}.c"));
    }
}
