//! A page for a browser, in one file that asks for nothing else.
//!
//! ```text
//!   every event ─→ activity ─┐
//!   Snapshot, Ranking ───────┴→ rows ─→ page ─→ JSON ─→ gzip ─→ base64 ─┐
//!   report.html, report.css, *.js ──────────────────────────────────────┴→ one file
//! ```
//!
//! What the target chose (names, paths, command lines) is in the packed data alone, which is
//! letters and digits; the script shows it as text and never as markup. The page's own policy lets
//! the browser run this script and no other, and forbids every connection.

mod page;
mod rows;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

use self::page::Labels;
use self::rows::Room;
use crate::pipeline::snapshot::Snapshot;
use crate::views::activity::Activity;
use crate::views::export::json::places::Places;
use crate::views::frames::Names;
use crate::views::ranking::Ranking;

const FRAME: &str = include_str!("html/report.html");
const STYLE: &str = include_str!("html/report.css");
/// The parts of the script, each in terms of those before it.
const SCRIPT: &[&str] = &[
    include_str!("html/quantity.js"),
    include_str!("html/dom.js"),
    include_str!("html/session.js"),
    include_str!("html/tree.js"),
    include_str!("html/state.js"),
    include_str!("html/timeline.js"),
    include_str!("html/flame.js"),
    include_str!("html/table.js"),
    include_str!("html/tabs.js"),
    include_str!("html/report.js"),
];

/// A page of this much opens within a second or two, and is a file of some megabytes.
const ROOM: Room = Room { rows: 20_000, nodes: 250_000, cells: 600_000 };

/// Writes the page. `activity` has seen every event of the session.
pub fn write(
    mut out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    activity: Activity,
    names: &mut Names,
) -> io::Result<()> {
    let rows = rows::rows(snapshot, ranking, &activity.finish(snapshot), names, ROOM);
    let labels = Labels::new(&rows);
    let places = Places::new();
    let page = page::page(snapshot, ranking, &rows, &labels, &places);
    let script = SCRIPT.concat();
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; base-uri 'none'; form-action 'none'",
        source_hash(&script),
        source_hash(STYLE),
    );
    // Each mark stands in the frame once, in this order.
    let mut rest = FRAME;
    for (mark, text) in [("{policy}", policy.as_str()), ("{style}", STYLE)] {
        rest = write_up_to(&mut out, rest, mark)?;
        out.write_all(text.as_bytes())?;
    }
    rest = write_up_to(&mut out, rest, "{data}")?;
    let packed = EncoderWriter::new(&mut out, &STANDARD);
    let mut packed = GzEncoder::new(packed, Compression::best());
    serde_json::to_writer(io::BufWriter::new(&mut packed), &page)?;
    packed.finish()?.finish()?;
    rest = write_up_to(&mut out, rest, "{script}")?;
    out.write_all(script.as_bytes())?;
    out.write_all(rest.as_bytes())
}

/// Writes what stands before `mark`, and returns what stands behind it.
fn write_up_to<'f>(out: &mut impl Write, frame: &'f str, mark: &str) -> io::Result<&'f str> {
    let (before, behind) = frame.split_once(mark).expect("the frame has every mark");
    out.write_all(before.as_bytes())?;
    Ok(behind)
}

/// What a policy calls a script or a style that it allows.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::views::activity::Level;
    use crate::views::fixture;
    use crate::views::ranking::{SortKey, rank};

    fn page() -> String {
        let (snapshot, mut names) = (fixture::snapshot(), fixture::names());
        let ranking = rank(&snapshot, &mut names, SortKey::Live);
        let mut out = Vec::new();
        write(&mut out, &snapshot, &ranking, Activity::new(Level::Live), &mut names)
            .expect("a Vec");
        String::from_utf8(out).expect("UTF-8")
    }

    /// What stands between two texts.
    fn between<'t>(text: &'t str, before: &str, behind: &str) -> &'t str {
        let (_, rest) = text.split_once(before).expect(before);
        rest.split_once(behind).expect(behind).0
    }

    #[test]
    fn policy_allows_the_script_and_the_style_of_the_page() {
        let page = page();

        let policy = between(&page, "Content-Security-Policy\" content=\"", "\"");
        let script = source_hash(between(&page, "<script>", "</script>"));
        let style = source_hash(between(&page, "<style>", "</style>"));
        assert!(policy.contains(&format!("script-src '{script}'")), "{policy}");
        assert!(policy.contains(&format!("style-src '{style}'")), "{policy}");
    }

    #[test]
    fn packed_data_hold_the_report_and_every_row() {
        let page = page();

        let packed = between(&page, "application/octet-stream\">", "</script>");
        let packed = STANDARD.decode(packed).expect("base64");
        let mut text = String::new();
        GzDecoder::new(&*packed).read_to_string(&mut text).expect("gzip of UTF-8");
        let data: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(data["report"]["format"], "memtrace-report");
        assert_eq!(data["rows"].as_array().map(Vec::len), Some(5));
        assert_eq!(data["report"]["stacks"].as_array().map(Vec::len), Some(0));
    }

    #[test]
    fn equal_sessions_give_equal_pages() {
        assert_eq!(page(), page());
    }
}
