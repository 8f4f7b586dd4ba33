//! Reading what may point to the heap blocks of a running process, from outside.
//!
//! ```text
//!   threads:           stop ─→ registers ────────────────────────→ let go
//!   memory:    room ─→         maps ─→ resident pages ─→ copies           ─→ pieces
//! ```
//!
//! In: the process and its blocks. Out: the words that may point to one ([`Piece`]s and registers)
//! and what the look took. The threads are stopped by ptrace, so that whatever ends memtrace lets
//! them go on as well. It is copied while they stand still, and looked through when they have gone on;
//! what there is no room for is looked through at once. What is kept of it are possible pointers only;
//! judging them is [`crate::reach`]'s business.

mod copies;
mod kernel_held;
mod memory;
mod resident;
mod threads;
mod urgent;

use std::time::{Duration, Instant};

use thiserror::Error;

use self::copies::Copies;
use self::kernel_held::KernelHeld;
use self::memory::Memory;
use self::resident::Resident;
use self::threads::{StopError, Stopped};
use self::urgent::ComesFirst;
use super::process::{self, ProcessError, memory_limit};
use crate::reach::{Blocks, Cost, Piece};
use crate::record::Pid;

/// The longest stop of a process with no memory, unless told otherwise.
const STOP_AT_MOST: Duration = Duration::from_secs(1);
/// The same for each GiB of resident memory on top; usual is a fifth of it.
const STOP_AT_MOST_PER_GIB: Duration = Duration::from_secs(1);

/// How often a process that runs on is read: a pointer that moves while it is read is seen in one of
/// two readings, since few move twice.
const READINGS: u32 = 2;

/// Whether the process stands still while it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All its threads do, for this long at most; without it, for as long as its size explains.
    All(Option<Duration>),
    /// It runs on. Registers are not seen, and a pointer can escape by moving.
    Nothing,
}

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// Words in memory that may point to a block.
    pub pieces: Vec<Piece>,
    /// Words elsewhere: in registers, and with the kernel for an event to come.
    pub loose: Vec<u64>,
    /// What it took.
    pub cost: Cost,
}

/// Why a process cannot be looked at.
#[derive(Debug, Error)]
pub enum ScanError {
    /// It has ended, or cannot be looked at.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Its threads cannot be stopped.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// It stood still for as long as it may.
    #[error(
        "process {pid} stood still for {limit:?} and was not read to its end, so nothing is known; \
         allow more with --max-stop, or use --no-stop"
    )]
    TooLong {
        /// The process.
        pid: u32,
        /// The time that it may stand still.
        limit: Duration,
    },
    /// Its memory cannot be read.
    #[error("cannot read the memory of process {pid}: {source}; run memtrace as root (sudo)")]
    Memory {
        /// The process.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
}

/// Looks for words that may point to a block.
pub fn look(pid: Pid, blocks: &Blocks, stop: Stop) -> Result<Seen, ScanError> {
    match stop {
        Stop::All(limit) => look_at_stopped(pid, blocks, limit),
        Stop::Nothing => look_at_running(pid, blocks),
    }
}

fn look_at_stopped(pid: Pid, blocks: &Blocks, limit: Option<Duration>) -> Result<Seen, ScanError> {
    let resident = Resident::open(pid)?;
    let kernel_held = KernelHeld::of(pid);
    let limit = limit.unwrap_or_else(|| usual_limit(super::process::resident_bytes(pid)));
    let failed = |source| ScanError::Memory { pid: pid.0, source };
    let memory = Memory::of(&process::mappings(pid)?, &[], &resident).map_err(failed)?;
    let mut copies = Copies::new(room_for(memory.bytes())).map_err(failed)?;
    let comes_first = ComesFirst::begin();
    let started = Instant::now();
    let until = started + limit;
    let stopped = Stopped::stop(pid, until)?;
    let threads = stopped.len() as u64;
    let registers = stopped.registers()?;
    let stood_still = started.elapsed();
    let mappings = process::mappings(pid)?;
    let memory = Memory::of(&mappings, &registers.stack_pointers, &resident).map_err(failed)?;
    let known = started.elapsed();
    let read = memory.read(pid, blocks, &mut copies, Some(until))?;
    let loose = kernel_held.words();
    drop(stopped);
    let duration = started.elapsed();
    drop(comes_first);
    drop(copies);
    tracing::debug!(
        "all threads stood still after {stood_still:?}, what to read was known after {known:?}, \
         the process went on after {duration:?}"
    );
    let cost = Cost {
        stopped: Some(duration),
        threads,
        read_bytes: read.bytes,
        unreadable_bytes: read.unreadable_bytes,
        uncopied_bytes: read.uncopied_bytes,
        own_peak_bytes: 0,
    };
    if read.is_late {
        return Err(ScanError::TooLong { pid: pid.0, limit });
    }
    let pieces = read.into_pieces(blocks);
    Ok(Seen { pieces, loose: [registers.words, loose].concat(), cost })
}

fn look_at_running(pid: Pid, blocks: &Blocks) -> Result<Seen, ScanError> {
    let resident = Resident::open(pid)?;
    let mut seen = Seen { pieces: Vec::new(), loose: Vec::new(), cost: Cost::default() };
    let failed = |source| ScanError::Memory { pid: pid.0, source };
    let mut copies = Copies::new(0).map_err(failed)?;
    for _ in 0..READINGS {
        let mappings = process::mappings(pid)?;
        let memory = Memory::of(&mappings, &[], &resident).map_err(failed)?;
        let read = memory.read(pid, blocks, &mut copies, None)?;
        seen.loose.append(&mut KernelHeld::of(pid).words());
        seen.cost.read_bytes += read.bytes;
        seen.cost.unreadable_bytes += read.unreadable_bytes;
        seen.pieces.append(&mut read.into_pieces(blocks));
    }
    Ok(seen)
}

fn usual_limit(resident_bytes: Option<u64>) -> Duration {
    let gibibytes = resident_bytes.unwrap_or(0) as f64 / (1u64 << 30) as f64;
    STOP_AT_MOST + STOP_AT_MOST_PER_GIB.mul_f64(gibibytes)
}

/// How much memory to have ready for copies of so much: a little more, since the process may grow,
/// but no more than half of what is left.
fn room_for(bytes: u64) -> u64 {
    let left = memory_limit::left_bytes(Pid(std::process::id())).unwrap_or(u64::MAX);
    (bytes + bytes / 16 + copies::GROUP_BYTES as u64).min(left / 2)
}
