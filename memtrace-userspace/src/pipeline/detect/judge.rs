//! The verdict on one site, from what lives of it and what it held.
//!
//! The site's time is cut into 20 spans. Blocks of the last tenth of the session are too young to
//! tell anything; the first fifth is warm-up.
//!
//! ```text
//!   span      0    4                 11    14          18  20
//!             |warm|      old         |    young        |too young
//!                  |       middle           |   late    |
//! ```
//!
//! Growth is judged by *what survives*: a leak keeps the same share of its blocks at every age,
//! and goes on at the same rate; whatever frees its blocks in the end has no old ones.
//!
//! ```text
//!   survival of    old   young        late rate / middle rate
//!   leak            p      p          1
//!   first in, first out  0  1         what is held is level
//!   table that fills 1     1          towards 0
//!   one of n leaks 1/n    1/n         1, though what is held may go up and down
//! ```
//!
//! Where blocks do not tell (one block that `realloc` makes larger), what is held decides alone:
//! it must rise in most spans and hardly ever fall.

use memtrace_common::event::Api;

use super::options::LeakOptions;
use super::statistics::{slope_plus_minus, theil_sen};
use super::survey::{SPANS, Survivors};
use crate::pipeline::findings::{Class, Cohort, Confidence, Level, Rate};
use crate::pipeline::snapshot::Memory;
use crate::record::Time;

/// The first span after the warm-up.
const WARM: usize = SPANS / 5;
/// A mean size from which blocks are buffers.
const BUFFER_BYTES: u64 = 64 << 10;
/// The largest block that can be a listener.
const LISTENER_BYTES: u64 = 4 << 10;
/// Below this part of the earlier rate, growth levels off.
const LEVELLING: f64 = 0.5;
/// A site must hold memory for so many times longer than it ever did before it gave all back.
const LIVES: u64 = 3;

/// What is known of a site.
#[derive(Debug)]
pub(super) struct Evidence<'s> {
    /// How long was watched: the session, or the range of it.
    pub(super) watched_ns: u64,
    pub(super) memory: Memory,
    /// The longest time for which the site held something before it gave everything back.
    pub(super) earlier_life_ns: u64,
    /// Bytes held at the bounds of the spans.
    pub(super) held: [f64; SPANS + 1],
    /// Allocations up to the bounds.
    pub(super) allocations: [f64; SPANS + 1],
    pub(super) survivors: &'s Survivors,
}

/// What becomes of it.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) class: Class,
    pub(super) level: Level,
    pub(super) confidence: Confidence,
    pub(super) rate: Rate,
}

impl Evidence<'_> {
    fn length_ns(&self) -> u64 {
        self.survivors.until.0.saturating_sub(self.survivors.since.0)
    }

    /// The first span that is too young.
    fn young(&self) -> usize {
        let tenth = self.watched_ns as f64 / 10.0;
        let span = self.length_ns() as f64 / SPANS as f64;
        // A site that is as old as the session has begun a little later.
        SPANS.saturating_sub((tenth / span - 0.1).ceil() as usize)
    }

    /// Whether these are mappings out of which the allocator serves the heap: what the heap holds
    /// is judged, and not once more what holds it.
    pub(super) fn is_allocators(&self, api: Api) -> bool {
        let bytes = self.survivors.bytes.iter().fold(0u64, |sum, more| sum.saturating_add(*more));
        api == Api::Brk || self.survivors.allocator_bytes > bytes / 2
    }

    pub(super) fn aged_bytes(&self) -> u64 {
        self.survivors.bytes[..self.young()].iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    pub(super) fn cohorts(&self) -> Vec<Cohort> {
        let length = u128::from(self.length_ns());
        (0..SPANS)
            .map(|span| Cohort {
                until: Time(
                    self.survivors.since.0 + (length * (span as u128 + 1) / SPANS as u128) as u64,
                ),
                allocated_blocks: self.allocated(span, span + 1),
                live_blocks: self.survivors.blocks[span],
                live_bytes: self.survivors.bytes[span],
            })
            .collect()
    }

    fn allocated(&self, from: usize, to: usize) -> f64 {
        (self.allocations[to] - self.allocations[from]).max(0.0)
    }

    fn live_blocks(&self, from: usize, to: usize) -> f64 {
        self.survivors.blocks[from..to].iter().sum::<u64>() as f64
    }

    fn live_bytes(&self, from: usize, to: usize) -> f64 {
        self.survivors.bytes[from..to].iter().map(|bytes| *bytes as f64).sum()
    }

    fn survival(&self, from: usize, to: usize) -> f64 {
        let (live, allocated) = (self.live_blocks(from, to), self.allocated(from, to));
        (live / allocated.max(live).max(1.0)).min(1.0)
    }

    /// Whether fewer blocks survive of those from `old` spans than of those from `young` ones.
    fn decays(&self, old: (usize, usize), young: (usize, usize)) -> bool {
        let survival = self.survival(young.0, young.1);
        let expected = self.allocated(old.0, old.1) * survival;
        let live = self.live_blocks(old.0, old.1);
        live < 0.75 * expected && expected - live > 3.0 * expected.sqrt()
    }

    fn per_hour(&self, per_span: f64) -> f64 {
        per_span * SPANS as f64 * 3.6e12 / self.length_ns() as f64
    }
}

/// The verdict; `None` for a site that does not grow, or not enough.
pub(super) fn judge(evidence: &Evidence, options: &LeakOptions) -> Option<Judgement> {
    let after_ns = u64::try_from(options.after.as_nanos()).unwrap_or(u64::MAX);
    let length_ns = evidence.length_ns();
    let long_enough =
        length_ns >= after_ns && length_ns / LIVES >= evidence.earlier_life_ns && length_ns > 0;
    let young = evidence.young();
    let growth = Growth::of(&evidence.held);
    if !long_enough || young < SPANS / 2 {
        let rate = rate(evidence, &evidence.held)?;
        let class = Class::Undetermined;
        let fast = growth.is_spread() && rate.bytes_per_hour >= options.alert_bytes_per_hour;
        return fast.then_some(Judgement {
            class,
            level: Level::Healthy,
            confidence: Confidence::Low,
            rate,
        });
    }
    let old_end = WARM + (young - WARM) / 2;
    let late = young - (young - WARM) * 3 / 10;
    let (old, recent) = ((WARM, old_end), (old_end, young));
    let kept = evidence.live_blocks(WARM, young);
    let decays = evidence.decays(old, recent) || evidence.decays((0, WARM), recent);

    let middle_rate = evidence.live_bytes(WARM, late) / (late - WARM) as f64;
    let late_rate = evidence.live_bytes(late, young) / (young - late) as f64;
    let first_rate = evidence.live_bytes(0, WARM) / WARM as f64;
    let fewer = fewer_than(
        evidence.live_blocks(late, young),
        evidence.live_blocks(WARM, late) * (young - late) as f64 / (late - WARM) as f64,
    );
    let levels_off = fewer
        && (late_rate < LEVELLING * middle_rate
            || (late_rate < 0.7 * middle_rate && middle_rate < 0.7 * first_rate));
    let both_halves = evidence.live_blocks(old.0, old.1) >= 2.0
        && evidence.live_blocks(recent.0, recent.1) >= 2.0
        && evidence.live_bytes(old.0, old.1) >= 0.25 * evidence.live_bytes(recent.0, recent.1);

    let mut cumulative = Vec::with_capacity(young - WARM + 1);
    let mut sum = 0.0;
    cumulative.push(sum);
    for span in WARM..young {
        sum += evidence.survivors.bytes[span] as f64;
        cumulative.push(sum);
    }
    if kept >= 4.0 && both_halves && !decays {
        let rate = rate(evidence, &cumulative)?;
        let class = if levels_off {
            Class::BoundedCache
        } else if rate.plus_minus >= rate.bytes_per_hour {
            Class::Undetermined
        } else {
            class_of_kept(evidence, young)
        };
        return conclude(class, rate, kept, length_ns, options);
    }
    // The blocks do not tell: what is held does.
    let rate = rate(evidence, &evidence.held[WARM..])?;
    let held = Growth::of(&evidence.held[WARM..]);
    let class = if held.is_steady() && rate.plus_minus < rate.bytes_per_hour {
        if evidence.survivors.largest_bytes >= BUFFER_BYTES && kept < 4.0 {
            Class::BufferLeak
        } else {
            Class::CacheGrowth
        }
    } else if growth.is_spread() || evidence.allocated(late, SPANS) > 0.0 {
        Class::BoundedCache
    } else {
        return None;
    };
    conclude(class, rate, kept, length_ns, options)
}

/// The verdict on the allocator's own mappings, `heap` being what is live in them.
///
/// They grow with the heap. If they grow and it does not, its holes are not used again.
pub(super) fn judge_allocator(
    evidence: &Evidence,
    heap: &[f64; SPANS + 1],
    options: &LeakOptions,
) -> Option<Judgement> {
    let length_ns = evidence.length_ns();
    if u128::from(length_ns) < options.after.as_nanos() || length_ns == 0 {
        return None;
    }
    let rate = rate(evidence, &evidence.held[WARM..])?;
    let heap_rate = evidence.per_hour(theil_sen(&heap[WARM..])?);
    let grows = Growth::of(&evidence.held[WARM..]).is_steady()
        && rate.plus_minus < rate.bytes_per_hour
        && heap_rate < rate.bytes_per_hour / 2.0;
    let kept = evidence.live_blocks(WARM, SPANS);
    grows.then(|| conclude(Class::Fragmentation, rate, kept, length_ns, options)).flatten()
}

/// Whether a count is lower than expected, and not just by chance.
fn fewer_than(count: f64, expected: f64) -> bool {
    count < 1.0 || expected - count > 3.0 * expected.sqrt()
}

/// How what is held rises and falls.
#[derive(Debug)]
struct Growth {
    spans: usize,
    rising: usize,
    /// From the lowest at the start to the end.
    grown: f64,
    /// The deepest fall from a height reached before.
    fall: f64,
    /// Growth in the last 30% of the spans per span, and in those before.
    late: f64,
    before: f64,
}

impl Growth {
    fn of(held: &[f64]) -> Growth {
        let spans = held.len() - 1;
        let rising = held.windows(2).filter(|pair| pair[1] > pair[0]).count();
        let (mut highest, mut fall) = (held[0], 0f64);
        for &value in held {
            highest = highest.max(value);
            fall = fall.max(highest - value);
        }
        let late = spans - spans * 3 / 10;
        Growth {
            spans,
            rising,
            grown: held[spans] - held[0],
            fall,
            late: (held[spans] - held[late]) / (spans - late) as f64,
            before: (held[late] - held[0]) / late as f64,
        }
    }

    /// Whether it grows in more than a moment.
    fn is_spread(&self) -> bool {
        self.rising * 4 >= self.spans && self.grown > 0.0
    }

    /// Whether it grows nearly all the time, hardly ever falls, and goes on.
    fn is_steady(&self) -> bool {
        self.rising * 10 >= self.spans * 6
            && self.fall <= 0.2 * self.grown
            && self.late >= LEVELLING * self.before
    }
}

fn rate(evidence: &Evidence, values: &[f64]) -> Option<Rate> {
    Some(Rate {
        bytes_per_hour: evidence.per_hour(theil_sen(values)?),
        plus_minus: evidence.per_hour(slope_plus_minus(values)?),
    })
}

fn class_of_kept(evidence: &Evidence, young: usize) -> Class {
    let blocks = evidence.live_blocks(0, young);
    let mean = evidence.live_bytes(0, young) / blocks.max(1.0);
    let Survivors { smallest_bytes, largest_bytes, .. } = *evidence.survivors;
    if evidence.memory == Memory::Mapped || mean >= BUFFER_BYTES as f64 {
        Class::BufferLeak
    } else if smallest_bytes == largest_bytes
        && largest_bytes <= LISTENER_BYTES
        && evidence.survival(0, young) > 0.99
    {
        Class::ListenerLeak
    } else {
        Class::LinearGrowth
    }
}

fn conclude(
    class: Class,
    rate: Rate,
    kept: f64,
    length_ns: u64,
    options: &LeakOptions,
) -> Option<Judgement> {
    let level = match rate.bytes_per_hour {
        _ if !class.is_leak() => Level::Healthy,
        rate if rate >= options.alert_bytes_per_hour => Level::Alert,
        rate if rate >= options.healthy_bytes_per_hour => Level::Warning,
        _ => return None,
    };
    let after_ns = options.after.as_nanos() as f64;
    let relative = rate.plus_minus / rate.bytes_per_hour.abs().max(1.0);
    let confidence = if kept >= 30.0 && relative < 0.35 && length_ns as f64 >= 4.0 * after_ns {
        Confidence::High
    } else if kept < 10.0 || relative > 0.7 || (length_ns as f64) < 2.0 * after_ns {
        Confidence::Low
    } else {
        Confidence::Medium
    };
    Some(Judgement { class, level, confidence, rate })
}
