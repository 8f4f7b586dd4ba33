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
//! Rows are collected until a row group is full. They hold the numbers of stacks: the text of one is
//! made when it is written, and only so many are kept ([`KEPT_TEXT_BYTES`]), because a million of
//! them are gigabytes.

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
use rustc_hash::FxHashMap;

use super::folded::folded_name;
use super::weights::Node;
use crate::pipeline::snapshot::Snapshot;
use crate::pipeline::{Pipeline, Posting, SiteId};
use crate::record::{Record, Tid, Time};
use crate::views::frames::{Names, SymbolizedStack};
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
/// Texts of stacks that are kept, about.
const KEPT_TEXT_BYTES: usize = 64 << 20;
/// So many rows have their texts in memory, whether those are kept or not.
const TEXT_ROWS: usize = 1 << 12;

/// Writes rows as they come.
pub struct Writer<W: Write + Send> {
    out: SerializedFileWriter<W>,
    rows: Rows,
    /// The stacks that are known, by the site's number.
    stacks: Vec<Option<Arc<SymbolizedStack>>>,
    texts: Texts,
    kinds: Vec<(&'static str, ByteArray)>,
}

/// The texts of sites that were written lately.
#[derive(Default)]
struct Texts {
    by_site: FxHashMap<SiteId, SiteTexts>,
    bytes: usize,
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
    site: Vec<Option<SiteId>>,
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
            stacks: Vec::new(),
            texts: Texts::default(),
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
        if let Some(site) = site {
            self.learn(site, pipeline, names);
        }
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
        rows.site.push(site);
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

    /// Finds names for a stack, once its frames are known.
    fn learn(&mut self, site: SiteId, pipeline: &Pipeline, names: &mut Names) {
        if self.stacks.len() <= site.index() {
            self.stacks.resize(site.index() + 1, None);
        }
        let known = &mut self.stacks[site.index()];
        if known.is_none()
            && let (_, Some(stack)) = pipeline.known_call_path(site)
        {
            names.learn_jit_names(&pipeline.jit_names());
            *known = Some(names.symbolize(pipeline.images(), stack));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.rows.time.is_empty() {
            return Ok(());
        }
        let mut group = self.out.next_row_group().map_err(failed)?;
        let Rows { time, pid, tid, kind, api, address, size, site } = &mut self.rows;
        required::<Int64Type>(&mut group, time)?;
        optional::<Int32Type>(&mut group, pid)?;
        required::<Int32Type>(&mut group, tid)?;
        required::<ByteArrayType>(&mut group, kind)?;
        optional::<ByteArrayType>(&mut group, api)?;
        optional::<Int64Type>(&mut group, address)?;
        optional::<Int64Type>(&mut group, size)?;
        let id = |site: &Option<SiteId>| site.map(|site| site.index() as i32);
        optional::<Int32Type>(&mut group, &mut site.iter().map(id).collect())?;
        let (stacks, texts) = (&self.stacks, &mut self.texts);
        text_column(&mut group, site, |site| texts.of(site, stacks).function)?;
        text_column(&mut group, site, |site| Some(texts.of(site, stacks).stack))?;
        site.clear();
        group.close().map_err(failed)?;
        Ok(())
    }
}

impl Texts {
    fn of(&mut self, site: SiteId, stacks: &[Option<Arc<SymbolizedStack>>]) -> SiteTexts {
        if let Some(known) = self.by_site.get(&site) {
            return known.clone();
        }
        let texts = match stacks.get(site.index()) {
            Some(Some(stack)) => SiteTexts::new(stack),
            Some(None) | None => {
                let missing = Node::Cut(End::Missing).name();
                SiteTexts { function: None, stack: missing.as_str().into() }
            }
        };
        if self.bytes > KEPT_TEXT_BYTES {
            *self = Texts::default();
        }
        self.bytes += texts.stack.len();
        self.by_site.insert(site, texts.clone());
        texts
    }
}

impl SiteTexts {
    fn new(stack: &SymbolizedStack) -> SiteTexts {
        let mut nodes: Vec<Node<'_>> = Vec::new();
        if stack.end != End::Root || stack.is_empty() {
            nodes.push(Node::Cut(stack.end));
        }
        nodes.extend(stack.frames().rev().map(|frame| Node::Frame(frame)));
        let path: Vec<String> = nodes.into_iter().map(|node| folded_name(&node.name())).collect();
        let function = stack.frames().next().and_then(|frame| frame.function.name.as_deref());
        SiteTexts { function: function.map(ByteArray::from), stack: path.join(";").as_str().into() }
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

/// Writes the next column of the group: a text of each site, made some rows at a time.
fn text_column(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    sites: &[Option<SiteId>],
    mut text: impl FnMut(SiteId) -> Option<ByteArray>,
) -> io::Result<()> {
    let column = group.next_column().map_err(failed)?;
    let mut column = column.ok_or_else(too_many_columns)?;
    for sites in sites.chunks(TEXT_ROWS) {
        let texts: Vec<_> = sites.iter().map(|site| site.and_then(&mut text)).collect();
        let levels: Vec<i16> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        let texts: Vec<_> = texts.into_iter().flatten().collect();
        let writer = column.typed::<ByteArrayType>();
        writer.write_batch(&texts, Some(&levels), None).map_err(failed)?;
    }
    column.close().map_err(failed)
}

fn too_many_columns() -> io::Error {
    io::Error::other("the schema has fewer columns than are written")
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, impl Write + Send>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> io::Result<()> {
    let column = group.next_column().map_err(failed)?;
    let mut column = column.ok_or_else(too_many_columns)?;
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
        Record::Alloc { time, tid, api, ptr, size, alignment: _, stack: _ } => {
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
        Record::Commit { time, tid, start, length, stack: _ } => {
            event(time, tid, "commit", Some(Api::Mprotect), Some(start.0), Some(length))
        }
        Record::Decommit { time, tid, start, length } => {
            event(time, tid, "decommit", Some(Api::Mprotect), Some(start.0), Some(length))
        }
        Record::Held { born, pid: _, tid, api, start, length, alignment: _, stack: _ } => {
            event(born, tid, "held", api, Some(start.0), Some(length))
        }
        Record::Session(_)
        | Record::Probe(_)
        | Record::Process(_)
        | Record::Namespaces(_)
        | Record::BeforeAttach(_)
        | Record::Module(_)
        | Record::Operation { .. }
        | Record::ModuleGone { .. }
        | Record::Thread { .. }
        | Record::ThreadExit { .. }
        | Record::Stack { .. }
        | Record::JitSymbol { .. }
        | Record::MemoryDetail { .. }
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
