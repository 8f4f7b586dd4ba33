//! Programs with known truth, hours long, as records: who leaks and who does not.
//!
//! Every scenario says which of its call sites leak. A site that is accused and leaks is a hit; the
//! table of all, and precision and recall, are printed (`cargo test leak_corpus -- --nocapture`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::f64::consts::TAU;

use super::*;
use crate::pipeline::findings::Class;
use crate::pipeline::snapshot::{Place, Stack};

const SECOND: u64 = 1_000_000_000;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// How long a scenario runs unless it is about a short session.
const HOURS_2: u64 = 7200;

/// A process at work: every call is a record for the pipeline.
struct Sim {
    pipeline: Pipeline,
    now: u64,
    tid: u32,
    next_ptr: u64,
    random: u64,
}

impl Sim {
    fn new() -> Sim {
        let mut pipeline = Pipeline::new(Limits::default());
        pipeline.apply(&session(MAIN));
        pipeline.apply(&process(MAIN));
        pipeline.apply(&thread(MAIN, MAIN));
        for site in 1..10 {
            pipeline.apply(&stack(site, site));
        }
        Sim { pipeline, now: 0, tid: MAIN, next_ptr: 1 << 32, random: 0x1234_5678_9abc_def1 }
    }

    /// A number below `limit`; the same in every run.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn alloc(&mut self, site: u64, size: u64) -> u64 {
        let ptr = self.next_ptr;
        self.next_ptr += size.next_multiple_of(4096);
        self.pipeline.apply(&alloc(self.now, self.tid, ptr, size, site));
        ptr
    }

    fn free(&mut self, ptr: u64) {
        self.pipeline.apply(&free(self.now, self.tid, ptr));
    }

    fn realloc(&mut self, site: u64, old: u64, size: u64) -> u64 {
        let ptr = self.next_ptr;
        self.next_ptr += size.next_multiple_of(4096);
        self.pipeline.apply(&retire(self.now, self.tid, old));
        self.pipeline.apply(&realloc(self.now, self.tid, ptr, size, site));
        ptr
    }

    fn map(&mut self, site: u64, pages: u64) -> u64 {
        let start = self.next_ptr / 4096 + 1;
        self.next_ptr = (start + pages + 1) * 4096;
        self.pipeline.apply(&map(self.now, self.tid, start, pages, MapKind::Anonymous, site));
        start
    }

    fn unmap(&mut self, start: u64, pages: u64) {
        self.pipeline.apply(&unmap(self.now, self.tid, start, pages));
    }

    /// Calls `work` so many times a second for some seconds, with the number of the call.
    fn run(&mut self, seconds: u64, per_second: u64, mut work: impl FnMut(&mut Sim, u64)) {
        let start = self.now;
        for call in 0..seconds * per_second {
            self.now = start + call * SECOND / per_second;
            work(self, call);
        }
        self.now = start + seconds * SECOND;
        self.pipeline.apply(&Record::Tick { time: Time(self.now) });
    }

    /// The verdicts by site.
    fn verdicts(&mut self) -> BTreeMap<u64, Class> {
        let snapshot = self.pipeline.snapshot();
        let site = |stack: &Stack| match stack.frames.first() {
            Some(Place::Unknown { address, .. }) => address.0,
            other => panic!("{other:?}"),
        };
        snapshot.leaks.verdicts.iter().map(|v| (site(&v.stack), v.class)).collect()
    }
}

/// A name, the sites that leak with their class if it matters, and the program.
type Scenario = (&'static str, &'static [(u64, Option<Class>)], fn(&mut Sim));

const LINEAR: Option<Class> = Some(Class::LinearGrowth);
const LISTENER: Option<Class> = Some(Class::ListenerLeak);
const BUFFER: Option<Class> = Some(Class::BufferLeak);

#[rustfmt::skip]
const SCENARIOS: &[Scenario] = &[
    // Leaks.
    ("listeners", &[(1, LISTENER)], |sim| sim.run(HOURS_2, 20, |sim, _| {
        sim.alloc(1, 96);
    })),
    ("sessions of all sizes", &[(1, LINEAR)], |sim| sim.run(HOURS_2, 5, |sim, _| {
        let size = 500 + sim.below(3000);
        sim.alloc(1, size);
    })),
    ("1 of 10,000 under churn", &[(1, BUFFER)], |sim| {
        let mut live = VecDeque::new();
        sim.run(HOURS_2, 100, |sim, call| {
            let ptr = sim.alloc(1, 240 * KIB);
            if !call.is_multiple_of(10_000) {
                live.push_back(ptr);
            }
            let most = 20 + sim.below(200) as usize;
            while live.len() > most {
                live.pop_front().into_iter().for_each(|ptr| sim.free(ptr));
            }
        });
    }),
    ("one thread of four", &[(1, LINEAR)], |sim| {
        (0..4).for_each(|n| sim.pipeline.apply(&thread(MAIN, 300 + n)));
        sim.run(HOURS_2, 20, |sim, call| {
            sim.tid = 300 + (call % 4) as u32;
            let size = 400 + sim.below(400);
            let ptr = sim.alloc(1, size);
            if !call.is_multiple_of(4) {
                sim.free(ptr);
            }
        });
    }),
    ("realloc that only grows", &[(1, BUFFER)], |sim| {
        let mut ptr = sim.alloc(1, 16 * KIB);
        sim.run(HOURS_2, 1, |sim, call| ptr = sim.realloc(1, ptr, (call + 2) * 16 * KIB));
    }),
    ("buffers, two minutes apart", &[(1, BUFFER)], |sim| sim.run(HOURS_2, 1, |sim, call| {
        if call.is_multiple_of(120) {
            sim.alloc(1, MIB);
        }
    })),
    ("objects with a buffer each", &[(1, LINEAR), (2, LINEAR)], |sim| {
        sim.run(HOURS_2, 1, |sim, _| {
            let size = 2 * KIB + sim.below(KIB);
            sim.alloc(1, size);
            sim.alloc(2, 80 * KIB);
        });
    }),
    ("mappings kept", &[(1, BUFFER)], |sim| sim.run(HOURS_2, 1, |sim, call| {
        if call.is_multiple_of(30) {
            sim.map(1, 64);
        }
    })),
    ("unbounded cache", &[(1, None)], |sim| sim.run(HOURS_2, 4, |sim, _| {
        let size = 200 + sim.below(8 * KIB);
        sim.alloc(1, size);
    })),
    ("cache that evicts too little", &[(1, None)], |sim| {
        let mut cache = Vec::new();
        sim.run(HOURS_2, 10, |sim, call| {
            cache.push(sim.alloc(1, 2 * KIB));
            if call.is_multiple_of(3) {
                let victim = sim.below(cache.len() as u64) as usize;
                let ptr = cache.swap_remove(victim);
                sim.free(ptr);
            }
        });
    }),
    ("leak after a warm-up of its site", &[(1, None)], |sim| {
        sim.run(300, 20, |sim, _| { sim.alloc(1, 8 * KIB); });
        sim.run(HOURS_2 - 300, 2, |sim, _| { sim.alloc(1, 4 * KIB); });
    }),
    ("leak that begins late", &[(1, None)], |sim| {
        sim.run(HOURS_2 / 3, 1, |_, _| {});
        sim.run(HOURS_2 * 2 / 3, 5, |sim, _| { sim.alloc(1, KIB); });
    }),
    ("bursts every ten minutes", &[(1, None)], |sim| sim.run(HOURS_2, 1, |sim, call| {
        if call % 600 == 300 {
            (0..300).for_each(|_| { sim.alloc(1, 10 * KIB); });
        }
    })),
    ("leak under changing load", &[(1, None)], |sim| sim.run(HOURS_2, 10, |sim, call| {
        let load = 500.0 + 400.0 * (call as f64 / 72_000.0 * 4.0 * TAU).sin();
        if (sim.below(1000) as f64) < load {
            sim.alloc(1, KIB);
        }
    })),
    ("error path, 4% of requests", &[(1, LINEAR)], |sim| sim.run(HOURS_2, 12, |sim, _| {
        let size = 2 * KIB + sim.below(4 * KIB);
        let ptr = sim.alloc(1, size);
        if sim.below(25) > 0 {
            sim.free(ptr);
        }
    })),
    ("leak beside a pool of its site", &[(1, None)], |sim| {
        (0..5000).for_each(|_| { sim.alloc(1, 4 * KIB); });
        sim.run(HOURS_2, 2, |sim, _| { sim.alloc(1, 2 * KIB); });
    }),
    ("leak beside a sawtooth", &[(1, LISTENER)], |sim| {
        let mut log = Vec::new();
        sim.run(HOURS_2, 20, |sim, call| {
            sim.alloc(1, 128);
            log.push(sim.alloc(2, 4 * KIB));
            if call % 24_000 == 23_999 {
                log.drain(..).for_each(|ptr| sim.free(ptr));
            }
        });
    }),
    ("strings of 64 bytes", &[(1, LISTENER)], |sim| sim.run(HOURS_2, 30, |sim, _| {
        sim.alloc(1, 64);
    })),
    ("leak that accelerates", &[(1, None)], |sim| sim.run(HOURS_2, 10, |sim, call| {
        if sim.below(72_000) < call {
            sim.alloc(1, KIB);
        }
    })),
    ("two leaks in one program", &[(1, None), (2, None)], |sim| sim.run(HOURS_2, 10, |sim, call| {
        sim.alloc(1, 256);
        if call.is_multiple_of(100) {
            sim.alloc(2, 96 * KIB);
        }
    })),
    ("leak beside a full cache", &[(2, None)], |sim| {
        let mut cache = VecDeque::new();
        sim.run(HOURS_2, 10, |sim, call| {
            cache.push_back(sim.alloc(1, 8 * KIB));
            if cache.len() > 4000 {
                cache.pop_front().into_iter().for_each(|ptr| sim.free(ptr));
            }
            if call.is_multiple_of(5) {
                sim.alloc(2, 2 * KIB);
            }
        });
    }),
    ("holes that are never used again", &[(1, Some(Class::Fragmentation))], |sim| {
        let keep: Vec<u64> = (0..100).map(|_| sim.alloc(2, KIB)).collect();
        let mut end = 1 << 20;
        sim.run(HOURS_2, 1, |sim, call| {
            if call.is_multiple_of(10) {
                sim.pipeline.apply(&move_break(sim.now, MAIN, end, end + 132 * KIB, 1));
                end += 132 * KIB;
            }
            let ptr = sim.alloc(2, KIB);
            sim.free(ptr);
        });
        drop(keep);
    }),
    // Healthy.
    ("requests that free all", &[], |sim| sim.run(HOURS_2, 10, |sim, _| {
        let size = 10 * KIB + sim.below(KIB);
        let ptr = sim.alloc(1, size);
        sim.free(ptr);
    })),
    ("first in, first out", &[], |sim| fifo(sim, 6_000)),
    ("first in, first out, most of the time to fill", &[], |sim| fifo(sim, 40_000)),
    ("cache that evicts at random", &[], |sim| {
        let mut cache = Vec::new();
        sim.run(HOURS_2, 10, |sim, _| {
            let size = KIB + sim.below(8 * KIB);
            cache.push(sim.alloc(1, size));
            if cache.len() > 5_000 {
                let victim = sim.below(cache.len() as u64) as usize;
                let ptr = cache.swap_remove(victim);
                sim.free(ptr);
            }
        });
    }),
    ("sessions with ten minutes to live", &[], |sim| sessions(sim, 600)),
    ("sessions with half an hour to live", &[], |sim| sessions(sim, 1800)),
    ("arena freed at the end of each request", &[], |sim| {
        let mut arena = Vec::new();
        sim.run(HOURS_2, 20, |sim, call| {
            arena.push(sim.alloc(1, 4 * KIB));
            if call % 200 == 199 {
                arena.drain(..).for_each(|ptr| sim.free(ptr));
            }
        });
    }),
    ("log rotated every twenty minutes", &[], |sim| sawtooth(sim, 1200, 0)),
    ("log rotated every fifty minutes", &[], |sim| sawtooth(sim, 3000, 0)),
    ("sawtooth with a floor", &[], |sim| sawtooth(sim, 1500, 2_000)),
    ("warm-up, then flat", &[], |sim| {
        sim.run(300, 20, |sim, _| { sim.alloc(1, 8 * KIB); });
        sim.run(HOURS_2 - 300, 1, |_, _| {});
    }),
    ("long warm-up, then flat", &[], |sim| {
        sim.run(HOURS_2 * 6 / 10, 5, |sim, _| { sim.alloc(1, 8 * KIB); });
        sim.run(HOURS_2 * 4 / 10, 1, |_, _| {});
    }),
    ("table filled as keys come", &[], |sim| {
        let mut seen = vec![false; 3000];
        sim.run(HOURS_2, 4, |sim, _| {
            let key = sim.below(3000) as usize;
            if !std::mem::replace(&mut seen[key], true) {
                sim.alloc(1, 16 * KIB);
            }
        });
    }),
    ("hash table that doubles", &[], |sim| {
        let mut size = 64 * KIB;
        let mut ptr = sim.alloc(1, size);
        sim.run(HOURS_2, 1, |sim, call| {
            if call * 64 > size && size < 64 * MIB && call < 3000 {
                size *= 2;
                ptr = sim.realloc(1, ptr, size);
            }
        });
    }),
    ("pool of connections that breathes", &[], |sim| {
        let mut pool = VecDeque::new();
        sim.run(HOURS_2, 10, |sim, call| {
            let wanted = 500.0 + 400.0 * (call as f64 / 72_000.0 * 6.0 * TAU).sin();
            while (pool.len() as f64) < wanted {
                pool.push_back(sim.alloc(1, 64 * KIB));
            }
            while (pool.len() as f64) > wanted {
                pool.pop_front().into_iter().for_each(|ptr| sim.free(ptr));
            }
        });
    }),
    ("double buffer", &[], |sim| {
        let mut buffers = [sim.alloc(1, 32 * MIB), sim.alloc(1, 32 * MIB)];
        sim.run(HOURS_2, 1, |sim, call| {
            let index = (call % 2) as usize;
            sim.free(buffers[index]);
            buffers[index] = sim.alloc(1, 32 * MIB);
        });
    }),
    ("ring of 1000 entries", &[], |sim| fifo(sim, 1_000)),
    ("configuration read at the start", &[], |sim| {
        (0..10_000).for_each(|_| { sim.alloc(1, 4 * KIB); });
        sim.run(HOURS_2, 1, |_, _| {});
    }),
    ("batches that end", &[], |sim| {
        for _ in 0..4 {
            let mut batch = Vec::new();
            sim.run(1500, 5, |sim, _| batch.push(sim.alloc(1, 16 * KIB)));
            batch.drain(..).for_each(|ptr| sim.free(ptr));
            sim.run(300, 1, |_, _| {});
        }
    }),
    ("growth below what matters", &[], |sim| sim.run(HOURS_2, 1, |sim, _| {
        sim.alloc(1, 512);
    })),
    ("load of day and night", &[], |sim| {
        let mut live = VecDeque::new();
        sim.run(HOURS_2, 20, |sim, call| {
            live.push_back((sim.now, sim.alloc(1, 16 * KIB)));
            let ttl = 60.0 + 50.0 * (call as f64 / 144_000.0 * 3.0 * TAU).sin();
            while live.front().is_some_and(|(born, _)| (sim.now - born) as f64 > ttl * 1e9) {
                live.pop_front().into_iter().for_each(|(_, ptr)| sim.free(ptr));
            }
        });
    }),
    ("mappings that are used again", &[], |sim| {
        let mut pool = VecDeque::new();
        sim.run(HOURS_2, 2, |sim, _| {
            pool.push_back(sim.map(1, 256));
            if pool.len() > 40 {
                pool.pop_front().into_iter().for_each(|start| sim.unmap(start, 256));
            }
        });
    }),
    ("break that grows with a cache", &[], |sim| {
        let mut end = 1 << 20;
        let mut cache = VecDeque::new();
        sim.run(HOURS_2, 5, |sim, _| {
            cache.push_back(sim.alloc(2, 8 * KIB));
            if cache.len() <= 4_000 {
                sim.pipeline.apply(&move_break(sim.now, MAIN, end, end + 8 * KIB, 1));
                end += 8 * KIB;
            } else {
                cache.pop_front().into_iter().for_each(|ptr| sim.free(ptr));
            }
        });
    }),
    ("large buffers for a moment", &[], |sim| sim.run(HOURS_2, 1, |sim, call| {
        if call.is_multiple_of(60) {
            let ptr = sim.alloc(1, 100 * MIB);
            sim.now += SECOND / 2;
            sim.free(ptr);
        }
    })),
    ("pool that wanders", &[], |sim| {
        let mut pool = Vec::new();
        sim.run(HOURS_2, 10, |sim, _| {
            if pool.is_empty() || (pool.len() < 2000 && sim.below(2) == 0) {
                pool.push(sim.alloc(1, 16 * KIB));
            } else {
                let victim = sim.below(pool.len() as u64) as usize;
                let ptr = pool.swap_remove(victim);
                sim.free(ptr);
            }
        });
    }),
    ("leak of eight seconds", &[], |sim| sim.run(8, 100, |sim, _| {
        sim.alloc(1, 64 * KIB);
    })),
    ("batch under way at the end", &[], |sim| {
        sim.run(HOURS_2 * 85 / 100, 1, |_, _| {});
        sim.run(HOURS_2 * 15 / 100, 20, |sim, _| { sim.alloc(1, 16 * KIB); });
    }),
    ("growth that stopped", &[], |sim| {
        sim.run(HOURS_2 / 4, 10, |sim, _| { sim.alloc(1, 4 * KIB); });
        sim.run(HOURS_2 * 3 / 4, 1, |sim, _| {
            let ptr = sim.alloc(1, 4 * KIB);
            sim.free(ptr);
        });
    }),
];

/// A cache of so many entries of 4 KiB, ten new ones a second.
fn fifo(sim: &mut Sim, entries: usize) {
    let mut cache = VecDeque::new();
    sim.run(HOURS_2, 10, |sim, _| {
        cache.push_back(sim.alloc(1, 4 * KIB));
        if cache.len() > entries {
            cache.pop_front().into_iter().for_each(|ptr| sim.free(ptr));
        }
    });
}

/// Sessions that come at random and end after so many seconds.
fn sessions(sim: &mut Sim, seconds_to_live: u64) {
    let mut live = VecDeque::new();
    sim.run(HOURS_2, 10, |sim, _| {
        if sim.below(2) == 0 {
            live.push_back((sim.now, sim.alloc(1, 8 * KIB)));
        }
        while live.front().is_some_and(|(born, _)| sim.now - born > seconds_to_live * SECOND) {
            live.pop_front().into_iter().for_each(|(_, ptr)| sim.free(ptr));
        }
    });
}

/// Grows, and gives back all but `floor` entries every so many seconds.
fn sawtooth(sim: &mut Sim, period_s: u64, floor: usize) {
    let mut log = Vec::new();
    (0..floor).for_each(|_| log.push(sim.alloc(1, 4 * KIB)));
    sim.run(HOURS_2, 10, |sim, call| {
        log.push(sim.alloc(1, 4 * KIB));
        if call % (period_s * 10) == period_s * 10 - 1 {
            log.drain(floor..).for_each(|ptr| sim.free(ptr));
        }
    });
}

#[test]
fn leak_corpus_is_told_apart() {
    let (mut hits, mut misses, mut alarms) = (0, 0, 0);
    let mut wrong_classes = Vec::new();
    for (name, leaking, program) in SCENARIOS {
        let mut sim = Sim::new();
        program(&mut sim);
        let verdicts = sim.verdicts();
        let accused: BTreeSet<u64> =
            verdicts.iter().filter(|(_, class)| class.is_leak()).map(|(site, _)| *site).collect();
        let truth: BTreeSet<u64> = leaking.iter().map(|(site, _)| *site).collect();
        hits += accused.intersection(&truth).count();
        misses += truth.difference(&accused).count();
        alarms += accused.difference(&truth).count();
        let mark = if accused == truth { "   " } else { "!! " };
        println!("{mark}{name:46} {verdicts:?}");
        for (site, class) in *leaking {
            if let (Some(class), Some(found)) = (class, verdicts.get(site))
                && class != found
            {
                wrong_classes.push((*name, *site, *found));
            }
        }
    }
    let precision = hits as f64 / (hits + alarms) as f64;
    let recall = hits as f64 / (hits + misses) as f64;
    println!("{} scenarios: precision {precision:.3}, recall {recall:.3}", SCENARIOS.len());
    assert!(precision >= 0.95 && recall >= 0.95, "precision {precision}, recall {recall}");
    assert_eq!(wrong_classes, []);
}
