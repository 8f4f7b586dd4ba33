//! Agreement with `addr2line` and `nm` of binutils.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use memtrace_common::addr::Svma;

use super::super::demangle::demangle;
use super::super::{Frame, Options, Symbolizer};
use super::programs;

/// A frame as binutils prints it: function, file, line.
type Printed = (String, String, Option<u32>);

/// Frames by `addr2line -f -i`, for each address.
///
/// Names come mangled, and our demangler makes them comparable: what is compared here is which
/// function it is, not how it is spelled.
fn addr2line(program: &Path, addresses: &[Svma]) -> Vec<Vec<Printed>> {
    let mut child = Command::new("addr2line")
        .args(["-a", "-f", "-i", "-e"])
        .arg(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input: String = addresses.iter().map(|svma| format!("{svma:#x}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();

    let mut found: Vec<Vec<Printed>> = Vec::new();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.starts_with("0x") {
            found.push(Vec::new());
            continue;
        }
        // `/src/program.c:12 (discriminator 3)`
        let place = lines.next().unwrap().split(" (").next().unwrap();
        let (file, line_number) = place.rsplit_once(':').unwrap();
        // Without debug information, binutils gives the name of the object file for the source.
        let line_number = line_number.parse().ok();
        let file = if line_number.is_none() { "??" } else { file };
        let printed = (demangle(line.as_bytes()), file.to_owned(), line_number);
        found.last_mut().unwrap().push(printed);
    }
    assert_eq!(found.len(), addresses.len());
    found
}

fn printed(frames: &[Frame]) -> Vec<Printed> {
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or("??").to_owned();
    let printed = |frame: &Frame| {
        // Code of no line in particular: binutils then leaves out the file, too.
        let file = frame.line.and(frame.file.clone());
        (text(&frame.function), text(&file), frame.line)
    };
    frames.iter().map(printed).collect()
}

/// The first frame that differs; `None` where binutils says less, or the same otherwise.
fn difference(ours: &[Printed], theirs: &[Printed]) -> Option<String> {
    if ours.len() != theirs.len() {
        return Some(format!("{} frames\n  {} frames", ours.len(), theirs.len()));
    }
    let (physical, inlined) = ours.split_last()?;
    // Where DWARF has no linkage name, binutils gives the name in the symbol table, which is that
    // of the physical function, to the innermost frame.
    let misplaced = !inlined.is_empty() && same_name(&physical.0, &theirs[0].0);
    let differs = ours.iter().zip(theirs).enumerate().find(|(depth, (ours, theirs))| {
        let same = same_name(&ours.0, &theirs.0) || (*depth == 0 && misplaced);
        !same || !same_file(ours, theirs) || ours.2 != theirs.2
    });
    differs.map(|(_, (ours, theirs))| format!("{ours:?}\n  {theirs:?}"))
}

fn same_name(ours: &str, theirs: &str) -> bool {
    // The part of a function that GCC splits off is that function for DWARF.
    let theirs = theirs.strip_suffix(".cold").unwrap_or(theirs);
    // Without a linkage name, binutils has only the unqualified name of DWARF, where ours is the
    // mangled name of the symbol table.
    let bare = theirs.split(['<', '(']).next().unwrap_or_default();
    ours == theirs || (!bare.contains("::") && ours.contains(&format!("::{bare}")))
}

/// Whether the files agree, or theirs is too short to have that line.
///
/// binutils 2.40 gives lines of `std_function.h` to the source file of the unit.
fn same_file(ours: &Printed, theirs: &Printed) -> bool {
    let has_line = |line: u32| line as usize <= programs::CPP.lines().count();
    let impossible = theirs.1.ends_with("/program.cpp") && !theirs.2.is_none_or(has_line);
    ours.1 == theirs.1 || impossible
}

/// Every `step`th address of every function.
fn addresses(program: &Path, step: usize) -> Vec<Svma> {
    let functions = programs::functions(program);
    let all = functions.iter().flat_map(|f| (f.start.0..f.start.0 + f.size_bytes).map(Svma));
    all.step_by(step).collect()
}

#[track_caller]
fn assert_agreement(program: &Path, step: usize) {
    let addresses = addresses(program, step);
    let theirs = addr2line(program, &addresses);
    let mut symbolizer = Symbolizer::new(Options::default());
    let image = programs::image(program);
    let offsets = programs::Offsets::of(program);

    let differences: Vec<_> = addresses
        .iter()
        .zip(&theirs)
        .filter_map(|(svma, theirs)| {
            let found = symbolizer.symbolize(&image, offsets.offset(*svma)).unwrap();
            let ours = found.map(|frames| printed(&frames)).unwrap_or_default();
            difference(&ours, theirs).map(|frames| format!("{svma:#x}\n  {frames}"))
        })
        .collect();

    assert!(addresses.len() > 300, "too few addresses: {}", addresses.len());
    assert!(
        differences.is_empty(),
        "{} of {} differ: {}",
        differences.len(),
        addresses.len(),
        differences.iter().take(5).map(String::as_str).collect::<Vec<_>>().join("\n")
    );
    assert_eq!(symbolizer.counters(), []);
}

#[test]
fn c_program_agrees_with_addr2line() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();

    assert_agreement(&programs::compile_c(dir.path(), &["-g", "-O2"]), 1);
}

#[test]
fn dwarf_4_program_agrees_with_addr2line() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();

    assert_agreement(&programs::compile_c(dir.path(), &["-gdwarf-4", "-O2", "-no-pie"]), 1);
}

#[test]
fn cpp_program_agrees_with_addr2line() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();

    assert_agreement(&programs::compile_cpp(dir.path(), &["-g", "-O2"]), 1);
}

#[test]
fn rust_program_agrees_with_addr2line() {
    if !programs::have_toolchain() || !programs::have("rustc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();

    assert_agreement(&programs::compile_rust(dir.path(), &["-g", "-O"]), 97);
}
