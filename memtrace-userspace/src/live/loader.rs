//! The kernel half from the daemon's side: programs, maps and links.
//!
//! It loads the object that is built into the binary, attaches what it is told to attach and
//! writes what it is told to write. Which process, which function and which table is decided in
//! [`super::tracer`].

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::Program as LoadedProgram;
use aya::{Btf, Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use memtrace_common::config::{KernelOffsets, Module, Process, Settings};
use memtrace_common::counter::Counter;
use memtrace_common::midway::{Fronts, Midway};
use memtrace_common::unwind::Row;
use rayon::prelude::*;
use thiserror::Error;
use zerocopy::IntoBytes;

use super::allocators::{Probe, Role};
use super::hooks;
use super::kernel_types::{KernelTypesError, kernel_offsets, require_features};
use super::kernel_version::kernel_release;
use super::mapped_array::{MappedArray, SegmentError};
use super::probes::{self, Attached, LinkKind, Place, Point, Probes};
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
    /// The kernel does not make a part of the unwind tables.
    #[error(
        "cannot make room for unwind tables: {0}; free some memory, or raise the limit of address \
         space (`ulimit -v`)"
    )]
    NoSegment(#[from] SegmentError),
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

/// What must be known of the running kernel before programs can be loaded.
pub struct KernelTypes {
    offsets: KernelOffsets,
    btf: Btf,
    /// aya's loader reads the kernel's BTF for itself, and does not show it to the tracepoints.
    loader: EbpfLoader<'static>,
}

impl KernelTypes {
    /// Reads the kernel's BTF, each reader side by side: it takes some 40 ms to parse.
    ///
    /// Refuses a kernel that lacks what the programs need: when they are loaded it would say so in
    /// the words of its verifier.
    pub fn read() -> Result<Self, LoadError> {
        let read = || {
            let bytes = std::fs::read(BTF_PATH);
            require_features(bytes.as_deref().ok(), &kernel_release())?;
            if jit_is_on() == Some(false) {
                return Err(LoadError::NoJit);
            }
            let bytes = bytes.map_err(|source| LoadError::NoBtf { source })?;
            let offsets = kernel_offsets(&bytes)?;
            let btf = Btf::parse(&bytes, aya::Endianness::default()).map_err(LoadError::refused)?;
            Ok::<_, LoadError>((offsets, btf))
        };
        let (types, loader) = rayon::join(read, EbpfLoader::new);
        let (offsets, btf) = types?;
        Ok(KernelTypes { offsets, btf, loader })
    }
}

/// The most that the maps take, fixed once they are made.
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
unsafe impl Pod for Value<Fronts> {}

/// The loaded kernel half. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    probes: Probes,
    process_index: HashMap<MapData, u32, u32>,
    pending: HashMap<MapData, u32, u32>,
    processes: Array<MapData, Value<Process>>,
    code_changes: Array<MapData, u64>,
    modules: Array<MapData, Value<Module>>,
    rows: MappedArray<Row>,
    buckets: MappedArray<u32>,
    shared: Array<MapData, u64>,
    front_sets: Array<MapData, Value<Fronts>>,
    /// Those that were written to it.
    fronts: Vec<Fronts>,
    /// Messages of a debug build of the object; other builds have none.
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    counters: PerCpuArray<MapData, u64>,
}

impl Kernel {
    /// Loads programs and maps, and attaches the tracepoints. Gives the ring apart.
    ///
    /// What is `needed` of rows and buckets is made meanwhile, the rest later.
    pub fn load(
        KernelTypes { offsets, btf, loader }: KernelTypes,
        capacity: Capacity,
        (needed_rows, needed_buckets): (u64, u64),
        back_pressure_ns: u64,
        links: Option<LinkKind>,
    ) -> Result<(Self, RingBuf<MapData>), LoadError> {
        let settings =
            Settings { back_pressure_ns, ring_bytes: u64::from(capacity.ring_bytes), offsets };
        let mut loader: EbpfLoader<'_> = loader;
        let mut ebpf = loader
            .override_global("SETTINGS", settings.as_bytes(), true)
            .map_max_entries("EVENTS", capacity.ring_bytes)
            .map_max_entries("MODULES", capacity.modules)
            .map_max_entries("ROWS", MappedArray::<Row>::segments_of(capacity.rows.into()).max(1))
            .map_max_entries(
                "BUCKETS",
                MappedArray::<u32>::segments_of(capacity.buckets.into()).max(1),
            )
            .load(OBJECT)
            .map_err(LoadError::refused)?;

        tracing::debug!("the maps are made; loading programs");
        let maps = probes::maps(&ebpf)?;
        let mut rows = MappedArray::new(typed(&mut ebpf, "ROWS")?);
        let mut buckets = MappedArray::new(typed(&mut ebpf, "BUCKETS")?);
        // It sleeps most of the time, and would take a thread away from those that verify.
        let (probes, has_room) = std::thread::scope(|scope| {
            let make_room = scope.spawn(|| {
                rows.make_room(needed_rows)?;
                buckets.make_room(needed_buckets)
            });
            let probes = load_programs(&mut ebpf, &btf, links, maps);
            (probes, make_room.join())
        });
        let probes = probes?;
        has_room.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        tracing::debug!("the programs are loaded");
        let ring = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")).map_err(LoadError::refused)?;
        let kernel = Kernel {
            process_index: typed(&mut ebpf, "PROCESS_INDEX")?,
            pending: typed(&mut ebpf, "PENDING")?,
            processes: typed(&mut ebpf, "PROCESSES")?,
            code_changes: typed(&mut ebpf, "CODE_CHANGES")?,
            modules: typed(&mut ebpf, "MODULES")?,
            rows,
            buckets,
            shared: typed(&mut ebpf, "SHARED")?,
            front_sets: typed(&mut ebpf, "FRONTS")?,
            fronts: Vec::new(),
            counters: typed(&mut ebpf, "COUNTER_VALUES")?,
            logger: match ebpf.map(LOG_MAP) {
                Some(_) => Some(EbpfLogger::init(&mut ebpf).map_err(LoadError::refused)?),
                None => None,
            },
            ebpf,
            probes,
        };
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
        let points: Result<Vec<_>, _> =
            place.probes.iter().map(|p| self.point(p, place.set)).collect();
        match points {
            Ok(points) => self.probes.attach(&mut self.ebpf, program, role, place, &points),
            Err(error) => Attached::none(place.probes.len(), &error),
        }
    }

    /// Where a probe of a set goes, and what the programs are told of it.
    fn point(&mut self, probe: &Probe, set: u8) -> Result<Point, LoadError> {
        let number = match probe.midway.as_ref().and_then(Midway::fronts) {
            Some(fronts) => self.number_of(fronts)?,
            None => 0,
        };
        Ok(Point { offset: probe.offset(), cookie: probe.cookie(set, number) })
    }

    /// The number of a core's fronts, which are written if they are new.
    fn number_of(&mut self, fronts: &Fronts) -> Result<u8, LoadError> {
        let known = self.fronts.iter().position(|known| known == fronts);
        let number = known.unwrap_or(self.fronts.len());
        let number = u8::try_from(number)
            .map_err(|_| LoadError::refused("too many builds of one allocator at a time"))?;
        if known.is_none() {
            self.front_sets.set(number.into(), Value(*fronts), 0).map_err(LoadError::refused)?;
            self.fronts.push(*fronts);
        }
        Ok(number)
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

    /// Writes unwind rows.
    pub fn set_rows(&mut self, first: u32, rows: &[Row]) -> Result<(), LoadError> {
        Ok(self.rows.write(first, rows)?)
    }

    /// Writes bucket entries.
    pub fn set_buckets(&mut self, first: u32, entries: &[u32]) -> Result<(), LoadError> {
        Ok(self.buckets.write(first, entries)?)
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
                let counted: u64 = values.iter().sum();
                let missed = match counter {
                    Counter::LostMappings => hooks::missed(&self.ebpf),
                    _ => 0,
                };
                Ok((*counter, counted + missed))
            })
            .collect()
    }
}

/// Loads the probes' programs and the hooks side by side: the kernel takes its time to verify them.
fn load_programs(
    ebpf: &mut Ebpf,
    btf: &Btf,
    links: Option<LinkKind>,
    maps: probes::Maps,
) -> Result<Probes, LoadError> {
    let kind = links.unwrap_or_else(LinkKind::of_this_kernel);
    if kind == LinkKind::Perf {
        let programs: Vec<_> = ebpf
            .programs_mut()
            .filter(|(name, _)| *name != probes::UNWIND)
            .map(|(_, program)| program)
            .collect();
        programs
            .into_par_iter()
            .try_for_each(|program| match program {
                LoadedProgram::UProbe(uprobe) => uprobe.load(),
                _ => Ok(()),
            })
            .map_err(LoadError::refused)?;
    }
    let (probes, hooks) =
        rayon::join(|| Probes::load(kind, OBJECT, maps), || hooks::attach(ebpf, btf));
    hooks?;
    probes
}

/// Whether the kernel compiles BPF programs; `None` where it does not say, such as in a container.
pub fn jit_is_on() -> Option<bool> {
    let mode = std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").ok()?;
    Some(mode.trim() != "0")
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Map {
    ebpf.take_map(name).expect("the object has this map")
}

fn typed<M>(ebpf: &mut Ebpf, name: &str) -> Result<M, LoadError>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    M::try_from(take_map(ebpf, name)).map_err(LoadError::refused)
}
