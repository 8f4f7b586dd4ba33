//! Which functions of an ELF file acquire and release memory, and where to probe each.
//!
//! In: the bytes of an x86-64 ELF file. Out: a [`Plan`]: the probes, and for every function that
//! looked like an allocator's but gets no probe, the reason ([`Skip`]). Pure: it opens nothing.
//!
//! A function is known by its name: the C library's, jemalloc's extended ones, and C++
//! `operator new` and `operator delete`; also with the prefixes under which jemalloc is linked
//! into programs (`_rjem_` by Rust's `tikv-jemallocator`, `je_` by redis and others). It does not
//! matter what the file is: a C library, an allocator's library, or a program with either linked
//! into it. Local symbols count, because that is what hidden ones become.
//!
//! Two names for one call must not make two events:
//! - Names for one address get one probe.
//! - An `operator new` or `operator delete` that only forwards to `malloc` or `free` gets none,
//!   because `malloc` and `free` have theirs. Only allocators that define their own fast path for
//!   it (jemalloc, tcmalloc) need more, and such a file defines `malloc` too; in any other file,
//!   as in libstdc++, the operators are not even looked at.
//! - glibc's dynamic linker gets none. Until glibc 2.30 it defines `malloc` and `free` for its own
//!   start-up, before libc's are there to replace them; since 2.31 it does not export any.

use memtrace_common::addr::{FileOffset, Svma};
use memtrace_common::call::Call;
use memtrace_common::midway::Midway;
use object::ReadRef;
use thiserror::Error;

use crate::live::placement::{self, Need, Site};
use crate::record;

mod elf;
pub mod facts;
mod find;
mod forwards;
mod inside;
pub mod named;
mod names;
pub mod spec;
pub mod survey;
#[cfg(test)]
mod tests;
pub mod wanted;

use elf::Elf;
use facts::Facts;
use find::{Found, find};
use inside::Inside;
use named::NotFound;
use spec::ProbeSpec;

/// The most functions of one file that are considered; tcmalloc has 41 names, in two tables.
const MAX_FUNCTIONS: usize = 512;

/// The most bytes of one function that are decoded.
const MAX_FUNCTION_BYTES: u64 = 1 << 20;

/// Why a file's allocator functions could not be looked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AllocatorsError {
    /// Not an ELF file, or a broken one.
    #[error("not a readable ELF file: {reason}")]
    NotElf {
        /// What the parser met.
        reason: String,
    },
    /// An ELF file for another machine.
    #[error("the file is for machine {machine} ({class}-bit); memtrace traces x86-64 code only")]
    ForeignMachine {
        /// `e_machine`.
        machine: u16,
        /// 32 or 64.
        class: u8,
    },
}

/// Whether a function hands memory out or takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Memory is there when it returns: it needs a probe at its entry and at its return.
    ///
    /// `realloc` and its kin are of this role too; that they also release is known by their API.
    Acquire,
    /// Memory is gone when it returns: it needs a probe at its entry only.
    Release,
    /// What it calls is part of it: it needs a probe at its entry and at its return.
    ///
    /// Functions that the user has named, and that do not give memory. An allocator's own `free`
    /// calls no other, so its return is of no interest.
    Enclose,
    /// Memory is there, or its size is still known, at a place inside it: it needs a probe there.
    Midway,
    /// It unwinds the stack, past probed functions if need be: it needs a probe at its entry.
    Unwind,
    /// It ends the process: it needs a probe at its entry, where the process is read at its end.
    End,
}

/// How functions that give memory are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Inside, where that is possible; else as [`Watch::Calls`].
    Inside,
    /// At their entries and returns.
    Calls,
}

/// A function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it does, and which arguments say so.
    pub call: Call,
    /// Whether it needs a return probe.
    pub role: Role,
    /// Its name in the symbol table, without a version; or as the user has named it.
    pub symbol: String,
    /// Where in the file its first instruction is.
    pub offset: FileOffset,
    /// Where its first instruction is stated to be.
    pub svma: Svma,
    /// The size that its symbol states, in bytes; never 0, and inside the file.
    pub size: u64,
}

impl Target {
    /// The function's code in `file`, the bytes it was found in.
    pub fn code<'data>(&self, file: impl ReadRef<'data>) -> &'data [u8] {
        file.read_bytes_at(self.offset.0, self.size).unwrap_or_default()
    }
}

/// A probe to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The function.
    pub target: Target,
    /// Where in it.
    pub site: Site,
    /// What is known there, for [`Role::Midway`].
    pub midway: Option<Midway>,
}

impl Probe {
    /// A probe of a call as a whole.
    pub fn new(target: Target, site: Site) -> Probe {
        Probe { target, site, midway: None }
    }

    /// What the kernel is told of it, as one of the process's probes in this set; `fronts` is the number
    /// under which it has a core's fronts.
    pub fn cookie(&self, set: u8, fronts: u8) -> u64 {
        match (self.midway, self.target.call.api()) {
            (Some(midway @ Midway::Core { .. }), _) => midway.cookie(fronts, set),
            (Some(midway), Some(api)) => midway.cookie(api as u8, set),
            _ => self.target.call.cookie_at(self.site.depth),
        }
    }

    /// Where in the file the probe goes. Where the role needs the return as well, its probe has the
    /// same place.
    pub fn offset(&self) -> FileOffset {
        // The site lies in the function, and the function lies in the file.
        FileOffset(self.target.offset.0.saturating_add(self.site.delta))
    }

    /// The record that tells of this probe; `module` is the path of the file.
    pub fn record(&self, module: &[u8]) -> record::Probe {
        record::Probe {
            symbol: self.target.symbol.clone(),
            module: module.to_vec(),
            offset: self.offset(),
            cost: self.site.cost,
        }
    }
}

/// Why a function that is named like an allocator's gets no probe.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Skip {
    /// Another name for a function that has its probe.
    #[error("another name for {of}")]
    Alias {
        /// The name under which it is probed.
        of: String,
    },
    /// It only calls functions that have their own probes.
    #[error("only forwards to a function that is probed")]
    Forwards,
    /// A resolver that picks the function when the program starts.
    #[error("an indirect function (IFUNC), whose code is chosen at run time")]
    IndirectFunction,
    /// The symbol names data.
    #[error("not a function")]
    NotAFunction,
    /// The symbol states no size, so that the function's end is unknown.
    #[error("its symbol states no size")]
    NoSize,
    /// The symbol points to memory that is not executable, or outside the file.
    #[error("not in the file's executable code")]
    NotInCode,
    /// No real file has so many; this one and what follows it is left out.
    #[error("the file defines more than {MAX_FUNCTIONS} functions of this kind")]
    TooMany,
    /// The dynamic linker's own allocator, which is used only before libc's is there.
    #[error("belongs to the dynamic linker")]
    DynamicLinker,
    /// The user has named it, and it cannot be probed.
    #[error(transparent)]
    NotFound(NotFound),
}

/// A function that gets no probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub symbol: String,
    /// Why.
    pub reason: Skip,
}

/// What to probe in one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The probes, by address.
    pub probes: Vec<Probe>,
    /// The functions that are watched from inside, by name.
    pub inside: Vec<String>,
    /// What was passed over, by name.
    pub skipped: Vec<Skipped>,
    /// Where exceptions start to unwind the stack. They are probed where a probed function of the
    /// process, in whichever file, may be left by one.
    pub unwinders: Vec<Probe>,
    /// Where the process ends. They are probed where it is to be read before.
    pub ends: Vec<Probe>,
}

impl Plan {
    /// Every place at which the file may have a breakpoint.
    pub fn all_probes(&self) -> impl Iterator<Item = &Probe> {
        self.probes.iter().chain(&self.unwinders).chain(&self.ends)
    }

    /// Whether a function whose return is probed may be left by an exception.
    pub fn may_throw(&self) -> bool {
        self.probes.iter().any(|probe| match probe.target.role {
            // C's functions do not throw, and the operators that may not say so in their names.
            Role::Acquire => names::may_throw(&probe.target.symbol),
            Role::Enclose => true,
            Role::Midway | Role::Release | Role::Unwind | Role::End => false,
        })
    }

    /// The probes of functions that are not an allocator's, by their role.
    pub fn others(&self, role: Role) -> &[Probe] {
        match role {
            Role::Unwind => &self.unwinders,
            Role::End => &self.ends,
            Role::Acquire | Role::Release | Role::Enclose | Role::Midway => &[],
        }
    }

    /// The probes in the order in which a running process gets them: what takes memory back first.
    ///
    /// Placing them takes a while, and the process runs on. A block that is acquired in view and
    /// released out of it would be live for ever. A call that begins in view and ends out of it would
    /// stay open.
    pub fn in_placing_order(&self) -> Vec<&Probe> {
        let mut probes: Vec<&Probe> = self.probes.iter().collect();
        probes.sort_by_key(|probe| match (probe.target.role, probe.target.call, probe.midway) {
            (Role::Release, ..) => 0,
            (Role::Enclose, ..) => 1,
            (Role::Acquire, Call::Acquire { block: Some(_), .. }, _) => 2,
            (Role::Acquire, ..) => 3,
            (Role::Midway, _, Some(Midway::Replaced { .. })) => 4,
            (Role::Midway, _, Some(Midway::Retire { .. })) => 5,
            (Role::Midway, ..) => 6,
            (Role::Unwind | Role::End, ..) => 7,
        });
        probes
    }
}

/// Finds the allocator functions of the ELF file `file` and chooses the site of each probe.
///
/// `named` are the functions that the user wants to be probed in it. One that is an allocator's as
/// well is what the user says it is.
pub fn plan<'data>(
    file: impl ReadRef<'data>,
    named: &[&ProbeSpec],
    watch: Watch,
) -> Result<Plan, AllocatorsError> {
    let Found { mut targets, mut skipped, unwinders, ends, glibc } = find(file)?;
    for spec in named {
        match named::resolve(file, spec) {
            Ok(target) => {
                let (of, svma) = (target.symbol.clone(), target.svma);
                for known in targets.extract_if(.., |known| known.svma == svma) {
                    let reason = Skip::Alias { of: of.clone() };
                    skipped.push(Skipped { symbol: known.symbol, reason });
                }
                targets.push(target);
            }
            Err(error) => skipped
                .push(Skipped { symbol: spec.function.to_string(), reason: Skip::NotFound(error) }),
        }
    }
    let place = |target: Target| {
        // A return probe is set at the same place, where the return address has to be at `rsp`.
        let released = match (target.role, target.call) {
            (Role::Release, Call::Release { api: _, block }) => Some(block),
            _ => None,
        };
        let need = Need { arguments: target.call.arguments(), released };
        let site = placement::place(target.code(file), target.svma.0, need);
        Probe::new(target, site)
    };
    // A function that the user has named may be one that an allocator's function calls.
    let Inside { mut probes, functions: inside } = match watch {
        Watch::Inside if named.is_empty() => inside::take(file, &mut targets, &glibc),
        Watch::Inside | Watch::Calls => Inside::default(),
    };
    probes.extend(targets.into_iter().map(place));
    probes.sort_by_key(|probe| probe.target.svma);
    let unwinders = unwinders.into_iter().map(place).collect();
    let ends = ends.into_iter().map(place).collect();
    Ok(Plan { probes, inside, skipped, unwinders, ends })
}

/// What else the ELF file `file` says of itself.
pub fn facts<'data, R>(file: R) -> Result<Facts, AllocatorsError>
where
    R: ReadRef<'data> + Send + Sync,
{
    let elf = Elf::parse(file)?;
    let marks = elf.defined_symbols().map(|symbol| symbol.name).filter(|name| facts::is_mark(name));
    let whole = object::File::parse(file)
        .map_err(|error| AllocatorsError::NotElf { reason: error.to_string() })?;
    Ok(Facts::of(&whole, marks))
}

/// Whether the ELF file `file` holds a Go program.
///
/// Go does not allocate through any function known here, and a return probe would break the
/// growth of its stacks, so that such a program deserves an answer of its own.
pub fn is_go<'data>(file: impl ReadRef<'data>) -> Result<bool, AllocatorsError> {
    Ok(Elf::parse(file)?.is_go())
}
