//! The test programs: what they are made of, and how they are built.
//!
//! Every program is built into `target/test-programs/<frame pointers>/<name>`, once for all
//! tests, and again when its source, the shared header or the command has changed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::table::Table;

/// Whether code keeps the frame pointer in `rbp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramePointers {
    /// `-fno-omit-frame-pointer`.
    Kept,
    /// `-fomit-frame-pointer`.
    Omitted,
}

impl FramePointers {
    fn directory(self) -> &'static str {
        match self {
            FramePointers::Kept => "kept",
            FramePointers::Omitted => "omitted",
        }
    }

    fn gcc_flag(self) -> &'static str {
        match self {
            FramePointers::Kept => "-fno-omit-frame-pointer",
            FramePointers::Omitted => "-fomit-frame-pointer",
        }
    }

    fn rustc_flag(self) -> &'static str {
        match self {
            FramePointers::Kept => "-Cforce-frame-pointers=yes",
            FramePointers::Omitted => "-Cforce-frame-pointers=no",
        }
    }
}

/// How a source becomes a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// C with the system's C library.
    C,
    /// C with LeakSanitizer in it.
    LeakSanitizer,
    /// C, as a shared library.
    SharedC,
    /// C, statically linked with the system's C library.
    StaticC,
    /// C, statically linked, at whatever address the kernel chooses.
    StaticPieC,
    /// C at the address that the linker has chosen.
    FixedC,
    /// C with its unwind information in `.debug_frame` alone.
    DebugFrameC,
    /// C, statically linked with musl.
    StaticMusl,
    /// C with musl as a shared library.
    Musl,
    /// C with jemalloc in place of the C library's allocator.
    Jemalloc,
    /// C++.
    Cxx,
    /// C++ by clang, with LLVM's libc++.
    LibCxx,
    /// Rust.
    Rust,
    /// Go without C.
    Go,
    /// Go that calls C.
    Cgo,
}

/// Whether the C library or a library allocates before `main`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
    /// Nothing is allocated through the functions that are probed.
    Silent,
    /// Something is; a table's totals then hold only from `ready` on.
    Allocates,
}

/// A test program.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name of the executable.
    pub name: &'static str,
    /// File name of its source in `programs/`.
    pub source: &'static str,
    /// What builds it.
    pub toolchain: Toolchain,
    /// Whether something is allocated before `main`.
    pub startup: Startup,
    /// Files that it loads or executes, to be built beside it.
    pub companions: &'static [Program],
    /// What it is linked with besides: arguments of the compiler.
    pub link: &'static [&'static str],
}

const fn program(name: &'static str, source: &'static str, toolchain: Toolchain) -> Program {
    Program { name, source, toolchain, startup: Startup::Silent, companions: &[], link: &[] }
}

/// Leaks, frees, nested callers.
pub const LEAK: Program = program("leak", "leak.c", Toolchain::C);
/// [`LEAK`] with the C library in the executable.
pub const LEAK_STATIC: Program =
    Program { startup: Startup::Allocates, ..program("leak_static", "leak.c", Toolchain::StaticC) };
/// [`LEAK`] with the C library in the executable, at any address.
pub const LEAK_STATIC_PIE: Program = Program {
    startup: Startup::Allocates,
    ..program("leak_static_pie", "leak.c", Toolchain::StaticPieC)
};
/// [`LEAK`] at a fixed address.
pub const LEAK_FIXED: Program = program("leak_fixed", "leak.c", Toolchain::FixedC);
/// [`LEAK`] without `.eh_frame`.
pub const LEAK_DEBUG_FRAME: Program = program("leak_debug_frame", "leak.c", Toolchain::DebugFrameC);
/// Assembly and code made at run time between the frames.
pub const HOSTILE_FRAMES: Program = program("hostile_frames", "hostile_frames.c", Toolchain::C);
/// [`LEAK`] with jemalloc.
pub const LEAK_JEMALLOC: Program = Program {
    startup: Startup::Allocates,
    ..program("leak_jemalloc", "leak.c", Toolchain::Jemalloc)
};
/// [`LEAK`] with musl as a shared library.
pub const LEAK_MUSL: Program = program("leak_musl", "leak.c", Toolchain::Musl);
/// [`LEAK`] with musl in the executable.
pub const LEAK_MUSL_STATIC: Program = program("leak_musl_static", "leak.c", Toolchain::StaticMusl);
/// Allocated by one thread, freed by another.
pub const CROSS_THREAD: Program = program("cross_thread", "cross_thread.c", Toolchain::C);
/// [`CROSS_THREAD`] with musl as a shared library.
pub const CROSS_THREAD_MUSL: Program = Program {
    startup: Startup::Allocates,
    ..program("cross_thread_musl", "cross_thread.c", Toolchain::Musl)
};
/// `realloc` in all its ways.
pub const REALLOC_CHAIN: Program = program("realloc_chain", "realloc_chain.c", Toolchain::C);
/// `calloc`, overflow included.
pub const CALLOC_BLOCKS: Program = program("calloc_blocks", "calloc_blocks.c", Toolchain::C);
/// glibc's allocator in all its ways, with one thread and with two.
pub const ALLOCATOR_PATHS: Program = program("allocator_paths", "allocator_paths.c", Toolchain::C);
/// The aligned allocators and `reallocarray`.
pub const ALIGNED: Program = program("aligned", "aligned.c", Toolchain::C);
/// 200 frames of one function.
pub const RECURSION: Program = program("recursion", "recursion.c", Toolchain::C);
/// More call paths than are remembered, and then few.
pub const MANY_PATHS: Program = program("many_paths", "many_paths.c", Toolchain::C);
/// Allocation in signal handlers.
pub const SIGNAL_HANDLER: Program = program("signal_handler", "signal_handler.c", Toolchain::C);
/// Allocation in a signal handler that has interrupted the vDSO.
pub const SIGNAL_IN_VDSO: Program = program("signal_in_vdso", "signal_in_vdso.c", Toolchain::C);
/// A signal while a probed function runs.
pub const SIGNAL_IN_ALLOCATOR: Program =
    program("signal_in_allocator", "signal_in_allocator.c", Toolchain::C);
/// `longjmp` past functions that have allocated.
pub const LONGJMP: Program = program("longjmp", "longjmp.c", Toolchain::C);
/// glibc's `realloc`, left by `longjmp`.
pub const LEFT_REALLOC: Program = program("left_realloc", "left_realloc.c", Toolchain::C);
/// An allocator in the executable, left by `longjmp`.
pub const OWN_ALLOCATOR: Program = program("own_allocator", "own_allocator.c", Toolchain::C);
/// A fork after which all sides allocate.
pub const FORK_BOTH: Program = program("fork_both", "fork_both.c", Toolchain::C);
/// [`FORK_BOTH`] with musl as a shared library.
pub const FORK_BOTH_MUSL: Program = program("fork_both_musl", "fork_both.c", Toolchain::Musl);
/// Children that have one process id, one after the other.
pub const PID_REUSE: Program = program("pid_reuse", "pid_reuse.c", Toolchain::C);
/// A thousand short threads.
pub const THREAD_CHURN: Program = program("thread_churn", "thread_churn.c", Toolchain::C);
/// `mmap`, `munmap`, `mremap`, `brk`.
pub const MAPPINGS: Program = program("mappings", "mappings.c", Toolchain::C);
/// Address space that becomes memory, and the way back.
pub const RESERVED: Program = program("reserved", "reserved.c", Toolchain::C);
/// Arenas of threads, older and younger than the attach.
pub const ARENAS: Program = program("arenas", "arenas.c", Toolchain::C);
/// Mappings beyond 4 GiB.
pub const BIG_MAPPING: Program = program("big_mapping", "big_mapping.c", Toolchain::C);
/// Memory from before the attach.
pub const BEFORE_ATTACH: Program = program("before_attach", "before_attach.c", Toolchain::C);
/// Leaks of every class, and what only looks like one.
pub const LEAK_CORPUS: Program = program("leak_corpus", "leak_corpus.c", Toolchain::C);
/// Allocates slowly until it is told to stop.
pub const STEADY: Program = program("steady", "steady.c", Toolchain::C);
/// Allocates without pause and tells how long it was kept from it.
pub const STALLS: Program = program("stalls", "stalls.c", Toolchain::C);
/// Children of vfork that allocate.
pub const VFORK_CHILDREN: Program = program("vfork_children", "vfork_children.c", Toolchain::C);
/// The first thread ends, another goes on and runs the program again.
pub const FIRST_THREAD_ENDS: Program =
    program("first_thread_ends", "first_thread_ends.c", Toolchain::C);
/// A child that ends once calls to the allocator cost it nothing more than usual.
pub const UNTRACED_CHILD: Program = program("untraced_child", "untraced_child.c", Toolchain::C);
/// [`STEADY`] with the C library in the executable.
pub const STEADY_STATIC: Program = program("steady_static", "steady.c", Toolchain::StaticC);
/// Allocates under a seccomp filter.
pub const FILTERED: Program = program("filtered", "filtered.c", Toolchain::C);
/// More events than a small ring holds.
pub const FLOOD: Program = program("flood", "flood.c", Toolchain::C);
/// Constructors, vectors, arrays, smart pointers.
pub const CXX_OBJECTS: Program = program("cxx_objects", "cxx_objects.cc", Toolchain::Cxx);
/// Exceptions past functions that have allocated, and out of `operator new`.
pub const CXX_EXCEPTION: Program = program("cxx_exception", "cxx_exception.cc", Toolchain::Cxx);
/// Rust with std's allocator.
pub const RUST_PROGRAM: Program = program("rust_program", "rust_program.rs", Toolchain::Rust);
/// Go without C.
pub const GO_PROGRAM: Program = program("go_program", "go_program.go", Toolchain::Go);
/// Go that calls C.
pub const CGO_PROGRAM: Program = program("cgo_program", "cgo_program.go", Toolchain::Cgo);
/// Allocates, executes itself, then another program.
pub const EXEC_AGAIN: Program = Program {
    companions: &[program("exec_another", "exec_another.c", Toolchain::C)],
    ..program("exec_again", "exec_again.c", Toolchain::C)
};
/// Fills the ring, then executes another program.
pub const EXEC_UNSEEN: Program = Program {
    companions: &[program("exec_unseen_next", "leak.c", Toolchain::C)],
    ..program("exec_unseen", "exec_unseen.c", Toolchain::C)
};
/// Loads libraries that allocate.
pub const DLOPEN_PLUGINS: Program = Program {
    companions: &[
        program("libplugin_first.so", "plugin_first.c", Toolchain::SharedC),
        program("libplugin_second.so", "plugin_second.c", Toolchain::SharedC),
    ],
    ..program("dlopen_plugins", "dlopen_plugins.c", Toolchain::C)
};
/// Threads that load and unload libraries all the time.
pub const DLOPEN_CHURN: Program = Program {
    companions: DLOPEN_PLUGINS.companions,
    ..program("dlopen_churn", "dlopen_churn.c", Toolchain::C)
};
/// A program, to be compared with its next build.
pub const BUILD_BEFORE: Program = program("build_before", "build_before.c", Toolchain::C);
/// The next build of [`BUILD_BEFORE`].
pub const BUILD_AFTER: Program = program("build_after", "build_after.c", Toolchain::C);
/// Rewrites a library with an allocator in place.
pub const REWRITTEN_LIBRARY: Program = Program {
    companions: &[
        program("libswapped_first.so", "swapped_first.c", Toolchain::SharedC),
        program("libswapped_second.so", "swapped_second.c", Toolchain::SharedC),
    ],
    ..program("rewritten_library", "rewritten_library.c", Toolchain::C)
};

/// Two operations, one of which makes a spike.
pub const OPERATIONS: Program = program("operations", "operations.c", Toolchain::C);
/// Lost blocks of all kinds, and blocks that one place points to.
pub const LOST_BLOCKS: Program = program("lost_blocks", "lost_blocks.c", Toolchain::C);
/// [`LOST_BLOCKS`], which LeakSanitizer judges.
pub const LOST_BLOCKS_LSAN: Program =
    program("lost_blocks_lsan", "lost_blocks.c", Toolchain::LeakSanitizer);
/// [`LOST_BLOCKS`], linked statically.
pub const LOST_BLOCKS_STATIC: Program = Program {
    startup: Startup::Allocates,
    ..program("lost_blocks_static", "lost_blocks.c", Toolchain::StaticC)
};
/// A program and its children, each of which loses blocks.
pub const LOST_IN_CHILDREN: Program =
    program("lost_in_children", "lost_in_children.c", Toolchain::C);
/// Loses blocks while other threads replace theirs.
pub const LOST_UNDER_CHURN: Program =
    program("lost_under_churn", "lost_under_churn.c", Toolchain::C);
/// A pool allocator under names that only the user knows.
pub const POOL: Program = program("pool", "pool.c", Toolchain::C);
/// jemalloc's `operator new` throws, and the program goes on.
pub const THROWING_JEMALLOC: Program = Program {
    link: &["-ljemalloc"],
    startup: Startup::Allocates,
    ..program("throwing_jemalloc", "throwing.cc", Toolchain::Cxx)
};
/// tcmalloc's does.
pub const THROWING_TCMALLOC: Program = Program {
    link: &["-ltcmalloc_minimal"],
    startup: Startup::Allocates,
    ..program("throwing_tcmalloc", "throwing.cc", Toolchain::Cxx)
};

/// Every test program.
pub const ALL: &[Program] = &[
    LEAK,
    LEAK_STATIC,
    LEAK_STATIC_PIE,
    LEAK_FIXED,
    LEAK_DEBUG_FRAME,
    HOSTILE_FRAMES,
    LEAK_JEMALLOC,
    LEAK_MUSL,
    LEAK_MUSL_STATIC,
    CROSS_THREAD,
    CROSS_THREAD_MUSL,
    REALLOC_CHAIN,
    CALLOC_BLOCKS,
    ALLOCATOR_PATHS,
    ALIGNED,
    RECURSION,
    MANY_PATHS,
    SIGNAL_HANDLER,
    SIGNAL_IN_VDSO,
    SIGNAL_IN_ALLOCATOR,
    LONGJMP,
    LEFT_REALLOC,
    OWN_ALLOCATOR,
    FORK_BOTH,
    FORK_BOTH_MUSL,
    PID_REUSE,
    THREAD_CHURN,
    MAPPINGS,
    RESERVED,
    ARENAS,
    BIG_MAPPING,
    BEFORE_ATTACH,
    STEADY,
    STALLS,
    VFORK_CHILDREN,
    FIRST_THREAD_ENDS,
    UNTRACED_CHILD,
    STEADY_STATIC,
    FILTERED,
    FLOOD,
    CXX_OBJECTS,
    CXX_EXCEPTION,
    RUST_PROGRAM,
    GO_PROGRAM,
    CGO_PROGRAM,
    EXEC_AGAIN,
    EXEC_UNSEEN,
    DLOPEN_PLUGINS,
    DLOPEN_CHURN,
    REWRITTEN_LIBRARY,
    LOST_BLOCKS,
    LOST_BLOCKS_LSAN,
    LOST_BLOCKS_STATIC,
    OPERATIONS,
    LOST_IN_CHILDREN,
    LOST_UNDER_CHURN,
    BUILD_BEFORE,
    BUILD_AFTER,
    POOL,
    THROWING_JEMALLOC,
    THROWING_TCMALLOC,
];

impl Program {
    /// Path of its source.
    pub fn source_path(&self) -> PathBuf {
        sources().join(self.source)
    }

    /// The table in its source.
    pub fn table(&self) -> Result<Table> {
        let path = self.source_path();
        let source =
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Table::parse(&source).with_context(|| path.display().to_string())
    }

    /// Builds it and what it needs, unless that is done already, and returns its path.
    pub fn build(&self, frame_pointers: FramePointers) -> Result<PathBuf> {
        let files = self.build_all(frame_pointers)?;
        files.into_iter().next().context("the program comes first")
    }

    /// The same; returns its path, and behind it those of its companions.
    pub fn build_all(&self, frame_pointers: FramePointers) -> Result<Vec<PathBuf>> {
        let directory =
            crate::target_directory()?.join("test-programs").join(frame_pointers.directory());
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let lock_path = directory.join(".lock");
        let lock =
            File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
        lock.lock().with_context(|| format!("lock {}", lock_path.display()))?;
        let parts = std::iter::once(self).chain(self.companions);
        parts.map(|part| part.build_in(&directory, frame_pointers)).collect()
    }

    fn build_in(&self, directory: &Path, frame_pointers: FramePointers) -> Result<PathBuf> {
        let executable = directory.join(self.name);
        let fresh = directory.join(format!("{}.new", self.name));
        let mut command = self.command(&fresh, frame_pointers);
        let recipe = format!("{command:?}");
        let recipe_path = directory.join(format!("{}.command", self.name));
        if self.is_up_to_date(&executable, &recipe_path, &recipe) {
            return Ok(executable);
        }
        let compiler = command.get_program().to_string_lossy().into_owned();
        let output = command.output().with_context(|| {
            format!(
                "run `{compiler}`, which builds {}: `cargo xtask setup` installs it",
                self.source
            )
        })?;
        if !output.status.success() {
            bail!(
                "{recipe} failed ({}):\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        // A name of its own until it is whole, and a new inode: an old one may still be running.
        fs::rename(&fresh, &executable).with_context(|| format!("rename {}", fresh.display()))?;
        fs::write(&recipe_path, recipe)
            .with_context(|| format!("write {}", recipe_path.display()))?;
        Ok(executable)
    }

    fn is_up_to_date(&self, executable: &Path, recipe_path: &Path, recipe: &str) -> bool {
        let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
        let Ok(built) = modified(executable) else {
            return false;
        };
        let newer = |path: &Path| modified(path).map_or(true, |time| time > built);
        let stale = newer(&self.source_path()) || headers().iter().any(|header| newer(header));
        !stale && fs::read_to_string(recipe_path).is_ok_and(|last| last == recipe)
    }

    fn command(&self, output: &Path, frame_pointers: FramePointers) -> Command {
        let mut command = Command::new(match self.toolchain {
            Toolchain::C
            | Toolchain::LeakSanitizer
            | Toolchain::SharedC
            | Toolchain::StaticC
            | Toolchain::StaticPieC
            | Toolchain::FixedC
            | Toolchain::DebugFrameC
            | Toolchain::Jemalloc => "gcc",
            Toolchain::StaticMusl | Toolchain::Musl => "musl-gcc",
            Toolchain::Cxx => "g++",
            Toolchain::LibCxx => "clang++",
            Toolchain::Rust => "rustc",
            Toolchain::Go | Toolchain::Cgo => "go",
        });
        match self.toolchain {
            Toolchain::C
            | Toolchain::LeakSanitizer
            | Toolchain::SharedC
            | Toolchain::StaticC
            | Toolchain::StaticPieC
            | Toolchain::FixedC
            | Toolchain::DebugFrameC
            | Toolchain::StaticMusl
            | Toolchain::Musl
            | Toolchain::Jemalloc => {
                command.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
                command.arg(frame_pointers.gcc_flag());
            }
            Toolchain::Cxx | Toolchain::LibCxx => {
                command.args(["-std=c++17", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]);
                command.arg(frame_pointers.gcc_flag());
            }
            Toolchain::Rust => {
                command.args(["--edition=2024", "-O", "-g", frame_pointers.rustc_flag()]);
            }
            Toolchain::Go | Toolchain::Cgo => {
                command.arg("build").env("GO111MODULE", "off").env("GOFLAGS", "");
                command.env("CGO_ENABLED", if self.toolchain == Toolchain::Go { "0" } else { "1" });
            }
        }
        match self.toolchain {
            Toolchain::SharedC => command.args(["-shared", "-fPIC"]),
            Toolchain::StaticC | Toolchain::StaticMusl => command.arg("-static"),
            Toolchain::StaticPieC => command.arg("-static-pie"),
            Toolchain::FixedC => command.args(["-fno-pie", "-no-pie"]),
            Toolchain::DebugFrameC => command.arg("-fno-asynchronous-unwind-tables"),
            Toolchain::LeakSanitizer => command.args(["-fsanitize=leak", "-DWITH_LSAN"]),
            Toolchain::LibCxx => command.arg("-stdlib=libc++"),
            Toolchain::C
            | Toolchain::Musl
            | Toolchain::Jemalloc
            | Toolchain::Cxx
            | Toolchain::Rust
            | Toolchain::Go
            | Toolchain::Cgo => &mut command,
        };
        command.arg("-o").arg(output).arg(self.source_path());
        match self.toolchain {
            Toolchain::C
            | Toolchain::LeakSanitizer
            | Toolchain::StaticC
            | Toolchain::StaticPieC
            | Toolchain::FixedC
            | Toolchain::DebugFrameC => command.args(["-pthread", "-ldl"]),
            Toolchain::Jemalloc => command.args(["-pthread", "-ljemalloc"]),
            Toolchain::SharedC
            | Toolchain::StaticMusl
            | Toolchain::Musl
            | Toolchain::Cxx
            | Toolchain::LibCxx
            | Toolchain::Rust
            | Toolchain::Go
            | Toolchain::Cgo => &mut command,
        };
        command.args(self.link);
        command
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
}

/// What the C and C++ programs share.
fn headers() -> Vec<PathBuf> {
    let entries = fs::read_dir(sources()).expect("the programs are beside the crate");
    let paths = entries.map(|entry| entry.expect("a readable directory").path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "h")).collect()
}
