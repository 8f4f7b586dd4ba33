//! What an event costs the daemon, from the ring to the snapshot: `cargo bench --bench events`.
//!
//! ```text
//!   decode   bytes of the ring to events
//!   apply    records into the pipeline, with 10 thousand to 10 million live blocks; and with a
//!            million after 1, 10 and 100 million events, which must cost the same
//!   snapshot what a view gets, of 10,000 stacks
//!   write    records to a trace        read   and back
//! ```
//!
//! Bytes per live block: `tests/memory.rs`. `cargo bench --bench events -- apply` runs one group.

mod cpu_time;
#[expect(dead_code, reason = "not every bench uses all of the program")]
mod load;

use std::hint::black_box;
use std::time::Duration;

use criterion::{
    BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use memtrace_common::event::{Alloc, Api, Free, Header, Kind};
use memtrace_userspace::batches::BATCH_RECORDS;
use memtrace_userspace::live::decode::decode;
use memtrace_userspace::pipeline::{Limits, Pipeline};
use memtrace_userspace::record::Record;
use memtrace_userspace::trace::{Reader, Writer};
use zerocopy::IntoBytes;

use self::cpu_time::{CpuTime, cpu_time};
use self::load::{Load, Order, Program};

/// A server: sessions come and go in any order.
const SERVER: Load = Load { threads: 8, stacks: 10_000, live_blocks: 1_000_000, order: Order::Any };

/// A compiler: one thread that works on a stack.
const COMPILER: Load =
    Load { threads: 1, stacks: 500, live_blocks: 2_000, order: Order::LastFirst };

/// Events that are written and read.
const TRACE_EVENTS: usize = 1_000_000;

fn decoding(criterion: &mut Criterion<CpuTime>) {
    let header = |kind: Kind, api: Api| Header {
        kind: kind as u8,
        api: api as u8,
        flags: 0,
        tid: 7,
        time_ns: 1,
    };
    let alloc = Alloc { header: header(Kind::Alloc, Api::Malloc), ptr: 0x5000, size: 64, stack: 9 };
    let free = Free { header: header(Kind::Free, Api::Free), ptr: 0x5000 };

    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("alloc", |bencher| bencher.iter(|| decode(black_box(alloc.as_bytes()))));
    group.bench_function("free", |bencher| bencher.iter(|| decode(black_box(free.as_bytes()))));
    group.finish();
}

/// `count`, or few if `cargo test --benches` only wants to know that it runs.
fn scaled(count: usize) -> usize {
    if std::env::args().any(|argument| argument == "--bench") { count } else { count / 1000 }
}

/// A program and a pipeline that has seen its first `events`.
fn running(load: Load, events: usize) -> (Program, Pipeline) {
    let mut program = Program::new(load);
    let mut pipeline = Pipeline::new(Limits::default());
    pipeline.apply_all(&program.start());
    let mut batch = Vec::with_capacity(BATCH_RECORDS);
    for _ in 0..scaled(events).div_ceil(BATCH_RECORDS) {
        next_batch(&mut program, &mut batch);
        pipeline.apply_all(&batch);
    }
    (program, pipeline)
}

fn next_batch(program: &mut Program, batch: &mut Vec<Record>) {
    batch.clear();
    batch.extend(program.take(BATCH_RECORDS));
}

fn applying(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH_RECORDS as u64));
    group.sample_size(20);
    group.measurement_time(Duration::from_secs(2));
    let mut measure = |name: &str, load: Load, events: usize| {
        // Criterion asks for every sample anew; the program goes on.
        let mut state = None;
        group.bench_function(name, |bencher| {
            let (program, pipeline) = state.get_or_insert_with(|| running(load, events));
            let mut batch = Vec::new();
            // Only the pipeline is timed.
            bencher.iter_custom(|batches| {
                (0..batches).fold(Duration::ZERO, |total, _| {
                    next_batch(program, &mut batch);
                    let start = cpu_time();
                    pipeline.apply_all(&batch);
                    total + (cpu_time() - start)
                })
            });
        });
    };
    measure("compiler", COMPILER, 1_000_000);
    measure("10k live blocks", Load { live_blocks: 10_000, ..SERVER }, 1_000_000);
    measure("1M live blocks after 2M events", SERVER, 2_000_000);
    measure("1M live blocks after 10M events", SERVER, 10_000_000);
    measure("1M live blocks after 100M events", SERVER, 100_000_000);
    measure("10M live blocks", Load { live_blocks: 10_000_000, ..SERVER }, 11_000_000);
    group.finish();
}

fn publishing(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(20);
    let mut state = None;
    group.bench_function("10k stacks", |bencher| {
        let (_, pipeline) = state.get_or_insert_with(|| running(SERVER, 2_000_000));
        bencher.iter(|| pipeline.snapshot());
    });
    group.finish();
}

fn tracing(criterion: &mut Criterion<CpuTime>) {
    for (name, load) in [("compiler", COMPILER), ("server", SERVER)] {
        let program = Program::new(load);
        let mut records = program.start();
        records.extend(program.take(scaled(TRACE_EVENTS)));
        let trace = write(&records);
        let bytes = trace.len() as f64 / records.len() as f64;
        println!("{name}: {bytes:.2} bytes an event");

        let throughput = Throughput::Elements(records.len() as u64);
        let mut group = criterion.benchmark_group("write");
        group.throughput(throughput.clone()).sample_size(10).sampling_mode(SamplingMode::Flat);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| write(&records));
        });
        group.finish();

        let mut group = criterion.benchmark_group("read");
        group.throughput(throughput).sample_size(10).sampling_mode(SamplingMode::Flat);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let buffer = || Vec::with_capacity(BATCH_RECORDS);
            bencher.iter_batched_ref(buffer, |batch| read(&trace, batch), BatchSize::LargeInput);
        });
        group.finish();
    }
}

fn write(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new()).expect("memory takes every byte");
    writer.write_all(records).expect("memory takes every byte");
    writer.finish().expect("memory takes every byte")
}

fn read(trace: &[u8], batch: &mut Vec<Record>) {
    let mut reader = Reader::new(trace).expect("the trace was just written");
    while reader.read(batch, BATCH_RECORDS).expect("the trace was just written") > 0 {
        black_box(&batch);
        batch.clear();
    }
}

criterion_group! {
    name = events;
    config = Criterion::default().with_measurement(CpuTime);
    targets = decoding, applying, publishing, tracing
}
criterion_main!(events);
