//! Rows to records.

use memtrace_common::addr::{Avma, FileOffset};
use memtrace_common::unwind::End;

use super::tag;
use crate::record::{
    BeforeAttach, EndReason, Image, LimitKind, MemoryByKind, MemoryFigures, Module, Namespaces,
    Origin, Pid, Probe, ProbeCost, Process, Record, Session, Tid, Time, WireStackId,
};
use crate::trace::bytes::{Input, undelta};
use crate::trace::error::Damage;
use crate::trace::format::MAX_STACK_FRAMES;
use crate::trace::model::{MAX_SHARED_FRAMES, Model};

fn unknown(what: &'static str, found: u8) -> Damage {
    Damage::UnknownValue { what, found: u64::from(found) }
}

fn pid(rows: &mut Input) -> Result<Pid, Damage> {
    rows.varint_u32().map(Pid)
}

fn count(rows: &mut Input) -> Result<u32, Damage> {
    rows.array().map(u32::from_le_bytes)
}

fn list(rows: &mut Input) -> Result<Vec<Vec<u8>>, Damage> {
    let count = count(rows)?;
    let mut list = Vec::with_capacity(rows.room_for(count, 4));
    for _ in 0..count {
        list.push(rows.bytes()?);
    }
    Ok(list)
}

fn optional(rows: &mut Input) -> Result<Option<Vec<u8>>, Damage> {
    match rows.byte()? {
        0 => Ok(None),
        1 => Ok(Some(rows.bytes()?)),
        other => Err(unknown("the mark of a text", other)),
    }
}

fn memory_figures(rows: &mut Input) -> Result<MemoryFigures, Damage> {
    Ok(MemoryFigures {
        size_bytes: rows.varint()?,
        reserved_bytes: rows.varint()?,
        resident_bytes: rows.varint()?,
        proportional_bytes: rows.varint()?,
        private_dirty_bytes: rows.varint()?,
        swapped_bytes: rows.varint()?,
        huge_bytes: rows.varint()?,
    })
}

fn decode_namespaces(rows: &mut Input) -> Result<Namespaces, Damage> {
    let pid = pid(rows)?;
    let count = count(rows)?;
    let mut inner_pids = Vec::with_capacity(rows.room_for(count, 1));
    for _ in 0..count {
        inner_pids.push(rows.varint_u32()?);
    }
    Ok(Namespaces { pid, inner_pids, cgroup: optional(rows)?, container: optional(rows)? })
}

/// Reads who holds something; its operation says that it is held.
pub(in crate::trace) fn decode_holder(rows: &mut Input) -> Result<(Pid, Tid), Damage> {
    Ok((pid(rows)?, Tid(rows.varint_u32()?)))
}

/// Reads a row without a time. `stack_id` gives the id that belongs to a `Stack`.
pub(in crate::trace) fn decode_untimed(
    rows: &mut Input,
    model: &mut Model,
    stack_id: impl FnOnce(&mut Model) -> Result<WireStackId, Damage>,
) -> Result<Record, Damage> {
    Ok(match rows.byte()? {
        tag::SESSION => Record::Session(Session {
            tool_version: rows.text()?,
            kernel: rows.text()?,
            started_unix_s: rows.varint()?,
            pid: pid(rows)?,
            origin: match rows.byte()? {
                0 => Origin::Attached,
                1 => Origin::Launched,
                other => return Err(unknown("a session's origin", other)),
            },
        }),
        tag::PROBE => Record::Probe(Probe {
            symbol: rows.text()?,
            module: rows.bytes()?,
            offset: FileOffset(rows.varint()?),
            cost: match rows.byte()? {
                0 => ProbeCost::Emulated,
                1 => ProbeCost::Stepped,
                other => return Err(unknown("a probe's cost", other)),
            },
        }),
        tag::BEFORE_ATTACH => Record::BeforeAttach(BeforeAttach {
            pid: pid(rows)?,
            heap_bytes: rows.varint()?,
            anonymous_bytes: rows.varint()?,
            resident_bytes: rows.varint()?,
        }),
        tag::NAMESPACES => Record::Namespaces(decode_namespaces(rows)?),
        tag::OPERATION => Record::Operation {
            pid: pid(rows)?,
            start: Avma(rows.varint()?),
            length: rows.varint()?,
            class: rows.text()?,
        },
        tag::STACK => {
            let id = stack_id(model)?;
            decode_stack(rows, model, id)?
        }
        tag::COUNTERS => {
            let count = count(rows)?;
            let mut counters = Vec::with_capacity(rows.room_for(count, 5));
            for _ in 0..count {
                counters.push((rows.text()?, rows.varint()?));
            }
            Record::Counters(counters)
        }
        other => return Err(unknown("the tag of a row without a time", other)),
    })
}

fn decode_stack(rows: &mut Input, model: &mut Model, id: WireStackId) -> Result<Record, Damage> {
    let pid = pid(rows)?;
    let end = rows.varint()?;
    let end = u16::try_from(end)
        .ok()
        .and_then(End::from_wire)
        .ok_or(Damage::UnknownValue { what: "the end of a stack", found: end })?;
    let shared = rows.varint()?;
    let most = model.frames.len().min(MAX_SHARED_FRAMES) as u64;
    if shared > most {
        return Err(Damage::TooLarge {
            what: "the shared part of a stack",
            found: shared,
            limit: most,
        });
    }
    let mut last = model.frames.first().copied().unwrap_or(0);
    let own = count(rows)?;
    let frames = u64::from(own) + shared;
    if frames > MAX_STACK_FRAMES as u64 {
        let limit = MAX_STACK_FRAMES as u64;
        return Err(Damage::TooLarge { what: "the depth of a stack", found: frames, limit });
    }
    let mut frames = Vec::with_capacity(frames as usize);
    for _ in 0..own {
        last = undelta(last, rows.varint()?);
        frames.push(last);
    }
    let inner = model.frames.len() - shared as usize;
    frames.extend_from_slice(&model.frames[inner..]);
    let record =
        Record::Stack { id, pid, end, frames: frames.iter().map(|&frame| Avma(frame)).collect() };
    model.frames = frames;
    Ok(record)
}

/// Reads a row of something that happened at `time`.
pub(in crate::trace) fn decode_timed(rows: &mut Input, time: Time) -> Result<Record, Damage> {
    Ok(match rows.byte()? {
        tag::PROCESS => Record::Process(Process {
            time,
            pid: pid(rows)?,
            parent: match rows.byte()? {
                0 => None,
                1 => Some(pid(rows)?),
                other => return Err(unknown("the mark of a parent", other)),
            },
            exe: rows.bytes()?,
            command: list(rows)?,
        }),
        tag::MODULE => {
            let pid = pid(rows)?;
            let start = rows.varint()?;
            Record::Module(Module {
                time,
                pid,
                start: Avma(start),
                end: Avma(start.wrapping_add(rows.varint()?)),
                offset: FileOffset(rows.varint()?),
                image: match rows.byte()? {
                    0 => Image::File { path: rows.bytes()?, build_id: rows.bytes()? },
                    1 => Image::Vdso,
                    2 => Image::Anonymous,
                    other => return Err(unknown("the kind of an image", other)),
                },
            })
        }
        tag::MODULE_GONE => {
            Record::ModuleGone { time, pid: pid(rows)?, start: Avma(rows.varint()?) }
        }
        tag::THREAD => Record::Thread {
            time,
            pid: pid(rows)?,
            tid: Tid(rows.varint_u32()?),
            name: rows.bytes()?,
        },
        tag::THREAD_EXIT => Record::ThreadExit { time, tid: Tid(rows.varint_u32()?) },
        tag::FORK => Record::Fork { time, parent: pid(rows)?, child: pid(rows)? },
        tag::EXEC => {
            Record::Exec { time, pid: pid(rows)?, exe: rows.bytes()?, command: list(rows)? }
        }
        tag::EXIT => Record::Exit { time, pid: pid(rows)? },
        tag::RESIDENT => Record::Resident { time, pid: pid(rows)?, rss_bytes: rows.varint()? },
        tag::MEMORY_DETAIL => Record::MemoryDetail {
            time,
            pid: pid(rows)?,
            memory: Box::new(MemoryByKind {
                heap: memory_figures(rows)?,
                anonymous: memory_figures(rows)?,
                file: memory_figures(rows)?,
                stack: memory_figures(rows)?,
                shared: memory_figures(rows)?,
            }),
        },
        tag::JIT_SYMBOL => Record::JitSymbol {
            time,
            pid: pid(rows)?,
            start: Avma(rows.varint()?),
            size: rows.varint()?,
            name: rows.bytes()?,
        },
        tag::MEMORY_LIMIT => Record::MemoryLimit {
            time,
            pid: pid(rows)?,
            kind: match rows.byte()? {
                0 => LimitKind::Machine,
                1 => LimitKind::Cgroup,
                other => return Err(unknown("the kind of a memory limit", other)),
            },
            limit_bytes: rows.varint()?,
            used_bytes: rows.varint()?,
        },
        tag::TICK => Record::Tick { time },
        tag::MARK => Record::Mark { time, text: rows.text()? },
        tag::END => Record::End {
            time,
            reason: match rows.byte()? {
                0 => EndReason::TargetExited,
                1 => EndReason::Interrupted,
                2 => EndReason::DurationOver,
                other => return Err(unknown("the reason of an end", other)),
            },
        },
        other => return Err(unknown("the tag of a row with a time", other)),
    })
}
