//! Sending events, and what happens when the ring is full.
//!
//! Events are sent without waking the daemon, which polls. When the ring is full, the program
//! waits a bounded moment for the daemon to make room (back-pressure) and only then drops the
//! event and counts it. Once a wait was in vain, later events do not wait until the daemon has
//! moved again, so that a hung daemon slows the target once and not at every event.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns,
    generated::{bpf_loop, bpf_ringbuf_output},
};
use memtrace_common::counter::Counter;
use memtrace_common::event::{Header, Kind};

use crate::maps::{EVENTS, count, set_shared_value, setting, shared, shared_value};

/// Tells the operator of a decision, in a debug build of the object (feature `log`).
macro_rules! tell {
    ($ctx:expr, $($message:tt)+) => {
        #[cfg(feature = "log")]
        aya_log_ebpf::debug!($ctx, $($message)+);
        #[cfg(not(feature = "log"))]
        let _ = $ctx;
    };
}
pub(crate) use tell;

/// Room that a waiting event asks for: the largest event and some for other CPUs.
const WAIT_FOR_BYTES: u64 = 64 * 1024;

/// Bound of the waiting loop; the time limit ends it earlier. 2^23 is the most bpf_loop takes.
const WAIT_STEPS: u32 = 1 << 23;

/// How soon the daemon must look at an event.
#[derive(Clone, Copy)]
pub enum Urgency {
    /// When it polls next.
    Normal,
    /// At once.
    WakeUp,
}

/// In what context an event is sent.
#[derive(Clone, Copy)]
pub enum Context {
    /// A uprobe, or a function of the kernel: it can be preempted, and wait as long as the settings
    /// allow.
    Preemptible,
    /// A tracepoint: preemption is off, and the daemon may be waiting for this CPU.
    Tracepoint,
}

/// How long a tracepoint waits for room.
const TRACEPOINT_WAIT_NS: u64 = 1_000_000;

/// Sends an event of fixed size, or counts it as `lost`.
#[inline(always)]
pub fn send<T: Copy + 'static>(
    event: T,
    lost: Counter,
    urgency: Urgency,
    context: Context,
) -> bool {
    let flags = match urgency {
        Urgency::Normal => BPF_RB_NO_WAKEUP,
        Urgency::WakeUp => BPF_RB_FORCE_WAKEUP,
    };
    if let Some(mut entry) = EVENTS.reserve::<T>(0) {
        entry.write(event);
        entry.submit(flags as u64);
        return true;
    }
    if wait_for_room(context)
        && let Some(mut entry) = EVENTS.reserve::<T>(0)
    {
        entry.write(event);
        entry.submit(flags as u64);
        return true;
    }
    count(lost);
    false
}

/// Takes room for an event, does `act`, and sends the event if that gave true.
///
/// Without room, nothing is done and the event is counted as `lost`.
#[inline(always)]
pub fn reserved<T: Copy + 'static>(event: T, lost: Counter, act: impl Fn() -> bool) {
    let mut entry = EVENTS.reserve::<T>(0);
    if entry.is_none() && wait_for_room(Context::Tracepoint) {
        entry = EVENTS.reserve::<T>(0);
    }
    let Some(mut entry) = entry else {
        count(lost);
        return;
    };
    entry.write(event);
    if act() {
        entry.submit(BPF_RB_FORCE_WAKEUP as u64);
    } else {
        entry.discard(BPF_RB_NO_WAKEUP as u64);
    }
}

/// Sends the `size` bytes at `event`, or counts them as `lost`.
///
/// # Safety
/// `event` must point to `size` bytes of a map value, in a way that the verifier can follow.
#[inline(always)]
pub unsafe fn send_bytes(event: *mut c_void, size: u64, lost: Counter, context: Context) -> bool {
    let ring = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: by the caller's promise.
    if unsafe { bpf_ringbuf_output(ring, event, size, BPF_RB_NO_WAKEUP as u64) } == 0 {
        return true;
    }
    // SAFETY: by the caller's promise.
    if wait_for_room(context)
        && unsafe { bpf_ringbuf_output(ring, event, size, BPF_RB_NO_WAKEUP as u64) } == 0
    {
        return true;
    }
    count(lost);
    false
}

/// The header of an event that happens now in the current thread.
#[inline(always)]
pub fn header(kind: Kind, api: u8, flags: u16) -> Header {
    header_of(bpf_get_current_pid_tgid() as u32, kind, api, flags)
}

/// The header of an event that happens now in the current thread, which is `tid`.
#[inline(always)]
pub fn header_of(tid: u32, kind: Kind, api: u8, flags: u16) -> Header {
    Header {
        kind: kind as u8,
        api,
        flags,
        tid,
        // SAFETY: a helper without preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
    }
}

/// Waits until the ring has room; false if it has none in the end.
#[inline(always)]
fn wait_for_room(context: Context) -> bool {
    let limit_ns = match context {
        Context::Preemptible => setting!(back_pressure_ns),
        Context::Tracepoint => setting!(back_pressure_ns).min(TRACEPOINT_WAIT_NS),
    };
    let Some(stalled_at) = shared_value(shared::STALLED_AT) else { return false };
    // Positions start at 0, and 0 in the map says that nobody gave up.
    let position = EVENTS.query(BPF_RB_CONS_POS as u64) + 1;
    // The daemon stops its heart when it detaches, and drains no more.
    let detaching = shared_value(shared::HEARTBEAT_NS) == Some(0);
    if limit_ns == 0 || stalled_at == position || detaching {
        return false;
    }
    count(Counter::RingWaits);
    // SAFETY: a helper without preconditions.
    let mut deadline_ns = unsafe { bpf_ktime_get_ns() } + limit_ns;
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe {
        bpf_loop(WAIT_STEPS, wait_step as *mut c_void, (&raw mut deadline_ns).cast(), 0);
    }
    if has_room() {
        return true;
    }
    count(Counter::RingStalls);
    set_shared_value(shared::STALLED_AT, EVENTS.query(BPF_RB_CONS_POS as u64) + 1);
    false
}

#[inline(always)]
fn has_room() -> bool {
    let used = EVENTS.query(BPF_RB_AVAIL_DATA as u64);
    used + WAIT_FOR_BYTES <= EVENTS.query(BPF_RB_RING_SIZE as u64)
}

unsafe extern "C" fn wait_step(_step: u64, deadline_ns: *mut c_void) -> u64 {
    // SAFETY: wait_for_room passes a pointer to a u64 on its stack.
    let deadline_ns = unsafe { *deadline_ns.cast::<u64>() };
    // SAFETY: a helper without preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    (has_room() || now_ns > deadline_ns) as u64
}
