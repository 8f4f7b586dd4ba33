//! How long it takes to attach and to detach, and how long the program stands still meanwhile.
//!
//! ```text
//!   attach_target.c ──────────────→ small program ──→ no tables kept
//!     + generated assembler ──────→ large program ─┬→ no tables kept
//!                                                  └→ the program's table kept
//! ```
//!
//! Attaching is the time from the start of memtrace to its line that all probes are in place; the
//! first event comes a little earlier. Detaching is that from Ctrl-C to the end of memtrace. The
//! program's file is in memory already, and no other tables than the program's are kept.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    background::{Background, PATIENCE},
    report::{Section, Table},
    stage::{self, Stage},
    stats,
    workloads::Scale,
};
use crate::{privilege::Privilege, shell};

/// Functions of the large program. With the bytes and rules below: 107 MB of text, 2.4 million rows.
const FUNCTIONS: u32 = 340_000;

/// How long nobody attaches, to see how long the program stands still by itself.
const IDLE: Duration = Duration::from_millis(300);

/// A function with the frame rules of a usual one; its size varies, so that tables do not repeat.
const FUNCTION_MACRO: &str = "\
.macro function name body
.type \\name, @function
\\name:
.cfi_startproc
push %rbp
.cfi_def_cfa_offset 16
.cfi_offset rbp, -16
push %rbx
.cfi_def_cfa_offset 24
.cfi_offset rbx, -24
sub $8, %rsp
.cfi_def_cfa_offset 32
.skip \\body, 0x90
add $8, %rsp
.cfi_def_cfa_offset 24
pop %rbx
.cfi_def_cfa_offset 16
pop %rbp
.cfi_def_cfa_offset 8
ret
.cfi_endproc
.size \\name, . - \\name
.endm
.section .note.GNU-stack, \"\", @progbits
.text
";

/// A program, and where its unwind table is kept.
struct Variant<'a> {
    name: String,
    program: &'a Path,
    /// What `--table-cache` gets.
    tables: String,
    rounds: Vec<Round>,
}

/// What one attach and detach took.
struct Round {
    attach_ms: f64,
    attach_stall_ms: f64,
    detach_ms: f64,
    detach_stall_ms: f64,
    idle_stall_ms: f64,
}

pub(super) fn measure(
    stage: &Stage,
    title: &'static str,
    rounds: u32,
    scale: Scale,
) -> Result<Section> {
    let small = build(stage, "attach-small", 0)?;
    let large = build(
        stage,
        "attach-large",
        match scale {
            Scale::Full => FUNCTIONS,
            Scale::Smoke => FUNCTIONS / 100,
        },
    )?;
    let kept = stage.dir.join("tables").display().to_string();
    let variant = |name: &str, program, tables: &str| -> Result<Variant<'_>> {
        let name = format!("{name}, {}", size(program)?);
        Ok(Variant { name, program, tables: tables.to_owned(), rounds: Vec::new() })
    };
    let mut variants = [
        variant("small program", small.as_path(), "off")?,
        variant("large program", large.as_path(), "off")?,
        variant("large program, table kept", large.as_path(), &kept)?,
    ];
    // The first one keeps the table.
    attach(stage, &large, &kept)?;
    for round in 1..=rounds {
        eprintln!("bench: {title}: round {round} of {rounds}");
        for variant in &mut variants {
            let measured = attach(stage, variant.program, &variant.tables);
            variant.rounds.push(measured.with_context(|| variant.name.clone())?);
        }
    }
    let mut table =
        Table::new(&["program", "attach ms", "stall ms", "detach ms", "stall ms", "idle stall ms"]);
    variants.iter().for_each(|variant| table.row(cells(variant)));
    Ok(Section { title, table, notes: notes(rounds), json: variants.iter().map(to_json).collect() })
}

/// Builds the program with that many functions more than it needs: about 20 s for the large one.
fn build(stage: &Stage, name: &str, functions: u32) -> Result<PathBuf> {
    let assembler = stage.scratch().join(name).with_extension("s");
    write_assembler(&assembler, functions).with_context(|| assembler.display().to_string())?;
    let program = stage.dir.join(name);
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-pthread", "-o"]).arg(&program);
    shell::run(compile.arg(stage::source("attach_target.c")).arg(&assembler))?;
    fs::remove_file(&assembler).with_context(|| assembler.display().to_string())?;
    // Writing it to the disk keeps processors busy.
    File::open(&program)?.sync_all().with_context(|| program.display().to_string())?;
    Ok(program)
}

fn write_assembler(path: &Path, functions: u32) -> std::io::Result<()> {
    let mut source = BufWriter::new(File::create(path)?);
    source.write_all(FUNCTION_MACRO.as_bytes())?;
    for number in 0..functions {
        writeln!(source, "function _ZN5bench8function{number}Ev {}", 200 + number % 200)?;
    }
    source.flush()
}

fn size(program: &Path) -> Result<String> {
    let bytes = program.metadata().with_context(|| program.display().to_string())?.len();
    Ok(match bytes {
        0..1_000_000 => format!("{} KB", bytes / 1_000),
        1_000_000.. => format!("{} MB", bytes / 1_000_000),
    })
}

fn attach(stage: &Stage, program: &Path, tables: &str) -> Result<Round> {
    // Whoever runs the bench may run it: it is memtrace that needs root.
    let mut target = Background::start("target", &Privilege::Root, Command::new(program))?;
    longest_stall_ms(&mut target)?;
    std::thread::sleep(IDLE);
    let idle_stall_ms = longest_stall_ms(&mut target)?;

    let start = Instant::now();
    let tracer = stage.attach(target.pid(), &["--table-cache", tables])?;
    let attach_ms = start.elapsed().as_secs_f64() * 1e3;
    let attach_stall_ms = longest_stall_ms(&mut target)?;

    let start = Instant::now();
    tracer.stop(PATIENCE)?;
    let detach_ms = start.elapsed().as_secs_f64() * 1e3;
    let detach_stall_ms = longest_stall_ms(&mut target)?;

    target.finish(PATIENCE)?;
    Ok(Round { attach_ms, attach_stall_ms, detach_ms, detach_stall_ms, idle_stall_ms })
}

/// The longest time that the target stood still since the last question.
fn longest_stall_ms(target: &mut Background) -> Result<f64> {
    target.tell("")?;
    let line = target.wait_for("stall: ", PATIENCE)?;
    let ns = line.strip_prefix("stall: ").and_then(|ns| ns.parse::<u64>().ok());
    Ok(ns.with_context(|| format!("the program answered {line:?}"))? as f64 / 1e6)
}

fn cells(variant: &Variant<'_>) -> [String; 6] {
    let cell = |of: fn(&Round) -> f64| {
        let values = || variant.rounds.iter().map(of);
        let (_, most) = stats::range(values());
        format!("{:.1} / {most:.1}", stats::median(values()))
    };
    [
        variant.name.clone(),
        cell(|round| round.attach_ms),
        cell(|round| round.attach_stall_ms),
        cell(|round| round.detach_ms),
        cell(|round| round.detach_stall_ms),
        cell(|round| round.idle_stall_ms),
    ]
}

fn notes(rounds: u32) -> Vec<String> {
    vec![format!(
        "Median and longest of {rounds} interleaved rounds. *attach*: from the start \
         of memtrace to its line that all probes are in place. *detach*: from Ctrl-C to its end. \
         *stall*: the longest time in which a thread of the program that wakes up every 0.1 ms, \
         with real-time priority if the machine allows it, did not run; *idle stall*: the same with \
         nobody attaching. *table kept*: the unwind table comes from `--table-cache`."
    )]
}

fn to_json(variant: &Variant<'_>) -> Value {
    let rounds: Vec<Value> = variant
        .rounds
        .iter()
        .map(|Round { attach_ms, attach_stall_ms, detach_ms, detach_stall_ms, idle_stall_ms }| {
            json!({
                "attach_ms": attach_ms,
                "attach_stall_ms": attach_stall_ms,
                "detach_ms": detach_ms,
                "detach_stall_ms": detach_stall_ms,
                "idle_stall_ms": idle_stall_ms,
            })
        })
        .collect();
    json!({ "program": variant.name, "tables": variant.tables, "rounds": rounds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_has_the_median_and_the_longest_of_each() {
        let round = |attach_ms, idle_stall_ms| Round {
            attach_ms,
            attach_stall_ms: 2.0,
            detach_ms: 3.0,
            detach_stall_ms: 4.0,
            idle_stall_ms,
        };
        let variant = Variant {
            name: "large".to_owned(),
            program: Path::new("/large"),
            tables: "off".to_owned(),
            rounds: vec![round(100.0, 0.1), round(900.0, 0.3), round(200.0, 0.2)],
        };

        let cells = cells(&variant);

        let expected =
            ["large", "200.0 / 900.0", "2.0 / 2.0", "3.0 / 3.0", "4.0 / 4.0", "0.2 / 0.3"];
        assert_eq!(cells, expected);
    }
}
