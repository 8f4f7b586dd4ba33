//! A file for DHAT's viewer, `dh_view.html` of Valgrind, in version 2 of its format.
//!
//! The viewer shows what a snapshot does not hold: the most that each program point ever held, its
//! blocks at the peak, and how long blocks lived. So this sees every event. A point costs the same
//! however often it allocates:
//!
//! ```text
//!   lifetimes   Σ (death − birth) = Σ death − Σ birth            no block need be remembered
//!   at t-gmax   written down before the first change after a peak    as `pipeline::account` does
//! ```
//!
//! A program point is a call path and the function that was called, with wrappers of the allocator
//! cut off. What a program held when it ended is live at t-end, and no longer counts for t-gmax.

use std::io::{self, Write};
use std::sync::Arc;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use rustc_hash::FxHashMap;
use serde::Serialize;

use super::list::List;
use super::weights::Node;
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Change, Pipeline, Posting, SiteId};
use crate::views::frames::{Frame, Names, base_name};
use crate::views::label::address;
use crate::views::summary;

/// Sums up the events of the heap by program point.
pub struct Profile {
    /// The point of each site, by the site's number.
    sites: Vec<Option<usize>>,
    /// By places, innermost first, as indices into `places`: these are fewer than frames.
    by_path: FxHashMap<Box<[u32]>, usize>,
    points: Vec<Point>,
    /// What stands at each place, as indices into `frame_table`.
    places: Vec<Arc<[u32]>>,
    place_ids: FxHashMap<Arc<[u32]>, u32>,
    /// The place that begins with this frame, which is kept so that nothing else comes to lie there.
    begun_by: FxHashMap<*const Frame, (u32, Arc<Frame>)>,
    frame_ids: FxHashMap<String, u32>,
    frame_table: Vec<String>,
    held_bytes: u64,
    peak_bytes: u64,
    peak_ns: u64,
    /// The number of peaks so far.
    epoch: u64,
}

#[derive(Clone, Copy, Default)]
struct Blocks {
    bytes: u64,
    blocks: u64,
}

#[derive(Default)]
struct Point {
    total: Blocks,
    /// Held by running programs.
    held: Blocks,
    /// As held, and what programs held when they ended.
    live: Blocks,
    max: Blocks,
    peak: Blocks,
    /// The number of peaks when `peak` was written down.
    written: u64,
    lifetimes_ns: u64,
}

impl Blocks {
    fn change(&mut self, posting: &Posting) {
        let &Posting { pid: _, site: _, thread: _, change, blocks, bytes } = posting;
        if change.adds() {
            self.bytes = self.bytes.wrapping_add(bytes);
            self.blocks = self.blocks.wrapping_add(blocks);
        } else {
            self.bytes = self.bytes.wrapping_sub(bytes);
            self.blocks = self.blocks.wrapping_sub(blocks);
        }
    }
}

#[derive(Serialize)]
struct File<'p, P> {
    #[serde(rename = "dhatFileVersion")]
    version: u32,
    mode: &'static str,
    verb: &'static str,
    /// Whether lifetimes are known.
    bklt: bool,
    /// Whether accesses are known.
    bkacc: bool,
    tu: &'static str,
    #[serde(rename = "Mtu")]
    mtu: &'static str,
    /// Up to this average lifetime a point is short-lived.
    tuth: u32,
    cmd: String,
    pid: u32,
    te: u64,
    tg: u64,
    pps: P,
    ftbl: &'p [String],
}

#[derive(Serialize)]
struct ProgramPoint {
    tb: u64,
    tbk: u64,
    tl: u64,
    mb: u64,
    mbk: u64,
    gb: u64,
    gbk: u64,
    eb: u64,
    ebk: u64,
    fs: Vec<u32>,
}

impl Default for Profile {
    fn default() -> Profile {
        Profile {
            sites: Vec::new(),
            by_path: FxHashMap::default(),
            points: Vec::new(),
            places: Vec::new(),
            place_ids: FxHashMap::default(),
            begun_by: FxHashMap::default(),
            frame_ids: FxHashMap::default(),
            // The viewer takes the first one for the root.
            frame_table: vec!["[root]".to_owned()],
            held_bytes: 0,
            peak_bytes: 0,
            peak_ns: 0,
            epoch: 0,
        }
    }
}

impl Profile {
    /// Takes in what a record changed.
    pub fn event(&mut self, postings: &[Posting], pipeline: &Pipeline, names: &mut Names) {
        let now_ns = pipeline.now().0;
        for posting in postings {
            let (api, _) = pipeline.known_call_path(posting.site);
            if !api.acquires_block() {
                continue;
            }
            let index = self.point(posting.site, pipeline, names);
            let point = &mut self.points[index];
            point.apply(posting, now_ns, self.epoch);
            let mut held = Blocks { bytes: self.held_bytes, blocks: 0 };
            held.change(posting);
            self.held_bytes = held.bytes;
        }
        if self.held_bytes > self.peak_bytes {
            self.peak_bytes = self.held_bytes;
            self.peak_ns = now_ns;
            self.epoch += 1;
        }
    }

    fn point(&mut self, site: SiteId, pipeline: &Pipeline, names: &mut Names) -> usize {
        if let Some(&Some(known)) = self.sites.get(site.index()) {
            return known;
        }
        let (api, stack) = pipeline.known_call_path(site);
        let mut path = vec![self.place([api_frame(api)])];
        match stack {
            Some(stack) => {
                names.learn_jit_names(&pipeline.jit_names());
                let stack = names.symbolize_once(pipeline.images(), stack);
                path.extend(stack.places().map(|place| self.known_place(place)));
                if stack.end != End::Root {
                    path.push(self.place([Node::Cut(stack.end).name()]));
                }
            }
            None => path.push(self.place([Node::Cut(End::Missing).name()])),
        }
        let points = &mut self.points;
        let point = *self.by_path.entry(path.into()).or_insert_with(|| {
            points.push(Point::default());
            points.len() - 1
        });
        if self.sites.len() <= site.index() {
            self.sites.resize(site.index() + 1, None);
        }
        self.sites[site.index()] = Some(point);
        point
    }

    fn known_place(&mut self, place: &[Arc<Frame>]) -> u32 {
        let first = &place[0];
        if let Some(&(known, _)) = self.begun_by.get(&Arc::as_ptr(first)) {
            return known;
        }
        let id = self.place(place.iter().map(|frame| label(frame)));
        self.begun_by.insert(Arc::as_ptr(first), (id, Arc::clone(first)));
        id
    }

    fn place(&mut self, texts: impl IntoIterator<Item = String>) -> u32 {
        let frames: Arc<[u32]> = texts.into_iter().map(|text| self.frame(text)).collect();
        let places = &mut self.places;
        *self.place_ids.entry(frames).or_insert_with_key(|frames| {
            places.push(Arc::clone(frames));
            // Fits, as frames do.
            places.len() as u32 - 1
        })
    }

    fn frame(&mut self, text: String) -> u32 {
        if let Some(&known) = self.frame_ids.get(&text) {
            return known;
        }
        // Fits: the symbolizer's memory is bounded.
        let id = self.frame_table.len() as u32;
        self.frame_table.push(text.clone());
        self.frame_ids.insert(text, id);
        id
    }

    /// Writes the file.
    pub fn write(&self, mut out: impl Write, snapshot: &Snapshot) -> io::Result<()> {
        let mut points: Vec<(&[u32], &Point)> =
            self.by_path.iter().map(|(path, &point)| (&**path, &self.points[point])).collect();
        points.sort_by_key(|&(path, _)| path);
        let frames = |path: &[u32]| -> Vec<u32> {
            path.iter().flat_map(|&place| &*self.places[place as usize]).copied().collect()
        };
        let file = File {
            version: 2,
            mode: "heap, by memtrace",
            verb: "Allocated",
            bklt: true,
            bkacc: false,
            tu: "µs",
            mtu: "s",
            // Times are kept to 10 µs: what lived for less than ten of these was short-lived.
            tuth: 100,
            cmd: summary::command(snapshot).unwrap_or_else(|| summary::target(snapshot)),
            pid: snapshot.session.as_ref().map_or(0, |session| session.pid.0),
            te: snapshot.now.0 / 1000,
            tg: self.peak_ns / 1000,
            pps: List(|| {
                let epoch = self.epoch;
                let now_ns = snapshot.now.0;
                points.iter().map(move |(path, point)| point.shown(frames(path), epoch, now_ns))
            }),
            ftbl: &self.frame_table,
        };
        serde_json::to_writer(&mut out, &file).map_err(io::Error::from)?;
        out.write_all(b"\n")
    }
}

impl Point {
    fn apply(&mut self, posting: &Posting, now_ns: u64, epoch: u64) {
        let &Posting { pid: _, site: _, thread: _, change, blocks, bytes } = posting;
        if self.written != epoch {
            self.written = epoch;
            self.peak = self.held;
        }
        self.held.change(posting);
        if self.held.bytes > self.max.bytes {
            self.max = self.held;
        }
        let moments = now_ns.wrapping_mul(blocks);
        if change.changes_usage() {
            self.live.change(posting);
            self.lifetimes_ns = match change.adds() {
                true => self.lifetimes_ns.wrapping_sub(moments),
                false => self.lifetimes_ns.wrapping_add(moments),
            };
        }
        if change == Change::Acquire {
            self.total.bytes = self.total.bytes.wrapping_add(bytes);
            self.total.blocks = self.total.blocks.wrapping_add(blocks);
        }
    }

    fn shown(&self, frames: Vec<u32>, epoch: u64, now_ns: u64) -> ProgramPoint {
        let peak = if self.written == epoch { self.peak } else { self.held };
        // What is live has lived until now.
        let live_ns = now_ns.wrapping_mul(self.live.blocks);
        ProgramPoint {
            tb: self.total.bytes,
            tbk: self.total.blocks,
            tl: self.lifetimes_ns.wrapping_add(live_ns) / 1000,
            mb: self.max.bytes,
            mbk: self.max.blocks,
            gb: peak.bytes,
            gbk: peak.blocks,
            eb: self.live.bytes,
            ebk: self.live.blocks,
            fs: frames,
        }
    }
}

fn api_frame(api: Api) -> String {
    format!("0x0: {} (in the allocator)", api.name())
}

/// `0x1234: handle (server.c:60)`, as DHAT writes it.
fn label(frame: &Frame) -> String {
    let function = &frame.function;
    let place = match (&function.file, frame.line) {
        (Some(file), Some(line)) => format!("{}:{line}", base_name(file)),
        (Some(file), None) => base_name(file).to_owned(),
        (None, _) => format!("in {}", function.module),
    };
    let name = function.name.as_deref().unwrap_or("???");
    format!("{}: {name} ({place})", address(frame.place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::ThreadId;
    use crate::record::Pid;

    fn posting(change: Change, bytes: u64) -> Posting {
        Posting {
            pid: Pid(1),
            site: SiteId::default(),
            thread: ThreadId::default(),
            change,
            blocks: 1,
            bytes,
        }
    }

    #[test]
    fn point_knows_its_maximum_and_what_it_held_at_the_peak() {
        let mut point = Point::default();

        point.apply(&posting(Change::Acquire, 100), 1_000_000, 0);
        // The peak, of another point, comes here.
        point.apply(&posting(Change::Acquire, 50), 2_000_000, 1);
        point.apply(&posting(Change::Release, 100), 3_000_000, 1);

        let shown = point.shown(vec![1], 1, 10_000_000);
        assert_eq!((shown.tb, shown.tbk), (150, 2));
        assert_eq!((shown.mb, shown.mbk), (150, 2));
        assert_eq!((shown.gb, shown.gbk), (100, 1));
        assert_eq!((shown.eb, shown.ebk), (50, 1));
        // One block lived for 2 ms, and one from 2 ms to the end.
        assert_eq!(shown.tl, 2_000 + 8_000);
    }

    #[test]
    fn memory_of_a_program_that_ended_is_live_and_not_of_a_later_peak() {
        let mut point = Point::default();

        point.apply(&posting(Change::Acquire, 100), 1_000_000, 0);
        point.apply(&posting(Change::Abandon, 100), 2_000_000, 1);

        let shown = point.shown(vec![1], 2, 3_000_000);
        assert_eq!((shown.gb, shown.eb), (0, 100));
    }

    #[test]
    fn inherited_copy_is_held_and_not_allocated() {
        let mut point = Point::default();

        point.apply(&posting(Change::Inherit, 100), 1_000_000, 0);

        let shown = point.shown(vec![1], 1, 1_000_000);
        assert_eq!((shown.tb, shown.mb, shown.eb), (0, 100, 100));
    }
}
