use std::path::Path;

use super::*;
use crate::pipeline::snapshot::Snapshot;
use crate::record::{EndReason, Origin, Session};
use crate::views::counters::TRACE_TRUNCATED;
use crate::views::fixture;
use crate::views::layout::width;
use crate::views::profile::{Profile, Vocabulary};
use crate::views::ranking::rank;
use crate::views::style::Style;

const MIB: u64 = 1 << 20;
const STRICT: Strictness = Strictness { loss: Loss::Matters, attach: Attach::Matters };

/// The fixture as a whole run without loss, and with complete stacks.
///
/// ```text
///   leak_per_request ← handle ← main      12 MiB live, 6 MiB at the peak
///   cache::Entry::build ← cache_fill ←    2 MiB live, 48 MiB at the peak
///   parse ← parse ← main                  nothing live
/// ```
fn whole_run() -> Snapshot {
    let mut snapshot = fixture::snapshot();
    let session = snapshot.session.as_deref().expect("a session").clone();
    snapshot.session = Some(Session { origin: Origin::Launched, ..session }.into());
    snapshot.end = Some(EndReason::TargetExited);
    snapshot.counters.clear();
    snapshot.processes[0].before_attach = None;
    snapshot.stacks.remove(4);
    snapshot
}

fn profile(snapshot: &Snapshot, words: &mut Vocabulary) -> Profile {
    let ranking = rank(snapshot, &mut fixture::names(), SortKey::Live);
    Profile::of_session(snapshot, &ranking, words)
}

fn total(metric: Metric, bound: Bound) -> Limit {
    Limit { scope: Scope::Total, metric, bound, line: Some(3) }
}

fn functions(name: &str, module: Option<&str>, part: Part, metric: Metric, most: u64) -> Limit {
    let pattern = Pattern { name: name.to_owned(), module: module.map(str::to_owned), part };
    Limit { scope: Scope::Functions(pattern), metric, bound: Bound::AtMost(most), line: Some(7) }
}

fn budget(limits: Vec<Limit>) -> Budget {
    Budget { file: Some("ci/mem.toml".into()), limits }
}

/// The only row of a budget with one limit.
fn row_of(snapshot: &Snapshot, limit: Limit, strictness: Strictness) -> Row {
    let mut words = Vocabulary::default();
    let profile = profile(snapshot, &mut words);
    let mut rows = judge(&budget(vec![limit]), &profile, None, &words, strictness).rows;
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

fn verdict_of(snapshot: &Snapshot, limit: Limit, strictness: Strictness) -> Verdict {
    row_of(snapshot, limit, strictness).verdict
}

fn live(most: u64) -> Limit {
    total(Metric::Live, Bound::AtMost(most))
}

#[test]
fn limit_holds_up_to_its_last_byte() {
    let snapshot = whole_run();
    let totals = snapshot.totals;
    for (metric, actual) in [
        (Metric::Peak, totals.peak_live_bytes),
        (Metric::Live, totals.heap.live_bytes),
        (Metric::Allocated, totals.heap.allocated_bytes),
        (Metric::Allocations, totals.heap.allocations),
        (Metric::Temporary, totals.temporary_allocations),
        (Metric::Resident, totals.peak_resident_bytes),
    ] {
        let verdict = |most| verdict_of(&snapshot, total(metric, Bound::AtMost(most)), STRICT);

        assert_eq!(verdict(actual), Verdict::Pass, "{metric:?}");
        assert_eq!(verdict(actual - 1), Verdict::Fail, "{metric:?}");
    }
}

#[test]
fn share_is_not_kept_by_rounding() {
    let mut snapshot = whole_run();
    snapshot.totals.heap.allocations = 3;
    snapshot.totals.temporary_allocations = 1;
    let share = |ppm| total(Metric::TemporaryShare, Bound::AtMost(ppm));

    assert_eq!(verdict_of(&snapshot, share(333_333), STRICT), Verdict::Fail);
    assert_eq!(verdict_of(&snapshot, share(333_334), STRICT), Verdict::Pass);
}

#[test]
fn functions_are_meant_by_name_and_module() {
    let snapshot = whole_run();
    let live_of = |name, module, part| {
        let row = row_of(&snapshot, functions(name, module, part, Metric::Live, 0), STRICT);
        row.numbers.expect("numbers").actual
    };

    assert_eq!(live_of("leak_*", None, Part::Own), 12 * MIB);
    assert_eq!(live_of("leak_*", Some("serv*"), Part::Own), 12 * MIB);
    assert_eq!(live_of("leak_*", Some("lib*"), Part::Own), 0);
    assert_eq!(live_of("main", None, Part::Own), 0);
    assert_eq!(live_of("main", None, Part::Total), 14 * MIB);
    assert_eq!(live_of("*", None, Part::Total), 14 * MIB);
    assert_eq!(live_of("cache::*", None, Part::Own), 2 * MIB);
}

#[test]
fn failed_function_names_its_place_and_stacks() {
    let limit = functions("leak_*", None, Part::Own, Metric::Live, MIB);

    let row = row_of(&whole_run(), limit, STRICT);

    assert_eq!(row.verdict, Verdict::Fail);
    assert_eq!(row.place, Some(Place { file: "src/server.c".to_owned(), line: 41 }));
    assert_eq!(row.source, Some(Place { file: "ci/mem.toml".to_owned(), line: 7 }));
    let frames =
        ["leak_per_request  src/server.c:41", "handle  src/server.c:60", "main  src/server.c:90"];
    let frames = frames.map(str::to_owned).to_vec();
    assert_eq!(row.stacks, [TopStack { amount: 12 * MIB, frames }]);
}

#[test]
fn pattern_without_a_match_passes_and_says_so() {
    let row = row_of(&whole_run(), functions("pares", None, Part::Own, Metric::Live, 0), STRICT);

    assert_eq!(row.verdict, Verdict::Pass);
    assert_eq!(row.notes, ["no function that allocates matches"]);
}

#[test]
fn nameless_code_could_be_any_function() {
    let mut snapshot = whole_run();
    snapshot.stacks.push(fixture::snapshot().stacks[4].clone());
    let limit = |module, most| functions("pares", module, Part::Own, Metric::Live, most);

    assert_eq!(verdict_of(&snapshot, limit(None, 299), STRICT), Verdict::Unknown);
    assert_eq!(verdict_of(&snapshot, limit(None, 300), STRICT), Verdict::Pass);
    assert_eq!(verdict_of(&snapshot, limit(Some("server"), 0), STRICT), Verdict::Pass);
}

#[test]
fn truncated_stack_could_go_through_any_caller() {
    let mut snapshot = whole_run();
    let stack = std::sync::Arc::make_mut(&mut snapshot.stacks[0].stack);
    stack.end = memtrace_common::unwind::End::UnreadableStack;
    let limit = |part| functions("pares", None, part, Metric::Live, 0);

    assert_eq!(verdict_of(&snapshot, limit(Part::Total), STRICT), Verdict::Unknown);
    assert_eq!(verdict_of(&snapshot, limit(Part::Own), STRICT), Verdict::Pass);
}

#[test]
fn loss_proves_no_pass_unless_it_is_allowed() {
    let allowed = Strictness { loss: Loss::Allowed, ..STRICT };
    for counter in ["lost_frees", "lost_allocations", TRACE_TRUNCATED, "probes_refused"] {
        let mut snapshot = whole_run();
        snapshot.counters = vec![(counter.to_owned(), 1)];

        assert_eq!(verdict_of(&snapshot, live(u64::MAX), STRICT), Verdict::Unknown, "{counter}");
        assert_eq!(verdict_of(&snapshot, live(u64::MAX), allowed), Verdict::Pass, "{counter}");
        assert_eq!(verdict_of(&snapshot, live(0), allowed), Verdict::Fail, "{counter}");
    }
}

#[test]
fn session_without_an_end_proves_nothing() {
    let mut snapshot = whole_run();
    snapshot.end = None;

    let row = row_of(&snapshot, live(u64::MAX), STRICT);

    assert_eq!(row.verdict, Verdict::Unknown);
    assert_eq!(row.notes, ["the session did not end in order"]);
}

#[test]
fn program_without_an_allocator_proves_nothing() {
    let mut snapshot = whole_run();
    snapshot.probes.clear();

    assert_eq!(verdict_of(&snapshot, live(u64::MAX), STRICT), Verdict::Unknown);
}

#[test]
fn attach_proves_what_holds_with_all_that_was_before() {
    let mut snapshot = whole_run();
    snapshot.session = fixture::snapshot().session;
    snapshot.processes = fixture::snapshot().processes;
    let actual = snapshot.totals.heap.live_bytes;
    let since = Strictness { attach: Attach::SinceThen, ..STRICT };

    // 7 MiB of heap and 3 MiB of anonymous memory were there before.
    assert_eq!(verdict_of(&snapshot, live(actual + 10 * MIB), STRICT), Verdict::Pass);
    assert_eq!(verdict_of(&snapshot, live(actual + 10 * MIB - 1), STRICT), Verdict::Unknown);
    assert_eq!(verdict_of(&snapshot, live(actual), since), Verdict::Pass);
    assert_eq!(verdict_of(&snapshot, live(actual - 1), since), Verdict::Fail);
    let allocated = total(Metric::Allocated, Bound::AtMost(u64::MAX));
    assert_eq!(verdict_of(&snapshot, allocated, STRICT), Verdict::Unknown);
}

#[test]
fn memory_that_was_never_sampled_is_unknown() {
    let mut snapshot = whole_run();
    snapshot.totals.peak_resident_bytes = 0;

    let row = row_of(&snapshot, total(Metric::Resident, Bound::AtMost(u64::MAX)), STRICT);

    assert_eq!((row.verdict, row.numbers), (Verdict::Unknown, None));
}

#[test]
fn live_limit_mentions_a_peak_beyond_it() {
    let snapshot = whole_run();
    let limit = snapshot.totals.heap.live_bytes;
    assert!(snapshot.totals.peak_live_bytes > limit);

    let row = row_of(&snapshot, live(limit), STRICT);

    assert_eq!(row.verdict, Verdict::Pass);
    assert!(row.notes[0].contains("at its highest"), "{:?}", row.notes);
}

#[test]
fn growth_is_held_against_the_baseline() {
    let mut words = Vocabulary::default();
    let mut grown = whole_run();
    grown.totals.heap.allocations = 1_050;
    let mut before = whole_run();
    before.totals.heap.allocations = 1_000;
    let (new, old) = (profile(&grown, &mut words), profile(&before, &mut words));
    let verdict = |bound, old: &Profile| {
        let budget = budget(vec![total(Metric::Allocations, bound)]);
        let row = judge(&budget, &new, Some(old), &words, STRICT).rows.remove(0);
        (row.verdict, row.numbers.and_then(|numbers| numbers.limit))
    };

    assert_eq!(verdict(Bound::GrowthShare(50_000), &old), (Verdict::Pass, Some(1_050)));
    assert_eq!(verdict(Bound::GrowthShare(49_999), &old), (Verdict::Fail, Some(1_049)));
    assert_eq!(verdict(Bound::Growth(50), &old), (Verdict::Pass, Some(1_050)));
    assert_eq!(verdict(Bound::Growth(49), &old), (Verdict::Fail, Some(1_049)));
    let mut lossy = old;
    lossy.coverage.losses.push("events were lost".to_owned());
    assert_eq!(verdict(Bound::Growth(50), &lossy), (Verdict::Unknown, None));
}

#[test]
fn growth_without_a_baseline_is_unknown() {
    let limit = total(Metric::Live, Bound::Growth(u64::MAX));

    assert_eq!(verdict_of(&whole_run(), limit, STRICT), Verdict::Unknown);
}

/// A row of each verdict, a command that failed, and text that means something to every format.
fn judgement() -> (Judgement, Profile) {
    let mut words = Vocabulary::default();
    let mut snapshot = whole_run();
    snapshot.processes[0].exe = "/srv/<a&b>\"\u{ffff}".into();
    snapshot.stacks.push(fixture::snapshot().stacks[4].clone());
    let profile = profile(&snapshot, &mut words);
    let budget = budget(vec![
        total(Metric::Peak, Bound::AtMost(200 * MIB)),
        live(MIB),
        functions("leak_*", Some("serv*"), Part::Total, Metric::Peak, MIB),
        functions("x<y>&\"::z, 100%", None, Part::Own, Metric::Live, 0),
    ]);
    let mut judgement = judge(&budget, &profile, None, &words, STRICT);
    judgement
        .rows
        .insert(0, Row::of_end("command", Verdict::Fail, "it ended with exit status 3".to_owned()));
    (judgement, profile)
}

#[test]
fn text_at_80_columns() {
    let (judgement, profile) = judgement();
    let options = Options { width: 80, style: Style::Plain };

    let text = render(&judgement, &profile, &options);

    assert!(text.lines().all(|line| width(line) <= 80), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn github_commands_are_one_line_each_and_escaped() {
    let (judgement, _) = judgement();
    let mut out = Vec::new();

    write_github(&mut out, &judgement, Some(Path::new("src"))).expect("a Vec takes all");

    let text = String::from_utf8(out).expect("UTF-8");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[0], "::error title=memtrace%3A command::it ended with exit status 3");
    assert!(lines[1].starts_with("::error file=ci/mem.toml,line=3,title=memtrace%3A live at"));
    assert!(lines[2].starts_with("::error file=server.c,line=41,title=memtrace%3A leak_* in"));
    assert!(
        lines[3].starts_with(
            "::error file=ci/mem.toml,line=7,title=memtrace%3A x<y>&\"%3A%3Az%2C 100%25%3A live"
        ),
        "{}",
        lines[3]
    );
}

#[test]
fn junit_is_xml_that_says_the_same() {
    use quick_xml::XmlVersion;
    use quick_xml::events::Event;

    let (judgement, profile) = judgement();
    let mut out = Vec::new();

    write_junit(&mut out, &judgement, &profile).expect("a Vec takes all");

    let text = String::from_utf8(out).expect("UTF-8");
    let mut reader = quick_xml::Reader::from_str(&text);
    let mut cases = Vec::new();
    loop {
        match reader.read_event().expect("well-formed") {
            Event::Start(tag) | Event::Empty(tag) => {
                let attribute = |name: &str| {
                    let found = tag.try_get_attribute(name).expect("attributes");
                    let found = found.map(|value| {
                        value.normalized_value(XmlVersion::Implicit1_0).expect("escaped")
                    });
                    found.unwrap_or_default().into_owned()
                };
                match tag.name().as_ref() {
                    b"testsuite" => {
                        assert_eq!(attribute("tests"), "5");
                        assert_eq!(
                            (attribute("failures"), attribute("errors")),
                            ("3".into(), "1".into())
                        );
                        assert_eq!(attribute("name"), "memtrace check: <a&b>\"\u{fffd} (pid 4242)");
                    }
                    b"testcase" => cases.push((attribute("name"), "pass")),
                    b"failure" => cases.last_mut().expect("in a case").1 = "fail",
                    b"error" => cases.last_mut().expect("in a case").1 = "unknown",
                    _ => {}
                }
            }
            Event::Eof => break,
            _ => {}
        }
    }
    let expected: Vec<_> =
        judgement.rows.iter().map(|row| (row.name(), row.verdict.name())).collect();
    assert_eq!(cases, expected);
}

#[test]
fn json_is_valid() {
    let (judgement, profile) = judgement();
    let mut out = Vec::new();

    write_json(&mut out, &judgement, &profile).expect("a Vec takes all");

    let schema = include_str!("../../../../docs/check.schema.json");
    let schema = serde_json::from_str(schema).expect("the schema is JSON");
    let check = serde_json::from_slice(&out).expect("JSON");
    if let Err(error) = jsonschema::validate(&schema, &check) {
        panic!("{}: {error}", error.instance_path());
    }
    assert_eq!(check["verdict"], "fail");
    assert_eq!(check["checks"][2]["actual"], 14 * MIB + 300);
}
