//! Sending events, and what happens when the ring is full.
//!
//! Events are sent without waking the daemon, which polls: seldom, because every time it finds the
//! processor's cache full of the target's data. A thread that finds a quarter of the ring full wakes
//! it. When the ring is full, the program waits a bounded moment for the daemon to make room
//! (back-pressure) and only then drops the event and counts it. Once a wait was in vain, later events
//! do not wait until the daemon has moved again, so that a hung daemon slows the target once and not
//! at every event.
//!
//! A thread that waits runs in the kernel, and where that is not preempted, as many threads as
//! there are processors keep the daemon from making the room that they wait for. So threads are
//! held back while there is room yet ([`hold_back`]), each for no longer than the scheduler takes
//! to notice: on its way out of the kernel the thread hands its processor to the daemon.

use core::ffi::c_void;

use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_CONS_POS, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
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

/// How long a thread is held back: a tick of the slowest timers (100 Hz), at which the scheduler
/// looks whether somebody else is to run.
const HOLD_NS: u64 = 10_000_000;

/// How often the daemon is woken at most: until it runs, everybody finds the ring as full.
const WAKE_NS: u64 = 1_000_000;

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

impl Urgency {
    /// For the helpers of the ring.
    #[inline(always)]
    fn flags(self) -> u64 {
        match self {
            Urgency::Normal => BPF_RB_NO_WAKEUP as u64,
            Urgency::WakeUp => BPF_RB_FORCE_WAKEUP as u64,
        }
    }
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
    let flags = urgency.flags();
    if let Some(mut entry) = EVENTS.reserve::<T>(0) {
        entry.write(event);
        entry.submit(flags);
        return true;
    }
    if wait_for_room(context)
        && let Some(mut entry) = EVENTS.reserve::<T>(0)
    {
        entry.write(event);
        entry.submit(flags);
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
pub unsafe fn send_bytes(
    event: *mut c_void,
    size: u64,
    lost: Counter,
    urgency: Urgency,
    context: Context,
) -> bool {
    let ring = (&raw const EVENTS).cast_mut().cast();
    let flags = urgency.flags();
    // SAFETY: by the caller's promise.
    if unsafe { bpf_ringbuf_output(ring, event, size, flags) } == 0 {
        return true;
    }
    // SAFETY: by the caller's promise.
    if wait_for_room(context) && unsafe { bpf_ringbuf_output(ring, event, size, flags) } == 0 {
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

/// Wakes the daemon if the ring is more than a quarter full, and holds the thread back for a moment
/// if it is more than half full.
///
/// Only where an event has been sent, and the thread may wait: between them, threads fill the half
/// that is left so slowly that a daemon that runs at all empties it in time.
#[inline(always)]
pub fn hold_back() {
    let filled = EVENTS.query(BPF_RB_AVAIL_DATA as u64);
    if filled > setting!(ring_bytes) / 4 {
        make_room(filled);
    }
}

/// The rest of [`hold_back`], which the verifier looks at once and not wherever an event is sent.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_room(filled: u64) -> u64 {
    // SAFETY: a helper without preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    wake_daemon(now_ns);
    let half = setting!(ring_bytes) / 2;
    if filled <= half {
        return 0;
    }
    let Some(position) = position_to_wait_at() else { return 0 };
    if shared_value(shared::HELD_AT) != Some(position) {
        set_shared_value(shared::HELD_SINCE_NS, now_ns);
        set_shared_value(shared::HELD_AT, position);
    }
    let since_ns = shared_value(shared::HELD_SINCE_NS).unwrap_or(now_ns);
    let limit_ns = setting!(back_pressure_ns);
    if now_ns > since_ns.saturating_add(limit_ns) {
        count(Counter::RingStalls);
        set_shared_value(shared::STALLED_AT, position);
        return 0;
    }
    count(Counter::RingWaits);
    wait(Wait { deadline_ns: now_ns.saturating_add(limit_ns.min(HOLD_NS)), most_bytes: half });
    0
}

/// Wakes the daemon, which sleeps for a while after it has found the ring empty.
#[inline(always)]
fn wake_daemon(now_ns: u64) {
    let woken_ns = shared_value(shared::WOKEN_NS).unwrap_or(now_ns);
    if now_ns.wrapping_sub(woken_ns) < WAKE_NS {
        return;
    }
    set_shared_value(shared::WOKEN_NS, now_ns);
    // What is discarded takes room until the daemon comes, and wakes it all the same.
    if let Some(entry) = EVENTS.reserve::<u64>(0) {
        entry.discard(BPF_RB_FORCE_WAKEUP as u64);
    }
}

/// Waits until the ring has room; false if it has none in the end.
#[inline(always)]
fn wait_for_room(context: Context) -> bool {
    let limit_ns = match context {
        Context::Preemptible => setting!(back_pressure_ns),
        Context::Tracepoint => setting!(back_pressure_ns).min(TRACEPOINT_WAIT_NS),
    };
    if position_to_wait_at().is_none() {
        return false;
    }
    count(Counter::RingWaits);
    let most_bytes = setting!(ring_bytes).saturating_sub(WAIT_FOR_BYTES);
    // SAFETY: a helper without preconditions.
    let deadline_ns = unsafe { bpf_ktime_get_ns() }.saturating_add(limit_ns);
    wait(Wait { deadline_ns, most_bytes });
    if has_at_most(most_bytes) {
        return true;
    }
    count(Counter::RingStalls);
    set_shared_value(shared::STALLED_AT, position());
    false
}

/// The daemon's position, if there is sense in waiting until it moves.
#[inline(always)]
fn position_to_wait_at() -> Option<u64> {
    let stalled_at = shared_value(shared::STALLED_AT)?;
    let position = position();
    // The daemon stops its heart when it detaches, and drains no more.
    let detaching = shared_value(shared::HEARTBEAT_NS) == Some(0);
    let in_vain = setting!(back_pressure_ns) == 0 || stalled_at == position || detaching;
    if in_vain { None } else { Some(position) }
}

/// How far the daemon has read, and 1: positions start at 0, and 0 in the map says that nobody gave
/// up.
#[inline(always)]
fn position() -> u64 {
    EVENTS.query(BPF_RB_CONS_POS as u64) + 1
}

/// What a thread waits for.
struct Wait {
    deadline_ns: u64,
    /// What may be in the ring when it ends.
    most_bytes: u64,
}

#[inline(always)]
fn wait(mut until: Wait) {
    // SAFETY: the callback has the signature that bpf_loop calls, and the context outlives it.
    unsafe {
        bpf_loop(WAIT_STEPS, wait_step as *mut c_void, (&raw mut until).cast(), 0);
    }
}

#[inline(always)]
fn has_at_most(bytes: u64) -> bool {
    EVENTS.query(BPF_RB_AVAIL_DATA as u64) <= bytes
}

unsafe extern "C" fn wait_step(_step: u64, until: *mut c_void) -> u64 {
    // SAFETY: `wait` passes a pointer to one on its stack.
    let Wait { deadline_ns, most_bytes } = unsafe { until.cast::<Wait>().read() };
    // SAFETY: a helper without preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    (has_at_most(most_bytes) || now_ns > deadline_ns) as u64
}
