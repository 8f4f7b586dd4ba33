//! The kernel half from the daemon's side: programs, maps and links.
//!
//! It loads the object that is built into the binary, attaches what it is told to attach and
//! writes what it is told to write. Which process, which function and which table is decided in
//! [`super::tracer`].

use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use memtrace_common::config::{BucketChunk, Module, Process, RowChunk, Settings};
use memtrace_common::counter::Counter;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::allocators::Role;
use super::kernel_types::{KernelTypesError, kernel_offsets, require_features};
use super::kernel_version::kernel_release;
use super::probes::{Attached, LinkKind, Place, Probes};
use crate::record::Pid;

/// The kernel programs, as built by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("MEMTRACE_EBPF_OBJECT"));

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The ring that aya-log writes to.
const LOG_MAP: &str = "AYA_LOGS";

/// Index of the heartbeat in the `SHARED` map.
const HEARTBEAT: u32 = 0;

/// Value in `PENDING`: trace the process from its next `exec` on.
const PENDING_EXEC: u32 = 2;

/// Why the kernel half could not be set up.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel has no BTF.
    #[error(
        "cannot read {BTF_PATH}: {source}; memtrace needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y (run `memtrace doctor`)"
    )]
    NoBtf {
        /// Why.
        source: std::io::Error,
    },
    /// The kernel's BTF does not have what the programs need.
    #[error(transparent)]
    Types(#[from] KernelTypesError),
    /// The kernel would interpret programs, which cannot have `bpf_loop` and tail calls then.
    #[error(
        "the kernel's BPF compiler (JIT) is off, and memtrace's programs need it; run `sysctl \
         net.core.bpf_jit_enable=1` as root"
    )]
    NoJit,
    /// The kernel refused maps or programs.
    #[error("the kernel refused memtrace's programs: {source}; run `memtrace doctor`")]
    Refused {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LoadError {
    pub(super) fn refused(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        LoadError::Refused { source: source.into() }
    }
}

/// Sizes that are fixed once the maps are made.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Bytes of the event ring; a power of two.
    pub ring_bytes: u32,
    /// Unwind rows of all files.
    pub rows: u32,
    /// Buckets (256 bytes of text each) of all files.
    pub buckets: u32,
    /// Executable mappings of all processes, twice.
    pub modules: u32,
}

/// What a probe does when it is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Trace.
    Trace,
    /// Nothing: to measure what the probes alone cost.
    Empty,
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);

// SAFETY: wire structs from memtrace-common: `repr(C)`, no padding (zerocopy's `IntoBytes`).
unsafe impl Pod for Value<Module> {}
// SAFETY: as above.
unsafe impl Pod for Value<Process> {}
// SAFETY: as above.
unsafe impl Pod for Value<RowChunk> {}
// SAFETY: as above.
unsafe impl Pod for Value<BucketChunk> {}

/// The loaded kernel half. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    probes: Probes,
    process_index: HashMap<MapData, u32, u32>,
    pending: HashMap<MapData, u32, u32>,
    processes: Array<MapData, Value<Process>>,
    code_changes: Array<MapData, u64>,
    modules: Array<MapData, Value<Module>>,
    rows: Array<MapData, Value<RowChunk>>,
    buckets: Array<MapData, Value<BucketChunk>>,
    shared: Array<MapData, u64>,
    /// Messages of a debug build of the object; other builds have none.
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    counters: PerCpuArray<MapData, u64>,
}

impl Kernel {
    /// Loads programs and maps, and attaches the tracepoints. Gives the ring apart.
    pub fn load(
        capacity: Capacity,
        back_pressure_ns: u64,
        links: Option<LinkKind>,
    ) -> Result<(Self, RingBuf<MapData>), LoadError> {
        let btf_bytes = std::fs::read(BTF_PATH);
        // First of all, because a kernel without them says so in the words of its verifier.
        require_features(btf_bytes.as_deref().ok(), &kernel_release())?;
        if jit_is_on() == Some(false) {
            return Err(LoadError::NoJit);
        }
        let btf_bytes = btf_bytes.map_err(|source| LoadError::NoBtf { source })?;
        let settings = Settings { back_pressure_ns, offsets: kernel_offsets(&btf_bytes)? };
        let btf = Btf::parse(&btf_bytes, aya::Endianness::default()).map_err(LoadError::refused)?;
        let chunks = |entries: u32, per_chunk: usize| entries.div_ceil(per_chunk as u32).max(1);
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("SETTINGS", settings.as_bytes(), true)
            .map_max_entries("EVENTS", capacity.ring_bytes)
            .map_max_entries("MODULES", capacity.modules)
            .map_max_entries("ROWS", chunks(capacity.rows, size_of::<RowChunk>() / 8))
            .map_max_entries("BUCKETS", chunks(capacity.buckets, size_of::<BucketChunk>() / 4))
            .load(OBJECT)
            .map_err(LoadError::refused)?;

        let probes = Probes::load(&mut ebpf, OBJECT, links)?;
        let ring = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")).map_err(LoadError::refused)?;
        let mut kernel = Kernel {
            process_index: typed(&mut ebpf, "PROCESS_INDEX")?,
            pending: typed(&mut ebpf, "PENDING")?,
            processes: typed(&mut ebpf, "PROCESSES")?,
            code_changes: typed(&mut ebpf, "CODE_CHANGES")?,
            modules: typed(&mut ebpf, "MODULES")?,
            rows: typed(&mut ebpf, "ROWS")?,
            buckets: typed(&mut ebpf, "BUCKETS")?,
            shared: typed(&mut ebpf, "SHARED")?,
            counters: typed(&mut ebpf, "COUNTER_VALUES")?,
            logger: match ebpf.map(LOG_MAP) {
                Some(_) => Some(EbpfLogger::init(&mut ebpf).map_err(LoadError::refused)?),
                None => None,
            },
            ebpf,
            probes,
        };
        for name in [
            "sys_enter",
            "sys_exit",
            "sched_process_fork",
            "sched_process_exec",
            "sched_process_exit",
            "task_rename",
        ] {
            let program: &mut BtfTracePoint = kernel
                .ebpf
                .program_mut(name)
                .expect("the object has this program")
                .try_into()
                .map_err(LoadError::refused)?;
            program.load(name, &btf).map_err(LoadError::refused)?;
            program.attach().map_err(LoadError::refused)?;
        }
        for (name, program) in kernel.ebpf.programs() {
            if let Ok(info) = program.info() {
                let verified = info.verified_instruction_count();
                tracing::debug!(name, verified, "instructions that the kernel's verifier followed");
            }
        }
        Ok((kernel, ring))
    }

    /// How probes are attached, to processes whose first thread lives.
    pub fn link_kind(&self) -> LinkKind {
        self.probes.kind()
    }

    /// Places probes for functions with one role. One that is refused does not cost the others.
    pub fn attach(&mut self, program: Program, role: Role, place: &Place<'_>) -> Attached {
        self.probes.attach(&mut self.ebpf, program, role, place)
    }

    /// Makes the kernel trace what happens in `pid`, as the process at `index`.
    pub fn add_process(&mut self, pid: Pid, index: u32) -> Result<(), LoadError> {
        self.process_index.insert(pid.0, index, 0).map_err(LoadError::refused)
    }

    /// Makes the kernel forget `pid`. It may have forgotten it itself, at the process's exit.
    pub fn remove_process(&mut self, pid: Pid) {
        match self.process_index.remove(&pid.0) {
            Ok(()) | Err(_) => {}
        }
    }

    /// Makes the kernel trace `pid` from its next `exec` on.
    pub fn expect_exec(&mut self, pid: Pid) -> Result<(), LoadError> {
        self.pending.insert(pid.0, PENDING_EXEC, 0).map_err(LoadError::refused)
    }

    /// Writes the process at `index`.
    pub fn set_process(&mut self, index: u32, process: Process) -> Result<(), LoadError> {
        self.processes.set(index, Value(process), 0).map_err(LoadError::refused)
    }

    /// How often the process at `index` has made code executable.
    pub fn code_changes(&self, index: u32) -> Result<u64, LoadError> {
        self.code_changes.get(&index, 0).map_err(LoadError::refused)
    }

    /// Writes a module.
    pub fn set_module(&mut self, index: u32, module: Module) -> Result<(), LoadError> {
        self.modules.set(index, Value(module), 0).map_err(LoadError::refused)
    }

    /// Writes a chunk of unwind rows.
    pub fn set_rows(&mut self, index: u32, chunk: RowChunk) -> Result<(), LoadError> {
        self.rows.set(index, Value(chunk), 0).map_err(LoadError::refused)
    }

    /// Writes a chunk of bucket entries.
    pub fn set_buckets(&mut self, index: u32, chunk: BucketChunk) -> Result<(), LoadError> {
        self.buckets.set(index, Value(chunk), 0).map_err(LoadError::refused)
    }

    /// Shows the kernel programs that the daemon lives. `now_ns` is `CLOCK_MONOTONIC`.
    pub fn beat(&mut self, now_ns: u64) -> Result<(), LoadError> {
        self.shared.set(HEARTBEAT, now_ns, 0).map_err(LoadError::refused)
    }

    /// Hands the messages of a debug build to the log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// The kernel's counters, summed over all CPUs.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, LoadError> {
        Counter::ALL
            .iter()
            .map(|counter| {
                let values =
                    self.counters.get(&(*counter as u32), 0).map_err(LoadError::refused)?;
                Ok((*counter, values.iter().sum()))
            })
            .collect()
    }
}

/// Whether the kernel compiles BPF programs; `None` where it does not say, such as in a container.
pub fn jit_is_on() -> Option<bool> {
    let mode = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok()?;
    Some(mode.trim() != "0")
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> aya::maps::Map {
    ebpf.take_map(name).expect("the object has this map")
}

fn typed<M>(ebpf: &mut Ebpf, name: &str) -> Result<M, LoadError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    M::try_from(take_map(ebpf, name)).map_err(LoadError::refused)
}
