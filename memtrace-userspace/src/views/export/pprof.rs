//! A profile for pprof, Pyroscope and whatever else reads `profile.proto`.
//!
//! Four numbers for each stack, under the names that Go's heap profiles gave them: `alloc_objects`,
//! `alloc_space`, `inuse_objects`, `inuse_space`. The file is gzipped, as `go tool pprof` writes it.
//!
//! A protocol buffer may come in pieces: those of its lists simply follow each other. So stacks are
//! written one by one, and only places, functions and strings are kept.
//!
//! ```text
//!   image      mapping      base ┬──── offset ────┐
//!                                └── one after ───┴─ the other, in an address space made up here
//!   place      location     base + offset; a line for each inlined function, innermost first
//! ```
//!
//! Addresses of the process are not kept: a place is an offset in a file. Where a place has no
//! name, its location has no line, and `pprof` looks for one itself.

mod proto;

use std::collections::hash_map::Entry;
use std::io::{self, Write};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;
use rustc_hash::FxHashMap;

use self::proto::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};
use super::weights::Weight;
use crate::pipeline::snapshot::{Place, Snapshot};
use crate::record::Image;
use crate::views::caveats;
use crate::views::frames::{self, FunctionId, module_name};
use crate::views::ranking::{Memory, Ranking, SortKey, SymbolizedUsage};

/// Where the first image is laid; what lies below is mistaken for no address at all.
const FIRST_BASE: u64 = 0x10_0000;
/// Images begin at multiples of this, as they do in a process.
const PAGE: u64 = 0x1000;

/// Writes the profile of the heap or of the mappings.
pub fn write(
    out: impl Write,
    snapshot: &Snapshot,
    ranking: &Ranking,
    memory: Memory,
) -> io::Result<()> {
    let mut profile = Writer::new(GzEncoder::new(out, Compression::default()), snapshot);
    profile.header(snapshot)?;
    let weight = Weight { memory, key: SortKey::Live };
    for usage in weight.stacks(ranking) {
        profile.sample(usage)?;
    }
    profile.finish(ranking)
}

struct Writer<W: Write> {
    out: GzEncoder<W>,
    piece: Vec<u8>,
    strings: FxHashMap<Arc<str>, i64>,
    functions: FxHashMap<FunctionId, u64>,
    /// By the first frame: all frames of a place are found together, and perhaps cut together.
    locations: FxHashMap<*const frames::Frame, u64>,
    /// One for each image of the snapshot, and how far it reaches.
    mappings: Vec<Mapping>,
}

impl<W: Write> Writer<W> {
    fn new(out: GzEncoder<W>, snapshot: &Snapshot) -> Writer<W> {
        let mut writer = Writer {
            out,
            piece: Vec::new(),
            strings: FxHashMap::default(),
            functions: FxHashMap::default(),
            locations: FxHashMap::default(),
            mappings: Vec::new(),
        };
        let mut ends = vec![0u64; snapshot.images.len()];
        for place in snapshot.stacks.iter().flat_map(|usage| &usage.stack.frames) {
            if let &Place::InFile { image, offset } = place
                && let Some(end) = ends.get_mut(image as usize)
            {
                *end = (*end).max(offset.0.saturating_add(1));
            }
        }
        writer.mappings = bases(&ends)
            .map(|(memory_start, memory_limit)| Mapping {
                memory_start,
                memory_limit,
                ..Mapping::default()
            })
            .collect();
        writer
    }

    fn put(&mut self, piece: &Profile) -> io::Result<()> {
        self.piece.clear();
        // A Vec grows as needed, so there is always room.
        piece.encode(&mut self.piece).map_err(io::Error::other)?;
        self.out.write_all(&self.piece)
    }

    fn string(&mut self, text: &str) -> io::Result<i64> {
        if let Some(&known) = self.strings.get(text) {
            return Ok(known);
        }
        let id = self.strings.len() as i64;
        self.strings.insert(text.into(), id);
        self.put(&Profile { string_table: vec![text.to_owned()], ..Profile::default() })?;
        Ok(id)
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> io::Result<ValueType> {
        Ok(ValueType { kind: self.string(kind)?, unit: self.string(unit)? })
    }

    fn header(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.string("")?;
        let sample_type = vec![
            self.value_type("alloc_objects", "count")?,
            self.value_type("alloc_space", "bytes")?,
            self.value_type("inuse_objects", "count")?,
            self.value_type("inuse_space", "bytes")?,
        ];
        let comment = caveats::caveats(snapshot)
            .iter()
            .map(|caveat| self.string(caveat))
            .collect::<io::Result<_>>()?;
        let started = snapshot.session.as_ref().map_or(0, |session| session.started_unix_s);
        let header = Profile {
            sample_type,
            time_nanos: started.saturating_mul(1_000_000_000) as i64,
            duration_nanos: snapshot.now.0 as i64,
            period_type: Some(self.value_type("space", "bytes")?),
            // Every byte is counted: nothing was sampled.
            period: 1,
            comment,
            default_sample_type: self.string("inuse_space")?,
            ..Profile::default()
        };
        self.put(&header)?;
        for (index, image) in snapshot.images.iter().enumerate() {
            let filename = self.string(&module_name(image))?;
            let build_id = match &**image {
                Image::File { build_id, .. } => self.string(&hex(build_id))?,
                Image::Vdso | Image::Anonymous => 0,
            };
            let mapping = Mapping {
                id: index as u64 + 1,
                filename,
                build_id,
                ..self.mappings[index].clone()
            };
            self.mappings[index] = mapping;
        }
        Ok(())
    }

    fn sample(&mut self, usage: &SymbolizedUsage) -> io::Result<()> {
        let SymbolizedUsage { stack, api, usage } = usage;
        let value = [usage.allocations, usage.allocated_bytes, usage.live_blocks, usage.live_bytes];
        if value == [0; 4] {
            return Ok(());
        }
        let location_id =
            stack.places().map(|place| self.location(place)).collect::<io::Result<_>>()?;
        let label = vec![Label { key: self.string("api")?, str: self.string(api.name())? }];
        let value = value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)).to_vec();
        self.put(&Profile {
            sample: vec![Sample { location_id, value, label }],
            ..Profile::default()
        })
    }

    fn location(&mut self, place: &[Arc<frames::Frame>]) -> io::Result<u64> {
        let id = self.locations.len() as u64 + 1;
        match self.locations.entry(Arc::as_ptr(&place[0])) {
            Entry::Occupied(known) => return Ok(*known.get()),
            Entry::Vacant(new) => new.insert(id),
        };
        let (mapping_id, address) = match place[0].place {
            Place::InFile { image, offset } => match self.mappings.get(image as usize) {
                Some(mapping) => (mapping.id, mapping.memory_start.wrapping_add(offset.0)),
                None => (0, offset.0),
            },
            Place::Anonymous { pid: _, address } | Place::Unknown { pid: _, address } => {
                (0, address.0)
            }
        };
        let mut line = Vec::new();
        for frame in place {
            if frame.function.name.is_some() || mapping_id == 0 {
                let function_id = self.function(&frame.function)?;
                line.push(Line { function_id, line: frame.line.map_or(0, i64::from) });
            }
        }
        self.put(&Profile {
            location: vec![Location { id, mapping_id, address, line }],
            ..Profile::default()
        })?;
        Ok(id)
    }

    fn function(&mut self, function: &frames::Function) -> io::Result<u64> {
        let id = self.functions.len() as u64 + 1;
        match self.functions.entry(function.id) {
            Entry::Occupied(known) => return Ok(*known.get()),
            Entry::Vacant(new) => new.insert(id),
        };
        let name = self.string(function.name.as_deref().unwrap_or(&function.module))?;
        let filename = match &function.file {
            Some(file) => self.string(file)?,
            None => 0,
        };
        let function = Function { id, name, system_name: name, filename };
        self.put(&Profile { function: vec![function], ..Profile::default() })?;
        Ok(id)
    }

    fn finish(mut self, ranking: &Ranking) -> io::Result<()> {
        let mapping = std::mem::take(&mut self.mappings)
            .into_iter()
            .map(|mapping| {
                let nameless = self.strings.iter().any(|(name, id)| {
                    *id == mapping.filename && ranking.naming.misses.contains_key(name)
                });
                Mapping { has_functions: !nameless, ..mapping }
            })
            .collect();
        self.put(&Profile { mapping, ..Profile::default() })?;
        self.out.finish().map(|_| ())
    }
}

/// Where images that reach to `ends` begin and end, when one is laid after the other.
fn bases(ends: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    ends.iter().scan(FIRST_BASE, |next, end| {
        let start = *next;
        // Wraps only for offsets of forged traces.
        let limit =
            start.wrapping_add(end.checked_next_multiple_of(PAGE).unwrap_or(*end).max(PAGE));
        *next = limit;
        Some((start, limit))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::views::fixture;
    use crate::views::ranking::rank;

    fn decoded(memory: Memory) -> Profile {
        let snapshot = fixture::snapshot();
        let ranking = rank(&snapshot, &mut fixture::names(), SortKey::Live);
        let mut out = Vec::new();
        write(&mut out, &snapshot, &ranking, memory).expect("a Vec takes all");
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*out).read_to_end(&mut bytes).expect("gzip");
        Profile::decode(&*bytes).expect("the pieces are one message")
    }

    #[test]
    fn inlined_function_is_a_line_of_its_place() {
        let profile = decoded(Memory::Heap);

        let name = |id: u64| {
            let function = profile.function.iter().find(|function| function.id == id);
            &*profile.string_table[function.expect("a function").name as usize]
        };
        let lines: Vec<Vec<(&str, i64)>> = profile
            .location
            .iter()
            .map(|place| {
                place.line.iter().map(|line| (name(line.function_id), line.line)).collect()
            })
            .collect();
        assert!(lines.contains(&vec![("cache::Entry::build", 12), ("cache_fill", 70)]));
        // Nothing is known of the plugin but the address, which is for pprof to look up.
        assert!(lines.contains(&vec![]));
    }

    #[test]
    fn places_lie_in_their_mappings() {
        let profile = decoded(Memory::Heap);

        for place in &profile.location {
            let mapping = profile.mapping.iter().find(|mapping| mapping.id == place.mapping_id);
            let mapping = mapping.expect("all places of the session are in files");
            assert!((mapping.memory_start..mapping.memory_limit).contains(&place.address));
        }
    }

    #[test]
    fn heap_and_mappings_are_apart() {
        let bytes = |memory| decoded(memory).sample.iter().map(|sample| sample.value[3]).sum();

        let heap: i64 = bytes(Memory::Heap);
        assert_eq!(heap, (14 << 20) + 300);
        assert_eq!(bytes(Memory::Mapped), 32 << 20);
    }
}
