//! Programs to symbolize, and the tools that build and take them apart.

use std::path::{Path, PathBuf};
use std::process::Command;

use memtrace_common::addr::{FileOffset, Svma};
use object::{Object, ObjectSegment, ObjectSymbol};

use crate::record::Image;

/// Static and inlined functions, a loop, a part that is split off as cold.
pub(super) const C: &str = r#"
#include <stdio.h>
#include <stdlib.h>
static int counter;
static inline __attribute__((always_inline)) int innermost(int x) {
    for (int i = 0; i < x; i++)
        counter += x * i ^ counter;
    return counter;
}
static inline __attribute__((always_inline)) int middle(int x) {
    int y = innermost(x + 1);
    return y + innermost(y);
}
static __attribute__((noinline)) int local_function(int x) {
    if (__builtin_expect(x == 1234567, 0)) {
        fprintf(stderr, "unlikely %d\n", x);
        abort();
    }
    return middle(x) * 3;
}
__attribute__((noinline)) int global_function(int x) {
    return local_function(x) + middle(x + 2);
}
__attribute__((weak, noinline)) int weak_function(int x) { return x * counter; }
int main(int argc, char **argv) {
    (void)argv;
    printf("%d\n", global_function(argc) + weak_function(argc));
    return 0;
}
"#;

/// Templates, lambdas, local classes, operators and standard containers.
pub(super) const CPP: &str = r#"
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>
namespace outer { namespace {
template <typename T, int N> struct Ring {
    T slots[N];
    __attribute__((noinline)) T &push(const T &value) { return slots[used++ % N] = value; }
    unsigned used = 0;
};
} // namespace
struct Base { virtual ~Base() = default; virtual int run(int) const = 0; };
template <typename F> struct Derived : Base {
    explicit Derived(F f) : f(std::move(f)) {}
    int run(int x) const override { return f(x); }
    F f;
};
template <typename F> std::unique_ptr<Base> make(F f) { return std::make_unique<Derived<F>>(f); }
namespace { __attribute__((noinline)) bool operator<(const Ring<int, 4> &a, const Ring<int, 4> &b) {
    return a.used < b.used;
} }
} // namespace outer
int main(int argc, char **argv) {
    outer::Ring<std::string, 8> ring;
    std::map<std::string, std::vector<int>> index;
    for (int i = 0; i < argc + 20; i++) {
        index[ring.push(std::to_string(i * argc))].push_back(i);
    }
    struct Local { int operator()(int x) const { return x ^ 42; } };
    auto lambda = outer::make([&](int x) { return int(index.size()) * x; });
    std::function<int(int)> local = Local();
    std::vector<int> values;
    for (auto &entry : index)
        for (int value : entry.second)
            values.push_back(lambda->run(local(value)));
    std::sort(values.begin(), values.end(), [](int a, int b) { return a % 7 < b % 7; });
    outer::Ring<int, 4> a, b;
    a.push(argc);
    return std::printf("%d %d\n", values.front(), int(a < b));
}
"#;

/// Generics, closures, trait objects; the standard library brings thousands of units.
pub(super) const RUST: &str = r#"
use std::collections::BTreeMap;
trait Shape { fn area(&self) -> u64; }
struct Square<const N: usize>([u64; N]);
impl<const N: usize> Shape for Square<N> {
    fn area(&self) -> u64 { self.0.iter().map(|side| side * side).sum() }
}
fn count<I: Iterator<Item = u64>>(items: I) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    items.for_each(|item| *counts.entry(item % 7).or_insert(0) += 1);
    counts
}
fn main() {
    let shapes: Vec<Box<dyn Shape>> = vec![Box::new(Square([1])), Box::new(Square([2, 3]))];
    let counts = count(shapes.iter().map(|shape| shape.area()));
    println!("{counts:?}");
}
"#;

/// Whether the tests that need `tool` can run; in CI they must.
pub(super) fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have {tool}");
        eprintln!("skipped: {tool} is not installed");
    }
    found
}

/// Whether there are a C compiler and binutils.
pub(super) fn have_toolchain() -> bool {
    ["cc", "c++", "objcopy", "addr2line", "nm"].into_iter().all(have)
}

/// Runs a command that must succeed, and returns what it printed.
pub(super) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compiles a C program in `dir`; `options` come last.
pub(super) fn compile_c(dir: &Path, options: &[&str]) -> PathBuf {
    compile("cc", dir, "program.c", C, options)
}

/// Compiles a C++ program in `dir`.
pub(super) fn compile_cpp(dir: &Path, options: &[&str]) -> PathBuf {
    compile("c++", dir, "program.cpp", CPP, options)
}

/// Compiles a Rust program in `dir`.
pub(super) fn compile_rust(dir: &Path, options: &[&str]) -> PathBuf {
    compile("rustc", dir, "program.rs", RUST, options)
}

fn compile(compiler: &str, dir: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let (source_path, program) = (dir.join(name), dir.join("program"));
    std::fs::write(&source_path, source).unwrap();
    run(Command::new(compiler)
        .current_dir(dir)
        .arg(&source_path)
        .arg("-o")
        .arg(&program)
        .args(options));
    program
}

/// The image that a trace would name for `path`.
pub(super) fn image(path: &Path) -> Image {
    use std::os::unix::ffi::OsStrExt;
    let bytes = std::fs::read(path).unwrap();
    let build_id = object::File::parse(&*bytes).unwrap().build_id().unwrap().unwrap_or_default();
    Image::File { path: path.as_os_str().as_bytes().to_vec(), build_id: build_id.to_vec() }
}

/// A function of a program, by its raw name.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) start: Svma,
    pub(super) size_bytes: u64,
}

/// The sized functions of a program.
pub(super) fn functions(path: &Path) -> Vec<Function> {
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let functions = file.symbols().filter(|symbol| {
        symbol.kind() == object::SymbolKind::Text && symbol.size() > 0 && symbol.is_definition()
    });
    functions
        .map(|symbol| Function {
            name: symbol.name().unwrap().to_owned(),
            start: Svma(symbol.address()),
            size_bytes: symbol.size(),
        })
        .collect()
}

/// The inverse of what the symbolizer does with offsets.
pub(super) struct Offsets {
    segments: Vec<(Svma, FileOffset, u64)>,
}

impl Offsets {
    pub(super) fn of(path: &Path) -> Offsets {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let segments = file.segments().map(|segment| {
            let (start, size_bytes) = segment.file_range();
            (Svma(segment.address()), FileOffset(start), size_bytes)
        });
        Offsets { segments: segments.collect() }
    }

    pub(super) fn offset(&self, svma: Svma) -> FileOffset {
        let found = self.segments.iter().find_map(|(start, offset, size_bytes)| {
            let within = svma.0.checked_sub(start.0)?;
            (within < *size_bytes).then_some(FileOffset(offset.0 + within))
        });
        found.unwrap()
    }
}
