//! A budget, as `docs/budgets.md` describes it, out of a TOML file.
//!
//! ```text
//!   [total]      peak = "200MB", leaks = "none"       at most so much
//!   [[function]] name = "parse_*", peak = "+10%"      at most so much more than the baseline
//!   [baseline]   trace = "main.mtrace", tolerance = "5%"
//! ```
//!
//! A mistake is one line with the place of it. What is not known is refused, so that no limit is
//! silently left out.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use memtrace_userspace::views::budget::{Bound, Budget, Limit, Metric, Part, Pattern, Scope, Unit};
use serde::Deserialize;
use thiserror::Error;
use toml::{Spanned, Value};

use super::super::quantity;

/// The largest budget that is read.
const MAX_BYTES: u64 = 1 << 20;

/// The metrics that a baseline limits by itself.
const OF_BASELINE: &[Metric] =
    &[Metric::Peak, Metric::Live, Metric::Allocated, Metric::Allocations];

/// What a limit on leaks looks like.
const RATE: &str = "expected \"none\" or a rate such as \"5MB/h\"";

/// A budget and what it is compared with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) budget: Budget,
    pub(super) baseline: Option<PathBuf>,
    /// A file of leaks that are known.
    pub(super) suppressions: Option<PathBuf>,
}

/// A mistake in a budget.
#[derive(Debug, Error)]
#[error("{line}: {message}")]
struct Mistake {
    line: u32,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    suppressions: Option<PathBuf>,
    #[serde(default)]
    total: Totals,
    #[serde(default)]
    function: Vec<Spanned<Function>>,
    baseline: Option<Baseline>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Totals {
    peak: Option<Spanned<Value>>,
    live_at_exit: Option<Spanned<Value>>,
    allocated: Option<Spanned<Value>>,
    allocations: Option<Spanned<Value>>,
    temporary: Option<Spanned<Value>>,
    rss: Option<Spanned<Value>>,
    leaks: Option<Spanned<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Function {
    name: String,
    module: Option<String>,
    #[serde(default)]
    total: bool,
    peak: Option<Spanned<Value>>,
    live_at_exit: Option<Spanned<Value>>,
    allocated: Option<Spanned<Value>>,
    allocations: Option<Spanned<Value>>,
    leaks: Option<Spanned<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    trace: PathBuf,
    tolerance: Option<Spanned<String>>,
}

/// Reads a budget.
pub(super) fn load(path: &Path) -> Result<Loaded> {
    let what = || format!("cannot read {}", path.display());
    let found = path
        .metadata()
        .with_context(|| format!("cannot read {}; check --budget", path.display()))?;
    let size = found.len();
    if size > MAX_BYTES {
        anyhow::bail!("{} has {size} bytes, which no budget has", path.display());
    }
    let text = std::fs::read_to_string(path).with_context(what)?;
    match parse(&text, path) {
        Ok(loaded) => Ok(loaded),
        Err(mistake) => anyhow::bail!("{}:{mistake}", path.display()),
    }
}

fn parse(text: &str, path: &Path) -> Result<Loaded, Mistake> {
    let File { suppressions, total, function, baseline } =
        toml::from_str(text).map_err(|error| {
            let at = error.span().unwrap_or_default();
            mistake(text, &at, error.message().replace('\n', ", "))
        })?;
    let mut limits = Vec::new();
    let Totals { peak, live_at_exit, allocated, allocations, temporary, rss, leaks } = &total;
    for (metric, value) in [
        (Metric::Peak, peak),
        (Metric::Live, live_at_exit),
        (Metric::Allocated, allocated),
        (Metric::Allocations, allocations),
        (Metric::Temporary, temporary),
        (Metric::Resident, rss),
        (Metric::Leaks, leaks),
    ] {
        limits.extend(value.as_ref().map(|v| limit(text, &Scope::Total, metric, v)).transpose()?);
    }
    if let Some(Baseline { trace: _, tolerance: Some(tolerance) }) = &baseline {
        let bound = quantity::share(tolerance.get_ref())
            .map(Bound::GrowthShare)
            .map_err(|error| mistake(text, &tolerance.span(), format!("tolerance: {error}")))?;
        let line = Some(line_of(text, &tolerance.span()));
        for &metric in OF_BASELINE {
            let has_its_own = |limit: &Limit| limit.metric == metric && grows(limit.bound);
            if !limits.iter().any(has_its_own) {
                limits.push(Limit { scope: Scope::Total, metric, bound, line });
            }
        }
    }
    for entry in &function {
        let Function { name, module, total, peak, live_at_exit, allocated, allocations, leaks } =
            entry.get_ref();
        let scope = Scope::Functions(Pattern {
            name: name.clone(),
            module: module.clone(),
            part: if *total { Part::Total } else { Part::Own },
        });
        let before = limits.len();
        for (metric, value) in [
            (Metric::Peak, peak),
            (Metric::Live, live_at_exit),
            (Metric::Allocated, allocated),
            (Metric::Allocations, allocations),
            (Metric::Leaks, leaks),
        ] {
            limits.extend(value.as_ref().map(|v| limit(text, &scope, metric, v)).transpose()?);
        }
        if limits.len() == before {
            let message = format!(
                "function `{name}` has no limit; give one of peak, live-at-exit, allocated, \
                 allocations, leaks"
            );
            return Err(mistake(text, &entry.span(), message));
        }
    }
    if baseline.is_none()
        && let Some(limit) = limits.iter().find(|limit| grows(limit.bound))
    {
        let message = "a limit on growth needs a [baseline] with a trace".to_owned();
        return Err(Mistake { line: limit.line.unwrap_or(1), message });
    }
    // A path in a budget starts where the budget is.
    let beside = |file: PathBuf| path.parent().unwrap_or(Path::new("")).join(file);
    Ok(Loaded {
        budget: Budget { file: Some(path.to_owned()), limits },
        baseline: baseline.map(|baseline| beside(baseline.trace)),
        suppressions: suppressions.map(beside),
    })
}

fn grows(bound: Bound) -> bool {
    match bound {
        Bound::AtMost(_) => false,
        Bound::GrowthShare(_) | Bound::Growth(_) => true,
    }
}

fn limit(
    text: &str,
    scope: &Scope,
    metric: Metric,
    value: &Spanned<Value>,
) -> Result<Limit, Mistake> {
    let wrong =
        |message: String| mistake(text, &value.span(), format!("{}: {message}", metric.name()));
    let (metric, bound) = match value.get_ref() {
        Value::Integer(_) if metric == Metric::Leaks => return Err(wrong(RATE.to_owned())),
        Value::Integer(number) => {
            let number = u64::try_from(*number).map_err(|_| wrong("less than 0".to_owned()))?;
            (metric, Bound::AtMost(number))
        }
        Value::String(written) => bound(metric, written).map_err(wrong)?,
        Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Array(_)
        | Value::Table(_) => {
            return Err(wrong("expected a number or a text such as \"200MB\"".to_owned()));
        }
    };
    Ok(Limit { scope: scope.clone(), metric, bound, line: Some(line_of(text, &value.span())) })
}

/// A limit as it is written, in a budget or as an argument: `200MB`, `20%`, `+5%`, `5MB/h`.
pub(super) fn bound(metric: Metric, written: &str) -> Result<(Metric, Bound), String> {
    let written = written.trim();
    if metric == Metric::Leaks {
        return Ok((metric, Bound::AtMost(leak_rate(written)?)));
    }
    amount_bound(metric, written).map_err(|error| error.to_string())
}

/// `none`, or the bytes of `5MB/h`.
fn leak_rate(written: &str) -> Result<u64, String> {
    match written.strip_suffix("/h") {
        Some(size) => quantity::size(size).map_err(|error| error.to_string()),
        None if written == "none" => Ok(0),
        None => Err(RATE.to_owned()),
    }
}

fn amount_bound(metric: Metric, written: &str) -> Result<(Metric, Bound), quantity::QuantityError> {
    let amount = |text: &str| match metric.unit() {
        Unit::Bytes | Unit::BytesPerHour => quantity::size(text),
        Unit::Count | Unit::Share => quantity::count(text),
    };
    Ok(match (metric, written.strip_prefix('+')) {
        (_, Some(more)) if more.ends_with('%') => {
            (metric, Bound::GrowthShare(quantity::share(more)?))
        }
        (_, Some(more)) => (metric, Bound::Growth(amount(more)?)),
        (Metric::Temporary, None) if written.ends_with('%') => {
            (Metric::TemporaryShare, Bound::AtMost(quantity::share(written)?))
        }
        (_, None) => (metric, Bound::AtMost(amount(written)?)),
    })
}

fn mistake(text: &str, at: &Range<usize>, message: impl fmt::Display) -> Mistake {
    Mistake { line: line_of(text, at), message: message.to_string() }
}

fn line_of(text: &str, at: &Range<usize>) -> u32 {
    let before = text.as_bytes().get(..at.start).unwrap_or(text.as_bytes());
    let breaks = before.iter().filter(|&&byte| byte == b'\n').count();
    u32::try_from(breaks + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Loaded, String> {
        parse(text, Path::new("/ci/mem.toml")).map_err(|mistake| mistake.to_string())
    }

    fn total(metric: Metric, bound: Bound, line: u32) -> Limit {
        Limit { scope: Scope::Total, metric, bound, line: Some(line) }
    }

    #[test]
    fn limits_of_every_kind_are_read() {
        let text = r#"
suppressions = "known.txt"
[total]
peak = "200MB"
live-at-exit = 4096
allocations = "1_000_000"
temporary = "20%"
rss = "1GiB"
leaks = "none"

[[function]]
name = "parse_*"
module = "libfoo*"
allocated = "10KB"
leaks = "5MB/h"
total = true
"#;

        let Loaded { budget, baseline, suppressions } = parsed(text).expect("a budget");

        let pattern = Pattern {
            name: "parse_*".to_owned(),
            module: Some("libfoo*".to_owned()),
            part: Part::Total,
        };
        let function = Limit {
            scope: Scope::Functions(pattern),
            metric: Metric::Allocated,
            bound: Bound::AtMost(10_000),
            line: Some(14),
        };
        let function_leaks = Limit {
            metric: Metric::Leaks,
            bound: Bound::AtMost(5_000_000),
            line: Some(15),
            ..function.clone()
        };
        assert_eq!(
            budget.limits,
            [
                total(Metric::Peak, Bound::AtMost(200_000_000), 4),
                total(Metric::Live, Bound::AtMost(4096), 5),
                total(Metric::Allocations, Bound::AtMost(1_000_000), 6),
                total(Metric::TemporaryShare, Bound::AtMost(200_000), 7),
                total(Metric::Resident, Bound::AtMost(1 << 30), 8),
                total(Metric::Leaks, Bound::AtMost(0), 9),
                function,
                function_leaks,
            ]
        );
        assert_eq!(baseline, None);
        assert_eq!(suppressions.as_deref(), Some(Path::new("/ci/known.txt")));
    }

    #[test]
    fn tolerance_covers_what_has_no_growth_of_its_own() {
        let text = r#"
[total]
peak = "+10%"
allocated = "2GB"
[baseline]
trace = "main.json"
tolerance = "5%"
"#;

        let Loaded { budget, baseline, suppressions: _ } = parsed(text).expect("a budget");

        let tolerance = Bound::GrowthShare(50_000);
        assert_eq!(
            budget.limits,
            [
                total(Metric::Peak, Bound::GrowthShare(100_000), 3),
                total(Metric::Allocated, Bound::AtMost(2_000_000_000), 4),
                total(Metric::Live, tolerance, 7),
                total(Metric::Allocated, tolerance, 7),
                total(Metric::Allocations, tolerance, 7),
            ]
        );
        assert_eq!(baseline.as_deref(), Some(Path::new("/ci/main.json")));
    }

    #[test]
    fn mistakes_name_their_line() {
        let cases = [
            ("[total]\n\npeek = 1\n", "3: unknown field `peek`"),
            ("[total]\npeak = \"5 bananas\"", "2: peak: unknown unit `bananas`"),
            ("[total]\npeak = -1", "2: peak: less than 0"),
            ("[total]\npeak = 1.5", "2: peak: expected a number or a text"),
            ("[total]\npeak = \"20%\"", "2: peak: unknown unit `%`"),
            ("[total]\npeak = \"+5%\"", "2: a limit on growth needs a [baseline]"),
            ("\n[[function]]\nname = \"f\"\n", "2: function `f` has no limit"),
            ("[[function]]\npeak = 1", "1: missing field `name`"),
            ("[baseline]\ntrace = \"a\"\ntolerance = \"5\"", "3: tolerance: the unit is missing"),
            ("[total]\nleaks = 0", "2: leaks: expected \"none\" or a rate"),
            ("[total]\nleaks = \"5MB\"", "2: leaks: expected \"none\" or a rate"),
            ("[total]\nleaks = \"+5MB/h\"", "2: leaks: expected a number"),
            ("[total", "1: "),
            ("[total]\npeak = 1\npeak = 2", "3: duplicate key"),
        ];
        for (text, expected) in cases {
            let mistake = parsed(text).expect_err(text);
            assert!(mistake.starts_with(expected), "{text}: {mistake}");
            assert!(!mistake.contains('\n'), "{mistake}");
        }
    }
}
