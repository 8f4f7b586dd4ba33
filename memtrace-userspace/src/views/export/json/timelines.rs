//! What functions and threads held and allocated over time, in the JSON report.

use serde::Serialize;

use super::named::{Named, name};
use crate::pipeline::snapshot::ThreadUsage;
use crate::views::printable::printable;
use crate::views::timelines::{self, FunctionCourse, Others, ThreadCourse};

#[derive(Serialize)]
pub(super) struct Timelines<'r> {
    start_ns: u64,
    ends_ns: Vec<u64>,
    all: Course<'r>,
    functions: Vec<Function<'r>>,
    other_functions: OtherCourses<'r>,
    threads: Vec<Thread<'r>>,
    other_threads: OtherCourses<'r>,
}

#[derive(Serialize)]
struct Course<'r> {
    live_bytes: &'r [u64],
    allocated_bytes: &'r [u64],
    allocations: &'r [u64],
}

#[derive(Serialize)]
struct Function<'r> {
    #[serde(flatten)]
    named: Named<'r>,
    #[serde(flatten)]
    course: Course<'r>,
}

#[derive(Serialize)]
struct Thread<'r> {
    pid: u32,
    tid: u32,
    name: String,
    #[serde(flatten)]
    course: Course<'r>,
}

#[derive(Serialize)]
struct OtherCourses<'r> {
    count: u64,
    #[serde(flatten)]
    course: Course<'r>,
}

pub(super) fn timelines(timelines: &timelines::Timelines) -> Timelines<'_> {
    let timelines::Timelines {
        start,
        ends,
        all,
        functions,
        other_functions,
        threads,
        other_threads,
    } = timelines;
    Timelines {
        start_ns: start.0,
        ends_ns: ends.iter().map(|end| end.0).collect(),
        all: course(all),
        functions: functions.iter().map(function).collect(),
        other_functions: others(other_functions),
        threads: threads.iter().map(thread).collect(),
        other_threads: others(other_threads),
    }
}

fn course(of: &timelines::Course) -> Course<'_> {
    let timelines::Course { live_bytes, allocated_bytes, allocations } = of;
    Course { live_bytes, allocated_bytes, allocations }
}

fn function(of: &FunctionCourse) -> Function<'_> {
    let FunctionCourse { function, line, course: numbers } = of;
    Function { named: name(Some(function), *line), course: course(numbers) }
}

fn thread(of: &ThreadCourse) -> Thread<'_> {
    let ThreadCourse { thread, course: numbers } = of;
    let ThreadUsage { pid, tid, name, heap: _ } = thread;
    let name = printable(name).into_owned();
    Thread { pid: pid.0, tid: tid.0, name, course: course(numbers) }
}

fn others(of: &Others) -> OtherCourses<'_> {
    let Others { count, course: numbers } = of;
    OtherCourses { count: *count, course: course(numbers) }
}
