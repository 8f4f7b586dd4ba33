//! A small session, built by hand, that the tests of all views share.
//!
//! ```text
//!   stack 0  leak_per_request ← handle ← main                          malloc
//!   stack 1  cache::Entry::build (inlined) ← cache_fill ← main         operator new
//!   stack 2  operator new ← parse ← parse ← main                       malloc
//!   stack 3  mmap ← main                                               mmap
//!   stack 4  ?? in plugin.so, cut off                                  realloc
//! ```

mod findings;
mod statistics;

use std::collections::BTreeMap;
use std::sync::Arc;

use memtrace_common::addr::FileOffset;
use memtrace_common::event::Api;
use memtrace_common::unwind::End;

use crate::pipeline::add_usage;
use crate::pipeline::snapshot::{
    Amount, OperationUsage, Phase, Place, ProcessUsage, Scope, Snapshot, Stack, StackUsage,
    ThreadUsage, TimelinePoint, Totals, Usage,
};
use crate::record::{
    BeforeAttach, EndReason, Image, Origin, Pid, Probe, ProbeCost, Session, Tid, Time,
};
use crate::symbols;
use crate::views::frames::{Found, Lookup, Names};
use crate::views::ranking::Ranking;
use crate::views::timelines::{Course, FunctionCourse, Others, ThreadCourse, Timelines};

pub(crate) use self::findings::{lost, lost_of_family};

use self::findings::{leaks, spikes};
use self::statistics::{memory, statistics};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

/// Two phases, the last one begun by a mark.
pub(crate) fn phases() -> Vec<Phase> {
    let start = Phase {
        begins_with: None,
        from: Time(0),
        to: Time(SECOND),
        allocated: Amount::default(),
        freed: Amount::default(),
        live_bytes_before: 0,
        live_bytes_after: 15 * MIB,
        peak_live_bytes: 15 * MIB,
        peak_at: Time(SECOND),
    };
    let load = Phase {
        begins_with: Some("load\x1b".to_owned()),
        from: Time(SECOND),
        to: Time(3 * SECOND),
        live_bytes_before: 15 * MIB,
        live_bytes_after: 14 * MIB,
        peak_live_bytes: 54 * MIB,
        ..start.clone()
    };
    vec![start, load]
}

/// What a function, a thread and all others did in three steps of a second each.
pub(crate) fn timelines(ranking: &Ranking, snapshot: &Snapshot) -> Timelines {
    let course = |live: [u64; 3], allocated: [u64; 3]| Course {
        live_bytes: live.map(|mib| mib * MIB).to_vec(),
        allocated_bytes: allocated.map(|mib| mib * MIB).to_vec(),
        allocations: allocated.map(|mib| mib * 4).to_vec(),
    };
    let of_function = FunctionCourse {
        function: Arc::clone(&ranking.functions[0].function),
        line: Some(41),
        course: course([4, 8, 12], [4, 4, 4]),
    };
    let thread = snapshot.threads[0].clone();
    Timelines {
        start: Time(0),
        ends: vec![Time(SECOND), Time(2 * SECOND), Time(3 * SECOND)],
        all: course([4, 10, 13], [4, 6, 5]),
        functions: vec![of_function],
        other_functions: Others { count: 2, course: course([0, 2, 1], [0, 2, 1]) },
        threads: vec![ThreadCourse { thread, course: course([4, 10, 13], [4, 6, 5]) }],
        other_threads: Others::default(),
    }
}

/// The session's state at its end.
pub(crate) fn snapshot() -> Snapshot {
    let stacks = vec![
        stack(
            End::Root,
            Api::Malloc,
            &[(0, 0x1000), (0, 0x1100), (0, 0x1200)],
            leaked(12 * KIB, KIB),
        ),
        stack(
            End::Root,
            Api::New,
            &[(0, 0x1300), (0, 0x1210)],
            Usage {
                allocations: 256,
                allocated_bytes: 64 * MIB,
                frees: 248,
                freed_bytes: 62 * MIB,
                live_blocks: 8,
                live_bytes: 2 * MIB,
                inherited_blocks: 0,
                inherited_bytes: 0,
                peak_bytes: 48 * MIB,
                temporary_allocations: 200,
            },
        ),
        stack(
            End::Root,
            Api::Malloc,
            &[(2, 0x3000), (0, 0x1400), (0, 0x1410), (0, 0x1220)],
            Usage {
                allocations: 1_234_567,
                allocated_bytes: 48 * MIB,
                frees: 1_234_567,
                freed_bytes: 48 * MIB,
                temporary_allocations: 1_199_800,
                ..Usage::default()
            },
        ),
        stack(End::Root, Api::Mmap, &[(1, 0x2000), (0, 0x1230)], leaked(1, 32 * MIB)),
        stack(End::UnreadableStack, Api::Realloc, &[(3, 0x4000)], leaked(3, 100)),
    ];
    let mut heap = Usage::default();
    stacks.iter().filter(|s| s.api != Api::Mmap).for_each(|s| add_usage(&mut heap, &s.usage));
    let mapped = stacks[3].usage;
    let (spikes, leaks) = (spikes(&stacks), leaks(&stacks));
    let statistics = statistics(&stacks);
    let operations = vec![OperationUsage {
        name: "upload\x1b[2J".into(),
        heap: stacks[1].usage,
        mapped: Usage::default(),
    }];
    Snapshot {
        session: Some(Arc::new(Session {
            tool_version: "0.1.0".to_owned(),
            kernel: "6.18.44".to_owned(),
            started_unix_s: 1_760_000_000,
            pid: Pid(4242),
            origin: Origin::Attached,
        })),
        now: Time(12 * SECOND + 345_000_000),
        end: Some(EndReason::DurationOver),
        events: 2_470_000,
        totals: Totals {
            heap,
            peak_live_bytes: heap.peak_bytes,
            peak_at: Time(4 * SECOND),
            mapped,
            temporary_allocations: 1_200_000,
            peak_resident_bytes: 96 * MIB,
        },
        stacks,
        process_stacks: BTreeMap::new(),
        processes: vec![ProcessUsage {
            pid: Pid(4242),
            parent: None,
            exe: b"/srv/app/server".to_vec(),
            command: vec![b"./server".to_vec(), b"--port=80".to_vec()],
            started: Time(0),
            ended: None,
            heap,
            mapped,
            before_attach: Some(Arc::new(BeforeAttach {
                pid: Pid(4242),
                heap_bytes: 7 * MIB,
                anonymous_bytes: 3 * MIB,
                resident_bytes: 21 * MIB,
            })),
            namespaces: None,
            resident_bytes: Some(90 * MIB),
            memory: Some(Arc::new(memory())),
        }],
        left_out_processes: 0,
        operations,
        threads: vec![
            thread(4242, b"server", heap),
            thread(4243, b"worker\x1b[2J", Usage::default()),
        ],
        timeline: (0..12)
            .map(|second| TimelinePoint {
                time: Time((second + 1) * SECOND),
                live_bytes: (second * 7 % 12) * MIB,
                peak_live_bytes: (second * 7 % 12 + 1) * MIB,
                mapped_bytes: 32 * MIB,
                allocated_bytes: 9 * MIB,
                allocations: 100_000,
                resident_bytes: 90 * MIB,
            })
            .collect(),
        scope: Scope::Run,
        marks: Vec::new(),
        phases: Vec::new(),
        spikes,
        leaks,
        probes: vec![
            probe("malloc", 0xa0a0, ProbeCost::Emulated),
            probe("free", 0xa0f3, ProbeCost::Stepped),
        ],
        images: vec![
            file("/srv/app/server", 1),
            file("/lib/x86_64-linux-gnu/libc.so.6", 2),
            file("/lib/x86_64-linux-gnu/libstdc++.so.6", 3),
            file("/srv/app/plugin.so", 4),
        ],
        jit_names: Arc::default(),
        statistics,
        counters: vec![
            ("failed_allocator_calls".to_owned(), 2),
            ("lost_allocations".to_owned(), 5),
            ("stack_walks".to_owned(), 17),
        ],
    }
}

/// Symbols from a function.
pub(crate) struct FakeSymbols(pub(crate) fn(&Image, FileOffset) -> Found);

impl Lookup for FakeSymbols {
    fn frames(&mut self, image: &Image, offset: FileOffset) -> Found {
        self.0(image, offset)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("symbol_unverified_images", 1)]
    }
}

/// Names for the addresses of [`snapshot`].
pub(crate) fn names() -> Names {
    Names::new(FakeSymbols(|image, offset| {
        let Image::File { path, .. } = image else { return Err("no file".to_owned()) };
        let frame = |function: &str, file: Option<&str>, line, inlined| symbols::Frame {
            function: Some(function.into()),
            file: file.map(Into::into),
            line,
            inlined,
            symbol_start: None,
        };
        let server =
            |function: &str, line| frame(function, Some("src/server.c"), Some(line), false);
        let frames = match (path.as_slice(), offset.0) {
            (b"/srv/app/server", 0x1000) => vec![server("leak_per_request", 41)],
            (b"/srv/app/server", 0x1100) => vec![server("handle", 60)],
            (b"/srv/app/server", 0x1200) => vec![server("main", 90)],
            (b"/srv/app/server", 0x1210) => vec![server("main", 92)],
            (b"/srv/app/server", 0x1220) => vec![server("main", 94)],
            (b"/srv/app/server", 0x1230) => vec![server("main", 88)],
            (b"/srv/app/server", 0x1300) => vec![
                frame("cache::Entry::build", Some("src/cache.hpp"), Some(12), true),
                server("cache_fill", 70),
            ],
            (b"/srv/app/server", 0x1400) => {
                vec![frame("parse", Some("src/parse.c"), Some(15), false)]
            }
            (b"/srv/app/server", 0x1410) => {
                vec![frame("parse", Some("src/parse.c"), Some(33), false)]
            }
            (b"/lib/x86_64-linux-gnu/libc.so.6", 0x2000) => vec![frame("mmap", None, None, false)],
            (b"/lib/x86_64-linux-gnu/libstdc++.so.6", 0x3000) => {
                vec![frame("operator new(unsigned long)", None, None, false)]
            }
            _ => return Err("plugin.so is stripped; install its debug symbols".to_owned()),
        };
        Ok(frames.into())
    }))
}

fn stack(end: End, api: Api, frames: &[(u32, u64)], usage: Usage) -> StackUsage {
    let frames = frames
        .iter()
        .map(|&(image, offset)| Place::InFile { image, offset: FileOffset(offset) })
        .collect();
    StackUsage { stack: Arc::new(Stack { end, frames }), api, usage }
}

/// `blocks` of `size` bytes, none of them released.
fn leaked(blocks: u64, size: u64) -> Usage {
    Usage {
        allocations: blocks,
        allocated_bytes: blocks * size,
        frees: 0,
        freed_bytes: 0,
        live_blocks: blocks,
        live_bytes: blocks * size,
        inherited_blocks: 0,
        inherited_bytes: 0,
        peak_bytes: blocks * size / 2,
        temporary_allocations: 0,
    }
}

fn thread(tid: u32, name: &[u8], heap: Usage) -> ThreadUsage {
    ThreadUsage { pid: Pid(4242), tid: Tid(tid), name: name.to_vec(), heap }
}

fn probe(symbol: &str, offset: u64, cost: ProbeCost) -> Arc<Probe> {
    Arc::new(Probe {
        symbol: symbol.to_owned(),
        module: b"/lib/x86_64-linux-gnu/libc.so.6".to_vec(),
        offset: FileOffset(offset),
        cost,
    })
}

fn file(path: &str, build_id: u8) -> Arc<Image> {
    Arc::new(Image::File { path: path.as_bytes().to_vec(), build_id: vec![build_id; 20] })
}
