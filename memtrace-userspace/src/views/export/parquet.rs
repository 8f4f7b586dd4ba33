//! All events as a Parquet file, for DuckDB, DataFusion, pandas and Polars.
//!
//! A row for each event, in order. `function` and `stack` are names; Parquet keeps each text once
//! per row group, so that a stack costs a byte or two an event. For a release, `size` and the
//! columns of the stack are those of the block that it releases.
//!
//! ```text
//!   time_ns pid tid kind api address size stack_id function stack
//! ```
//!
//! Rows are collected until a row group is full; that, and the text of each stack, is all that is in
//! memory.

use std::io::{self, Write};
use std::sync::Arc;

use memtrace_common::event::Api;
use memtrace_common::unwind::End;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::folded::folded_name;
use super::weights::Node;
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Pipeline, Posting, SiteId};
use crate::record::{Record, Tid, Time};
use crate::views::frames::Names;
use crate::views::{caveats, summary};

/// What a reader sees. Numbers that people subtract have a sign.
const SCHEMA: &str = "message event {
    REQUIRED INT64 time_ns;
    OPTIONAL INT32 pid (INTEGER(32,false));
    REQUIRED INT32 tid (INTEGER(32,false));
    REQUIRED BYTE_ARRAY kind (STRING);
    OPTIONAL BYTE_ARRAY api (STRING);
    OPTIONAL INT64 address (INTEGER(64,false));
    OPTIONAL INT64 size;
    OPTIONAL INT32 stack_id (INTEGER(32,false));
    OPTIONAL BYTE_ARRAY function (STRING);
    OPTIONAL BYTE_ARRAY stack (STRING);
}";

/// Rows of a group: enough for texts to be shared, few enough to be kept.
const GROUP_ROWS: usize = 1 << 19;
/// Beyond this, a column of a group writes its texts one by one.
const DICTIONARY_BYTES: usize = 64 << 20;

/// Writes rows as they come.
pub struct Writer<W: Write + Send> {
    out: SerializedFileWriter<W>,
    rows: Rows,
    /// By the site's number.
    sites: Vec<Option<SiteTexts>>,
    kinds: Vec<(&'static str, ByteArray)>,
}

/// The texts of a site.
#[derive(Clone)]
struct SiteTexts {
    function: Option<ByteArray>,
    stack: ByteArray,
}

/// Columns of a group; optional ones without a value have `None`.
#[derive(Default)]
struct Rows {
    time: Vec<i64>,
    pid: Vec<Option<i32>>,
    tid: Vec<i32>,
    kind: Vec<ByteArray>,
    api: Vec<Option<ByteArray>>,
    address: Vec<Option<i64>>,
    size: Vec<Option<i64>>,
    stack_id: Vec<Option<i32>>,
    function: Vec<Option<ByteArray>>,
    stack: Vec<Option<ByteArray>>,
}

/// What a record says of itself.
struct Event {
    time: Time,
    tid: Tid,
    kind: &'static str,
    api: Option<Api>,
    address: Option<u64>,
    size: Option<u64>,
}

impl<W: Write + Send> Writer<W> {
    /// A file of nothing yet.
    pub fn new(out: W) -> io::Result<Writer<W>> {
        let schema = parse_message_type(SCHEMA).map_err(failed)?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_page_size_limit(DICTIONARY_BYTES)
            .set_created_by(format!("memtrace {}", env!("CARGO_PKG_VERSION")))
            .build();
        let out = SerializedFileWriter::new(out, Arc::new(schema), Arc::new(properties));
        Ok(Writer {
            out: out.map_err(failed)?,
            rows: Rows::default(),
            sites: Vec::new(),
            kinds: Vec::new(),
        })
    }

    /// Adds the row of an event; other records have none.
    pub fn event(
        &mut self,
        record: &Record,
        postings: &[Posting],
        pipeline: &Pipeline,
        names: &mut Names,
    ) -> io::Result<()> {
        let Some(Event { time, tid, kind, api, address, size }) = event(record) else {
            return Ok(());
        };
        let site = site(kind, postings);
        let size = size.or(match postings {
            [released] => Some(released.bytes),
            _ => None,
        });
        let texts = site.map(|site| self.texts(site, pipeline, names));
        let api = api.map(|api| self.kind(api.name()));
        let kind = self.kind(kind);
        let rows = &mut self.rows;
        rows.time.push(signed(time.0));
        rows.pid.push(pipeline.process_of(tid).map(|pid| pid.0 as i32));
        rows.tid.push(tid.0 as i32);
        rows.kind.push(kind);
        rows.api.push(api);
        rows.address.push(address.map(|address| address as i64));
        rows.size.push(size.map(signed));
        rows.stack_id.push(site.map(|site| site.index() as i32));
        let (function, stack) = match texts {
            Some(SiteTexts { function, stack }) => (function, Some(stack)),
            None => (None, None),
        };
        rows.function.push(function);
        rows.stack.push(stack);
        if rows.time.len() == GROUP_ROWS { self.flush() } else { Ok(()) }
    }

    /// Writes what is left, and what the numbers lack.
    pub fn finish(mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.flush()?;
        let mut about = vec![
            ("memtrace.target", summary::target(snapshot)),
            ("memtrace.capture", summary::capture(snapshot)),
        ];
        about.extend(caveats::caveats(snapshot).into_iter().map(|text| ("memtrace.caveat", text)));
        for (key, value) in about {
            self.out.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        self.out.close().map_err(failed)?;
        Ok(())
    }

    fn kind(&mut self, name: &'static str) -> ByteArray {
        if let Some((_, known)) = self.kinds.iter().find(|(known, _)| *known == name) {
            return known.clone();
        }
        let text = ByteArray::from(name);
        self.kinds.push((name, text.clone()));
        text
    }

    fn texts(&mut self, site: SiteId, pipeline: &Pipeline, names: &mut Names) -> SiteTexts {
        if let Some(Some(known)) = self.sites.get(site.index()) {
            return known.clone();
        }
        let (_, stack) = pipeline.known_call_path(site);
        let Some(stack) = stack else {
            // Its frames may still come.
            let missing = Node::Cut(End::Missing).name();
            return SiteTexts { function: None, stack: missing.as_str().into() };
        };
        let stack = names.symbolize(pipeline.images(), stack);
        let mut nodes: Vec<Node<'_>> = Vec::new();
        if stack.end != End::Root || stack.frames.is_empty() {
            nodes.push(Node::Cut(stack.end));
        }
        nodes.extend(stack.frames.iter().rev().map(|frame| Node::Frame(frame)));
        let path: Vec<String> = nodes.into_iter().map(folded_name).collect();
        let function = stack.frames.first().and_then(|frame| frame.function.name.as_deref());
        let texts = SiteTexts {
            function: function.map(ByteArray::from),
            stack: path.join(";").as_str().into(),
        };
        if self.sites.len() <= site.index() {
            self.sites.resize(site.index() + 1, None);
        }
        self.sites[site.index()] = Some(texts.clone());
        texts
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.rows.time.is_empty() {
            return Ok(());
        }
        let mut group = self.out.next_row_group().map_err(failed)?;
        let Rows { time, pid, tid, kind, api, address, size, stack_id, function, stack } =
            &mut self.rows;
        required::<Int64Type>(&mut group, time)?;
        optional::<Int32Type>(&mut group, pid)?;
        required::<Int32Type>(&mut group, tid)?;
        required::<ByteArrayType>(&mut group, kind)?;
        optional::<ByteArrayType>(&mut group, api)?;
        optional::<Int64Type>(&mut group, address)?;
        optional::<Int64Type>(&mut group, size)?;
        optional::<Int32Type>(&mut group, stack_id)?;
        optional::<ByteArrayType>(&mut group, function)?;
        optional::<ByteArrayType>(&mut group, stack)?;
        group.close().map_err(failed)?;
        Ok(())
    }
}

/// The call path that a row shows: where its block was allocated, or its mapping made.
///
/// Memory that a record proves to have been released unseen comes before what the record itself
/// did. A record that concerns mappings of several call paths shows none.
fn site(kind: &str, postings: &[Posting]) -> Option<SiteId> {
    let last = postings.last()?.site;
    let is_one = kind == "alloc" || postings.iter().all(|posting| posting.site == last);
    is_one.then_some(last)
}

/// Writes the next column of the group, and empties it.
fn required<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    values: &mut Vec<T::T>,
) -> io::Result<()> {
    column::<T>(group, values, None)?;
    values.clear();
    Ok(())
}

/// As [`required`], for a column in which values may be missing.
fn optional<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    rows: &mut Vec<Option<T::T>>,
) -> io::Result<()> {
    let levels: Vec<i16> = rows.iter().map(|value| i16::from(value.is_some())).collect();
    let values: Vec<T::T> = rows.drain(..).flatten().collect();
    column::<T>(group, &values, Some(&levels))
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> io::Result<()> {
    let column = group.next_column().map_err(failed)?;
    let mut column = column.ok_or_else(|| io::Error::other("the schema has fewer columns"))?;
    column.typed::<T>().write_batch(values, levels, None).map_err(failed)?;
    column.close().map_err(failed)
}

/// Only a forged trace has numbers that do not fit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn failed(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
        error => io::Error::other(error),
    }
}

/// The row of a record that came from the target's memory calls.
fn event(record: &Record) -> Option<Event> {
    let event =
        |time, tid, kind, api, address, size| Some(Event { time, tid, kind, api, address, size });
    match *record {
        Record::Alloc { time, tid, api, ptr, size, stack: _ } => {
            event(time, tid, "alloc", Some(api), Some(ptr.0), Some(size))
        }
        Record::Free { time, tid, api, ptr } => {
            event(time, tid, "free", Some(api), Some(ptr.0), None)
        }
        Record::Retire { time, tid, ptr } => {
            event(time, tid, "retire", Some(Api::Realloc), Some(ptr.0), None)
        }
        Record::Restore { time, tid, ptr } => {
            event(time, tid, "restore", Some(Api::Realloc), Some(ptr.0), None)
        }
        Record::Map { time, tid, start, length, kind: _, stack: _ } => {
            event(time, tid, "map", Some(Api::Mmap), Some(start.0), Some(length))
        }
        Record::Unmap { time, tid, start, length } => {
            event(time, tid, "unmap", Some(Api::Munmap), Some(start.0), Some(length))
        }
        Record::UnmapFailed { time, tid } => event(time, tid, "unmap_failed", None, None, None),
        Record::RemapStart { time, tid, start, length } => {
            event(time, tid, "remap_start", Some(Api::Mremap), Some(start.0), Some(length))
        }
        Record::Remap { time, tid, start, length, stack: _ } => {
            event(time, tid, "remap", Some(Api::Mremap), Some(start.0), Some(length))
        }
        Record::Break { time, tid, old, new, stack: _ } => {
            event(time, tid, "break", Some(Api::Brk), Some(new.0), Some(new.0.abs_diff(old.0)))
        }
        Record::Held { born, pid: _, tid, api, start, length, stack: _ } => {
            event(born, tid, "held", api, Some(start.0), Some(length))
        }
        Record::Session(_)
        | Record::Probe(_)
        | Record::Process(_)
        | Record::Namespaces(_)
        | Record::BeforeAttach(_)
        | Record::Module(_)
        | Record::ModuleGone { .. }
        | Record::Thread { .. }
        | Record::ThreadExit { .. }
        | Record::Stack { .. }
        | Record::JitSymbol { .. }
        | Record::MemoryLimit { .. }
        | Record::Fork { .. }
        | Record::Exec { .. }
        | Record::Exit { .. }
        | Record::Resident { .. }
        | Record::Counters(_)
        | Record::Mark { .. }
        | Record::Tick { .. }
        | Record::End { .. } => None,
    }
}
