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

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use memtrace_common::addr::FileOffset;
use memtrace_common::unwind::End;
use rustc_hash::FxHashMap;

use crate::pipeline::snapshot::{JitNames, Place, Stack};
use crate::record::Image;
use crate::symbols::{self, SymbolError, Symbolizer};
use crate::views::attribution::{self, Candidate};
use crate::views::printable::{printable, printable_str};

/// The frames at an address, innermost first; the reason, if there are none.
pub type Found = Result<Arc<[symbols::Frame]>, String>;

/// Finds the names of an address in a file. The symbolizer is one.
pub trait Lookup: Send {
    /// Looks at a lookup offset in a file.
    fn frames(&mut self, image: &Image, offset: FileOffset) -> Found;

    /// What had to be given up so far, by name; zero values are absent.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}

impl Lookup for Symbolizer {
    fn frames(&mut self, image: &Image, offset: FileOffset) -> Found {
        match self.symbolize(image, offset) {
            Ok(Ok(frames)) => Ok(frames),
            Ok(Err(miss)) => Err(miss.to_string()),
            Err(error @ SymbolError::Unreadable { .. }) => Err(match error.source() {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }),
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        Symbolizer::counters(self)
    }
}

/// What could not be named, and why.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Naming {
    /// Modules with addresses that have no name; sorted by path.
    pub misses: BTreeMap<Arc<str>, Miss>,
    /// What the symbolizer had to give up, by name; zero values are absent.
    pub counters: Vec<(&'static str, u64)>,
}

/// The addresses of a module that have no name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// How many there are.
    pub addresses: u64,
    /// Why the first one has none; printable.
    pub reason: String,
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

impl FunctionId {
    /// From 0 on, without gaps.
    pub(super) fn index(self) -> usize {
        self.0
    }
}

/// One frame of a stack.
///
/// The order is that of the function, then of the place in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
///
/// A compiler makes a hundred thousand of forty frames each, out of a few thousand different ones.
#[derive(Debug)]
pub struct SymbolizedStack {
    /// From the allocating function outwards. A place has five frames where much is inlined, and a
    /// stack thirty places: so stacks share what stands at a place.
    places: Box<[Arc<PlaceFrames>]>,
    /// How many frames of the first place are the allocator's.
    wrappers: usize,
    /// Where the walk ended, and why.
    pub end: End,
    /// A bit for each frame: whether its function comes first there.
    firsts: Box<[u64]>,
}

/// What stands at a place: inlined frames, then the function that they were inlined into.
///
/// In a box, so that a pointer to it is one word.
#[derive(Debug)]
struct PlaceFrames(Box<[Arc<Frame>]>);

impl SymbolizedStack {
    /// The frames from the allocating function outwards; none if nothing of the stack is known.
    /// Equal frames of one [`Names`] are shared.
    pub fn frames(&self) -> impl DoubleEndedIterator<Item = &Arc<Frame>> + Clone {
        self.places().flatten()
    }

    /// The frames at each place, from the allocating function outwards.
    pub fn places(&self) -> impl DoubleEndedIterator<Item = &[Arc<Frame>]> + Clone {
        let wrappers = self.wrappers;
        self.places
            .iter()
            .enumerate()
            .map(move |(index, place)| if index == 0 { &place.0[wrappers..] } else { &place.0[..] })
    }

    /// Whether no frame is known.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The innermost frame of each function, from the allocating one outwards.
    pub fn functions(&self) -> impl Iterator<Item = &Frame> {
        let is_first = |index: usize| self.firsts[index / 64] >> (index % 64) & 1 != 0;
        self.frames().enumerate().filter(move |(index, _)| is_first(*index)).map(|(_, f)| &**f)
    }
}

/// What makes two functions one: name, module, source file.
type Identity = (Option<Arc<str>>, Arc<str>, Option<Arc<str>>);

/// Names for the stacks of one session.
pub struct Names {
    lookup: Box<dyn Lookup>,
    functions: FxHashMap<Identity, Arc<Function>>,
    places: FxHashMap<Place, Arc<PlaceFrames>>,
    /// By the address of the stack, which is kept for that: equal stacks are shared, and to look into
    /// each frame of each for its hash takes longer than all else.
    stacks: FxHashMap<usize, (Arc<Stack>, Arc<SymbolizedStack>)>,
    misses: BTreeMap<Arc<str>, Miss>,
    jit_names: Arc<JitNames>,
    /// How many stacks were named.
    named_stacks: usize,
    /// In which stack, counted from 1, each function was seen last; by its id.
    seen_in: Vec<usize>,
}

impl Names {
    /// Names from this source.
    pub fn new(lookup: impl Lookup + 'static) -> Names {
        Names {
            lookup: Box::new(lookup),
            functions: FxHashMap::default(),
            places: FxHashMap::default(),
            stacks: FxHashMap::default(),
            misses: BTreeMap::new(),
            jit_names: Arc::default(),
            named_stacks: 0,
            seen_in: Vec::new(),
        }
    }

    /// What could not be named so far.
    pub fn naming(&self) -> Naming {
        Naming { misses: self.misses.clone(), counters: self.lookup.counters() }
    }

    /// Takes in the names that a snapshot has for code without a file.
    ///
    /// They come some time after the stacks that go through it, which are then named anew.
    pub fn learn_jit_names(&mut self, jit_names: &Arc<JitNames>) {
        if Arc::ptr_eq(&self.jit_names, jit_names) {
            return;
        }
        let before = std::mem::replace(&mut self.jit_names, Arc::clone(jit_names));
        let is_news = |place: &Place| match *place {
            Place::Anonymous { pid, address } => {
                let key = (pid, address);
                jit_names.contains_key(&key) && !before.contains_key(&key)
            }
            Place::InFile { .. } | Place::Unknown { .. } => false,
        };
        self.places.retain(|place, _| !is_news(place));
        self.stacks.retain(|_, (stack, _)| !stack.frames.iter().any(is_news));
    }

    /// The stack with names. `images` is the table of the snapshot that the stack comes from.
    pub fn symbolize(&mut self, images: &[Arc<Image>], stack: &Arc<Stack>) -> Arc<SymbolizedStack> {
        let address = Arc::as_ptr(stack).addr();
        if let Some((_, known)) = self.stacks.get(&address) {
            return Arc::clone(known);
        }
        let symbolized = Arc::new(self.symbolize_once(images, stack));
        self.stacks.insert(address, (Arc::clone(stack), Arc::clone(&symbolized)));
        symbolized
    }

    /// As [`Names::symbolize`], for a caller that remembers what it makes of the stack.
    pub fn symbolize_once(&mut self, images: &[Arc<Image>], stack: &Stack) -> SymbolizedStack {
        let mut places: Vec<Arc<PlaceFrames>> =
            stack.frames.iter().map(|&place| self.place(images, place)).collect();
        let candidates = places.iter().flat_map(|place| &place.0).map(|frame| {
            let Function { name, module, file, id: _ } = &*frame.function;
            let inlined_from = if frame.inlined { file.as_deref() } else { None };
            Candidate { function: name.as_deref(), module, inlined_from }
        });
        let mut wrappers = attribution::allocating_frame(candidates).unwrap_or(0);
        let mut whole = 0;
        while let Some(PlaceFrames(frames)) = places.get(whole).map(|place| &**place)
            && frames.len() <= wrappers
        {
            wrappers -= frames.len();
            whole += 1;
        }
        places.drain(..whole);
        let (end, firsts) = (stack.end, Box::default());
        let mut stack = SymbolizedStack { places: places.into(), wrappers, end, firsts };
        stack.firsts = self.each_function_once(&stack);
        stack
    }

    fn place(&mut self, images: &[Arc<Image>], place: Place) -> Arc<PlaceFrames> {
        if let Some(known) = self.places.get(&place) {
            return Arc::clone(known);
        }
        let frames: Box<[Arc<Frame>]> = match place {
            Place::InFile { image, offset } => match images.get(image as usize) {
                Some(image) => self.look_up(image, offset, place),
                None => Box::new([self.nameless("[unknown]".into(), place)]),
            },
            Place::Anonymous { pid, address } => {
                let module = module_name(&Image::Anonymous);
                match self.jit_names.get(&(pid, address)) {
                    Some(name) => {
                        let frame = symbols::jit_frame(name);
                        Box::new([self.named(&frame, &module, place)])
                    }
                    None => Box::new([self.nameless(module, place)]),
                }
            }
            Place::Unknown { .. } => Box::new([self.nameless("[unknown]".into(), place)]),
        };
        let frames = Arc::new(PlaceFrames(frames));
        self.places.insert(place, Arc::clone(&frames));
        frames
    }

    fn look_up(&mut self, image: &Image, offset: FileOffset, place: Place) -> Box<[Arc<Frame>]> {
        let module = module_name(image);
        let named = match self.lookup.frames(image, offset) {
            Ok(named) => named,
            Err(reason) => {
                let reason = printable_str(&reason).into_owned();
                let miss = Miss { addresses: 0, reason };
                self.misses.entry(Arc::clone(&module)).or_insert(miss).addresses += 1;
                return Box::new([self.nameless(module, place)]);
            }
        };
        named.iter().map(|frame| self.named(frame, &module, place)).collect()
    }

    fn named(&mut self, frame: &symbols::Frame, module: &Arc<str>, place: Place) -> Arc<Frame> {
        let symbols::Frame { function, file, line, inlined, symbol_start: _ } = frame;
        let identity = (function.as_ref().map(shown), Arc::clone(module), file.as_ref().map(shown));
        let function = self.intern(identity);
        Arc::new(Frame { function, line: *line, inlined: *inlined, place })
    }

    fn nameless(&mut self, module: Arc<str>, place: Place) -> Arc<Frame> {
        let function = self.intern((None, module, None));
        Arc::new(Frame { function, line: None, inlined: false, place })
    }

    /// A bit for each frame of a stack: whether its function comes first there.
    fn each_function_once(&mut self, stack: &SymbolizedStack) -> Box<[u64]> {
        self.seen_in.resize(self.functions.len(), 0);
        self.named_stacks += 1;
        let this = self.named_stacks;
        let mut firsts = vec![0; stack.frames().count().div_ceil(64)];
        for (index, frame) in stack.frames().enumerate() {
            let FunctionId(id) = frame.function.id;
            let is_first = std::mem::replace(&mut self.seen_in[id], this) != this;
            firsts[index / 64] |= u64::from(is_first) << (index % 64);
        }
        firsts.into()
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

fn shown(text: &Arc<str>) -> Arc<str> {
    match printable_str(text) {
        Cow::Borrowed(_) => Arc::clone(text),
        Cow::Owned(escaped) => escaped.into(),
    }
}

#[cfg(test)]
mod tests {
    use memtrace_common::addr::Avma;

    use super::*;
    use crate::record::Pid;
    use crate::views::fixture::{self, FakeSymbols};

    fn shown_frames(stack: &SymbolizedStack) -> Vec<String> {
        stack
            .frames()
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
        assert_eq!(stack.functions().count(), 2);
    }

    #[test]
    fn first_reason_for_missing_names_is_kept() {
        let snapshot = fixture::snapshot();
        let mut names = Names::new(FakeSymbols(|_, offset| Err(format!("nothing at {offset:#x}"))));

        names.symbolize(&snapshot.images, &snapshot.stacks[0].stack);
        names.symbolize(&snapshot.images, &snapshot.stacks[0].stack);

        let miss = Miss { addresses: 3, reason: "nothing at 0x1000".to_owned() };
        assert_eq!(names.naming().misses, BTreeMap::from([("/srv/app/server".into(), miss)]));
    }

    #[test]
    fn code_without_a_file_is_named_when_its_name_comes() {
        let place = Place::Anonymous { pid: Pid(7), address: Avma(0x10) };
        let stack = Arc::new(Stack { end: End::Root, frames: vec![place] });
        let mut names = fixture::names();
        assert_eq!(shown_frames(&names.symbolize(&[], &stack)), ["??"]);

        let jit_names =
            Arc::new([((Pid(7), Avma(0x10)), b"JS:*f\x1b /a.js:3:1"[..].into())].into());
        names.learn_jit_names(&jit_names);

        let stack = names.symbolize(&[], &stack);
        assert_eq!(shown_frames(&stack), ["f\\x1b"]);
        let frame = stack.frames().next().unwrap();
        assert_eq!(frame.function.file.as_deref(), Some("/a.js"));
        assert_eq!((frame.line, stack.functions().count()), (Some(3), 1));
    }

    #[test]
    fn hostile_names_are_printable() {
        let snapshot = fixture::snapshot();
        let mut names = Names::new(FakeSymbols(|_, _| {
            Ok(Arc::new([symbols::Frame {
                function: Some("f\x1b[2J".into()),
                file: Some("a\u{202e}.c".into()),
                ..symbols::Frame::default()
            }]))
        }));

        let stack = names.symbolize(&snapshot.images, &snapshot.stacks[0].stack);

        let function = &stack.frames().next().unwrap().function;
        assert_eq!(function.name.as_deref(), Some("f\\x1b[2J"));
        assert_eq!(function.file.as_deref(), Some("a\\u{202e}.c"));
    }
}
