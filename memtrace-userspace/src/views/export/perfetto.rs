//! A trace for <https://ui.perfetto.dev>, Android's and Chrome's viewer.
//!
//! ```text
//!   first process ─┬→ instants: the user's marks
//!                  └→ counter tracks: live heap, mapped, resident bytes of all over time
//!   each process ───→ heap dumps at the end, as heapprofd writes them: a flame graph each of
//!                     allocated and live bytes, for `malloc` and for `mmap`
//! ```
//!
//! A dump comes in packets of some stacks each; packets intern the names that they are the first to
//! use. Times count from the start of the session.

mod proto;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use memtrace_common::unwind::End;
use prost::Message;
use rustc_hash::FxHashMap;

use self::proto::{
    Callstack, CounterDescriptor, HeapSample, InternedData, InternedString, Mapping,
    ProcessDescriptor, ProcessHeapSamples, ProfilePacket, SEQ_INCREMENTAL_STATE_CLEARED,
    SEQ_NEEDS_INCREMENTAL_STATE, TYPE_COUNTER, TYPE_INSTANT, Trace, TracePacket, TrackDescriptor,
    TrackEvent, UNIT_SIZE_BYTES,
};
use super::weights::Node;
use crate::pipeline::snapshot::{Mark, Place, Snapshot, TimelinePoint, Usage};
use crate::record::{Image, Origin, Pid};
use crate::views::frames::{Frame, base_name, module_name};
use crate::views::printable::{printable, printable_str};
use crate::views::ranking::{Memory, ProcessRanking, SymbolizedUsage};
use crate::views::summary;

/// Stacks in one packet: far below the size at which readers give up.
const STACKS_IN_A_PACKET: usize = 4096;

/// Everything is of one sequence, which is ours.
const SEQUENCE: u32 = 1;

/// The track of the process; those of the counters follow it.
const PROCESS_TRACK: u64 = 1;

/// Writes the trace.
pub fn write(
    out: impl Write,
    snapshot: &Snapshot,
    by_process: &BTreeMap<Pid, ProcessRanking>,
) -> io::Result<()> {
    let mut writer = Writer {
        out,
        bytes: Vec::new(),
        process: snapshot.session.as_ref().map_or(Pid(0), |session| session.pid),
        names: FxHashMap::default(),
        frames: FxHashMap::default(),
        cuts: FxHashMap::default(),
        mappings: FxHashMap::default(),
        callstacks: 0,
        next_dump: 0,
    };
    writer.tracks(snapshot)?;
    writer.marks(snapshot)?;
    writer.counters(snapshot)?;
    for (&pid, ProcessRanking { functions: _, stacks }) in by_process {
        for memory in [Memory::Heap, Memory::Mapped] {
            writer.dump(snapshot, pid, stacks, memory)?;
        }
    }
    Ok(())
}

/// What a counter shows of a step.
type Level = fn(&TimelinePoint) -> u64;

/// The counters: their names, and what each shows.
const COUNTERS: [(&str, Level); 3] = [
    ("Live heap", |point| point.live_bytes),
    ("Mapped", |point| point.mapped_bytes),
    ("Resident", |point| point.resident_bytes),
];

struct Writer<W> {
    out: W,
    bytes: Vec<u8>,
    process: Pid,
    names: FxHashMap<Arc<str>, u64>,
    frames: FxHashMap<*const Frame, u64>,
    /// Frames that stand for callers that are unknown.
    cuts: FxHashMap<u8, u64>,
    mappings: FxHashMap<Arc<str>, u64>,
    callstacks: u64,
    next_dump: u64,
}

impl<W: Write> Writer<W> {
    fn put(&mut self, packet: TracePacket) -> io::Result<()> {
        let packet = TracePacket { trusted_packet_sequence_id: SEQUENCE, ..packet };
        self.bytes.clear();
        // A Vec grows as needed, so there is always room.
        Trace { packet: vec![packet] }.encode(&mut self.bytes).map_err(io::Error::other)?;
        self.out.write_all(&self.bytes)
    }

    fn tracks(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.process_track(snapshot, PROCESS_TRACK, self.process)?;
        let others = snapshot.processes.iter().map(|process| process.pid);
        let others: BTreeSet<Pid> = others.filter(|pid| *pid != self.process).collect();
        let first = PROCESS_TRACK + 1 + COUNTERS.len() as u64;
        for (uuid, pid) in (first..).zip(others) {
            self.process_track(snapshot, uuid, pid)?;
        }
        for (uuid, (name, _)) in (PROCESS_TRACK + 1..).zip(COUNTERS) {
            self.put(TracePacket {
                track_descriptor: Some(TrackDescriptor {
                    uuid,
                    name: Some(name.to_owned()),
                    parent_uuid: Some(PROCESS_TRACK),
                    counter: Some(CounterDescriptor { unit: UNIT_SIZE_BYTES }),
                    ..TrackDescriptor::default()
                }),
                ..TracePacket::default()
            })?;
        }
        Ok(())
    }

    fn process_track(&mut self, snapshot: &Snapshot, uuid: u64, pid: Pid) -> io::Result<()> {
        // Of several with one id, the last one.
        let process = snapshot.processes.iter().rfind(|process| process.pid == pid);
        let command = process.map(|process| process.command.as_slice()).unwrap_or_default();
        let exe = process.map(|process| printable(&process.exe));
        let process_name = match &exe {
            Some(exe) => base_name(exe).to_owned(),
            None => summary::target(snapshot),
        };
        let is_first = uuid == PROCESS_TRACK;
        let flags =
            if is_first { SEQ_INCREMENTAL_STATE_CLEARED } else { SEQ_NEEDS_INCREMENTAL_STATE };
        self.put(TracePacket {
            sequence_flags: flags,
            track_descriptor: Some(TrackDescriptor {
                uuid,
                process: Some(ProcessDescriptor {
                    // Fits: Linux has at most 2^22 process ids.
                    pid: pid.0 as i32,
                    cmdline: command.iter().map(|word| printable(word).into_owned()).collect(),
                    process_name,
                }),
                ..TrackDescriptor::default()
            }),
            ..TracePacket::default()
        })
    }

    fn marks(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        for Mark { time, text } in &snapshot.marks {
            self.put(TracePacket {
                timestamp: Some(time.0),
                track_event: Some(TrackEvent {
                    kind: TYPE_INSTANT,
                    track_uuid: PROCESS_TRACK,
                    name: Some(printable_str(text).into_owned()),
                    counter_value: None,
                }),
                ..TracePacket::default()
            })?;
        }
        Ok(())
    }

    fn counters(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        for point in &snapshot.timeline {
            for (track_uuid, (_, level)) in (PROCESS_TRACK + 1..).zip(COUNTERS) {
                self.put(TracePacket {
                    timestamp: Some(point.time.0),
                    track_event: Some(TrackEvent {
                        kind: TYPE_COUNTER,
                        track_uuid,
                        counter_value: Some(i64::try_from(level(point)).unwrap_or(i64::MAX)),
                        name: None,
                    }),
                    ..TracePacket::default()
                })?;
            }
        }
        Ok(())
    }

    fn dump(
        &mut self,
        snapshot: &Snapshot,
        pid: Pid,
        stacks: &[SymbolizedUsage],
        memory: Memory,
    ) -> io::Result<()> {
        let stacks: Vec<&SymbolizedUsage> =
            stacks.iter().filter(|stack| Memory::of(stack.api) == memory).collect();
        let packets = stacks.len().div_ceil(STACKS_IN_A_PACKET);
        let origin = snapshot.session.as_ref().map(|session| session.origin);
        for (number, stacks) in (1..).zip(stacks.chunks(STACKS_IN_A_PACKET)) {
            let mut new = InternedData::default();
            let samples =
                stacks.iter().map(|stack| self.sample(snapshot, stack, &mut new)).collect();
            let dump = ProcessHeapSamples {
                pid: u64::from(pid.0),
                samples,
                from_startup: origin == Some(Origin::Launched),
                timestamp: snapshot.now.0,
                heap_name: match memory {
                    Memory::Heap => "malloc",
                    Memory::Mapped => "mmap",
                }
                .to_owned(),
                // Every byte is counted: nothing was sampled.
                sampling_interval_bytes: 1,
            };
            let packet = ProfilePacket {
                process_dumps: vec![dump],
                continued: number < packets,
                index: Some(self.next_dump),
            };
            self.next_dump += 1;
            self.put(TracePacket {
                timestamp: Some(snapshot.now.0),
                sequence_flags: SEQ_NEEDS_INCREMENTAL_STATE,
                interned_data: Some(new),
                profile_packet: Some(packet),
                ..TracePacket::default()
            })?;
        }
        Ok(())
    }

    fn sample(
        &mut self,
        snapshot: &Snapshot,
        usage: &SymbolizedUsage,
        new: &mut InternedData,
    ) -> HeapSample {
        let SymbolizedUsage { stack, api: _, usage } = usage;
        let mut frame_ids = Vec::new();
        // From the root outwards.
        if stack.end != End::Root || stack.is_empty() {
            frame_ids.push(self.cut(stack.end, new));
        }
        for frame in stack.frames().rev() {
            frame_ids.push(self.frame(snapshot, frame, new));
        }
        self.callstacks += 1;
        new.callstacks.push(Callstack { iid: self.callstacks, frame_ids });
        let &Usage { allocations, allocated_bytes, live_blocks, live_bytes, .. } = usage;
        // What is gone, so that the difference is what is live; inherited copies were allocated
        // by nobody, so a child that still holds its copies makes this the smaller.
        HeapSample {
            callstack_id: self.callstacks,
            self_allocated: allocated_bytes.max(live_bytes),
            self_freed: allocated_bytes.saturating_sub(live_bytes),
            alloc_count: allocations.max(live_blocks),
            free_count: allocations.saturating_sub(live_blocks),
        }
    }

    fn frame(&mut self, snapshot: &Snapshot, frame: &Arc<Frame>, new: &mut InternedData) -> u64 {
        let iid = (self.frames.len() + self.cuts.len()) as u64 + 1;
        match self.frames.entry(Arc::as_ptr(frame)) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(vacant) => vacant.insert(iid),
        };
        let function_name_id = self.name(&Node::Frame(frame).name(), new);
        let (image, rel_pc) = match frame.place {
            Place::InFile { image, offset } => (snapshot.images.get(image as usize), offset.0),
            Place::Anonymous { pid: _, address } | Place::Unknown { pid: _, address } => {
                (None, address.0)
            }
        };
        let mapping_id = self.mapping(&frame.function.module, image.map(|image| &**image), new);
        new.frames.push(proto::Frame { iid, function_name_id, mapping_id, rel_pc });
        iid
    }

    fn cut(&mut self, end: End, new: &mut InternedData) -> u64 {
        let iid = (self.frames.len() + self.cuts.len()) as u64 + 1;
        match self.cuts.entry(end as u8) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(vacant) => vacant.insert(iid),
        };
        let function_name_id = self.name(&Node::Cut(end).name(), new);
        let mapping_id = self.mapping(&module_name(&Image::Anonymous), None, new);
        new.frames.push(proto::Frame { iid, function_name_id, mapping_id, rel_pc: 0 });
        iid
    }

    fn mapping(&mut self, path: &Arc<str>, image: Option<&Image>, new: &mut InternedData) -> u64 {
        let iid = self.mappings.len() as u64 + 1;
        match self.mappings.entry(Arc::clone(path)) {
            Entry::Occupied(known) => return *known.get(),
            Entry::Vacant(vacant) => vacant.insert(iid),
        };
        let build_id = match image {
            Some(Image::File { path: _, build_id }) => build_id.clone(),
            Some(Image::Vdso | Image::Anonymous) | None => Vec::new(),
        };
        new.build_ids.push(InternedString { iid, str: build_id });
        let path = path.trim_start_matches('/').as_bytes().to_vec();
        new.mapping_paths.push(InternedString { iid, str: path });
        new.mappings.push(Mapping { iid, build_id: iid, path_string_ids: vec![iid] });
        iid
    }

    fn name(&mut self, name: &str, new: &mut InternedData) -> u64 {
        if let Some(&known) = self.names.get(name) {
            return known;
        }
        let iid = self.names.len() as u64 + 1;
        self.names.insert(name.into(), iid);
        new.function_names.push(InternedString { iid, str: name.as_bytes().to_vec() });
        iid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::snapshot::ProcessUsage;
    use crate::record::Time;
    use crate::views::fixture;
    use crate::views::ranking::{SortKey, rank};

    #[test]
    fn marks_are_instants_of_the_process() {
        let mut snapshot = fixture::snapshot();
        snapshot.marks = vec![Mark { time: Time(7), text: "load\x1b".to_owned() }];
        let mut out = Vec::new();

        write(&mut out, &snapshot, &BTreeMap::new()).expect("a Vec takes all");

        let trace = Trace::decode(&out[..]).expect("a trace");
        let instants: Vec<_> = trace
            .packet
            .into_iter()
            .filter_map(|packet| Some((packet.timestamp, packet.track_event?)))
            .filter(|(_, event)| event.kind == TYPE_INSTANT)
            .collect();
        let mark = TrackEvent {
            kind: TYPE_INSTANT,
            track_uuid: PROCESS_TRACK,
            name: Some("load\\x1b".to_owned()),
            counter_value: None,
        };
        assert_eq!(instants, [(Some(7), mark)]);
    }

    #[test]
    fn each_process_has_its_track_and_its_dumps() {
        let mut snapshot = fixture::snapshot();
        let child = ProcessUsage { pid: Pid(9), ..snapshot.processes[0].clone() };
        snapshot.processes.push(child);
        let mut ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let of_child = ranking.stacks.split_off(4);
        let ranked = |stacks| ProcessRanking { functions: Vec::new(), stacks };
        let by_process =
            BTreeMap::from([(Pid(4242), ranked(ranking.stacks)), (Pid(9), ranked(of_child))]);
        let mut out = Vec::new();

        write(&mut out, &snapshot, &by_process).expect("a Vec takes all");

        let trace = Trace::decode(&out[..]).expect("a trace");
        let packets = trace.packet.iter();
        let descriptors = packets.clone().filter_map(|packet| packet.track_descriptor.as_ref());
        let processes: Vec<(u64, i32)> = descriptors
            .filter_map(|track| Some((track.uuid, track.process.as_ref()?.pid)))
            .collect();
        assert_eq!(processes, [(PROCESS_TRACK, 4242), (PROCESS_TRACK + 4, 9)]);
        let dumps = packets.filter_map(|packet| packet.profile_packet.as_ref());
        let dumps = dumps.flat_map(|profile| &profile.process_dumps);
        let dumps: Vec<_> = dumps.map(|d| (d.pid, d.heap_name.as_str(), d.samples.len())).collect();
        assert_eq!(dumps, [(9, "malloc", 1), (4242, "malloc", 3), (4242, "mmap", 1)]);
    }
}
