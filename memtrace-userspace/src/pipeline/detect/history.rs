//! What every site held at the ends of equal steps, for as long as it held anything.
//!
//! ```text
//!   step         1     2     3     4     5        when STEPS are full, each two become one
//!   site A      10    20     ·     ·    50        a point only where it has changed
//!   site B       7     0                          it holds nothing: its history ends
//! ```
//!
//! Steps are equal for all sites, so a step costs what has changed in it. A site that has given
//! back everything begins anew: whatever it did before is no leak.

use crate::pipeline::stacks::{SiteId, Stacks};
use crate::record::Time;

/// Steps after which each two become one.
const STEPS: u32 = 128;
/// The first steps are so many times longer than ticks, and at least [`FIRST_STEP_NS`].
const FIRST_STEP_NS: u64 = 20_000_000;

/// What a site had at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    step: u32,
    pub(super) held_bytes: u64,
    pub(super) allocations: u64,
}

/// The course of one site.
#[derive(Clone, Debug)]
pub(super) struct Course {
    pub(super) site: SiteId,
    /// Step at whose end it held nothing yet.
    start: u32,
    /// Its allocations up to then.
    allocations_before: u64,
    points: Vec<Point>,
}

/// The courses of all sites that hold something.
#[derive(Debug)]
pub(super) struct Histories {
    courses: Vec<Course>,
    /// By site: its place in `courses`, and the step in which it was noted as changed.
    places: Vec<Place>,
    changed: Vec<SiteId>,
    step: u32,
    step_ns: u64,
    /// End of the step under way; `None` if it lies beyond the end of time.
    end_ns: Option<u64>,
    points: usize,
    limit: usize,
    beyond_limit: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    course: u32,
    changed_in: u32,
    /// The most steps for which it held something and then nothing.
    longest_life: u32,
    /// Its allocations when it held nothing last.
    allocations: u64,
}

const NOWHERE: u32 = u32::MAX;

impl Histories {
    pub(super) fn new(tick_ns: u64, limit: usize) -> Histories {
        let step_ns = tick_ns * FIRST_STEP_NS.div_ceil(tick_ns);
        Histories {
            courses: Vec::new(),
            places: Vec::new(),
            changed: Vec::new(),
            step: 0,
            step_ns,
            end_ns: Some(step_ns),
            points: 0,
            limit,
            beyond_limit: 0,
        }
    }

    /// Notes that a site changes in this step.
    pub(super) fn note(&mut self, site: SiteId) {
        if self.places.len() <= site.index() {
            let nothing =
                Place { course: NOWHERE, changed_in: NOWHERE, longest_life: 0, allocations: 0 };
            self.places.resize(site.index() + 1, nothing);
        }
        let place = &mut self.places[site.index()];
        if place.changed_in != self.step {
            place.changed_in = self.step;
            self.changed.push(site);
        }
    }

    /// Ends the steps that are over by `now`.
    pub(super) fn advance(&mut self, now: Time, stacks: &Stacks) {
        while self.end_ns.is_some_and(|end| now.0 >= end) {
            self.step += 1;
            for site in std::mem::take(&mut self.changed) {
                self.end_step(site, stacks);
            }
            if self.step == STEPS {
                self.halve();
            }
            self.end_ns = self.step_ns.checked_mul(u64::from(self.step) + 1);
        }
    }

    fn end_step(&mut self, site: SiteId, stacks: &Stacks) {
        let account = stacks.account(site);
        let (held_bytes, allocations) = (account.held_bytes(), account.allocations());
        let Place { course: place, allocations: allocations_before, .. } =
            self.places[site.index()];
        if held_bytes == 0 {
            if place != NOWHERE {
                self.remove(place);
            }
            self.places[site.index()].allocations = allocations;
            return;
        }
        if self.points >= self.limit {
            self.beyond_limit += 1;
            return;
        }
        let point = Point { step: self.step, held_bytes, allocations };
        self.points += 1;
        if place == NOWHERE {
            self.places[site.index()].course = self.courses.len() as u32;
            let (start, points) = (self.step - 1, vec![point]);
            self.courses.push(Course { site, start, allocations_before, points });
        } else {
            self.courses[place as usize].points.push(point);
        }
    }

    fn remove(&mut self, place: u32) {
        let gone = self.courses.swap_remove(place as usize);
        self.points -= gone.points.len();
        let place_of_gone = &mut self.places[gone.site.index()];
        place_of_gone.course = NOWHERE;
        place_of_gone.longest_life = place_of_gone.longest_life.max(self.step - gone.start);
        if let Some(moved) = self.courses.get(place as usize) {
            self.places[moved.site.index()].course = place;
        }
    }

    /// Makes one step of each two.
    fn halve(&mut self) {
        self.step /= 2;
        self.step_ns = self.step_ns.saturating_mul(2);
        self.points = 0;
        for course in &mut self.courses {
            course.start /= 2;
            for point in &mut course.points {
                point.step = point.step.div_ceil(2);
            }
            // The later one of two is the state at the end of both.
            let mut kept: Vec<Point> = Vec::with_capacity(course.points.len());
            for point in &course.points {
                match kept.last_mut() {
                    Some(last) if last.step == point.step => *last = *point,
                    Some(_) | None => kept.push(*point),
                }
            }
            course.points = kept;
            self.points += course.points.len();
        }
        for place in &mut self.places {
            place.changed_in = NOWHERE;
            place.longest_life = place.longest_life.div_ceil(2);
        }
    }

    /// The course of every site that holds something, in no order that may show.
    pub(super) fn courses(&self) -> &[Course] {
        &self.courses
    }

    /// When a course began.
    pub(super) fn start(&self, course: &Course) -> Time {
        Time(u64::from(course.start).saturating_mul(self.step_ns))
    }

    /// How long the site ever held something before it gave everything back.
    pub(super) fn longest_life_ns(&self, course: &Course) -> u64 {
        let steps = self.places[course.site.index()].longest_life;
        u64::from(steps).saturating_mul(self.step_ns)
    }

    /// What a site held at a time, and its allocations up to then, from a line between points.
    ///
    /// `end` is the state at the last moment.
    pub(super) fn at(&self, course: &Course, time: Time, end: (Time, Point)) -> (f64, f64) {
        let first =
            Point { step: course.start, held_bytes: 0, allocations: course.allocations_before };
        let moment = |point: &Point| u64::from(point.step).saturating_mul(self.step_ns);
        let index = course.points.partition_point(|point| moment(point) <= time.0);
        let before = match index.checked_sub(1) {
            Some(index) => course.points[index],
            None => first,
        };
        // What has no point did not change: the state before a point held until one step before it.
        let (after_ns, after) = match course.points.get(index) {
            Some(point) => (moment(point), *point),
            None => (end.0.0, end.1),
        };
        let step_before = match course.points.get(index) {
            Some(_) => after_ns.saturating_sub(self.step_ns),
            None => u64::from(self.step).saturating_mul(self.step_ns).min(after_ns),
        };
        let from = moment(&before).max(step_before);
        if time.0 <= from || after_ns <= from {
            return (before.held_bytes as f64, before.allocations as f64);
        }
        let part = ((time.0 - from) as f64 / (after_ns - from) as f64).min(1.0);
        let between = |a: u64, b: u64| a as f64 + (b as f64 - a as f64) * part;
        (
            between(before.held_bytes, after.held_bytes),
            between(before.allocations, after.allocations),
        )
    }

    /// The state of a site now.
    pub(super) fn now(&self, site: SiteId, stacks: &Stacks) -> Point {
        let account = stacks.account(site);
        let (held_bytes, allocations) = (account.held_bytes(), account.allocations());
        Point { step: self.step, held_bytes, allocations }
    }

    /// Points that found no room.
    pub(super) fn beyond_limit(&self) -> u64 {
        self.beyond_limit
    }
}
