//! What memtrace would probe in a process: the answer of `doctor -p PID`.
//!
//! In: a process id. Out: a [`Survey`], which is data and lines of text without any text of the
//! target's in them; views print it, next to the paths that they have made printable.

use std::collections::HashSet;
use std::fmt;

use thiserror::Error;

use super::facts::Facts;
use super::spec::ProbeSpec;
use super::wanted::Wanted;
use super::{AllocatorsError, Plan, Watch, facts, is_go, plan};
use crate::live::lazy_file::LazyFile;
use crate::live::process::{self, Mapped, Mapping, ProcessError};
use crate::record::Pid;

/// What would be probed in a process.
#[derive(Debug)]
pub struct Survey {
    /// Its executable files, by the first address of their code.
    pub modules: Vec<Module>,
}

/// One file whose code is mapped.
#[derive(Debug)]
pub struct Module {
    /// Its path.
    pub path: Vec<u8>,
    /// Whether it is a Go program.
    pub runtime: Runtime,
    /// What would be probed in it, or why that is not known.
    pub plan: Result<Plan, SurveyError>,
    /// What else it says of itself.
    pub facts: Facts,
}

/// The language runtime that a file brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Go's, which has its own allocator and moves its stacks.
    Go,
    /// None that matters here.
    Other,
}

/// Why a file could not be searched.
#[derive(Debug, Error)]
pub enum SurveyError {
    /// It could not be opened.
    #[error(transparent)]
    Open(#[from] ProcessError),
    /// It could not be read.
    #[error("the file could not be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is not an ELF file of this machine.
    #[error(transparent)]
    Elf(#[from] AllocatorsError),
}

/// What can be traced, by what was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Allocators were found.
    Traceable,
    /// A Go program, and allocators for its C code.
    GoWithC,
    /// A Go program without an allocator that is known.
    Go,
    /// No allocator was found.
    NoAllocator,
}

impl Verdict {
    /// The verdict on files: are there probes in any of them, is any of them Go's?
    pub fn of(probes: Found, runtime: Runtime) -> Verdict {
        match (probes, runtime) {
            (Found::Some, Runtime::Other) => Verdict::Traceable,
            (Found::Some, Runtime::Go) => Verdict::GoWithC,
            (Found::None, Runtime::Go) => Verdict::Go,
            (Found::None, Runtime::Other) => Verdict::NoAllocator,
        }
    }
}

/// Whether there are allocators to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// There are.
    Some,
    /// There are none.
    None,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Traceable => "its allocators can be traced",
            Verdict::GoWithC => {
                "a Go program: what its C code allocates can be traced, but of Go's own heap \
                 only the mappings by which it grows; for that heap, use Go's pprof"
            }
            Verdict::Go => {
                "a Go program, whose heap is managed by Go's runtime and not by malloc: only the \
                 mappings by which it grows can be traced; for the heap, use Go's pprof"
            }
            Verdict::NoAllocator => {
                "no allocator was found, so the program is probably linked statically and \
                 stripped: only its memory mappings can be traced; for its heap, trace a build \
                 that keeps its symbol table, or one that uses a shared C library"
            }
        })
    }
}

impl Survey {
    /// What can be traced.
    pub fn verdict(&self) -> Verdict {
        let has_probes =
            |module: &Module| module.plan.as_ref().is_ok_and(|plan| !plan.probes.is_empty());
        let is_go = |module: &Module| module.runtime == Runtime::Go;
        Verdict::of(
            if self.modules.iter().any(has_probes) { Found::Some } else { Found::None },
            if self.modules.iter().any(is_go) { Runtime::Go } else { Runtime::Other },
        )
    }
}

impl Survey {
    /// The functions that are probed inside, and not at their entries and returns.
    pub fn probed_inside(&self) -> HashSet<String> {
        let plans = self.modules.iter().filter_map(|module| module.plan.as_ref().ok());
        plans.flat_map(|plan| plan.inside.iter().cloned()).collect()
    }
}

impl Module {
    /// Whether there is anything to say about it: most libraries have no allocator.
    pub fn is_worth_a_line(&self) -> bool {
        match &self.plan {
            Ok(Plan { probes, skipped, inside: _, unwinders: _, ends: _ }) => {
                !probes.is_empty() || !skipped.is_empty() || self.runtime == Runtime::Go
            }
            Err(_) => true,
        }
    }
}

/// Searches every file whose code is mapped into the process, for `named` functions as well.
pub fn survey(pid: Pid, named: &[ProbeSpec]) -> Result<Survey, ProcessError> {
    let mappings = process::mappings(pid)?;
    let wanted = Wanted::of(pid, named);
    let modules = first_mappings(&mappings)
        .map(|(path, mapping)| {
            let (runtime, plan, facts) = match search(pid, mapping, &wanted.in_file(path)) {
                Ok((runtime, plan, facts)) => (runtime, Ok(plan), facts),
                Err(error) => (Runtime::Other, Err(error), Facts::default()),
            };
            Module { path: path.to_vec(), runtime, plan, facts }
        })
        .collect();
    Ok(Survey { modules })
}

/// The first executable mapping of each file.
pub(super) fn first_mappings(mappings: &[Mapping]) -> impl Iterator<Item = (&[u8], &Mapping)> {
    let mut seen = HashSet::new();
    mappings.iter().filter(|mapping| mapping.is_code()).filter_map(move |mapping| {
        let Mapped::File { path, deleted: _ } = &mapping.mapped else { return None };
        seen.insert((mapping.device, mapping.inode)).then_some((path.as_slice(), mapping))
    })
}

fn search(
    pid: Pid,
    mapping: &Mapping,
    named: &[&ProbeSpec],
) -> Result<(Runtime, Plan, Facts), SurveyError> {
    let file = process::open_mapped(pid, mapping)?;
    let bytes = LazyFile::new(&file)?;
    let runtime = if is_go(&bytes)? { Runtime::Go } else { Runtime::Other };
    let facts = facts(&bytes)?;
    Ok((runtime, plan(&bytes, named, Watch::Inside)?, facts))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use memtrace_common::addr::{FileOffset, Svma};
    use memtrace_common::call::{Argument, Call};
    use memtrace_common::event::Api;

    use super::*;
    use crate::live::allocators::{Probe, Role, Skip, Skipped, Target};
    use crate::live::placement::Site;
    use crate::record::ProbeCost;

    fn module(plan: Plan, runtime: Runtime) -> Module {
        Module { path: b"/bin/x".to_vec(), runtime, plan: Ok(plan), facts: Facts::default() }
    }

    fn plan_with_free() -> Plan {
        let target = Target {
            call: Call::Release { api: Api::Free, block: Argument::new(0).unwrap() },
            role: Role::Release,
            symbol: "free".into(),
            offset: FileOffset(0x1000),
            svma: Svma(0x2000),
            size: 40,
        };
        let site = Site { delta: 3, depth: 0, cost: ProbeCost::Emulated };
        let alias = Skipped { symbol: "cfree".into(), reason: Skip::Alias { of: "free".into() } };
        Plan {
            inside: Vec::new(),
            probes: vec![Probe::new(target, site)],
            skipped: vec![alias],
            unwinders: Vec::new(),
            ends: Vec::new(),
        }
    }

    #[test]
    fn verdict_follows_from_all_files() {
        let nothing = || module(Plan::default(), Runtime::Other);
        let go = || module(Plan::default(), Runtime::Go);
        let libc = || module(plan_with_free(), Runtime::Other);

        assert_eq!(Survey { modules: vec![nothing(), libc()] }.verdict(), Verdict::Traceable);
        assert_eq!(Survey { modules: vec![go(), libc()] }.verdict(), Verdict::GoWithC);
        assert_eq!(Survey { modules: vec![go(), nothing()] }.verdict(), Verdict::Go);
        assert_eq!(Survey { modules: vec![nothing()] }.verdict(), Verdict::NoAllocator);
    }

    #[test]
    fn library_without_an_allocator_is_not_worth_a_line() {
        assert!(!module(Plan::default(), Runtime::Other).is_worth_a_line());
        assert!(module(Plan::default(), Runtime::Go).is_worth_a_line());
    }

    #[test]
    fn running_program_has_an_allocator() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Once it has answered, its libraries are mapped.
        std::io::Write::write_all(&mut stdin, b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();

        let survey = survey(Pid(child.id()), &[]).unwrap();

        drop(stdin);
        child.wait().unwrap();
        assert_eq!(survey.verdict(), Verdict::Traceable);
    }
}
