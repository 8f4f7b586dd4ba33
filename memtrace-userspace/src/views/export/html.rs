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

mod activity;
mod page;
mod rows;

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

pub use self::activity::Activity;
use self::page::Labels;
use self::rows::Room;
use crate::pipeline::snapshot::Snapshot;
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
    let rows = rows::rows(snapshot, ranking, &activity.finish(snapshot.now), names, ROOM);
    let labels = Labels::new(&rows);
    let page = page::page(snapshot, ranking, &rows, &labels)?;
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
