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

use super::{Coverage, NamedFrame, Path, PlaceId, Profile, Stack, Vocabulary, losses};
use crate::pipeline::snapshot::{Totals, Usage};
use crate::record::{Origin, Time};
use crate::views::export::json::VERSION;
use crate::views::frames::base_name;
use crate::views::printable::printable_str;
use crate::views::quantity;
use crate::views::ranking::Memory;

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

#[derive(Deserialize)]
struct ReportFrame<'t> {
    #[serde(borrow)]
    function: Option<Cow<'t, str>>,
    #[serde(borrow)]
    file: Option<Cow<'t, str>>,
    line: Option<u32>,
}

/// Reads the text of a report.
pub fn read(text: &str, words: &mut Vocabulary) -> Result<Profile, ReportError> {
    let Head { format, version } = serde_json::from_str(text)?;
    if format != "memtrace-report" || version != u64::from(VERSION) {
        let format = printable_str(&format).chars().take(40).collect();
        return Err(ReportError::OtherFormat { format, version });
    }
    let Report { target, capture, totals, stacks, places, counters, caveats } =
        serde_json::from_str(text)?;
    let exe = target.exe.as_deref().map(printable_str);
    let places: Vec<PlaceId> = places
        .into_iter()
        .map(|place| words.intern_named(exe.as_deref(), place))
        .collect::<Result<_, _>>()?;
    let mut frames = 0;
    let mut listed = Vec::with_capacity(stacks.len());
    for ReportStack { api, end, usage, places: path } in stacks {
        let place = |&index: &u32| {
            let beyond = || serde_json::Error::custom(format!("there is no place {index}"));
            places.get(index as usize).copied().ok_or_else(beyond)
        };
        let path = Path(path.iter().map(place).collect::<Result<_, _>>()?);
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
        growth: None,
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

impl Vocabulary {
    fn intern_named(
        &mut self,
        exe: Option<&str>,
        place: ReportPlace<'_>,
    ) -> Result<PlaceId, serde_json::Error> {
        let ReportPlace { module, frames } = place;
        if frames.is_empty() {
            return Err(serde_json::Error::custom("a place has no frames"));
        }
        let module = printable_str(&module);
        let intern = |ReportFrame { function, file, line }| {
            let function = function.as_deref().map(printable_str);
            let file = file.as_deref().map(printable_str);
            let named = NamedFrame {
                function: function.as_deref(),
                module: &module,
                file: file.as_deref(),
                line,
            };
            self.intern(exe, &named)
        };
        let frames = frames.into_iter().map(intern).collect();
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
