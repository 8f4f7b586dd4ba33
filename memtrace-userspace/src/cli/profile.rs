//! A session that is compared or judged: a trace, or the JSON report of one.

use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail};
use memtrace_userspace::pipeline::Limits;
use memtrace_userspace::views::frames::Names;
use memtrace_userspace::views::profile::{MAX_REPORT_BYTES, Profile, Vocabulary, read_report};
use memtrace_userspace::views::ranking::{SortKey, rank};
use memtrace_userspace::views::suppressions::Suppressions;

use super::replay::{Pace, replay};

/// Loads a trace or a report; `names` is for traces, reports have theirs.
pub(crate) fn load(path: &Path, names: Names, words: &mut Vocabulary) -> Result<Profile> {
    load_judged(path, names, Limits::default(), &Suppressions::default(), words)
}

/// Loads a trace or a report whose leaks matter.
pub(crate) fn load_judged(
    path: &Path,
    names: Names,
    limits: Limits,
    suppressions: &Suppressions,
    words: &mut Vocabulary,
) -> Result<Profile> {
    if let Some(report) = open_report(path)? {
        let what = || format!("cannot read {}", path.display());
        return read_report(&report, suppressions, words).with_context(what);
    }
    let mut names = names;
    let snapshot = replay(path, &[], limits, None, Pace::AtEnd, |_| ControlFlow::Continue(()))?;
    let mut ranking = rank(&snapshot, &mut names, SortKey::Live);
    ranking.findings.suppress(suppressions);
    Ok(Profile::of_session(&snapshot, &ranking, words))
}

/// The text of the file if it begins as a JSON object does; a trace never does.
fn open_report(path: &Path) -> Result<Option<String>> {
    let what = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(|| {
        format!("cannot read {}; name a trace or a JSON report", path.display())
    })?;
    if file.metadata().with_context(what)?.is_dir() {
        bail!("{} is a directory; name a trace or a JSON report", path.display());
    }
    let mut file = BufReader::new(file);
    let mut first = [0];
    if file.read(&mut first).with_context(what)? == 0 || first != *b"{" {
        return Ok(None);
    }
    let mut text = "{".to_owned();
    file.take(MAX_REPORT_BYTES).read_to_string(&mut text).with_context(what)?;
    if text.len() as u64 > MAX_REPORT_BYTES {
        bail!("{} has more than 1 GiB; compare the traces themselves", path.display());
    }
    Ok(Some(text))
}
