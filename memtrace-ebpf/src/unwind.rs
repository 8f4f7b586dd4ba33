//! The walk: from the registers of a thread to the id of its stack.
//!
//! A stack that was seen before is recognised, not walked (`remember`). On a miss the stack is walked
//! with [`memtrace_common::unwind::step`], sent to the daemon if it is new, and remembered with the
//! words that the walk depended on: return addresses, and saved frame pointers where a frame was
//! found through one.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, generated};
use memtrace_common::config::{
    MAX_FRAMES, MAX_REMEMBERED_SLOTS, Process, RAW_STACK_BYTES, SCRATCH_PIECES, SENT_STACKS,
    STACK_COPY_BYTES, STACK_LEAD_BYTES,
};
use memtrace_common::counter::Counter;
use memtrace_common::event::{Kind, Stack, StackRest};
use memtrace_common::unwind::{End, PcKind, Regs, Row, Step, cfa, step};

use crate::bounds::{bounded, set_element};
use crate::emit::{self, Context, Urgency};
use crate::lookup::{find_row, tables_are_behind};
use crate::maps::{
    COPY_LIMIT, PROCESSES, SCRATCH, SENT, Scratch, WALKING, count, release, store_regs, try_claim,
};
use crate::remember::{is_worthwhile, learn, mix, recall, remember};
use crate::task::hijacked_address;

/// How many pieces of scratch a walk tries to claim, starting at its CPU's.
const CLAIM_TRIES: u32 = 16;

/// The most bytes that are copied before it is known how far the stack is needed.
const MOST_AHEAD: u64 = 2048;

/// Bytes of a page: a copy never crosses from one into the next, which may be missing.
const PAGE_BYTES: u64 = 4096;

/// A piece of scratch that a program has claimed, with a copy of the stack: its index and 1, or 0 for
/// none.
#[derive(Clone, Copy)]
pub struct Held(u64);

impl Held {
    /// None.
    pub const NONE: Held = Held(0);

    /// Claims one and copies the stack from `first` on, as far as it is likely to be needed.
    #[inline(always)]
    pub fn with_copy_from(first: u64) -> Option<Held> {
        let held = hold_copy(first);
        if held == 0 { None } else { Some(Held(held)) }
    }

    /// The words of the copy, [`STACK_WORDS`] at least.
    #[inline(always)]
    pub fn words(self) -> Option<*const u64> {
        let scratch = SCRATCH.get_ptr(self.index())?;
        // SAFETY: a map value.
        Some(unsafe { &raw const (*scratch).copy }.cast())
    }

    /// Gives it back unused.
    #[inline(always)]
    pub fn release(self) {
        if let Some(scratch) = SCRATCH.get_ptr_mut(self.index()) {
            // SAFETY: a map value that this program has claimed.
            unsafe { release(&raw mut (*scratch).claimed) };
        }
    }

    #[inline(always)]
    fn index(self) -> u32 {
        (self.0 as u32).wrapping_sub(1)
    }
}

/// [`Held::with_copy_from`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hold_copy(first: u64) -> u64 {
    let Some((index, scratch)) = claim() else {
        count(Counter::NoScratch);
        return 0;
    };
    // SAFETY: claimed, so nobody else writes to it.
    let s = unsafe { &mut *scratch };
    s.base = first;
    // One that reaches too far fails as a whole.
    if !read_ahead(s, s.expected.min(MOST_AHEAD)) && !read_ahead(s, 0) {
        count(Counter::UnreadableStack);
        // SAFETY: a map value that this program has claimed.
        unsafe { release(&raw mut s.claimed) };
        return 0;
    }
    index as u64 + 1
}

/// Copies so many bytes from `base` on, or what a probe may refer to if that is more.
#[inline(always)]
fn read_ahead(s: &mut Scratch, bytes: u64) -> bool {
    let bytes = bounded::<0xfff>(bytes.max(STACK_LEAD_BYTES as u64));
    // SAFETY: the copy is larger than that.
    let failed = unsafe {
        let to = s.copy.as_mut_ptr().cast();
        generated::bpf_probe_read_user(to, bytes as u32, s.base as *const c_void)
    };
    s.copied = bytes;
    failed == 0
}

/// The id of the stack that `regs` is the innermost frame of; 0 if it could not be walked at all.
/// What is `held` is given back.
#[inline(always)]
pub fn capture(tgid: u32, process: u32, regs: Regs, context: Context, held: Held) -> u64 {
    let Regs { pc, sp, fp, pc_kind } = regs;
    let is_preemptible = matches!(context, Context::Preemptible) as u64;
    capture_stack(
        (tgid as u64) << 32 | process as u64,
        pc,
        sp,
        fp,
        held.0 << 2 | is_preemptible << 1 | pc_kind as u64,
    )
}

/// [`capture`], in a form that the verifier looks at once and not on each way to each call.
///
/// A global function is verified on its own, if it takes numbers and gives one; five at most.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn capture_stack(of: u64, pc: u64, sp: u64, fp: u64, how: u64) -> u64 {
    let (tgid, process) = ((of >> 32) as u32, of as u32);
    let pc_kind = if how & 1 != 0 { PcKind::Exact } else { PcKind::ReturnAddress };
    let context = if how & 2 != 0 { Context::Preemptible } else { Context::Tracepoint };
    let held = Held(how >> 2);
    let claimed = match held.0 {
        0 => claim().inspect(|(_, scratch)| {
            // SAFETY: claimed, so nobody else writes to it.
            let s = unsafe { &mut **scratch };
            (s.base, s.copied) = (sp, 0);
        }),
        _ => SCRATCH.get_ptr_mut(held.index()).map(|scratch| (held.index(), scratch)),
    };
    let Some((index, scratch)) = claimed else {
        count(Counter::NoScratch);
        return 0;
    };
    let regs = Regs { pc, sp, fp, pc_kind };
    let id = capture_with(scratch, index, tgid, process, regs, context);
    // SAFETY: a map value that this program has claimed.
    unsafe { release(&raw mut (*scratch).claimed) };
    id
}

/// Claims scratch memory.
#[inline(always)]
fn claim() -> Option<(u32, *mut Scratch)> {
    // SAFETY: a helper without preconditions.
    let first = unsafe { bpf_get_smp_processor_id() } * 4;
    for i in 0..CLAIM_TRIES {
        let index = (first + i) & (SCRATCH_PIECES - 1);
        let scratch = SCRATCH.get_ptr_mut(index)?;
        // SAFETY: a map value.
        if unsafe { try_claim(&raw mut (*scratch).claimed) } {
            return Some((index, scratch));
        }
    }
    None
}

/// Recognises the stack, or walks it. `scratch`, at `index`, is claimed.
///
/// No reference to the scratch lives across a call of a function that finds it by its index.
#[inline(always)]
fn capture_with(
    scratch: *mut Scratch,
    index: u32,
    tgid: u32,
    process: u32,
    regs: Regs,
    context: Context,
) -> u64 {
    let Some(table) = PROCESSES.get(process) else { return 0 };
    let owner = (process as u64) << 32 | table.generation as u64;
    // SAFETY: claimed, so nobody else writes to it.
    set_start(unsafe { &mut *scratch }, owner, regs);
    let id = recall(index as u64);
    // SAFETY: as above.
    learn(unsafe { &mut *scratch }, id != 0);
    if id != 0 {
        return id;
    }

    count(Counter::StackWalks);
    // SAFETY: as above.
    begin_walk(unsafe { &mut *scratch }, table, owner, regs);
    let mut scratch_index = index;
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe {
        generated::bpf_loop(
            MAX_FRAMES as u32,
            walk_step as *mut c_void,
            (&raw mut scratch_index).cast(),
            0,
        );
    }
    // SAFETY: as above; the loop has ended.
    let s = unsafe { &mut *scratch };
    if s.end == WALKING {
        s.end = End::FrameLimit as u32;
    }
    if s.end == End::UnknownCode as u32 && tables_are_behind(process) {
        return send_raw(s, tgid, context);
    }
    let id = mix(s.hash ^ s.end as u64) | 1;
    let reached_root = s.end == End::Root as u32;
    if send_if_new(s, tgid, id, context) && reached_root && is_worthwhile(s) {
        remember(index as u64, id);
    }
    id
}

/// Notes where the stack starts, which is what it is recognised by.
#[inline(always)]
fn set_start(s: &mut Scratch, owner: u64, regs: Regs) {
    let lead = regs.sp.wrapping_sub(s.base);
    s.lead = bounded::<0x1f>(lead / 8);
    s.copied = s.copied.saturating_sub(lead);
    s.base = regs.sp;
    s.start_fp = regs.fp;
    s.family = mix(owner ^ mix(regs.sp ^ mix(regs.pc)));
}

/// Sets the walk to its first frame. The copy stays: it is of this stack.
#[inline(always)]
fn begin_walk(s: &mut Scratch, process: &Process, owner: u64, regs: Regs) {
    s.fp_slot = 0;
    s.fp_used = 0;
    s.slot_count = 0;
    s.walk = s.walk.wrapping_add(1);
    s.span = 0;
    s.frame_count = 1;
    s.end = WALKING;
    // No address lies below it, so it is no module's.
    s.module.end = 0;
    s.first_module = process.modules;
    s.module_count = process.module_count;
    s.frames[0] = regs.lookup_pc();
    s.owner_hash = mix(owner);
    s.hash = mix(owner ^ mix(regs.lookup_pc()));
    store_regs(s, regs);
}

/// Sends the frames behind `id` unless the daemon has them; false if they were lost.
#[inline(always)]
fn send_if_new(s: &mut Scratch, tgid: u32, id: u64, context: Context) -> bool {
    let Some(sent) = SENT.get_ptr_mut((id >> 8) as u32 & (SENT_STACKS - 1)) else { return false };
    // A lost race sends a stack twice, which is harmless.
    // SAFETY: a map value, aligned.
    if unsafe { core::ptr::read_volatile(sent) } == id {
        return true;
    }
    let frames = s.frame_count;
    s.stack = Stack { header: emit::header(Kind::Stack, 0, s.end as u16), id, pid: tgid, frames };
    let bytes = bounded::<0x3fff>(size_of::<Stack>() as u64 + frames as u64 * 8);
    if bytes > (size_of::<Stack>() + MAX_FRAMES * 8) as u64 {
        return false;
    }
    // SAFETY: header and frames lie one behind the other in the scratch; the size was checked.
    let is_sent = unsafe {
        let event = (&raw mut s.stack).cast();
        emit::send_bytes(event, bytes, Counter::LostStacks, Urgency::Normal, context)
    };
    if !is_sent {
        return false;
    }
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(sent, id) };
    true
}

/// Sends an unfinished walk to the daemon, with the stack that it needs; gives its id.
#[inline(always)]
fn send_raw(s: &mut Scratch, tgid: u32, context: Context) -> u64 {
    count(Counter::RawStacks);
    for _ in 0..=RAW_STACK_BYTES as u64 / PAGE_BYTES {
        if s.copied < RAW_STACK_BYTES as u64 {
            copy_page(s);
        }
    }
    let header = emit::header(Kind::RawStack, 0, s.end as u16);
    // What is left of the stack is not in the hash, so the id stands for this event alone.
    let id = mix(s.hash ^ mix(header.time_ns ^ s.base)) | 1;
    s.stack = Stack { header, id, pid: tgid, frames: s.frame_count };
    let lead = s.lead * 8;
    s.rest = StackRest {
        pc: s.pc,
        sp: s.sp,
        fp: s.fp,
        base: s.base.wrapping_sub(lead),
        copied: s.copied + lead,
        pc_kind: s.pc_exact as u64,
    };
    let bytes = size_of::<Stack>() + MAX_FRAMES * 8 + size_of::<StackRest>() + RAW_STACK_BYTES;
    // SAFETY: header, frames, rest and copy lie one behind the other in the scratch.
    unsafe {
        let event = (&raw mut *s).cast::<u8>().add(core::mem::offset_of!(Scratch, stack));
        // A few hundred of them fill the ring.
        let (bytes, urgency) = (bytes as u64, Urgency::WakeUp);
        emit::send_bytes(event.cast(), bytes, Counter::LostStacks, urgency, context);
    }
    id
}

/// Finds the caller of the frame in the scratch, and notes it. 1 ends the walk.
unsafe extern "C" fn walk_step(_step: u64, context: *mut c_void) -> u64 {
    // SAFETY: capture_with passes a pointer to the index of its scratch.
    let index = unsafe { *context.cast::<u32>() };
    let Some(scratch) = SCRATCH.get_ptr_mut(index) else { return 1 };
    // SAFETY: claimed by the program that started the walk.
    let s = unsafe { &mut *scratch };
    let mut regs = Regs {
        pc: s.pc,
        sp: s.sp,
        fp: s.fp,
        pc_kind: if s.pc_exact != 0 { PcKind::Exact } else { PcKind::ReturnAddress },
    };
    copy_ahead(s, regs.sp);
    let row = match find_row(s, regs.lookup_pc()) {
        Some(row) => row,
        None => {
            // A return probe that is still to fire has its trampoline where the address belongs.
            let address = hijacked_address(regs.sp.wrapping_sub(8));
            if address == 0 {
                s.end = End::UnknownCode as u32;
                return 1;
            }
            regs.pc = address;
            s.pc = address;
            let pc = regs.lookup_pc();
            let last = s.frame_count.wrapping_sub(1);
            set_element::<0x3ff, _, _>(&mut s.frames, last as u64, pc);
            s.hash = mix(s.hash ^ pc);
            // The stack word is the trampoline's, whoever the caller is: it recognises nothing.
            s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1;
            match find_row(s, regs.lookup_pc()) {
                Some(row) => row,
                None => {
                    s.end = End::UnknownCode as u32;
                    return 1;
                }
            }
        }
    };
    note_frame_pointer(s, row, regs);
    let caller = step(row, regs, |address| read_stack(s, address));
    match caller {
        Step::End(end) => {
            s.end = end as u32;
            1
        }
        Step::Caller { regs: caller, pc_slot, fp_slot } => {
            if row.cfa_kind == cfa::SIGNAL {
                // The interrupted frame's stack pointer is one more word to depend on, and the
                // handler may run on another stack: such a stack is walked every time.
                s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1;
            }
            note_slot(s, pc_slot, caller.pc);
            if fp_slot != 0 {
                s.fp_slot = fp_slot;
            }
            let count = s.frame_count;
            if count as usize >= MAX_FRAMES {
                s.end = End::FrameLimit as u32;
                return 1;
            }
            let pc = caller.lookup_pc();
            set_element::<0x3ff, _, _>(&mut s.frames, count as u64, pc);
            s.frame_count = count + 1;
            s.hash = mix(s.hash ^ pc);
            store_regs(s, caller);
            0
        }
    }
}

/// Notes what the frame's CFA depends on besides return addresses.
#[inline(always)]
fn note_frame_pointer(s: &mut Scratch, row: Row, regs: Regs) {
    let kind = row.cfa_kind;
    if kind == cfa::RBP || kind == cfa::NONE || kind == cfa::DEREF_RBP {
        if s.fp_slot == 0 {
            s.fp_used = 1;
        } else {
            note_slot(s, s.fp_slot, regs.fp);
        }
    }
    let offset = row.cfa_offset as i64 as u64;
    let pointer = match kind {
        cfa::DEREF_RBP => regs.fp.wrapping_add(offset),
        cfa::DEREF_RSP => regs.sp.wrapping_add(offset),
        _ => return,
    };
    match read_stack(s, pointer) {
        Some(value) => note_slot(s, pointer, value),
        None => s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1,
    }
}

/// Notes that the walk depends on the stack word at `address`.
#[inline(always)]
fn note_slot(s: &mut Scratch, address: u64, value: u64) {
    let offset = address.wrapping_sub(s.base);
    let count = s.slot_count;
    if count as usize >= MAX_REMEMBERED_SLOTS || offset >= COPY_LIMIT - 8 || offset & 7 != 0 {
        s.slot_count = MAX_REMEMBERED_SLOTS as u32 + 1;
        return;
    }
    set_element::<0xff, _, _>(&mut s.slot_offset_by_8, count as u64, (offset >> 3) as u16);
    set_element::<0xff, _, _>(&mut s.slot_value, count as u64, value);
    s.slot_count = count + 1;
    set_element::<0x1fff, _, _>(&mut s.last_walk, offset >> 3, s.walk);
    s.span = s.span.max(offset as u32 + 8);
}

/// Copies the next page of the stack when the walk comes near the end of the copy.
#[inline(always)]
fn copy_ahead(s: &mut Scratch, sp: u64) {
    if sp.wrapping_sub(s.base) + 512 >= s.copied && s.copied < STACK_COPY_BYTES as u64 {
        copy_page(s);
    }
}

/// Copies the stack behind the copy up to the page's end. `copied` must be less than the limit.
#[inline(always)]
fn copy_page(s: &mut Scratch) {
    let copied = s.copied;
    let from = s.base.wrapping_add(copied);
    let size = PAGE_BYTES - (from & (PAGE_BYTES - 1));
    let size = bounded::<0x1fff>(size);
    let at = bounded::<0xfff8>(copied) + bounded::<0x1f>(s.lead) * 8;
    // SAFETY: `at` < 64 KiB + 248 and `size` < 8 KiB lie in the copy, which is larger than 72 KiB.
    let failed = unsafe {
        let to = s.copy.as_mut_ptr().cast::<u8>().add(at as usize);
        generated::bpf_probe_read_user(to.cast(), size as u32, from as *const c_void)
    };
    // A page that is not there: words behind it are read one by one, if at all.
    if failed == 0 {
        s.copied = copied + size;
    }
}

/// The stack word at `address`: from the copy, else from the thread's memory.
#[inline(always)]
fn read_stack(s: &Scratch, address: u64) -> Option<u64> {
    let offset = address.wrapping_sub(s.base);
    if offset & 7 == 0 && offset < s.copied && offset < COPY_LIMIT {
        return Some(s.word(offset >> 3));
    }
    let mut word = 0u64;
    // SAFETY: the helper checks the user address.
    let failed = unsafe {
        generated::bpf_probe_read_user((&raw mut word).cast(), 8, address as *const c_void)
    };
    if failed != 0 {
        count(Counter::UnreadableStack);
        return None;
    }
    Some(word)
}
