//! What a file of code costs the daemon: `cargo bench --bench files`.
//!
//! ```text
//!   compile     .eh_frame to rows, once per file and session
//!   symbolize   100,000 distinct addresses, from opening the file on; beside it blazesym, which
//!               is asked the same
//! ```
//!
//! `MEMTRACE_BENCH_FILE` names another file with DWARF than this program, which has line tables.

mod cpu_time;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blazesym::symbolize;
use blazesym::symbolize::source::{Elf, Source};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use memtrace_common::addr::FileOffset;
use memtrace_userspace::cfi;
use memtrace_userspace::record::Image;
use memtrace_userspace::symbols::{Options, Symbolizer};
use object::{Object, ObjectSection, ObjectSegment, SectionKind};

use self::cpu_time::CpuTime;

const ADDRESSES: usize = 100_000;

/// As many as fit into the time of a test that only wants to know that it runs.
const FEW_ADDRESSES: usize = 10;

/// The file that is measured, and addresses spread evenly over its code.
struct Subject {
    path: PathBuf,
    bytes: Vec<u8>,
    build_id: Vec<u8>,
    /// Where the addresses are in the file, and where the file wants them in memory.
    offsets: Vec<FileOffset>,
    addresses: Vec<u64>,
}

impl Subject {
    fn new() -> Subject {
        let path = match std::env::var_os("MEMTRACE_BENCH_FILE") {
            Some(path) => path.into(),
            None => std::env::current_exe().expect("Linux names the program"),
        };
        let bytes = std::fs::read(&path).expect("the file can be read");
        let elf = object::File::parse(&*bytes).expect("the file is an ELF file");
        let build_id = elf.build_id().expect("its notes are whole").unwrap_or_default().to_vec();
        let (offsets, addresses) = spread(&elf).into_iter().unzip();
        Subject { path, bytes, build_id, offsets, addresses }
    }

    fn image(&self) -> Image {
        Image::File {
            path: self.path.as_os_str().as_bytes().to_vec(),
            build_id: self.build_id.clone(),
        }
    }
}

/// Offsets and the addresses of the same bytes.
fn spread(elf: &object::File<'_>) -> Vec<(FileOffset, u64)> {
    let code = elf.sections().filter(|section| section.kind() == SectionKind::Text);
    let ranges: Vec<(u64, u64)> = code.filter_map(|section| section.file_range()).collect();
    let total: u64 = ranges.iter().map(|(_, size)| size).sum();
    let step = (total as usize / ADDRESSES).max(1);
    let offsets = ranges.iter().flat_map(|(start, size)| *start..start + size).step_by(step);
    let address = |offset: u64| {
        elf.segments().find_map(|segment| {
            let (start, size) = segment.file_range();
            (start..start + size).contains(&offset).then(|| segment.address() + (offset - start))
        })
    };
    offsets
        .filter_map(|offset| Some((FileOffset(offset), address(offset)?)))
        .take(if std::env::args().any(|argument| argument == "--bench") {
            ADDRESSES
        } else {
            FEW_ADDRESSES
        })
        .collect()
}

fn compiling(criterion: &mut Criterion<CpuTime>) {
    let subject = Subject::new();
    let elf = object::File::parse(&*subject.bytes).expect("it was parsed before");
    let rows = cfi::compile(&elf).expect("it has unwind information").rows.len();

    let mut group = criterion.benchmark_group("compile");
    group.throughput(Throughput::Elements(rows as u64)).sample_size(20);
    group.bench_function("rows", |bencher| bencher.iter(|| cfi::compile(&elf)));
    group.finish();
}

fn symbolizing(criterion: &mut Criterion<CpuTime>) {
    let subject = Subject::new();
    let image = subject.image();
    println!(
        "{}: {} MiB, {} addresses; named by memtrace {}, by blazesym {}",
        subject.path.display(),
        subject.bytes.len() >> 20,
        subject.offsets.len(),
        memtrace(&image, &subject.offsets),
        blazesym(&subject.path, &subject.addresses),
    );

    let mut group = criterion.benchmark_group("symbolize");
    group.throughput(Throughput::Elements(subject.offsets.len() as u64));
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(10));
    group.bench_function("memtrace", |bencher| {
        bencher.iter(|| memtrace(&image, &subject.offsets));
    });
    group.bench_function("blazesym", |bencher| {
        bencher.iter(|| blazesym(&subject.path, &subject.addresses));
    });
    group.finish();
}

/// How many addresses have a name, from a symbolizer that knows nothing yet.
fn memtrace(image: &Image, offsets: &[FileOffset]) -> usize {
    let mut symbolizer = Symbolizer::new(Options::default());
    let named = |offset: &&FileOffset| {
        symbolizer.symbolize(image, **offset).is_ok_and(|found| found.is_ok())
    };
    offsets.iter().filter(named).count()
}

/// The same from blazesym, with its defaults: lines, inlined functions, demangled names.
fn blazesym(path: &Path, addresses: &[u64]) -> usize {
    let symbolizer = symbolize::Symbolizer::new();
    let source = Source::Elf(Elf::new(path));
    let found = symbolizer.symbolize(&source, symbolize::Input::VirtOffset(addresses));
    let found = found.expect("blazesym can read the file");
    found.iter().filter(|symbolized| symbolized.as_sym().is_some()).count()
}

criterion_group! {
    name = files;
    config = Criterion::default().with_measurement(CpuTime);
    targets = compiling, symbolizing
}
criterion_main!(files);
