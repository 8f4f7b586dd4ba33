use super::*;
use crate::views::export::json;
use crate::views::fixture;
use crate::views::ranking::{SortKey, rank};
use crate::views::suppressions::Suppressions;

fn live(snapshot: &Snapshot, words: &mut Vocabulary) -> Profile {
    let ranking = rank(snapshot, &mut fixture::names(), SortKey::Live);
    Profile::of_session(snapshot, &ranking, words)
}

fn report(snapshot: &Snapshot, top: Option<usize>) -> String {
    let ranking = rank(snapshot, &mut fixture::names(), SortKey::Live);
    let mut out = Vec::new();
    json::write(&mut out, snapshot, &ranking, top).expect("a Vec takes all");
    String::from_utf8(out).expect("JSON is UTF-8")
}

#[test]
fn report_read_back_is_the_session() {
    let snapshot = fixture::snapshot();
    let mut words = Vocabulary::default();

    let session = live(&snapshot, &mut words);
    let back = read_report(&report(&snapshot, None), &Suppressions::default(), &mut words)
        .expect("a report");

    assert_eq!(back.target, session.target);
    assert_eq!(back.coverage, session.coverage);
    assert_eq!(back.caveats, session.caveats);
    assert_eq!(back.totals, session.totals);
    assert_eq!(back.stacks, session.stacks);
    let mut growth = session.growth;
    growth.paths.iter_mut().for_each(|path| path.plus_minus += 1);
    assert_eq!(back.growth, growth);
}

#[test]
fn leaks_of_a_report_can_be_suppressed() {
    let report = report(&fixture::snapshot(), None);
    let suppressions = Suppressions::parse("leak:^leak_per_*").expect("valid");

    let back = read_report(&report, &suppressions, &mut Vocabulary::default()).expect("a report");

    let growth = back.growth;
    assert!(growth.paths.iter().all(|path| !path.is_leak), "{growth:?}");
    assert_eq!(
        (growth.suppressed[0].pattern.as_str(), growth.suppressed[0].leaks),
        ("^leak_per_*", 1)
    );
}

#[test]
fn losses_are_what_is_missing_from_the_numbers() {
    let mut snapshot = fixture::snapshot();
    snapshot.end = None;

    let profile = live(&snapshot, &mut Vocabulary::default());

    assert_eq!(
        profile.coverage.losses,
        [
            "the session did not end in order",
            "5 lost_allocations: allocations not recorded, the ring was full; try a larger \
             --ring-size",
        ]
    );
}

#[test]
fn report_with_a_part_of_the_stacks_says_so() {
    let report = report(&fixture::snapshot(), Some(2));

    let profile = read_report(&report, &Suppressions::default(), &mut Vocabulary::default())
        .expect("a report");

    let loss = "the report lists 2 of 5 stacks: write it without --top";
    assert!(profile.coverage.losses.iter().any(|line| line == loss), "{profile:?}");
}

#[test]
fn report_cut_or_changed_anywhere_never_panics() {
    let report = report(&fixture::snapshot(), None);
    let mut words = Vocabulary::default();

    for end in 0..report.len() - 2 {
        assert!(
            read_report(&report[..end], &Suppressions::default(), &mut words).is_err(),
            "{end}"
        );
    }
    for at in (0..report.len()).step_by(3) {
        for byte in [b'0', b'"', b'{', b'-'] {
            let mut bytes = report.clone().into_bytes();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = read_report(&text, &Suppressions::default(), &mut words);
            }
        }
    }
}

#[test]
fn other_json_is_no_report() {
    let read = |text| {
        read_report(text, &Suppressions::default(), &mut Vocabulary::default())
            .expect_err(text)
            .to_string()
    };

    assert!(read("{").starts_with("not a JSON report"));
    assert!(read("{\"a\": 1}").starts_with("expected memtrace-report version 2, found  version 0"));
    assert!(
        read(r#"{"format": "memtrace-\u001b[2J", "version": 2}"#).contains(r"memtrace-\x1b[2J")
    );
}

#[test]
fn call_path_through_a_place_that_is_not_there_is_an_error() {
    let report = report(&fixture::snapshot(), None).replace("[4, 5]", "[4, 99]");

    let read = read_report(&report, &Suppressions::default(), &mut Vocabulary::default());

    assert!(
        matches!(&read, Err(ReportError::Malformed(error)) if error.to_string() == "there is no place 99"),
        "{read:?}"
    );
}

#[test]
fn short_report_of_endless_stacks_is_an_error() {
    let report = report(&fixture::snapshot(), None);
    // 2^15 times through 2^16 frames.
    let frame = r#"{"function": null, "file": null, "line": null}"#;
    let many = vec![frame; 1 << 16].join(",");
    let place = format!(r#""address": "0x4000", "frames": [{frame}]"#);
    let report = report.replace(&place, &format!(r#""frames": [{many}]"#));
    let path = vec!["6"; 1 << 15].join(",");

    let read = read_report(
        &report.replace("[6]", &format!("[{path}]")),
        &Suppressions::default(),
        &mut Vocabulary::default(),
    );

    let message = "its stacks have more than 1073741824 frames";
    assert!(
        matches!(&read, Err(ReportError::Malformed(error)) if error.to_string() == message),
        "{read:?}"
    );
}

#[test]
fn hostile_names_of_a_report_are_printable() {
    let report = report(&fixture::snapshot(), None).replace("leak_per_request", r"a\u001b[2J");
    let mut words = Vocabulary::default();

    read_report(&report, &Suppressions::default(), &mut words).expect("a report");

    let names: Vec<_> = words.functions().filter_map(|(_, f)| f.name.as_deref()).collect();
    assert!(names.contains(&r"a\x1b[2J"), "{names:?}");
}

#[test]
fn program_has_one_name_in_every_build() {
    let mut words = Vocabulary::default();
    let new = live(&fixture::snapshot(), &mut words);
    let old_report = report(&fixture::snapshot(), None).replace("/srv/app/server", "/old/srv-1");

    let old = read_report(&old_report, &Suppressions::default(), &mut words).expect("a report");

    let functions = |profile: &Profile| {
        let charges = profile.by_function(&words, Memory::Heap);
        charges.into_iter().map(|(id, usage)| (id, usage.charge)).collect::<Vec<_>>()
    };
    assert_eq!(functions(&old), functions(&new));
    assert_eq!(old.target, "srv-1 (pid 4242)");
}

#[test]
fn functions_are_charged_as_in_the_report() {
    let snapshot = fixture::snapshot();
    let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
    let mut words = Vocabulary::default();
    let profile = Profile::of_session(&snapshot, &ranking, &mut words);

    let by_function = profile.by_function(&words, Memory::Heap);

    assert_eq!(
        by_function.len(),
        ranking.functions.iter().filter(|f| f.heap != Charge::default()).count()
    );
    for (id, FunctionUsage { charge, heaviest }) in by_function {
        let function = words.function(id);
        let ranked = ranking.functions.iter().find(|f| f.function.name == function.name);
        let ranked = ranked.expect("the same functions");
        assert_eq!(charge, ranked.heap, "{function:?}");
        assert_eq!(words.frame(heaviest).line, ranked.line, "{function:?}");
    }
}

#[test]
fn rates_are_work_of_one_second() {
    let mut snapshot = fixture::snapshot();
    snapshot.now = crate::record::Time(2_000_000_000);
    let profile = live(&snapshot, &mut Vocabulary::default());
    let before = profile.totals.heap;

    let rates = profile.per_second();

    assert_eq!(rates.totals.heap.allocations, before.allocations.div_ceil(2));
    assert_eq!(rates.totals.heap.allocated_bytes, before.allocated_bytes.div_ceil(2));
    assert_eq!(rates.totals.heap.live_bytes, before.live_bytes);
    assert_eq!(rate(10, Duration::ZERO), 10_000_000_000);
}
