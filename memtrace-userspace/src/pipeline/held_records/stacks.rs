//! The stacks of what is held, as records.
//!
//! The pipeline keeps frames as places in files, and a `Stack` record has addresses. So the files
//! are laid out one after the other in address space that no process has, for as long as the
//! stacks are told:
//!
//! ```text
//!   image i, offset o  ↔  FILES + (i << FILE_BITS) + o
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::event::Api;

use super::Purpose;
use crate::pipeline::Pipeline;
use crate::pipeline::call_paths::StackId;
use crate::pipeline::processes::Running;
use crate::pipeline::snapshot::{Place, Stack};
use crate::pipeline::stacks::SiteId;
use crate::record::{Image, Module, Pid, Record, WireStackId};

/// Where the first file is laid out: one past the highest address of a program.
const FILES: u64 = 1 << 47;

/// Every file has a terabyte.
const FILE_BITS: u32 = 40;

/// A stack that is told.
#[derive(Clone, Copy)]
struct NamedStack<'s> {
    id: WireStackId,
    stack: &'s Stack,
    /// Whether all of its frames lie in files, as most stacks' do.
    is_in_files: bool,
}

/// The stacks of a process, and the files in which their frames lie.
#[derive(Default)]
struct OfProcess<'s> {
    stacks: Vec<NamedStack<'s>>,
    files: BTreeSet<u32>,
}

/// The stack ids under which the records speak.
pub(super) struct StackNames {
    ids: HashMap<StackId, WireStackId>,
    /// Those whose frames must be told.
    told: Vec<(WireStackId, Arc<Stack>)>,
}

impl StackNames {
    /// Names for the stacks of `sites`, and for all others if the records are to go on.
    ///
    /// The kernel's ids stay; a stack whose id was forgotten gets one that is free.
    pub(super) fn new(
        pipeline: &Pipeline,
        purpose: Purpose,
        sites: &HashSet<SiteId>,
    ) -> StackNames {
        let stacks = &pipeline.stacks;
        let all = stacks.ids();
        let mut ids = HashMap::new();
        // Where something is held, 0 stands for no stack; the kernel gives it to none.
        for (id, stack) in all.iter().filter(|(id, _)| *id != WireStackId(0)) {
            ids.entry(*stack).and_modify(|known| *known = (*id).min(*known)).or_insert(*id);
        }
        let taken: HashSet<WireStackId> = all.iter().map(|(id, _)| *id).collect();
        let mut free = (1..u64::MAX).rev().map(WireStackId).filter(|id| !taken.contains(id));
        let mut told = Vec::new();
        let mut used: Vec<StackId> = sites.iter().map(|site| stacks.stack_of(*site)).collect();
        used.sort_unstable();
        used.dedup();
        for stack in used {
            let is_new = !ids.contains_key(&stack);
            if is_new && let Some(id) = free.next() {
                ids.insert(stack, id);
            }
            if let Some(frames) = stacks.paths.frames(stack)
                && (is_new || purpose == Purpose::Show)
            {
                told.push((ids[&stack], Arc::clone(frames)));
            }
        }
        if purpose == Purpose::GoOn {
            let known =
                all.iter().filter_map(|(id, stack)| Some((*id, stacks.paths.frames(*stack)?)));
            told.extend(known.map(|(id, stack)| (id, Arc::clone(stack))));
        }
        told.sort_unstable_by_key(|(id, _)| *id);
        StackNames { ids, told }
    }

    pub(super) fn of_site(&self, pipeline: &Pipeline, site: SiteId) -> (WireStackId, Api) {
        let stack = pipeline.stacks.stack_of(site);
        let id = if stack == StackId::NONE { None } else { self.ids.get(&stack) };
        (id.copied().unwrap_or(WireStackId(0)), pipeline.stacks.api(site))
    }
}

impl Pipeline {
    /// Tells the stacks, those of each process together.
    pub(super) fn tell_stacks<E>(
        &self,
        running: &[&Running],
        stacks: &StackNames,
        emit: &mut impl FnMut(&Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let any = running.first().map_or_else(|| self.session_pid(), |running| running.pid);
        let mut by_process: BTreeMap<Pid, OfProcess<'_>> = BTreeMap::new();
        let mut files = Vec::new();
        for (id, stack) in &stacks.told {
            files.clear();
            let pid = survey(stack, &mut files);
            let of_process = by_process.entry(pid.unwrap_or(any)).or_default();
            of_process.files.extend(&files);
            let is_in_files = pid.is_none();
            of_process.stacks.push(NamedStack { id: *id, stack, is_in_files });
        }
        for (pid, OfProcess { mut stacks, files }) in by_process {
            let is_running = self.processes.find(pid).is_some();
            while !stacks.is_empty() {
                let (together, others) = compatible(stacks);
                let layout = self.lay_out(pid, &together, &files);
                for module in &layout {
                    emit(&Record::Module(module.clone()))?;
                    if module.image != Image::Anonymous {
                        let image = ((module.start.0 - FILES) >> FILE_BITS) as u32;
                        self.tell_operations(module, image, emit)?;
                    }
                }
                for NamedStack { id, stack, .. } in together {
                    let frames = stack.frames.iter().map(address_of).collect();
                    emit(&Record::Stack { id, pid, end: stack.end, frames })?;
                }
                for Module { time, pid, start, .. } in layout {
                    emit(&Record::ModuleGone { time, pid, start })?;
                }
                stacks = others;
            }
            if !is_running {
                emit(&Record::Exit { time: self.now, pid })?;
            }
        }
        Ok(())
    }

    /// The mappings that make the addresses of these stacks mean their places.
    fn lay_out(&self, pid: Pid, stacks: &[NamedStack<'_>], files: &BTreeSet<u32>) -> Vec<Module> {
        let mut others: BTreeMap<Avma, bool> = BTreeMap::new();
        for (address, is_anonymous) in stacks.iter().flat_map(NamedStack::outside_of_files) {
            *others.entry(address).or_default() |= is_anonymous;
        }
        let module = |start, end, image| Module {
            time: self.now,
            pid,
            start: Avma(start),
            end: Avma(end),
            offset: FileOffset(0),
            image,
        };
        let files = files.iter().map(|&index| {
            let start = FILES + (u64::from(index) << FILE_BITS);
            let image = Image::clone(&self.images.all()[index as usize]);
            module(start, start + (1 << FILE_BITS), image)
        });
        let mut layout: Vec<Module> = files.collect();
        // Anonymous code reaches from its first address to its last, if none of unknown code lies
        // between them.
        let mut span: Option<(u64, u64)> = None;
        for (Avma(address), is_anonymous) in others {
            let end = address.saturating_add(1);
            span = match (span, is_anonymous) {
                (Some((start, _)), true) => Some((start, end)),
                (None, true) => Some((address, end)),
                (Some((start, end)), false) => {
                    layout.push(module(start, end, Image::Anonymous));
                    None
                }
                (None, false) => None,
            };
        }
        layout.extend(span.map(|(start, end)| module(start, end, Image::Anonymous)));
        layout
    }
}

impl NamedStack<'_> {
    /// The addresses of frames that lie in no file, and whether they are those of anonymous code.
    fn outside_of_files(&self) -> impl Iterator<Item = (Avma, bool)> {
        let frames = if self.is_in_files { &[] } else { self.stack.frames.as_slice() };
        frames.iter().filter_map(|place| match *place {
            Place::InFile { .. } => None,
            Place::Anonymous { address, .. } => Some((address, true)),
            Place::Unknown { address, .. } => Some((address, false)),
        })
    }
}

/// Adds the files of a stack's frames, once for each run of them; gives the process of the first
/// frame that lies in none.
fn survey(stack: &Stack, files: &mut Vec<u32>) -> Option<Pid> {
    let mut first = None;
    for place in &stack.frames {
        match *place {
            Place::InFile { image, .. } if files.last() == Some(&image) => {}
            Place::InFile { image, .. } => files.push(image),
            Place::Anonymous { pid, .. } | Place::Unknown { pid, .. } => {
                first.get_or_insert(pid);
            }
        }
    }
    first
}

/// The first stack and those for which every address means the same, and the others.
///
/// Code may have come and gone at an address, so it can be anonymous for one and unknown for
/// another; few are.
fn compatible(stacks: Vec<NamedStack<'_>>) -> (Vec<NamedStack<'_>>, Vec<NamedStack<'_>>) {
    let mut is_anonymous: HashMap<Avma, bool> = HashMap::new();
    stacks.into_iter().partition(|stack| {
        let fits = stack.outside_of_files().all(|(address, anonymous)| {
            is_anonymous.get(&address).is_none_or(|known| *known == anonymous)
        });
        if fits {
            is_anonymous.extend(stack.outside_of_files());
        }
        fits
    })
}

/// Where a place lies in the layout of its process's stacks.
fn address_of(place: &Place) -> Avma {
    match *place {
        Place::InFile { image, offset: FileOffset(offset) } => {
            // A file of more than a terabyte is forged.
            let offset = offset.min((1 << FILE_BITS) - 1);
            Avma(FILES + (u64::from(image) << FILE_BITS) + offset)
        }
        Place::Anonymous { address, .. } | Place::Unknown { address, .. } => address,
    }
}
