//! The page, as a browser shows it.

use std::fs;

use memtrace_userspace::record::{Record, Tid, Time};

use crate::browser::{BROWSER, document};
use crate::consumer::require;
use crate::export;
use crate::made_up::{
    ALLOCATED_BYTES, ALLOCATIONS, CACHE_BYTES, LIVE_BYTES, MAPPED_BYTES, PARSED_BYTES, PEAK_BYTES,
    Trace, records,
};

/// A page that can be opened in several ways.
struct Page {
    trace: Trace,
    browser: std::path::PathBuf,
    url: String,
}

/// What is shown after the scripts have run.
struct Shown(String);

impl Page {
    /// `None` if there is no browser and the test is to be skipped.
    fn of(trace: Trace) -> Option<Page> {
        let browser = require(BROWSER)?;
        let file = export(&trace, "r.html", &[]);
        let url = format!("file://{}", file.display());
        Some(Page { trace, browser, url })
    }

    /// Opens the page at an address such as `metric=peak`.
    fn open(&self, address: &str) -> Shown {
        let url = format!("{}#{address}", self.url);
        let shown = document(&self.browser, self.trace.directory(), &url);
        assert!(shown.contains("data-ready=\"true\""), "{address}: {shown}");
        Shown(shown)
    }
}

impl Shown {
    /// The numbers in the line of a table that begins with a function; `None` without that line.
    fn line(&self, function: &str) -> Option<Vec<i64>> {
        let (_, line) = self.0.split_once(&format!("::{function}</button>"))?;
        let (line, _) = line.split_once("</tr>").expect("a line ends");
        let values = line.split("data-value=\"").skip(1);
        Some(values.map(|value| number(value.split('"').next().expect("it ends"))).collect())
    }

    /// The sum that the flame graph shows.
    fn total(&self) -> i64 {
        let (_, total) = self.0.split_once("data-total=\"").expect("the graph says it");
        number(total.split('"').next().expect("it ends"))
    }
}

fn number(text: &str) -> i64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn signed(number: u64) -> i64 {
    number.try_into().expect("small")
}

#[test]
fn page_shows_the_numbers_of_the_json_report() {
    let Some(page) = Page::of(Trace::new()) else { return };
    let json = fs::read(export(&page.trace, "r.json", &[])).expect("written");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let metrics = [
        ("live", "live_bytes", LIVE_BYTES),
        ("peak", "peak_bytes", PEAK_BYTES),
        ("allocated", "allocated_bytes", ALLOCATED_BYTES),
        ("allocations", "allocations", ALLOCATIONS),
    ];

    for (metric, key, sum) in metrics {
        let shown = page.open(&format!("metric={metric}"));

        assert_eq!(shown.total(), signed(sum), "{metric}");
        for function in ["fill_cache", "parse", "report", "grow", "serve", "main_of_it"] {
            let functions = json["functions"].as_array().expect("a list");
            let named = |f: &&serde_json::Value| {
                f["function"].as_str().is_some_and(|name| name.ends_with(&format!("::{function}")))
            };
            let expected = functions.iter().find(named).expect(function);
            let line = shown.line(function);
            if expected["total"][key] == 0 && expected["self"]["allocations"] == 0 {
                assert_eq!(line, None, "{metric} {function}");
                continue;
            }
            let expected = [
                &expected["self"][key],
                &expected["total"][key],
                &expected["self"]["allocated_bytes"],
                &expected["self"]["allocations"],
            ]
            .map(|number| number.as_i64().expect("a number"));
            assert_eq!(line.expect(function)[..4], expected, "{metric} {function}");
        }
    }
}

#[test]
fn page_of_a_range_shows_what_happened_in_it() {
    let Some(page) = Page::of(Trace::new()) else { return };

    let parsing = page.open("metric=allocated&from=1.5&to=2.5");
    let peak = page.open("metric=peak&from=2.5&to=3.5");
    let freeing = page.open("metric=growth&from=3.5&to=4.5");

    assert_eq!(parsing.total(), signed(PARSED_BYTES));
    assert_eq!(parsing.line("parse"), Some(vec![10_000, 10_000, 10_000, 100, 100]));
    assert_eq!(parsing.line("fill_cache"), None);
    assert_eq!(peak.total(), signed(PEAK_BYTES));
    assert_eq!(peak.line("fill_cache").map(|line| line[0]), Some(signed(CACHE_BYTES)));
    assert_eq!(peak.line("report"), Some(vec![1 << 20, 1 << 20, 1 << 20, 1, 0]));
    assert_eq!(freeing.total(), 0);
    assert_eq!(freeing.line("report").map(|line| line[0]), Some(-(1 << 20)));
}

#[test]
fn threads_of_a_range_have_what_they_did_in_it() {
    let Some(page) = Page::of(Trace::new()) else { return };

    let whole = page.open("tab=threads");
    let parsing = page.open("tab=threads&from=1.5&to=2.5");

    let numbers = |shown: &Shown| -> Vec<i64> {
        let (_, table) = shown.0.split_once("<tbody>").expect("a table");
        let (table, _) = table.split_once("</tbody>").expect("it ends");
        let values = table.split("data-value=\"").skip(1);
        values.map(|value| number(value.split('"').next().expect("it ends"))).collect()
    };
    // Live, at peak, growth, allocated, allocations, temporary: the report was freed at once too.
    let (live, peak) = (signed(LIVE_BYTES), signed(PEAK_BYTES));
    let (bytes, calls) = (signed(ALLOCATED_BYTES), signed(ALLOCATIONS));
    assert_eq!(numbers(&whole), [live, peak, live, bytes, calls, 101]);
    let (cache, parsed) = (signed(CACHE_BYTES), signed(PARSED_BYTES));
    assert_eq!(numbers(&parsing), [cache, cache, 0, parsed, 100, 100]);
}

#[test]
fn blocks_have_their_sizes_and_lifetimes() {
    let Some(page) = Page::of(Trace::new()) else { return };

    let Shown(shown) = page.open("tab=blocks");

    assert!(shown.contains("Sizes that were asked for"), "{shown}");
    assert!(shown.contains("Lifetimes of blocks that were freed"), "{shown}");
}

#[test]
fn page_of_mappings_leaves_the_heap_out() {
    let Some(page) = Page::of(Trace::new()) else { return };

    let shown = page.open("memory=mapped&tree=allocators");

    assert_eq!(shown.total(), signed(MAPPED_BYTES));
    assert_eq!(shown.line("report").map(|line| line[0]), Some(signed(MAPPED_BYTES)));
    assert_eq!(shown.line("fill_cache"), None);
}

#[test]
fn search_tells_the_share_of_what_it_finds() {
    let Some(page) = Page::of(Trace::new()) else { return };

    let shown = page.open("metric=peak&search=FILL_cache");

    assert!(shown.0.contains("Matched: 64.0 KiB of 1.1 MiB (5.9%)"), "{}", shown.0);
    assert!(shown.line("fill_cache").is_some() && shown.line("report").is_none());
}

#[test]
fn address_that_means_nothing_shows_the_session() {
    let Some(page) = Page::of(Trace::new()) else { return };

    let shown = page.open("metric=%00&tab=constructor&from=x&to=-1&__proto__=1&search=");

    assert_eq!(shown.total(), signed(LIVE_BYTES));
    assert!(shown.line("fill_cache").is_some());
}

/// Text that would do harm if it were markup, a script or a terminal's.
const HOSTILE: &str =
    "</script><img src=x onerror=document.body.innerHTML='owned'>\u{2028}\u{1b}[31m\"'`${1}";

#[test]
fn names_that_are_markup_are_shown_as_text() {
    let mut records = records();
    let name = HOSTILE.as_bytes().to_vec();
    for record in &mut records {
        match record {
            Record::Process(process) => {
                process.exe = name.clone();
                process.command = vec![name.clone(), vec![b'<'; 10_000]];
            }
            Record::Thread { name: thread, .. } => *thread = name.clone(),
            _ => {}
        }
    }
    let mark = Record::Mark { time: Time(1_500_000_000), text: HOSTILE.to_owned() };
    let end = records.len() - 1;
    records.insert(
        end,
        Record::Thread {
            time: Time(0),
            pid: memtrace_userspace::record::Pid(4242),
            tid: Tid(4243),
            name,
        },
    );
    let at = records.iter().position(|r| matches!(r, Record::Free { .. })).expect("one");
    records.insert(at, mark);
    let Some(page) = Page::of(Trace::of(&records)) else { return };
    let file = fs::read_to_string(page.url.trim_start_matches("file://")).expect("UTF-8");

    for tab in ["functions", "stacks", "threads", "processes", "session"] {
        let Shown(shown) = page.open(&format!("tab={tab}"));

        assert!(!shown.contains("<img"), "{tab}");
        assert!(!shown.contains("<body>owned"), "{tab}");
        assert!(shown.contains("&lt;img src=x onerror="), "{tab}");
    }
    assert!(!file.contains("onerror"), "the file holds names in packed form alone");
    assert_eq!(file.matches("</script>").count(), 2);
}

#[test]
fn page_asks_for_nothing_from_anywhere() {
    let trace = Trace::new();

    let page = fs::read_to_string(export(&trace, "r.html", &[])).expect("UTF-8");

    assert!(page.contains("default-src 'none'"));
    // The one address is the name of SVG's vocabulary, which nobody loads.
    let addresses: Vec<&str> = page.split("http").skip(1).collect();
    assert_eq!(addresses.len(), 2, "http-equiv and SVG's name");
    for loader in [" src=", "@import", "url(", "fetch(", "XMLHttpRequest", "<link"] {
        assert!(!page.contains(loader), "{loader}");
    }
}
