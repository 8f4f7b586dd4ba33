//! Which functions are watched from inside, and at which places.
//!
//! A function like `malloc`, `calloc` or `realloc` is; [`midway`] finds the places. Where glibc's
//! `malloc` needs two of them on one path, because it loses the size when it calls `_int_malloc`, that
//! is a *core*: places in it serve all functions that leave the search for memory to it.
//!
//! ```text
//!   malloc    places of its own (the thread's cache)  ┐
//!   calloc    none of its own                         ├─ and those of _int_malloc
//!   realloc   places of its own: not a front, so its calls of _int_malloc do not count
//! ```

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use memtrace_common::addr::Svma;
use memtrace_common::call::{Argument, Call, Given};
use memtrace_common::event::Api;
use memtrace_common::midway::{Front, Fronts, MAX_FRONTS, Midway};
use object::ReadRef;

use super::elf::Elf;
use super::{Probe, Role, Target};
use crate::cfi;
use crate::live::placement::midway::{self, Calls, Frame, Function, Sites, Size};
use crate::live::placement::{self, Site, branch_target};

/// How the core is called: glibc's name for it, which its library keeps to itself.
const CORE: &str = "_int_malloc";

/// Functions that are watched from inside.
#[derive(Default)]
pub(super) struct Inside {
    /// Their probes.
    pub(super) probes: Vec<Probe>,
    /// Their names.
    pub(super) functions: Vec<String>,
}

/// Takes those of `targets` that can be watched from inside.
///
/// `glibc` are its own functions, whose calls have no probes, and where each may jump to `memset`.
pub(super) fn take<'data>(
    file: impl ReadRef<'data>,
    targets: &mut Vec<Target>,
    glibc: &BTreeMap<Svma, Vec<Svma>>,
) -> Inside {
    // Only of glibc's is more asked than their own code.
    let functions = if glibc.is_empty() { None } else { Functions::of(file) };
    let candidates: Vec<Candidate<'_>> = targets
        .iter()
        .filter_map(|target| Candidate::of(file, &functions, target, targets, glibc))
        .collect();
    let mut found: Vec<(Target, Sites)> = candidates
        .iter()
        .filter_map(|c| Some((c.target.clone(), midway::find(c.code, &c.function)?)))
        .collect();
    let mut probes = Vec::new();
    if let Some(core) = Core::of(functions.as_ref(), &candidates, &found) {
        let is_front = |target: &Target| core.fronts.iter().any(|(f, _)| f.svma == target.svma);
        found.retain(|(target, _)| !is_front(target));
        found.extend(core.fronts);
        probes.extend(core.probes);
    }
    for (target, Sites { midway, tail_calls, frame: _ }) in &found {
        for delta in tail_calls {
            probes.push(Probe::new(target.clone(), Site::emulated(*delta)));
        }
        probes.extend(midway.iter().map(|(delta, midway)| probe(target, *delta, *midway)));
    }
    targets.retain(|target| !found.iter().any(|(inside, _)| inside.svma == target.svma));
    let functions = found.into_iter().map(|(target, _)| target.symbol).collect();
    Inside { probes, functions }
}

fn probe(target: &Target, delta: u64, midway: Midway) -> Probe {
    let target = Target { role: Role::Midway, ..target.clone() };
    Probe { target, site: Site::emulated(delta), midway: Some(midway) }
}

/// A function that may be watched from inside.
struct Candidate<'a> {
    target: Target,
    api: Api,
    code: &'a [u8],
    function: Function,
}

impl<'a> Candidate<'a> {
    fn of(
        file: impl ReadRef<'a>,
        functions: &Option<Functions<'a, impl ReadRef<'a>>>,
        target: &Target,
        targets: &[Target],
        glibc: &BTreeMap<Svma, Vec<Svma>>,
    ) -> Option<Candidate<'a>> {
        let size = size(target.call)?;
        let code = target.code(file);
        let (calls, memset, ends) = match (glibc.get(&target.svma), functions) {
            (Some(memset), Some(functions)) => {
                (Calls::Inner, memset.as_slice(), functions.ends(code, target.svma))
            }
            _ => (Calls::Unknown, [].as_slice(), Vec::new()),
        };
        let from_start = |svma: Svma| svma.0.wrapping_sub(target.svma.0);
        let fills = memset.iter().map(|to| from_start(*to)).collect();
        let probed = targets.iter().map(|other| from_start(other.svma)).collect();
        let function = Function { size, calls, fills, ends, core: None, probed };
        Some(Candidate { api: target.call.api()?, code, function, target: target.clone() })
    }

    /// The sites if it leaves the search to the core at `core`.
    fn sites_with(&self, core: Svma) -> Option<Sites> {
        let core = Some(core.0.wrapping_sub(self.target.svma.0));
        midway::find(self.code, &Function { core, ..self.function.clone() })
    }
}

/// The functions of a file, which need not have symbols.
struct Functions<'data, R: ReadRef<'data>> {
    elf: Elf<'data, R>,
    whole: object::File<'data, R>,
}

impl<'data, R: ReadRef<'data>> Functions<'data, R> {
    fn of(file: R) -> Option<Self> {
        Some(Functions { elf: Elf::parse(file).ok()?, whole: object::File::parse(file).ok()? })
    }

    /// The whole code of the function at `svma`.
    fn code(&self, svma: Svma) -> Option<&'data [u8]> {
        let (start, end) = cfi::function_around(&self.whole, svma)?;
        let size = end.0.checked_sub(svma.0).filter(|_| start == svma)?;
        self.elf.code_offset(svma, size)?;
        Some(self.elf.code(svma, size))
    }

    /// Which functions that the one at `svma`, whose code is `code`, calls do not return, in bytes
    /// from its start.
    fn ends(&self, code: &[u8], svma: Svma) -> Vec<u64> {
        let called: BTreeSet<u64> = Decoder::with_ip(64, code, 0, DecoderOptions::NONE)
            .iter()
            .filter(|instruction| instruction.flow_control() == FlowControl::Call)
            .filter_map(|instruction| branch_target(&instruction))
            .collect();
        let ends = |to: &u64| {
            let code = self.code(Svma(svma.0.wrapping_add(*to)));
            code.is_some_and(|code| !placement::may_return(code))
        };
        called.into_iter().filter(ends).collect()
    }
}

/// A core that serves all functions that call it.
struct Core {
    /// Those, and the places in them that it does not make needless.
    fronts: Vec<(Target, Sites)>,
    /// Its own.
    probes: Vec<Probe>,
}

impl Core {
    /// The core of one of glibc's functions in `found`, which needs two places on one path without it.
    /// `None` if not all that call it can do with its places.
    fn of<'data>(
        functions: Option<&Functions<'data, impl ReadRef<'data>>>,
        candidates: &[Candidate<'_>],
        found: &[(Target, Sites)],
    ) -> Option<Core> {
        // One that takes a block is no front: what the core gives it may not be what it returns.
        let may_be_front = |candidate: &&Candidate<'_>| {
            candidate.function.calls == Calls::Inner && candidate.function.size != Size::InExchange
        };
        let glibc = || candidates.iter().filter(may_be_front);
        let svma = glibc().find_map(|candidate| {
            let (target, sites) = found.iter().find(|(t, _)| t.svma == candidate.target.svma)?;
            let core = midway::core(candidate.code, sites)?;
            Some(Svma(target.svma.0.wrapping_add(core)))
        })?;
        let mut fronts = Vec::new();
        for candidate in glibc() {
            let sites = candidate.sites_with(svma)?;
            if let Some(frame) = sites.frame {
                fronts.push((candidate, sites, frame));
            }
        }
        if fronts.len() > MAX_FRONTS {
            return None;
        }

        let functions = functions?;
        let code = functions.code(svma)?;
        let size = code.len() as u64;
        let fronts_of = |place: u64| -> Option<Fronts> {
            let mut seen = Fronts::default();
            for (front, (candidate, _, frame)) in seen.iter_mut().zip(&fronts) {
                *front = front_of(candidate, *frame, svma.0.wrapping_add(place))?;
            }
            Some(seen)
        };
        let places = midway::find_in_core(code, functions.ends(code, svma), fronts_of)?;
        let (first, ..) = fronts.first()?;
        let core = Target {
            call: first.target.call,
            role: Role::Midway,
            symbol: CORE.to_owned(),
            offset: functions.elf.code_offset(svma, size)?,
            svma,
            size,
        };
        let probes = places.into_iter().map(|(at, midway)| probe(&core, at, midway)).collect();
        let fronts = fronts.into_iter().map(|(c, sites, _)| (c.target.clone(), sites)).collect();
        Some(Core { fronts, probes })
    }
}

/// A front as it is seen from `place`.
fn front_of(candidate: &Candidate<'_>, frame: Frame, place: u64) -> Option<Front> {
    let Target { svma, size, .. } = candidate.target;
    Some(Front {
        from_place: i32::try_from(svma.0.wrapping_sub(place) as i64).ok()?,
        length: u32::try_from(size).ok()?,
        api: candidate.api as u8,
        caller_word: frame.caller_word,
        rbp_word: frame.rbp_word,
        unused: 0,
    })
}

/// How a function that is like `malloc`, `calloc` or `realloc` is asked for a size: nothing else in but
/// the block that it takes, a block out, and no alignment asked for.
fn size(call: Call) -> Option<Size> {
    let Call::Acquire { api: _, size, times, block, given: Given::Returned, alignment: None } =
        call
    else {
        return None;
    };
    let arguments = [Argument::new(0), Argument::new(1)];
    if block.is_some() {
        let is_realloc = times.is_none() && [block, Some(size)] == arguments;
        return is_realloc.then_some(Size::InExchange);
    }
    match times {
        None if Some(size) == arguments[0] => Some(Size::Argument),
        Some(times) if [Some(size), Some(times)] == arguments => Some(Size::Product),
        Some(times) if [Some(times), Some(size)] == arguments => Some(Size::Product),
        None | Some(_) => None,
    }
}
