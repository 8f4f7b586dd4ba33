//! Debug information that `dwz` moved to a file which several programs share.
//!
//! Written in assembly, so that `dwz` itself is not needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use object::Object;

use super::super::{Frame, Options, Symbolizer};
use super::programs::{self, Offsets, run};

/// A partial unit with one function, `shared_name`, at offset 12 of `.debug_info`.
const ALTERNATE: &str = r#"
    .section .note.GNU-stack, "", @progbits
    .section .debug_abbrev, "", @progbits
    .byte 1, 0x3c, 1, 0, 0
    .byte 2, 0x2e, 0, 0x03, 0x0e, 0, 0
    .byte 0
    .section .debug_info, "", @progbits
    .long end - start
start:
    .value 4
    .long 0
    .byte 8
    .byte 1
    .byte 2
    .long 8
    .byte 0
end:
    .section .debug_str, "", @progbits
    .asciz "padding"
    .asciz "shared_name"
"#;

/// A function whose `DW_AT_abstract_origin` is at offset 12 of the alternate file.
const PROGRAM: &str = r#"
    .text
    .globl victim
    .type victim, @function
victim:
    .fill 64, 1, 0x90
    .size victim, . - victim
victim_end:
    .section .note.GNU-stack, "", @progbits
    .section .debug_abbrev, "", @progbits
    .byte 1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0, 0
    /* DW_FORM_GNU_ref_alt is 0x1f20. */
    .byte 2, 0x2e, 0, 0x31
    .uleb128 0x1f20
    .byte 0x11, 0x01, 0x12, 0x07, 0, 0
    .byte 0
    .section .debug_info, "", @progbits
    .long end - start
start:
    .value 4
    .long 0
    .byte 8
    .byte 1
    .quad victim, victim_end - victim
    .byte 2
    .long 12
    .quad victim, victim_end - victim
    .byte 0
end:
"#;

fn assemble(dir: &Path, name: &str, assembly: &str) -> PathBuf {
    let (source, output) = (dir.join("source.s"), dir.join(name));
    fs::write(&source, assembly).unwrap();
    let options = ["-shared", "-nostdlib", "-Wl,--build-id", "-o"];
    run(Command::new("cc").arg(&source).args(options).arg(&output));
    output
}

/// Builds both files in `dir` and asks for `victim`.
fn ask(dir: &Path, build_id_of: &str) -> (Arc<[Frame]>, Vec<(&'static str, u64)>) {
    assemble(dir, "shared.debug", ALTERNATE);
    assemble(dir, "other.debug", "    .section .note.GNU-stack, \"\", @progbits\n");
    let linked = fs::read(dir.join(build_id_of)).unwrap();
    let linked = object::File::parse(&*linked).unwrap();
    let id = linked.build_id().unwrap().unwrap();
    let id: Vec<_> = id.iter().map(|byte| byte.to_string()).collect();
    let link = format!(
        "    .section .gnu_debugaltlink, \"\", @progbits\n    .asciz \"shared.debug\"\n    .byte {}\n",
        id.join(", ")
    );
    let program = assemble(dir, "program", &format!("{PROGRAM}{link}"));
    let victim = programs::functions(&program).into_iter().find(|f| f.name == "victim").unwrap();
    let mut symbolizer = Symbolizer::new(Options { debug_dirs: Vec::new(), ..Options::default() });

    let offset = Offsets::of(&program).offset(victim.start);
    let found = symbolizer.symbolize(&programs::image(&program), offset).unwrap().unwrap();

    (found, symbolizer.counters())
}

#[test]
fn name_is_read_from_the_alternate_file() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();

    let (frames, counters) = ask(dir.path(), "shared.debug");

    assert_eq!(frames[0].function.as_deref(), Some("shared_name"));
    assert_eq!(counters, []);
}

#[test]
fn alternate_file_of_another_build_is_rejected_and_counted() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();

    let (frames, counters) = ask(dir.path(), "other.debug");

    assert_eq!(frames[0].function.as_deref(), Some("victim"));
    let expected = [("symbol_alternate_files_missing", 1), ("symbol_debug_files_rejected", 1)];
    assert_eq!(counters, expected);
}
