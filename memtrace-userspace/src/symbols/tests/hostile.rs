//! Files that are damaged, or made to hurt.

use std::fs;
use std::path::{Path, PathBuf};

use memtrace_common::addr::{FileOffset, Svma};
use object::{Object, ObjectSection};

use super::super::{Frame, Miss, Options, Symbolizer};
use super::programs::{self, Offsets};
use crate::record::Image;

/// An image without a build id, so that damage to the file does not give it away.
fn unverified(path: &Path) -> Image {
    Image::File { path: path.as_os_str().as_encoded_bytes().to_vec(), build_id: Vec::new() }
}

fn symbolizer() -> Symbolizer {
    Symbolizer::new(Options { debug_dirs: Vec::new(), ..Options::default() })
}

/// Asks for addresses all over the file, and forgets the answers.
fn ask_everywhere(path: &Path, offsets: &[FileOffset]) -> Vec<(&'static str, u64)> {
    let mut symbolizer = symbolizer();
    for offset in offsets {
        // Any answer is right for a damaged file; that there is one is what counts.
        let _answer = symbolizer.symbolize(&unverified(path), *offset);
    }
    symbolizer.counters()
}

/// The same sequence in every run (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap() % limit
    }
}

/// A small program with debug information, and offsets of code in it.
fn program(dir: &Path) -> (PathBuf, Vec<FileOffset>) {
    let program = programs::compile_c(dir, &["-g", "-O2", "-Wl,--build-id"]);
    let offsets = Offsets::of(&program);
    let functions = programs::functions(&program);
    let code = functions.iter().flat_map(|f| (f.start.0..f.start.0 + f.size_bytes).step_by(7));
    let code = code.map(|svma| offsets.offset(Svma(svma))).collect();
    (program, code)
}

#[test]
fn damaged_bytes_never_panic() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (program, offsets) = program(dir.path());
    let pristine = fs::read(&program).unwrap();
    let file = object::File::parse(&*pristine).unwrap();
    // Damage where it matters: headers, symbols, DWARF.
    let mut targets: Vec<(usize, usize)> = file
        .sections()
        .filter(|section| section.name().unwrap().starts_with('.'))
        .filter(|section| section.kind() != object::SectionKind::Text)
        .filter_map(|section| section.file_range())
        .map(|(start, size)| (start as usize, size as usize))
        .filter(|(_, size)| *size > 0)
        .collect();
    targets.push((0, 1024));
    targets.push((pristine.len() - 40 * 64, 40 * 64));
    let mut random = Random(0x9e37_79b9_7f4a_7c15);

    for round in 0..400 {
        let mut bytes = pristine.clone();
        for _ in 0..=random.below(12) {
            let (start, size) = targets[random.below(targets.len())];
            let at = start + random.below(size);
            bytes[at] = match random.below(4) {
                0 => 0,
                1 => 0xff,
                2 => bytes[at] ^ (1 << random.below(8)),
                _ => u8::try_from(random.below(256)).unwrap(),
            };
        }
        fs::write(&program, &bytes).unwrap();

        let counters = ask_everywhere(&program, &offsets);

        let panics = counters.iter().find(|(name, _)| *name == "symbol_parser_panics");
        assert_eq!(panics, None, "round {round}");
    }
}

#[test]
fn file_that_is_cut_short_never_panics() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (program, offsets) = program(dir.path());
    let pristine = fs::read(&program).unwrap();

    for len in (0..pristine.len()).step_by(61) {
        fs::write(&program, &pristine[..len]).unwrap();

        ask_everywhere(&program, &offsets[..1]);
    }
}

#[test]
fn file_that_is_no_elf_is_a_miss() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text");
    fs::write(&path, "#!/bin/sh\n").unwrap();

    let found = symbolizer().symbolize(&unverified(&path), FileOffset(0)).unwrap();

    assert!(matches!(found, Err(Miss::NotElf { .. })), "{found:?}");
}

/// Assembles a program whose only unit is `units`, in the given abbreviations, and asks for
/// `victim`, a function of its symbol table.
fn ask_victim(assembly: &str) -> (Vec<Frame>, Vec<(&'static str, u64)>) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("hostile.s");
    let program = dir.path().join("program");
    fs::write(&source, assembly).unwrap();
    let options = ["-shared", "-nostdlib", "-Wl,--build-id=none", "-o"];
    programs::run(std::process::Command::new("cc").arg(&source).args(options).arg(&program));
    let victim = programs::functions(&program).into_iter().find(|f| f.name == "victim").unwrap();
    let offset = Offsets::of(&program).offset(victim.start);
    let mut symbolizer = symbolizer();

    let found = symbolizer.symbolize(&unverified(&program), offset).unwrap().unwrap();

    (found.to_vec(), symbolizer.counters())
}

/// The code, and the header of a DWARF 4 unit that covers it.
const PROLOGUE: &str = r#"
    .text
    .globl victim
    .type victim, @function
victim:
    .fill 64, 1, 0x90
    .size victim, . - victim
victim_end:
    .section .note.GNU-stack, "", @progbits
    .section .debug_abbrev, "", @progbits
    /* 1: a unit; 2: a function; 3: an inlined function; 4: a function with ranges */
    .byte 1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0, 0
    .byte 2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0
    .byte 3, 0x1d, 1, 0, 0
    .byte 4, 0x2e, 0, 0x55, 0x17, 0, 0
    .byte 0
    .section .debug_info, "", @progbits
    .long info_end - info_start
info_start:
    .value 4
    .long 0
    .byte 8
    .byte 1
    .quad victim, victim_end - victim
"#;

fn symbol_table_only(frames: &[Frame]) -> bool {
    let names: Vec<_> = frames.iter().map(|frame| frame.function.as_deref()).collect();
    names == [Some("victim")] && frames[0].line.is_none()
}

#[test]
fn unit_that_is_well_formed_is_read() {
    if !programs::have_toolchain() {
        return;
    }
    let unit = r#"
    .byte 2
    .asciz "told_by_dwarf"
    .quad victim, victim_end - victim
    .byte 3, 0, 0, 0
info_end:
"#;

    let (frames, counters) = ask_victim(&format!("{PROLOGUE}{unit}"));

    assert_eq!(frames[0].function.as_deref(), Some("told_by_dwarf"));
    assert_eq!(counters, [("symbol_unverified_images", 1)]);
}

#[test]
fn a_million_nested_inlined_functions_do_not_blow_the_stack() {
    if !programs::have_toolchain() {
        return;
    }
    let unit = r#"
    .byte 2
    .asciz "told_by_dwarf"
    .quad victim, victim_end - victim
    .fill 1000000, 1, 3
    .fill 1000002, 1, 0
info_end:
"#;

    let (frames, counters) = ask_victim(&format!("{PROLOGUE}{unit}"));

    assert!(symbol_table_only(&frames), "{frames:?}");
    assert_eq!(counters, [("symbol_debug_info_failures", 1), ("symbol_unverified_images", 1)]);
}

#[test]
fn four_hundred_million_ranges_do_not_exhaust_the_memory() {
    if !programs::have_toolchain() {
        return;
    }
    // 20,000 functions share one list of 20,000 ranges: a file of half a megabyte.
    let unit = r#"
    .rept 20000
    .byte 4
    .long 0
    .endr
    .byte 0
info_end:
    .section .debug_ranges, "", @progbits
    .rept 20000
    .quad 1, 2
    .endr
    .quad 0, 0
"#;

    let (frames, counters) = ask_victim(&format!("{PROLOGUE}{unit}"));

    assert!(symbol_table_only(&frames), "{frames:?}");
    let expected = [
        ("symbol_debug_info_failures", 1),
        ("symbol_debug_info_rebuilds", 1),
        ("symbol_unverified_images", 1),
    ];
    assert_eq!(counters, expected);
}

#[test]
fn section_that_claims_to_decompress_to_a_terabyte_is_not_believed() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = programs::compile_c(dir.path(), &["-g", "-O2", "-gz=zlib"]);
    let mut bytes = fs::read(&program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let info = file.section_by_name(".debug_info").unwrap();
    assert_eq!(info.compressed_file_range().unwrap().format, object::CompressionFormat::Zlib);
    let start = usize::try_from(info.file_range().unwrap().0).unwrap();
    // `ch_size` of the compression header.
    bytes[start + 8..start + 16].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    fs::write(&program, bytes).unwrap();
    let main = programs::functions(&program).into_iter().find(|f| f.name == "main").unwrap();
    let offset = Offsets::of(&program).offset(main.start);

    let found = symbolizer().symbolize(&unverified(&program), offset).unwrap().unwrap();

    let names: Vec<_> = found.iter().map(|frame| frame.function.as_deref()).collect();
    assert_eq!(names, [Some("main")]);
    assert_eq!(found[0].line, None);
}
