//! A part of a trace, as arguments.

use anyhow::{Result, bail};
use clap::Args;
use memtrace_userspace::part::{Part, Place};
use memtrace_userspace::record::Time;

use super::quantity;

/// Which part of a trace to look at.
#[derive(Clone, Debug, Args)]
pub(crate) struct PartArguments {
    /// What happened from here on: 10s, peak, or mark:TEXT
    #[arg(long, value_name = "PLACE", value_parser = place)]
    from: Option<Place>,
    /// What happened up to here
    #[arg(long, value_name = "PLACE", value_parser = place)]
    to: Option<Place>,
    /// What was held at one moment: 10s, peak, mark:TEXT, or end
    #[arg(long, value_name = "PLACE", value_parser = place, conflicts_with_all = ["from", "to"])]
    at: Option<Place>,
}

impl PartArguments {
    /// Whether a part is asked for.
    pub(crate) fn is_given(&self) -> bool {
        self.from.is_some() || self.to.is_some() || self.at.is_some()
    }

    /// Whether a moment is asked for.
    pub(crate) fn is_moment(&self) -> bool {
        self.at.is_some()
    }

    /// The part that is asked for; `None` for all of the trace.
    pub(crate) fn part(&self) -> Result<Option<Part>> {
        let PartArguments { from, to, at } = self.clone();
        if let (Some(Place::At(from)), Some(Place::At(to))) = (&from, &to)
            && from > to
        {
            bail!("the range ends before it begins; swap --from and --to");
        }
        Ok(match (from, to, at) {
            (_, _, Some(at)) => Some(Part::Moment(at)),
            (None, None, None) => None,
            (from, to, None) => Some(Part::Range {
                from: from.unwrap_or(Place::Start),
                to: to.unwrap_or(Place::End),
            }),
        })
    }
}

/// A place in a trace.
pub(crate) fn place(text: &str) -> Result<Place, String> {
    match text {
        "start" => return Ok(Place::Start),
        "end" => return Ok(Place::End),
        "peak" => return Ok(Place::Peak),
        _ => {}
    }
    if let Some(mark) = text.strip_prefix("mark:") {
        return Ok(Place::Mark(mark.to_owned()));
    }
    let since_start = quantity::duration(text)
        .map_err(|error| format!("{error}; or one of start, end, peak, mark:TEXT"))?;
    let ns = u64::try_from(since_start.as_nanos()).map_err(|_| "too large".to_owned())?;
    Ok(Place::At(Time(ns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_every_kind() {
        let cases = [
            ("1.5s", Place::At(Time(1_500_000_000))),
            ("0s", Place::At(Time(0))),
            ("start", Place::Start),
            ("end", Place::End),
            ("peak", Place::Peak),
            ("mark:after warm-up", Place::Mark("after warm-up".to_owned())),
        ];
        for (text, expected) in cases {
            assert_eq!(place(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn unknown_place_says_what_there_is() {
        let error = place("noon").expect_err("no place");

        assert!(error.contains("start, end, peak, mark:TEXT"), "{error}");
    }
}
