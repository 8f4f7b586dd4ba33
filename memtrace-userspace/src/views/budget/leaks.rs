//! Limits on how fast memory leaks, held against what the detectors found.
//!
//! A rate is an estimate with an interval. It fails above its limit, and passes if the whole
//! interval, with that of paths that grow too irregularly to tell, lies below:
//!
//! ```text
//!   rate + interval + undetermined ≤ limit     pass
//!   rate ≤ limit, otherwise                    unknown
//!   limit < rate                               fail
//! ```

use super::judge::NO_ALLOCATOR;
use super::reading::{Look, Matcher, TOP_STACKS};
use super::{Loss, Numbers, Place, Row, Scope, TopStack, Unit, Verdict};
use crate::pipeline::DetectorOptions;
use crate::views::profile::{Coverage, Frame, GrowingPath, Growth, Profile, Vocabulary, label};
use crate::views::quantity::{bytes, counted, duration};

/// What the detectors say about the call paths that a limit is about, in bytes an hour.
#[derive(Debug, Default)]
struct Leaking {
    /// How many leaks there are.
    leaks: u64,
    /// All of them together.
    rate: u64,
    /// Half the width of their intervals.
    interval: u64,
    /// What grows in stacks that could go through the functions unseen, at most.
    unseen: u64,
    /// What grows without telling whether it leaks, at most.
    undetermined: u64,
    /// The fastest.
    stacks: Vec<TopStack>,
    /// Where the fastest is, in the functions.
    place: Option<Place>,
}

/// Fills in a row about leaks.
pub(super) fn judge(
    row: &mut Row,
    profile: &Profile,
    scope: &Scope,
    allowed: u64,
    loss: Loss,
    words: &Vocabulary,
) {
    let Coverage { has_allocator, losses, .. } = &profile.coverage;
    let growth = &profile.growth;
    let leaking = read(growth, scope, words);
    let Leaking { leaks, rate, interval, unseen, undetermined, stacks, place } = leaking;
    let numbers =
        Numbers { unit: Unit::BytesPerHour, actual: rate, limit: Some(allowed), baseline: None };
    row.numbers = Some(numbers);
    row.place = place;
    let notes = &mut row.notes;
    if leaks > 0 {
        notes.push(format!("{}, \u{b1} {}/h", counted(leaks, "call path"), bytes(interval)));
    }
    for (more, why) in [
        (undetermined, "grow, too briefly or too irregularly to tell a leak"),
        (unseen, "grow in stacks that are cut or go through code without names"),
    ] {
        if more > 0 {
            notes.push(format!("up to {}/h more {why}", bytes(more)));
        }
    }
    for suppressed in &growth.suppressed {
        let leaks = counted(suppressed.leaks, "leak");
        notes.push(format!("{leaks} suppressed by leak:{}", suppressed.pattern));
    }
    notes.extend(losses.iter().cloned());
    let most = [interval, unseen, undetermined].into_iter().fold(rate, u64::saturating_add);
    row.verdict = if rate > allowed {
        Verdict::Fail
    } else if !has_allocator {
        notes.push(NO_ALLOCATOR.to_owned());
        Verdict::Unknown
    } else if growth.watched < growth.needed {
        notes.push(format!(
            "not long enough to tell: a path is watched for {} before it is accused; \
             --leak-after sets that",
            duration(growth.needed)
        ));
        Verdict::Unknown
    } else if growth.told_from_bytes_per_hour > slowest(allowed) {
        notes.push(format!(
            "the report tells of leaks from {}/h on, and slower ones count: write it with \
             --leak-threshold healthy={}/h, or check the trace",
            bytes(growth.told_from_bytes_per_hour),
            slowest(allowed)
        ));
        Verdict::Unknown
    } else if most > allowed || (!losses.is_empty() && loss == Loss::Matters) {
        Verdict::Unknown
    } else {
        Verdict::Pass
    };
    if row.verdict != Verdict::Pass {
        row.stacks = stacks;
    }
}

/// Bytes an hour from which on a path counts for a limit: what is usual, or the limit if it is lower.
pub fn slowest(allowed: u64) -> u64 {
    let usual = DetectorOptions::default().leaks.healthy_bytes_per_hour as u64;
    if allowed == 0 { usual } else { usual.min(allowed) }
}

/// Looks for leaks of these functions, or all.
fn read(growth: &Growth, scope: &Scope, words: &Vocabulary) -> Leaking {
    let mut matcher = match scope {
        Scope::Total => None,
        Scope::Functions(pattern) => Some(Matcher::new(pattern)),
    };
    let mut leaking = Leaking::default();
    for path in &growth.paths {
        let GrowingPath { is_leak, bytes_per_hour, plus_minus, is_complete, path } = path;
        let most = bytes_per_hour.saturating_add(*plus_minus);
        let look = matcher.as_mut().map(|matcher| matcher.look(path, *is_complete, words));
        let inside = match look {
            None => None,
            Some(Look::Inside(frame)) => Some(frame),
            Some(Look::Unsure) => {
                leaking.unseen = leaking.unseen.saturating_add(most);
                continue;
            }
            Some(Look::Outside) => continue,
        };
        if !is_leak {
            leaking.undetermined = leaking.undetermined.saturating_add(most);
            continue;
        }
        leaking.leaks += 1;
        leaking.rate = leaking.rate.saturating_add(*bytes_per_hour);
        leaking.interval = leaking.interval.saturating_add(*plus_minus);
        if leaking.place.is_none()
            && let Some(frame) = inside
            && let Frame { function: _, file: Some(file), line: Some(line) } = words.frame(frame)
        {
            leaking.place = Some(Place { file: file.to_string(), line: *line });
        }
        if leaking.stacks.len() < TOP_STACKS {
            let frames = label::lines(words, path);
            leaking.stacks.push(TopStack { amount: *bytes_per_hour, frames });
        }
    }
    leaking
}

#[cfg(test)]
mod tests {
    use super::super::{
        Attach, Bound, Budget, Limit, Metric, Part, Pattern, Strictness, judge as judge_budget,
    };
    use super::*;
    use crate::pipeline::snapshot::Snapshot;
    use crate::record::{EndReason, Time};
    use crate::views::fixture;
    use crate::views::ranking::{SortKey, rank};
    use crate::views::suppressions::Suppressions;

    /// `leak_per_request` leaks at 3.5 GB/h ± 125 MB, nothing was lost, and it took long enough.
    fn watched() -> Snapshot {
        let mut snapshot = fixture::snapshot();
        snapshot.counters.clear();
        snapshot.end = Some(EndReason::DurationOver);
        snapshot.now = Time(60_000_000_000);
        snapshot.leaks.verdicts.truncate(2);
        snapshot
    }

    fn row_without(snapshot: &Snapshot, scope: Scope, most: u64, suppressions: &str) -> Row {
        let mut words = Vocabulary::default();
        let mut ranking = rank(snapshot, &mut fixture::names(), SortKey::Live);
        ranking.findings.suppress(&Suppressions::parse(suppressions).expect("valid"));
        let profile = Profile::of_session(snapshot, &ranking, &mut words);
        let limit = Limit { scope, metric: Metric::Leaks, bound: Bound::AtMost(most), line: None };
        let budget = Budget { file: None, limits: vec![limit] };
        let strictness = Strictness { loss: Loss::Matters, attach: Attach::Matters };
        judge_budget(&budget, &profile, None, &words, strictness).rows.remove(0)
    }

    fn row(snapshot: &Snapshot, scope: Scope, most: u64) -> Row {
        row_without(snapshot, scope, most, "")
    }

    fn functions(name: &str) -> Scope {
        Scope::Functions(Pattern { name: name.to_owned(), module: None, part: Part::Own })
    }

    #[test]
    fn leak_breaks_a_limit_below_its_rate_and_its_interval_decides() {
        let snapshot = watched();
        let verdict = |most| row(&snapshot, Scope::Total, most).verdict;

        assert_eq!(verdict(0), Verdict::Fail);
        assert_eq!(verdict(3_499_999_999), Verdict::Fail);
        assert_eq!(verdict(3_500_000_000), Verdict::Unknown);
        assert_eq!(verdict(3_624_999_999), Verdict::Unknown);
        assert_eq!(verdict(3_625_000_000), Verdict::Pass);
    }

    #[test]
    fn leak_is_shown_with_its_stack_and_place() {
        let row = row(&watched(), functions("leak_*"), 0);

        assert_eq!(row.place, Some(Place { file: "src/server.c".to_owned(), line: 41 }));
        assert_eq!(row.notes, ["1 call path, \u{b1} 119.2 MiB/h"]);
        assert_eq!(row.stacks[0].amount, 3_500_000_000);
        assert!(row.stacks[0].frames[0].starts_with("leak_per_request"));
    }

    #[test]
    fn leak_of_another_function_does_not_count() {
        assert_eq!(row(&watched(), functions("parse"), 0).verdict, Verdict::Pass);
    }

    #[test]
    fn suppressed_leak_passes_and_is_told() {
        let row = row_without(&watched(), Scope::Total, 0, "leak:^leak_per_*");

        assert_eq!(row.verdict, Verdict::Pass);
        assert_eq!(row.notes, ["1 leak suppressed by leak:^leak_per_*"]);
    }

    #[test]
    fn session_that_is_too_short_proves_nothing() {
        let mut snapshot = watched();
        snapshot.now = Time(29_000_000_000);

        let row = row_without(&snapshot, Scope::Total, 0, "leak:*");

        assert_eq!(row.verdict, Verdict::Unknown);
        assert!(row.notes.iter().any(|note| note.contains("--leak-after")), "{:?}", row.notes);
    }

    #[test]
    fn path_that_grows_for_an_unknown_reason_proves_nothing() {
        let mut snapshot = watched();
        snapshot.leaks.verdicts = vec![fixture::snapshot().leaks.verdicts[2].clone()];

        assert_eq!(row(&snapshot, Scope::Total, 0).verdict, Verdict::Unknown);
        assert_eq!(row(&snapshot, functions("parse"), 0).verdict, Verdict::Unknown);
        assert_eq!(row(&snapshot, Scope::Total, 3_625_000_000).verdict, Verdict::Pass);
    }

    #[test]
    fn lost_events_prove_nothing() {
        let mut snapshot = watched();
        snapshot.counters = vec![("lost_frees".to_owned(), 1)];

        assert_eq!(row_without(&snapshot, Scope::Total, 0, "leak:*").verdict, Verdict::Unknown);
        assert_eq!(row(&snapshot, Scope::Total, 0).verdict, Verdict::Fail);
    }

    #[test]
    fn program_without_an_allocator_proves_nothing() {
        let mut snapshot = watched();
        snapshot.leaks.verdicts.clear();
        snapshot.probes.clear();

        assert_eq!(row(&snapshot, Scope::Total, 0).verdict, Verdict::Unknown);
    }
}
