//! A file for heaptrack's tools, in version 3 of its interpreted format.
//!
//! ```text
//!   s 4 main            strings, numbered from 1
//!   i 1234 1 2 3 3c     an instruction: address, module, then function, file and line of each frame
//!   t 1 0               a node of the tree: instruction, and the node of its caller
//!   a 40 1              allocations of a size at a node
//!   + 0   - 0           one of them came, one is gone
//!   c 1f4   R 5dc       milliseconds since the start, resident pages
//! ```
//!
//! Numbers are hexadecimal. It sees every event, and names what an event is the first to mention.
//! The tree, which heaptrack reads whole as well, and the pairs of node and size are kept.
//!
//! heaptrack knows one process and its heap: mappings are left out, and so are the copies that
//! `fork` makes. What a program held when it ended counts as leaked.

use std::io::{self, Write};
use std::sync::Arc;

use memtrace_common::unwind::End;
use rustc_hash::FxHashMap;

use super::weights::Node;
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Change, Pipeline, Posting, SiteId};
use crate::record::{Origin, Record};
use crate::views::frames::{Frame, Names};
use crate::views::printable::printable;
use crate::views::{caveats, label};

/// The version of heaptrack that wrote this format first, as its header says it.
const HEAPTRACK: u32 = 0x1_0300;
/// The version of the format.
const VERSION: u32 = 3;
/// Bytes of a page on x86-64.
const PAGE_BYTES: u64 = 4096;

/// Writes events as they come.
pub struct Writer<W> {
    out: W,
    begun: bool,
    strings: FxHashMap<Arc<str>, u64>,
    /// By the first frame: all frames of a place are found together, and perhaps cut together. Each
    /// is kept, so that no other gets its address.
    instructions: FxHashMap<*const Frame, (u32, Arc<Frame>)>,
    /// The instructions that stand for callers that are unknown.
    cuts: FxHashMap<u8, u32>,
    instruction_count: u32,
    /// Node of the caller and instruction.
    nodes: FxHashMap<(u32, u32), u32>,
    /// The node of each site, by its number.
    sites: Vec<Option<u32>>,
    /// Node and size.
    allocations: FxHashMap<(u32, u64), u64>,
    milliseconds: u64,
}

impl<W: Write> Writer<W> {
    /// A file of nothing yet.
    pub fn new(out: W) -> Writer<W> {
        Writer {
            out,
            begun: false,
            strings: FxHashMap::default(),
            instructions: FxHashMap::default(),
            cuts: FxHashMap::default(),
            instruction_count: 0,
            nodes: FxHashMap::default(),
            sites: Vec::new(),
            allocations: FxHashMap::default(),
            milliseconds: 0,
        }
    }

    /// Writes what a record says and changed.
    pub fn event(
        &mut self,
        record: &Record,
        postings: &[Posting],
        pipeline: &Pipeline,
        names: &mut Names,
    ) -> io::Result<()> {
        match record {
            Record::Session(session) if !self.begun => {
                writeln!(self.out, "v {HEAPTRACK:x} {VERSION:x}")?;
                if session.origin == Origin::Attached {
                    writeln!(self.out, "A")?;
                }
                // heaptrack shows the memory of the machine, which a trace does not have.
                writeln!(self.out, "I {PAGE_BYTES:x} 0")?;
            }
            Record::Process(process) if !self.begun => {
                self.begun = true;
                let command: Vec<_> = process.command.iter().map(|word| printable(word)).collect();
                writeln!(self.out, "X {}", command.join(" "))?;
            }
            Record::Resident { time: _, pid: _, rss_bytes } => {
                self.time(pipeline)?;
                writeln!(self.out, "R {:x}", rss_bytes / PAGE_BYTES)?;
            }
            _ => {}
        }
        for &Posting { pid: _, site, thread: _, change, blocks, bytes } in postings {
            let sign = match change {
                Change::Acquire | Change::Reclaim => '+',
                Change::Release => '-',
                Change::Inherit
                | Change::Disinherit
                | Change::Abandon
                | Change::Hold
                | Change::LetGo => continue,
            };
            let (api, _) = pipeline.known_call_path(site);
            if !api.acquires_block() || blocks == 0 {
                continue;
            }
            self.time(pipeline)?;
            let node = self.site(site, pipeline, names)?;
            let next = self.allocations.len() as u64;
            let allocation = match self.allocations.get(&(node, bytes)) {
                Some(&known) => known,
                None => {
                    self.allocations.insert((node, bytes), next);
                    writeln!(self.out, "a {bytes:x} {node:x}")?;
                    next
                }
            };
            writeln!(self.out, "{sign} {allocation:x}")?;
        }
        Ok(())
    }

    /// Ends the file with what its numbers lack, in comments.
    pub fn finish(mut self, snapshot: &Snapshot) -> io::Result<W> {
        for caveat in caveats::caveats(snapshot) {
            writeln!(self.out, "# memtrace: {caveat}")?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    fn time(&mut self, pipeline: &Pipeline) -> io::Result<()> {
        let now = pipeline.now().0 / 1_000_000;
        if now > self.milliseconds {
            self.milliseconds = now;
            writeln!(self.out, "c {now:x}")?;
        }
        Ok(())
    }

    fn site(&mut self, site: SiteId, pipeline: &Pipeline, names: &mut Names) -> io::Result<u32> {
        if let Some(&Some(known)) = self.sites.get(site.index()) {
            return Ok(known);
        }
        let mut node = 0;
        match pipeline.known_call_path(site).1 {
            Some(stack) => {
                names.learn_jit_names(&pipeline.jit_names());
                let stack = names.symbolize_once(pipeline.images(), stack);
                if stack.end != End::Root || stack.is_empty() {
                    let cut = self.cut(stack.end)?;
                    node = self.node(node, cut)?;
                }
                for place in stack.places().rev() {
                    let instruction = self.instruction(place)?;
                    node = self.node(node, instruction)?;
                }
            }
            None => {
                let cut = self.cut(End::Missing)?;
                node = self.node(node, cut)?;
            }
        }
        if self.sites.len() <= site.index() {
            self.sites.resize(site.index() + 1, None);
        }
        self.sites[site.index()] = Some(node);
        Ok(node)
    }

    fn node(&mut self, caller: u32, instruction: u32) -> io::Result<u32> {
        if let Some(&known) = self.nodes.get(&(caller, instruction)) {
            return Ok(known);
        }
        // Fits: the pipeline keeps at most 2^25 frames.
        let id = self.nodes.len() as u32 + 1;
        self.nodes.insert((caller, instruction), id);
        writeln!(self.out, "t {instruction:x} {caller:x}")?;
        Ok(id)
    }

    fn cut(&mut self, end: End) -> io::Result<u32> {
        if let Some(&known) = self.cuts.get(&(end as u8)) {
            return Ok(known);
        }
        let name = self.string(&Node::Cut(end).name())?;
        self.instruction_count += 1;
        self.cuts.insert(end as u8, self.instruction_count);
        writeln!(self.out, "i 0 0 {name:x} 0 0")?;
        Ok(self.instruction_count)
    }

    fn instruction(&mut self, place: &[Arc<Frame>]) -> io::Result<u32> {
        let key = Arc::as_ptr(&place[0]);
        if let Some(&(known, _)) = self.instructions.get(&key) {
            return Ok(known);
        }
        let module = self.string(&place[0].function.module)?;
        let mut frames = Vec::with_capacity(place.len());
        for frame in place {
            // Without a name, heaptrack would take all such functions for one.
            let function = self.string(&Node::Frame(frame).name())?;
            let file = match &frame.function.file {
                Some(file) => self.string(file)?,
                None => 0,
            };
            frames.push((function, file, frame.line.unwrap_or(0)));
        }
        let address = label::address(place[0].place);
        write!(self.out, "i {} {module:x}", address.trim_start_matches("0x"))?;
        for (function, file, line) in frames {
            write!(self.out, " {function:x} {file:x} {line:x}")?;
        }
        writeln!(self.out)?;
        self.instruction_count += 1;
        self.instructions.insert(key, (self.instruction_count, Arc::clone(&place[0])));
        Ok(self.instruction_count)
    }

    fn string(&mut self, text: &str) -> io::Result<u64> {
        if let Some(&known) = self.strings.get(text) {
            return Ok(known);
        }
        let id = self.strings.len() as u64 + 1;
        self.strings.insert(text.into(), id);
        writeln!(self.out, "s {:x} {text}", text.len())?;
        Ok(id)
    }
}
