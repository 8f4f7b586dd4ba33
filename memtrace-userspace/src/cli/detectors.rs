//! What the detectors are to look for, as arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use memtrace_userspace::operations::{self, Finder, Spec};
use memtrace_userspace::pipeline::snapshot::OperationUsage;
use memtrace_userspace::pipeline::statistics::MOST_BETWEEN;
use memtrace_userspace::pipeline::{DetectorOptions, LeakOptions, Limits, SpikeOptions};
use memtrace_userspace::record::Pid;
use memtrace_userspace::symbols;
use memtrace_userspace::views::suppressions::Suppressions;

use super::source::SymbolArguments;
use super::{quantity, tell};

/// When growth is a spike or a leak.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DetectorArguments {
    /// In which time memory must grow to make a spike, 10ms to 1h [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = spike_window, help_heading = "Detectors")]
    spike_window: Option<Duration>,
    /// By how much, for each severity and for classes of operations, whose spikes begin there
    /// [default: medium=25MB,high=50MB,critical=100MB and select=10MB, insert=5MB, update=5MB,
    /// upload=25MB, bulk=50MB, migration=100MB; other classes as for all]
    #[arg(long, value_name = "SIZES", value_parser = thresholds, help_heading = "Detectors",
          verbatim_doc_comment)]
    spike: Option<Thresholds>,
    /// A class of operations, and functions that all of its call paths go through, such as
    /// upload=handle_upload,receive_*; may be given again
    #[arg(long = "operation", value_name = "CLASS=FUNCTIONS", help_heading = "Detectors")]
    operations: Vec<Spec>,
    /// After how many spikes of one origin in a row it is told again [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..),
          help_heading = "Detectors")]
    spike_repeat: Option<u32>,
    /// A leak's rate from which it is an alert, such as 50MB/h, or
    /// healthy=5MB/h,alert=50MB/h to set the rate below which it is not told as well
    #[arg(long, value_name = "RATE", value_parser = rates, help_heading = "Detectors")]
    leak_threshold: Option<Rates>,
    /// How long a call path must have held memory before it is accused of a leak: longer than the
    /// program takes to warm up [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = quantity::positive_duration,
          help_heading = "Detectors")]
    leak_after: Option<Duration>,
    /// How many allocations of a thread may lie between that of a temporary block and its release
    /// by the thread, 0 to 15 [default: 1]
    #[arg(long, value_name = "N", value_parser = temporary_between, help_heading = "Statistics")]
    temporary_between: Option<usize>,
    /// Leaks that are known, in LeakSanitizer's syntax: lines of leak:PATTERN
    #[arg(long, value_name = "FILE", help_heading = "Detectors")]
    suppressions: Option<PathBuf>,
}

/// The parts of `--spike`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Thresholds {
    medium: Option<u64>,
    high: Option<u64>,
    critical: Option<u64>,
    operations: BTreeMap<String, u64>,
}

/// The parts of `--leak-threshold`, in bytes an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    healthy: Option<f64>,
    alert: Option<f64>,
}

impl DetectorArguments {
    /// The usual limits, with these thresholds.
    pub(crate) fn limits(&self) -> Limits {
        let DetectorOptions { spikes, leaks } = DetectorOptions::default();
        let Thresholds { medium, high, critical, operations } =
            self.spike.clone().unwrap_or_default();
        let rates = self.leak_threshold.unwrap_or_default();
        // Whoever raises one threshold means those above it too, and the other way round.
        let medium_bytes =
            medium.unwrap_or(spikes.medium_bytes.min(high.or(critical).unwrap_or(u64::MAX)));
        let high_bytes = high.unwrap_or(spikes.high_bytes).max(medium_bytes);
        let high_bytes = high_bytes.min(critical.unwrap_or(u64::MAX).max(medium_bytes));
        let spikes = SpikeOptions {
            window: self.spike_window.unwrap_or(spikes.window),
            medium_bytes,
            high_bytes,
            critical_bytes: critical.unwrap_or(spikes.critical_bytes).max(high_bytes),
            repeat: self.spike_repeat.unwrap_or(spikes.repeat),
        };
        let alert_bytes_per_hour = rates.alert.unwrap_or(leaks.alert_bytes_per_hour);
        let healthy = rates.healthy.unwrap_or(leaks.healthy_bytes_per_hour);
        let leaks = LeakOptions {
            healthy_bytes_per_hour: healthy.min(alert_bytes_per_hour),
            alert_bytes_per_hour,
            after: self.leak_after.unwrap_or(leaks.after),
        };
        let limits = Limits::default();
        Limits {
            detectors: DetectorOptions { spikes, leaks },
            operation_thresholds: operations,
            temporary_between: self.temporary_between.unwrap_or(limits.temporary_between),
            ..limits
        }
    }

    /// What finds the operations of a trace; `None` if there are none. Names come from `places`.
    pub(crate) fn operations(&self, places: symbols::Options) -> Result<Option<Finder>> {
        self.finder(move |_| places.clone())
    }

    /// What finds those of running processes.
    ///
    /// A threshold for a class that none of them is in is an error: nothing else defines it.
    pub(crate) fn operations_of_running(
        &self,
        symbols: &SymbolArguments,
    ) -> Result<Option<Finder>> {
        self.require_classes(&[])?;
        let symbols = symbols.clone();
        self.finder(move |pid| symbols.places_of_running(&[pid]))
    }

    fn finder(
        &self,
        places: impl Fn(Pid) -> symbols::Options + Send + Sync + 'static,
    ) -> Result<Option<Finder>> {
        let classes: BTreeSet<&str> = self.operations.iter().map(Spec::class).collect();
        let (count, most) = (classes.len(), Limits::default().operations);
        if count > most {
            bail!("{count} classes of operations are too many; name at most {most}");
        }
        let specs = (!classes.is_empty()).then(|| self.operations.clone());
        Ok(specs.map(|specs| Finder::new(specs, places)))
    }

    /// Fails if a threshold is for a class that is not among those `found`, and warns of classes
    /// whose functions are not there.
    pub(crate) fn require_operations(&self, found: &[OperationUsage]) -> Result<()> {
        let found: Vec<&str> = found.iter().map(|operation| &*operation.name).collect();
        self.require_classes(&found)?;
        let classes: BTreeSet<&str> = self.operations.iter().map(Spec::class).collect();
        for class in classes.into_iter().filter(|class| !found.contains(class)) {
            tell(&format!("warning: --operation {class}: no such function was in the traced code"));
            tell("  those that are inlined, or in files without symbols, are not found");
        }
        Ok(())
    }

    /// Fails if a threshold is for a class that neither `--operation` nor `found` has.
    fn require_classes(&self, found: &[&str]) -> Result<()> {
        let mut given = self.spike.iter().flat_map(|spike| spike.operations.keys());
        let is_known = |class: &str| {
            found.contains(&class) || self.operations.iter().any(|spec| spec.class() == class)
        };
        match given.find(|class| !is_known(class)) {
            Some(class) => bail!(
                "--spike {class}=…: no such operation; define it, --operation {class}=FUNCTION"
            ),
            None => Ok(()),
        }
    }

    /// The file of suppressions; none if it was not asked for.
    pub(crate) fn suppressions(&self) -> Result<Suppressions> {
        self.suppressions.as_deref().map_or_else(|| Ok(Suppressions::default()), read_suppressions)
    }
}

fn temporary_between(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(between) if between <= MOST_BETWEEN => Ok(between),
        _ => Err(format!("must be 0 to {MOST_BETWEEN}")),
    }
}

/// Reads a file of suppressions.
pub(crate) fn read_suppressions(path: &Path) -> Result<Suppressions> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read {}; check --suppressions", path.display()))?;
    Suppressions::parse(&text)
        .with_context(|| format!("{} is no file of suppressions", path.display()))
}

fn spike_window(text: &str) -> Result<Duration, String> {
    match quantity::duration(text).map_err(|error| error.to_string())? {
        window if (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&window) => {
            Ok(window)
        }
        _ => Err("must be 10ms to 1h".to_owned()),
    }
}

/// `medium=25MB,high=50MB,critical=100MB,select=10MB`, any of them.
fn thresholds(text: &str) -> Result<Thresholds, String> {
    let mut thresholds = Thresholds::default();
    for part in text.split(',') {
        let (name, size) = part.split_once('=').unwrap_or(("", part));
        let name = operations::class_name(name.trim())
            .ok_or("expected medium=SIZE, high=SIZE, critical=SIZE or CLASS=SIZE")?;
        let bytes = quantity::size(size).map_err(|error| error.to_string())?.max(1);
        match name.as_str() {
            "medium" => thresholds.medium = Some(bytes),
            "high" => thresholds.high = Some(bytes),
            "critical" => thresholds.critical = Some(bytes),
            _ => {
                thresholds.operations.insert(name, bytes);
            }
        }
    }
    let order = [thresholds.medium, thresholds.high, thresholds.critical];
    match order.into_iter().flatten().is_sorted() {
        true => Ok(thresholds),
        false => Err("must be in order: medium, high, critical".to_owned()),
    }
}

/// `50MB/h`, or `healthy=5MB/h,alert=50MB/h`, either of them.
fn rates(text: &str) -> Result<Rates, String> {
    let mut rates = Rates::default();
    for part in text.split(',') {
        let (name, rate) = part.split_once('=').unwrap_or(("alert", part));
        let place = match name.trim() {
            "healthy" => &mut rates.healthy,
            "alert" => &mut rates.alert,
            _ => return Err("expected healthy=RATE or alert=RATE".to_owned()),
        };
        let size = rate.trim().strip_suffix("/h").ok_or("expected a rate, such as 50MB/h")?;
        *place = Some(quantity::size(size).map_err(|error| error.to_string())? as f64);
    }
    match (rates.healthy, rates.alert) {
        (Some(healthy), Some(alert)) if healthy > alert => {
            Err("healthy must not be above alert".to_owned())
        }
        _ => Ok(rates),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn thresholds_not_given_keep_the_order() {
        let spikes = |text: &str| {
            let spike = Some(thresholds(text).expect("valid"));
            let limits = DetectorArguments { spike, ..DetectorArguments::default() }.limits();
            let SpikeOptions { medium_bytes, high_bytes, critical_bytes, .. } =
                limits.detectors.spikes;
            [medium_bytes, high_bytes, critical_bytes]
        };

        assert_eq!(spikes("medium=1MB"), [MB, 50 * MB, 100 * MB]);
        assert_eq!(spikes("medium=200MB"), [200 * MB; 3]);
        assert_eq!(spikes("critical=10MB"), [10 * MB; 3]);
        assert_eq!(spikes("medium=1MB,high=2MB,critical=3MB"), [MB, 2 * MB, 3 * MB]);
    }

    #[test]
    fn thresholds_of_operations_need_an_operation() {
        let arguments = |operations: &[&str], spike: &str| DetectorArguments {
            operations: operations.iter().map(|text| text.parse().expect("valid")).collect(),
            spike: Some(thresholds(spike).expect("valid")),
            ..DetectorArguments::default()
        };
        let known = OperationUsage {
            name: "bulk".into(),
            heap: Default::default(),
            mapped: Default::default(),
        };

        let limits = arguments(&["bulk=f"], "medium=1MB,BULK=2MB").limits();
        assert_eq!(limits.detectors.spikes.medium_bytes, MB);
        assert_eq!(limits.operation_thresholds, BTreeMap::from([("bulk".to_owned(), 2 * MB)]));
        assert!(arguments(&["bulk=f"], "bulk=2MB").require_classes(&[]).is_ok());
        assert!(arguments(&[], "bulk=2MB").require_operations(&[known]).is_ok());
        let error = arguments(&["other=f"], "bulk=2MB").require_classes(&[]).expect_err("unknown");
        assert!(error.to_string().contains("--operation bulk=FUNCTION"), "{error}");
    }

    #[test]
    fn operations_beyond_the_limit_are_refused() {
        let operations = |count: usize| DetectorArguments {
            operations: (0..count).map(|n| format!("c{n}=f").parse().expect("valid")).collect(),
            ..DetectorArguments::default()
        };
        let finder = |count| operations(count).operations(symbols::Options::default());

        assert!(finder(0).expect("none").is_none() && finder(32).expect("fits").is_some());
        assert!(finder(33).expect_err("too many").to_string().contains("at most 32"));
    }

    #[test]
    fn malformed_thresholds_say_what_is_expected() {
        assert!(thresholds("25MB").expect_err("no name").contains("medium=SIZE"));
        assert!(thresholds("high=1MB,critical=1KB").expect_err("order").contains("in order"));
        assert!(rates("50MB").expect_err("no hour").contains("50MB/h"));
        assert!(rates("healthy=2MB/h,alert=1MB/h").is_err());
        assert_eq!(rates("1KB/h"), Ok(Rates { healthy: None, alert: Some(1e3) }));
    }

    #[test]
    fn suppressions_that_cannot_be_read_are_an_error() {
        let suppressions = Some("/nonexistent/known".into());
        let arguments = DetectorArguments { suppressions, ..DetectorArguments::default() };

        let error = arguments.suppressions().expect_err("no file");

        assert!(error.to_string().contains("check --suppressions"), "{error}");
    }
}
