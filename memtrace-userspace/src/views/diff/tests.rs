use std::sync::Arc;

use super::*;
use crate::pipeline::snapshot::Snapshot;
use crate::views::fixture;
use crate::views::layout::width;
use crate::views::ranking::rank;
use crate::views::style::Style;

/// The fixture, and what became of it:
///
/// ```text
///   leak_per_request   twice as much, called in line 92    grown
///   parse ← parse      one level deeper, as much           same
///   cache_fill         no more                             gone
///   ?? in plugin.so    from handle instead                 new
/// ```
fn later() -> Snapshot {
    let mut snapshot = fixture::snapshot();
    let usage = &mut snapshot.stacks[0].usage;
    let grown = *usage;
    add_usage(usage, &grown);
    let leak = Arc::make_mut(&mut snapshot.stacks[0].stack);
    leak.frames[2] = fixture::snapshot().stacks[1].stack.frames[1];
    let deeper = Arc::make_mut(&mut snapshot.stacks[2].stack);
    deeper.frames.insert(2, deeper.frames[1]);
    let handle = snapshot.stacks[0].stack.frames[1..].to_vec();
    Arc::make_mut(&mut snapshot.stacks[4].stack).frames.extend(handle);
    snapshot.stacks.remove(1);
    let mut heap = Usage::default();
    let is_heap = |s: &&crate::pipeline::snapshot::StackUsage| Memory::of(s.api) == Memory::Heap;
    snapshot.stacks.iter().filter(is_heap).for_each(|s| add_usage(&mut heap, &s.usage));
    snapshot.totals.heap = heap;
    snapshot.totals.peak_live_bytes = heap.peak_bytes;
    snapshot
}

fn profile(snapshot: &Snapshot, words: &mut Vocabulary) -> Profile {
    let ranking = rank(snapshot, &mut fixture::names(), SortKey::Live);
    Profile::of_session(snapshot, &ranking, words)
}

struct Case {
    words: Vocabulary,
    old: Profile,
    new: Profile,
}

impl Case {
    fn new(old: &Snapshot, new: &Snapshot) -> Case {
        let mut words = Vocabulary::default();
        let (new, old) = (profile(new, &mut words), profile(old, &mut words));
        Case { words, old, new }
    }

    fn compare(&self, key: SortKey) -> Comparison {
        compare(&self.old, &self.new, &self.words, key)
    }

    fn sides(&self) -> Sides<'_> {
        Sides {
            old: Side { name: "old.mtrace", profile: &self.old },
            new: Side { name: "new.mtrace", profile: &self.new },
            per_second: false,
        }
    }

    fn text(&self, width: usize, style: Style) -> String {
        let options = Options { width, style, top: None };
        render(&self.sides(), &self.compare(SortKey::Live), &self.words, &options)
    }

    fn json(&self) -> String {
        let mut out = Vec::new();
        let comparison = self.compare(SortKey::Live);
        write_json(&mut out, &self.sides(), &comparison, &self.words, None).expect("a Vec");
        String::from_utf8(out).expect("JSON is UTF-8")
    }
}

#[test]
fn session_compared_with_itself_has_no_change() {
    let case = Case::new(&fixture::snapshot(), &fixture::snapshot());

    let comparison = case.compare(SortKey::Allocated);

    assert!(comparison.functions.iter().all(|f| f.status(SortKey::Allocated) == Status::Same));
    assert!(comparison.stacks.iter().all(|s| s.status(SortKey::Allocated) == Status::Same));
    assert!(comparison.stacks.iter().all(|s| s.old == s.new));
}

#[test]
fn changes_add_up_to_that_of_the_totals() {
    let case = Case::new(&fixture::snapshot(), &later());
    for &key in SortKey::ALL {
        let comparison = case.compare(key);
        let change = |(old, new): (Option<u64>, Option<u64>)| {
            i128::from(new.unwrap_or(0)) - i128::from(old.unwrap_or(0))
        };
        let total =
            change((Some(key.of(&case.old.totals.heap)), Some(key.of(&case.new.totals.heap))));

        let functions: i128 = comparison.functions.iter().map(|f| change(f.own(key))).sum();
        let heap = comparison.stacks.iter().filter(|s| s.memory == Memory::Heap);
        let stacks: i128 = heap.map(|s| change(s.amounts(key))).sum();

        assert_eq!((functions, stacks), (total, total), "{key:?}");
    }
}

#[test]
fn each_function_has_its_status() {
    let case = Case::new(&fixture::snapshot(), &later());

    let comparison = case.compare(SortKey::Live);

    let mut statuses: Vec<_> = comparison
        .functions
        .iter()
        .map(|f| {
            let name = crate::views::profile::label::function_name(case.words.function(f.function));
            (name, f.status(SortKey::Live))
        })
        .collect();
    statuses.sort();
    let expected = [
        ("?? in plugin.so", Status::Same),
        ("cache::Entry::build", Status::Gone),
        ("cache_fill", Status::Gone),
        ("handle", Status::Same),
        ("leak_per_request", Status::Grown),
        ("main", Status::Same),
        ("parse", Status::Same),
    ];
    assert_eq!(statuses, expected.map(|(name, status)| (name.to_owned(), status)));
}

#[test]
fn depth_of_a_recursion_makes_no_other_stack() {
    let case = Case::new(&fixture::snapshot(), &later());

    let comparison = case.compare(SortKey::Live);

    let is_parse = |s: &&StackChange| s.functions(&case.words).count() == 2;
    let parse = comparison.stacks.iter().filter(is_parse).find(|s| s.memory == Memory::Heap);
    let parse = parse.expect("parse ← main");
    let frames =
        |side: &Option<StackSide>| side.as_ref().map(|side| case.words.frames(&side.path).count());
    assert_eq!((frames(&parse.old), frames(&parse.new)), (Some(3), Some(4)));
}

#[test]
fn text_at_80_columns() {
    let case = Case::new(&fixture::snapshot(), &later());

    insta::assert_snapshot!(case.text(80, Style::Plain));
}

#[test]
fn text_fits_and_has_escapes_on_terminals_only() {
    let case = Case::new(&fixture::snapshot(), &later());
    for columns in [70, 80, 120] {
        for line in case.text(columns, Style::Plain).lines() {
            assert!(width(line) <= columns && !line.contains('\x1b'), "{columns}: {line}");
        }
    }
    assert!(case.text(80, Style::Ansi).contains("\x1b[31m  +12.0 MiB"));
}

#[test]
fn sessions_of_different_length_are_told_of_rates() {
    let mut longer = fixture::snapshot();
    longer.now = crate::record::Time(60_000_000_000);

    let text = Case::new(&fixture::snapshot(), &longer).text(80, Style::Plain);

    assert!(text.contains("! they last 12.3 s and 1m00s: --per-second"), "{text}");
}

#[test]
fn json_is_valid() {
    let json = Case::new(&fixture::snapshot(), &later()).json();

    let schema = include_str!("../../../../docs/diff.schema.json");
    let schema = serde_json::from_str(schema).expect("the schema is JSON");
    let diff = serde_json::from_str(&json).expect("JSON");
    if let Err(error) = jsonschema::validate(&schema, &diff) {
        panic!("{}: {error}", error.instance_path());
    }
    assert_eq!(diff["functions"][0]["change"], 12_582_912);
    assert_eq!(diff["functions"][0]["status"], "grown");
}

#[test]
fn folded_lines_have_both_numbers() {
    let case = Case::new(&fixture::snapshot(), &later());

    assert_eq!(
        folded(&case.compare(SortKey::Live), &case.words),
        [
            "[cut];?? in plugin.so 300 0",
            "[cut];main;handle;?? in plugin.so 0 300",
            "main;cache_fill;cache::Entry::build 2097152 0",
            "main;handle;leak_per_request 12582912 25165824",
        ]
    );
}

#[test]
fn flame_graph_of_nothing_is_an_error() {
    let mut nothing = fixture::snapshot();
    nothing.stacks.clear();
    let case = Case::new(&fixture::snapshot(), &nothing);
    let mut out = Vec::new();

    let drawn = write_svg(&mut out, &case.sides(), &case.compare(SortKey::Live), &case.words);

    assert!(matches!(drawn, Err(FlameError::Empty { what: "live bytes" })), "{drawn:?}");
}

#[test]
fn flame_graph_is_well_formed_and_shows_the_growth() {
    let case = Case::new(&fixture::snapshot(), &later());
    let mut out = Vec::new();

    write_svg(&mut out, &case.sides(), &case.compare(SortKey::Live), &case.words).expect("drawn");

    let svg = String::from_utf8(out).expect("UTF-8");
    let mut reader = quick_xml::Reader::from_str(&svg);
    while reader.read_event().expect("XML") != quick_xml::events::Event::Eof {}
    assert!(svg.contains("<title>leak_per_request (25,165,824 bytes, "), "{svg}");
}
