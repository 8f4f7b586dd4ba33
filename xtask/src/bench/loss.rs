//! Whether anything is lost when a program does nothing but allocate.
//!
//! Two threads in a tight loop on a machine of two cores leave the daemon little time. With
//! back-pressure nothing may be lost. Without it, with the smallest ring and a daemon that is stopped
//! for some batches, much must be, and be counted exactly: the loop knows what it did, and recorded
//! and lost must add up to it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    background::{self, PATIENCE},
    micro::{self, Case},
    report::{Section, Table},
    stage::{Recorded, Stage},
};

/// Operations of each thread between two looks at the clock.
const BATCH: u64 = 20_000;

/// How long a batch, or the end of memtrace with a full ring, may take.
const BATCH_PATIENCE: Duration = Duration::from_secs(120);

struct Setting {
    name: &'static str,
    arguments: &'static [&'static str],
    /// The daemon is stopped while each batch of this number runs.
    stopped_every: Option<u64>,
    /// This part of the asked-for time.
    share: f64,
}

const SETTINGS: &[Setting] = &[
    Setting { name: "as usual", arguments: &[], stopped_every: None, share: 1.0 },
    Setting {
        name: "back-pressure off, 1 MiB ring, daemon stopped now and then",
        arguments: &["--back-pressure", "0ms", "--ring-size", "1M"],
        stopped_every: Some(10),
        share: 0.25,
    },
];

struct Outcome {
    elapsed: Duration,
    made: u64,
    recorded: Recorded,
}

pub(super) fn measure(stage: &Stage, title: &'static str, duration: Duration) -> Result<Section> {
    let mut table = Table::new(&[
        "setting",
        "seconds",
        "allocations",
        "recorded",
        "lost",
        "sum",
        "frees recorded",
        "frees lost",
        "sum",
        "pairs/s",
        "B/event",
    ]);
    let mut notes = vec![
        "Two threads in a tight loop of `malloc` and `free`, the daemon recording to disk. *sum*: \
         whether recorded and lost add up to what the loop did."
            .to_owned(),
    ];
    let mut results = Vec::new();
    for setting in SETTINGS {
        let duration = duration.mul_f64(setting.share);
        eprintln!("bench: {title}: {}: {} s", setting.name, duration.as_secs_f64());
        let outcome = run(stage, setting, duration).with_context(|| setting.name)?;
        table.row(cells(setting.name, &outcome));
        notes.push(format!("Counters, {}: {}.", setting.name, counters(&outcome.recorded)));
        results.push(outcome_json(setting, &outcome));
    }
    Ok(Section { title, table, notes, json: json!(results) })
}

fn run(stage: &Stage, setting: &Setting, duration: Duration) -> Result<Outcome> {
    let case: &Case = &micro::THREADS[0];
    let mut target = case.start(stage)?;
    let tracer = stage.attach(target.pid(), setting.arguments)?;
    let daemon = Stage::daemon(&tracer)?;
    let start = Instant::now();
    let mut batches = 0;
    while start.elapsed() < duration {
        if setting.stopped_every.is_some_and(|every| batches % every == 0) {
            tracer.signal(daemon, "STOP")?;
            let ran = target.run(BATCH, BATCH_PATIENCE);
            tracer.signal(daemon, "CONT")?;
            ran?;
        } else {
            target.run(BATCH, BATCH_PATIENCE)?;
        }
        batches += 1;
    }
    let made = batches * BATCH * case.threads;
    let elapsed = start.elapsed();
    // With room in the ring again, or the target's end could be what is lost.
    background::settled_cpu_ns(daemon)?;
    target.finish()?;
    tracer.finish(PATIENCE + BATCH_PATIENCE)?;
    Ok(Outcome { elapsed, made, recorded: stage.recorded()? })
}

impl Outcome {
    /// Frees that reached the daemon.
    ///
    /// Those of blocks whose allocation was lost are counted apart; and a block whose address is
    /// given out again was released, although its free was lost.
    fn frees(&self) -> u64 {
        let Recorded { frees, .. } = &self.recorded;
        let supposed = self.recorded.counter("address_reuses");
        frees + self.recorded.counter("orphan_frees") - supposed.min(*frees)
    }

    fn allocations_add_up(&self) -> bool {
        self.recorded.allocations + self.recorded.counter("lost_allocations") == self.made
    }

    fn frees_add_up(&self) -> bool {
        self.frees() + self.recorded.counter("lost_frees") == self.made
    }
}

fn cells(name: &str, outcome: &Outcome) -> [String; 11] {
    let Outcome { elapsed, made, recorded } = outcome;
    let sum = |adds_up| if adds_up { "exact" } else { "wrong" }.to_owned();
    [
        name.to_owned(),
        format!("{:.0}", elapsed.as_secs_f64()),
        made.to_string(),
        recorded.allocations.to_string(),
        recorded.counter("lost_allocations").to_string(),
        sum(outcome.allocations_add_up()),
        outcome.frees().to_string(),
        recorded.counter("lost_frees").to_string(),
        sum(outcome.frees_add_up()),
        format!("{:.0}", *made as f64 / elapsed.as_secs_f64()),
        format!("{:.1}", recorded.trace_bytes as f64 / recorded.events as f64),
    ]
}

fn counters(recorded: &Recorded) -> String {
    let named = recorded.counters.iter().map(|(name, value)| format!("`{name}` {value}"));
    let named: Vec<String> = named.collect();
    if named.is_empty() { "all zero".to_owned() } else { named.join(", ") }
}

fn outcome_json(setting: &Setting, outcome: &Outcome) -> Value {
    let Outcome { elapsed, made, recorded } = outcome;
    let counters: serde_json::Map<String, Value> =
        recorded.counters.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    json!({
        "setting": setting.name,
        "seconds": elapsed.as_secs_f64(),
        "allocations": made,
        "allocations_recorded": recorded.allocations,
        "frees_recorded": outcome.frees(),
        "allocations_add_up": outcome.allocations_add_up(),
        "frees_add_up": outcome.frees_add_up(),
        "events": recorded.events,
        "lost_events": recorded.lost_events,
        "trace_bytes": recorded.trace_bytes,
        "counters": counters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_and_lost_must_add_up_to_what_was_made() {
        let counters = [
            ("lost_allocations", 3),
            ("lost_frees", 2),
            ("orphan_frees", 2),
            ("address_reuses", 1),
        ];
        let recorded = Recorded {
            allocations: 7,
            frees: 7,
            counters: counters.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            ..Recorded::default()
        };
        let mut outcome = Outcome { elapsed: Duration::from_secs(1), made: 10, recorded };

        assert!(outcome.allocations_add_up() && outcome.frees_add_up());
        outcome.made = 11;
        assert!(!outcome.allocations_add_up() && !outcome.frees_add_up());
    }
}
