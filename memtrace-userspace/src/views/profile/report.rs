//! A JSON report, read back: users keep them as baselines, because they are small and need no
//! symbols any more.
//!
//! It is foreign text: whatever it holds, it gives a profile or an error, and names are made
//! printable again.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use serde::Deserialize;
use serde::de::Error as _;
use thiserror::Error;

use super::{
    Coverage, GrowingPath, Growth, NamedFrame, Path, PlaceId, Profile, Stack, Vocabulary, losses,
};
use crate::pipeline::snapshot::{Totals, Usage};
use crate::record::{Origin, Time};
use crate::views::export::json::VERSION;
use crate::views::findings::Suppressed;
use crate::views::frames::base_name;
use crate::views::printable::printable_str;
use crate::views::quantity;
use crate::views::ranking::Memory;
use crate::views::suppressions::Suppressions;

/// The largest report that is read: it is held in memory.
pub const MAX_REPORT_BYTES: u64 = 1 << 30;

/// The most frames that all its stacks may have together: a place with many frames is written once,
/// and a forged report could name it again and again. A million stacks have some 150 million.
const MAX_FRAMES: usize = 1 << 30;

/// Why a text is no report.
#[derive(Debug, Error)]
pub enum ReportError {
    /// Not the JSON that a report is.
    #[error("not a JSON report; write one with `memtrace report TRACE --format json -o FILE`")]
    Malformed(#[from] serde_json::Error),
    /// JSON, of something else or of another time.
    #[error(
        "expected memtrace-report version {VERSION}, found {format} version {version}; write one \
         with `memtrace report TRACE --format json -o FILE`"
    )]
    OtherFormat {
        /// What it says it is; printable.
        format: String,
        /// Its version.
        version: u64,
    },
}

#[derive(Deserialize)]
struct Head<'t> {
    #[serde(borrow, default)]
    format: Cow<'t, str>,
    #[serde(default)]
    version: u64,
}

#[derive(Deserialize)]
struct Report<'t> {
    #[serde(borrow)]
    target: Target<'t>,
    capture: Capture,
    totals: ReportTotals,
    #[serde(borrow)]
    stacks: Vec<ReportStack<'t>>,
    #[serde(borrow)]
    places: Vec<ReportPlace<'t>>,
    part: Part,
    #[serde(borrow)]
    leaks: Vec<Leak<'t>>,
    #[serde(borrow)]
    leak_detection: LeakDetection<'t>,
    counters: BTreeMap<String, u64>,
    caveats: Vec<String>,
}

#[derive(Deserialize)]
struct Target<'t> {
    pid: Option<u32>,
    #[serde(borrow)]
    exe: Option<Cow<'t, str>>,
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    before_attach: Option<BeforeAttach>,
}

#[derive(Deserialize)]
struct BeforeAttach {
    heap_bytes: u64,
    anonymous_bytes: u64,
}

#[derive(Deserialize)]
struct Capture {
    origin: Option<String>,
    end: Option<String>,
    duration_ns: u64,
    stacks: u64,
    probes: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct ReportTotals {
    #[serde(flatten)]
    heap: ReportUsage,
    peak_live_bytes: u64,
    peak_at_ns: u64,
    temporary_allocations: u64,
    #[serde(default)]
    peak_resident_bytes: u64,
    mapped: ReportUsage,
}

#[derive(Deserialize)]
struct ReportUsage {
    allocations: u64,
    allocated_bytes: u64,
    frees: u64,
    freed_bytes: u64,
    live_blocks: u64,
    live_bytes: u64,
    #[serde(default)]
    inherited_blocks: u64,
    #[serde(default)]
    inherited_bytes: u64,
    /// A total has its peak elsewhere.
    #[serde(default)]
    peak_bytes: u64,
    #[serde(default)]
    temporary_allocations: u64,
}

#[derive(Deserialize)]
struct ReportStack<'t> {
    #[serde(borrow)]
    api: Cow<'t, str>,
    #[serde(borrow)]
    end: Cow<'t, str>,
    #[serde(flatten)]
    usage: ReportUsage,
    /// Indices.
    places: Box<[u32]>,
}

#[derive(Deserialize)]
struct ReportPlace<'t> {
    #[serde(borrow)]
    module: Cow<'t, str>,
    #[serde(borrow)]
    frames: Vec<ReportFrame<'t>>,
}

/// Which part of the session the report shows.
#[derive(Deserialize)]
struct Part {
    from_ns: u64,
    to_ns: u64,
}

#[derive(Deserialize)]
struct Leak<'t> {
    #[serde(borrow)]
    class: Cow<'t, str>,
    is_leak: bool,
    bytes_per_hour: i64,
    bytes_per_hour_plus_minus: i64,
    live_bytes: u64,
    #[serde(borrow)]
    end: Cow<'t, str>,
    /// Indices.
    places: Box<[u32]>,
}

#[derive(Deserialize)]
struct LeakDetection<'t> {
    needed_ns: u64,
    told_from_bytes_per_hour: u64,
    #[serde(borrow)]
    suppressed: Vec<ReportSuppressed<'t>>,
}

#[derive(Deserialize)]
struct ReportSuppressed<'t> {
    #[serde(borrow)]
    pattern: Cow<'t, str>,
    leaks: u64,
    live_bytes: u64,
}

#[derive(Deserialize)]
struct ReportFrame<'t> {
    #[serde(borrow)]
    function: Option<Cow<'t, str>>,
    #[serde(borrow)]
    file: Option<Cow<'t, str>>,
    line: Option<u32>,
}

/// Reads the text of a report; of its leaks, those that are not suppressed.
pub fn read(
    text: &str,
    suppressions: &Suppressions,
    words: &mut Vocabulary,
) -> Result<Profile, ReportError> {
    let Head { format, version } = serde_json::from_str(text)?;
    if format != "memtrace-report" || version != u64::from(VERSION) {
        let format = printable_str(&format).chars().take(40).collect();
        return Err(ReportError::OtherFormat { format, version });
    }
    let report: Report = serde_json::from_str(text)?;
    let Report { target, capture, totals, stacks, places, .. } = report;
    let Report { part, leaks, leak_detection, counters, caveats, .. } = report;
    let exe = target.exe.as_deref().map(printable_str);
    let places = Places::intern(&places, exe.as_deref(), words)?;
    let growth = growth(&part, &leaks, leak_detection, suppressions, &places)?;
    let mut frames = 0;
    let mut listed = Vec::with_capacity(stacks.len());
    for ReportStack { api, end, usage, places: indices } in stacks {
        let path = places.path(&indices)?;
        frames += path.0.iter().map(|place| words.places[place.0 as usize].len()).sum::<usize>();
        if frames > MAX_FRAMES {
            let message = format!("its stacks have more than {MAX_FRAMES} frames");
            return Err(serde_json::Error::custom(message).into());
        }
        listed.push(Stack {
            // An API that this version does not know is some allocator's.
            memory: Api::ALL
                .iter()
                .find(|known| known.name() == api)
                .map_or(Memory::Heap, |&api| Memory::of(api)),
            is_complete: end == End::Root.name(),
            path,
            usage: usage.into(),
        });
    }
    let mut losses = losses(&counters, capture.end.is_some());
    if (listed.len() as u64) < capture.stacks {
        losses.push(format!(
            "the report lists {} of {} stacks: write it without --top",
            quantity::count(listed.len() as u64),
            quantity::count(capture.stacks)
        ));
    }
    Ok(Profile {
        target: target_name(exe.as_deref(), target.pid),
        coverage: Coverage {
            duration: Duration::from_nanos(capture.duration_ns),
            origin: match capture.origin.as_deref() {
                Some("attached") => Some(Origin::Attached),
                Some("launched") => Some(Origin::Launched),
                Some(_) | None => None,
            },
            is_whole_run: capture.origin.as_deref() == Some("launched")
                && capture.end.as_deref() == Some("target_exited"),
            before_attach_bytes: target
                .processes
                .into_iter()
                .filter_map(|process| process.before_attach)
                .map(|before| before.heap_bytes.saturating_add(before.anonymous_bytes))
                .reduce(u64::saturating_add),
            has_allocator: !capture.probes.is_empty(),
            losses,
        },
        caveats: caveats.iter().map(|caveat| printable_str(caveat).into_owned()).collect(),
        totals: Totals {
            heap: Usage {
                peak_bytes: totals.peak_live_bytes,
                temporary_allocations: totals.temporary_allocations,
                ..totals.heap.into()
            },
            peak_live_bytes: totals.peak_live_bytes,
            peak_at: Time(totals.peak_at_ns),
            mapped: totals.mapped.into(),
            temporary_allocations: totals.temporary_allocations,
            peak_resident_bytes: totals.peak_resident_bytes,
        },
        stacks: listed,
        growth,
    })
}

/// What grows.
fn growth(
    part: &Part,
    leaks: &[Leak<'_>],
    detection: LeakDetection<'_>,
    suppressions: &Suppressions,
    places: &Places<'_, '_>,
) -> Result<Growth, serde_json::Error> {
    let LeakDetection { needed_ns, told_from_bytes_per_hour, suppressed } = detection;
    let mut counted: Vec<Suppressed> = suppressions.counts();
    let mut paths = Vec::new();
    for leak in leaks {
        if !leak.is_leak && leak.class != "undetermined" {
            continue;
        }
        let texts = || places.texts(&leak.places);
        if let Some(index) = suppressions.find_in(texts) {
            counted[index].leaks += u64::from(leak.is_leak);
            let bytes = &mut counted[index].live_bytes;
            *bytes = bytes.saturating_add(if leak.is_leak { leak.live_bytes } else { 0 });
            continue;
        }
        paths.push(GrowingPath {
            is_leak: leak.is_leak,
            bytes_per_hour: u64::try_from(leak.bytes_per_hour).unwrap_or(0),
            // The report has both numbers rounded; an interval is never too narrow.
            plus_minus: u64::try_from(leak.bytes_per_hour_plus_minus)
                .unwrap_or(0)
                .saturating_add(1),
            is_complete: leak.end == End::Root.name(),
            path: places.path(&leak.places)?,
        });
    }
    counted.retain(|suppressed| suppressed.leaks > 0);
    let before = suppressed.into_iter().map(|ReportSuppressed { pattern, leaks, live_bytes }| {
        Suppressed { pattern: printable_str(&pattern).into_owned(), leaks, live_bytes }
    });
    Ok(Growth {
        watched: Duration::from_nanos(part.to_ns.saturating_sub(part.from_ns)),
        needed: Duration::from_nanos(needed_ns),
        told_from_bytes_per_hour,
        paths,
        suppressed: before.chain(counted).collect(),
    })
}

fn target_name(exe: Option<&str>, pid: Option<u32>) -> String {
    match (exe, pid) {
        (Some(exe), Some(pid)) => format!("{} (pid {pid})", base_name(exe)),
        (Some(exe), None) => base_name(exe).to_owned(),
        (None, Some(pid)) => format!("pid {pid}"),
        (None, None) => "unknown target".to_owned(),
    }
}

/// The places of a report: what it says of them, and as what they are known here.
struct Places<'r, 't> {
    said: &'r [ReportPlace<'t>],
    known: Vec<PlaceId>,
}

impl<'r, 't> Places<'r, 't> {
    fn intern(
        said: &'r [ReportPlace<'t>],
        exe: Option<&str>,
        words: &mut Vocabulary,
    ) -> Result<Self, serde_json::Error> {
        let known =
            said.iter().map(|place| words.intern_named(exe, place)).collect::<Result<_, _>>()?;
        Ok(Places { said, known })
    }

    fn path(&self, indices: &[u32]) -> Result<Path, serde_json::Error> {
        let known =
            |&index: &u32| self.known.get(index as usize).copied().ok_or_else(|| beyond(index));
        indices.iter().map(known).collect::<Result<_, _>>().map(Path)
    }

    /// All that suppressions look at in a call path.
    fn texts(&self, indices: &[u32]) -> impl Iterator<Item = Option<&str>> {
        let places = indices.iter().filter_map(|index| self.said.get(*index as usize));
        places.flat_map(|ReportPlace { module, frames }| {
            frames.iter().flat_map(|ReportFrame { function, file, line: _ }| {
                [function.as_deref(), Some(&**module), file.as_deref()]
            })
        })
    }
}

fn beyond(index: u32) -> serde_json::Error {
    serde_json::Error::custom(format!("there is no place {index}"))
}

impl Vocabulary {
    fn intern_named(
        &mut self,
        exe: Option<&str>,
        place: &ReportPlace<'_>,
    ) -> Result<PlaceId, serde_json::Error> {
        let ReportPlace { module, frames } = place;
        if frames.is_empty() {
            return Err(serde_json::Error::custom("a place has no frames"));
        }
        let module = printable_str(module);
        let intern = |ReportFrame { function, file, line }: &ReportFrame<'_>| {
            let function = function.as_deref().map(printable_str);
            let file = file.as_deref().map(printable_str);
            let named = NamedFrame {
                function: function.as_deref(),
                module: &module,
                file: file.as_deref(),
                line: *line,
            };
            self.intern(exe, &named)
        };
        let frames = frames.iter().map(intern).collect();
        Ok(self.intern_place(frames))
    }
}

impl From<ReportUsage> for Usage {
    fn from(usage: ReportUsage) -> Usage {
        let ReportUsage {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            live_blocks,
            live_bytes,
            inherited_blocks,
            inherited_bytes,
            peak_bytes,
            temporary_allocations,
        } = usage;
        Usage {
            allocations,
            allocated_bytes,
            frees,
            freed_bytes,
            live_blocks,
            live_bytes,
            inherited_blocks,
            inherited_bytes,
            peak_bytes,
            temporary_allocations,
        }
    }
}
