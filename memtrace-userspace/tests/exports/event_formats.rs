//! Formats that are made of every event.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::browser::{BROWSER, document};
use crate::consumer::{python, require};
use crate::made_up::{
    ALLOCATED_BYTES, ALLOCATIONS, CACHE_BYTES, LIVE_BLOCKS, LIVE_BYTES, PARSED_BYTES, PEAK_BYTES,
    Trace,
};
use crate::{ask, export};

/// The first row of a query over a file, with `|` between its values.
pub(crate) fn duckdb(python: &Path, query: &str, file: &Path) -> String {
    let script = "import duckdb, sys; db = duckdb.connect(); \
                  db.execute('set variable file = ?', [sys.argv[2]]); \
                  print('|'.join(str(value) for value in db.execute(sys.argv[1]).fetchone()))";
    let output = Command::new(python).args(["-c", script, query]).arg(file).output();
    let output = output.expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_owned()
}

#[test]
fn duckdb_counts_what_the_report_counts() {
    let Some(python) = python() else { return };
    let trace = Trace::new();

    let file = export(&trace, "e.parquet", &[]);

    let query = |text| duckdb(&python, text, &file);
    assert_eq!(
        query(
            "select count(*), sum(size), min(pid), max(time_ns) from \
             read_parquet(getvariable('file')) where kind = 'alloc'"
        ),
        format!("{ALLOCATIONS}|{ALLOCATED_BYTES}|4242|5000000000")
    );
    assert_eq!(
        query(
            "select sum(case kind when 'alloc' then size else -size end) from \
             read_parquet(getvariable('file')) where kind in ('alloc', 'free', 'retire')"
        ),
        LIVE_BYTES.to_string()
    );
    assert_eq!(
        query(
            "select sum(size) from read_parquet(getvariable('file')) \
             where kind = 'free' and function like '%parse' and stack like '%serve;%parse'"
        ),
        PARSED_BYTES.to_string()
    );
    assert_eq!(
        query(
            "select value::varchar from parquet_kv_metadata(getvariable('file')) \
             where key = 'memtrace.target'"
        ),
        "made-up (pid 4242)"
    );
}

#[test]
fn heaptrack_print_finds_the_same_numbers() {
    let Some(print) = require("/usr/bin/heaptrack_print") else { return };
    let trace = Trace::new();

    for name in ["h.heaptrack", "h.heaptrack.gz", "h.heaptrack.zst"] {
        let file = export(&trace, name, &[]);

        let text = ask(&print, &["--print-leaks=1"], &file);
        let expected = [
            format!("calls to allocation functions: {ALLOCATIONS} "),
            // heaptrack counts in thousands.
            format!("peak heap memory consumption: {:.2}M", PEAK_BYTES as f64 / 1e6),
            format!("total memory leaked: {:.2}K", LIVE_BYTES as f64 / 1e3),
            format!("{:.2}K leaked over 64 calls from", CACHE_BYTES as f64 / 1e3),
        ];
        for part in expected {
            assert!(text.contains(&part), "{name}: {part}: {text}");
        }
        assert!(text.contains("fill_cache"), "{name}: {text}");
        assert!(!text.contains("failed to parse"), "{name}: {text}");
    }
}

#[test]
fn viewer_of_dhat_shows_totals_peak_and_end() {
    let viewer = Path::new("/usr/libexec/valgrind");
    let (Some(_), Some(browser)) = (require(viewer.join("dh_view.html")), require(BROWSER)) else {
        return;
    };
    let trace = Trace::new();

    let file = export(&trace, "d.dhat.json", &[]);

    // The page as it is, and a script that does what its file dialogue would do.
    for name in ["dh_view.css", "dh_view.js"] {
        fs::copy(viewer.join(name), trace.directory().join(name)).expect("space");
    }
    let profile = fs::read_to_string(file).expect("UTF-8");
    let script = format!(
        "window.addEventListener('load', () => tryFunc(() => {{ gFilename = 'd'; \
         gData = {profile}; buildTree(); displayTree(1, 1, 1); }}));"
    );
    fs::write(trace.directory().join("open.js"), script).expect("space");
    let page = fs::read_to_string(viewer.join("dh_view.html")).expect("UTF-8");
    assert!(page.contains("</body>"));
    let page = page.replace("</body>", "<script src=\"open.js\"></script></body>");
    let page_path = trace.directory().join("view.html");
    fs::write(&page_path, page).expect("space");
    let page = document(&browser, trace.directory(), &format!("file://{}", page_path.display()));
    let text = without_tags(&page);
    let expected = [
        "Total:     1,124,412 bytes (100%, 160,630.29/s) in 167 blocks".to_owned(),
        "At t-gmax: 1,114,112 bytes (100%) in 65 blocks".to_owned(),
        "At t-end:  65,736 bytes (100%) in 65 blocks".to_owned(),
        // Each lived from 1 s to 7 s.
        "avg lifetime 6,000,000 µs (85.71% of program duration)".to_owned(),
        "t-gmax: 3,000,000 µs (42.86% of program duration)".to_owned(),
    ];
    assert_eq!((ALLOCATED_BYTES, PEAK_BYTES, LIVE_BYTES), (1_124_412, 1_114_112, 65_736));
    assert_eq!((ALLOCATIONS, LIVE_BLOCKS), (167, 65));
    for part in expected {
        assert!(text.contains(&part), "{part}: {text}");
    }
    assert!(text.contains("::fill_cache ("), "{text}");
}

fn without_tags(page: &str) -> String {
    let parts = page.split('<').map(|part| part.split_once('>').map_or(part, |(_, text)| text));
    parts.collect()
}
