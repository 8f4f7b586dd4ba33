//! What functions and threads held and allocated over time.
//!
//! In: the steps of [`Activity`], and names. Out: a [`Course`] for each of the functions and threads
//! that held most, one for all others together, and one for the whole, so that in every step
//!
//! ```text
//!   Σ functions + other functions = all = Σ threads + other threads
//! ```
//!
//! and `all` holds what the report's timeline says at that moment. A function's bytes are those of
//! the call paths whose allocating function it is. Of the heap only: mappings are the allocator's.

use std::cmp::Reverse;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::activity::{Activity, Cell, Finished};
use super::frames::{Frame, Function, FunctionId, Names};
use super::ranking::Memory;
use crate::pipeline::snapshot::{Snapshot, ThreadUsage};
use crate::record::Time;

/// How many functions, and how many threads, have a timeline of their own unless told otherwise.
pub const DEFAULT_SHOWN: usize = 10;

/// The timelines of a session or of a range of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timelines {
    /// When the first step begins.
    pub start: Time,
    /// When each step ends.
    pub ends: Vec<Time>,
    /// The whole heap.
    pub all: Course,
    /// Those that held most at the end of any step, most first.
    pub functions: Vec<FunctionCourse>,
    /// All functions that are not among these, and call paths without any.
    pub other_functions: Others,
    /// Those whose blocks were most at the end of any step, most first.
    pub threads: Vec<ThreadCourse>,
    /// All threads that are not among these.
    pub other_threads: Others,
}

/// Numbers of each step.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Course {
    /// Bytes that running processes hold at its end.
    pub live_bytes: Vec<u64>,
    /// Bytes that were allocated within it.
    pub allocated_bytes: Vec<u64>,
    /// Blocks that were allocated within it.
    pub allocations: Vec<u64>,
}

/// What a function allocated itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCourse {
    /// The function.
    pub function: Arc<Function>,
    /// The line through which it allocated first.
    pub line: Option<u32>,
    /// Its numbers.
    pub course: Course,
}

/// The blocks that a thread allocated, whoever freed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadCourse {
    /// The thread.
    pub thread: ThreadUsage,
    /// Its numbers.
    pub course: Course,
}

/// Those without a timeline of their own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Others {
    /// How many.
    pub count: u64,
    /// Their numbers.
    pub course: Course,
}

impl Timelines {
    /// Sums up by function and thread; at most `shown` of each have a course of their own.
    ///
    /// `activity` has seen every event, and tells what is held
    /// ([`Level::Held`](super::activity::Level)).
    pub fn new(
        snapshot: &Snapshot,
        activity: Activity,
        names: &mut Names,
        shown: usize,
    ) -> Timelines {
        let finished = activity.finish(snapshot);
        let Finished { start, ends, sites, threads: places, of_sites, of_threads } = finished;
        let mut functions = Functions::default();
        let groups: Vec<Option<usize>> = sites
            .iter()
            .map(|(stack, api)| {
                let is_heap = Memory::of(*api) == Memory::Heap;
                is_heap.then(|| {
                    let stack = names.symbolize(&snapshot.images, stack);
                    functions.group(stack.functions().next())
                })
            })
            .collect();
        let steps = ends.len();
        let group = |number: u32| groups.get(number as usize).copied().flatten();
        let Grouped { order, mut courses, others } =
            Grouped::new(&of_sites, group, functions.all.len(), steps, shown, |group| {
                functions.all[group].is_some()
            });
        let mut all = others.course.clone();
        let shown_functions = order.into_iter().filter_map(|group| {
            let course = courses.remove(&group)?;
            all.add(&course);
            let (function, line) = functions.all[group].clone()?;
            Some(FunctionCourse { function, line, course })
        });
        let shown_functions = shown_functions.collect();

        // What a child inherited may be of a thread that is not shown.
        let known = snapshot.threads.len();
        let place =
            |number: u32| Some(places.get(number as usize).copied().flatten().unwrap_or(known));
        let Grouped { order, mut courses, others: other_threads } =
            Grouped::new(&of_threads, place, known + 1, steps, shown, |place| place < known);
        let threads = order.into_iter().filter_map(|place| {
            let (course, thread) = (courses.remove(&place)?, snapshot.threads[place].clone());
            Some(ThreadCourse { thread, course })
        });
        let threads = threads.collect();
        Timelines {
            start,
            ends,
            all,
            functions: shown_functions,
            other_functions: others,
            threads,
            other_threads,
        }
    }

    /// How long each step is, in nanoseconds; at least 1.
    pub fn lengths(&self) -> impl Iterator<Item = u64> {
        let starts = std::iter::once(self.start).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| end.0.saturating_sub(start.0).max(1))
    }
}

impl Course {
    fn of(steps: usize) -> Course {
        let zeros = vec![0; steps];
        Course { live_bytes: zeros.clone(), allocated_bytes: zeros.clone(), allocations: zeros }
    }

    fn add(&mut self, more: &Course) {
        let Course { live_bytes, allocated_bytes, allocations } = more;
        let add = |sums: &mut [u64], more: &[u64]| {
            for (sum, more) in sums.iter_mut().zip(more) {
                *sum = sum.wrapping_add(*more);
            }
        };
        add(&mut self.live_bytes, live_bytes);
        add(&mut self.allocated_bytes, allocated_bytes);
        add(&mut self.allocations, allocations);
    }

    /// The most bytes at the end of any step.
    pub fn highest_bytes(&self) -> u64 {
        self.live_bytes.iter().copied().max().unwrap_or(0)
    }
}

/// Functions by the number of their group.
#[derive(Default)]
struct Functions {
    groups: FxHashMap<Option<FunctionId>, usize>,
    /// `None` for call paths without a function.
    all: Vec<Option<(Arc<Function>, Option<u32>)>>,
}

impl Functions {
    fn group(&mut self, allocating: Option<&Frame>) -> usize {
        let all = &mut self.all;
        *self.groups.entry(allocating.map(|frame| frame.function.id)).or_insert_with(|| {
            all.push(allocating.map(|frame| (Arc::clone(&frame.function), frame.line)));
            all.len() - 1
        })
    }
}

/// Cells, summed up by group: the heaviest groups one by one, the others together.
struct Grouped {
    /// The groups that have a course, heaviest first.
    order: Vec<usize>,
    courses: FxHashMap<usize, Course>,
    others: Others,
}

impl Grouped {
    fn new(
        cells: &[Vec<Cell>],
        group_of: impl Fn(u32) -> Option<usize>,
        groups: usize,
        steps: usize,
        shown: usize,
        has_a_name: impl Fn(usize) -> bool,
    ) -> Grouped {
        let weights = weigh(cells, &group_of, groups);
        let mut order: Vec<usize> =
            (0..weights.len()).filter(|&group| weights[group] != Weight::default()).collect();
        let used = order.len();
        // Groups are numbered in the order of their first event, which decides between equals.
        order.sort_by_key(|&group| (Reverse(weights[group]), group));
        order.retain(|&group| has_a_name(group));
        order.truncate(shown);
        let mut courses: FxHashMap<usize, Course> =
            order.iter().map(|&group| (group, Course::of(steps))).collect();
        let others = Others { count: (used - order.len()) as u64, course: Course::of(steps) };
        let mut grouped = Grouped { order, courses: FxHashMap::default(), others };
        let mut levels = Levels::default();
        for (step, cells) in cells.iter().enumerate() {
            for cell in cells {
                let Some(group) = group_of(cell.number) else { continue };
                let course = courses.get_mut(&group).unwrap_or(&mut grouped.others.course);
                let grown = levels.change(cell);
                // What changes in a step is carried on below.
                course.live_bytes[step] = course.live_bytes[step].wrapping_add(grown);
                course.allocated_bytes[step] =
                    course.allocated_bytes[step].wrapping_add(cell.allocated_bytes);
                course.allocations[step] += cell.allocations;
            }
        }
        for course in courses.values_mut().chain([&mut grouped.others.course]) {
            let mut level = 0u64;
            for bytes in &mut course.live_bytes {
                level = level.wrapping_add(*bytes);
                *bytes = level;
            }
        }
        grouped.courses = courses;
        grouped
    }
}

/// The most bytes at the end of a step, then all that was allocated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Weight {
    highest_bytes: u64,
    allocated_bytes: u64,
    allocations: u64,
}

fn weigh(
    cells: &[Vec<Cell>],
    group_of: impl Fn(u32) -> Option<usize>,
    groups: usize,
) -> Vec<Weight> {
    let mut weights = vec![Weight::default(); groups];
    let mut sums = vec![0u64; groups];
    let mut levels = Levels::default();
    for cells in cells {
        for cell in cells {
            let Some(group) = group_of(cell.number).filter(|&group| group < groups) else {
                continue;
            };
            sums[group] = sums[group].wrapping_add(levels.change(cell));
            let weight = &mut weights[group];
            weight.allocated_bytes = weight.allocated_bytes.wrapping_add(cell.allocated_bytes);
            weight.allocations += cell.allocations;
        }
        // Only now is it the sum at the end of the step.
        for cell in cells {
            let Some(group) = group_of(cell.number).filter(|&group| group < groups) else {
                continue;
            };
            weights[group].highest_bytes = weights[group].highest_bytes.max(sums[group]);
        }
    }
    weights
}

/// What each site or thread held at the end of its last step.
#[derive(Default)]
struct Levels(Vec<u64>);

impl Levels {
    /// By how much it has grown in a step; modulo 2^64.
    fn change(&mut self, cell: &Cell) -> u64 {
        let index = cell.number as usize;
        if self.0.len() <= index {
            self.0.resize(index + 1, 0);
        }
        let before = std::mem::replace(&mut self.0[index], cell.level_bytes);
        cell.level_bytes.wrapping_sub(before)
    }
}

#[cfg(test)]
mod tests;
