//! Debug information that is not in the image, or that must not be believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use memtrace_common::addr::{FileOffset, Svma};
use tempfile::TempDir;

use super::super::{Frame, Limits, Miss, Options, Symbolizer};
use super::programs::{self, Function, Offsets, run};
use crate::record::Image;

/// A program, apart from its debug information.
pub(super) struct Stripped {
    dir: TempDir,
    /// Without symbols, unless they were asked for.
    program: PathBuf,
    /// What `objcopy --only-keep-debug` kept.
    pub(super) debug: PathBuf,
    /// As the trace would name it.
    image: Image,
    /// An address inside inlined code of `global_function`, and its frames.
    offset: FileOffset,
    pub(super) frames: Vec<Frame>,
}

impl Stripped {
    /// Builds and strips; `None` if the tools are missing.
    pub(super) fn build(options: &[&str]) -> Option<Stripped> {
        if !programs::have_toolchain() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut all = vec!["-O2", "-g", "-Wl,--build-id"];
        all.extend(options);
        let program = programs::compile_c(dir.path(), &all);
        let image = programs::image(&program);
        let (offset, frames) = inlined_address(&program, &image);
        let debug = dir.path().join("program.debug");
        run(Command::new("objcopy").arg("--only-keep-debug").arg(&program).arg(&debug));
        run(Command::new("objcopy").arg("--strip-all").arg(&program));
        Some(Stripped { dir, program, debug, image, offset, frames })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn build_id(&self) -> &[u8] {
        let Image::File { build_id, .. } = &self.image else { unreachable!() };
        build_id
    }

    /// `DIR/.build-id/xx/yyyy…SUFFIX`, with its directory made.
    fn build_id_path(&self, dir: &Path, suffix: &str) -> PathBuf {
        let id: String = self.build_id().iter().map(|byte| format!("{byte:02x}")).collect();
        let path = dir.join(".build-id").join(&id[..2]).join(format!("{}{suffix}", &id[2..]));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn add_debug_link(&self, debug: &Path) {
        run(Command::new("objcopy")
            .arg(format!("--add-gnu-debuglink={}", debug.display()))
            .arg(&self.program));
    }

    pub(super) fn symbolize(&self, options: Options) -> Result<Vec<Frame>, Miss> {
        let found = Symbolizer::new(options).symbolize(&self.image, self.offset).unwrap();
        found.map(|frames| frames.to_vec())
    }
}

/// Options that look nowhere but in these directories.
pub(super) fn looking_in(search_dirs: &[&Path], debug_dirs: &[&Path]) -> Options {
    let owned = |dirs: &[&Path]| dirs.iter().map(|dir| dir.to_path_buf()).collect();
    Options { search_dirs: owned(search_dirs), debug_dirs: owned(debug_dirs), ..Options::default() }
}

fn function(program: &Path, name: &str) -> Function {
    programs::functions(program).into_iter().find(|function| function.name == name).unwrap()
}

/// An address where functions are inlined two deep, while debug information is still there.
fn inlined_address(program: &Path, image: &Image) -> (FileOffset, Vec<Frame>) {
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[]));
    let offsets = Offsets::of(program);
    let code = function(program, "local_function");
    let addresses = code.start.0..code.start.0 + code.size_bytes;
    let mut found = addresses.map(|svma| {
        let offset = offsets.offset(Svma(svma));
        (offset, symbolizer.symbolize(image, offset).unwrap().unwrap().to_vec())
    });
    found.find(|(_, frames)| frames.len() == 3).unwrap()
}

fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.function.as_deref().unwrap()).collect()
}

#[test]
fn frames_are_innermost_first_with_lines() {
    let Some(stripped) = Stripped::build(&[]) else { return };

    let inlined: Vec<_> = stripped.frames.iter().map(|frame| frame.inlined).collect();
    let has_start: Vec<_> = stripped.frames.iter().map(|f| f.symbol_start.is_some()).collect();

    assert_eq!(names(&stripped.frames), ["innermost", "middle", "local_function"]);
    assert_eq!(inlined, [true, true, false]);
    assert_eq!(has_start, [false, false, true]);
    // The call of `middle` stands in the line of `return middle(x) * 3`.
    assert_eq!(stripped.frames[2].line, Some(19));
    assert!(stripped.frames[0].file.as_deref().unwrap().ends_with("program.c"));
}

#[test]
fn stripped_program_without_debug_file_is_a_miss() {
    let Some(stripped) = Stripped::build(&[]) else { return };

    let found = stripped.symbolize(looking_in(&[], &[]));

    // `.dynsym` of an executable has no function of its own.
    let path = stripped.program.as_path().into();
    assert!(
        found == Err(Miss::NoSymbols { path: Arc::clone(&path) })
            || found == Err(Miss::NoSymbolHere { path, offset: stripped.offset }),
        "{found:?}"
    );
}

#[test]
fn debug_file_is_found_by_build_id() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let system = stripped.path("system");
    fs::rename(&stripped.debug, stripped.build_id_path(&system, ".debug")).unwrap();

    let found = stripped.symbolize(looking_in(&[], &[&system]));

    assert_eq!(found, Ok(stripped.frames.clone()));
}

#[test]
fn debug_file_is_found_by_build_id_in_a_search_directory() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let search = stripped.path("search");
    fs::rename(&stripped.debug, stripped.build_id_path(&search, ".debug")).unwrap();

    let found = stripped.symbolize(looking_in(&[&search], &[]));

    assert_eq!(found, Ok(stripped.frames.clone()));
}

#[test]
fn debug_file_of_another_build_is_rejected_and_counted() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let Some(other) = Stripped::build(&["-DOTHER", "-O1"]) else { return };
    let system = stripped.path("system");
    fs::rename(&other.debug, stripped.build_id_path(&system, ".debug")).unwrap();
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[&system]));

    let found = symbolizer.symbolize(&stripped.image, stripped.offset).unwrap();

    assert!(found.is_err(), "{found:?}");
    assert_eq!(symbolizer.counters(), [("symbol_debug_files_rejected", 1)]);
}

#[test]
fn debug_link_is_followed_beside_the_program() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    stripped.add_debug_link(&stripped.debug);

    assert_eq!(stripped.symbolize(looking_in(&[], &[])), Ok(stripped.frames.clone()));
}

#[test]
fn debug_link_is_followed_into_the_debug_directories() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    stripped.add_debug_link(&stripped.debug);
    let system = stripped.path("system");
    let relative = stripped.dir.path().strip_prefix("/").unwrap();
    for dir in [stripped.path(".debug"), system.join(relative)] {
        fs::create_dir_all(&dir).unwrap();
        let moved = dir.join("program.debug");
        fs::rename(&stripped.debug, &moved).unwrap();

        let found = stripped.symbolize(looking_in(&[], &[&system]));

        assert_eq!(found, Ok(stripped.frames.clone()), "{dir:?}");
        fs::rename(&moved, &stripped.debug).unwrap();
    }
}

#[test]
fn debug_link_is_relative_to_the_real_place_of_a_symbolic_link() {
    let Some(mut stripped) = Stripped::build(&[]) else { return };
    stripped.add_debug_link(&stripped.debug);
    let bin = stripped.path("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(&stripped.program, bin.join("program")).unwrap();
    stripped.image = programs::image(&bin.join("program"));

    assert_eq!(stripped.symbolize(looking_in(&[], &[])), Ok(stripped.frames.clone()));
}

#[test]
fn debug_link_with_a_wrong_checksum_is_rejected_and_counted() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    stripped.add_debug_link(&stripped.debug);
    let mut bytes = fs::read(&stripped.debug).unwrap();
    bytes.push(0);
    fs::write(&stripped.debug, bytes).unwrap();
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[]));

    let found = symbolizer.symbolize(&stripped.image, stripped.offset).unwrap();

    assert!(found.is_err(), "{found:?}");
    assert_eq!(symbolizer.counters(), [("symbol_debug_files_rejected", 1)]);
}

#[test]
fn mini_debug_info_names_local_functions() {
    if !programs::have("xz") {
        return;
    }
    let Some(stripped) = Stripped::build(&[]) else { return };
    // As Fedora makes it: symbols only, compressed, into a section of the stripped program.
    let mini = stripped.path("mini");
    run(Command::new("objcopy").arg("--strip-debug").arg(&stripped.debug).arg(&mini));
    run(Command::new("xz").arg(&mini));
    run(Command::new("objcopy")
        .arg(format!("--add-section=.gnu_debugdata={}.xz", mini.display()))
        .arg(&stripped.program));

    let found = stripped.symbolize(looking_in(&[], &[])).unwrap();

    assert_eq!(names(&found), ["local_function"]);
    assert_eq!(found[0].symbol_start, stripped.frames[2].symbol_start);
    assert_eq!((&found[0].file, found[0].line), (&None, None));
}

#[test]
fn broken_mini_debug_info_is_counted() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let mini = stripped.path("mini.xz");
    fs::write(&mini, b"\xfd7zXZ\0 and then nothing of the kind").unwrap();
    run(Command::new("objcopy")
        .arg(format!("--add-section=.gnu_debugdata={}", mini.display()))
        .arg(&stripped.program));
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[]));

    let found = symbolizer.symbolize(&stripped.image, stripped.offset).unwrap();

    assert!(found.is_err(), "{found:?}");
    assert_eq!(symbolizer.counters(), [("symbol_debug_files_rejected", 1)]);
}

#[test]
fn compressed_sections_are_read() {
    for format in ["zlib", "zlib-gnu", "zstd"] {
        let Some(stripped) = Stripped::build(&[]) else { return };
        let mut compress = Command::new("objcopy");
        compress.arg(format!("--compress-debug-sections={format}")).arg(&stripped.debug);
        if format == "zstd" && !compress.output().unwrap().status.success() {
            // This objcopy was built without zstd.
            continue;
        }
        run(&mut compress);
        let system = stripped.path("system");
        fs::rename(&stripped.debug, stripped.build_id_path(&system, ".debug")).unwrap();

        let found = stripped.symbolize(looking_in(&[], &[&system]));

        assert_eq!(found, Ok(stripped.frames.clone()), "{format}");
    }
}

#[test]
fn split_dwarf_is_read_from_its_own_file() {
    if !programs::have_toolchain() {
        return;
    }
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let dir = tempfile::tempdir().unwrap();
        let program =
            programs::compile_c(dir.path(), &["-O2", "-g", version, "-gsplit-dwarf", "-c"]);
        // Linked apart: the compiler would otherwise name the file after a temporary one.
        let object = dir.path().join("program.o");
        fs::rename(&program, &object).unwrap();
        run(Command::new("cc").arg(&object).arg("-o").arg(&program));

        let (_, frames) = inlined_address(&program, &programs::image(&program));

        assert_eq!(names(&frames), ["innermost", "middle", "local_function"], "{version}");
    }
}

#[test]
fn split_dwarf_is_read_from_a_package() {
    if !programs::have_toolchain() || !programs::have("dwp") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = programs::compile_c(dir.path(), &["-O2", "-g", "-gdwarf-4", "-gsplit-dwarf"]);
    run(Command::new("dwp").arg("-e").arg(&program).arg("-o").arg(dir.path().join("program.dwp")));
    let split = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    split
        .filter(|path| path.extension().is_some_and(|extension| extension == "dwo"))
        .for_each(|path| fs::remove_file(path).unwrap());

    let (_, frames) = inlined_address(&program, &programs::image(&program));

    assert_eq!(names(&frames), ["innermost", "middle", "local_function"]);
}

#[test]
fn replaced_program_is_a_miss() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let Some(other) = Stripped::build(&["-DOTHER", "-O1"]) else { return };
    fs::copy(&other.program, &stripped.program).unwrap();

    let found = stripped.symbolize(looking_in(&[], &[]));

    let hex = |id: &[u8]| id.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = Miss::BuildIdDiffers {
        path: stripped.program.as_path().into(),
        expected: hex(stripped.build_id()),
        found: hex(other.build_id()),
    };
    assert_eq!(found, Err(expected));
}

#[test]
fn missing_program_is_a_miss() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    fs::remove_file(&stripped.program).unwrap();

    let found = stripped.symbolize(looking_in(&[], &[]));

    assert_eq!(found, Err(Miss::NoSuchFile { path: stripped.program.as_path().into() }));
}

#[test]
fn program_is_found_in_search_directories() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let search = stripped.path("search");
    stripped.add_debug_link(&stripped.debug);
    let relative = stripped.program.strip_prefix("/").unwrap();
    let by_id = stripped.build_id_path(&search, "");
    for place in [search.join(relative), search.join("program"), by_id] {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(&stripped.program, &place).unwrap();
        let debug = place.with_file_name("program.debug");
        fs::rename(&stripped.debug, &debug).unwrap();

        let found = stripped.symbolize(looking_in(&[&search], &[]));

        assert_eq!(found, Ok(stripped.frames.clone()), "{place:?}");
        fs::rename(&place, &stripped.program).unwrap();
        fs::rename(&debug, &stripped.debug).unwrap();
    }
}

#[test]
fn image_without_build_id_is_believed_and_counted() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = programs::compile_c(dir.path(), &["-O2", "-g", "-Wl,--build-id=none"]);
    let image = programs::image(&program);
    let offset = Offsets::of(&program).offset(function(&program, "global_function").start);
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[]));

    let found = symbolizer.symbolize(&image, offset).unwrap().unwrap();

    assert_eq!(names(&found[found.len() - 1..]), ["global_function"]);
    assert_eq!(symbolizer.counters(), [("symbol_unverified_images", 1)]);
}

#[test]
fn symbol_table_alone_agrees_with_nm() {
    if !programs::have_toolchain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = programs::compile_cpp(dir.path(), &["-O2"]);
    let image = programs::image(&program);
    let offsets = Offsets::of(&program);
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[]));
    let listing = run(Command::new("nm").args(["--defined-only", "--print-size"]).arg(&program));
    let symbols: Vec<(u64, u64, &str)> = listing
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let [start, size, "t" | "T" | "w" | "W" | "i", name] = fields[..] else { return None };
            let hex = |text| u64::from_str_radix(text, 16).unwrap();
            Some((hex(start), hex(size), name))
        })
        .collect();
    assert!(symbols.len() > 20);

    for (start, size, _) in &symbols {
        let aliases: Vec<_> = symbols
            .iter()
            .filter(|symbol| symbol.0 == *start)
            .map(|symbol| super::super::demangle::demangle(symbol.2.as_bytes()))
            .collect();
        for svma in [*start, start + size / 2, start + size - 1] {
            let found = symbolizer.symbolize(&image, offsets.offset(Svma(svma))).unwrap().unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].symbol_start, Some(Svma(*start)));
            assert!(aliases.contains(&found[0].function.as_deref().unwrap().to_owned()));
        }
    }
}

#[test]
fn memory_without_a_file_has_no_name() {
    let mut symbolizer = Symbolizer::new(looking_in(&[], &[]));

    let anonymous = symbolizer.symbolize(&Image::Anonymous, FileOffset(0)).unwrap();
    let vdso = symbolizer.symbolize(&Image::Vdso, FileOffset(0)).unwrap().unwrap();

    assert_eq!(anonymous, Err(Miss::Anonymous));
    assert_eq!(names(&vdso), ["[vdso]"]);
}

#[test]
fn offset_outside_every_segment_is_a_miss() {
    let Some(stripped) = Stripped::build(&[]) else { return };
    let far = FileOffset(u64::MAX);

    let found = Symbolizer::new(looking_in(&[], &[])).symbolize(&stripped.image, far).unwrap();

    let path = stripped.program.as_path().into();
    assert_eq!(found, Err(Miss::NotLoaded { path, offset: far }));
}

#[test]
fn object_that_was_not_asked_for_the_longest_is_unloaded() {
    let Some(first) = Stripped::build(&["-DFIRST"]) else { return };
    let Some(second) = Stripped::build(&["-DSECOND", "-O1"]) else { return };
    let Some(third) = Stripped::build(&["-DTHIRD", "-O3"]) else { return };
    let limits = Limits { objects: 2, heap_bytes: usize::MAX, misses: 1 };
    let mut symbolizer = Symbolizer::with_limits(looking_in(&[], &[]), limits);

    for stripped in [&first, &second, &first, &third] {
        stripped.add_debug_link(&stripped.debug);
        let _either = symbolizer.symbolize(&stripped.image, stripped.offset).unwrap();
    }
    // Only what is still loaded can answer now.
    for stripped in [&first, &second, &third] {
        fs::remove_file(&stripped.program).unwrap();
    }
    let has_answer = [&first, &second, &third].map(|stripped| {
        let found = symbolizer.symbolize(&stripped.image, stripped.offset).unwrap();
        !matches!(found, Err(Miss::NoSuchFile { .. }))
    });

    assert_eq!(has_answer, [true, false, true]);
    assert_eq!(symbolizer.counters(), [("symbol_objects_evicted", 1)]);
}

#[test]
fn memory_beyond_the_limit_unloads_all_other_objects() {
    let Some(first) = Stripped::build(&["-DFIRST"]) else { return };
    let Some(second) = Stripped::build(&["-DSECOND", "-O1"]) else { return };
    let limits = Limits { objects: 10, heap_bytes: 1, misses: 1 };
    let mut symbolizer = Symbolizer::with_limits(looking_in(&[], &[]), limits);

    for stripped in [&first, &second, &first] {
        // So that it holds something: a table of symbols.
        stripped.add_debug_link(&stripped.debug);
        let _either = symbolizer.symbolize(&stripped.image, stripped.offset).unwrap();
    }

    assert_eq!(symbolizer.counters(), [("symbol_objects_evicted", 2)]);
    assert_eq!(symbolizer.objects.len(), 1);
}

#[test]
fn symbolizer_may_move_between_threads() {
    fn assert_send<T: Send>() {}

    assert_send::<Symbolizer>();
}
