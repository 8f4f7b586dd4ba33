//! Spikes and leaks with names, less what is suppressed.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::pipeline::findings::{Contributor, Leaks, Spike, Verdict};
use crate::pipeline::snapshot::Snapshot;
use crate::views::frames::{Frame, FunctionId, Names, SymbolizedStack};
use crate::views::label::function_label;
use crate::views::printable::printable_str;
use crate::views::quantity::{bytes, duration};
use crate::views::summary::since_start;
use crate::views::suppressions::Suppressions;

/// A spike whose makers have names.
#[derive(Clone, Debug)]
pub struct NamedSpike {
    /// The spike.
    pub spike: Spike,
    /// The call paths of its contributors, in their order.
    pub stacks: Vec<Arc<SymbolizedStack>>,
}

impl NamedSpike {
    /// The contributors with their call paths.
    pub fn contributors(&self) -> impl Iterator<Item = (&Contributor, &Arc<SymbolizedStack>)> {
        self.spike.contributors.iter().zip(&self.stacks)
    }
}

/// A verdict on a site that has a name.
#[derive(Clone, Debug)]
pub struct NamedVerdict {
    /// The verdict.
    pub verdict: Verdict,
    /// The call path.
    pub stack: Arc<SymbolizedStack>,
}

/// What leaks in a function, through whichever call paths.
#[derive(Clone, Debug)]
pub struct LeakingFunction {
    /// Its place in the fastest of them.
    pub frame: Arc<Frame>,
    /// How many leak.
    pub call_paths: u64,
    /// The sum of their rates.
    pub bytes_per_hour: f64,
}

/// A pattern of the suppressions file, and the leaks that it hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppressed {
    /// The pattern, as it was given; printable.
    pub pattern: String,
    /// How many leaks.
    pub leaks: u64,
    /// Their live bytes.
    pub live_bytes: u64,
}

/// What the detectors found.
#[derive(Clone, Debug)]
pub struct Findings {
    /// In order of time.
    pub spikes: Vec<NamedSpike>,
    /// Leaks first, the fastest first.
    pub verdicts: Vec<NamedVerdict>,
    /// What is not among them because the user said so; in the order of the patterns.
    pub suppressed: Vec<Suppressed>,
}

impl Findings {
    /// Finds the names of what a snapshot's detectors found.
    pub fn new(snapshot: &Snapshot, names: &mut Names) -> Findings {
        let spikes = snapshot.spikes.iter().map(|spike| {
            let contributors = spike.contributors.iter();
            let stacks =
                contributors.map(|c| names.symbolize(&snapshot.images, &c.stack)).collect();
            NamedSpike { spike: spike.clone(), stacks }
        });
        let spikes = spikes.collect();
        let Leaks { verdicts, needed_ns: _, told_from_bytes_per_hour: _, limit: _ } =
            &snapshot.leaks;
        let verdicts = verdicts.iter().map(|verdict| NamedVerdict {
            verdict: verdict.clone(),
            stack: names.symbolize(&snapshot.images, &verdict.stack),
        });
        Findings { spikes, verdicts: verdicts.collect(), suppressed: Vec::new() }
    }

    /// Takes out the leaks that the suppressions name, and counts them.
    pub fn suppress(&mut self, suppressions: &Suppressions) {
        let mut counted = suppressions.counts();
        self.verdicts.retain(|NamedVerdict { verdict, stack }| {
            let Some(index) = suppressions.find(stack) else { return true };
            if verdict.class.is_leak() {
                counted[index].leaks += 1;
                let bytes = &mut counted[index].live_bytes;
                *bytes = bytes.saturating_add(verdict.live_bytes);
            }
            false
        });
        self.suppressed = counted.into_iter().filter(|s| s.leaks > 0).collect();
    }

    /// A line each about the leaks and the spikes, for views with little room; none if there are none.
    pub fn headlines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut leaks = self.leaks();
        if let Some(NamedVerdict { verdict, stack }) = leaks.next() {
            let more = match leaks.count() {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            let rate = verdict.rate.bytes_per_hour.max(0.0) as u64;
            lines.push(format!("leak: {} +{}/h{more}", innermost(stack), bytes(rate)));
        }
        if let Some(NamedSpike { spike, stacks }) = self.spikes.last() {
            let maker = stacks.first().map_or_else(|| "unknown".into(), |stack| innermost(stack));
            let fate = if spike.returned.is_some() { "back" } else { "not back" };
            let whose = match &spike.operation {
                Some(operation) => format!(" of {}", printable_str(operation)),
                None => String::new(),
            };
            lines.push(format!(
                "spike{whose}: {maker} +{} at {}, {fate}",
                bytes(spike.height_bytes),
                duration(since_start(spike.start)),
            ));
        }
        lines
    }

    /// The leaks by the function that allocated, the fastest first.
    pub fn leaks_by_function(&self) -> Vec<LeakingFunction> {
        let mut functions: Vec<LeakingFunction> = Vec::new();
        let mut places: FxHashMap<FunctionId, usize> = FxHashMap::default();
        for NamedVerdict { verdict, stack } in self.leaks() {
            let Some(frame) = stack.frames().next() else { continue };
            let rate = verdict.rate.bytes_per_hour.max(0.0);
            let place = *places.entry(frame.function.id).or_insert(functions.len());
            match functions.get_mut(place) {
                Some(function) => {
                    function.call_paths += 1;
                    function.bytes_per_hour += rate;
                }
                None => functions.push(LeakingFunction {
                    frame: Arc::clone(frame),
                    call_paths: 1,
                    bytes_per_hour: rate,
                }),
            }
        }
        functions.sort_by(|a, b| b.bytes_per_hour.total_cmp(&a.bytes_per_hour));
        functions
    }

    /// The leaks, without what is mild.
    pub fn leaks(&self) -> impl Iterator<Item = &NamedVerdict> {
        self.verdicts.iter().filter(|named| named.verdict.class.is_leak())
    }
}

/// Cells for a function in a headline.
const HEADLINE_CELLS: usize = 40;

fn innermost(stack: &SymbolizedStack) -> String {
    match stack.frames().next() {
        Some(frame) => function_label(&frame.function, None, HEADLINE_CELLS),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::fixture;

    #[test]
    fn headlines_name_the_fastest_leak_and_the_last_spike() {
        let findings = Findings::new(&fixture::snapshot(), &mut fixture::names());

        assert_eq!(
            findings.headlines(),
            ["leak: leak_per_request +3.3 GiB/h", "spike: main +32.0 MiB at 8.0 s, not back"]
        );
    }

    #[test]
    fn call_paths_of_a_function_are_added_up() {
        let mut findings = Findings::new(&fixture::snapshot(), &mut fixture::names());
        let leak = findings.verdicts[0].clone();
        let rate = leak.verdict.rate.bytes_per_hour;
        findings.verdicts.insert(0, leak);

        let functions = findings.leaks_by_function();

        assert_eq!(functions.len(), findings.leaks().count() - 1);
        assert_eq!((functions[0].call_paths, functions[0].bytes_per_hour), (2, 2.0 * rate));
    }

    #[test]
    fn suppressed_leaks_are_counted_by_pattern() {
        let mut findings = Findings::new(&fixture::snapshot(), &mut fixture::names());
        let patterns = "leak:nothing\nleak:^leak_per_*$\nleak:libstdc++\n";
        let suppressions = Suppressions::parse(patterns).expect("valid");

        findings.suppress(&suppressions);

        let expected =
            Suppressed { pattern: "^leak_per_*$".to_owned(), leaks: 1, live_bytes: 12 << 20 };
        assert_eq!(findings.suppressed, [expected]);
        assert_eq!((findings.leaks().count(), findings.verdicts.len()), (0, 2));
    }
}
