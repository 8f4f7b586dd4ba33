//! Each limit of a budget, held against a profile.

use super::leaks;
use super::reading::{Reading, read, top_stacks};
use super::{
    Attach, Bound, Budget, Judgement, Limit, Loss, Metric, Numbers, Part, Pattern, Place, Row,
    Scope, Strictness, Unit, Verdict, WHOLE_PPM,
};
use crate::record::Origin;
use crate::views::printable::printable_str;
use crate::views::profile::{Profile, Vocabulary};
use crate::views::quantity;

/// Why nothing is known of a program whose allocator was not found.
pub(super) const NO_ALLOCATOR: &str =
    "no allocator was found to probe: nothing of the heap was seen";

/// Holds a profile against a budget. Both profiles are of one vocabulary.
pub fn judge(
    budget: &Budget,
    profile: &Profile,
    baseline: Option<&Profile>,
    words: &Vocabulary,
    strictness: Strictness,
) -> Judgement {
    let court = Court { budget, profile, baseline, words, strictness };
    Judgement { rows: budget.limits.iter().map(|limit| court.row(limit)).collect() }
}

struct Court<'j> {
    budget: &'j Budget,
    profile: &'j Profile,
    baseline: Option<&'j Profile>,
    words: &'j Vocabulary,
    strictness: Strictness,
}

impl Court<'_> {
    fn row(&self, limit: &Limit) -> Row {
        let Limit { scope, metric, bound, line } = limit;
        if *metric == Metric::Leaks {
            return self.leaks_row(limit);
        }
        let mut notes = Vec::new();
        let reading = read(self.profile, scope, *metric, self.words);
        let before = self.before(limit, &mut notes);
        let allowed = match *bound {
            Bound::AtMost(most) => Some(most),
            Bound::Growth(more) => before.map(|before| before.saturating_add(more)),
            Bound::GrowthShare(ppm) => before.map(|before| {
                let more = u128::from(before) * u128::from(ppm) / u128::from(WHOLE_PPM);
                before.saturating_add(u64::try_from(more).unwrap_or(u64::MAX))
            }),
        };
        let verdict = match (&reading, allowed) {
            (None, _) => {
                notes.push("it was never sampled; a longer session has samples".to_owned());
                Verdict::Unknown
            }
            (Some(_), None) => Verdict::Unknown,
            (Some(reading), Some(allowed)) => self.verdict(limit, reading, allowed, &mut notes),
        };
        let explain = verdict != Verdict::Pass;
        Row {
            subject: subject(scope),
            metric: Some(*metric),
            numbers: reading.as_ref().map(|reading| Numbers {
                unit: metric.unit(),
                actual: reading.least,
                limit: allowed,
                baseline: before,
            }),
            verdict,
            notes,
            stacks: match metric.sort_key().filter(|_| explain) {
                Some(key) => top_stacks(self.profile, scope, key, self.words),
                None => Vec::new(),
            },
            place: reading.and_then(|reading| reading.place),
            source: self.source(*line),
        }
    }

    /// Where a limit is set.
    fn source(&self, line: Option<u32>) -> Option<Place> {
        let (file, line) = self.budget.file.as_deref().zip(line)?;
        Some(Place { file: printable_str(&file.display().to_string()).into_owned(), line })
    }

    fn leaks_row(&self, limit: &Limit) -> Row {
        let Limit { scope, metric, bound, line } = limit;
        let mut row = Row {
            subject: subject(scope),
            metric: Some(*metric),
            numbers: None,
            verdict: Verdict::Unknown,
            notes: Vec::new(),
            stacks: Vec::new(),
            place: None,
            source: self.source(*line),
        };
        match *bound {
            Bound::AtMost(most) => {
                leaks::judge(&mut row, self.profile, scope, most, self.strictness.loss, self.words);
            }
            Bound::Growth(_) | Bound::GrowthShare(_) => {
                row.notes.push("leaks are not compared with a baseline; give a rate".to_owned());
            }
        }
        row
    }

    /// What the baseline has, if the limit depends on it; a note says why nothing is known.
    fn before(&self, limit: &Limit, notes: &mut Vec<String>) -> Option<u64> {
        let Limit { scope, metric, bound, line: _ } = limit;
        let more = match *bound {
            Bound::AtMost(_) => return None,
            Bound::GrowthShare(ppm) => Unit::Share.amount(ppm),
            Bound::Growth(more) => metric.unit().amount(more),
        };
        let Some(baseline) = self.baseline else {
            notes.push("there is no baseline".to_owned());
            return None;
        };
        let Some(reading) = read(baseline, scope, *metric, self.words) else {
            notes.push("the baseline has no sample of it".to_owned());
            return None;
        };
        let losses = &baseline.coverage.losses;
        if !losses.is_empty() && self.strictness.loss == Loss::Matters {
            notes.extend(losses.iter().map(|loss| format!("baseline: {loss}")));
            return None;
        }
        let before = metric.unit().amount(reading.least);
        notes.push(format!("allowed are {before}, as in the baseline, and {more} more"));
        if reading.is_unmatched {
            notes.push("no function of the baseline matches".to_owned());
        }
        Some(reading.least)
    }

    fn verdict(
        &self,
        limit: &Limit,
        reading: &Reading,
        allowed: u64,
        notes: &mut Vec<String>,
    ) -> Verdict {
        let coverage = &self.profile.coverage;
        let unit = limit.metric.unit();
        let Reading { least, unsure, is_unmatched, place: _ } = reading;
        if *is_unmatched {
            notes.push("no function that allocates matches".to_owned());
        }
        let since_attach = coverage.origin == Some(Origin::Attached);
        if *least > allowed {
            notes.extend(coverage.losses.iter().cloned());
            if since_attach && limit.metric != Metric::Resident {
                notes.push("counts from the attach on".to_owned());
            }
            return Verdict::Fail;
        }
        if limit.metric == Metric::Resident {
            return Verdict::Pass;
        }
        if !coverage.has_allocator {
            notes.push(NO_ALLOCATOR.to_owned());
            return Verdict::Unknown;
        }
        let mut verdict = Verdict::Pass;
        if least.saturating_add(*unsure) > allowed {
            notes.push(format!(
                "{} more lie in stacks that are cut or go through code without names",
                unit.amount(*unsure)
            ));
            verdict = Verdict::Unknown;
        }
        if !coverage.losses.is_empty() {
            notes.extend(coverage.losses.iter().cloned());
            if self.strictness.loss == Loss::Matters {
                verdict = Verdict::Unknown;
            }
        }
        if since_attach {
            let before = coverage.before_attach_bytes;
            let counts_state = matches!(limit.metric, Metric::Peak | Metric::Live);
            let fits = match before {
                Some(before) if counts_state => least.saturating_add(before) <= allowed,
                Some(_) | None => false,
            };
            match self.strictness.attach {
                Attach::SinceThen => notes.push(match before {
                    Some(before) if counts_state => format!(
                        "counts from the attach on; up to {} were held before",
                        quantity::bytes(before)
                    ),
                    Some(_) | None => "counts from the attach on".to_owned(),
                }),
                Attach::Matters if fits => notes.push(
                    "attached while running, but keeps to the limit with what was held before"
                        .to_owned(),
                ),
                Attach::Matters => {
                    notes.push(
                        "attached while running: what was before is not counted; --since-attach \
                         judges what was allocated since"
                            .to_owned(),
                    );
                    verdict = Verdict::Unknown;
                }
            }
        }
        let peak = self.profile.totals.peak_live_bytes;
        if (&limit.scope, limit.metric) == (&Scope::Total, Metric::Live) && peak > allowed {
            notes.push(format!(
                "it was {} at its highest: a limit of the peak would see that",
                quantity::bytes(peak)
            ));
        }
        verdict
    }
}

fn subject(scope: &Scope) -> String {
    match scope {
        Scope::Total => "total".to_owned(),
        Scope::Functions(Pattern { name, module, part }) => {
            let module = module.as_ref().map_or_else(String::new, |module| format!(" in {module}"));
            let part = match part {
                Part::Own => "",
                Part::Total => " and callees",
            };
            printable_str(&format!("{name}{module}{part}")).into_owned()
        }
    }
}
