//! A judgement as JUnit XML, which every CI system shows.
//!
//! One test suite, one test case for each row. A limit that does not hold is a failure, one of
//! which nothing is known an error.

use std::io::{self, Write};

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::github::message;
use super::{Judgement, Metric, Row, Verdict};
use crate::views::profile::Profile;

/// Writes the judgement.
pub fn write(out: impl Write, judgement: &Judgement, profile: &Profile) -> io::Result<()> {
    let mut writer = Writer::new_with_indent(out, b' ', 2);
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let tests = judgement.rows.len().to_string();
    let failures = judgement.count(Verdict::Fail).to_string();
    let errors = judgement.count(Verdict::Unknown).to_string();
    let time = format!("{:.3}", profile.coverage.duration.as_secs_f64());
    let name = xml(&format!("memtrace check: {}", profile.target));
    let counts = [
        ("name", name.as_str()),
        ("tests", &tests),
        ("failures", &failures),
        ("errors", &errors),
        ("time", &time),
    ];
    writer.create_element("testsuites").with_attributes(counts).write_inner_content(|writer| {
        let suite = writer.create_element("testsuite").with_attributes(counts);
        suite.write_inner_content(|writer| {
            judgement.rows.iter().try_for_each(|row| test_case(writer, row))
        })?;
        Ok(())
    })?;
    writer.into_inner().write_all(b"\n")
}

fn test_case<W: Write>(writer: &mut Writer<W>, row: &Row) -> io::Result<()> {
    let name = xml(&row.name());
    let class = xml(&format!("memtrace.{}", row.subject));
    let case = writer.create_element("testcase").with_attributes([
        ("name", name.as_str()),
        ("classname", &class),
        ("time", "0"),
    ]);
    let element = match row.verdict {
        Verdict::Pass => {
            case.write_empty()?;
            return Ok(());
        }
        Verdict::Fail => "failure",
        Verdict::Unknown => "error",
    };
    let text = xml(&message(row));
    let first = text.lines().next().unwrap_or_default();
    case.write_inner_content(|writer| {
        writer
            .create_element(element)
            .with_attributes([("message", first), ("type", row.metric.map_or("end", Metric::name))])
            .write_text_content(BytesText::new(&text))?;
        Ok(())
    })?;
    Ok(())
}

/// Printable text may still have characters that XML has none for.
fn xml(text: &str) -> String {
    text.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}
