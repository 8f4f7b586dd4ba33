//! The beginning of a session: a tracer that is attached, or a command at its first instruction.

use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use super::tracer::IDLE;
use super::{RecordOptions, Refused, SessionError, Started, Target};
use crate::batches::BATCH_RECORDS;
use crate::live::allocators::survey::Verdict;
use crate::live::allocators::wanted;
use crate::live::endings::AtEnd;
use crate::live::kernel_version::kernel_release;
use crate::live::launch::{self, Prepared};
use crate::live::loader::Capacity;
use crate::live::open_files;
use crate::live::tracer::{Options, Tracer, TracerError};
use crate::record::{EndReason, Origin, Pid, ProbeCost, Record, Session};

/// Bytes of a bucket and its two rows.
const UNWIND_ENTRY_BYTES: u64 = 4 + 2 * 8;

/// The launched command.
pub(super) enum Launched {
    /// It runs, and the thread that has started it is about to say so.
    Starting(JoinHandle<std::io::Result<std::process::Child>>),
    /// It was started, and ended before it was looked at.
    Brief(std::process::Child),
}

impl Launched {
    /// How it ended; `None` if it has not.
    ///
    /// The kernel tells of the end of a process a moment before its parent can have its status:
    /// if the session ended because of it, that is waited for.
    pub(super) fn status(self, end: Option<EndReason>) -> Option<std::process::ExitStatus> {
        let mut child = match self {
            Launched::Starting(thread) => thread.join().ok()?.ok()?,
            Launched::Brief(child) => child,
        };
        match end {
            Some(EndReason::TargetExited) => child.wait().ok(),
            Some(EndReason::Interrupted | EndReason::DurationOver) | None => {
                child.try_wait().ok().flatten()
            }
        }
    }
}

/// Loads the kernel half and attaches, or launches.
pub(super) fn start(
    options: &RecordOptions,
) -> Result<(Tracer, Option<Launched>, Vec<Started>), SessionError> {
    let ring_bytes = u32::try_from(options.ring_bytes.next_power_of_two()).unwrap_or(1 << 30);
    let capacity = Capacity {
        ring_bytes: ring_bytes.clamp(1 << 20, 1 << 30),
        // Two rows of 8 bytes and a bucket of 4, as in the densest of real programs.
        rows: unwind_entries(options.unwind_bytes) * 2,
        buckets: unwind_entries(options.unwind_bytes),
        modules: 1 << 16,
    };
    let pids = match &options.target {
        Target::Attach(pids) => pids.as_slice(),
        Target::Launch(_) => &[],
    };
    match &options.target {
        Target::Attach(pids) => wanted::require(pids, &options.probes)?,
        Target::Launch(command) => wanted::require_in_command(command, &options.probes)?,
    }
    let tracer_options = Options {
        capacity,
        table_cache: options.table_cache.clone(),
        back_pressure: options.back_pressure,
        program: options.program,
        links: options.links,
        children: options.children,
        new_code: options.new_code,
        probes: options.probes.clone(),
        watch: options.watch,
    };
    let mut tracer = Tracer::new(tracer_options, pids)?;
    tracer.at_end(match (options.scan, &options.target) {
        (None, _) => AtEnd::Nothing,
        (Some(_), Target::Attach(_)) => AtEnd::Note,
        (Some(_), Target::Launch(_)) => AtEnd::Stop,
    });
    match &options.target {
        Target::Attach(pids) => {
            make_room_for_files();
            let started = attach_all(&mut tracer, pids, options.refused)?;
            Ok((tracer, None, started))
        }
        Target::Launch(command) => {
            let failed = |source| SessionError::Command {
                command: command
                    .first()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                source,
            };
            let prepared: Prepared = launch::prepare(command).map_err(failed)?;
            // The child exists already, and keeps the limit that it would have without memtrace.
            make_room_for_files();
            let pid = prepared.pid;
            tracer.begin_session(session(pid, Origin::Launched));
            tracer.expect(pid)?;
            let child = prepared.go().map_err(failed)?;
            // The kernel stops the child at its first instruction; `spawn` has returned by then.
            let name = command.first().cloned().unwrap_or_default();
            let started = Started::Launched { pid, command: name };
            match wait_for_exec(&mut tracer, &child)? {
                true => Ok((tracer, Some(Launched::Starting(child)), vec![started])),
                false => match child.join() {
                    Ok(Err(source)) => Err(failed(source)),
                    Ok(Ok(child)) => Ok((tracer, Some(Launched::Brief(child)), Vec::new())),
                    Err(_) => Ok((tracer, None, Vec::new())),
                },
            }
        }
    }
}

/// Attaches to the processes; the session is named after the first one that can be traced.
fn attach_all(
    tracer: &mut Tracer,
    pids: &[Pid],
    refused: Refused,
) -> Result<Vec<Started>, SessionError> {
    let mut started = Vec::with_capacity(pids.len());
    let mut first = None;
    let mut last_error = None;
    for &pid in pids {
        let before = tracer.records().len();
        match (tracer.attach(pid), refused) {
            (Ok(verdict), _) => {
                first.get_or_insert(pid);
                started.push(attached(pid, verdict, &tracer.records()[before..]));
            }
            (Err(error), Refused::Skip) if error.concerns_one_process() => {
                started.push(Started::Skipped { pid, reason: error.to_string() });
                last_error = Some(error);
            }
            (Err(error), Refused::Skip | Refused::End) => return Err(error.into()),
        }
    }
    match (first, last_error) {
        (None, Some(error)) => Err(error.into()),
        (first, _) => {
            tracer.begin_session(session(first.unwrap_or(Pid(0)), Origin::Attached));
            Ok(started)
        }
    }
}

fn make_room_for_files() {
    if let Err(error) = open_files::raise_limit() {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
}

/// How many buckets fit into memory for unwind tables, with two rows each.
fn unwind_entries(bytes: u64) -> u32 {
    u32::try_from(bytes / UNWIND_ENTRY_BYTES).unwrap_or(u32::MAX).min(1 << 30)
}

/// What the records of an attach say about it.
fn attached(pid: Pid, verdict: Verdict, records: &[Record]) -> Started {
    let (mut exe, mut probes, mut stepped_probes) = (Vec::new(), 0, 0);
    for record in records {
        match record {
            Record::Process(process) => exe.clone_from(&process.exe),
            Record::Probe(probe) => {
                probes += 1;
                stepped_probes += u64::from(probe.cost == ProbeCost::Stepped);
            }
            _ => {}
        }
    }
    Started::Attached { pid, exe, probes, stepped_probes, verdict }
}

/// Waits until the child runs its program; false if it could not.
fn wait_for_exec(
    tracer: &mut Tracer,
    child: &JoinHandle<std::io::Result<std::process::Child>>,
) -> Result<bool, TracerError> {
    loop {
        tracer.drain(BATCH_RECORDS)?;
        if tracer.has_processes() {
            return Ok(true);
        }
        if child.is_finished() {
            // It may have run its program just now.
            tracer.drain(BATCH_RECORDS)?;
            return Ok(tracer.has_processes());
        }
        tracer.tick()?;
        tracer.wait(IDLE);
    }
}

fn session(pid: Pid, origin: Origin) -> Session {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Session {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel_release(),
        started_unix_s: since_epoch.as_secs(),
        pid,
        origin,
    }
}
