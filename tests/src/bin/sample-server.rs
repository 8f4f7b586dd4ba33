//! A server with the memory of a real one, for demonstrations.
//!
//! Four kinds of threads, each with one habit and one function to find in a report:
//!
//! ```text
//!   sessions     leak_session      64 sessions of 16,000 bytes a second are never given back
//!   cache        fill_cache        grows by 500 entries of 4,096 bytes a second to 2,000, stays
//!   reports      build_report      60 MB for two seconds, every six seconds
//!   requests-N   handle_request    400 requests a second each; everything is freed: healthy
//! ```
//!
//! It serves nobody. It says what it does in its first line and ends by itself.

use std::collections::VecDeque;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: sample-server [--seconds N]   (600 unless told otherwise)";

const SESSION_BYTES: usize = 16_000;
const SESSIONS_PER_SECOND: u32 = 64;
const CACHE_ENTRY_BYTES: usize = 4_096;
const CACHE_ENTRIES: usize = 2_000;
const CACHE_ENTRIES_PER_SECOND: u32 = 500;
const REPORT_PAGES: usize = 60;
const REPORT_PAGE_BYTES: usize = 1_000_000;
const REPORT_EVERY: Duration = Duration::from_secs(6);
const REPORT_LASTS: Duration = Duration::from_secs(2);
const REQUEST_THREADS: u32 = 2;
const REQUESTS_PER_SECOND: u32 = 400;
const REQUEST_FIELDS: usize = 32;
/// No number of a field has more digits.
const REQUEST_FIELD_BYTES: usize = 20;

fn main() -> Result<()> {
    let end = Instant::now() + parse_arguments(std::env::args().skip(1))?;
    println!(
        "pid {}: leaks {} bytes a second in leak_session, caches up to {} bytes in fill_cache, \
         needs {} bytes for {} s every {} s in build_report, and frees all in handle_request",
        std::process::id(),
        SESSION_BYTES * SESSIONS_PER_SECOND as usize,
        CACHE_ENTRY_BYTES * CACHE_ENTRIES,
        REPORT_PAGE_BYTES * REPORT_PAGES,
        REPORT_LASTS.as_secs(),
        REPORT_EVERY.as_secs(),
    );
    spawn("sessions", move || serve_sessions(end))?;
    spawn("cache", move || serve_cache(end))?;
    spawn("reports", move || serve_reports(end))?;
    for number in 1..=REQUEST_THREADS {
        spawn(&format!("requests-{number}"), move || serve_requests(end))?;
    }
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    Ok(())
}

fn parse_arguments(arguments: impl Iterator<Item = String>) -> Result<Duration> {
    let arguments: Vec<String> = arguments.collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(Duration::from_secs(600)),
        ["--seconds", seconds] => {
            let seconds = seconds.parse().with_context(|| format!("`{seconds}`: {USAGE}"))?;
            Ok(Duration::from_secs(seconds))
        }
        _ => bail!(USAGE),
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).with_context(|| format!("start thread {name}"))?;
    Ok(())
}

/// Calls `work` so many times a second until the end, in step with the clock.
///
/// A late call is made up for, so that the number of calls in a span of time is exact.
fn at_rate(per_second: u32, end: Instant, mut work: impl FnMut()) {
    let start = Instant::now();
    for call in 0u32.. {
        let due = start + Duration::from_secs(1) * call / per_second;
        if due >= end {
            return;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        work();
    }
}

/// A session that holds on to the one before it, and so to all of them.
struct Session {
    _previous: Option<Box<Session>>,
    _buffer: [u8; SESSION_BYTES - size_of::<usize>()],
}

const _: () = assert!(size_of::<Session>() == SESSION_BYTES);

fn serve_sessions(end: Instant) {
    let mut newest = None;
    at_rate(SESSIONS_PER_SECOND, end, || newest = Some(leak_session(newest.take())));
    // The chain is too long to be dropped by recursion, and the process ends here.
    std::mem::forget(newest);
}

#[inline(never)]
fn leak_session(previous: Option<Box<Session>>) -> Box<Session> {
    black_box(Box::new(Session {
        _previous: previous,
        _buffer: [1; SESSION_BYTES - size_of::<usize>()],
    }))
}

fn serve_cache(end: Instant) {
    let mut cache = VecDeque::with_capacity(CACHE_ENTRIES + 1);
    at_rate(CACHE_ENTRIES_PER_SECOND, end, || {
        fill_cache(&mut cache);
        if cache.len() > CACHE_ENTRIES {
            cache.pop_front();
        }
    });
}

#[inline(never)]
fn fill_cache(cache: &mut VecDeque<Vec<u8>>) {
    let mut entry = Vec::with_capacity(CACHE_ENTRY_BYTES);
    entry.resize(CACHE_ENTRY_BYTES, 2);
    cache.push_back(black_box(entry));
}

fn serve_reports(end: Instant) {
    while Instant::now() + REPORT_EVERY < end {
        std::thread::sleep(REPORT_EVERY - REPORT_LASTS);
        let report = build_report();
        std::thread::sleep(REPORT_LASTS);
        drop(black_box(report));
    }
}

#[inline(never)]
fn build_report() -> Vec<Vec<u8>> {
    let mut report = Vec::with_capacity(REPORT_PAGES);
    for _ in 0..REPORT_PAGES {
        let mut page = Vec::with_capacity(REPORT_PAGE_BYTES);
        page.resize(REPORT_PAGE_BYTES, 3);
        report.push(black_box(page));
    }
    report
}

fn serve_requests(end: Instant) {
    let mut number = 0;
    at_rate(REQUESTS_PER_SECOND, end, || {
        number += 1;
        black_box(handle_request(number));
    });
}

#[inline(never)]
fn handle_request(number: u64) -> usize {
    let mut fields = Vec::with_capacity(REQUEST_FIELDS);
    for i in 0..REQUEST_FIELDS as u64 {
        let mut field = String::with_capacity(REQUEST_FIELD_BYTES);
        // A string takes all that it is given.
        let _ = write!(field, "{}", number.wrapping_mul(31).wrapping_add(i));
        fields.push(black_box(field));
    }
    fields.iter().map(String::len).sum()
}
